// Package importer answers "bring them in": it works off tasks, one object each, and follows jobs to their end.
//
// A task goes through these steps, each safe to repeat because every effect is asked for before and recorded after:
//
//	ask the ledger ─▶ read, sniff, probe ─▶ store in the library ─▶ commit in groups: ledger, file state, event ─▶ ack
//
// The commit point is the creation of the medium's ledger entry. Whatever a crash leaves behind before it (bytes in the
// library under a name that is a function of the object version) is overwritten by the next attempt.
//
// What somebody deleted is cleared away here as well, see deleter.
//
// One importer at a time is also the tracker, which folds file states into the progress of jobs and ends them.
package importer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/media"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Config of an importer.
type Config struct {
	// Workers is how many objects are worked on at a time in the live lane. Default 16.
	Workers int
	// BulkWorkers is the same for the bulk lane, so that a backfill never starves what somebody waits for. Default 8.
	BulkWorkers int
	// MaxAttempts is how often a task is tried whose failure may pass. Default 6.
	MaxAttempts int
	// StallTimeout is how long a transfer may stand still. Default 60 s.
	StallTimeout time.Duration
	// MaxSize is the largest object imported, in bytes; larger ones are skipped. 0: no limit.
	MaxSize int64
	// Bandwidth is what all workers together may read from sources. 0: no limit. What a storage copies by itself, and
	// blocks that two folders of one disk share, do not count.
	Bandwidth Bandwidth
}

func (c *Config) setDefaults() {
	if c.Workers == 0 {
		c.Workers = 16
	}
	if c.BulkWorkers == 0 {
		c.BulkWorkers = 8
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 6
	}
	if c.StallTimeout == 0 {
		c.StallTimeout = 60 * time.Second
	}
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	for name, n := range map[string]int{"workers": c.Workers, "bulk workers": c.BulkWorkers, "max attempts": c.MaxAttempts} {
		if n < 1 {
			errs = append(errs, fmt.Errorf("%s %d: must be at least 1", name, n))
		}
	}
	if c.StallTimeout < time.Second {
		errs = append(errs, fmt.Errorf("stall timeout %s: must be at least 1s", c.StallTimeout))
	}
	if c.Bandwidth < 0 {
		errs = append(errs, fmt.Errorf("bandwidth %d: must not be negative", c.Bandwidth))
	}
	if c.MaxSize < 0 {
		errs = append(errs, fmt.Errorf("max size %d: must not be negative", c.MaxSize))
	}
	return errors.Join(errs...)
}

// Sources opens the buckets of connectors.
type Sources interface {
	// Source returns an open bucket, shared and kept open by the callee, and the connector's record.
	Source(ctx context.Context, connector string) (bucket.Source, store.Connector, error)
	// Report puts on a connector's record that its storage refuses us, or that it works again (nil).
	Report(ctx context.Context, connector string, failure error) error
}

// Importer is a running importer.
type Importer struct {
	cfg     Config
	env     service.Env
	metrics metrics
	sources Sources
	library bucket.Library // nil: media are registered by reference
	prober  *media.Prober

	ledger   *store.Ledger
	jobs     *jobs
	circuits *circuits
	limit    *rate.Limiter // nil: no limit
	ahead    *bucket.Budget
	commits  chan *outcome
	inWork   atomic.Int64 // tasks that have no outcome yet
	gather   sync.Mutex   // one group at a time, or each would get half
	tracker  *tracker
	deleter  *deleter
}

// New returns an importer that has opened nothing yet. A nil library registers media by reference only.
func New(cfg Config, env service.Env, sources Sources, library bucket.Library, prober *media.Prober) (*Importer, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("importer: %w", err)
	}
	env.Log = env.Log.With("component", "importer")
	m := newMetrics(env.Metrics)
	im := &Importer{
		cfg: cfg, env: env, metrics: m, sources: sources, library: library, prober: prober,
		ledger:   store.NewLedger(env.Bus),
		jobs:     newJobs(),
		circuits: newCircuits(),
		limit:    cfg.Bandwidth.limiter(),
		ahead:    bucket.NewBudget(aheadParts),
		commits:  make(chan *outcome, groupSize), // gathers while a group is being committed
		tracker:  newTracker(env, m),
	}
	im.deleter = &deleter{im: im, lookAgain: lookAgain}
	return im, nil
}

// aheadParts is how much of large objects all workers together hold while it is on its way, in parts of 4 MiB. Beside
// that a worker holds 1 or 2 MiB, or 8 MiB while it writes to a bucket.
const aheadParts = 16

// committers is how many groups are committed at a time: while one waits for the disk the next can gather.
const committers = 2

// Run works until ctx ends and what was in hand is settled. It fails when the topology is missing.
func (im *Importer) Run(ctx context.Context) error {
	var err error
	if im.jobs.reg, err = store.Open[store.Job](ctx, im.env.Bus, topology.JobRecords); err != nil {
		return err
	}
	leases, err := store.OpenLeases(ctx, im.env.Bus, im.env.Instance)
	if err != nil {
		return err
	}
	if err := errors.Join(im.tracker.open(ctx), im.deleter.open(ctx, im.env.Bus)); err != nil {
		return err
	}

	// Committers outlive the workers, which wait for them.
	var commits errgroup.Group
	outliving := context.WithoutCancel(ctx)
	for range committers {
		commits.Go(func() error { im.commitLoop(outliving); return nil })
	}
	defer func() {
		close(im.commits)
		_ = commits.Wait()
	}()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return im.jobs.follow(ctx) })
	g.Go(func() error {
		failed := func(err error) { im.env.Log.Warn("tracking jobs, will begin anew", "error", err) }
		leases.Keep(ctx, "job-tracker", failed, im.tracker.run)
		return nil
	})
	g.Go(func() error {
		return im.env.Bus.Work(ctx, topology.ImporterDeletions, bus.Options{Workers: deleters}, im.deleter.handle)
	})
	for _, lane := range []struct {
		consumer string
		workers  int
	}{{topology.ImporterLive, im.cfg.Workers}, {topology.ImporterBulk, im.cfg.BulkWorkers}} {
		g.Go(func() error {
			return im.env.Bus.Work(ctx, lane.consumer, bus.Options{Workers: lane.workers}, im.handle)
		})
	}
	return g.Wait()
}

// Ready returns nil while the importer holds its consumers.
func (im *Importer) Ready() error {
	return im.env.Bus.Consuming(topology.ImporterLive, topology.ImporterBulk, topology.ImporterDeletions)
}
