package scanner

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/topology"
)

// handledAll waits until the consumer has settled every notification.
func (r *rig) handledAll() {
	r.tb.Helper()
	last := r.lastSeq(topology.Notifications)
	eventually(r.tb, "all notifications settled", func() bool {
		cons, err := r.bus.Bind(r.tb.Context(), r.bus.JetStream(), topology.ScannerNotifications)
		must(r.tb, err)
		return cons.CachedInfo().AckFloor.Stream >= last
	})
}

func TestNotificationsBecomeArrivals(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	r.runNotifications()
	o := version("in/a.mp4", 3)
	r.publish(created(o), "notification", testConnector)
	r.publish(created(version("in/notes.txt", 3)), "notification", testConnector)
	r.publish(created(version("elsewhere/a.mp4", 3)), "notification", testConnector)
	r.handledAll()

	got := r.arrivals()
	want := event.Arrival{Automation: testAutomation.ID, Index: testIndex, Connector: testConnector, Object: o, Found: event.ByNotification}
	if len(got) != 1 || got[0] != want {
		t.Errorf("arrivals %+v, want %+v", got, want)
	}
}

// Notifications of several versions of many objects, each three times, in any order, in batches of any size, to two
// scanners: one arrival per object, of its newest version, and never an older one over a newer.
func TestDuplicatedAndReorderedNotificationsChangeNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	const objects, versions = 40, 5
	var all []any
	for i := range objects {
		for v := range versions {
			n := created(version(fmt.Sprintf("in/%d.mp4", i), v+1))
			all = append(all, n, n, n)
		}
	}
	seed := rand.Uint64()
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })

	var scanners sync.WaitGroup
	var mu sync.Mutex
	next := func() []any {
		mu.Lock()
		defer mu.Unlock()
		n := min(len(all), 1+rnd.IntN(60))
		batch := all[:n]
		all = all[n:]
		return batch
	}
	for range 2 {
		scanners.Go(func() {
			for batch := next(); len(batch) > 0; batch = next() {
				if err := errors.Join(r.deliver(batch...)...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	scanners.Wait()

	got := r.arrivals()
	if len(got) != objects {
		t.Errorf("%d arrivals, want %d", len(got), objects)
	}
	for _, a := range got {
		if a.Version != fmt.Sprint(versions) {
			t.Errorf("%s waits at version %s, want %d", a.Path, a.Version, versions)
		}
	}

	before := r.lastSeq(topology.Arrivals)
	for _, a := range got {
		must(t, errors.Join(r.deliver(created(a.Object), created(version(a.Path, 1)))...))
	}
	if after := r.lastSeq(topology.Arrivals); after != before {
		t.Errorf("%d more arrivals were written for what waits already", after-before)
	}
}

func TestWhatTheLedgerHasDoesNotArrive(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	two := version("in/a.mp4", 2)
	r.settle(
		event.Medium{Path: two.Path, Version: two.Version, Order: two.Order, State: event.MediumImported},
		event.Medium{Path: "in/b.mp4", Version: "2", Order: version("", 2).Order, State: event.MediumImported, Job: "job_of_mode_all"},
	)
	must(t, errors.Join(r.deliver(
		created(two), created(version("in/a.mp4", 1)), // settled, and replaced since
		created(version("in/b.mp4", 2)), created(version("in/c.mp4", 1)),
	)...))
	if got := r.arrivals(); len(got) != 1 || got[0].Path != "in/c.mp4" {
		t.Errorf("arrivals %+v, want only in/c.mp4", got)
	}
	must(t, errors.Join(r.deliver(created(version("in/a.mp4", 3)))...))
	if got := r.arrivals(); len(got) != 2 {
		t.Errorf("%d arrivals, want the new version of in/a.mp4 too", len(got))
	}
}

func TestDeletionWithdrawsWhatWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	one, two := version("in/a.mp4", 1), version("in/a.mp4", 2)

	must(t, errors.Join(r.deliver(created(two))...))
	must(t, errors.Join(r.deliver(deleted(one))...)) // late news of a version that was replaced
	if got := r.arrivals(); len(got) != 1 {
		t.Fatalf("%d arrivals after the deletion of an older version, want 1", len(got))
	}
	last := r.lastSeq(topology.Arrivals)
	must(t, errors.Join(r.deliver(deleted(two))...))
	if got := r.arrivals(); len(got) != 0 {
		t.Errorf("%d arrivals after the deletion, want none", len(got))
	}
	must(t, errors.Join(r.deliver(created(one), deleted(one), created(two), deleted(two))...))
	if now := r.lastSeq(topology.Arrivals); now != last {
		t.Errorf("%d arrivals were written for what was created and deleted in one batch", now-last)
	}
}

// A folder tells only the name of what was removed, and what it tells may be old.
func TestDeletionWithoutVersionIsConfirmed(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dir", testAutomation)
	o := version("in/a.mp4", 1)
	r.store.put(o)
	gone := event.Notification{Op: event.Deleted, Path: o.Path}
	must(t, errors.Join(r.deliver(created(o))...))
	must(t, errors.Join(r.deliver(gone)...))
	if got := r.arrivals(); len(got) != 1 {
		t.Fatalf("%d arrivals while the file is there, want 1", len(got))
	}
	r.store.remove(o.Path)
	must(t, errors.Join(r.deliver(gone)...))
	if got := r.arrivals(); len(got) != 0 {
		t.Errorf("%d arrivals after the file is gone, want none", len(got))
	}
}

// A newer file may be replaced by an older one, which sorts before it.
func TestOlderFileOverNewerArrives(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dir", testAutomation)
	old, young := version("in/a.mp4", 1), version("in/a.mp4", 2)
	r.settle(event.Medium{Path: young.Path, Version: young.Version, Order: young.Order, State: event.MediumImported})
	r.store.put(young)
	must(t, errors.Join(r.deliver(created(old))...))
	if got := r.arrivals(); len(got) != 0 {
		t.Fatalf("a version that is not there arrived: %+v", got)
	}
	r.store.put(old)
	must(t, errors.Join(r.deliver(created(old))...))
	if got := r.arrivals(); len(got) != 1 || got[0].Version != "1" {
		t.Errorf("arrivals %+v, want version 1", got)
	}
}

func TestIncompleteNotificationsAskTheStorage(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	o := version("in/a.mp4", 7)
	r.store.put(o)
	must(t, errors.Join(r.deliver(
		event.Notification{Op: event.Created, Path: o.Path},
		event.Notification{Op: event.Created, Path: "in/gone.mp4"},
	)...))
	if got := r.arrivals(); len(got) != 1 || got[0].Object != o {
		t.Errorf("arrivals %+v, want %+v", got, o)
	}

	r.store.openErr = bucket.ErrUnavailable
	errs := r.deliver(event.Notification{Op: event.Created, Path: "in/b.mp4"})
	if v := bus.Outcome(errs[0], 1, 0); v.Action != bus.Nak {
		t.Errorf("storage that is down: %v, want another delivery", errs[0])
	}
}

func TestPoisonGoesToTheDead(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dir", testAutomation)
	r.runNotifications()
	good := version("in/a.mp4", 1)
	r.publish([]byte("hello"), "notification", testConnector)
	r.publish(push("OBJECT_FINALIZE", "", pushedObject), "notification", testConnector)
	r.publish(created(good), "notification", "conn_nobody")
	r.publish(created(good), "notification", testConnector)
	r.handledAll()
	if dead := r.dead(); len(dead) != 3 {
		t.Errorf("%d dead letters, want 3: %+v", len(dead), dead)
	}
	if got := r.arrivals(); len(got) != 1 {
		t.Errorf("%d arrivals, want the one that is good", len(got))
	}
}

func TestOnlyEnabledAutomationsHear(t *testing.T) {
	t.Parallel()
	paused, off, other := testAutomation, testAutomation, testAutomation
	paused.ID, paused.Paused, paused.Index = "auto_paused", true, "idx_2"
	off.ID, off.Enabled, off.Index = "auto_off", false, "idx_3"
	other.ID, other.Connector, other.Index = "auto_other", "conn_2", "idx_4"
	r := newRig(t, "gcs", testAutomation, paused, off, other)
	must(t, errors.Join(r.deliver(created(version("in/a.mp4", 1)))...))
	heard := make(map[string]int)
	for _, a := range r.arrivals() {
		heard[a.Automation]++
	}
	if len(heard) != 2 || heard[testAutomation.ID] != 1 || heard[paused.ID] != 1 {
		t.Errorf("arrivals %v, want one each for the enabled and the paused automation", heard)
	}

	off.Enabled = true
	put(t, r.bus, topology.Automations, off.ID, off)
	eventually(t, "the change is known", func() bool { return r.config.isEnabled(off.ID) })
	must(t, errors.Join(r.deliver(created(version("in/a.mp4", 1)))...))
	if got := r.arrivals(); len(got) != 3 {
		t.Errorf("%d arrivals after enabling, want 3", len(got))
	}
	must(t, r.config.automationRecords.Delete(t.Context(), off.ID))
	eventually(t, "the end is known", func() bool { return !r.config.isEnabled(off.ID) })
	must(t, errors.Join(r.deliver(created(version("in/b.mp4", 1)))...))
	if got := r.arrivals(); len(got) != 5 {
		t.Errorf("%d arrivals after deleting it, want 5", len(got))
	}
}

// A planner purges the backlog between the look and the write: the version that takes the place of the purged one must
// not be lost, and what was purged is in a job.
func TestArrivalAgainstPurge(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	one, two := version("in/a.mp4", 1), version("in/a.mp4", 2)
	must(t, errors.Join(r.deliver(created(one))...))

	a := r.notify.arrivals
	answers := make([]answer, 1)
	q := a.unique([]candidate{{
		automation: compile(testAutomation), connector: testConnector, object: two, exact: true,
		subject: r.bus.Subject("arrival", testAutomation.ID, event.ObjectHash(testConnector, two.Path)),
	}}, answers)
	out, err := a.sift(t.Context(), q, event.ByNotification, answers)
	must(t, err)
	must(t, r.bus.Purge(t.Context(), topology.Arrivals, r.bus.Subject("arrival", testAutomation.ID, "*"), r.lastSeq(topology.Arrivals)))
	if again := a.publish(t.Context(), out, event.ByNotification, answers); len(again) != 1 {
		t.Fatalf("the purge went unnoticed: %+v", answers)
	}
	must(t, errors.Join(r.deliver(created(two))...))
	if got := r.arrivals(); len(got) != 1 || got[0].Version != "2" {
		t.Errorf("arrivals %+v, want version 2", got)
	}
}

// BenchmarkNotifications measures notifications → stored arrivals beside the raw write of the same bytes.
func BenchmarkNotifications(b *testing.B) {
	const batch = 500
	bodies := func(from int) []any {
		list := make([]any, batch)
		for i := range list {
			n := created(version(fmt.Sprintf("in/camera-%04d/clip-%08d.mp4", (from+i)%100, from+i), 1709280764))
			n.CRC32C = "AAAAAA=="
			list[i] = n
		}
		return list
	}
	b.Run("raw", func(b *testing.B) {
		r := newRig(b, "gcs", testAutomation)
		must(b, errors.Join(r.deliver(bodies(0)...)...))
		var data []byte
		for m, err := range r.bus.Scan(b.Context(), topology.Arrivals, r.bus.Subject("arrival", "*", "*"), 0) {
			must(b, err)
			data = m.Data
		}
		b.ResetTimer()
		for n := 0; n < b.N; n += batch {
			msgs := make([]bus.Message, batch)
			for i := range msgs {
				msgs[i] = bus.Message{Subject: r.bus.Subject("arrival", "raw", event.ObjectHash("raw", fmt.Sprint(n+i))), Data: data}
			}
			_, errs := r.bus.PublishAll(b.Context(), msgs)
			must(b, errors.Join(errs...))
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
	})
	b.Run("arrivals", func(b *testing.B) {
		r := newRig(b, "gcs", testAutomation)
		for n := 0; n < b.N; n += batch {
			msgs := make([]bus.Message, batch)
			for i, body := range bodies(n) {
				msgs[i] = bus.Message{Subject: r.bus.Subject("notification", testConnector), Data: encode(b, body)}
			}
			_, errs := r.bus.PublishAll(b.Context(), msgs)
			must(b, errors.Join(errs...))
		}
		b.ResetTimer()
		r.runNotifications()
		r.handledAll()
		b.StopTimer()
		if n := r.lastSeq(topology.Arrivals); n < uint64(b.N) {
			b.Fatalf("%d arrivals of %d", n, b.N)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
	})
}
