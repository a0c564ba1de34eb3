package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/topology"
)

// The statuses of webhooks.
const (
	WebhookActive   = "active"
	WebhookPaused   = "paused"   // by a person
	WebhookDisabled = "disabled" // by us: the receiver said that it is gone, or never took anything
)

// Webhook is somebody's HTTP server that is told of events.
type Webhook struct {
	ID       string          `json:"webhook_id"`
	Name     string          `json:"name"`
	URL      string          `json:"url"` // as given, byte for byte
	Events   []string        `json:"events"`
	Indexes  []string        `json:"index_ids,omitempty"` // none: all
	Status   string          `json:"status"`
	Metadata json.RawMessage `json:"metadata,omitempty"` // an object, as given
	Secret   string          `json:"secret"`             // sealed, see webhook.SecretAAD
	// OldSecret is what Secret was before it was rotated. Until OldUntil deliveries are signed with both.
	OldSecret string    `json:"old_secret,omitempty"`
	OldUntil  time.Time `json:"old_until,omitzero"`
	// RotatedBy is the operation that rotated it last, when it had an id: a repetition of it has succeeded.
	RotatedBy string `json:"rotated_by,omitempty"`
	Request   string `json:"request,omitempty"` // digest of the request that created it by key
	// Since is from when on events are for it, and Until up to when, zero while it is active: those of a pause are not.
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"`
	// Failures are failed attempts in a row, Exhausted deliveries in a row that were given up.
	Failures      int       `json:"failure_count"`
	Exhausted     int       `json:"exhausted"`
	LastFailureAt time.Time `json:"last_failure_at,omitzero"`
	LastSuccessAt time.Time `json:"last_success_at,omitzero"`
	CreatedAt     time.Time `json:"created_at"`
	UpdatedAt     time.Time `json:"updated_at"`
}

// SetStatus changes the status at now. Becoming active forgets failures, and what happened since it was not.
func (w *Webhook) SetStatus(status string, now time.Time) {
	switch {
	case status == WebhookActive:
		w.Failures, w.Exhausted = 0, 0
		if w.Status != WebhookActive {
			w.Since, w.Until = now, time.Time{}
		}
	case w.Status == WebhookActive:
		w.Until = now
	}
	w.Status = status
}

// Wants reports whether the webhook is to be told of an event that the broker stored at the given time. index is "" for
// an event that belongs to none.
func (w *Webhook) Wants(typ event.Type, index string, stored time.Time) bool {
	return !stored.Before(w.Since) && (w.Until.IsZero() || stored.Before(w.Until)) &&
		slices.Contains(w.Events, string(typ)) &&
		(index == "" || len(w.Indexes) == 0 || slices.Contains(w.Indexes, index))
}

// Deliveries are the deliveries of a deployment: each a compare-and-set register in a stream, and the envelopes that
// they send, once per event. Both are forgotten 30 days after they were written last.
type Deliveries struct{ bus *bus.Bus }

// NewDeliveries returns the deliveries behind b.
func NewDeliveries(b *bus.Bus) *Deliveries { return &Deliveries{bus: b} }

// Subject is where the deliveries of a webhook stand, or one of them.
func (s *Deliveries) Subject(webhook, delivery string) string {
	return s.bus.Subject("delivery", webhook, delivery)
}

// Get returns a delivery and its revision, or ErrNotFound.
func (s *Deliveries) Get(ctx context.Context, id string) (event.Delivery, Revision, error) {
	webhook := event.WebhookOfDelivery(id)
	if webhook != "" {
		for m, err := range s.bus.Last(ctx, topology.Deliveries, s.Subject(webhook, id)) {
			if err != nil {
				return event.Delivery{}, 0, err
			}
			d, err := ReadDelivery(m.Data)
			return d, m.Sequence, err
		}
	}
	return event.Delivery{}, 0, fmt.Errorf("delivery %s: %w", id, ErrNotFound)
}

// ReadDelivery decodes a delivery.
func ReadDelivery(data []byte) (d event.Delivery, err error) {
	if err := json.Unmarshal(data, &d); err != nil {
		return d, fmt.Errorf("decode delivery: %w", err)
	}
	return d, nil
}

// Write turns the delivery at revision rev (0: none) into d. It fails with bus.ErrConflict when somebody else changed
// it meanwhile.
func (s *Deliveries) Write(ctx context.Context, d event.Delivery, rev Revision) (Revision, error) {
	m, err := s.message(d, rev)
	if err != nil {
		return 0, err
	}
	return s.bus.Publish(ctx, m)
}

func (s *Deliveries) message(d event.Delivery, rev Revision) (bus.Message, error) {
	data, err := json.Marshal(d)
	if err != nil {
		return bus.Message{}, fmt.Errorf("encode delivery %s: %w", d.ID, err)
	}
	return bus.Message{Subject: s.Subject(d.Webhook, d.ID), Data: data, Expect: &rev}, nil
}

// Queue stores new deliveries of one event, and what they send. Doing it again changes nothing: what is there stays as
// it is, and so do the bytes that were sent already.
func (s *Deliveries) Queue(ctx context.Context, eventID string, envelope json.RawMessage, ds []event.Delivery) error {
	_, err := s.bus.Publish(ctx, bus.Message{Subject: s.bus.Subject("envelope", eventID), Data: envelope, Expect: bus.Absent()})
	begun := errors.Is(err, bus.ErrConflict)
	if err != nil && !begun {
		return err
	}
	known := make(map[string]bool)
	if begun {
		subjects := make([]string, len(ds))
		for i, d := range ds {
			subjects[i] = s.Subject(d.Webhook, d.ID)
		}
		for m, err := range s.bus.Last(ctx, topology.Deliveries, subjects...) {
			if err != nil {
				return err
			}
			known[m.Subject] = true
		}
	}
	msgs := make([]bus.Message, 0, len(ds))
	for _, d := range ds {
		if known[s.Subject(d.Webhook, d.ID)] {
			continue
		}
		m, err := s.message(d, 0)
		if err != nil {
			return err
		}
		msgs = append(msgs, m)
	}
	_, errs := s.bus.PublishAll(ctx, msgs)
	for _, err := range errs {
		if err != nil && !errors.Is(err, bus.ErrConflict) { // somebody else was faster
			return err
		}
	}
	return nil
}

// Envelopes returns what the deliveries of events send, by event; those that are not kept any more are left out.
func (s *Deliveries) Envelopes(ctx context.Context, eventIDs ...string) (map[string]json.RawMessage, error) {
	ids := make(map[string]string, len(eventIDs)) // by subject
	for _, id := range eventIDs {
		ids[s.bus.Subject("envelope", id)] = id
	}
	found := make(map[string]json.RawMessage, len(ids))
	if len(ids) == 0 {
		return found, nil
	}
	for m, err := range s.bus.Last(ctx, topology.Deliveries, slices.Collect(maps.Keys(ids))...) {
		if err != nil {
			return nil, err
		}
		found[ids[m.Subject]] = m.Data
	}
	return found, nil
}

// Of yields the deliveries of a webhook, and of those that had its id before, oldest write first. One that is written
// meanwhile may come twice, or not at all.
func (s *Deliveries) Of(ctx context.Context, webhook string) iter.Seq2[event.Delivery, error] {
	return func(yield func(event.Delivery, error) bool) {
		for m, err := range s.bus.Scan(ctx, topology.Deliveries, s.Subject(webhook, "*"), 0) {
			var d event.Delivery
			if err == nil {
				d, err = ReadDelivery(m.Data)
			}
			if !yield(d, err) || err != nil {
				return
			}
		}
	}
}

// Last returns the revision of the newest write of all, 0 when there was none.
func (s *Deliveries) Last(ctx context.Context) (Revision, error) {
	state, err := s.bus.State(ctx, topology.Deliveries)
	return state.LastSeq, err
}

// Forget removes a delivery, or with "*" all deliveries of a webhook, unless it was written after revision upTo.
func (s *Deliveries) Forget(ctx context.Context, webhook, delivery string, upTo Revision) error {
	if upTo == 0 { // to Purge: all
		return nil
	}
	return s.bus.Purge(ctx, topology.Deliveries, s.Subject(webhook, delivery), upTo)
}
