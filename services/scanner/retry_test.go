package scanner

import (
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// ended puts a job on record that has ended with these files.
func (r *rig) ended(id string, files ...event.File) {
	r.tb.Helper()
	lines := func(yield func(event.File, error) bool) {
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
	}
	must(r.tb, store.WriteLines(r.tb.Context(), r.plan.docs, "jobs/"+id, iter.Seq2[event.File, error](lines)))
	must(r.tb, r.jobs.Put(r.tb.Context(), id, store.Job{
		ID: id, Index: testIndex, Connector: testConnector, Status: store.JobCompleted, Report: "jobs/" + id, Settled: true, CreatedAt: time.Now(),
	}))
}

func retryOf(job, path string) event.JobRequested {
	return event.JobRequested{
		Job: "job_r", Lane: event.Bulk, Index: testIndex, Connector: testConnector, Mode: event.NewOnly, Pattern: "*",
		RetryOf: job, RetryPath: path, Preset: []byte(`{"prompt_id":"p"}`), RequestedAt: time.Now(),
	}
}

func TestRetryPlansWhatFailed(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs")
	const n = 1200 // several pages
	var files []event.File
	var entries []store.Entry
	for i := range n {
		f := event.File{Path: fmt.Sprintf("in/%06d.mp4", n-i), Version: "7", Size: 3, Connector: testConnector, State: event.Failed, Error: "gave up"}
		if i%2 == 0 {
			f.State = event.Imported
		}
		files = append(files, f)
		entries = append(entries, store.Entry{Medium: event.Medium{
			ID: event.NewMediumID(testIndex, testConnector, f.Path, "7", ""), Index: testIndex, Path: f.Path, Version: "7", Order: "0007", CRC32C: "AAAAAA==",
			State: event.MediumFailed,
		}})
	}
	for _, err := range r.plan.ledger.Write(t.Context(), entries) {
		must(t, err)
	}
	r.ended("job_0", files...)
	req := retryOf("job_0", "")
	r.mustPlan(req, done)
	r.planned(req.Job, n/2)
	r.mustPlan(req, stopped) // asked for twice
	r.planned(req.Job, n/2)
	if task := r.tasks(req.Job)[0]; !task.Again || task.Fresh || task.Version != "7" || task.Order != "0007" || task.CRC32C != "AAAAAA==" || task.Automation != "" {
		t.Errorf("task %+v", task)
	}
	if j := r.job(req.Job); j.RetryOf != "job_0" || string(j.Preset) != string(req.Preset) || j.Origin != store.Manual {
		t.Errorf("record %+v", j)
	}
}

// A planner that stops in the middle leaves nothing out and doubles nothing, although reports are in no order.
func TestRetryGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs")
	var files []event.File
	for i := range 700 {
		files = append(files, event.File{Path: fmt.Sprintf("in/%d.mp4", 700-i), Version: "1", Size: 3, State: event.Failed})
	}
	r.ended("job_0", files...)
	req := retryOf("job_0", "")
	pl, err := r.plan.begin(t.Context(), req)
	must(t, err)
	for page, err := range paged(r.plan.reported(t.Context(), req)) {
		must(t, err)
		must(t, pl.add(t.Context(), page))
		break
	}
	r.mustPlan(req, done)
	r.planned(req.Job, 700)
}

func TestRetryOfOneFile(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs")
	r.ended("job_0",
		event.File{Path: "in/a.mp4", Version: "1", Size: 3, State: event.Failed},
		event.File{Path: "in/b.mp4", Version: "2", Size: 3, State: event.Skipped, Reason: event.UnsupportedType},
		event.File{Path: "in/\\xff", State: event.Failed, Error: "name is not valid UTF-8"},
	)
	req := retryOf("job_0", "in/b.mp4")
	r.mustPlan(req, done)
	r.planned(req.Job, 1)
	if task := r.tasks(req.Job)[0]; task.Path != "in/b.mp4" || !task.Again {
		t.Errorf("task %+v", task)
	}

	// What could not be listed cannot be asked for: it fails again with its reason, and without a task.
	req = retryOf("job_0", "in/\\xff")
	req.Job = "job_r2"
	r.mustPlan(req, done)
	if f := r.files(req.Job); len(f) != 1 || f[0].State != event.Failed || !strings.Contains(f[0].Error, "UTF-8") || len(r.tasks(req.Job)) != 0 {
		t.Errorf("files %+v", f)
	}
}

func TestRetryOfNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, "gcs")
	must(t, r.jobs.Put(t.Context(), "job_0", store.Job{ID: "job_0", Status: store.JobCompleted, Report: "jobs/lost"}))
	for i, of := range []string{"job_0", "job_nobody"} {
		req := retryOf(of, "")
		req.Job = fmt.Sprint("job_r", i)
		r.mustPlan(req, failed)
		if j := r.job(req.Job); j.Status != store.JobFailed || !strings.Contains(j.Error, of) {
			t.Errorf("retry of %s: %+v", of, j)
		}
	}
	r.ended("job_1", event.File{Path: "in/a.mp4", Version: "1", State: event.Imported})
	req := retryOf("job_1", "")
	req.Job = "job_r9"
	r.mustPlan(req, done)
	if j := r.job(req.Job); j.Status != store.JobImporting || j.Progress.Total != 0 {
		t.Errorf("nothing to retry: %+v", j)
	}
}
