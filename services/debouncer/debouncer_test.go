package debouncer

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/service"
	"millrace/shared/service/servicetest"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// start runs a debouncer until the test ends or stop is called, and waits until it is ready.
func start(t testing.TB, e service.Env, cfg Config) (d *Debouncer, stop func()) {
	t.Helper()
	e.Metrics = prometheus.NewRegistry()
	d, err := New(cfg, e)
	if err != nil {
		t.Fatal(err)
	}
	return d, servicetest.Run(t, d)
}

func automation(t testing.TB, e service.Env, a store.Automation) store.Automation {
	t.Helper()
	if a.Index == "" {
		a.Index = "idx_1"
	}
	if a.ID == "" {
		a.ID = event.AutomationOfIndex(a.Index)
	}
	a.Connector, a.Pattern, a.Rev = "conn_1", "*", max(a.Rev, 1)
	reg, err := store.Open[store.Automation](t.Context(), e.Bus, topology.Automations)
	if err != nil {
		t.Fatal(err)
	}
	if err := reg.Put(t.Context(), a.ID, a); err != nil {
		t.Fatal(err)
	}
	return a
}

// arrive stores arrivals of n objects and returns when the last was stored.
func arrive(t testing.TB, e service.Env, a store.Automation, n int) {
	t.Helper()
	msgs := make([]bus.Message, n)
	for i := range n {
		path := fmt.Sprintf("%d/%d.mp4", time.Now().UnixNano(), i)
		data, err := json.Marshal(event.Arrival{
			Automation: a.ID, Index: a.Index, Connector: a.Connector, Object: event.Object{Path: path, Version: "1", Size: 10},
		})
		if err != nil {
			t.Fatal(err)
		}
		msgs[i] = bus.Message{Subject: e.Bus.Subject("arrival", a.ID, event.ObjectHash(a.Connector, path)), Data: data}
	}
	if _, errs := e.Bus.PublishAll(t.Context(), msgs); errors.Join(errs...) != nil {
		t.Fatal(errors.Join(errs...))
	}
}

// opened waits until the window of an automation has n arrivals.
func opened(t testing.TB, e service.Env, id string, n int) window.Open {
	t.Helper()
	var open window.Open
	servicetest.Eventually(t, fmt.Sprintf("a window has %d arrivals", n), func() error {
		r := record(t, e, id)
		if r.Open == nil || r.Open.Count != n {
			return fmt.Errorf("record %+v", r)
		}
		open = *r.Open
		return nil
	})
	return open
}

// overdue waits until the window of an automation is due and nobody closes it.
func overdue(t testing.TB, e service.Env, id string) {
	t.Helper()
	servicetest.Eventually(t, "the window is overdue", func() error {
		if r := record(t, e, id); !window.Due(r, time.Now()) {
			return fmt.Errorf("%+v", r.Open)
		}
		return nil
	})
}

func record(t testing.TB, e service.Env, id string) window.Record {
	t.Helper()
	ws, err := window.Bind(t.Context(), e.Bus)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ws.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// requests returns the jobs requested so far.
func requests(t testing.TB, e service.Env) []event.JobRequested {
	t.Helper()
	var list []event.JobRequested
	for m, err := range e.Bus.Scan(t.Context(), topology.Jobs, e.Bus.Subject("job", "requested", "*", "*"), 0) {
		if err != nil {
			t.Fatal(err)
		}
		var r event.JobRequested
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

func wantRequests(t testing.TB, e service.Env, n int) []event.JobRequested {
	t.Helper()
	var list []event.JobRequested
	servicetest.Eventually(t, fmt.Sprintf("%d jobs are requested", n), func() error {
		if list = requests(t, e); len(list) != n {
			return fmt.Errorf("there are %d", len(list))
		}
		return nil
	})
	return list
}

// I6: a window closes no earlier than its interval after its last arrival and at most 2 s after that.
func TestWindowClosesOnceWhenQuiet(t *testing.T) {
	t.Parallel()
	e := servicetest.Env(t)
	start(t, e, Config{})
	a := automation(t, e, store.Automation{Enabled: true, Debounce: "2s", Preset: json.RawMessage(`{"prompt_id":"p"}`)})

	for range 3 {
		arrive(t, e, a, 50)
	}
	open := opened(t, e, a.ID, 150)
	req := wantRequests(t, e, 1)[0]
	if early := open.LastArrivalAt.Add(2 * time.Second).Sub(req.RequestedAt); early > 0 {
		t.Errorf("closed %s early", early)
	}
	if late := req.RequestedAt.Sub(open.LastArrivalAt.Add(2 * time.Second)); late > 2*time.Second {
		t.Errorf("closed %s late", late)
	}
	if req.Job != event.JobOfWindow(a.ID, open.Epoch) || req.LastSeq != open.LastSeq || string(req.Preset) != `{"prompt_id":"p"}` || req.Mode != event.NewOnly {
		t.Errorf("request %+v of window %+v", req, open)
	}
	if r := record(t, e, a.ID); r.Open != nil || r.LastJob != req.Job {
		t.Errorf("record %+v after the close", r)
	}
}

// I11: a held automation requests no job and loses no arrival.
func TestHeldWindowWaitsForRelease(t *testing.T) {
	t.Parallel()
	e := servicetest.Env(t)
	d, _ := start(t, e, Config{SweepInterval: time.Second})
	a := automation(t, e, store.Automation{Enabled: true, Paused: true, Debounce: "1s"})
	if err := d.windows.Hold(t.Context(), a.ID, 1); err != nil {
		t.Fatal(err)
	}
	arrive(t, e, a, 3)
	servicetest.Eventually(t, "the deadline is over for a second", func() error {
		if r := record(t, e, a.ID); r.Open == nil || r.Open.Count != 3 || time.Since(r.Open.Deadline) < time.Second {
			return fmt.Errorf("%+v", r.Open)
		}
		return nil
	})
	if n := len(requests(t, e)); n != 0 {
		t.Fatalf("%d jobs requested while held", n)
	}
	if err := d.windows.Release(t.Context(), a.ID, d.config(&a), 2); err != nil {
		t.Fatal(err)
	}
	if req := wantRequests(t, e, 1)[0]; req.LastSeq != 3 {
		t.Errorf("request %+v, want all three arrivals", req)
	}
}

// I6, I9: a window whose end nobody was there to see is closed by the next debouncer, at once.
func TestOverdueWindowsCloseAtTheStart(t *testing.T) {
	t.Parallel()
	e := servicetest.Env(t)
	a := automation(t, e, store.Automation{Enabled: true, Debounce: "2s"})
	_, stop := start(t, e, Config{})
	arrive(t, e, a, 5)
	opened(t, e, a.ID, 5)
	stop()
	overdue(t, e, a.ID)
	begun := time.Now()
	start(t, e, Config{SweepInterval: time.Hour})
	if req := wantRequests(t, e, 1)[0]; req.LastSeq != 5 || req.RequestedAt.Before(begun) {
		t.Errorf("%+v", req)
	}
}

// I6: a window does not close over the head of arrivals that are stored and still wait to be merged.
func TestWindowWaitsForStoredArrivals(t *testing.T) {
	t.Parallel()
	e := servicetest.Env(t)
	a := automation(t, e, store.Automation{Enabled: true, Debounce: "6s"})
	_, stop := start(t, e, Config{})
	arrive(t, e, a, 3)
	opened(t, e, a.ID, 3)
	stop()
	arrive(t, e, a, 2000) // before the deadline, and nobody merges them
	overdue(t, e, a.ID)
	d, _ := start(t, e, Config{})
	if req := wantRequests(t, e, 1)[0]; req.LastSeq != 2003 {
		t.Errorf("the job has the arrivals up to %d of 2003", req.LastSeq)
	}
	servicetest.Eventually(t, "one window closed", func() error {
		if n := testutil.ToFloat64(d.metrics.closed); n != 1 {
			return fmt.Errorf("%v did", n)
		}
		return nil
	})
}

// I7, I9: a process died between moving the window to closing and requesting its job.
func TestSweepFinishesClosing(t *testing.T) {
	t.Parallel()
	e := servicetest.Env(t)
	a := automation(t, e, store.Automation{Enabled: true, Debounce: "1h"})
	r := window.Record{Automation: a.ID}
	r = window.Merge(r, []window.Arrival{{Seq: 7, Stored: time.Now().Add(-time.Hour)}}, window.Config{Interval: time.Minute, Rev: 1}, "w_1")
	r = window.StartClosing(r, request(&a), time.Now())
	reg, err := store.Open[window.Record](t.Context(), e.Bus, topology.Windows)
	if err != nil {
		t.Fatal(err)
	}
	if err := reg.Put(t.Context(), a.ID, r); err != nil {
		t.Fatal(err)
	}
	start(t, e, Config{SweepInterval: time.Second})
	req := wantRequests(t, e, 1)[0]
	if req.Job != event.JobOfWindow(a.ID, "w_1") || req.LastSeq != 7 {
		t.Errorf("request %+v", req)
	}
	servicetest.Eventually(t, "the closing has ended", func() error {
		if r := record(t, e, a.ID); r.Closing != nil {
			return errors.New("still closing")
		}
		return nil
	})
}

// I1, I9: arrivals whose window was lost, as after a restore of an older backup, get one.
func TestSweepAdoptsOrphans(t *testing.T) {
	t.Parallel()
	e := servicetest.Env(t)
	a := automation(t, e, store.Automation{Enabled: true, Debounce: "1s"})
	_, stop := start(t, e, Config{})
	arrive(t, e, a, 4)
	servicetest.Eventually(t, "the window is open and its arrivals are acknowledged", func() error {
		c, err := e.Bus.JetStream().Consumer(t.Context(), e.Bus.Stream(topology.Arrivals), topology.DebouncerArrivals)
		if err != nil {
			return err
		}
		if i := c.CachedInfo(); i.NumAckPending > 0 || i.NumPending > 0 || record(t, e, a.ID).Open == nil {
			return fmt.Errorf("%d pending", i.NumAckPending)
		}
		return nil
	})
	stop()
	reg, err := store.Open[window.Record](t.Context(), e.Bus, topology.Windows)
	if err != nil {
		t.Fatal(err)
	}
	if err := reg.Put(t.Context(), a.ID, window.Record{Automation: a.ID, ClosedSeq: 1000}); err != nil { // of before the restore
		t.Fatal(err)
	}
	start(t, e, Config{SweepInterval: time.Second})
	if req := wantRequests(t, e, 1)[0]; req.LastSeq != 4 {
		t.Errorf("request %+v, want all four arrivals", req)
	}
}

// I3, I6: two debouncers, each of which sees every window end: one job per window.
func TestTwoDebouncersRequestOneJobEach(t *testing.T) {
	t.Parallel()
	e := servicetest.Env(t)
	start(t, e, Config{SweepInterval: time.Second})
	start(t, e, Config{SweepInterval: time.Second})
	const n = 40
	var ids []store.Automation
	for i := range n {
		ids = append(ids, automation(t, e, store.Automation{Index: fmt.Sprintf("idx_%d", i), Enabled: true, Debounce: "2s"}))
	}
	for _, a := range ids {
		arrive(t, e, a, 2)
	}
	seen := map[string]bool{}
	for _, r := range wantRequests(t, e, n) {
		if seen[r.Automation] {
			t.Errorf("two jobs of %s", r.Automation)
		}
		seen[r.Automation] = true
	}
}

func TestDisabledAutomationDropsItsWindow(t *testing.T) {
	t.Parallel()
	e := servicetest.Env(t)
	start(t, e, Config{SweepInterval: time.Second})
	a := automation(t, e, store.Automation{Enabled: true, Debounce: "2s"})
	arrive(t, e, a, 2)
	opened(t, e, a.ID, 2)
	a.Enabled = false
	automation(t, e, a)
	servicetest.Eventually(t, "the window and its arrivals are dropped", func() error {
		state, err := e.Bus.State(t.Context(), topology.Arrivals)
		if err != nil {
			return err
		}
		if record(t, e, a.ID).Open != nil || state.Msgs > 0 {
			return errors.New("still there")
		}
		return nil
	})
	if n := len(requests(t, e)); n > 0 {
		t.Errorf("%d jobs of a disabled automation", n)
	}
}
