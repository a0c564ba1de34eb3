package scanner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/service/servicetest"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// ring runs the due handler for one ring, without a consumer.
func (r *rig) ring(automation, epoch string) error {
	return r.ringContext(r.tb.Context(), automation, epoch)
}

func (r *rig) ringContext(ctx context.Context, automation, epoch string) error {
	return r.scans.handle(ctx, &bus.Delivery{
		Subject: r.bus.Subject("due", "scan", automation), Delivered: 1,
		Data: encode(r.tb, event.Timer{Automation: automation, Epoch: epoch}),
	})
}

func (r *rig) scan(automation string) store.Scan {
	r.tb.Helper()
	rec, _, err := r.records.Get(r.tb.Context(), automation)
	if !errors.Is(err, store.ErrNotFound) {
		must(r.tb, err)
	}
	return rec
}

// timers returns the epochs of the armed timers of an automation.
func (r *rig) timers(automation string) []string {
	var epochs []string
	for _, t := range read[event.Timer](r, topology.Timers, "timer", "scan", automation, "*") {
		epochs = append(epochs, t.Epoch)
	}
	return epochs
}

func (r *rig) runScans() {
	r.start(func(ctx context.Context) error {
		return r.bus.Work(ctx, topology.ScannerDue, bus.Options{Workers: 4}, r.scans.handle)
	})
	r.start(r.scans.sweep)
}

func TestEnablingScansAtOnce(t *testing.T) {
	t.Parallel()
	off := testAutomation
	off.Enabled = false
	r := newRig(t, "gcs", off)
	r.store.put(version("in/a.mp4", 1), version("in/deep/b.mp4", 1), version("in/c.txt", 1), version("out/d.mp4", 1))
	r.runScans()
	put(t, r.bus, topology.Automations, off.ID, testAutomation)
	eventually(t, "the first scan", func() bool { return r.scan(off.ID).Scans == 1 })

	rec := r.scan(off.ID)
	if rec.Listed != 2 || rec.Found != 2 || rec.Drift != 0 || rec.Error != "" || !rec.NextAt.After(time.Now()) {
		t.Errorf("record %+v, want two listed, two found and no drift", rec)
	}
	if got := r.arrivals(); len(got) != 2 || got[0].Found != event.ByScan {
		t.Errorf("arrivals %+v", got)
	}
	if timers := r.timers(off.ID); !slices.Equal(timers, []string{rec.Epoch}) {
		t.Errorf("timers %v, want the one on record, %s", timers, rec.Epoch)
	}

	// Off and on again: the row of timers ends, and a new one begins with a scan.
	put(t, r.bus, topology.Automations, off.ID, off)
	eventually(t, "the end of the row", func() bool { return r.scan(off.ID).Epoch == "" })
	put(t, r.bus, topology.Automations, off.ID, testAutomation)
	eventually(t, "the first scan of the next row", func() bool { rec := r.scan(off.ID); return rec.Scans == 1 && rec.Epoch != "" })
	if got := r.arrivals(); len(got) != 2 {
		t.Errorf("%d arrivals after the second scan, want the same two", len(got))
	}
}

func TestOtherSelectionIsScannedAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	r.store.put(version("in/a.mp4", 1), version("in/b.mov", 1))
	r.runScans()
	eventually(t, "the first scan", func() bool { return r.scan(testAutomation.ID).Scans == 1 })
	changed := testAutomation
	changed.Pattern, changed.Rev = "*.{mp4,mov}", 2
	put(t, r.bus, topology.Automations, changed.ID, changed)
	eventually(t, "the second scan", func() bool { return r.scan(testAutomation.ID).Scans == 2 })
	if got := r.arrivals(); len(got) != 2 {
		t.Errorf("%d arrivals, want both", len(got))
	}
	if rec := r.scan(testAutomation.ID); rec.Drift != 0 {
		t.Errorf("drift %d: nobody was to announce what was not wanted", rec.Drift)
	}
}

func TestPresentObjectsAreBaseline(t *testing.T) {
	t.Parallel()
	a := testAutomation
	a.IncludeExisting = false
	a.UpdatedAt = time.Date(2026, 3, 1, 0, 1, 0, 0, time.UTC)
	r := newRig(t, "gcs", a)
	before, announced, after := version("in/before.mp4", 1), version("in/announced.mp4", 2), version("in/after.mp4", 90)
	r.store.put(before, announced, after)
	must(t, errors.Join(r.deliver(created(announced))...)) // it came while the scan was on its way
	must(t, r.ring(a.ID, scanNow))

	ledger, err := store.NewLedger(r.bus).Get(t.Context(), testIndex,
		event.NewMediumID(testIndex, testConnector, before.Path, before.Version, ""),
		event.NewMediumID(testIndex, testConnector, announced.Path, announced.Version, ""),
		event.NewMediumID(testIndex, testConnector, after.Path, after.Version, ""))
	must(t, err)
	if len(ledger) != 1 || ledger[0].Path != before.Path || ledger[0].State != event.MediumBaseline {
		t.Errorf("ledger %+v, want only what was there before", ledger)
	}
	var waiting []string
	for _, a := range r.arrivals() {
		waiting = append(waiting, a.Path)
	}
	if !slices.Equal(waiting, []string{announced.Path, after.Path}) {
		t.Errorf("arrivals %v", waiting)
	}

	// Only the first scan does that.
	late := version("in/late.mp4", 3)
	r.store.put(late)
	must(t, r.ring(a.ID, scanNow))
	if got := r.arrivals(); len(got) != 3 {
		t.Errorf("%d arrivals, want the late one too", len(got))
	}
}

func TestDrift(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		provider string
		sub      string
		catchUp  bool
		want     int
	}{
		{"missed by notifications", "gcs", "projects/p/subscriptions/s", false, 2},
		{"missed while we were away", "gcs", "projects/p/subscriptions/s", true, 0},
		{"nobody notifies", "gcs", "", false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.provider, testAutomation)
			r.store.record.Subscription = c.sub
			must(t, r.ring(testAutomation.ID, scanNow)) // the first
			known, again := version("in/known.mp4", 1), version("in/again.mp4", 1)
			fresh := version("in/fresh.mp4", 1)
			fresh.ModTime = time.Now() // its notification may be on its way
			r.store.put(known, again, fresh, version("in/a.mp4", 1), version("in/b.mp4", 1))
			must(t, errors.Join(r.deliver(created(known))...))
			r.settle(event.Medium{Path: again.Path, Version: again.Version, State: event.MediumFailed, RetryAt: time.Now().Add(-time.Hour)})

			epoch := scanNow
			if c.catchUp {
				epoch = scanCatchUp
			}
			must(t, r.ring(testAutomation.ID, epoch))
			rec := r.scan(testAutomation.ID)
			if rec.Listed != 5 || rec.Found != 3 || rec.Drift != c.want {
				t.Errorf("listed %d, found %d, drift %d; want 5, 3 and %d", rec.Listed, rec.Found, rec.Drift, c.want)
			}
			if got := r.arrivals(); len(got) != 5 {
				t.Errorf("%d arrivals, want all: a failure whose time has come is tried again", len(got))
			}
			events := read[event.DriftEvent](r, topology.Events, "event", string(event.ScanDrift), "*", "*")
			if c.want > 0 && (len(events) != 1 || events[0] != event.DriftEvent{Automation: testAutomation.ID, Found: c.want, Listed: 5}) ||
				c.want == 0 && len(events) != 0 {
				t.Errorf("events %+v", events)
			}
		})
	}
}

// A job can take longer than the time between two scans, and a notification can come twice.
func TestWhatAJobHasInHandIsLeftAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	r.store.put(version("in/a.mp4", 1), version("in/b.mp4", 1))
	must(t, r.ring(testAutomation.ID, scanNow))
	req := r.window(0)
	r.mustPlan(req, done)
	r.planned(req.Job, 2)
	servicetest.Eventually(t, "the scanner knows of the job", func() error {
		if len(r.config.jobsOf(testAutomation.ID)) != 1 {
			return errors.New("it does not")
		}
		return nil
	})

	before := r.lastSeq(topology.Arrivals)
	must(t, r.ring(testAutomation.ID, scanNow))
	must(t, errors.Join(r.deliver(created(version("in/a.mp4", 1)), created(version("in/b.mp4", 1)))...))
	if now := r.lastSeq(topology.Arrivals); now != before {
		t.Errorf("%d arrivals for what is being imported", now-before)
	}
	r.store.put(version("in/b.mp4", 2))
	must(t, r.ring(testAutomation.ID, scanNow))
	if got := r.arrivals(); len(got) != 1 || got[0].Version != "2" {
		t.Errorf("arrivals %+v, want the new version", got)
	}
}

func TestRings(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	id := testAutomation.ID
	must(t, r.ring(id, "s_of_a_row_long_ended"))
	if r.store.lists != 0 || r.scan(id).Epoch != "" {
		t.Fatalf("an unknown epoch started something: %+v", r.scan(id))
	}
	must(t, r.ring(id, scanNow)) // begins the row
	first := r.scan(id)
	if timers := r.timers(id); !slices.Equal(timers, []string{first.Epoch}) {
		t.Fatalf("timers %v, want %s", timers, first.Epoch)
	}
	must(t, r.ring(id, scanNow)) // beside the row
	if now := r.scan(id); now.Epoch != first.Epoch || !now.NextAt.Equal(first.NextAt) || len(r.timers(id)) != 1 || r.store.lists != 2 {
		t.Errorf("a scan on request touched the standing timer: %+v", now)
	}
	must(t, r.ring(id, first.Epoch)) // the standing timer rings, twice
	second := r.scan(id)
	must(t, r.ring(id, first.Epoch))
	if now := r.scan(id); second.Epoch == first.Epoch || now.Epoch != second.Epoch || r.store.lists != 3 {
		t.Errorf("%d listings, epochs %s, %s, %s", r.store.lists, first.Epoch, second.Epoch, now.Epoch)
	}

	// The standing ring was replaced by a request before anybody took it: the request serves it.
	_, _, err := r.records.Modify(t.Context(), id, func(s *store.Scan) error { s.NextAt = time.Now().Add(-time.Second); return nil })
	must(t, err)
	must(t, r.ring(id, scanNow))
	if now := r.scan(id); now.Epoch == second.Epoch || !now.NextAt.After(time.Now()) {
		t.Errorf("the row broke off: %+v", now)
	}
}

func TestListingThatFailsIsTriedLessAndLessOften(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	r.store.put(version("in/a.mp4", 1))
	r.store.listErr = bucket.ErrUnavailable
	epoch := scanNow
	for _, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
		must(t, r.ring(testAutomation.ID, epoch))
		rec := r.scan(testAutomation.ID)
		if got := rec.NextAt.Sub(rec.LastAt); got != want || rec.Error == "" || rec.Scans != 0 {
			t.Errorf("next after %s, want %s; %+v", got, want, rec)
		}
		epoch = rec.Epoch
	}
	r.store.listErr = nil
	must(t, r.ring(testAutomation.ID, epoch))
	if rec := r.scan(testAutomation.ID); rec.Error != "" || rec.Scans != 1 || rec.Drift != 0 || rec.Found != 1 {
		t.Errorf("after it came back: %+v", rec)
	}
}

func TestSweepMakesUpForLostRings(t *testing.T) {
	t.Parallel()
	const n = 50
	var automations []store.Automation
	for i := range n {
		a := testAutomation
		a.ID, a.Index = fmt.Sprintf("auto_%d", i), fmt.Sprintf("idx_%d", i)
		automations = append(automations, a)
	}
	r := newRig(t, "gcs", automations...)
	for _, a := range automations {
		must(t, r.records.Put(t.Context(), a.ID, store.Scan{
			Automation: a.ID, Epoch: "s_lost", NextAt: time.Now().Add(-2 * time.Minute), Scans: 1,
		}))
	}
	r.runScans()
	for _, a := range automations {
		eventually(t, "a scan of "+a.ID, func() bool { return r.scan(a.ID).Scans == 2 })
	}
	for _, a := range automations {
		if timers := r.timers(a.ID); len(timers) != 1 {
			t.Errorf("%s has timers %v", a.ID, timers)
		}
	}
}

func TestScanSaysWhatItCouldNotRead(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	r.store.folders = []string{"in/closed/"}
	r.store.put(version("in/a.mp4", 1))
	must(t, r.ring(testAutomation.ID, scanNow))
	if rec := r.scan(testAutomation.ID); rec.Listed != 1 || rec.Scans != 1 || rec.Error == "" {
		t.Errorf("record %+v, want a scan with a remark", rec)
	}
}

// BenchmarkScan measures one scan that finds nothing new, of an automation with ten files.
func BenchmarkScan(b *testing.B) {
	r := newRig(b, "gcs", testAutomation)
	for i := range 10 {
		o := version(fmt.Sprintf("in/%d.mp4", i), 1)
		r.store.put(o)
		r.settle(event.Medium{Path: o.Path, Version: o.Version, Order: o.Order, State: event.MediumImported})
	}
	must(b, r.ring(testAutomation.ID, scanNow))
	for b.Loop() {
		must(b, r.ring(testAutomation.ID, r.scan(testAutomation.ID).Epoch))
	}
}

// A scan is killed in the middle of a listing of several thousand; the next delivery of its ring goes on where it was on
// record, and the record of that goes with its end. What appeared behind is found by the next scan.
func TestScanGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		ring func(r *rig) string // begins and is delivered again
		next func(r *rig, ring string) string
		goes bool // on where the first was
	}{
		{"the same ring", func(r *rig) string { return r.begun() }, func(_ *rig, ring string) string { return ring }, true},
		{"the sweep calls it up anew", func(r *rig) string { return r.begun() }, func(r *rig, _ string) string { return r.recalled() }, true},
		{"a request, again", func(*rig) string { return scanNow }, func(_ *rig, ring string) string { return ring }, true},
		{"somebody asks meanwhile", func(r *rig) string { return r.begun() }, func(*rig, string) string { return scanNow }, false},
		{"we missed something since", func(r *rig) string { return r.begun() }, func(*rig, string) string { return scanCatchUp }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "gcs", testAutomation)
			const n = 4000
			ring := c.ring(r)
			r.store.fill(n)
			r.killed(ring)

			rec := r.scan(testAutomation.ID)
			if rec.Underway == nil || rec.Underway.Listed == 0 || rec.Underway.Listed >= n || len(rec.Underway.Left) == 0 {
				t.Fatalf("on record: %+v", rec.Underway)
			}
			killed, before := rec.Underway.Ring, rec.Listed
			r.store.put(version("in/000000-behind.mp4", 1))
			must(t, r.ring(testAutomation.ID, c.next(r, ring)))
			rec = r.scan(testAutomation.ID)
			if rec.Underway != nil && (c.goes || rec.Underway.Ring != killed) {
				t.Errorf("still on record: %+v", rec.Underway)
			}
			want := n + 1
			if c.goes {
				want = n
			}
			if rec.Listed != want || before == want {
				t.Errorf("%d listed, want %d", rec.Listed, want)
			}
			if again := r.store.yielded; c.goes != (again < 2*n) {
				t.Errorf("the storage told of %d objects after the kill", again)
			}
			must(t, r.ring(testAutomation.ID, scanNow))
			if got := r.arrivals(); len(got) != n+1 {
				t.Errorf("%d arrivals, want %d: what came behind the cursor as well", len(got), n+1)
			}
		})
	}
}

// begun begins a row of timers and returns the epoch of the standing one.
func (r *rig) begun() string {
	r.tb.Helper()
	must(r.tb, r.ring(testAutomation.ID, scanNow))
	return r.scan(testAutomation.ID).Epoch
}

// recalled gives the row another epoch, as the sweep does.
func (r *rig) recalled() string {
	r.tb.Helper()
	_, _, err := r.records.Modify(r.tb.Context(), testAutomation.ID, func(s *store.Scan) error {
		s.Epoch, s.NextAt = "s_recalled", time.Now()
		return nil
	})
	must(r.tb, err)
	return "s_recalled"
}

// killed runs a scan that puts on record how far it is at every page, and dies after that, in the middle of others.
func (r *rig) killed(ring string) {
	r.tb.Helper()
	ctx, kill := context.WithCancel(r.tb.Context())
	r.store.yielded = 0
	r.store.told = func(n int) {
		if n > 5*2*pageSize { // two pages are with the scan by then
			eventually(r.tb, "the scan is on record", func() bool { return r.scan(testAutomation.ID).Underway != nil })
			kill()
		}
	}
	r.scans.markEvery = 0
	if err := r.ringContext(ctx, testAutomation.ID, ring); !errors.Is(err, context.Canceled) {
		r.tb.Fatalf("the scan ended with %v", err)
	}
	r.scans.markEvery, r.store.told, r.store.yielded = markEvery, nil, 0
}
