package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// importJob is a store.Job as clients see it.
type importJob struct {
	ID           string              `json:"job_id"`
	Connector    string              `json:"connector_id"`
	Index        string              `json:"target_index_id"`
	SourcePrefix string              `json:"source_prefix"`
	FilePattern  string              `json:"file_pattern"`
	Recursive    bool                `json:"recursive"`
	Status       string              `json:"status" enum:"pending,scanning,importing,completed,failed,cancelled"`
	Progress     jobProgress         `json:"progress"`
	VideoIDs     []string            `json:"video_ids" nullable:"false" doc:"the media this job made"`
	FailedFiles  []map[string]string `json:"failed_files" nullable:"false" doc:"path and error of each file that failed"`
	SkippedFiles []map[string]string `json:"skipped_files" nullable:"false" doc:"path and reason of each file that was skipped"`
	FilesOmitted bool                `json:"files_omitted" doc:"the three arrays are empty although there are files: in a list, because they are long"`
	ImportMode   string              `json:"import_mode" enum:"all,new_only"`
	Automation   *string             `json:"automation_id"`
	Origin       string              `json:"origin" enum:"manual,automation,attachment"`
	RetryOf      *string             `json:"retry_of" doc:"the job whose files this one tries again"`
	ErrorMessage *string             `json:"error_message"`
	CreatedAt    *string             `json:"created_at" format:"date-time"`
	StartedAt    *string             `json:"started_at" format:"date-time"`
	CompletedAt  *string             `json:"completed_at" format:"date-time"`
}

type jobProgress struct {
	TotalFiles       int     `json:"total_files" doc:"0 until the scan ends"`
	Imported         int     `json:"imported"`
	Failed           int     `json:"failed"`
	Skipped          int     `json:"skipped"`
	BytesTransferred int64   `json:"bytes_transferred"`
	CurrentFile      *string `json:"current_file"`
}

func viewJob(j store.Job) importJob {
	return importJob{
		ID: j.ID, Connector: j.Connector, Index: j.Index, SourcePrefix: j.Prefix, FilePattern: cmp.Or(j.Pattern, "*"),
		Recursive: j.Recursive, Status: string(j.Status),
		Progress: jobProgress{
			TotalFiles: j.Progress.Total, Imported: j.Progress.Imported, Failed: j.Progress.Failed, Skipped: j.Progress.Skipped,
			BytesTransferred: j.Progress.Bytes, CurrentFile: orNull(j.Progress.Current),
		},
		VideoIDs: make([]string, 0), FailedFiles: make([]map[string]string, 0), SkippedFiles: make([]map[string]string, 0),
		ImportMode: string(j.Mode), Automation: orNull(j.Automation), Origin: cmp.Or(j.Origin, store.Manual),
		RetryOf:      orNull(j.RetryOf),
		ErrorMessage: orNull(j.Error),
		CreatedAt:    stampOrNull(j.CreatedAt), StartedAt: stampOrNull(j.StartedAt), CompletedAt: stampOrNull(j.EndedAt),
	}
}

type newJob struct {
	Body struct {
		Connector    string `json:"connector_id"`
		Index        string `json:"index_id"`
		SourcePrefix string `json:"source_prefix,omitempty" doc:"what keys must begin with; not a folder, may be a whole key"`
		FilePattern  string `json:"file_pattern,omitempty" doc:"a glob, as in browse. Default *"`
		Recursive    *bool  `json:"recursive,omitempty" default:"true" nullable:"true"`
		ModeOverride string `json:"import_mode_override,omitempty" doc:"all or new_only; empty or left out: the connector's import_mode"`
	}
}

type jobPath struct {
	ID string `path:"job_id"`
}

type listJobs struct {
	Status         string `query:"status" doc:"one status, in any case"`
	Index          string `query:"index_id"`
	AutomationOnly bool   `query:"automation_only" doc:"only jobs that an automation made"`
	Limit          int    `query:"limit" minimum:"1" maximum:"200" default:"200"`
}

func (a *Admin) jobRoutes() {
	const tag = "Import jobs"
	register(a, route{
		method: "POST", path: "/import-jobs", scope: write, status: http.StatusAccepted, tag: tag,
		summary: "Import what is there", about: "Answers at once, pending. Poll the job.",
	}, a.createJob)
	register(a, route{
		method: "GET", path: "/import-jobs", scope: read, tag: tag, summary: "List import jobs",
		about: fmt.Sprintf("Newest first. video_ids, failed_files and skipped_files are filled for jobs of up to %d files; "+
			"of larger ones they are empty and files_omitted is true: get the job itself.", maxListedFiles),
	}, a.listJobs)
	register(a, route{
		method: "GET", path: "/import-jobs/{job_id}", scope: read, tag: tag, summary: "Get an import job", answer: reflect.TypeFor[importJob](),
	}, a.getJob)
	register(a, route{
		method: "POST", path: "/import-jobs/{job_id}/cancel", scope: write, tag: tag, summary: "Cancel an import job",
		about: "What is imported stays. Files not yet handled are listed as skipped with the reason \"job cancelled\", also those " +
			"whose transfer is just ending: a later answer may show such a file as imported. 400 when the job has ended.",
	}, a.cancelJob)
}

func (a *Admin) createJob(ctx context.Context, in *newJob) (*body[importJob], error) {
	b := in.Body
	if _, err := compilePattern("file_pattern", b.SourcePrefix, b.FilePattern, value(b.Recursive, true)); err != nil {
		return nil, err
	}
	switch event.ImportMode(b.ModeOverride) {
	case "", event.All, event.NewOnly:
	default:
		return nil, invalid("import_mode_override", "must be all or new_only, or left out for the connector's import_mode")
	}
	c, err := a.importable(ctx, b.Connector)
	if err != nil {
		return nil, err
	}
	if _, err := lookUp(ctx, a.indexes, "index", b.Index); err != nil {
		return nil, err
	}
	job := store.Job{
		ID: newID(ctx, "job"), Index: b.Index, Connector: b.Connector, Origin: store.Manual, Lane: event.Bulk,
		Prefix: b.SourcePrefix, Pattern: cmp.Or(b.FilePattern, "*"), Recursive: value(b.Recursive, true),
		Mode:   cmp.Or(event.ImportMode(b.ModeOverride), c.ImportMode, event.All),
		Status: store.JobPending, CreatedAt: time.Now().UTC(),
	}
	return a.startJob(ctx, job)
}

// madeBefore returns what this very request has put on record before, under an id of newID: it has asked for it then, and
// to ask again might have it done again.
func madeBefore[T any](ctx context.Context, reg *store.Register[T], id string) (v T, made bool, err error) {
	if _, repeatable := operationOf(ctx); !repeatable {
		return v, false, nil
	}
	v, _, err = reg.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return v, false, nil
	}
	return v, err == nil, err
}

// startJob asks for the job first and records it second: a record without a request would stay pending for ever, while a
// request without a record gets one from whoever plans it. For the same reason the answer may be kept meanwhile.
func (a *Admin) startJob(ctx context.Context, job store.Job) (*body[importJob], error) {
	if was, made, err := madeBefore(ctx, a.jobs, job.ID); made || err != nil {
		return &body[importJob]{viewJob(was)}, err
	}
	if err := a.requestJob(ctx, job); err != nil {
		return nil, err
	}
	err := beside(ctx, func(ctx context.Context) error {
		if err := a.jobs.Create(ctx, job.ID, job); !errors.Is(err, bus.ErrConflict) {
			return err
		}
		return nil // it is being planned already
	})
	if err != nil {
		return nil, err
	}
	return &body[importJob]{viewJob(job)}, nil
}

func (a *Admin) requestJob(ctx context.Context, j store.Job) error {
	data, err := json.Marshal(event.JobRequested{
		Job: j.ID, Lane: j.Lane, Index: j.Index, Connector: j.Connector, Prefix: j.Prefix, Pattern: j.Pattern,
		Recursive: j.Recursive, Mode: j.Mode, Preset: j.Preset, RetryOf: j.RetryOf, RetryPath: j.RetryPath, RequestedAt: j.CreatedAt,
	})
	if err != nil {
		return err
	}
	_, err = a.bus.Publish(ctx, bus.Message{Subject: a.bus.Subject("job", "requested", string(j.Lane), j.ID), Data: data, ID: j.ID})
	return err
}

func (a *Admin) getJob(ctx context.Context, in *jobPath) (*huma.StreamResponse, error) {
	j, err := lookUp(ctx, a.jobs, "import_job", in.ID)
	if err != nil {
		return nil, err
	}
	if j.Progress.Total > maxListedFiles {
		return a.longJob(ctx, j)
	}
	v, err := a.viewWithFiles(ctx, j)
	if err != nil {
		return nil, err
	}
	raw, err := spelled(v)
	return answered(raw), err
}

// maxListedFiles is the most files of a job whose arrays a list fills.
const maxListedFiles = 100

// parallelReads is how many documents a list reads at a time.
const parallelReads = 8

func (a *Admin) listJobs(ctx context.Context, in *listJobs) (*body[[]importJob], error) {
	status := store.JobStatus(strings.ToLower(in.Status))
	switch status {
	case "", store.JobPending, store.JobScanning, store.JobImporting, store.JobCompleted, store.JobFailed, store.JobCancelled:
	default:
		return nil, invalid("status", "must be one of pending, scanning, importing, completed, failed, cancelled")
	}
	newest := newestOf[store.Job]{limit: in.Limit, created: func(j store.Job) (time.Time, string) { return j.CreatedAt, j.ID }}
	for j, err := range a.jobs.All(ctx) {
		if err != nil {
			return nil, err
		}
		if (status == "" || j.Status == status) && (in.Index == "" || j.Index == in.Index) && (!in.AutomationOnly || j.Automation != "") {
			newest.add(j)
		}
	}
	jobs := newest.sorted()
	views := make([]importJob, len(jobs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelReads)
	for i, j := range jobs {
		g.Go(func() (err error) {
			if j.Progress.Total > maxListedFiles {
				views[i] = viewJob(j)
				views[i].FilesOmitted = true
				return nil
			}
			views[i], err = a.viewWithFiles(gctx, j)
			return err
		})
	}
	return &body[[]importJob]{views}, g.Wait()
}

// viewWithFiles fills in the three arrays.
func (a *Admin) viewWithFiles(ctx context.Context, j store.Job) (importJob, error) {
	v, err := a.fold(ctx, j)
	if err != nil || j.Report != "" {
		return v, err
	}
	// The job may have ended while its file entries were read, and these been purged.
	now, _, err := a.jobs.Get(ctx, j.ID)
	if err != nil || now.Report == "" {
		return v, err
	}
	return a.fold(ctx, now)
}

func (a *Admin) fold(ctx context.Context, j store.Job) (importJob, error) {
	v := viewJob(j)
	if f, ok := a.recall.get(j.ID); ok && j.Settled {
		v.VideoIDs, v.FailedFiles, v.SkippedFiles = f.videos, f.failed, f.skipped
		v.Progress.CurrentFile = nil
		return v, nil
	}
	var counts jobProgress
	for f, err := range a.files(ctx, j) {
		if errors.Is(err, store.ErrNotFound) {
			a.log.Warn("the report of a job is gone", "job_id", j.ID, "report", j.Report)
			v.FilesOmitted = true
			break
		}
		if err != nil {
			return v, err
		}
		list, text := fateOf(j, f)
		counts.count(list)
		switch {
		case list == importedFiles && text != "":
			v.VideoIDs = append(v.VideoIDs, text)
		case list == failedFiles:
			v.FailedFiles = append(v.FailedFiles, map[string]string{"path": f.Path, "error": text})
		case list == skippedFiles:
			v.SkippedFiles = append(v.SkippedFiles, map[string]string{"path": f.Path, "reason": text})
		}
	}
	v.Progress = settledProgress(j, v.Progress, counts)
	if j.Settled && j.Report != "" && !v.FilesOmitted {
		a.recall.put(j.ID, jobFiles{v.VideoIDs, v.FailedFiles, v.SkippedFiles})
	}
	return v, nil
}

// fileList is one of the three arrays of a job.
type fileList int

const (
	noFiles fileList = iota // files that are not settled
	importedFiles
	failedFiles
	skippedFiles
)

// fateOf says in which array a file of a job belongs, and what is said of it there: a video_id, or what went wrong.
func fateOf(j store.Job, f event.File) (list fileList, text string) {
	switch {
	case f.State == event.Imported:
		return importedFiles, f.Video
	case f.State == event.Failed:
		return failedFiles, cmp.Or(f.Error, "failed")
	case f.State == event.Skipped:
		return skippedFiles, f.Reason.Phrase()
	case j.Status == store.JobCancelled: // whoever has it in hand has not said so yet
		return skippedFiles, event.Cancelled.Phrase()
	}
	return noFiles, ""
}

// count counts a file.
func (p *jobProgress) count(list fileList) {
	p.TotalFiles++
	switch list {
	case importedFiles:
		p.Imported++
	case failedFiles:
		p.Failed++
	case skippedFiles:
		p.Skipped++
	case noFiles:
	}
}

// settledProgress corrects what the record says of progress by what the files say.
func settledProgress(j store.Job, said, counted jobProgress) jobProgress {
	if j.Status == store.JobCancelled && j.Report == "" { // the record still counts what was handled before
		counted.TotalFiles, counted.BytesTransferred = max(counted.TotalFiles, said.TotalFiles), said.BytesTransferred
		said = counted
	}
	if j.Status.Terminal() {
		said.CurrentFile = nil
	}
	return said
}

// files yields what became of the files of a job: from its report once there is one, until then from the bus. The
// report is complete before the record names it.
func (a *Admin) files(ctx context.Context, j store.Job) iter.Seq2[event.File, error] {
	if j.Report != "" {
		return store.ReadLines[event.File](ctx, a.documents, j.Report)
	}
	return func(yield func(event.File, error) bool) {
		for m, err := range a.bus.Scan(ctx, topology.Files, a.bus.Subject("file", j.ID, "*"), 0) {
			var f event.File
			if err == nil {
				if err = json.Unmarshal(m.Data, &f); err != nil {
					err = fmt.Errorf("decode %s: %w", m.Subject, err)
				}
			}
			if !yield(f, err) || err != nil {
				return
			}
		}
	}
}

func (a *Admin) cancelJob(ctx context.Context, in *jobPath) (*body[importJob], error) {
	if !event.IsToken(in.ID) {
		return nil, notFound("import_job", in.ID)
	}
	now := time.Now().UTC()
	op, _ := operationOf(ctx)
	j, _, err := a.jobs.Modify(ctx, in.ID, func(j *store.Job) error {
		switch {
		case j.ID == "":
			return notFound("import_job", in.ID)
		case op.id != "" && j.CancelledBy == op.id: // and died before it could answer
			return store.ErrUnchanged
		case j.Status.Terminal():
			return newProblem(http.StatusBadRequest, "import_job_not_cancellable",
				"The import job %s is %s; only a pending, scanning or importing one can be cancelled.", in.ID, j.Status).
				with("job_id", in.ID).with("status", string(j.Status))
		}
		j.Status, j.EndedAt, j.Progress.Current, j.CancelledBy = store.JobCancelled, now, "", op.id
		return nil
	})
	if err != nil {
		return nil, err
	}
	v, err := a.viewWithFiles(ctx, j)
	return &body[importJob]{v}, err
}

// newestOf keeps the newest of many, in little memory. What is added twice, as a record is that changes while it is listed,
// counts once, as it was added last.
type newestOf[T any] struct {
	limit   int
	created func(T) (time.Time, string) // and the id, for those of one instant
	kept    []T
}

func (n *newestOf[T]) add(v T) {
	if n.kept = append(n.kept, v); len(n.kept) >= 4*n.limit {
		n.kept = n.sorted()
	}
}

func (n *newestOf[T]) sorted() []T {
	slices.Reverse(n.kept) // what was added last leads its equals, and stays
	order := func(x, y T) int {
		xt, xid := n.created(x)
		yt, yid := n.created(y)
		return cmp.Or(yt.Compare(xt), cmp.Compare(yid, xid))
	}
	slices.SortStableFunc(n.kept, order)
	n.kept = slices.CompactFunc(n.kept, func(x, y T) bool { return order(x, y) == 0 })
	return n.kept[:min(n.limit, len(n.kept))]
}
