package admin_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// A job that is settled is told from memory, the same as from its report; one that is not is read each time.
func TestJobToldAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	report := func(job string, files int) {
		must(t, store.WriteLines(t.Context(), w.documents, "jobs/"+job+".jsonl", func(yield func(event.File, error) bool) {
			for i := range files {
				f := event.File{Job: job, Path: fmt.Sprint(i), State: event.Imported, Video: fmt.Sprint("vid_", i)}
				switch i {
				case 1:
					f.State, f.Error = event.Failed, "broken"
				case 2:
					f.State, f.Reason = event.Skipped, event.AlreadyImported
				}
				if !yield(f, nil) {
					return
				}
			}
		}))
	}
	put := func(job string, settled bool) {
		must(t, w.jobs.Put(t.Context(), job, store.Job{
			ID: job, Index: "idx_1", Connector: "con_1", Mode: event.All, Status: store.JobCompleted, CreatedAt: time.Now(),
			Report: "jobs/" + job + ".jsonl", Settled: settled,
		}))
	}
	videos := func(job string) int {
		return len(w.do("GET", "/import-jobs/"+job, nil).at("video_ids").([]any))
	}
	report("job_1", 5)
	put("job_1", false)
	report("job_2", 5)
	put("job_2", true)
	for _, job := range []string{"job_1", "job_2"} {
		if n := videos(job); n != 3 {
			t.Fatalf("%s: %d videos", job, n)
		}
		report(job, 6) // for job_2 that does not happen: it shows where the answer comes from
	}
	if n := videos("job_1"); n != 4 {
		t.Errorf("a job that is not settled: %d videos", n)
	}
	first := w.do("GET", "/import-jobs/job_2", nil)
	if n := len(first.at("video_ids").([]any)); n != 3 {
		t.Errorf("a settled job was read again: %d videos", n)
	}
	failed, skipped := fmt.Sprint(first.at("failed_files")), fmt.Sprint(first.at("skipped_files"))
	if failed != "[map[error:broken path:1]]" || skipped != "[map[path:2 reason:"+event.AlreadyImported.Phrase()+"]]" {
		t.Errorf("%s %s", failed, skipped)
	}
	if !slices.Equal(first.at("video_ids").([]any), []any{"vid_0", "vid_3", "vid_4"}) {
		t.Errorf("%v", first.at("video_ids"))
	}
}
