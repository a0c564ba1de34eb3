package scanner

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// known settles n objects that the storage has, as a library that is long in use.
func (r *rig) known(n int) {
	r.tb.Helper()
	media := make([]event.Medium, n)
	for i := range n {
		o := version(fmt.Sprintf("in/%05d.mp4", i), 1)
		r.store.put(o)
		media[i] = event.Medium{Path: o.Path, Version: o.Version, Order: o.Order, State: event.MediumImported}
	}
	r.settle(media...)
}

func TestIndexKnowsWhatIsSettled(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	r.known(2 * pageSize)
	later := time.Now().Add(time.Hour)
	r.settle(
		event.Medium{Path: "in/retry.mp4", Version: "1", State: event.MediumFailed, RetryAt: later},
		event.Medium{Path: `in/"retry_at":.mp4`, Version: "1", State: event.MediumImported},
		event.Medium{Path: "in/failed.mp4", Version: "1", State: event.MediumFailed},
		event.Medium{Path: "in/deleted.mp4", Version: "1", State: event.MediumDeleted},
	)
	x := newIndex(store.NewLedger(r.bus), testIndex, 0)
	must(t, x.expect(t.Context(), pageSize-1))
	if x.loaded {
		t.Error("the ledger is read for a few objects")
	}
	must(t, x.expect(t.Context(), pageSize))
	for _, c := range []struct {
		index, path, version string
		want                 bool
	}{
		{testIndex, "in/00000.mp4", "1", true},
		{testIndex, fmt.Sprintf("in/%05d.mp4", 2*pageSize-1), "1", true},
		{testIndex, "in/00000.mp4", "2", false},
		{"idx_2", "in/00000.mp4", "1", false},
		{testIndex, "in/new.mp4", "1", false},
		{testIndex, "in/retry.mp4", "1", false},
		{testIndex, `in/"retry_at":.mp4`, "1", true},
		{testIndex, "in/failed.mp4", "1", true},
		{testIndex, "in/deleted.mp4", "1", true},
	} {
		if got := x.settled(event.NewMediumID(c.index, testConnector, c.path, c.version, "")); got != c.want {
			t.Errorf("%s of %s, version %s: settled is %v", c.path, c.index, c.version, got)
		}
	}
	held := x.room
	if held != 2*pageSize+3 {
		t.Errorf("%d keys held", held)
	}
	x.close()
	if x.settled(event.NewMediumID(testIndex, testConnector, "in/00000.mp4", "1", "")) {
		t.Error("it knows what it has let go of")
	}
}

// A scan of a bucket that is known writes nothing per object, and finds what is new, what is to be tried again, and the
// new version of what it knows.
func TestScanOfAKnownBucket(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	const n = 3 * pageSize
	r.known(n)
	must(t, r.ring(testAutomation.ID, scanNow))
	written := func() (seqs []uint64) {
		for _, stream := range []string{topology.Arrivals, topology.Media, topology.Files, topology.Tasks} {
			seqs = append(seqs, r.lastSeq(stream))
		}
		return seqs
	}
	before := written()
	must(t, r.ring(testAutomation.ID, scanNow))
	if rec := r.scan(testAutomation.ID); rec.Listed != n || rec.Found != 0 || fmt.Sprint(written()) != fmt.Sprint(before) {
		t.Errorf("%+v; written up to %v, was %v", rec, written(), before)
	}
	failed := version("in/failed.mp4", 1)
	r.settle(event.Medium{Path: failed.Path, Version: failed.Version, State: event.MediumFailed, RetryAt: time.Now().Add(-time.Hour)})
	r.store.put(failed, version("in/00700.mp4", 2), version("in/new.mp4", 1))
	must(t, r.ring(testAutomation.ID, scanNow))
	got := make(map[string]string)
	for _, a := range r.arrivals() {
		got[a.Path] = a.Version
	}
	want := map[string]string{failed.Path: "1", "in/00700.mp4": "2", "in/new.mp4": "1"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("arrivals %v, want %v", got, want)
	}
}

// I1: not one notification came. The next scan finds everything, says how much that was, and the plan of its window has
// each object once.
func TestEveryNotificationIsLost(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	r.store.record.Subscription = "projects/p/subscriptions/s"
	must(t, r.ring(testAutomation.ID, scanNow)) // the first, of an empty bucket
	const n = 1100                              // more than two pages
	r.store.fill(n)
	must(t, r.ring(testAutomation.ID, r.scan(testAutomation.ID).Epoch))
	if rec := r.scan(testAutomation.ID); rec.Listed != n || rec.Found != n || rec.Drift != n {
		t.Errorf("%d listed, %d found, drift %d; want %d", rec.Listed, rec.Found, rec.Drift, n)
	}
	req := r.window(0)
	r.mustPlan(req, done)
	r.planned(req.Job, n)
	must(t, r.ring(testAutomation.ID, scanNow))
	if left := r.arrivals(); len(left) != 0 {
		t.Errorf("%d arrivals of what a job has in hand", len(left))
	}
}

// I1 and I2: each notification comes three times, in any order, between scans and plans; some never come. Every object
// is planned once.
func TestNotificationsThriceBetweenScansAndPlans(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	const n, rounds = 600, 6
	seed := rand.Uint64()
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var all []any
	for i := range n {
		o := version(fmt.Sprintf("in/%04d.mp4", i), 1)
		r.store.put(o)
		if i%10 > 0 { // the others are found by listing
			c := created(o)
			all = append(all, c, c, c)
		}
	}
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	planned := make(map[string]string)
	for round := range rounds {
		part := all[len(all)*round/rounds : len(all)*(round+1)/rounds]
		must(t, errors.Join(r.deliver(part...)...))
		if round >= 1 && rnd.IntN(2) == 0 || round == rounds-1 {
			must(t, r.ring(testAutomation.ID, scanNow))
		}
		req := r.window(0)
		req.Job = fmt.Sprintf("job_%d", round)
		if _, err := r.plan.plan(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		files := r.files(req.Job)
		for _, f := range files {
			if before := planned[f.Path]; before != "" {
				t.Errorf("%s is planned by %s and by %s", f.Path, before, req.Job)
			}
			planned[f.Path] = req.Job
		}
		eventually(t, "the scanner knows what jobs have in hand", func() bool {
			known := 0
			for _, job := range r.config.jobsOf(testAutomation.ID) {
				known += len(r.files(job))
			}
			return known == len(planned)
		})
	}
	if len(planned) != n || len(r.arrivals()) != 0 {
		t.Errorf("%d objects planned, %d waiting; want %d and none", len(planned), len(r.arrivals()), n)
	}
}
