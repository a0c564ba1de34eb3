package window_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"millrace/shared/broker/brokertest"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

const (
	auto     = "auto_1"
	patience = 10 * time.Second
)

type house struct {
	*window.Windows
	bus *bus.Bus
	nc  *nats.Conn
}

func open(t *testing.T) house {
	t.Helper()
	h := house{nc: brokertest.Connect(t, brokertest.Start(t))}
	var err error
	if h.bus, err = bus.New(h.nc, topology.Topology{Prefix: "t", Replicas: 1}, "test", slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if err := h.bus.Apply(t.Context(), h.bus.JetStream()); err != nil {
		t.Fatal(err)
	}
	if h.Windows, err = window.Bind(t.Context(), h.bus); err != nil {
		t.Fatal(err)
	}
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (h house) record(t *testing.T) window.Record {
	t.Helper()
	r, err := h.Get(t.Context(), auto)
	must(t, err)
	return r
}

// put makes the record by hand.
func (h house) put(t *testing.T, r window.Record) {
	t.Helper()
	reg, err := store.Open[window.Record](t.Context(), h.bus, topology.Windows)
	must(t, err)
	must(t, reg.Put(t.Context(), auto, r))
}

func (h house) jobs(t *testing.T) []event.JobRequested {
	t.Helper()
	var out []event.JobRequested
	for m, err := range h.bus.Scan(t.Context(), topology.Jobs, h.bus.Subject("job", ">"), 0) {
		must(t, err)
		var j event.JobRequested
		must(t, json.Unmarshal(m.Data, &j))
		if m.Subject != h.bus.Subject("job", "requested", string(j.Lane), j.Job) {
			t.Errorf("job %s lies at %s", j.Job, m.Subject)
		}
		out = append(out, j)
	}
	return out
}

func (h house) ring(t *testing.T, epoch string) window.Action {
	t.Helper()
	did, err := h.Ring(t.Context(), auto, epoch, request)
	must(t, err)
	return did
}

func request() (event.JobRequested, error) {
	return event.JobRequested{Lane: event.Live, Index: "idx", Connector: "con", Mode: event.NewOnly}, nil
}

// rings returns the alarms that ring, as they do.
func (h house) rings(t *testing.T) <-chan event.Timer {
	t.Helper()
	out := make(chan event.Timer, 16)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- h.bus.Work(ctx, topology.DebouncerDue, bus.Options{}, func(_ context.Context, d *bus.Delivery) error {
			var timer event.Timer
			if err := d.Decode(&timer); err != nil {
				return err
			}
			out <- timer
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
	return out
}

// due waits for an alarm.
func due(t *testing.T, rings <-chan event.Timer) event.Timer {
	t.Helper()
	select {
	case timer := <-rings:
		return timer
	case <-time.After(patience):
		t.Fatalf("no alarm within %s", patience)
		panic("unreachable")
	}
}

func (h house) listen(t *testing.T, tokens ...string) *nats.Subscription {
	t.Helper()
	sub, err := h.nc.SubscribeSync(h.bus.Subject(tokens...))
	must(t, err)
	return sub
}

func (h house) state(t *testing.T, stream string) uint64 {
	t.Helper()
	s, err := h.bus.State(t.Context(), stream)
	must(t, err)
	return s.LastSeq
}

var hour = window.Config{Interval: time.Hour, Rev: 1}

func TestMergeFromManySides(t *testing.T) {
	t.Parallel()
	h := open(t)
	start := time.Now().UTC().Truncate(time.Second)
	var g sync.WaitGroup
	for w := range 4 {
		g.Go(func() {
			for i := range 25 {
				// Each batch overlaps with those of the others, and comes in another order.
				n := (i*7 + w*13) % 100
				var as []window.Arrival
				for k := n; k < min(n+10, 100); k++ {
					as = append(as, window.Arrival{Seq: uint64(k + 1), Stored: start.Add(time.Duration(k) * time.Second), Size: 1})
				}
				if err := h.Merge(t.Context(), auto, as, hour); err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	must(t, h.Merge(t.Context(), auto, []window.Arrival{{Seq: 1, Stored: start}, {Seq: 100, Stored: start.Add(99 * time.Second)}}, hour))
	r := h.record(t)
	o := r.Open
	if o == nil || o.LastSeq != 100 || !o.OpenedAt.Equal(start) || !o.LastArrivalAt.Equal(start.Add(99*time.Second)) ||
		!o.Deadline.Equal(start.Add(99*time.Second+time.Hour)) || r.Closing != nil || r.Automation != auto {
		t.Errorf("%+v", o)
	}
	// Re-arming an alarm while it rings can destroy the new one, so no arrival does: one window, one alarm.
	if n := h.state(t, topology.Timers); n != 1 {
		t.Errorf("%d timers were set", n)
	}
}

func TestArrivalsSetNoAlarm(t *testing.T) {
	t.Parallel()
	h := open(t)
	timers := h.listen(t, "timer", ">")
	for i := range 100 {
		must(t, h.Merge(t.Context(), auto, []window.Arrival{{Seq: uint64(i + 1), Stored: time.Now()}}, hour))
	}
	m, err := timers.NextMsg(patience)
	must(t, err)
	if want := h.bus.Subject("timer", "window", auto, h.record(t).Open.Epoch); m.Subject != want {
		t.Errorf("armed %s", m.Subject)
	}
	must(t, h.nc.Flush())
	if n, _, _ := timers.Pending(); n != 0 || h.state(t, topology.Timers) != 1 {
		t.Errorf("%d more timers", n)
	}
}

// The alarm rings, is early because an arrival moved the deadline, is set again from its ring, and closes the window:
// no earlier than its interval after the last arrival, and not much later.
func TestAlarmRings(t *testing.T) {
	t.Parallel()
	h := open(t)
	rings := h.rings(t)
	cfg := window.Config{Interval: time.Second}
	first := time.Now()
	must(t, h.Merge(t.Context(), auto, []window.Arrival{{Seq: 1, Stored: first}}, cfg))
	last := first.Add(1500 * time.Millisecond) // stored later, merged at once: the alarm does not know
	must(t, h.Merge(t.Context(), auto, []window.Arrival{{Seq: 2, Stored: last}}, cfg))

	for wait := 0; ; wait++ {
		timer := due(t, rings)
		if timer.Automation != auto {
			t.Fatalf("%+v", timer)
		}
		if did := h.ring(t, timer.Epoch); did == window.Close {
			if wait == 0 {
				t.Error("the alarm was not early")
			}
			break
		} else if did != window.Wait {
			t.Fatalf("did %d", did)
		}
	}
	late := time.Since(last.Add(cfg.Interval))
	if late < 0 || late > 2*time.Second {
		t.Errorf("closed %s after the deadline", late)
	}
	jobs := h.jobs(t)
	if len(jobs) != 1 || jobs[0].LastSeq != 2 || jobs[0].Index != "idx" || jobs[0].Automation != auto {
		t.Fatalf("%+v", jobs)
	}
	r := h.record(t)
	if r.Open != nil || r.Closing != nil || r.LastJob != jobs[0].Job {
		t.Errorf("%+v", r)
	}
	if did := h.ring(t, jobs[0].Epoch); did != window.Ignore || len(h.jobs(t)) != 1 {
		t.Errorf("the same alarm once more: %d", did)
	}
}

func overdue(seq uint64) window.Record {
	past := time.Now().Add(-2 * time.Hour).UTC()
	return window.Record{Automation: auto, Open: &window.Open{Epoch: "w_1", OpenedAt: past, LastArrivalAt: past, LastSeq: seq, Deadline: past.Add(time.Hour)}}
}

func TestRingOfAnotherWindow(t *testing.T) {
	t.Parallel()
	h := open(t)
	if did := h.ring(t, "w_0"); did != window.Ignore {
		t.Errorf("without a record: %d", did)
	}
	h.put(t, overdue(5))
	if did := h.ring(t, "w_0"); did != window.Ignore || h.record(t).Open == nil || len(h.jobs(t)) != 0 {
		t.Errorf("did %d", did)
	}
}

func TestConcurrentRings(t *testing.T) {
	t.Parallel()
	h := open(t)
	published := h.listen(t, "job", ">")
	h.put(t, overdue(5))
	var g sync.WaitGroup
	var mu sync.Mutex
	did := make(map[window.Action]int)
	for range 8 {
		g.Go(func() {
			d, err := h.Ring(t.Context(), auto, "w_1", request)
			mu.Lock()
			defer mu.Unlock()
			did[d]++
			if err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	must(t, h.nc.Flush())
	if n, _, _ := published.Pending(); did[window.Close] != 1 || did[window.Ignore] != 7 || len(h.jobs(t)) != 1 || n != 1 {
		t.Errorf("did %v, %d requests", did, n)
	}
	if r := h.record(t); r.Open != nil || r.Closing != nil {
		t.Errorf("%+v", r)
	}
}

// A process died between closing and asking for the job.
func TestFinishAfterACrash(t *testing.T) {
	t.Parallel()
	h := open(t)
	req, _ := request()
	crashed := window.StartClosing(overdue(5), req, time.Now())
	crashed.Open = &window.Open{Epoch: "w_2", LastSeq: 9, Deadline: time.Now().Add(time.Hour)}
	h.put(t, crashed)
	for range 2 {
		must(t, h.Finish(t.Context(), auto))
	}
	jobs := h.jobs(t)
	if len(jobs) != 1 || jobs[0].LastSeq != 5 || jobs[0].Job != event.JobOfWindow(auto, "w_1") || h.state(t, topology.Jobs) != 1 {
		t.Errorf("%+v", jobs)
	}
	if r := h.record(t); r.Closing != nil || r.Open == nil || r.Open.Epoch != "w_2" {
		t.Errorf("%+v", r)
	}
	if err := h.Finish(t.Context(), "nobody"); err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
}

// The next window is due before the one before it was finished: both jobs are asked for.
func TestRingFinishesTheWindowBefore(t *testing.T) {
	t.Parallel()
	h := open(t)
	req, _ := request()
	r := window.StartClosing(overdue(5), req, time.Now())
	r.Open = overdue(9).Open
	r.Open.Epoch = "w_2"
	h.put(t, r)
	if did := h.ring(t, "w_2"); did != window.Close {
		t.Fatalf("did %d", did)
	}
	jobs := h.jobs(t)
	if len(jobs) != 2 || jobs[0].LastSeq != 5 || jobs[1].LastSeq != 9 {
		t.Errorf("%+v", jobs)
	}
	if r := h.record(t); r.Open != nil || r.Closing != nil {
		t.Errorf("%+v", r)
	}
}

func TestRequestFails(t *testing.T) {
	t.Parallel()
	h := open(t)
	h.put(t, overdue(5))
	boom := errors.New("boom")
	_, err := h.Ring(t.Context(), auto, "w_1", func() (event.JobRequested, error) { return event.JobRequested{}, boom })
	if !errors.Is(err, boom) || h.record(t).Open == nil {
		t.Errorf("%v", err)
	}
}

func TestHoldAndRelease(t *testing.T) {
	t.Parallel()
	h := open(t)
	ctx := t.Context()
	must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: 1, Stored: time.Now().Add(-2 * time.Hour)}}, hour))
	old := h.record(t).Open.Epoch
	must(t, h.Hold(ctx, auto))
	if did := h.ring(t, old); did != window.Leave || len(h.jobs(t)) != 0 {
		t.Errorf("held, yet it did %d", did)
	}
	must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: 2, Stored: time.Now().Add(-2 * time.Hour)}}, hour))
	if o := h.record(t).Open; o.LastSeq != 2 || o.Count != 2 {
		t.Errorf("held, it does not grow: %+v", o)
	}

	rings := h.rings(t)
	must(t, h.Release(ctx, auto, hour))
	r := h.record(t)
	if r.Held || r.Open.Epoch == old {
		t.Errorf("%+v", r.Open)
	}
	for timer := due(t, rings); timer.Epoch != r.Open.Epoch; timer = due(t, rings) { // the old one may ring too
		if did := h.ring(t, timer.Epoch); did != window.Ignore {
			t.Errorf("the old alarm did %d", did)
		}
	}
	if did := h.ring(t, r.Open.Epoch); did != window.Close || len(h.jobs(t)) != 1 {
		t.Errorf("released, it did %d", did)
	}

	// A release of what is not held sets no alarm.
	must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: 3, Stored: time.Now()}}, hour))
	before := h.state(t, topology.Timers)
	must(t, h.Release(ctx, auto, hour))
	must(t, h.Reconfigure(ctx, auto, hour))
	if after := h.state(t, topology.Timers); after != before {
		t.Errorf("%d alarms were set for nothing", after-before)
	}
}

// A shorter interval takes effect at once, also when an arrival under it came before the change itself.
func TestReconfigure(t *testing.T) {
	t.Parallel()
	h := open(t)
	ctx := t.Context()
	rings := h.rings(t)
	must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: 1, Stored: time.Now()}}, hour))
	short := window.Config{Interval: time.Second, Rev: 2}
	must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: 2, Stored: time.Now()}}, short))
	must(t, h.Reconfigure(ctx, auto, short))
	timer := due(t, rings)
	if did := h.ring(t, timer.Epoch); did != window.Close || len(h.jobs(t)) != 1 {
		t.Errorf("did %d", did)
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	h := open(t)
	ctx := t.Context()
	for _, a := range []string{auto, "auto_2"} {
		for i := range 3 {
			seq, err := h.bus.Publish(ctx, bus.Message{Subject: h.bus.Subject("arrival", a, fmt.Sprint(i)), Data: []byte("{}")})
			must(t, err)
			must(t, h.Merge(ctx, a, []window.Arrival{{Seq: seq, Stored: time.Now()}}, hour))
		}
	}
	epoch := h.record(t).Open.Epoch
	must(t, h.Drop(ctx, auto))
	if h.record(t).Open != nil {
		t.Error("still open")
	}
	if did := h.ring(t, epoch); did != window.Ignore {
		t.Errorf("its alarm did %d", did)
	}
	left := 0
	for m, err := range h.bus.Scan(ctx, topology.Arrivals, h.bus.Subject("arrival", ">"), 0) {
		must(t, err)
		if m.Subject[:len("t.arrival.auto_2")] != "t.arrival.auto_2" {
			t.Errorf("%s is left", m.Subject)
		}
		left++
	}
	if r, err := h.Get(ctx, "auto_2"); left != 3 || err != nil || r.Open == nil {
		t.Errorf("of another automation %d arrivals are left, %v", left, err)
	}
	must(t, h.Drop(ctx, "nobody"))
}

// I2: what a closed window is made of stays for its job, which may not have been planned yet.
func TestDropLeavesClosedWindows(t *testing.T) {
	t.Parallel()
	h := open(t)
	ctx := t.Context()
	arrive := func(name string, at time.Time) {
		seq, err := h.bus.Publish(ctx, bus.Message{Subject: h.bus.Subject("arrival", auto, name), Data: []byte("{}")})
		must(t, err)
		must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: seq, Stored: at}}, hour))
	}
	arrive("a", time.Now().Add(-2*time.Hour))
	if did := h.ring(t, h.record(t).Open.Epoch); did != window.Close {
		t.Fatalf("did %d", did)
	}
	arrive("b", time.Now())
	must(t, h.Drop(ctx, auto))
	var left []string
	for m, err := range h.bus.Scan(ctx, topology.Arrivals, h.bus.Subject("arrival", ">"), 0) {
		must(t, err)
		left = append(left, m.Subject)
	}
	if len(left) != 1 || left[0] != h.bus.Subject("arrival", auto, "a") {
		t.Errorf("left: %v", left)
	}
}
