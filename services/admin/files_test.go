package admin_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// all pages through the files of a job and returns their paths.
func (w *world) all(path string) (paths []string) {
	w.t.Helper()
	seen := make(map[string]bool)
	for cursor := ""; ; {
		a := w.do("GET", path+"&cursor="+url.QueryEscape(cursor), nil).want(200)
		for _, f := range a.at("data").([]any) {
			paths = append(paths, f.(map[string]any)["path"].(string))
		}
		if a.at("pagination", "has_more") != true {
			return paths
		}
		if cursor = a.str("pagination", "next_cursor"); cursor == "" || seen[cursor] {
			w.t.Fatalf("cursor %q again", cursor)
		}
		seen[cursor] = true
	}
}

func TestFilesOfAJob(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	ctx := t.Context()
	now := time.Now()
	file := func(i int) event.File {
		s := event.File{Job: "job_f", Connector: "c", Path: fmt.Sprintf("in/%02d <&>.mp4", i), Version: "v", Size: 5, State: event.Imported, Video: "vid_1", Attempts: 1, StartedAt: now, EndedAt: now}
		switch i % 3 {
		case 1:
			s.State, s.Error, s.Attempts = event.Failed, "gave up", 6
		case 2:
			s.State, s.Reason = event.Skipped, event.Unchanged
		}
		return s
	}
	var files []event.File
	for i := range 10 {
		files = append(files, file(i))
	}
	// While it runs, from the bus.
	job := store.Job{ID: "job_f", Index: f.index, Connector: f.connector, Status: store.JobImporting, Progress: store.Progress{Total: 10}, CreatedAt: now}
	must(t, w.jobs.Put(ctx, job.ID, job))
	for _, s := range files {
		data, err := json.Marshal(s)
		must(t, err)
		_, err = w.bus.Publish(ctx, bus.Message{Subject: w.bus.Subject("file", "job_f", event.ObjectHash("c", s.Path)), Data: data})
		must(t, err)
	}
	want := func(when, query string, count int) {
		t.Helper()
		got := w.all("/import-jobs/job_f/files?" + query)
		distinct := make(map[string]bool)
		for _, p := range got {
			distinct[p] = true
		}
		if len(got) != count || len(distinct) != count {
			t.Errorf("%s, %s: %d files, %d different ones, want %d", when, query, len(got), len(distinct), count)
		}
	}
	for query, count := range map[string]int{"limit=3": 10, "limit=10": 10, "limit=1000": 10, "limit=1&state=failed": 3, "limit=2&state=Skipped": 3, "limit=4&state=imported": 4, "limit=5&state=queued": 0} {
		want("running", query, count)
	}
	w.do("POST", "/import-jobs/job_f/retry-failed", nil).refused(400, "import_job_not_retryable", "has not ended")
	live := w.do("GET", "/import-jobs/job_f/files?limit=3", nil).want(200)

	// Once it has ended, from its report.
	must(t, store.WriteLines(ctx, w.documents, "report_f", seq(files)))
	job.Status, job.Report, job.Progress.Failed = store.JobCompleted, "report_f", 3
	must(t, w.jobs.Put(ctx, job.ID, job))
	for query, count := range map[string]int{"limit=3": 10, "limit=10": 10, "limit=1&state=FAILED": 3, "limit=2&state=skipped": 3, "limit=4&state=imported": 4, "limit=5&state=queued": 0} {
		want("ended", query, count)
	}
	first := w.do("GET", "/import-jobs/job_f/files?state=failed", nil).want(200)
	if first.str("data", 0, "path") != "in/01 <&>.mp4" || first.str("data", 0, "error") != "gave up" || first.at("data", 0, "attempts") != 6.0 || first.str("data", 0, "ended_at") == "" {
		t.Errorf("a failed file: %s", first.raw)
	}
	if a := w.do("GET", "/import-jobs/job_f/files?state=skipped&limit=1", nil).want(200); a.str("data", 0, "reason") != "unchanged" || a.at("data", 0, "error") != nil {
		t.Errorf("a skipped file: %s", a.raw)
	}
	w.do("GET", "/import-jobs/job_f/files?cursor="+url.QueryEscape(live.str("pagination", "next_cursor")), nil).refused(422, "validation_error", "before the job ended")
	w.do("GET", "/import-jobs/job_f/files?state=skipped&cursor="+url.QueryEscape(first.str("pagination", "next_cursor")+"x"), nil).refused(422, "validation_error", "cursor")
	w.do("GET", "/import-jobs/job_f/files?state=done", nil).refused(422, "validation_error", "state", "imported")
	w.do("GET", "/import-jobs/job_f/files?limit=1001", nil).refused(422, "validation_error", "limit")
	must(t, w.jobs.Put(ctx, "job_lost", store.Job{ID: "job_lost", Status: store.JobCompleted, Report: "nowhere"}))
	w.do("GET", "/import-jobs/job_lost/files", nil).refused(404, "resource_import_job_report_not_found")
}

func TestRetry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/import-jobs/" + f.job
	requested := func(a answer) (req event.JobRequested) {
		t.Helper()
		for m, err := range w.bus.Last(t.Context(), topology.Jobs, w.bus.Subject("job", "requested", "*", a.str("job_id"))) {
			must(t, err)
			must(t, json.Unmarshal(m.Data, &req))
		}
		return req
	}
	before := w.do("GET", path, nil).want(200)
	w.do("POST", path+"/retry", nil).refused(400, "import_job_not_retryable", "requires an attachment job", "request_id")

	_, _, err := w.jobs.Modify(t.Context(), f.job, func(j *store.Job) error {
		j.Preset, j.Lane = json.RawMessage(`{"prompt_id":"prompt_1"}`), event.Live
		return nil
	})
	must(t, err)
	a := w.do("POST", path+"/retry-failed", nil).want(202)
	req := requested(a)
	if a.str("retry_of") != f.job || a.str("status") != "pending" || a.str("job_id") == f.job || a.str("origin") != "manual" || a.at("automation_id") != nil {
		t.Errorf("answer: %s", a.raw)
	}
	if req.Job != a.str("job_id") || req.RetryOf != f.job || req.RetryPath != "" || req.Mode != event.NewOnly || req.Lane != event.Live ||
		req.Automation != "" || string(req.Preset) != `{"prompt_id":"prompt_1"}` {
		t.Errorf("request: %+v", req)
	}
	// The record by itself knows enough too: its preset is what a run follows from.
	if j, _, err := w.jobs.Get(t.Context(), req.Job); err != nil || j.RetryOf != f.job || string(j.Preset) != string(req.Preset) {
		t.Errorf("record: %+v %v", j, err)
	}

	one := w.do("POST", path+"/files/retry", obj{"path": "cams/d.mp4"}).want(202)
	if req := requested(one); req.RetryPath != "cams/d.mp4" || req.RetryOf != f.job || one.str("source_prefix") != "cams/d.mp4" {
		t.Errorf("one file: %+v", req)
	}
	w.do("POST", path+"/files/retry", obj{"path": "cams/a & b.mp4"}).refused(400, "import_job_not_retryable", "was imported", f.video)
	w.do("POST", path+"/files/retry", obj{"path": "cams/nothing.mp4"}).refused(404, "resource_import_job_file_not_found", "cams/nothing.mp4")

	// What was retried stays as it is.
	if after := w.do("GET", path, nil).want(200); string(after.raw) != string(before.raw) {
		t.Errorf("the job before has changed:\n%s%s", before.raw, after.raw)
	}
	none := store.Job{ID: "job_none", Index: f.index, Connector: f.connector, Lane: event.Bulk, Status: store.JobCompleted, Report: "report"}
	must(t, w.jobs.Put(t.Context(), none.ID, none))
	w.do("POST", "/import-jobs/job_none/retry-failed", nil).refused(400, "import_job_not_retryable", "no failed files")
	none.Progress.Failed, none.Connector = 1, gone
	must(t, w.jobs.Put(t.Context(), none.ID, none))
	w.do("POST", "/import-jobs/job_none/retry-failed", nil).refused(404, "resource_connector_not_found")
	if strings.Contains(w.log.String(), "request failed") {
		t.Error("errors in the log")
	}
}
