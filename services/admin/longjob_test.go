package admin_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// filesOf makes n files of a job with names that are difficult to write, and what became of them: of the failures up to 130
// bytes times size.
func filesOf(job string, n, size int, kind func(i int) event.FileState) []event.File {
	files := make([]event.File, n)
	for i := range files {
		f := event.File{
			Job: job, Connector: "con_1", Path: fmt.Sprintf("in/%d <&> \"state\":\"imported\",\"video_id\":\"x\" \\ ü\u2028\x01.mp4", i),
			Version: fmt.Sprint(i), State: kind(i),
		}
		switch f.State {
		case event.Imported:
			f.Video = event.NewMediumID("idx_1", "con_1", f.Path, f.Version, "").String()
		case event.Failed:
			f.Error = strings.Repeat("it is <broken> & \"video_id\":\"x\" ", i%5*size)
		case event.Skipped:
			f.Reason = event.AlreadyImported
		}
		files[i] = f
	}
	return files
}

// jobOf puts a job with a report on record, or with entries in stream while it has none.
func (w *world) jobOf(j store.Job, files []event.File) {
	w.t.Helper()
	j.Index, j.Connector, j.Mode, j.CreatedAt = "idx_1", "con_1", event.All, time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	if j.Report != "" {
		must(w.t, store.WriteLines(w.t.Context(), w.documents, j.Report, seq(files)))
	} else {
		msgs := make([]bus.Message, len(files))
		for i, f := range files {
			data, err := json.Marshal(f)
			must(w.t, err)
			msgs[i] = bus.Message{Subject: w.bus.Subject("file", j.ID, event.ObjectHash("con_1", f.Path)), Data: data}
		}
		_, errs := w.bus.PublishAll(w.t.Context(), msgs)
		for _, err := range errs {
			must(w.t, err)
		}
	}
	must(w.t, w.jobs.Put(w.t.Context(), j.ID, j))
}

// The answer about a job of many files, which is written while its report is read, has the bytes of one that is put
// together first.
func TestLongJobReadsLikeAShortOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	mixed := func(i int) event.FileState {
		return []event.FileState{event.Imported, event.Failed, event.Skipped, event.Queued, event.Imported}[i%5]
	}
	all := func(s event.FileState) func(int) event.FileState { return func(int) event.FileState { return s } }
	for name, c := range map[string]struct {
		status      store.JobStatus
		files, size int
		kind        func(int) event.FileState
		live        bool
	}{
		"mixed":                   {store.JobFailed, 150, 1, mixed, false},
		"cancelled":               {store.JobCancelled, 150, 1, mixed, false},
		"importing":               {store.JobImporting, 150, 1, mixed, true},
		"cancelled just now":      {store.JobCancelled, 150, 1, mixed, true},
		"nothing":                 {store.JobFailed, 0, 1, mixed, false},
		"more failures than kept": {store.JobFailed, 150, 50, all(event.Failed), false},
		"more of all than kept":   {store.JobFailed, 4000, 4, mixed, false},
	} {
		t.Run(name, func(t *testing.T) {
			j := store.Job{ID: "job_" + strings.ReplaceAll(name, " ", "_"), Status: c.status}
			if !c.live {
				j.Report = "jobs/" + j.ID
			}
			files := filesOf(j.ID, c.files, c.size, c.kind)
			j.Progress = store.Progress{Total: 100} // so it is taken for a short one
			w.jobOf(j, files)
			short := w.do("GET", "/import-jobs/"+j.ID, nil)
			must(t, w.jobs.Put(t.Context(), j.ID, func() store.Job {
				j, _, err := w.jobs.Get(t.Context(), j.ID)
				must(t, err)
				j.Progress.Total = 101
				return j
			}()))
			long := w.do("GET", "/import-jobs/"+j.ID, nil)
			want := strings.Replace(string(short.raw), `"total_files":100,`, `"total_files":101,`, 1)
			if string(long.raw) != want {
				t.Errorf("it has %d bytes, want %d: %.300s, want %.300s", len(long.raw), len(want), long.raw, want)
			}
			if all := len(long.at("video_ids").([]any)) + len(long.at("failed_files").([]any)) + len(long.at("skipped_files").([]any)); all > c.files || c.files > 0 && all < c.files/2 {
				t.Errorf("%d of %d files are told", all, c.files)
			}
		})
	}
	must(t, w.jobs.Put(t.Context(), "job_lost", store.Job{
		ID: "job_lost", Index: "idx_1", Connector: "con_1", Mode: event.All, Status: store.JobCompleted, Report: "nowhere",
		Progress: store.Progress{Total: 1000, Imported: 1000},
	}))
	if a := w.do("GET", "/import-jobs/job_lost", nil).want(200); a.at("files_omitted") != true || len(a.at("video_ids").([]any)) != 0 {
		t.Errorf("a job without its report: %s", a.raw)
	}
}

// A long answer that cannot be brought to its end is never taken for a whole one, through whatever door.
func TestLongJobBreaksOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	door := w.natsDoor()
	server := httptest.NewServer(w.admin.Handler())
	defer server.Close()
	ask := func(path string) (status int, body []byte, err error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+base+path, http.NoBody)
		must(t, err)
		req.Header.Set("X-API-Key", w.keys["read"])
		res, err := http.DefaultClient.Do(req)
		must(t, err)
		defer func() { _ = res.Body.Close() }()
		body, err = io.ReadAll(res.Body)
		return res.StatusCode, body, err
	}
	imported := func(int) event.FileState { return event.Imported }
	const many = 2000
	w.jobOf(store.Job{ID: "job_1", Status: store.JobCompleted, Report: "jobs/1", Progress: store.Progress{Total: many, Imported: many}}, filesOf("job_1", many, 1, imported))
	if status, body, err := ask("/import-jobs/job_1"); status != 200 || err != nil || !json.Valid(body) || len(body) < 64<<10 {
		t.Fatalf("%d, %d bytes, %v", status, len(body), err)
	}
	subject := door.subjects["GET /import-jobs/{job_id}"]
	door.send(subject, obj{"job_id": "job_1"}).want(200)

	// The report loses what it ends with.
	s, err := w.bus.JetStream().Stream(t.Context(), "OBJ_"+w.bus.Bucket(topology.Documents))
	must(t, err)
	last, err := s.GetLastMsgForSubject(t.Context(), "$O."+w.bus.Bucket(topology.Documents)+".C.*")
	must(t, err)
	must(t, s.DeleteMsg(t.Context(), last.Sequence))
	if status, body, err := ask("/import-jobs/job_1"); err == nil {
		t.Errorf("%d and %d bytes, as if that were all", status, len(body))
	}
	door.send(subject, obj{"job_id": "job_1"}).refused(500, "internal_error")

	// Before anything was said there is still time for an error.
	w.jobOf(store.Job{ID: "job_2", Status: store.JobCompleted, Report: "jobs/2", Progress: store.Progress{Total: 101, Imported: 101}}, filesOf("job_2", 101, 1, imported))
	last, err = s.GetLastMsgForSubject(t.Context(), "$O."+w.bus.Bucket(topology.Documents)+".C.*")
	must(t, err)
	must(t, s.DeleteMsg(t.Context(), last.Sequence))
	w.do("GET", "/import-jobs/job_2", nil).refused(500, "internal_error")

	// What does not fit into a message is refused over NATS, and counted.
	w.jobOf(store.Job{ID: "job_3", Status: store.JobFailed, Report: "jobs/3", Progress: store.Progress{Total: 400, Failed: 400}},
		filesOf("job_3", 400, 50, func(int) event.FileState { return event.Failed }))
	whole := w.do("GET", "/import-jobs/job_3", nil).want(200)
	door.send(subject, obj{"job_id": "job_3"}).refused(413, "answer_too_large", fmt.Sprint(len(whole.raw), " bytes"), "over HTTP")
}
