package webhooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/store"
	"millrace/shared/webhook"
)

// tell makes deliveries of a batch of events. An event that comes again finds its deliveries made.
func (s *Webhooks) tell(ctx context.Context, batch []*bus.Delivery) []error {
	hooks, err := s.hooks.current(ctx)
	if err != nil {
		return slices.Repeat([]error{err}, len(batch))
	}
	errs := make([]error, len(batch))
	var g errgroup.Group
	g.SetLimit(fanOut)
	for i, m := range batch {
		g.Go(func() error {
			errs[i] = s.tellOf(ctx, m, hooks)
			return nil
		})
	}
	_ = g.Wait()
	s.metrics.events.Add(float64(len(batch)))
	return errs
}

func (s *Webhooks) tellOf(ctx context.Context, m *bus.Delivery, hooks []*store.Webhook) error {
	e, err := bus.ReadEvent(m)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	var ds []event.Delivery
	for _, w := range hooks {
		if w.Wants(e.Type, e.Index, m.Stored) {
			ds = append(ds, event.Delivery{
				ID: event.DeliveryOf(w.ID, e.ID), Webhook: w.ID, Life: w.CreatedAt, Event: e.ID, Type: e.Type,
				State: event.DeliveryPending, CreatedAt: now, Metadata: w.Metadata,
			})
		}
	}
	if len(ds) == 0 {
		return nil
	}
	data, err := s.data(ctx, e)
	if err != nil {
		return err
	}
	envelope, err := webhook.NewEnvelope(e.ID, string(e.Type), e.Time, data)
	if err != nil {
		return bus.Poison(err)
	}
	if err := s.deliveries.Queue(ctx, e.ID, envelope, ds); err != nil {
		return err
	}
	s.metrics.queued.Add(float64(len(ds)))
	return failpoint.Here("webhooks.queued")
}

// data is what receivers are told of an event (contract §16.4): its ids, and what a look at the thing would show first,
// under the names of the API.
func (s *Webhooks) data(ctx context.Context, e event.Event) (any, error) {
	switch kind, what, _ := strings.Cut(string(e.Type), "."); kind {
	case "import_job":
		return s.jobData(ctx, e, what)
	case "prompt_run":
		return s.runData(ctx, e, what)
	case "media":
		if what == "created" {
			return mediaData(e)
		}
	}
	return e.Data, nil
}

type jobData struct {
	Job        string   `json:"job_id"`
	Connector  string   `json:"connector_id"`
	Index      string   `json:"index_id"`
	Automation string   `json:"automation_id,omitempty"`
	Status     string   `json:"status"`
	Progress   progress `json:"progress"`
	Videos     []string `json:"video_ids,omitzero"` // nil: left out
	Error      string   `json:"error_message,omitempty"`
}

type progress struct {
	Total    int     `json:"total_files"`
	Imported int     `json:"imported"`
	Failed   int     `json:"failed"`
	Skipped  int     `json:"skipped"`
	Bytes    int64   `json:"bytes_transferred"`
	Current  *string `json:"current_file"`
}

// maxVideos is how many media the end of a job tells; receivers of more ask for the job.
const maxVideos = 1000

func (s *Webhooks) jobData(ctx context.Context, e event.Event, what string) (any, error) {
	var j event.JobEvent
	if err := json.Unmarshal(e.Data, &j); err != nil {
		return nil, bus.Poison(err)
	}
	d := jobData{
		Job: j.Job, Connector: j.Connector, Index: j.Index, Automation: j.Automation, Status: j.Status, Error: j.Error,
		Progress: progress{Total: j.Total, Imported: j.Imported, Failed: j.Failed, Skipped: j.Skipped},
	}
	if what == "started" {
		return d, nil
	}
	job, _, err := s.jobs.Get(ctx, j.Job)
	if errors.Is(err, store.ErrNotFound) {
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	d.Progress.Bytes = job.Progress.Bytes
	if what == "progress" {
		return d, nil
	}
	if !job.Status.Terminal() || job.Report == "" || job.Progress.Imported > maxVideos {
		return d, nil
	}
	d.Videos = make([]string, 0, job.Progress.Imported)
	for f, err := range store.ReadLines[event.File](ctx, s.documents, job.Report) {
		if errors.Is(err, store.ErrNotFound) {
			d.Videos = nil
			break
		}
		if err != nil {
			return nil, err
		}
		if f.State == event.Imported && len(d.Videos) < maxVideos {
			d.Videos = append(d.Videos, f.Video)
		}
	}
	return d, nil
}

// runData counts media by kind, as the run itself does.
func (s *Webhooks) runData(ctx context.Context, e event.Event, what string) (any, error) {
	var r event.RunEvent
	if err := json.Unmarshal(e.Data, &r); err != nil {
		return nil, bus.Poison(err)
	}
	d := map[string]any{"run_id": r.Run, "prompt_id": r.Prompt, "status": r.Status}
	run, _, err := s.runs.Get(ctx, r.Run)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	for name, tally := range map[string]store.Tally{
		"videos": run.Tallies["video"], "audios": run.Tallies["audio"], "images": run.Tallies["image"],
	} {
		if what == "started" { // the same at each repetition, however far the run is by then
			tally.Completed, tally.Failed = 0, 0
		}
		d["total_"+name], d["completed_"+name], d["failed_"+name] = tally.Total, tally.Completed, tally.Failed
	}
	set := func(name, value string) {
		if value != "" {
			d[name] = value
		}
	}
	set("index_id", r.Index)
	set("job_id", r.Job)
	if what != "started" {
		set("error_message", run.Error)
	}
	if r.Job != "" {
		job, _, err := s.jobs.Get(ctx, r.Job)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		set("automation_id", job.Automation)
	}
	return d, nil
}

func mediaData(e event.Event) (any, error) {
	var m event.MediaEvent
	if err := json.Unmarshal(e.Data, &m); err != nil {
		return nil, bus.Poison(err)
	}
	if m.Video == "" {
		return nil, bus.Poison(fmt.Errorf("event %s names no medium", e.ID))
	}
	d := map[string]any{
		"video_id": m.Video, "index_id": m.Index, "title": path.Base(m.Path), "media_type": m.MediaType,
		"status": "not_processed", "job_id": m.Job, "source_path": m.Path, "size_bytes": m.Size,
	}
	if m.Seconds > 0 {
		d["duration_seconds"] = m.Seconds
	}
	return d, nil
}
