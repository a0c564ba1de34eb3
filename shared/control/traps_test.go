package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
)

// One test for each trap of watermill and watermill-nats this package exists to close.

func newMessage(id, data string) *message.Message { return message.NewMessage(id, []byte(data)) }

func newSubscriber(t testing.TB, b *broker, change func(*SubscriberConfig)) *Subscriber {
	t.Helper()
	cfg := SubscriberConfig{
		Connect: b.connect,
		Bind:    func(string) (string, string) { return "jobs", "worker" },
		Grace:   50 * time.Millisecond,
		Logger:  slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := NewSubscriber(cfg)
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Trap: a repeated header is an error to the stock unmarshaler, and the error a nil dereference.
func TestRepeatedHeader(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	got := make(chan nats.Header, 2)
	run(t, b, nil, worker(func(_ context.Context, m *Message) error {
		got <- m.Header
		return nil
	}))
	b.publish("job.x", "", "link", "one", "link", "two", "Nats-Expected-Stream", "jobs")
	if h := receive(t, got); !slices.Equal(h["link"], []string{"one", "two"}) || len(h) != 1 {
		t.Errorf("header is %v", h)
	}
	b.publish("job.y", "")
	receive(t, got)
	b.settled(c)
}

func TestMetadataHasTheFirstOfARepeatedHeader(t *testing.T) {
	b := startBroker(t)
	b.queue(time.Minute)
	s := newSubscriber(t, b, nil)
	msgs, err := s.Subscribe(t.Context(), "any")
	must(t, err)
	b.publish("job.x", "", "link", "one", "link", "two")
	m := receive(t, msgs)
	equal(t, "metadata", fmt.Sprint(m.Metadata), "map[link:one]")
	m.Ack()
}

// Trap: what the stock code cannot read it dereferences. Ours becomes a dead letter like any other.
func TestUnreadableMessageIsPoison(t *testing.T) {
	b := startBroker(t)
	b.queue(time.Minute)
	s := newSubscriber(t, b, nil)
	in := &intake{sub: s, stream: "jobs", name: "worker", ackWait: time.Minute, inHand: map[*message.Message]*delivery{}}
	in.pulling, in.stopPulling = context.WithCancel(t.Context())
	raw := &fakeMsg{subject: "job.x", header: nats.Header{"empty": nil}}
	d := newDelivery(in, raw)
	m, err := in.Unmarshal(d)
	if err != nil || m == nil || m.UUID == "" {
		t.Fatalf("unmarshal: %v, %v", m, err)
	}
	close(d.leaseDone)
	equal(t, "handed over", d.handOver(m), true)
	grave := &morgue{}
	r := &Router{cfg: Config{Dead: grave.store}, log: slog.New(slog.DiscardHandler)}
	h := worker(func(context.Context, *Message) error { t.Error("handled"); return nil })
	_, err = judge(h, r.log, r.bury)(func(m *message.Message) ([]*message.Message, error) { return nil, handle(h)(m) })(m)
	must(t, err)
	must(t, d.Nak()) // whatever watermill-nats calls
	equal(t, "settled by", raw.settled, "term")
	equal(t, "stage", grave.all()[0].Stage, StageReceive)
}

type fakeMsg struct {
	jetstream.Msg
	subject string
	header  nats.Header
	settled string
}

func (m *fakeMsg) Metadata() (*jetstream.MsgMetadata, error) { return nil, jetstream.ErrNotJSMessage }
func (m *fakeMsg) Headers() nats.Header                      { return m.header }
func (m *fakeMsg) Subject() string                           { return m.subject }
func (m *fakeMsg) Data() []byte                              { return nil }
func (m *fakeMsg) Term() error                               { m.settled += "term"; return nil }
func (m *fakeMsg) Nak() error                                { m.settled += "nak"; return nil }

// Trap: the stock initialisers make an ephemeral consumer with settings of their own, or look for one by the topic's
// name.
func TestBindsTheConsumerItIsTold(t *testing.T) {
	b := startBroker(t)
	c := b.queue(7 * time.Second)
	before := b.info(c).Config
	got := make(chan struct{}, 1)
	r := run(t, b, nil, Handler{Name: "named.otherwise", Stream: "jobs", Consumer: "worker",
		Handle: func(context.Context, *Message) error { got <- struct{}{}; return nil }})
	b.publish("job.x", "")
	receive(t, got)
	b.settled(c)
	must(t, r.stop(t))
	s, err := b.js.Stream(t.Context(), "jobs")
	must(t, err)
	names := []string{}
	for name := range s.ConsumerNames(t.Context()).Name() {
		names = append(names, name)
	}
	equal(t, "consumers", fmt.Sprint(names), "[worker]")
	equal(t, "config", fmt.Sprint(b.info(c).Config), fmt.Sprint(before))
}

// Trap: the stock publisher sends to the stream's name, with a context of its own.
func TestPublisher(t *testing.T) {
	b := startBroker(t)
	b.queue(time.Minute)
	p, err := NewPublisher(b.connect, "publisher")
	must(t, err)
	m := newMessage("id-1", "body")
	m.Metadata.Set("ce-type", "job")
	m.Metadata.Set("nats-rollup", "all")
	must(t, p.Publish("job.with.dots", m, newMessage("id-1", "again"), newMessage("id-2", "")))
	equal(t, "messages", b.stored("jobs"), 2) // the repeated id is stored once
	s, err := b.js.Stream(t.Context(), "jobs")
	must(t, err)
	stored, err := s.GetLastMsgForSubject(t.Context(), "job.with.dots")
	must(t, err)
	equal(t, "id of the last", stored.Header.Get("Nats-Msg-Id"), "id-2")
	stored, err = s.GetMsg(t.Context(), 1)
	must(t, err)
	equal(t, "header", fmt.Sprint(stored.Header), "map[Nats-Msg-Id:[id-1] ce-type:[job]]")

	if err := p.Publish("nobody.listens", newMessage("id-3", "")); !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("publish to nowhere: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m = newMessage("id-4", "")
	m.SetContext(ctx)
	if err := p.Publish("job.x", m); !errors.Is(err, context.Canceled) {
		t.Errorf("publish with a cancelled context: %v", err)
	}
	must(t, p.Close())
	must(t, p.Close())
}

// Trap: nothing extends the ack wait, and the stock subscriber lets go of a message whose handler still runs.
func TestLeaseIsKept(t *testing.T) {
	b := startBroker(t)
	const ackWait = 300 * time.Millisecond
	c := b.queue(ackWait)
	var handled atomic.Int32
	h := worker(func(ctx context.Context, _ *Message) error {
		handled.Add(1)
		select {
		case <-time.After(4 * ackWait):
		case <-ctx.Done():
		}
		return ctx.Err()
	})
	h.Concurrency = 2 // somebody is free to take it a second time
	run(t, b, nil, h)
	b.publish("job.long", "")
	b.settled(c)
	equal(t, "times handled", handled.Load(), 1)
	equal(t, "deliveries", b.info(c).Delivered.Consumer, 1)
}

// … but not for ever.
func TestLeaseOfAHandlerThatHangsIsGivenUp(t *testing.T) {
	b := startBroker(t)
	c := b.queue(300 * time.Millisecond)
	s := newSubscriber(t, b, func(cfg *SubscriberConfig) { cfg.Timeout, cfg.Concurrency = 100*time.Millisecond, 2 })
	s.margin = 0
	msgs, err := s.Subscribe(t.Context(), "any")
	must(t, err)
	b.publish("job.x", "")
	hanging := receive(t, msgs)
	again := receive(t, msgs)
	equal(t, "id", again.UUID, hanging.UUID)
	if cause := context.Cause(hanging.Context()); !errors.Is(cause, ErrTimeout) {
		t.Errorf("cause is %v", cause)
	}
	hanging.Nack() // too late to send it round a third time
	again.Ack()
	b.settled(c)
	equal(t, "deliveries", b.info(c).Delivered.Consumer, 2)
}

// Trap: the broker can forget what it has given out. Here it only waits for very long, which looks the same.
func TestForgottenDeliveryIsAskedFor(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Hour)
	b.publish("job.lost", "")
	gone, err := c.Fetch(1) // by somebody who is never heard of again
	must(t, err)
	equal(t, "given out", (<-gone.Messages()).Subject(), "job.lost")
	s := newSubscriber(t, b, nil)
	s.still = 200 * time.Millisecond
	msgs, err := s.Subscribe(t.Context(), "any")
	must(t, err)
	receive(t, msgs).Ack()
	b.settled(c)
}

// A message that fails again and again is left to its back-off, or it would never come to its last attempt.
func TestConsumerStandsStill(t *testing.T) {
	now := time.Now()
	info := func(floor uint64, pending, redelivered int) *jetstream.ConsumerInfo {
		return &jetstream.ConsumerInfo{AckFloor: jetstream.SequenceInfo{Consumer: floor}, NumAckPending: pending, NumRedelivered: redelivered}
	}
	v := vigil{since: now}
	for i, c := range []struct {
		info  *jetstream.ConsumerInfo
		still time.Duration
	}{
		{info(0, 1, 0), time.Minute}, {info(0, 3, 0), 2 * time.Minute}, // others come and go behind it
		{info(1, 2, 0), 0}, {info(1, 2, 0), time.Minute}, // it was acknowledged
		{info(1, 2, 1), 0}, {info(1, 2, 1), 0}, {info(1, 1, 0), time.Minute}, // delivered again
		{info(1, 0, 0), 0}, {info(1, 1, 0), time.Minute}, // nothing was out
	} {
		now = now.Add(time.Minute)
		equal(t, fmt.Sprint("step ", i), v.still(c.info, now), c.still)
	}
}

func TestLeaseNotConfirmedInterruptsTheHandler(t *testing.T) {
	b := startBroker(t)
	b.queue(300 * time.Millisecond)
	s := newSubscriber(t, b, nil)
	msgs, err := s.Subscribe(t.Context(), "any")
	must(t, err)
	b.publish("job.x", "")
	m := receive(t, msgs)
	b.stop()
	receive(t, m.Context().Done())
	if cause := context.Cause(m.Context()); !errors.Is(cause, ErrLeaseLost) {
		t.Errorf("cause is %v", cause)
	}
	m.Nack()
}

// Trap: one message at a time.
func TestParallel(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	const n = 4
	var together sync.WaitGroup
	together.Add(n)
	h := worker(func(context.Context, *Message) error {
		together.Done()
		together.Wait() // passes only when all n run at once
		return nil
	})
	h.Concurrency = n
	run(t, b, nil, h)
	for range n {
		b.publish("job.x", "")
	}
	b.settled(c)
}

// Trap: 500 are fetched ahead, whose ack waits all run.
func TestNothingIsFetchedAhead(t *testing.T) {
	b := startBroker(t)
	const ackWait, n, total = 300 * time.Millisecond, 2, 8
	c := b.queue(ackWait)
	for i := range total {
		b.publish("job.x", fmt.Sprint(i))
	}
	var most, running atomic.Int32
	h := worker(func(context.Context, *Message) error {
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		if info := b.info(c); info.NumAckPending > n {
			t.Errorf("%d messages in hand of %d workers", info.NumAckPending, n)
		}
		<-time.After(ackWait * 2 / 3) // the whole backlog takes several ack waits
		return nil
	})
	h.Concurrency = n
	run(t, b, nil, h)
	b.settled(c)
	equal(t, "deliveries", b.info(c).Delivered.Consumer, total)
	if m := most.Load(); m > n {
		t.Errorf("%d at once, want at most %d", m, n)
	}
}

// Trap: the output channel is closed while a callback may send on it.
func TestPanicBelowIsSurvived(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	s := newSubscriber(t, b, nil)
	in := &intake{sub: s, stream: "jobs", name: "worker", inHand: map[*message.Message]*delivery{}}
	in.pulling, in.stopPulling = context.WithCancel(t.Context())
	must(t, in.bind(t.Context()))
	b.publish("job.x", "")
	raw, err := c.Next(jetstream.FetchMaxWait(patience))
	must(t, err)
	in.deliver(raw, func(m jetstream.Msg) {
		if _, err := in.Unmarshal(m); err != nil {
			t.Error(err)
		}
		closed := make(chan struct{})
		close(closed)
		closed <- struct{}{}
	})
	// It went back, long before its ack wait.
	raw, err = c.Next(jetstream.FetchMaxWait(patience))
	must(t, err)
	must(t, raw.Ack())
	equal(t, "left in hand", len(in.inHand), 0)
}

// Stops under load, again and again: nothing panics, nothing is lost, and nothing has to wait for its ack wait, which
// is longer than this test's patience.
func TestStopUnderLoad(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	const total = 400
	for i := range total {
		b.publish("job.x", fmt.Sprint(i))
	}
	var mu sync.Mutex
	seen := map[string]bool{}
	for round := 0; b.stored("jobs") > 0; round++ {
		if round > total {
			t.Fatal("no progress")
		}
		some := make(chan struct{}, total)
		h := worker(func(_ context.Context, m *Message) error {
			mu.Lock()
			seen[string(m.Data)] = true
			mu.Unlock()
			some <- struct{}{}
			return nil
		})
		h.Concurrency = 8
		r := run(t, b, nil, h)
		for range min(20, int(b.stored("jobs"))) {
			receive(t, some)
		}
		must(t, r.stop(t))
	}
	b.settled(c)
	equal(t, "seen", len(seen), total)
}

// Trap: closing drains the connection one was handed.
func TestEveryHandlerHasItsConnection(t *testing.T) {
	b := startBroker(t)
	b.queue(time.Minute)
	b.stream(jetstream.StreamConfig{Name: "other", Subjects: []string{"other"}})
	b.consumer("other", jetstream.ConsumerConfig{Durable: "reader"})
	nop := func(context.Context, *Message) error { return nil }
	r := run(t, b, nil, worker(nop), Handler{Name: "other", Stream: "other", Consumer: "reader", Handle: nop})
	equal(t, "connections", len(b.conns), 2)
	names := []string{b.conns[0].Opts.Name, b.conns[1].Opts.Name}
	equal(t, "names", strings.Join(names, " "), "control-work control-other")
	must(t, r.stop(t))
	equal(t, "both are closed", b.conns[0].IsClosed() && b.conns[1].IsClosed(), true)
}

// Trap: headers of a fired timer become metadata, and published again they purge a live timer or are refused.
func TestFiredTimerHeadersDoNotLeak(t *testing.T) {
	b := startBroker(t)
	b.stream(jetstream.StreamConfig{
		Name: "timers", Subjects: []string{"timer.>", "due.>"}, AllowMsgSchedules: true, AllowMsgTTL: true,
	})
	b.consumer("timers", jetstream.ConsumerConfig{Durable: "due", FilterSubject: "due.>"})
	b.publish("timer.a.1", "fires", jetstream.ScheduleHeader, "@at "+time.Now().UTC().Format(time.RFC3339),
		jetstream.ScheduleTargetHeader, "due.a", "ce-type", "due")
	s := newSubscriber(t, b, func(cfg *SubscriberConfig) {
		cfg.Bind = func(string) (string, string) { return "timers", "due" }
	})
	msgs, err := s.Subscribe(t.Context(), "due")
	must(t, err)
	fired := receive(t, msgs)
	equal(t, "metadata", fmt.Sprint(fired.Metadata), "map[ce-type:due]")

	stream, err := b.js.Stream(t.Context(), "timers")
	must(t, err)
	raw, err := stream.GetLastMsgForSubject(t.Context(), "due.a")
	must(t, err)
	equal(t, "scheduler the broker wrote", raw.Header.Get("Nats-Scheduler"), "timer.a.1")

	// A copy goes out again beside a timer that is live on the same subject.
	b.publish("timer.a.1", "live", jetstream.ScheduleHeader, "@at 2100-01-01T00:00:00Z",
		jetstream.ScheduleTargetHeader, "due.a")
	p, err := NewPublisher(b.connect, "publisher")
	must(t, err)
	defer p.Close()
	copied := fired.Copy()
	copied.Metadata.Set("Nats-Scheduler", "timer.a.1") // even if somebody puts them back
	copied.Metadata.Set("Nats-Schedule-Next", "purge")
	must(t, p.Publish("due.a", copied))
	live, err := stream.GetLastMsgForSubject(t.Context(), "timer.a.1")
	must(t, err)
	equal(t, "live timer", string(live.Data), "live")
	raw, err = stream.GetLastMsgForSubject(t.Context(), "due.a")
	must(t, err)
	equal(t, "republished header", fmt.Sprint(raw.Header), "map[Nats-Msg-Id:["+fired.UUID+"] ce-type:[due]]")
	fired.Ack()
}

// Trap: a retry that sleeps in the handler uses up its ack wait, and its worker. Ours is a nak with the delay asked
// for.
func TestRetryAfter(t *testing.T) {
	b := startBroker(t)
	const delay, ackWait = 700 * time.Millisecond, 300 * time.Millisecond
	c := b.queue(ackWait) // a delay longer than it must hold, too
	type delivery struct {
		data string
		at   time.Time
		n    int
	}
	got := make(chan delivery, 3)
	h := worker(func(_ context.Context, m *Message) error {
		got <- delivery{string(m.Data), time.Now(), m.Delivered}
		if string(m.Data) == "later" && m.Delivered == 1 {
			<-time.After(ackWait / 2) // past a renewal of the lease, which must not replace the delay
			return bus.RetryAfter(delay, errors.New("not now"))
		}
		return nil
	})
	h.MaxAttempts = 1
	run(t, b, nil, h)
	b.publish("job.x", "later")
	first := receive(t, got)
	b.publish("job.y", "now")
	second, third := receive(t, got), receive(t, got)
	equal(t, "handled in the meantime by the only worker", second.data, "now")
	equal(t, "delivered again", third.data, "later")
	equal(t, "delivery", third.n, 2)
	if after := third.at.Sub(first.at); after < delay || after > delay+5*time.Second {
		t.Errorf("again after %s, want %s", after, delay)
	}
	b.settled(c)
}

// The stock subscriber decides by ack or nack alone. Without a router, that is all there is to decide by.
func TestSubscriberWithoutRouter(t *testing.T) {
	b := startBroker(t)
	c := b.queue(time.Minute)
	s := newSubscriber(t, b, nil)
	msgs, err := s.Subscribe(t.Context(), "any")
	must(t, err)
	b.publish("job.x", "")
	receive(t, msgs).Nack()
	m := receive(t, msgs)
	m.Ack()
	b.settled(c)
	receive(t, m.Context().Done())
	must(t, s.Close())
	if _, open := <-msgs; open {
		t.Error("channel is open after a close")
	}
	if _, err := s.Subscribe(t.Context(), "any"); !errors.Is(err, ErrClosed) {
		t.Errorf("subscribe after a close: %v", err)
	}
}
