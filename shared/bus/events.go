package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"millrace/shared/event"
)

// EventMessage is the message that carries a public event: its attributes are CloudEvents 1.0 headers (binary mode),
// its data is the body.
func (b *Bus) EventMessage(e event.Event) Message {
	return Message{
		Subject: b.Subject("event", string(e.Type), e.Index, e.Subject),
		Header: nats.Header{
			"ce-specversion": {"1.0"},
			"ce-id":          {e.ID},
			"ce-type":        {string(e.Type)},
			"ce-source":      {"/" + b.Prefix + "/indexes/" + e.Index},
			"ce-subject":     {e.Subject},
			"ce-time":        {e.Time.UTC().Format(time.RFC3339Nano)},
			"content-type":   {"application/json"},
		},
		Data: e.Data,
	}
}

// PublishEvent writes one public event. Its id is the same for every publication of the same fact, so readers can tell
// a repetition.
func (b *Bus) PublishEvent(ctx context.Context, e event.Event) error {
	_, err := b.Publish(ctx, b.EventMessage(e))
	return err
}

// NewEvent makes the event of a fact: typ about subject in index. Its id is a function of these, as each fact of ours
// happens to a thing once.
func NewEvent(typ event.Type, index, subject string, at time.Time, data any) (event.Event, error) {
	body, err := json.Marshal(data)
	if err != nil {
		return event.Event{}, fmt.Errorf("encode %s of %s: %w", typ, subject, err)
	}
	return event.Event{ID: event.IDOf(typ, index, subject), Type: typ, Index: index, Subject: subject, Time: at, Data: body}, nil
}
