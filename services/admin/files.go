package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// jobFile is one file of an import job: a live entry while the job runs, a line of its report once it has ended.
type jobFile struct {
	Path             string   `json:"path"`
	Version          string   `json:"version"`
	Connector        string   `json:"connector_id"`
	SizeBytes        int64    `json:"size_bytes"`
	State            string   `json:"state" enum:"queued,importing,imported,skipped,failed"`
	Reason           *string  `json:"reason" doc:"of a skip"`
	Error            *string  `json:"error" doc:"of a failure, or of the last attempt; also the detail of a skip"`
	Video            *string  `json:"video_id"`
	MediaType        *string  `json:"media_type"`
	Duration         *float64 `json:"duration_seconds"`
	BytesTransferred int64    `json:"bytes_transferred"`
	Attempts         int      `json:"attempts"`
	StartedAt        *string  `json:"started_at" format:"date-time" doc:"of the first attempt"`
	EndedAt          *string  `json:"ended_at" format:"date-time"`
}

func viewJobFile(j store.Job, f event.File) jobFile {
	v := jobFile{
		Path: f.Path, Version: f.Version, Connector: cmp.Or(f.Connector, j.Connector), SizeBytes: f.Size, State: string(f.State),
		Error: orNull(f.Error), Video: orNull(f.Video), MediaType: orNull(f.MediaType), BytesTransferred: f.Bytes,
		Attempts: f.Attempts, StartedAt: stampOrNull(f.StartedAt), EndedAt: stampOrNull(f.EndedAt),
	}
	if f.Reason != "" {
		v.Reason = orNull(f.Reason.Phrase())
	}
	if f.Seconds > 0 {
		v.Duration = &f.Seconds
	}
	return v
}

type listFiles struct {
	ID     string `path:"job_id"`
	State  string `query:"state" doc:"one state, in any case"`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor string `query:"cursor" maxLength:"512" doc:"pagination.next_cursor of the page before"`
}

type retryFile struct {
	ID   string `path:"job_id"`
	Body struct {
		Path string `json:"path" minLength:"1" maxLength:"4096" doc:"of a file of this job that failed or was skipped"`
	}
}

func (a *Admin) fileRoutes() {
	const tag = "Import jobs"
	register(a, route{
		method: "GET", path: "/import-jobs/{job_id}/files", scope: read, tag: tag, summary: "List the files of an import job",
		about: "With attempts, errors and times, from the job's report once it has ended. While it runs, each file comes at " +
			"least once: one whose state changes meanwhile comes again. A cursor of a running job is no good once it has ended.",
	}, a.listFiles)
	register(a, route{
		method: "POST", path: "/import-jobs/{job_id}/retry", scope: write, status: http.StatusAccepted, tag: tag,
		summary: "Retry an attachment job",
		about:   "Only jobs made of attachments can be retried as a whole, and this server makes none: 400. For a connector's job see retry-failed.",
	}, a.retryJob)
	const about = " A new job, with a fresh count of attempts and with retry_of, imports them into the same index in the " +
		"same mode; the preset of the job before runs on what comes in. 400 while the job has not ended."
	register(a, route{
		method: "POST", path: "/import-jobs/{job_id}/retry-failed", scope: write, status: http.StatusAccepted, tag: tag,
		summary: "Try the failed files of an import job again", about: "All files that failed are tried again." + about,
	}, a.retryFailed)
	register(a, route{
		method: "POST", path: "/import-jobs/{job_id}/files/retry", scope: write, status: http.StatusAccepted, tag: tag, timeout: browseTimeout,
		summary: "Try one file of an import job again", about: "A file that failed or was skipped is tried again, whatever the reason was." + about,
	}, a.retryFile)
}

func (a *Admin) retryJob(ctx context.Context, in *jobPath) (*body[importJob], error) {
	if _, err := lookUp(ctx, a.jobs, "import_job", in.ID); err != nil {
		return nil, err
	}
	return nil, notRetryable(in.ID, "The import job %s cannot be retried: this requires an attachment job. Failed files of other jobs are tried again with retry-failed.")
}

// notRetryable says why a job cannot be retried; the text names the job with its one verb.
func notRetryable(id, text string) *problemError {
	return newProblem(http.StatusBadRequest, "import_job_not_retryable", text, id).with("job_id", id)
}

func (a *Admin) retryFailed(ctx context.Context, in *jobPath) (*body[importJob], error) {
	j, err := a.endedJob(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if j.Progress.Failed == 0 {
		return nil, notRetryable(in.ID, "The import job %s has no failed files; to import the same objects once more, create a job.")
	}
	return a.retry(ctx, j, "")
}

func (a *Admin) retryFile(ctx context.Context, in *retryFile) (*body[importJob], error) {
	j, err := a.endedJob(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	for f, err := range a.files(ctx, j) {
		switch {
		case err != nil:
			return nil, a.reportGone(j, err)
		case f.Path != in.Body.Path:
		case f.State == event.Failed || f.State == event.Skipped:
			return a.retry(ctx, j, f.Path)
		default:
			return nil, notRetryable(in.ID, "That file of the import job %s was imported; there is nothing to try again.").with("video_id", f.Video)
		}
	}
	return nil, newProblem(http.StatusNotFound, "resource_import_job_file_not_found", "The import job %s has no file of that path.", in.ID).
		with("job_id", in.ID).with("path", in.Body.Path)
}

// endedJob returns a job that has ended and whose report is written.
func (a *Admin) endedJob(ctx context.Context, id string) (store.Job, error) {
	j, err := lookUp(ctx, a.jobs, "import_job", id)
	if err == nil && (!j.Status.Terminal() || j.Report == "") {
		err = notRetryable(id, "The import job %s has not ended; what failed can be tried again once it has.").with("status", string(j.Status))
	}
	return j, err
}

// retry makes a job over files of one that has ended, which stays as it is: its counts, its report and its run are
// facts. The planner takes the files from the report.
func (a *Admin) retry(ctx context.Context, of store.Job, path string) (*body[importJob], error) {
	if _, err := a.importable(ctx, of.Connector); err != nil {
		return nil, err
	}
	if _, err := lookUp(ctx, a.indexes, "index", of.Index); err != nil {
		return nil, err
	}
	job := store.Job{
		ID: newID(ctx, "job"), Index: of.Index, Connector: of.Connector, Origin: store.Manual, Lane: cmp.Or(of.Lane, event.Bulk),
		Prefix: of.Prefix, Pattern: of.Pattern, Recursive: of.Recursive, Mode: of.Mode, Preset: of.Preset,
		RetryOf: of.ID, RetryPath: path, Status: store.JobPending, CreatedAt: time.Now().UTC(),
	}
	if path != "" {
		job.Prefix, job.Pattern = path, "*"
	}
	return a.startJob(ctx, job)
}

// File positions begin with a letter that says of which list: live entries, or a report.
const (
	livePosition   = "s" // a sequence of the files stream
	reportPosition = "b" // a byte of the report
)

func (a *Admin) listFiles(ctx context.Context, in *listFiles) (*body[page[jobFile]], error) {
	j, err := lookUp(ctx, a.jobs, "import_job", in.ID)
	if err != nil {
		return nil, err
	}
	state := event.FileState(strings.ToLower(in.State))
	switch state {
	case "", event.Queued, event.Importing, event.Imported, event.Skipped, event.Failed:
	default:
		return nil, invalid("state", "must be one of queued, importing, imported, skipped, failed")
	}
	list := fmt.Sprintf("files of %s %s", j.ID, state)
	position, err := openCursor(list, in.Cursor)
	if err != nil {
		return nil, err
	}
	kind, lines := livePosition, a.liveFiles
	if j.Report != "" {
		kind, lines = reportPosition, a.reportedFiles
	}
	var from uint64
	if position != "" {
		number, ok := strings.CutPrefix(position, kind)
		if from, err = strconv.ParseUint(number, 36, 63); err != nil || !ok {
			return nil, invalid("cursor", "is of the time before the job ended: begin again without one")
		}
	}
	files, next := make([]jobFile, 0, min(in.Limit, 100)), ""
	before := from // of the file at hand
	for f, err := range lines(ctx, j, from) {
		if err != nil {
			return nil, a.reportGone(j, err)
		}
		if state == "" || f.Value.State == state {
			if len(files) == in.Limit {
				next = kind + strconv.FormatUint(before, 36)
				break
			}
			files = append(files, viewJobFile(j, f.Value))
		}
		before = uint64(f.Next)
	}
	return &body[page[jobFile]]{newPage(files, in.Limit, sealCursor(list, next))}, nil
}

// reportGone says that nothing is known any more of the files of a job.
func (a *Admin) reportGone(j store.Job, err error) error {
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	a.log.Warn("the report of a job is gone", "job_id", j.ID, "report", j.Report)
	return newProblem(http.StatusNotFound, "resource_import_job_report_not_found", "What became of the files of %s is no longer on record.", j.ID).
		with("job_id", j.ID)
}

func (a *Admin) reportedFiles(ctx context.Context, j store.Job, from uint64) iter.Seq2[store.Line[event.File], error] {
	return store.ReadLinesFrom[event.File](ctx, a.documents, j.Report, int64(from))
}

// liveFiles yields the entries of a running job in the order in which they changed last. An entry that changes moves to
// the end, so nothing is missed.
func (a *Admin) liveFiles(ctx context.Context, j store.Job, from uint64) iter.Seq2[store.Line[event.File], error] {
	return func(yield func(store.Line[event.File], error) bool) {
		for m, err := range a.bus.Scan(ctx, topology.Files, a.bus.Subject("file", j.ID, "*"), from) {
			line := store.Line[event.File]{Next: int64(m.Sequence + 1)}
			if err == nil {
				if err = json.Unmarshal(m.Data, &line.Value); err != nil {
					err = fmt.Errorf("decode %s: %w", m.Subject, err)
				}
			}
			if !yield(line, err) || err != nil {
				return
			}
		}
	}
}
