package control

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/nats-io/nats.go/jetstream"
)

// TestConformance is watermill's own suite, in its short form. Not claimed: GuaranteedOrder (messages are worked on in
// parallel, and a nacked one comes later; but see TestConformanceInOrder), ExactlyOnceDelivery (a crash repeats),
// NewSubscriberReceivesOldMessages (subscribers of a durable consumer share it), ContextPreserved (only the trace
// travels). The suite's reconnect test wants a command that restarts a service; TestBrokerRestart does it in process.
func TestConformance(t *testing.T) {
	features := tests.Features{ConsumerGroups: true, Persistent: true, ForceShort: true}
	inGroup := pubSubs(t, 8, 0)
	tests.TestPubSub(t, features, func(t *testing.T) (message.Publisher, message.Subscriber) {
		return inGroup(t, "group")
	}, inGroup)
}

// TestConformanceInOrder is the part of the suite about order, on the consumer that keeps it: one message in hand for
// all subscribers together.
func TestConformanceInOrder(t *testing.T) {
	features := tests.Features{Persistent: true, GuaranteedOrder: true, ForceShort: true}
	inGroup := pubSubs(t, 1, 1)
	for name, test := range map[string]func(*testing.T, tests.TestContext, tests.PubSubConstructor){
		"PublishSubscribeInOrder": tests.TestPublishSubscribeInOrder,
		"NoAck":                   tests.TestNoAck,
		"ResendOnError":           tests.TestResendOnError,
		"ConcurrentSubscribe":     tests.TestConcurrentSubscribe,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, tests.TestContext{TestID: tests.NewTestID(), Features: features},
				func(t *testing.T) (message.Publisher, message.Subscriber) { return inGroup(t, "group") })
		})
	}
}

// pubSubs makes publishers and subscribers of one broker.
func pubSubs(t *testing.T, concurrency, maxAckPending int) tests.ConsumerGroupPubSubConstructor {
	b := startBroker(t)
	return func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		pub, err := NewPublisher(b.connect, "publisher")
		must(t, err)
		sub, err := NewSubscriber(SubscriberConfig{
			Connect:     b.connect,
			Bind:        func(topic string) (string, string) { return topic, group },
			Concurrency: concurrency,
			Grace:       100 * time.Millisecond,
			Logger:      slog.New(slog.DiscardHandler),
		})
		must(t, err)
		return pub, provisioned{sub, b.js, group, maxAckPending}
	}
}

// provisioned makes what a test needs to subscribe, as somebody else does in production.
type provisioned struct {
	*Subscriber
	js            jetstream.JetStream
	group         string
	maxAckPending int
}

func (p provisioned) SubscribeInitialize(topic string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, streamErr := p.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: topic, Subjects: []string{topic}})
	_, consumerErr := p.js.CreateOrUpdateConsumer(ctx, topic, jetstream.ConsumerConfig{
		Durable:       p.group,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       5 * time.Second,
		MaxAckPending: p.maxAckPending,
	})
	return errors.Join(streamErr, consumerErr)
}
