package scanner

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// window stores n arrivals and returns the request of the window they make.
func (r *rig) window(n int) event.JobRequested {
	r.tb.Helper()
	for from := 0; from < n; from += 500 {
		var bodies []any
		for i := from; i < min(n, from+500); i++ {
			bodies = append(bodies, created(version(fmt.Sprintf("in/%06d.mp4", i), 1)))
		}
		must(r.tb, errors.Join(r.deliver(bodies...)...))
	}
	return event.JobRequested{
		Job: "job_w", Lane: event.Live, Index: testIndex, Connector: testConnector, Automation: testAutomation.ID,
		Epoch: "w_1", LastSeq: r.lastSeq(topology.Arrivals), Prefix: testAutomation.Prefix, Pattern: testAutomation.Pattern,
		Recursive: true, Mode: event.NewOnly, Preset: []byte(`{"prompt_id":"prompt_1"}`),
	}
}

func (r *rig) listing() event.JobRequested {
	return event.JobRequested{
		Job: "job_l", Lane: event.Bulk, Index: testIndex, Connector: testConnector, Prefix: "in/", Pattern: "*.mp4",
		Recursive: true, Mode: event.NewOnly,
	}
}

func (r *rig) job(id string) store.Job {
	r.tb.Helper()
	j, _, err := r.jobs.Get(r.tb.Context(), id)
	must(r.tb, err)
	return j
}

// planned checks that a job is planned whole: each of n objects has one entry and one task.
func (r *rig) planned(id string, n int) {
	r.tb.Helper()
	j := r.job(id)
	if j.Status != store.JobImporting || j.Progress.Total != n || j.Left != nil {
		r.tb.Errorf("job is %s with %d files and %v left, want importing with %d", j.Status, j.Progress.Total, j.Left, n)
	}
	entries := make(map[string]string)
	for _, f := range r.files(id) {
		entries[f.Path] = f.Version
	}
	tasks := make(map[string]string)
	for _, f := range r.tasks(id) {
		tasks[f.Path] = f.Version
	}
	if len(entries) != n || !maps.Equal(entries, tasks) {
		r.tb.Errorf("%d entries and %d tasks, want %d of the same", len(entries), len(tasks), n)
	}
}

func (r *rig) mustPlan(req event.JobRequested, want string) {
	r.tb.Helper()
	got, err := r.plan.plan(r.tb.Context(), req)
	must(r.tb, err)
	if got != want {
		r.tb.Errorf("planning %s: %s, want %s", req.Job, got, want)
	}
}

func TestWindowOfManyIsPlannedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	const n = 4*pageSize + 200
	req := r.window(n)
	later := version("in/later.mp4", 1)
	must(t, errors.Join(r.deliver(created(later))...))

	r.mustPlan(req, done)
	r.planned(req.Job, n)
	j := r.job(req.Job)
	if j.Origin != store.ByAutomation || string(j.Preset) != string(req.Preset) || j.StartedAt.IsZero() || j.CreatedAt.IsZero() {
		t.Errorf("record %+v", j)
	}
	task := r.tasks(req.Job)[0]
	if task.Automation != testAutomation.ID || task.Lane != event.Live || task.Order == "" || task.ModTime.IsZero() {
		t.Errorf("task %+v", task)
	}
	if left := r.arrivals(); len(left) != 1 || left[0].Path != later.Path {
		t.Errorf("%d arrivals left, want the one that came after the window", len(left))
	}

	// The same request again, and another job over the same backlog.
	r.mustPlan(req, stopped)
	r.planned(req.Job, n)
	again := req
	again.Job = "job_2"
	r.mustPlan(again, empty)
	if _, _, err := r.jobs.Get(t.Context(), again.Job); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an empty job left a trace: %v", err)
	}
	if started := read[event.JobEvent](r, topology.Events, "event", string(event.JobStarted), "*", "*"); len(started) != 1 || started[0].Job != req.Job {
		t.Errorf("%d jobs started, want 1", len(started))
	}
}

// A planner is killed at each step in turn; the next one finishes, and nothing is missing or doubled.
func TestWindowIsPlannedOnceWhereverThePlannerStops(t *testing.T) {
	t.Parallel()
	const n = 700 // two pages
	for _, c := range []struct {
		name string
		stop func(r *rig, req event.JobRequested, pl *plan, pages []page)
	}{
		{"after the record", func(*rig, event.JobRequested, *plan, []page) {}},
		{"after half of the entries, no task", func(r *rig, _ event.JobRequested, pl *plan, pages []page) {
			files, hashes := byHash(pages[0].files[:250])
			must(r.tb, pl.create(r.tb.Context(), hashes, files, map[string]task{}))
		}},
		{"after a page", func(r *rig, _ event.JobRequested, pl *plan, pages []page) {
			must(r.tb, pl.add(r.tb.Context(), pages[0]))
		}},
		{"after all tasks", func(r *rig, _ event.JobRequested, pl *plan, pages []page) {
			for _, p := range pages {
				must(r.tb, pl.add(r.tb.Context(), p))
			}
		}},
		{"before the purge", func(r *rig, _ event.JobRequested, pl *plan, pages []page) {
			for _, p := range pages {
				must(r.tb, pl.add(r.tb.Context(), p))
			}
			must(r.tb, pl.finish(r.tb.Context()))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, "gcs", testAutomation)
			req := r.window(n)
			pl, err := r.plan.begin(t.Context(), req)
			must(t, err)
			var pages []page
			for p, err := range paged(r.plan.backlog(t.Context(), r.bus.Subject("arrival", req.Automation, "*"), req.LastSeq)) {
				must(t, err)
				pages = append(pages, p)
			}
			c.stop(r, req, pl, pages)

			_, err = r.plan.plan(t.Context(), req)
			must(t, err)
			r.planned(req.Job, n)
			if left := r.arrivals(); len(left) != 0 {
				t.Errorf("%d arrivals left", len(left))
			}
		})
	}
}

func byHash(files []file) (map[string]file, []string) {
	m := make(map[string]file)
	for _, f := range files {
		m[event.ObjectHash(f.connector, f.Path)] = f
	}
	return m, slices.Collect(maps.Keys(m))
}

// Between two attempts a planned object was replaced, so that its arrival belongs to the next window now. Its entry is
// there and must have its task, and counts.
func TestEntryWhoseArrivalMovedOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	req := r.window(3)
	pl, err := r.plan.begin(t.Context(), req)
	must(t, err)
	files, hashes := byHash([]file{{connector: testConnector, Object: version("in/000001.mp4", 1)}})
	must(t, pl.create(t.Context(), hashes, files, map[string]task{}))
	must(t, errors.Join(r.deliver(created(version("in/000001.mp4", 2)))...))

	r.mustPlan(req, done)
	r.planned(req.Job, 3)
	if left := r.arrivals(); len(left) != 1 || left[0].Version != "2" {
		t.Errorf("arrivals %+v, want version 2", left)
	}
}

// Anybody with the right may write to the backlog. What is no arrival does not hold up those that are.
func TestRubbishInTheBacklog(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	r.window(2)
	r.publish([]byte("hello"), "arrival", testAutomation.ID, "h1")
	r.publish([]byte("hello"), "arrival", testAutomation.ID, event.ObjectHash(testConnector, "in/c.mp4"))
	must(t, errors.Join(r.deliver(created(version("in/c.mp4", 1)))...)) // replaces it
	r.mustPlan(r.window(0), done)
	r.planned("job_w", 3)
	if dead := r.dead(); len(dead) != 1 || string(dead[0].Data) != "hello" {
		t.Errorf("dead letters %+v", dead)
	}
}

func TestTwoPlannersOfOneWindow(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	const n = 2000
	req := r.window(n)
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			if _, err := r.plan.plan(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	r.planned(req.Job, n)
	if left := r.arrivals(); len(left) != 0 {
		t.Errorf("%d arrivals left", len(left))
	}
}

func TestCancelledWindowIsPlannedNoFurther(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs", testAutomation)
	req := r.window(1200)
	pl, err := r.plan.begin(t.Context(), req)
	must(t, err)
	var planErr error
	for p, err := range paged(r.plan.backlog(t.Context(), r.bus.Subject("arrival", req.Automation, "*"), req.LastSeq)) {
		must(t, err)
		if planErr = pl.add(t.Context(), p); planErr != nil {
			break
		}
		_, _, err = r.jobs.Modify(t.Context(), req.Job, func(j *store.Job) error { j.Status = store.JobCancelled; return nil })
		must(t, err)
	}
	if !errors.Is(planErr, errStopped) {
		t.Fatalf("planning a cancelled job: %v", planErr)
	}
	r.mustPlan(req, stopped)
	if got := len(r.files(req.Job)); got != pageSize {
		t.Errorf("%d entries, want those of the page before", got)
	}
	if left := r.arrivals(); len(left) != 0 {
		t.Errorf("%d arrivals left of a cancelled job", len(left))
	}
	if j := r.job(req.Job); j.Status != store.JobCancelled {
		t.Errorf("job is %s", j.Status)
	}
}

func (m *memory) fill(n int) {
	for i := range n {
		m.put(version(fmt.Sprintf("in/%06d.mp4", i), 1), version(fmt.Sprintf("in/%06d.txt", i), 1))
	}
}

func TestListingIsPlanned(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs")
	const n = 1300
	r.store.fill(n)
	r.mustPlan(r.listing(), done)
	r.planned("job_l", n)
	if j := r.job("job_l"); j.Origin != store.Manual {
		t.Errorf("origin %s", j.Origin)
	}
	// The broker forgets in time that it had a request. What came since is not of this job.
	r.store.put(version("in/since.mp4", 1))
	r.mustPlan(r.listing(), stopped)
	r.planned("job_l", n)
}

func TestListingOfNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs")
	must(t, r.jobs.Put(t.Context(), "job_l", store.Job{ID: "job_l", Status: store.JobPending, Index: testIndex}))
	r.mustPlan(r.listing(), done)
	r.planned("job_l", 0)
}

// A listing that breaks off goes on behind the page that is on record, and what changed behind it meanwhile is
// consistent all the same.
func TestListingGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs")
	const n = 1300
	r.store.fill(n)
	r.store.listErr, r.store.listErrs = bucket.ErrUnavailable, 2*1100 // in the third page
	req := r.listing()
	_, err := r.plan.plan(t.Context(), req)
	if !errors.Is(err, bucket.ErrUnavailable) {
		t.Fatalf("planning: %v", err)
	}
	// The first page is on record. Of the second, the entries and tasks are there; one object is gone by now.
	j := r.job(req.Job)
	if j.Progress.Total != pageSize || j.Status != store.JobScanning {
		t.Fatalf("after the failure: %s, %d files", j.Status, j.Progress.Total)
	}
	for i := range n {
		if path := fmt.Sprintf("in/%06d.mp4", i); within(j.Left, path) != (i >= pageSize) {
			t.Fatalf("%s is left: %v, of %v", path, i >= pageSize, j.Left)
		}
	}
	r.store.remove(fmt.Sprintf("in/%06d.mp4", pageSize+5))
	r.store.listErr = nil
	r.mustPlan(req, done)
	r.planned(req.Job, n)
}

func TestListingThatWillNeverWork(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		set  func(r *rig, req *event.JobRequested)
		want string
	}{
		{"no bucket", func(r *rig, _ *event.JobRequested) { r.store.listErr = bucket.ErrNoBucket }, "does not exist"},
		{"credentials", func(r *rig, _ *event.JobRequested) { r.store.openErr = bucket.ErrCredentials }, "refuses"},
		{"rights", func(r *rig, _ *event.JobRequested) { r.store.listErr = bucket.ErrPermission }, "refuses"},
		{"no connector", func(r *rig, _ *event.JobRequested) { r.store.openErr = store.ErrNotFound }, "no longer exists"},
		{"no index", func(_ *rig, req *event.JobRequested) { req.Index = "idx_gone" }, "no longer exists"},
		{"pattern", func(_ *rig, req *event.JobRequested) { req.Pattern = "[" }, "pattern"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, "gcs")
			req := r.listing()
			c.set(r, &req)
			r.mustPlan(req, failed)
			if j := r.job(req.Job); j.Status != store.JobFailed || !strings.Contains(j.Error, c.want) || j.EndedAt.IsZero() {
				t.Errorf("job is %s: %q, want failed: …%s…", j.Status, j.Error, c.want)
			}
			r.mustPlan(req, stopped)
		})
	}
}

func TestListingThatMayWorkLater(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs")
	r.store.listErr = &bucket.ThrottledError{RetryAfter: 90_000_000_000, Err: bucket.ErrThrottled}
	d := &bus.Delivery{Subject: r.bus.Subject("job", "requested", "bulk", "job_l"), Delivered: 1, Data: []byte(
		`{"job_id":"job_l","lane":"bulk","index_id":"idx_1","connector_id":"conn_1","source_prefix":"in/","file_pattern":"*","recursive":true}`)}
	v := bus.Outcome(r.plan.handle(t.Context(), d), 1, 0)
	if v.Action != bus.Nak || v.Delay.Seconds() != 90 {
		t.Errorf("verdict %+v, want another delivery when the storage said", v)
	}
	if v := bus.Outcome(r.plan.handle(t.Context(), &bus.Delivery{Data: []byte(`{"job_id":"x"}`)}), 1, 0); v.Action != bus.Dead {
		t.Errorf("verdict %+v on a request without a lane, want dead", v)
	}
}

// What is listed and can never be imported is on record as failed, and is no reason to stop.
func TestListingWithWhatCannotBeImported(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs")
	r.store.put(version("in/a.mp4", 1), version("in/\xff.mp4", 1))
	r.store.folders = []string{"in/closed/"}
	r.mustPlan(r.listing(), done)
	if j := r.job("job_l"); j.Progress.Total != 3 || j.Status != store.JobImporting {
		t.Errorf("job is %s with %d files, want importing with 3", j.Status, j.Progress.Total)
	}
	failures := make(map[string]string)
	for _, f := range r.files("job_l") {
		if f.State == event.Failed {
			failures[f.Path] = f.Error
		}
	}
	if len(failures) != 2 || failures[`in/\xff.mp4`] == "" || failures["in/closed/"] == "" {
		t.Errorf("failed entries %v", failures)
	}
	if tasks := r.tasks("job_l"); len(tasks) != 1 || tasks[0].Path != "in/a.mp4" {
		t.Errorf("tasks %+v", tasks)
	}
}

// BenchmarkPlan measures the planning of windows: many small ones at a time, and one big one.
func BenchmarkPlan(b *testing.B) {
	b.Run("small", func(b *testing.B) {
		r := newRig(b, "gcs")
		msgs := make([]bus.Message, 0, 2*b.N)
		for i := range b.N {
			a := fmt.Sprintf("auto_%06d", i)
			o := version(fmt.Sprintf("in/%06d.mp4", i), 1)
			msgs = append(msgs, bus.Message{
				Subject: r.bus.Subject("arrival", a, event.ObjectHash(testConnector, o.Path)),
				Data:    encode(b, event.Arrival{Automation: a, Index: testIndex, Connector: testConnector, Object: o}),
			})
		}
		seqs, errs := r.bus.PublishAll(b.Context(), msgs)
		must(b, errors.Join(errs...))
		msgs = msgs[:0]
		for i, seq := range seqs {
			job := fmt.Sprintf("job_%06d", i)
			msgs = append(msgs, bus.Message{Subject: r.bus.Subject("job", "requested", "live", job), Data: encode(b, event.JobRequested{
				Job: job, Lane: event.Live, Index: testIndex, Connector: testConnector, Automation: fmt.Sprintf("auto_%06d", i), LastSeq: seq,
			})})
		}
		_, errs = r.bus.PublishAll(b.Context(), msgs)
		must(b, errors.Join(errs...))
		b.ResetTimer()
		r.runPlanner(topology.ScannerJobsLive, r.scanner.cfg.LiveWorkers)
		for left := uint64(1); left > 0; <-time.After(5 * time.Millisecond) {
			st, err := r.bus.State(b.Context(), topology.Jobs)
			must(b, err)
			left = st.Msgs
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	})
	b.Run("big", func(b *testing.B) {
		r := newRig(b, "gcs", testAutomation)
		req := r.window(b.N)
		b.ResetTimer()
		_, err := r.plan.plan(b.Context(), req)
		must(b, err)
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
	})
}
