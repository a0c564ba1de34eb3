// Package presettrigger answers "what next?": it makes a run of each job that imported something and has a preset,
// asks executors to carry it out, and folds what they report into the run's record.
//
//	job ended ──▶ media document ──▶ run record ──▶ run.requested ──▶ dispatched
//	                                                     │
//	                                        executors: run.report.<run>.<video>
//	                                                     ▼
//	                       pending ─▶ processing ─▶ completed | completed_with_failures | failed ──▶ event, settled
//
// A run that a person asks for (run.wanted) goes the same way from the media document on. The id of a run is a function
// of its job, or comes with what asks for it, so whatever is repeated here meets what is there already. Any number of
// preset triggers may run; one of them at a time tracks reports.
package presettrigger

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/control"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Config of a preset trigger.
type Config struct {
	// Concurrency is how many jobs are turned into runs at a time. Default 16.
	Concurrency int
	// SweepInterval is how often runs are looked for that were made but not handed to executors. Default 30 s.
	SweepInterval time.Duration
}

func (c *Config) setDefaults() {
	if c.Concurrency == 0 {
		c.Concurrency = 16
	}
	if c.SweepInterval == 0 {
		c.SweepInterval = 30 * time.Second
	}
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if c.Concurrency < 1 {
		errs = append(errs, fmt.Errorf("concurrency %d: must be at least 1", c.Concurrency))
	}
	if c.SweepInterval < time.Second {
		errs = append(errs, fmt.Errorf("sweep interval %s: must be at least 1s", c.SweepInterval))
	}
	return errors.Join(errs...)
}

// PresetTrigger is a running preset trigger.
type PresetTrigger struct {
	cfg     Config
	env     service.Env
	router  *control.Router
	metrics metrics

	jobs      *store.Register[store.Job]
	documents *store.Documents
	ledger    *store.Ledger
	runs      *Runs
}

// handleTimeout bounds making one run: a million media take a fraction of it.
const handleTimeout = 10 * time.Minute

// New returns a preset trigger that has opened nothing yet.
func New(cfg Config, env service.Env) (*PresetTrigger, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("preset trigger: %w", err)
	}
	env.Log = env.Log.With("component", "preset-trigger")
	router, err := env.Router()
	if err != nil {
		return nil, fmt.Errorf("preset trigger: %w", err)
	}
	p := &PresetTrigger{cfg: cfg, env: env, router: router, metrics: newMetrics(env.Metrics)}
	return p, errors.Join(
		router.Add(control.Handler{
			Name:        "job-events",
			Stream:      env.Bus.Stream(topology.Events),
			Consumer:    topology.PresetTriggerJobs,
			Concurrency: cfg.Concurrency,
			Timeout:     handleTimeout,
			Handle:      control.Handle(p.jobEnded),
		}),
		router.Add(control.Handler{
			Name:        "runs-wanted",
			Stream:      env.Bus.Stream(topology.Runs),
			Consumer:    topology.PresetTriggerWanted,
			Concurrency: cfg.Concurrency,
			Timeout:     handleTimeout,
			Handle:      control.Handle(p.runWanted),
		}),
	)
}

// Run works until ctx ends. It fails when the topology is missing.
func (p *PresetTrigger) Run(ctx context.Context) error {
	if err := p.open(ctx); err != nil {
		return err
	}
	leases, err := store.OpenLeases(ctx, p.env.Bus, p.env.Instance)
	if err != nil {
		return err
	}
	t := &tracker{runs: p.runs, sweepInterval: p.cfg.SweepInterval, log: p.env.Log, metrics: p.metrics}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.router.Run(ctx) })
	g.Go(func() error { t.run(ctx, leases); return nil })
	return g.Wait()
}

func (p *PresetTrigger) open(ctx context.Context) (err error) {
	b := p.env.Bus
	if p.jobs, err = store.Open[store.Job](ctx, b, topology.JobRecords); err != nil {
		return err
	}
	if p.documents, err = store.OpenDocuments(ctx, b); err != nil {
		return err
	}
	p.ledger = store.NewLedger(b)
	p.runs, err = OpenRuns(ctx, b)
	return err
}

// Ready returns nil while the preset trigger holds its consumer.
func (p *PresetTrigger) Ready() error { return p.router.Ready() }

// jobEnded handles the end of a job. The event only says that there is something to look at; the record decides.
func (p *PresetTrigger) jobEnded(ctx context.Context, e event.JobEvent, _ *control.Message) error {
	job, d, err := p.lookAt(ctx, e.Job, inHand)
	if err != nil {
		return err
	}
	if d != create {
		p.metrics.jobs.WithLabelValues(string(d)).Inc()
		return nil
	}
	run, err := p.runs.Create(ctx, Request{
		ID: event.RunOfJob(job.ID), Job: job.ID, Index: job.Index, Preset: job.Preset, Media: p.imported(ctx, job),
	})
	switch {
	case errors.Is(err, ErrNoMedia):
		p.metrics.jobs.WithLabelValues(string(skipEmpty)).Inc()
		return nil
	case errors.Is(err, ErrDeleted):
		return nil // by a person, who does not want it back
	case err != nil:
		return err
	}
	if err := p.runs.Dispatch(ctx, run); err != nil {
		return err
	}
	p.metrics.jobs.WithLabelValues(string(create)).Inc()
	return failpoint.Here("runs.dispatched")
}

const (
	// inHand is how long an event is kept in hand while the report of its job is being made: usually that is under
	// way, and a run should follow at once.
	inHand = 5 * time.Second
	// laterOn is when an event comes again whose job took longer, as one of a million files may.
	laterOn = 5 * time.Second
)

// lookAt reads a job until it can be decided what follows, for as long as most.
func (p *PresetTrigger) lookAt(ctx context.Context, id string, most time.Duration) (store.Job, decision, error) {
	for begin := time.Now(); ; {
		job, _, err := p.jobs.Get(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			return job, "", bus.Poison(fmt.Errorf("event about a job without a record: %w", err))
		}
		if err != nil {
			return job, "", err
		}
		d := decide(job)
		if d != wait {
			return job, d, nil
		}
		waited := time.Since(begin)
		if waited >= most {
			return job, d, bus.RetryAfter(laterOn, fmt.Errorf("job %s: its report is not there yet", id))
		}
		select {
		case <-time.After(patience(waited)):
		case <-ctx.Done():
			return job, d, ctx.Err()
		}
	}
}

// lookupChunk is how many ledger entries are asked for at a time.
const lookupChunk = 500

// imported yields what the job imported, in the order of its report. The report alone says what belongs to the run;
// the ledger adds where the bytes are. A medium that a person has deleted meanwhile stays in the list: that it cannot
// be read is for the executor to say, not for the list to hide.
func (p *PresetTrigger) imported(ctx context.Context, job store.Job) iter.Seq2[event.RunMedium, error] {
	return func(yield func(event.RunMedium, error) bool) {
		chunk, n := make([]event.File, 0, lookupChunk), 0
		flush := func() bool {
			media, err := p.join(ctx, job.Index, chunk)
			if err != nil {
				yield(event.RunMedium{}, err)
				return false
			}
			for _, m := range media {
				if !yield(m, nil) {
					return false
				}
			}
			chunk = chunk[:0]
			return true
		}
		for f, err := range store.ReadLines[event.File](ctx, p.documents, job.Report) {
			if err != nil {
				yield(event.RunMedium{}, err)
				return
			}
			if f.State != event.Imported {
				continue
			}
			chunk = append(chunk, f)
			n++
			if len(chunk) == lookupChunk && !flush() {
				return
			}
		}
		if flush() && n != job.Progress.Imported {
			// Both are made of the same file states, so somebody should know. The report has the details and is right.
			p.env.Log.Error("the report and the record of a job disagree about what it imported", "job_id", job.ID,
				"report", n, "record", job.Progress.Imported)
		}
	}
}

// join looks files up in the ledger, all in one request.
func (p *PresetTrigger) join(ctx context.Context, index string, files []event.File) ([]event.RunMedium, error) {
	ids := make([]event.MediumID, len(files))
	for i, f := range files {
		id, err := event.ParseMediumID(f.Video)
		if err != nil {
			return nil, bus.Poison(fmt.Errorf("report of job %s, %q: %w", f.Job, f.Path, err))
		}
		ids[i] = id
	}
	entries, err := p.ledger.Get(ctx, index, ids...)
	if err != nil {
		return nil, err
	}
	known := byID(entries)
	media := make([]event.RunMedium, len(files))
	for i, f := range files {
		media[i] = runMedium(f, known[ids[i]])
	}
	return media, nil
}

// runMedium is what an executor is told about an imported file; m is its ledger entry, zero if there is none.
func runMedium(f event.File, m event.Medium) event.RunMedium {
	if m.Path == "" {
		m = event.Medium{Path: f.Path, MediaType: f.MediaType, Seconds: f.Seconds, Size: f.Size}
	}
	return mediumOf(f.Video, m)
}
