// Package worker is the exec executor: it carries out runs by starting a command for each medium.
//
// # The command
//
// Config.Command is run by sh -c for each medium that has no final report yet. It gets
//
//   - $1: the file, when it lies in a folder this worker can read, else the URI
//   - MILLRACE_RUN_ID, MILLRACE_VIDEO_ID, MILLRACE_INDEX_ID, MILLRACE_TITLE, MILLRACE_MEDIA_TYPE, MILLRACE_MEDIA_URI and
//     MILLRACE_MEDIA_PATH (empty unless $1 is a file), beside the worker's own environment without its MILLRACE_ part
//   - on standard input, one JSON object: Input
//
// Names never become part of the shell's text; quote "$1" as for any file. Exit status 0 means success, and standard
// output, up to 4 MiB, is the result: a JSON object as it is, nothing as {}, anything else as {"text": "…"}. Any other
// status means that the medium failed, and the last line of standard error says why. A command that outlives its time,
// or the worker, is killed with all processes of its group, so it must not mind being killed; and it may be started
// twice for one medium, when the worker dies between its end and the report.
//
// # Other executors
//
// An executor in any language needs no part of this package: it takes the place of this worker when this worker is not
// started. It pulls from the durable consumer worker-runs of the stream <prefix>-runs. Each message is an
// event.RunRequested; the media are in it, or, when the list is empty, JSON Lines in the object media_object of the
// object store <prefix>-documents. For each it publishes an event.Report to <prefix>.run.report.<run_id>.<video_id>,
// "processing" if it likes and "successful" or "failed" in the end, and waits for the ack. It extends the message's
// lease meanwhile (+WPI, every few seconds; a lease is 20 s) and acknowledges when all media are reported. A run can
// come again, so it first leaves out the media that have a final report: the last message of their subject in
// <prefix>-reports. A run that is cancelled says so in its record, key run_id of the bucket <prefix>-run
// ("status": "cancelled"), which can be watched; reports that come after that are not counted.
package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Config of a worker.
type Config struct {
	// Command is what sh -c runs for each medium. Required.
	Command string
	// Parallel is how many commands run at a time, and how many runs are in hand. Default: the number of CPUs.
	Parallel int
	// Timeout is how long a command may take. Default 10 minutes.
	Timeout time.Duration
	// MaxAttempts is how often the command is started for one medium before it is reported as failed. Default 1.
	MaxAttempts int
}

func (c *Config) setDefaults() {
	if c.Parallel == 0 {
		c.Parallel = runtime.GOMAXPROCS(0)
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Minute
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 1
	}
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if strings.TrimSpace(c.Command) == "" {
		errs = append(errs, errors.New("a command is required"))
	}
	if c.Parallel < 1 {
		errs = append(errs, fmt.Errorf("parallel %d: must be at least 1", c.Parallel))
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout %s: must be positive", c.Timeout))
	}
	if c.MaxAttempts < 1 {
		errs = append(errs, fmt.Errorf("max attempts %d: must be at least 1", c.MaxAttempts))
	}
	return errors.Join(errs...)
}

// Worker is a running worker.
type Worker struct {
	cfg     Config
	env     service.Env
	media   Media
	metrics metrics
	slots   chan struct{} // one per command
	inHand  *inHand

	runs      *store.Register[store.Run]
	documents *store.Documents
}

// New returns a worker that has opened nothing yet. Without media (nil), every medium is passed by its URI.
func New(cfg Config, env service.Env, media Media) (*Worker, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if media == nil {
		media = Folders(nil)
	}
	env.Log = env.Log.With("component", "worker")
	return &Worker{
		cfg: cfg, env: env, media: media, metrics: newMetrics(env.Metrics), slots: make(chan struct{}, cfg.Parallel),
		inHand: newInHand(),
	}, nil
}

// Run works until ctx ends; then commands are killed and their runs go back at once. It fails when the topology is
// missing.
func (w *Worker) Run(ctx context.Context) error {
	var err error
	if w.runs, err = store.Open[store.Run](ctx, w.env.Bus, topology.RunRecords); err != nil {
		return err
	}
	if w.documents, err = store.OpenDocuments(ctx, w.env.Bus); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.inHand.follow(ctx, w.runs) })
	g.Go(func() error {
		return w.env.Bus.Work(ctx, topology.WorkerRuns, bus.Options{Workers: w.cfg.Parallel}, w.carryOut)
	})
	return g.Wait()
}

// Ready returns nil while the worker holds its consumer.
func (w *Worker) Ready() error { return w.env.Bus.Consuming(topology.WorkerRuns) }

// carryOut carries out one run. What is reported stays reported, so a run that comes again goes on where it was. When
// it is cancelled, commands that run are killed.
func (w *Worker) carryOut(ctx context.Context, d *bus.Delivery) error {
	var req event.RunRequested
	if err := d.Decode(&req); err != nil {
		return err
	}
	if !isToken(req.Run) {
		return bus.Poison(fmt.Errorf("%q is not the id of a run", req.Run))
	}
	ctx, done := w.inHand.begin(ctx, req.Run)
	defer done()
	err := w.allOf(ctx, req)
	if errors.Is(context.Cause(ctx), errCancelled) {
		w.env.Log.Info("run cancelled", "run_id", req.Run)
		return nil
	}
	return err
}

// allOf has the media of a run processed that are not yet.
func (w *Worker) allOf(ctx context.Context, req event.RunRequested) error {
	media, err := w.pending(ctx, req)
	if err != nil {
		return err
	}
	g, failing := errgroup.WithContext(ctx) // what fails starts no more commands, but those that run may end
	for _, m := range media {
		if !w.takeSlot(failing) {
			break
		}
		wanted, err := w.wanted(ctx, req.Run)
		if !wanted || err != nil {
			<-w.slots
			if err != nil {
				g.Go(func() error { return err })
			}
			break
		}
		g.Go(func() error {
			defer func() { <-w.slots }()
			return w.process(ctx, req, m)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func (w *Worker) takeSlot(ctx context.Context) bool {
	select {
	case w.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// wanted reports whether the run still is: not when it was cancelled or deleted.
func (w *Worker) wanted(ctx context.Context, run string) (bool, error) {
	r, _, err := w.runs.Get(ctx, run)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil && !r.Status.Terminal(), err
}

// reportsChunk is how many reports are asked for at a time.
const reportsChunk = 500

// pending lists the media of a run that have no final report. The list is held in memory, some hundred bytes for each:
// the commands may take days, and no read stays open that long.
func (w *Worker) pending(ctx context.Context, req event.RunRequested) ([]event.RunMedium, error) {
	all := req.Media
	if len(all) == 0 {
		for m, err := range store.ReadLines[event.RunMedium](ctx, w.documents, req.MediaObject) {
			if errors.Is(err, store.ErrNotFound) {
				return nil, bus.Poison(err)
			}
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
	}
	var left []event.RunMedium
	for i := 0; i < len(all); i += reportsChunk {
		chunk := all[i:min(i+reportsChunk, len(all))]
		reported, err := w.reported(ctx, req.Run, chunk)
		if err != nil {
			return nil, err
		}
		for _, m := range chunk {
			if !reported[w.reportSubject(req.Run, m.Video)] {
				left = append(left, m)
			}
		}
	}
	return left, nil
}

// reported tells, by subject, which media have a final report.
func (w *Worker) reported(ctx context.Context, run string, media []event.RunMedium) (map[string]bool, error) {
	subjects := make([]string, len(media))
	for i, m := range media {
		if !isToken(m.Video) {
			return nil, bus.Poison(fmt.Errorf("run %s: %q is not the id of a medium", run, m.Video))
		}
		subjects[i] = w.reportSubject(run, m.Video)
	}
	finals := make(map[string]bool)
	for s, err := range w.env.Bus.Last(ctx, topology.Reports, subjects...) {
		if err != nil {
			return nil, err
		}
		var r struct {
			State event.ReportState `json:"state"`
		}
		if err := json.Unmarshal(s.Data, &r); err != nil {
			continue // somebody else's rubbish: our report replaces it
		}
		finals[s.Subject] = r.State == event.Successful || r.State == event.Unsuccessful
	}
	return finals, nil
}

func (w *Worker) reportSubject(run, video string) string {
	return w.env.Bus.Subject("run", "report", run, video)
}

// isToken reports whether an id can stand in a subject as it is.
func isToken(id string) bool {
	return id != "" && !strings.ContainsFunc(id, func(r rune) bool {
		return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
}

// process has one medium processed and reported. An error means that it is not, through no fault of the medium.
func (w *Worker) process(ctx context.Context, req event.RunRequested, m event.RunMedium) error {
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		w.announce(ctx, req.Run, m.Video)
	}()
	defer func() { <-begun }()

	w.metrics.running.Inc()
	out, err := w.attempt(ctx, req, m)
	w.metrics.running.Dec()
	if err != nil {
		return err
	}
	r := event.Report{Run: req.Run, Video: m.Video, State: event.Successful, Result: out.result}
	if out.failure != "" {
		r.State, r.Result, r.Error = event.Unsuccessful, nil, out.failure
	}
	if err := w.report(ctx, r); err != nil {
		return err
	}
	w.metrics.media.WithLabelValues(string(r.State)).Inc()
	return nil
}

// attempt runs the command until it succeeds or its attempts are used up.
func (w *Worker) attempt(ctx context.Context, req event.RunRequested, m event.RunMedium) (outcome, error) {
	for n := 1; ; n++ {
		begin := time.Now()
		out, err := w.exec(ctx, req, m)
		if err != nil {
			return out, err
		}
		w.metrics.duration.Observe(time.Since(begin).Seconds())
		if out.failure == "" || n >= w.cfg.MaxAttempts {
			return out, nil
		}
		w.env.Log.Warn("command failed, will be started again", "run_id", req.Run, "video_id", m.Video, "attempt", n,
			"error", out.failure)
		if err := pause(ctx, bus.Backoff(n)); err != nil {
			return out, err
		}
	}
}

// announce says that a medium is being processed, unless something was said about it before. It is told to people; so
// nothing waits for it and nothing fails with it.
func (w *Worker) announce(ctx context.Context, run, video string) {
	data, err := json.Marshal(event.Report{Run: run, Video: video, State: event.Processing, ReportedAt: time.Now().UTC()})
	if err == nil {
		_, err = w.env.Bus.Publish(ctx, bus.Message{Subject: w.reportSubject(run, video), Data: data, Expect: bus.Absent()})
	}
	if err != nil && !errors.Is(err, bus.ErrConflict) && ctx.Err() == nil {
		w.env.Log.Warn("report that processing began", "run_id", run, "video_id", video, "error", err)
	}
}

// payloadMargin is left for the header of a report.
const payloadMargin = 4 << 10

// report stores a final report. A result can be the work of hours, so it is not thrown away because the broker is
// away: until ctx ends it is tried again.
func (w *Worker) report(ctx context.Context, r event.Report) error {
	r.ReportedAt = time.Now().UTC()
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	b := w.env.Bus
	if most := b.JetStream().Conn().MaxPayload() - payloadMargin; int64(len(data)) > most {
		r.State, r.Result = event.Unsuccessful, nil
		r.Error = fmt.Sprintf("the result of %d bytes is bigger than the broker takes (%d)", len(data), most)
		return w.report(ctx, r)
	}
	for n := 1; ; n++ {
		_, err := b.Publish(ctx, bus.Message{Subject: w.reportSubject(r.Run, r.Video), Data: data})
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		w.env.Log.Warn("report could not be stored, will be tried again", "run_id", r.Run, "video_id", r.Video, "error", err)
		if err := pause(ctx, bus.Backoff(n)); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
