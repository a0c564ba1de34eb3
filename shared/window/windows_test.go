package window_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
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

const auto = "auto_1"

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

// close closes the window as it stands.
func (h house) close(t *testing.T) error {
	t.Helper()
	return h.Close(t.Context(), []window.DueWindow{h.dueWindow(t)})[0]
}

func (h house) dueWindow(t *testing.T) window.DueWindow {
	t.Helper()
	reg, err := store.Open[window.Record](t.Context(), h.bus, topology.Windows)
	must(t, err)
	r, rev, err := reg.Get(t.Context(), auto)
	must(t, err)
	return window.DueWindow{Record: r, Revision: rev, Request: request()}
}

func request() event.JobRequested {
	return event.JobRequested{Lane: event.Live, Index: "idx", Connector: "con", Mode: event.NewOnly}
}

func (h house) listen(t *testing.T, tokens ...string) *nats.Subscription {
	t.Helper()
	sub, err := h.nc.SubscribeSync(h.bus.Subject(tokens...))
	must(t, err)
	return sub
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
}

func overdue(seq uint64) window.Record {
	past := time.Now().Add(-2 * time.Hour).UTC()
	return window.Record{Automation: auto, Open: &window.Open{Epoch: "w_1", OpenedAt: past, LastArrivalAt: past, LastSeq: seq, Deadline: past.Add(time.Hour)}}
}

func TestClose(t *testing.T) {
	t.Parallel()
	h := open(t)
	h.put(t, overdue(5))
	seen := h.dueWindow(t)
	must(t, h.close(t))
	jobs := h.jobs(t)
	if len(jobs) != 1 || jobs[0].LastSeq != 5 || jobs[0].Index != "idx" || jobs[0].Automation != auto || jobs[0].Job != event.JobOfWindow(auto, "w_1") {
		t.Fatalf("%+v", jobs)
	}
	r := h.record(t)
	if r.Open != nil || r.Closing != nil || r.LastJob != jobs[0].Job || r.ClosedSeq != 5 {
		t.Errorf("%+v", r)
	}
	if err := h.Close(t.Context(), []window.DueWindow{seen})[0]; !errors.Is(err, bus.ErrConflict) || len(h.jobs(t)) != 1 {
		t.Errorf("closed twice: %v", err)
	}
	// An arrival of the window comes again because its acknowledgement got lost with a process: it was a second job.
	must(t, h.Merge(t.Context(), auto, []window.Arrival{{Seq: 5, Stored: time.Now().Add(-time.Hour)}}, hour))
	if r := h.record(t); r.Open != nil {
		t.Errorf("it opened %+v", r.Open)
	}
}

// Many windows, of which some are not as they were seen: these stay as they are, and the others close.
func TestCloseMany(t *testing.T) {
	t.Parallel()
	h := open(t)
	reg, err := store.Open[window.Record](t.Context(), h.bus, topology.Windows)
	must(t, err)
	const n = 1200
	due := make([]window.DueWindow, n)
	for i := range due {
		r := overdue(uint64(i + 1))
		r.Automation = fmt.Sprint("auto_", i)
		due[i] = window.DueWindow{Record: r, Request: request()}
	}
	writes := make([]store.Write[window.Record], n)
	for i, d := range due {
		writes[i] = store.Write[window.Record]{Key: d.Record.Automation, Value: d.Record}
	}
	revs, errs := reg.UpdateAll(t.Context(), writes)
	must(t, errors.Join(errs...))
	for i := range due {
		due[i].Revision = revs[i]
	}
	stale := map[int]bool{3: true, 700: true, 1199: true}
	for i := range stale {
		must(t, h.Merge(t.Context(), due[i].Record.Automation, []window.Arrival{{Seq: 5000, Stored: time.Now()}}, hour))
	}
	for i, err := range h.Close(t.Context(), due) {
		if stale[i] != errors.Is(err, bus.ErrConflict) || !stale[i] && err != nil {
			t.Errorf("window %d: %v", i, err)
		}
	}
	if jobs := h.jobs(t); len(jobs) != n-len(stale) {
		t.Errorf("%d jobs", len(jobs))
	}
	open := 0
	for r, err := range reg.All(t.Context()) {
		must(t, err)
		if r.Open != nil {
			open++
		}
		if r.Closing != nil || (r.Open == nil) != (r.LastJob != "") {
			t.Errorf("%+v", r)
		}
	}
	if open != len(stale) {
		t.Errorf("%d are open", open)
	}
}

func TestConcurrentCloses(t *testing.T) {
	t.Parallel()
	h := open(t)
	published := h.listen(t, "job", ">")
	h.put(t, overdue(5))
	seen := h.dueWindow(t)
	var g sync.WaitGroup
	var closed, conflicts atomic.Int32
	for range 8 {
		g.Go(func() {
			switch err := h.Close(t.Context(), []window.DueWindow{seen})[0]; {
			case err == nil:
				closed.Add(1)
			case errors.Is(err, bus.ErrConflict):
				conflicts.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	g.Wait()
	must(t, h.nc.Flush())
	if n, _, _ := published.Pending(); closed.Load() != 1 || conflicts.Load() != 7 || len(h.jobs(t)) != 1 || n != 1 {
		t.Errorf("closed %d times, %d conflicts, %d requests", closed.Load(), conflicts.Load(), n)
	}
	if r := h.record(t); r.Open != nil || r.Closing != nil {
		t.Errorf("%+v", r)
	}
}

// A process died between closing and asking for the job.
func TestFinishAfterACrash(t *testing.T) {
	t.Parallel()
	h := open(t)
	crashed := window.StartClosing(overdue(5), request(), time.Now())
	crashed.Open = &window.Open{Epoch: "w_2", LastSeq: 9, Deadline: time.Now().Add(time.Hour)}
	h.put(t, crashed)
	for range 2 {
		must(t, h.Finish(t.Context(), auto))
	}
	jobs := h.jobs(t)
	if len(jobs) != 1 || jobs[0].LastSeq != 5 || jobs[0].Job != event.JobOfWindow(auto, "w_1") {
		t.Errorf("%+v", jobs)
	}
	if r := h.record(t); r.Closing != nil || r.Open == nil || r.Open.Epoch != "w_2" {
		t.Errorf("%+v", r)
	}
	must(t, h.Finish(t.Context(), "nobody"))
}

// The next window is due before the one before it was finished: both jobs are asked for, in order.
func TestCloseFinishesTheWindowBefore(t *testing.T) {
	t.Parallel()
	h := open(t)
	r := window.StartClosing(overdue(5), request(), time.Now())
	r.Open = overdue(9).Open
	r.Open.Epoch = "w_2"
	h.put(t, r)
	if err := h.close(t); !errors.Is(err, bus.ErrConflict) {
		t.Fatal(err)
	}
	must(t, h.close(t))
	jobs := h.jobs(t)
	if len(jobs) != 2 || jobs[0].LastSeq != 5 || jobs[1].LastSeq != 9 {
		t.Errorf("%+v", jobs)
	}
	if r := h.record(t); r.Open != nil || r.Closing != nil {
		t.Errorf("%+v", r)
	}
}

func TestHoldAndRelease(t *testing.T) {
	t.Parallel()
	h := open(t)
	ctx := t.Context()
	must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: 1, Stored: time.Now().Add(-2 * time.Hour)}}, hour))
	seen := h.dueWindow(t)
	must(t, h.Hold(ctx, auto, 1))
	if err := h.Close(ctx, []window.DueWindow{seen})[0]; !errors.Is(err, bus.ErrConflict) || len(h.jobs(t)) != 0 {
		t.Errorf("held, yet it closed: %v", err)
	}
	must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: 2, Stored: time.Now().Add(-2 * time.Hour)}}, hour))
	if r := h.record(t); r.Open.LastSeq != 2 || r.Open.Count != 2 || window.Due(r, time.Now()) {
		t.Errorf("held: %+v", r.Open)
	}
	must(t, h.Release(ctx, auto, hour, 0)) // of a resume before the pause, which was held up
	if r := h.record(t); window.Due(r, time.Now()) {
		t.Errorf("released by what was before: %+v", r.Open)
	}
	must(t, h.Release(ctx, auto, hour, 2))
	if r := h.record(t); !window.Due(r, time.Now()) {
		t.Errorf("released: %+v", r.Open)
	}
	must(t, h.Hold(ctx, auto, 1))
	if r := h.record(t); !window.Due(r, time.Now()) {
		t.Errorf("held by what was before: %+v", r.Open)
	}
	must(t, h.close(t))
	if len(h.jobs(t)) != 1 {
		t.Error("no job")
	}
	// What changes nothing writes nothing.
	must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: 3, Stored: time.Now()}}, hour))
	before := h.dueWindow(t).Revision
	must(t, h.Release(ctx, auto, hour, 2))
	must(t, h.Reconfigure(ctx, auto, hour))
	if after := h.dueWindow(t).Revision; after != before {
		t.Errorf("revision %d after %d", after, before)
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
	must(t, h.Drop(ctx, auto))
	if h.record(t).Open != nil {
		t.Error("still open")
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
	must(t, h.close(t))
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
