package exporter

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// What an export has. It is made of runs or of one job, in that order of nesting:
//
//	prompt_run   the run, and a result for each of its media, in the order of the run
//	index        the runs of the index, oldest first, each like that
//	import_job   the job, and each of its files, as its report has them
//
// As JSON it is one document with the runs or the job as objects; as lines or CSV it is the results or files alone,
// each with the ids of what it belongs to.

// runHead are the members of a run that an export shows.
type runHead struct {
	Run         string  `json:"run_id"`
	Prompt      string  `json:"prompt_id"`
	PromptName  string  `json:"prompt_name"`
	Index       *string `json:"index_id"`
	Job         *string `json:"job_id"`
	Status      string  `json:"status"`
	Media       int     `json:"media_count"`
	ExecutedAt  *string `json:"executed_at"`
	CompletedAt *string `json:"completed_at"`
	Error       *string `json:"error_message"`
}

// result is what a run says about one medium.
type result struct {
	Run         string          `json:"run_id"`
	Prompt      string          `json:"prompt_id"`
	PromptName  string          `json:"prompt_name"`
	Index       *string         `json:"index_id"`
	Video       string          `json:"video_id"`
	Title       string          `json:"title"`
	Connector   *string         `json:"source_connector_id"`
	Path        *string         `json:"source_path"`
	Version     *string         `json:"source_version"`
	MediaType   string          `json:"media_type"`
	ContentType *string         `json:"content_type"`
	Seconds     *float64        `json:"duration_seconds"`
	Size        int64           `json:"size_bytes"`
	Status      string          `json:"status"` // pending, processing, completed or failed
	ExecutedAt  *string         `json:"executed_at"`
	Error       *string         `json:"error_message"`
	Metadata    json.RawMessage `json:"metadata"` // the result, an object
}

var resultColumns = []string{
	"run_id", "prompt_id", "prompt_name", "index_id", "video_id", "title", "source_connector_id", "source_path", "source_version",
	"media_type", "content_type", "duration_seconds", "size_bytes", "status", "executed_at", "error_message", "metadata",
}

func (r result) cells() []string {
	return []string{
		r.Run, r.Prompt, r.PromptName, text(r.Index), r.Video, r.Title, text(r.Connector), text(r.Path), text(r.Version),
		r.MediaType, text(r.ContentType), number(r.Seconds), strconv.FormatInt(r.Size, 10), r.Status, text(r.ExecutedAt),
		text(r.Error), string(r.Metadata),
	}
}

// jobHead are the members of a job that an export shows.
type jobHead struct {
	Job         string  `json:"job_id"`
	Connector   string  `json:"connector_id"`
	Index       string  `json:"index_id"`
	Status      string  `json:"status"`
	Total       int     `json:"total_files"`
	Imported    int     `json:"imported"`
	Skipped     int     `json:"skipped"`
	Failed      int     `json:"failed"`
	CreatedAt   *string `json:"created_at"`
	CompletedAt *string `json:"completed_at"`
	Error       *string `json:"error_message"`
}

// jobFile is what became of one file of a job.
type jobFile struct {
	Job         string   `json:"job_id"`
	Connector   string   `json:"connector_id"`
	Index       string   `json:"index_id"`
	Path        string   `json:"path"`
	Version     string   `json:"version"`
	Size        int64    `json:"size_bytes"`
	Status      string   `json:"status"` // imported, skipped or failed
	Reason      *string  `json:"reason"` // of a skip
	Error       *string  `json:"error_message"`
	Video       *string  `json:"video_id"`
	MediaType   *string  `json:"media_type"`
	Seconds     *float64 `json:"duration_seconds"`
	Attempts    int      `json:"attempts"`
	StartedAt   *string  `json:"started_at"`
	CompletedAt *string  `json:"completed_at"`
}

var fileColumns = []string{
	"job_id", "connector_id", "index_id", "path", "version", "size_bytes", "status", "reason", "error_message", "video_id",
	"media_type", "duration_seconds", "attempts", "started_at", "completed_at",
}

func (f jobFile) cells() []string {
	return []string{
		f.Job, f.Connector, f.Index, f.Path, f.Version, strconv.FormatInt(f.Size, 10), f.Status, text(f.Reason), text(f.Error),
		text(f.Video), text(f.MediaType), number(f.Seconds), strconv.Itoa(f.Attempts), text(f.StartedAt), text(f.CompletedAt),
	}
}

// write makes the export. Memory stays constant, but for the ids of the runs of an index.
func (e *Exporter) write(ctx context.Context, w io.Writer, x store.Export) error {
	if x.Type == event.ExportOfJob {
		return e.writeJob(ctx, w, x)
	}
	runs, err := e.runsOf(ctx, x)
	if err != nil {
		return err
	}
	f := newFormat(w, x, "runs", "results", resultColumns)
	for _, id := range runs {
		run, _, err := e.runs.Get(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			return bus.Poison(fmt.Errorf("the prompt run %s does not exist any more", id))
		}
		if err != nil {
			return err
		}
		if err := f.group(headOf(run)); err != nil {
			return err
		}
		for r, err := range e.results(ctx, run) {
			if err != nil {
				return err
			}
			if x.Scope == event.OnlyMatches && r.Status != completed {
				continue
			}
			if err := f.row(r); err != nil {
				return err
			}
		}
	}
	return f.close()
}

// runsOf are the ids of the runs that an export has.
func (e *Exporter) runsOf(ctx context.Context, x store.Export) ([]string, error) {
	switch {
	case x.Type == event.ExportOfRun:
		return []string{x.Target}, nil
	case x.Type != event.ExportOfIndex:
		return nil, bus.Poison(fmt.Errorf("an export of type %q is not known here", x.Type))
	case len(x.Runs) > 0:
		return x.Runs, nil
	}
	type run struct {
		id      string
		created time.Time
	}
	var found []run
	for r, err := range e.runs.All(ctx) {
		if err != nil {
			return nil, err
		}
		if r.Index == x.Target && !r.CreatedAt.After(x.CreatedAt) { // later ones would make the next attempt another file
			found = append(found, run{r.ID, r.CreatedAt})
		}
	}
	slices.SortFunc(found, func(a, b run) int { return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id, b.id)) })
	ids := make([]string, len(found))
	for i, r := range found {
		ids[i] = r.id
	}
	return slices.Compact(ids), nil // a record that changes while it is listed comes twice
}

func headOf(r store.Run) runHead {
	return runHead{
		Run: r.ID, Prompt: r.Prompt, PromptName: r.PromptName, Index: orNull(r.Index), Job: orNull(r.Job), Status: string(r.Status),
		Media: r.Count, ExecutedAt: stamp(r.CreatedAt), CompletedAt: stamp(r.EndedAt), Error: orNull(r.Error),
	}
}

// joinChunk is how many media are looked up at a time. Their results are in memory together, up to a megabyte each.
const joinChunk = 100

// results yields what a run says about each of its media, in the order of its list. A run that ended before it had one,
// because it was cancelled or could not be made, says nothing; one that is still being made is worth another attempt.
func (e *Exporter) results(ctx context.Context, run store.Run) iter.Seq2[result, error] {
	return func(yield func(result, error) bool) {
		if run.Media == "" {
			if !run.Status.Terminal() {
				yield(result{}, fmt.Errorf("the media of the prompt run %s are not listed yet", run.ID))
			}
			return
		}
		chunk := make([]event.RunMedium, 0, joinChunk)
		flush := func() bool {
			joined, err := e.join(ctx, run, chunk)
			if err != nil {
				yield(result{}, err)
				return false
			}
			for _, r := range joined {
				if !yield(r, nil) {
					return false
				}
			}
			chunk = chunk[:0]
			return true
		}
		for m, err := range store.ReadLines[event.RunMedium](ctx, e.documents, run.Media) {
			if errors.Is(err, store.ErrNotFound) {
				err = bus.Poison(fmt.Errorf("the media of the prompt run %s are not listed any more", run.ID))
			}
			if err != nil {
				yield(result{}, err)
				return
			}
			if chunk = append(chunk, m); len(chunk) == joinChunk && !flush() {
				return
			}
		}
		flush()
	}
}

// Statuses of a medium in a run.
const (
	pending   = "pending"
	completed = "completed"
	failed    = "failed"
)

// join adds to media of a run what was reported about them and where they came from.
func (e *Exporter) join(ctx context.Context, run store.Run, media []event.RunMedium) ([]result, error) {
	subjects := make([]string, 0, len(media))
	ids := make([]event.MediumID, 0, len(media))
	rows := make([]result, len(media))
	place := make(map[string]int, len(media))
	for i, m := range media {
		rows[i] = result{
			Run: run.ID, Prompt: run.Prompt, PromptName: run.PromptName, Index: orNull(run.Index),
			Video: m.Video, Title: m.Title, MediaType: m.MediaType, ContentType: orNull(m.ContentType), Size: m.Size,
			Status: pending, Metadata: json.RawMessage("{}"),
		}
		if m.Seconds > 0 {
			rows[i].Seconds = &m.Seconds
		}
		place[m.Video] = i
		if id, err := event.ParseMediumID(m.Video); err == nil {
			ids = append(ids, id)
			subjects = append(subjects, e.env.Bus.Subject("run", "report", run.ID, m.Video))
		}
	}
	for s, err := range e.env.Bus.Last(ctx, topology.Reports, subjects...) {
		if err != nil {
			return nil, err
		}
		r, err := event.ReadReport(s.Subject, s.Data, s.Time)
		if err != nil {
			continue // whoever counts reports has buried it
		}
		rows[place[r.Video]].report(r)
	}
	entries, err := e.sources(ctx, run.Index, ids)
	if err != nil {
		return nil, err
	}
	for _, m := range entries {
		if i, ok := place[m.ID.String()]; ok {
			rows[i].Connector, rows[i].Path, rows[i].Version = orNull(m.Connector), orNull(m.Path), orNull(m.Version)
		}
	}
	return rows, nil
}

// sources are the ledger's entries of media, in whatever index when none is given.
func (e *Exporter) sources(ctx context.Context, index string, ids []event.MediumID) ([]store.Entry, error) {
	if index == "" {
		return e.ledger.Find(ctx, ids...)
	}
	return e.ledger.Get(ctx, index, ids...)
}

func (r *result) report(said event.Report) {
	switch said.State {
	case event.Successful:
		r.Status, r.Metadata = completed, event.ResultObject(said.Result)
	case event.Unsuccessful:
		r.Status, r.Error = failed, orNull(cmp.Or(said.Error, "failed"))
	default:
		r.Status = string(said.State)
		return
	}
	r.ExecutedAt = stamp(said.ReportedAt)
}

func (e *Exporter) writeJob(ctx context.Context, w io.Writer, x store.Export) error {
	job, _, err := e.jobs.Get(ctx, x.Target)
	if errors.Is(err, store.ErrNotFound) {
		return bus.Poison(fmt.Errorf("the import job %s does not exist any more", x.Target))
	}
	if err != nil {
		return err
	}
	f := newFormat(w, x, "jobs", "files", fileColumns)
	p := job.Progress
	if err := f.group(jobHead{
		Job: job.ID, Connector: job.Connector, Index: job.Index, Status: string(job.Status),
		Total: p.Total, Imported: p.Imported, Skipped: p.Skipped, Failed: p.Failed,
		CreatedAt: stamp(job.CreatedAt), CompletedAt: stamp(job.EndedAt), Error: orNull(job.Error),
	}); err != nil {
		return err
	}
	for file, err := range store.ReadLines[event.File](ctx, e.documents, job.Report) {
		if errors.Is(err, store.ErrNotFound) {
			err = bus.Poison(fmt.Errorf("the import job %s has no report", job.ID))
		}
		if err != nil {
			return err
		}
		if err := f.row(fileOf(job, file)); err != nil {
			return err
		}
	}
	return f.close()
}

func fileOf(job store.Job, f event.File) jobFile {
	v := jobFile{
		Job: job.ID, Connector: cmp.Or(f.Connector, job.Connector), Index: job.Index, Path: f.Path, Version: f.Version, Size: f.Size,
		Status: string(f.State), Error: orNull(f.Error), Video: orNull(f.Video), MediaType: orNull(f.MediaType),
		Attempts: f.Attempts, StartedAt: stamp(f.StartedAt), CompletedAt: stamp(f.EndedAt),
	}
	if f.State == event.Skipped {
		v.Reason = orNull(f.Reason.Phrase())
	}
	if f.Seconds > 0 {
		v.Seconds = &f.Seconds
	}
	return v
}

// stamp spells a time as the API does; null for none.
func stamp(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := t.UTC().Format("2006-01-02T15:04:05.000Z")
	return &s
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func number(f *float64) string {
	if f == nil {
		return ""
	}
	return strconv.FormatFloat(*f, 'f', -1, 64)
}
