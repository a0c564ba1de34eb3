package control

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/propagation"
)

// Publisher is a message.Publisher over a connection of its own.
type Publisher struct {
	nc *nats.Conn
	js jetstream.JetStream
}

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher connects under the given name.
func NewPublisher(connect func(name string) (*nats.Conn, error), name string) (*Publisher, error) {
	nc, err := connect(name)
	if err != nil {
		return nil, fmt.Errorf("connect publisher %q: %w", name, err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("publisher %q: %w", name, err)
	}
	return &Publisher{nc: nc, js: js}, nil
}

// Publish stores the messages one after the other and returns when the broker has acknowledged the last. The topic is
// the subject, the UUID the message id (so a repeat within the stream's duplicate window is stored once), the metadata
// the headers, without those of the broker; the trace in a message's context goes along when the metadata has none.
// Each message has until its own context's deadline, 5 seconds if it has none.
//
// An error names the message it is about: those before it are stored, and after a timeout that one may be.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		out := nats.NewMsg(topic)
		out.Data = m.Payload
		for key, value := range m.Metadata {
			if !isBrokers(key) {
				out.Header.Set(key, value)
			}
		}
		if firstValue(out.Header, "traceparent") == "" {
			trace := propagation.MapCarrier{}
			propagation.TraceContext{}.Inject(m.Context(), trace)
			for key, value := range trace {
				out.Header.Set(key, value)
			}
		}
		if m.UUID != "" {
			out.Header.Set(jetstream.MsgIDHeader, m.UUID)
		}
		if _, err := p.js.PublishMsg(m.Context(), out); err != nil {
			return fmt.Errorf("publish message %q to %s: %w", m.UUID, topic, err)
		}
	}
	return nil
}

// Close drains the publisher's connection and returns when it is closed.
func (p *Publisher) Close() error { return drain(p.nc) }

// drain flushes a connection and closes it, and waits until it is.
func drain(nc *nats.Conn) error {
	closed := nc.StatusChanged(nats.CLOSED)
	if nc.IsClosed() {
		return nil
	}
	err := nc.Drain()
	switch {
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrConnectionReconnecting):
		return nil // the latter has closed it as well: without a broker there is nothing to flush to
	case err != nil:
		nc.Close()
		return fmt.Errorf("drain connection: %w", err)
	}
	select {
	case <-closed:
		return nil
	case <-time.After(settleTimeout):
		nc.Close()
		return fmt.Errorf("drain connection: not drained within %s", settleTimeout)
	}
}
