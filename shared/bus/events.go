package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
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

// NoIndex stands where the subject of an event names an index and what it is about has none.
const NoIndex = "-"

// ReadEvent is the inverse of EventMessage, for a message of the events stream; the index of an event without one is "".
// What the headers do not say is told by the subject and by when the broker stored it. A message that is no event is
// poison.
func ReadEvent(d *Delivery) (event.Event, error) {
	tokens := d.Tokens()
	n := len(tokens)
	if n < 4 {
		return event.Event{}, Poison(fmt.Errorf("subject %s is not that of an event", d.Subject))
	}
	e := event.Event{
		Type: event.Type(strings.Join(tokens[1:n-2], ".")), Index: tokens[n-2], Subject: tokens[n-1],
		ID: d.Header.Get("ce-id"), Time: d.Stored, Data: d.Data,
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(d.Data, &members); err != nil || members == nil {
		return e, Poison(fmt.Errorf("event %s: its data is no object", d.Subject))
	}
	if e.ID == "" {
		e.ID = event.IDOf(e.Type, e.Index, e.Subject)
	} else if !event.IsToken(e.ID) { // somebody else's: it is to be part of subjects
		e.ID = event.IDOf(e.Type, e.Index, e.Subject+" "+e.ID)
	}
	if at, err := time.Parse(time.RFC3339Nano, d.Header.Get("ce-time")); err == nil {
		e.Time = at
	}
	if e.Index == NoIndex {
		e.Index = ""
	}
	return e, nil
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
