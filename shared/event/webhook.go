package event

import (
	"encoding/json"
	"regexp"
	"time"
)

// DeliveryState is where the delivery of one event to one webhook stands.
type DeliveryState string

// The states. The last two are final, unless a person has a failed one tried again.
const (
	DeliveryPending    DeliveryState = "pending"    // queued
	DeliveryProcessing DeliveryState = "processing" // in flight; never stored, as it would cost every attempt a write
	DeliveryRetrying   DeliveryState = "retrying"   // failed at least once, and due again
	DeliveryDelivered  DeliveryState = "delivered"  // the receiver answered 2xx
	DeliveryFailed     DeliveryState = "failed"     // given up, for the reason in Error
)

// Final reports whether nothing more is sent.
func (s DeliveryState) Final() bool { return s == DeliveryDelivered || s == DeliveryFailed }

// Delivery is the delivery of one event to one webhook, and its log. What is sent is the envelope (a message of its
// own, the same for all webhooks) and Metadata.
type Delivery struct {
	ID      string `json:"delivery_id"`
	Webhook string `json:"webhook_id"`
	// Life is when the webhook was created that this is for: one that was deleted and created again has the same id.
	Life      time.Time       `json:"webhook_created_at"`
	Event     string          `json:"event_id"`
	Type      Type            `json:"event_type"`
	State     DeliveryState   `json:"status"`
	Attempts  int             `json:"attempts"`
	Tries     int             `json:"tries"`            // attempts since it was queued, by the event or by a person
	DueAt     time.Time       `json:"due_at,omitzero"`  // of the next attempt; zero: at once, or never again
	LastAt    time.Time       `json:"last_at,omitzero"` // of the last attempt
	CreatedAt time.Time       `json:"created_at"`
	EndedAt   time.Time       `json:"ended_at,omitzero"`
	Code      int             `json:"response_status_code,omitempty"` // HTTP status of the last attempt
	Body      string          `json:"response_body,omitempty"`        // the beginning of what it brought
	Error     string          `json:"error_message,omitempty"`
	RetriedBy string          `json:"retried_by,omitempty"` // operation by which a person had it tried again last
	Metadata  json.RawMessage `json:"metadata,omitempty"`   // of the webhook when the event happened
}

// Envelope is what the deliveries of an event say, but for the metadata of the webhook that each goes to.
type Envelope struct {
	APIVersion string          `json:"api_version"`
	CreatedAt  string          `json:"created_at"`
	Data       json.RawMessage `json:"data"` // an object
	Event      string          `json:"event"`
	ID         string          `json:"id"`
}

// WebhookOfKey is the webhook that an account creates with an idempotency key: always the same.
func WebhookOfKey(account, key string) string { return "wh_" + hash(16, "webhook", account, key) }

// DeliveryOf is the delivery of an event to a webhook. The webhook can be told from it, see WebhookOfDelivery.
func DeliveryOf(webhook, event string) string {
	return "dlv_" + webhook[len("wh_"):] + "_" + hash(10, "delivery", webhook, event)
}

var deliveryID = regexp.MustCompile(`^dlv_([0-9a-v]{16}|[0-9a-v]{26})_[0-9a-v]{16}$`)

// WebhookOfDelivery is the webhook of a delivery, "" when the id is not that of a delivery.
func WebhookOfDelivery(id string) string {
	m := deliveryID.FindStringSubmatch(id)
	if m == nil {
		return ""
	}
	return "wh_" + m[1]
}
