package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/trace"

	"millrace/shared/bus"
)

func TestHandled(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	got := make(chan Message, 1)
	r := run(t, b, nil, worker(func(_ context.Context, m *Message) error {
		got <- *m
		return nil
	}))
	must(t, r.Ready())

	b.publish("job.one", "body", "Nats-Msg-Id", "id-1", "ce-type", "job")
	m := receive(t, got)
	equal(t, "subject", m.Subject, "job.one")
	equal(t, "data", string(m.Data), "body")
	equal(t, "id", m.ID, "id-1")
	equal(t, "delivered", m.Delivered, 1)
	equal(t, "sequence", m.Sequence, 1)
	equal(t, "ce-type", m.Header.Get("ce-type"), "job")
	equal(t, "has a message id header", m.Header.Get("Nats-Msg-Id"), "")
	if age := time.Since(m.Stored); age < -time.Minute || age > time.Minute {
		t.Errorf("stored %s ago", age)
	}
	b.settled(c)
	equal(t, "messages left", b.stored("jobs"), 0)
	must(t, r.stop(t))
	if err := r.Ready(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("ready after a stop: %v", err)
	}
}

func TestID(t *testing.T) {
	b := startBroker(t)
	b.queue(time.Minute)
	got := make(chan string, 1)
	run(t, b, nil, worker(func(_ context.Context, m *Message) error {
		got <- m.ID
		return nil
	}))
	b.publish("job.a", "x", "Nats-Msg-Id", "msg", "ce-id", "event")
	equal(t, "id with both", receive(t, got), "msg")
	b.publish("job.a", "x", "Ce-Id", "event")
	equal(t, "id of an event", receive(t, got), "event")
	b.publish("job.a", "x")
	derived := receive(t, got)
	b.publish("job.a", "x")
	equal(t, "id of the same again", receive(t, got), derived)
	b.publish("job.b", "x")
	if other := receive(t, got); other == derived || other == "" {
		t.Errorf("id of another is %q", other)
	}
}

func TestPoisonIsBuriedThenTerminated(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	// What the stream holds when the letter is stored: the message must not be gone before.
	held := make(chan uint64, 1)
	r := run(t, b, func(cfg *Config) {
		store := cfg.Dead
		cfg.Dead = func(ctx context.Context, l Letter) error {
			held <- b.stored("jobs")
			return store(ctx, l)
		}
	}, worker(func(_ context.Context, m *Message) error {
		m.Header.Set("color", "changed by the handler")
		return bus.Poison(errors.New("no such index"))
	}))
	b.publish("job.bad", "body", "Nats-Msg-Id", "id-1", "color", "red", "color", "blue")
	equal(t, "messages when the letter is stored", receive(t, held), 1)
	b.settled(c)
	equal(t, "messages left", b.stored("jobs"), 0)

	l := r.morgue.all()[0]
	equal(t, "letter", fmt.Sprint(
		l.Stream, l.Consumer, l.Subject, l.ID, l.Stage, l.Reason, l.Delivered, l.Sequence, string(l.Data)),
		fmt.Sprint("jobs", "worker", "job.bad", "id-1", StageHandle, "no such index", 1, uint64(1), "body"))
	if got := l.Header.Values("color"); !slices.Equal(got, []string{"red", "blue"}) {
		t.Errorf("letter's header is %q", got)
	}
}

func TestDeadLetterThatCannotBeStored(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	r := newRouter(t, b, nil, worker(func(context.Context, *Message) error { return bus.Poison(errors.New("bad")) }))
	r.morgue.fail = 1
	ctx, cancel := context.WithCancel(t.Context())
	go func() { r.result <- r.Run(ctx) }()
	b.publish("job.bad", "")
	// Not lost: delivered again, and buried then.
	eventually(t, "letter is stored", func() bool { return len(r.morgue.all()) == 1 })
	equal(t, "deliveries", r.morgue.all()[0].Delivered, 2)
	b.settled(c)
	equal(t, "failures counted", testutil.ToFloat64(r.metrics.deadFailures), 1)
	cancel()
	must(t, receive(t, r.result))
}

func TestPanicEndsAsDeadLetter(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	h := worker(func(_ context.Context, m *Message) error {
		if m.Subject == "job.bad" {
			panic("index out of range")
		}
		return nil
	})
	h.MaxAttempts = 2
	r := run(t, b, nil, h)
	b.publish("job.bad", "")
	b.publish("job.good", "")
	b.settled(c)
	equal(t, "letters", len(r.morgue.all()), 1)
	l := r.morgue.all()[0]
	equal(t, "stage", l.Stage, StagePanic)
	equal(t, "deliveries", l.Delivered, 2)
	if !strings.Contains(l.Reason, "index out of range") || strings.Contains(l.Reason, "goroutine") {
		t.Errorf("reason is %q", l.Reason)
	}
}

func TestTypedHandler(t *testing.T) {
	type due struct{ Automation string }
	b := startBroker(t)
	c := b.queue(time.Minute)
	got := make(chan due, 1)
	r := run(t, b, nil, worker(Handle(func(_ context.Context, d due, _ *Message) error {
		got <- d
		return nil
	})))
	b.publish("job.bad", `{"automation":`)
	b.publish("job.good", `{"automation":"a1","added_later":true}`)
	equal(t, "decoded", receive(t, got), due{"a1"})
	b.settled(c)
	equal(t, "letters", len(r.morgue.all()), 1)
	equal(t, "stage", r.morgue.all()[0].Stage, StageDecode)
	equal(t, "deliveries", r.morgue.all()[0].Delivered, 1)
}

func TestTimeoutCancelsTheHandler(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	cause := make(chan error, 1)
	h := worker(func(ctx context.Context, _ *Message) error {
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return ctx.Err()
	})
	h.Timeout, h.MaxAttempts = 50*time.Millisecond, 1
	r := run(t, b, nil, h)
	b.publish("job.slow", "")
	if err := receive(t, cause); !errors.Is(err, ErrTimeout) {
		t.Errorf("cause is %v", err)
	}
	b.settled(c)
	equal(t, "letters", len(r.morgue.all()), 1)
}

func TestCorrelation(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	b := startBroker(t)
	b.queue(time.Minute)
	b.stream(jetstream.StreamConfig{Name: "events", Subjects: []string{"event.>"}})
	pub, err := NewPublisher(b.connect, "publisher")
	must(t, err)
	defer pub.Close()
	type seen struct {
		Correlation
		traceID string
		err     error
	}
	got := make(chan seen, 1)
	run(t, b, nil, worker(func(ctx context.Context, _ *Message) error {
		c, _ := CorrelationFrom(ctx)
		// What is published under the handler's context belongs to the same trace.
		m := newMessage("follow-up", "")
		m.SetContext(ctx)
		got <- seen{c, trace.SpanContextFromContext(ctx).TraceID().String(), pub.Publish("event.next", m)}
		return nil
	}))
	b.publish("job.x", "", "ce-id", "ev-1", "Traceparent", parent)
	s := receive(t, got)
	must(t, s.err)
	equal(t, "correlation", s.Correlation, Correlation{ID: "ev-1", TraceParent: parent})
	equal(t, "trace", s.traceID, "0af7651916cd43dd8448eb211c80319c")
	events, err := b.js.Stream(t.Context(), "events")
	must(t, err)
	m, err := events.GetLastMsgForSubject(t.Context(), "event.next")
	must(t, err)
	equal(t, "published traceparent", m.Header.Get("traceparent"), parent)
}

func TestMetrics(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	reg := prometheus.NewRegistry()
	r := run(t, b, func(cfg *Config) { cfg.Metrics = reg }, worker(func(context.Context, *Message) error { return nil }))
	series := func(ack int) string {
		return fmt.Sprintf(`
# HELP control_handled_total Deliveries, by verdict: ack, nak or dead.
# TYPE control_handled_total counter
control_handled_total{handler="work",verdict="ack"} %d
control_handled_total{handler="work",verdict="dead"} 0
control_handled_total{handler="work",verdict="nak"} 0
`, ack)
	}
	must(t, testutil.GatherAndCompare(reg, strings.NewReader(series(0)), "control_handled_total"))
	b.publish("job.x", "")
	b.settled(c)
	must(t, testutil.GatherAndCompare(reg, strings.NewReader(series(1)), "control_handled_total"))
	n, err := testutil.GatherAndCount(reg, "control_handler_duration_seconds", "control_dead_letter_failures_total",
		"control_settle_failures_total", "control_leases_lost_total")
	must(t, err)
	equal(t, "other series", n, 4)
	if _, err := New(Config{Connect: b.connect, Dead: r.cfg.Dead, Metrics: reg}); err == nil {
		t.Error("two routers on one registerer")
	}
}

func TestShutdownWaitsForTheHandler(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	started, release := make(chan struct{}), make(chan struct{})
	var interrupted atomic.Bool
	r := run(t, b, nil, worker(func(ctx context.Context, _ *Message) error {
		close(started)
		<-release
		interrupted.Store(ctx.Err() != nil)
		return nil
	}))
	b.publish("job.x", "")
	receive(t, started)
	r.cancel()
	eventually(t, "not ready", func() bool { return r.Ready() != nil })
	// Published during the shutdown: nobody may take it.
	b.publish("job.later", "")
	select {
	case err := <-r.result:
		t.Fatalf("stopped with a message in hand: %v", err)
	default:
	}
	close(release)
	must(t, r.stop(t))
	equal(t, "handler was interrupted", interrupted.Load(), false)
	equal(t, "messages left", b.stored("jobs"), 1)
	info := b.info(c)
	equal(t, "redelivered", info.NumRedelivered, 0)
	equal(t, "waiting for an ack", info.NumAckPending, 0)
	for _, nc := range b.conns {
		equal(t, "connection is closed", nc.IsClosed(), true)
	}
	equal(t, "the test's own is", b.nc.IsClosed(), false)
}

func TestShutdownInterruptsAfterGrace(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	started, cause := make(chan struct{}), make(chan error, 1)
	h := worker(func(ctx context.Context, _ *Message) error {
		close(started)
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return ctx.Err()
	})
	h.MaxAttempts = 1 // being interrupted is not a failed attempt
	r := run(t, b, func(cfg *Config) { cfg.Grace = 50 * time.Millisecond }, h)
	b.publish("job.x", "")
	receive(t, started)
	must(t, r.stop(t))
	if err := receive(t, cause); !errors.Is(err, ErrStopping) {
		t.Errorf("cause is %v", err)
	}
	equal(t, "letters", len(r.morgue.all()), 0)
	// It went back at once: somebody else gets it long before the ack wait.
	m, err := c.Next(jetstream.FetchMaxWait(patience))
	must(t, err)
	must(t, m.Ack())
}

func TestShutdownAbandonsAHandlerThatHangs(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	started, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	r := run(t, b, func(cfg *Config) { cfg.Grace = 50 * time.Millisecond }, worker(func(context.Context, *Message) error {
		close(started)
		<-release
		close(ended)
		return nil
	}))
	b.publish("job.x", "")
	receive(t, started)
	if err := r.stop(t); !errors.Is(err, ErrAbandoned) {
		t.Errorf("run returns %v", err)
	}
	// Its handler still runs, so it is not handed to another before the ack wait.
	equal(t, "waiting for an ack", b.info(c).NumAckPending, 1)
	close(release)
	receive(t, ended)
}

func TestMissingConsumersStopTheStart(t *testing.T) {
	b := startBroker(t)
	b.queue(time.Minute)
	nop := func(context.Context, *Message) error { return nil }
	r := newRouter(t, b, nil,
		worker(nop),
		Handler{Name: "a", Stream: "jobs", Consumer: "absent", Handle: nop},
		Handler{Name: "b", Stream: "nowhere", Consumer: "none", Handle: nop},
	)
	err := r.Run(t.Context())
	if !errors.Is(err, ErrConsumer) || !errors.Is(err, jetstream.ErrConsumerNotFound) ||
		!errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("run returns %v", err)
	}
	for _, want := range []string{`"absent"`, `"nowhere"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	for _, nc := range b.conns {
		equal(t, "connection is closed", nc.IsClosed(), true)
	}
	// Nothing was made up for them.
	if _, err := b.js.Stream(t.Context(), "nowhere"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("stream nowhere: %v", err)
	}
	if err := r.Run(t.Context()); !errors.Is(err, ErrStarted) {
		t.Errorf("second run: %v", err)
	}
}

func TestUnfitConsumer(t *testing.T) {
	b := startBroker(t)
	b.stream(jetstream.StreamConfig{Name: "jobs", Subjects: []string{"job.>"}})
	b.consumer("jobs", jetstream.ConsumerConfig{
		Name: "worker", BackOff: []time.Duration{time.Second}, MaxDeliver: 3, InactiveThreshold: time.Minute,
	})
	h := worker(func(context.Context, *Message) error { return nil })
	h.MaxAttempts = 3
	err := newRouter(t, b, nil, h).Run(t.Context())
	if !errors.Is(err, ErrConsumer) {
		t.Fatalf("run returns %v", err)
	}
	for _, want := range []string{"not durable", "BackOff", "MaxDeliver 3"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not mention %q", err, want)
		}
	}
}

func TestDeletedConsumerStopsTheRouter(t *testing.T) {
	for name, busy := range map[string]bool{
		"while it waits":           false, // the broker says so
		"while its worker is busy": true,  // the broker says nothing; missed heartbeats make us ask
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t)
			jobs := b.queue(time.Minute)
			other := b.stream(jetstream.StreamConfig{Name: "other", Subjects: []string{"other"}})
			c := b.consumer("other", jetstream.ConsumerConfig{Durable: "reader"})
			started, release := make(chan struct{}), make(chan struct{})
			h := Handler{Name: "other", Stream: "other", Consumer: "reader", Handle: func(context.Context, *Message) error {
				close(started)
				<-release
				return nil
			}}
			r := run(t, b, nil, worker(func(context.Context, *Message) error { return nil }), h)
			if busy {
				b.publish("other", "")
				receive(t, started)
			} else {
				eventually(t, "it waits", func() bool { return b.info(c).NumWaiting == 1 })
			}
			must(t, other.DeleteConsumer(t.Context(), "reader"))
			close(release)
			err := receive(t, r.result)
			r.result <- err
			if !errors.Is(err, ErrConsumer) || !strings.Contains(err.Error(), `"reader"`) {
				t.Errorf("run returns %v", err)
			}
			b.publish("job.x", "") // the other handler has stopped with it
			// Consumers hear of a message some time after its publisher.
			eventually(t, "it is left to the other handler", func() bool { return b.info(jobs).NumPending == 1 })
		})
	}
}

func TestBrokerRestart(t *testing.T) {
	b := startBroker(t)
	b.stream(jetstream.StreamConfig{Name: "jobs", Subjects: []string{"job.>"}})
	c := b.consumer("jobs", jetstream.ConsumerConfig{Durable: "worker", AckWait: time.Second})
	got := make(chan string, 100)
	h := worker(func(_ context.Context, m *Message) error {
		got <- string(m.Data)
		return nil
	})
	h.Concurrency = 4
	r := run(t, b, nil, h)
	for i, restart := range []bool{true, true, false} {
		data := fmt.Sprint(i)
		b.publish("job.x", data)
		for receive(t, got) != data { // an ack the restart swallowed brings the last one again
		}
		if restart {
			b.stop()
			eventually(t, "not ready", func() bool { return r.Ready() != nil })
			b.start()
			eventually(t, "ready", func() bool { return r.Ready() == nil })
			eventually(t, "the test is connected", b.nc.IsConnected)
		}
	}
	b.settled(c)
	must(t, r.stop(t))
}

func TestConfigMistakesAtOnce(t *testing.T) {
	_, err := New(Config{Grace: -1})
	for _, want := range []string{"Connect", "Dead", "Grace"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %s", err, want)
		}
	}
	b := startBroker(t)
	nop := func(context.Context, *Message) error { return nil }
	r := newRouter(t, b, nil, worker(nop))
	for want, h := range map[string]Handler{
		"Stream is required": {Name: "x", Consumer: "c", Handle: nop},
		"Handle is required": {Name: "x", Stream: "s", Consumer: "c"},
		"exists":             {Name: "work", Stream: "s", Consumer: "c", Handle: nop},
		"share consumer":     {Name: "x", Stream: "jobs", Consumer: "worker", Handle: nop},
	} {
		if err := r.Add(h); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if err := newRouter(t, b, nil).Run(t.Context()); err == nil {
		t.Error("a router without handlers runs")
	}
}
