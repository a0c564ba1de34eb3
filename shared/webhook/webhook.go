// Package webhook is how an event is told to somebody's HTTP server: the names of the events, the bytes that are sent,
// their signature, and one attempt to send them. When to send, and again, is for services/webhooks.
package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"millrace/shared/event"
	"millrace/shared/secret"
	"millrace/shared/store"
)

// APIVersion is the version of the envelope.
const APIVersion = "2024-01"

// TestEvent is the event of a test delivery. Nobody can subscribe to it.
const TestEvent = "test"

// Events returns the names that can be subscribed to. The list is closed: clients expect these and no others.
func Events() []string {
	return []string{
		"media.created", "media.processing.started", "media.processing.completed", "media.processing.failed",
		"prompt_run.started", "prompt_run.progress", "prompt_run.completed", "prompt_run.partial_completed",
		"prompt_run.failed", "prompt_run.cancelled",
		"export.ready", "export.failed",
		"import_job.started", "import_job.progress", "import_job.completed", "import_job.partial_completed", "import_job.failed",
	}
}

// NewEnvelope returns the canonical bytes of an envelope; at is when the event happened, data an object.
func NewEnvelope(id, name string, at time.Time, data any) (json.RawMessage, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		return nil, fmt.Errorf("encode data of %s: %w", id, err)
	}
	whole, err := json.Marshal(event.Envelope{
		APIVersion: APIVersion, CreatedAt: at.UTC().Format("2006-01-02T15:04:05.000Z"), Data: raw, Event: name, ID: id,
	})
	if err != nil {
		return nil, fmt.Errorf("encode envelope %s: %w", id, err)
	}
	return Canonical(whole)
}

// Body is an envelope with the metadata of a webhook, if it has any: the bytes that are signed and sent.
func Body(envelope, metadata json.RawMessage) (json.RawMessage, error) {
	if len(metadata) == 0 {
		return envelope, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(envelope, &members); err != nil {
		return nil, fmt.Errorf("decode envelope: %w", err)
	}
	members["metadata"] = metadata
	whole, err := json.Marshal(members)
	if err != nil {
		return nil, err
	}
	return Canonical(whole)
}

const secretPrefix = "whsec_"

// secretBytes is the least that Standard Webhooks allows. Three divide it, so its text has no padding.
const secretBytes = 24

// NewSecret returns a signing secret of 192 random bits, in the form of Standard Webhooks.
func NewSecret() secret.String {
	b := make([]byte, secretBytes)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return secret.NewString(secretPrefix + base64.StdEncoding.EncodeToString(b))
}

// SecretAAD is the place that a webhook's sealed secrets are bound to.
func SecretAAD(id string) string { return secret.AAD("webhook", id, "secret") }

// Opener opens sealed secrets; see secret.Keeper.
type Opener interface {
	// Open returns what was sealed with the same aad.
	Open(sealed, aad string) ([]byte, error)
}

// Secrets opens the secrets that deliveries to a webhook are signed with at the given time, the valid one first.
func Secrets(opener Opener, w store.Webhook, at time.Time) ([]secret.String, error) {
	sealed := []string{w.Secret}
	if w.OldSecret != "" && at.Before(w.OldUntil) {
		sealed = append(sealed, w.OldSecret)
	}
	keys := make([]secret.String, len(sealed))
	for i, text := range sealed {
		raw, err := opener.Open(text, SecretAAD(w.ID))
		if err != nil {
			return nil, fmt.Errorf("secret of webhook %s: %w", w.ID, err)
		}
		keys[i] = secret.NewString(string(raw))
	}
	return keys, nil
}

// Signature is the value of X-Webhook-Signature: the key is the text of the whole secret.
func Signature(key secret.String, body []byte) string {
	return "sha256=" + hex.EncodeToString(mac([]byte(key.Reveal()), body))
}

// Standard is the value of webhook-signature as Standard Webhooks defines it, one signature per secret; here the key is
// what the text of the secret stands for.
func Standard(id string, at time.Time, body []byte, keys ...secret.String) string {
	signed := []byte(id + "." + strconv.FormatInt(at.Unix(), 10) + ".")
	signed = append(signed, body...)
	var out []string
	for _, k := range keys {
		text := strings.TrimPrefix(k.Reveal(), secretPrefix)
		key, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			key = []byte(text)
		}
		out = append(out, "v1,"+base64.StdEncoding.EncodeToString(mac(key, signed)))
	}
	return strings.Join(out, " ")
}

func mac(key, message []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil)
}
