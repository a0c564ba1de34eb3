package bus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/topology"
)

// run starts a consumer and returns what ends it and waits for it.
func run(t *testing.T, consume func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- consume(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := await(t, "the end of the consumer", done); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func publishTasks(t *testing.T, b *bus.Bus, n int) {
	t.Helper()
	msgs := make([]bus.Message, n)
	for i := range msgs {
		msgs[i] = bus.Message{Subject: b.Subject("task", "live", "job", fmt.Sprint(i)), Data: []byte(`{}`)}
	}
	if _, errs := b.PublishAll(t.Context(), msgs); errors.Join(errs...) != nil {
		t.Fatal(errors.Join(errs...))
	}
}

// shortLease is a consumer whose messages come again a second after nobody kept them.
func shortLease(c *jetstream.ConsumerConfig) { c.AckWait = time.Second }

func info(t *testing.T, b *bus.Bus, stream, name string) *jetstream.ConsumerInfo {
	t.Helper()
	c, err := b.JetStream().Consumer(t.Context(), b.Stream(stream), name)
	if err != nil {
		t.Fatal(err)
	}
	return c.CachedInfo()
}

func settled(t *testing.T, b *bus.Bus, stream, name string) {
	t.Helper()
	eventually(t, "all is settled", func() bool {
		i := info(t, b, stream, name)
		// A consumer hears of a message some time after its publisher: what lies in the stream counts.
		for m, err := range b.Last(t.Context(), stream, i.Config.FilterSubjects...) {
			if err != nil || m.Sequence > i.AckFloor.Stream {
				return false
			}
		}
		return i.NumPending == 0 && i.NumAckPending == 0
	})
}

func TestOutcome(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for _, c := range []struct {
		name      string
		err       error
		delivered int
		max       int
		want      bus.Verdict
	}{
		{"done", nil, 9, 3, bus.Verdict{Action: bus.Ack}},
		{"first failure", boom, 1, 3, bus.Verdict{Action: bus.Nak, Delay: time.Second}},
		{"second failure", boom, 2, 3, bus.Verdict{Action: bus.Nak, Delay: 2 * time.Second}},
		{"last failure", boom, 3, 3, bus.Verdict{Action: bus.Dead, Reason: "gave up after 3 deliveries: boom"}},
		{"for ever", boom, 99, 0, bus.Verdict{Action: bus.Nak, Delay: 2 * time.Minute}},
		{"poison", fmt.Errorf("task: %w", bus.Poison(boom)), 1, 0, bus.Verdict{Action: bus.Dead, Reason: "task: boom"}},
		{"retry after", fmt.Errorf("task: %w", bus.RetryAfter(time.Hour, boom)), 9, 3, bus.Verdict{Action: bus.Nak, Delay: time.Hour}},
		{"poison wins", bus.RetryAfter(time.Hour, bus.Poison(boom)), 1, 0, bus.Verdict{Action: bus.Dead, Reason: "retry after 1h0m0s: boom"}},
	} {
		if got := bus.Outcome(c.err, c.delivered, c.max); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		if c.err != nil && !errors.Is(c.err, boom) {
			t.Errorf("%s hides its cause", c.name)
		}
	}
	last := time.Duration(0)
	for n := -1; n < 100; n++ {
		d := bus.Backoff(n)
		if d < last || d < time.Second || d > 2*time.Minute {
			t.Errorf("backoff %d is %s after %s", n, d, last)
		}
		last = d
	}
}

func TestBindFailsLoudly(t *testing.T) {
	t.Parallel()
	b := openBare(t, nil)
	never := func(context.Context, *bus.Delivery) error { return nil }
	if err := b.Work(t.Context(), topology.ImporterLive, bus.Options{}, never); !errors.Is(err, topology.ErrMissing) {
		t.Errorf("work: %v", err)
	}
	err := b.ConsumeBatch(t.Context(), topology.DebouncerArrivals, bus.Options{}, func(context.Context, []*bus.Delivery) []error { return nil })
	if !errors.Is(err, topology.ErrMissing) {
		t.Errorf("consume: %v", err)
	}
	if err := b.Work(t.Context(), "nobody", bus.Options{}, never); err == nil {
		t.Error("a consumer that is not in the topology was bound")
	}
}

func TestConsumeBatchSettlesEachMessage(t *testing.T) {
	t.Parallel()
	b := open(t)
	const name = topology.ScannerNotifications
	bodies := map[string]string{"good": `{"op":"created"}`, "later": `{"op":"created"}`, "bad": `{"op":`, "nested": `{"op":"created"}`}
	for who, body := range bodies {
		if _, err := b.Publish(t.Context(), bus.Message{
			Subject: b.Subject("notification", who), Data: []byte(body),
			Header: nats.Header{"Seen-By": {"a", "b"}}, // repeated, which has crashed programs
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Consuming(name); err == nil {
		t.Error("nobody consumes yet")
	}
	var mu sync.Mutex
	deliveries := make(map[string][]int)
	stop := run(t, func(ctx context.Context) error {
		return b.ConsumeBatch(ctx, name, bus.Options{Batch: 3}, func(_ context.Context, batch []*bus.Delivery) []error {
			if len(batch) > 3 {
				t.Errorf("a batch of %d", len(batch))
			}
			mu.Lock()
			defer mu.Unlock()
			errs := make([]error, len(batch))
			for i, d := range batch {
				who := d.Tokens()[1]
				deliveries[who] = append(deliveries[who], d.Delivered)
				var n event.Notification
				errs[i] = d.Decode(&n)
				switch {
				case who == "later" && d.Delivered == 1:
					errs[i] = bus.RetryAfter(50*time.Millisecond, errors.New("not now"))
				case who == "nested":
					errs[i] = fmt.Errorf("handle: %w", bus.Poison(errors.New("never")))
				}
			}
			return errs
		})
	})
	eventually(t, "a bound consumer", func() bool { return b.Consuming(name) == nil })
	settled(t, b, topology.Notifications, name)
	stop()
	if err := b.Consuming(name); err == nil {
		t.Error("still consuming after the end")
	}

	for who, want := range map[string]int{"good": 1, "later": 2, "bad": 1, "nested": 1} {
		if got := deliveries[who]; len(got) != want {
			t.Errorf("%s was delivered %v", who, got)
		}
	}
	letters := make(map[string]event.Dead)
	for _, m := range all(t, b, topology.DeadLetters, "dead", "test", name) {
		var d event.Dead
		if err := json.Unmarshal(m.Data, &d); err != nil {
			t.Fatal(err)
		}
		letters[d.Subject] = d
	}
	if len(letters) != 2 {
		t.Fatalf("%d dead letters", len(letters))
	}
	d := letters[b.Subject("notification", "bad")]
	if d.Service != "test" || d.Consumer != name || d.Stream != b.Stream(topology.Notifications) || d.Stage != "handle" ||
		d.Delivered != 1 || string(d.Data) != bodies["bad"] || len(d.Header["Seen-By"]) != 2 ||
		!strings.Contains(d.Reason, "decode") || time.Since(d.At).Abs() > time.Minute {
		t.Errorf("%+v", d)
	}
	if d := letters[b.Subject("notification", "nested")]; d.Reason != "handle: never" {
		t.Errorf("%+v", d)
	}
}

// The very bytes that the broker gets.
func TestVerdictsOnTheWire(t *testing.T) {
	t.Parallel()
	b := open(t)
	acks, err := b.JetStream().Conn().SubscribeSync("$JS.ACK.t-tasks.>")
	if err != nil {
		t.Fatal(err)
	}
	verdicts := []error{nil, bus.RetryAfter(time.Hour, errors.New("not now")), bus.Poison(errors.New("never"))}
	var n atomic.Int32
	run(t, func(ctx context.Context) error {
		return b.Work(ctx, topology.ImporterLive, bus.Options{}, func(context.Context, *bus.Delivery) error {
			return verdicts[n.Add(1)-1]
		})
	})
	for i, want := range []string{"+ACK", `-NAK {"delay": 3600000000000}`, "+TERM dead letter"} {
		publishTasks(t, b, 1)
		m, err := acks.NextMsg(patience)
		if err != nil || string(m.Data) != want {
			t.Errorf("verdict %d: %s, %v", i, m.Data, err)
		}
	}
}

func TestWorkInParallelAndNoFurtherAhead(t *testing.T) {
	t.Parallel()
	b := open(t)
	const workers, tasks = 4, 40
	publishTasks(t, b, tasks)
	var begun, running, peak, done atomic.Int32
	gate := make(chan struct{})
	stop := run(t, func(ctx context.Context) error {
		return b.Work(ctx, topology.ImporterLive, bus.Options{Workers: workers}, func(context.Context, *bus.Delivery) error {
			begun.Add(1)
			n := running.Add(1)
			defer running.Add(-1)
			for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
			}
			<-gate
			done.Add(1)
			return nil
		})
	})
	eventually(t, "all workers at work", func() bool { return running.Load() == workers })
	// Deliveries less handlers begun: what was acknowledged a moment ago and is not counted yet does not blur it.
	ahead := func() int {
		delivered := int(info(t, b, topology.Tasks, topology.ImporterLive).Delivered.Consumer)
		return delivered - int(begun.Load()) // asked in this order: none that was about to begin counts as ahead
	}
	eventually(t, "the next ones at hand", func() bool { return ahead() > 0 })
	for range tasks {
		if n := ahead(); n > 2*workers {
			t.Fatalf("%d taken ahead", n)
		}
		gate <- struct{}{}
	}
	settled(t, b, topology.Tasks, topology.ImporterLive)
	stop()
	if done.Load() != tasks || peak.Load() != workers {
		t.Errorf("%d done, at most %d at a time", done.Load(), peak.Load())
	}
}

// Two processes share what there is, although one of them came first.
func TestWorkIsShared(t *testing.T) {
	t.Parallel()
	b := open(t)
	publishTasks(t, b, 30)
	gate := make(chan struct{})
	var begun, done [2]atomic.Int32
	for i := range done {
		run(t, func(ctx context.Context) error {
			return b.Work(ctx, topology.ImporterLive, bus.Options{Workers: 2}, func(context.Context, *bus.Delivery) error {
				begun[i].Add(1)
				<-gate
				done[i].Add(1)
				return nil
			})
		})
		eventually(t, "its first task", func() bool { return begun[i].Load() > 0 })
	}
	close(gate)
	settled(t, b, topology.Tasks, topology.ImporterLive)
	if x, y := done[0].Load(), done[1].Load(); x+y != 30 || x == 0 || y == 0 {
		t.Errorf("done %d and %d", x, y)
	}
}

// What is in hand, be it with a handler, waiting for a worker or waiting for Settle, keeps its lease however long it
// takes.
func TestLeasesAreKept(t *testing.T) {
	t.Parallel()
	b := openBare(t, nil)
	consumer(t, b, topology.ImporterLive, shortLease)
	renewals, err := b.JetStream().Conn().SubscribeSync("$JS.ACK.t-tasks.>")
	if err != nil {
		t.Fatal(err)
	}
	publishTasks(t, b, 3)
	gate := make(chan struct{})
	later := make(chan *bus.Delivery, 1)
	var calls atomic.Int32
	stop := run(t, func(ctx context.Context) error {
		return b.Work(ctx, topology.ImporterLive, bus.Options{}, func(_ context.Context, d *bus.Delivery) error {
			if calls.Add(1) == 1 {
				later <- d
				return bus.ErrLater
			}
			<-gate
			return nil
		})
	})
	d := await(t, "the first", later)
	eventually(t, "the second in work", func() bool { return calls.Load() == 2 })
	for held, start := make(map[string]int), time.Now(); time.Since(start) < 1500*time.Millisecond || len(held) < 3; {
		m, err := renewals.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.Data, []byte("+WPI")) {
			t.Fatalf("%s", m.Data)
		}
		held[m.Subject]++
	}
	if i := info(t, b, topology.Tasks, topology.ImporterLive); i.NumRedelivered != 0 || i.NumAckPending != 3 {
		t.Errorf("%d redelivered, %d in hand", i.NumRedelivered, i.NumAckPending)
	}
	d.Settle(t.Context(), nil)
	close(gate)
	settled(t, b, topology.Tasks, topology.ImporterLive)
	stop()
	if calls.Load() != 3 {
		t.Errorf("%d calls for 3 messages", calls.Load())
	}
}

// What nobody keeps comes again: the other half of the lease.
func TestLeaseOfADeadProcessRunsOut(t *testing.T) {
	t.Parallel()
	b := openBare(t, nil)
	c := consumer(t, b, topology.ImporterLive, shortLease)
	publishTasks(t, b, 1)
	if _, err := c.Next(); err != nil { // taken, and never heard of again
		t.Fatal(err)
	}
	got := make(chan int, 1)
	run(t, func(ctx context.Context) error {
		return b.Work(ctx, topology.ImporterLive, bus.Options{}, func(_ context.Context, d *bus.Delivery) error {
			got <- d.Delivered
			return nil
		})
	})
	if n := await(t, "the second delivery", got); n != 2 {
		t.Errorf("delivery %d", n)
	}
}

func TestUnsettledIsBounded(t *testing.T) {
	t.Parallel()
	b := open(t)
	publishTasks(t, b, 50)
	const bound = 10
	later := make(chan *bus.Delivery, 50)
	run(t, func(ctx context.Context) error {
		return b.Work(ctx, topology.ImporterLive, bus.Options{Unsettled: bound}, func(_ context.Context, d *bus.Delivery) error {
			later <- d
			return bus.ErrLater
		})
	})
	eventually(t, "the bound", func() bool { return len(later) >= bound })
	for settledSoFar := range 50 {
		if n := int(info(t, b, topology.Tasks, topology.ImporterLive).Delivered.Consumer) - settledSoFar; n > bound+2 {
			t.Fatalf("%d in hand", n)
		}
		await(t, "the next", later).Settle(t.Context(), nil)
	}
	settled(t, b, topology.Tasks, topology.ImporterLive)
}

func TestShutdownWaitsForWhatIsInHand(t *testing.T) {
	t.Parallel()
	b := open(t)
	publishTasks(t, b, 1)
	ctx, cancel := context.WithCancel(t.Context())
	later := make(chan *bus.Delivery, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- b.Work(ctx, topology.ImporterLive, bus.Options{}, func(_ context.Context, d *bus.Delivery) error {
			later <- d
			return bus.ErrLater
		})
	}()
	d := await(t, "the task", later)
	cancel()
	select {
	case err := <-ended:
		t.Fatalf("ended with a task in hand: %v", err)
	case <-time.After(100 * time.Millisecond): // a wait for nothing to happen
	}
	d.Settle(ctx, nil) // the end of the context does not keep a verdict from the broker
	if err := await(t, "the end", ended); err != nil {
		t.Error(err)
	}
	settled(t, b, topology.Tasks, topology.ImporterLive)
}

// Shutting down is nobody's fault: not even the last attempt is lost by it, and the next process has the message at
// once rather than when the lease ends.
func TestShutdownHandsBack(t *testing.T) {
	t.Parallel()
	b := open(t)
	publishTasks(t, b, 20)
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{}, 20)
	ended := make(chan error, 1)
	go func() {
		ended <- b.Work(ctx, topology.ImporterLive, bus.Options{MaxAttempts: 1, Workers: 2}, func(ctx context.Context, _ *bus.Delivery) error {
			begun <- struct{}{}
			<-ctx.Done()
			return fmt.Errorf("transfer: %w", ctx.Err())
		})
	}()
	await(t, "a task in hand", begun)
	cancel()
	if err := await(t, "the end", ended); err != nil {
		t.Fatal(err)
	}
	var done atomic.Int32
	run(t, func(ctx context.Context) error {
		return b.Work(ctx, topology.ImporterLive, bus.Options{Workers: 4}, func(context.Context, *bus.Delivery) error {
			done.Add(1)
			return nil
		})
	})
	eventually(t, "all tasks", func() bool { return done.Load() == 20 })
	if n := len(all(t, b, topology.DeadLetters, "dead", "*", "*")); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestConsumeBatchHandsBackWhatItPrefetched(t *testing.T) {
	t.Parallel()
	b := open(t)
	msgs := make([]bus.Message, 40)
	for i := range msgs {
		msgs[i] = bus.Message{Subject: b.Subject("notification", fmt.Sprint(i)), Data: []byte("{}")}
	}
	if _, errs := b.PublishAll(t.Context(), msgs); errors.Join(errs...) != nil {
		t.Fatal(errs)
	}
	ctx, cancel := context.WithCancel(t.Context())
	handled := 0
	err := b.ConsumeBatch(ctx, topology.ScannerNotifications, bus.Options{Batch: 10}, func(ctx context.Context, batch []*bus.Delivery) []error {
		eventually(t, "prefetched messages", func() bool {
			return info(t, b, topology.Notifications, topology.ScannerNotifications).NumAckPending >= 20
		})
		cancel()
		handled += len(batch)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan int, 40)
	run(t, func(ctx context.Context) error {
		return b.ConsumeBatch(ctx, topology.ScannerNotifications, bus.Options{}, func(_ context.Context, batch []*bus.Delivery) []error {
			for range batch {
				got <- 1
			}
			return nil
		})
	})
	for range 40 - handled {
		await(t, "what was handed back", got) // long before the lease of a minute ends
	}
}

// An error that happens to be about some other context, while nobody shuts down, is an ordinary one.
func TestCancellationOfSomethingElseIsAFailure(t *testing.T) {
	t.Parallel()
	b := open(t)
	acks, err := b.JetStream().Conn().SubscribeSync("$JS.ACK.t-tasks.>")
	if err != nil {
		t.Fatal(err)
	}
	publishTasks(t, b, 1)
	run(t, func(ctx context.Context) error {
		return b.Work(ctx, topology.ImporterLive, bus.Options{}, func(context.Context, *bus.Delivery) error {
			return context.Canceled
		})
	})
	m, err := acks.NextMsg(patience)
	if err != nil || string(m.Data) != `-NAK {"delay": 1000000000}` {
		t.Errorf("%s %v", m.Data, err)
	}
}

func TestMaxAttempts(t *testing.T) {
	t.Parallel()
	b := open(t)
	publishTasks(t, b, 1)
	var calls atomic.Int32
	run(t, func(ctx context.Context) error {
		return b.Work(ctx, topology.ImporterLive, bus.Options{MaxAttempts: 2}, func(context.Context, *bus.Delivery) error {
			calls.Add(1)
			return errors.New("storage is down")
		})
	})
	eventually(t, "a dead letter", func() bool { return len(all(t, b, topology.DeadLetters, "dead", "*", "*")) == 1 })
	settled(t, b, topology.Tasks, topology.ImporterLive)
	var d event.Dead
	if err := json.Unmarshal(all(t, b, topology.DeadLetters, "dead", "*", "*")[0].Data, &d); err != nil {
		t.Fatal(err)
	}
	if calls.Load() != 2 || d.Delivered != 2 || d.Reason != "gave up after 2 deliveries: storage is down" {
		t.Errorf("%d calls, %+v", calls.Load(), d)
	}
	if n := len(all(t, b, topology.Tasks, "task", ">")); n != 0 {
		t.Errorf("%d tasks are left", n)
	}
}

// A letter is larger than the message it is about, and must fit all the same.
func TestBuryCutsWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	b := open(t)
	body := bytes.Repeat([]byte("x"), 1<<20-100)
	if err := b.Bury(t.Context(), event.Dead{Consumer: "c", Reason: "too much", Data: body}); err != nil {
		t.Fatal(err)
	}
	var d event.Dead
	if err := json.Unmarshal(all(t, b, topology.DeadLetters, "dead", "*", "*")[0].Data, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Data) < 1<<19 || len(d.Data) >= len(body) || !strings.Contains(d.Reason, "too much") || !strings.Contains(d.Reason, fmt.Sprint(len(body))) {
		t.Errorf("%d bytes, %s", len(d.Data), d.Reason)
	}
}

// A dead letter that cannot be stored leaves the message where it is.
func TestWithoutADeadStreamNothingIsTerminated(t *testing.T) {
	t.Parallel()
	b := openBare(t, nil)
	consumer(t, b, topology.ImporterLive, func(*jetstream.ConsumerConfig) {})
	acks, err := b.JetStream().Conn().SubscribeSync("$JS.ACK.t-tasks.>")
	if err != nil {
		t.Fatal(err)
	}
	stream(t, b, topology.DeadLetters, func(c *jetstream.StreamConfig) { c.MaxMsgSize = 10 })
	publishTasks(t, b, 1)
	run(t, func(ctx context.Context) error {
		return b.Work(ctx, topology.ImporterLive, bus.Options{}, func(context.Context, *bus.Delivery) error {
			return bus.Poison(errors.New("never"))
		})
	})
	m, err := acks.NextMsg(patience)
	if err != nil || !strings.HasPrefix(string(m.Data), "-NAK") {
		t.Errorf("%s %v", m.Data, err)
	}
}
