// Package scanner answers "which files?": it turns notifications and listings into arrivals, and windows and one-time
// requests into planned jobs.
//
//	storage ──▶ sources ──▶ notification ──▶ notify ─┐
//	                                                 ├─▶ arrive ──▶ arrival
//	due.scan ──▶ scan: lists an automation's prefix ─┘
//
//	job.requested ──▶ plan: arrivals of a window, or a listing ──▶ file entries, tasks, a job record
//
// A notification is a hint and a listing is the truth, so both go through one function (arrive) that asks the ledger
// and the backlog and lets through what is new. Any number of scanners may run; only following the storage itself is
// for one at a time, and a second one would do no harm.
package scanner

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Config of a scanner. Zero values mean the defaults.
type Config struct {
	// ScanInterval is how often an automation's prefix is listed, to find what no notification told. Scans of many
	// automations are spread over it. Default 1 h.
	ScanInterval time.Duration
	// UnnotifiedScanInterval is the same for connectors without a source of notifications, where listing is all there
	// is. It is also the first pause after a listing that failed; pauses double up to ScanInterval. Default 1 min.
	UnnotifiedScanInterval time.Duration
	// SweepInterval is how often scans are looked for that nothing rang for. Default 30 s.
	SweepInterval time.Duration
	// ScanWorkers is how many automations are listed at a time. Default 4.
	ScanWorkers int
	// LiveWorkers and BulkWorkers are how many jobs are planned at a time: windows, whose small writes share fsyncs, and
	// one-time jobs, which list. Defaults 256 and 2.
	LiveWorkers, BulkWorkers int
	// ListRequests and ListRate are how many requests for a listing one connector gets from this process at a time, and per
	// second, for scans and one-time jobs together. Defaults 16 and 200.
	ListRequests int
	ListRate     float64
	// PubSubEndpoint is the host:port of a Pub/Sub emulator. Default: Google's own service.
	PubSubEndpoint string
	// Transport makes requests to where connectors say: to their queues. Default: any address may be asked.
	Transport http.RoundTripper
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		v    *time.Duration
		none time.Duration
	}{{&c.ScanInterval, time.Hour}, {&c.UnnotifiedScanInterval, time.Minute}, {&c.SweepInterval, 30 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.none
		}
	}
	for _, n := range []struct {
		v    *int
		none int
	}{{&c.ScanWorkers, 4}, {&c.LiveWorkers, 256}, {&c.BulkWorkers, 2}, {&c.ListRequests, 16}} {
		if *n.v == 0 {
			*n.v = n.none
		}
	}
	if c.ListRate == 0 {
		c.ListRate = 200
	}
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	for _, d := range []struct {
		name string
		v    time.Duration
	}{{"scan interval", c.ScanInterval}, {"unnotified scan interval", c.UnnotifiedScanInterval}, {"sweep interval", c.SweepInterval}} {
		if d.v < time.Second {
			errs = append(errs, fmt.Errorf("%s %s: must be at least 1s", d.name, d.v))
		}
	}
	for _, n := range []struct {
		name string
		v    int
	}{{"scan workers", c.ScanWorkers}, {"live workers", c.LiveWorkers}, {"bulk workers", c.BulkWorkers}, {"list requests", c.ListRequests}} {
		if n.v < 1 {
			errs = append(errs, fmt.Errorf("%s %d: must be at least 1", n.name, n.v))
		}
	}
	if !(c.ListRate > 0) {
		errs = append(errs, fmt.Errorf("list rate %v per second: must be more than 0", c.ListRate))
	}
	return errors.Join(errs...)
}

// Sources opens the storage behind connectors.
type Sources interface {
	// Source returns the bucket of a connector and its record. The bucket is shared and stays open. It fails with
	// store.ErrNotFound when there is no such connector, or with what opening said.
	Source(ctx context.Context, connectorID string) (bucket.Source, store.Connector, error)
	// Credentials opens the sealed credentials of a connector; nil when it has none.
	Credentials(c store.Connector) ([]byte, error)
}

// Scanner is a running scanner.
type Scanner struct {
	cfg     Config
	env     service.Env
	sources Sources
	metrics metrics
}

// New returns a scanner that has opened nothing yet.
func New(cfg Config, env service.Env, sources Sources) (*Scanner, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("scanner: %w", err)
	}
	env.Log = env.Log.With("component", "scanner")
	return &Scanner{cfg: cfg, env: env, sources: sources, metrics: newMetrics(env.Metrics)}, nil
}

// Run works until ctx ends and what was in hand is settled. It fails when the topology is missing.
func (s *Scanner) Run(ctx context.Context) error {
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.config.follow(ctx) })
	// Nothing is handled before all that is configured is known: what matches nothing is forgotten.
	whenKnown := func(do func(context.Context) error) {
		g.Go(func() error {
			if !p.config.wait(ctx) {
				return nil
			}
			return do(ctx)
		})
	}
	b := s.env.Bus
	whenKnown(func(ctx context.Context) error {
		return b.ConsumeBatch(ctx, topology.ScannerNotifications, bus.Options{}, p.notify.handle)
	})
	whenKnown(func(ctx context.Context) error {
		return b.Work(ctx, topology.ScannerDue, bus.Options{Workers: s.cfg.ScanWorkers}, p.scans.handle)
	})
	whenKnown(p.scans.sweep)
	whenKnown(func(ctx context.Context) error { p.follow.run(ctx); return nil })
	g.Go(func() error {
		return b.Work(ctx, topology.ScannerJobsLive, bus.Options{Workers: s.cfg.LiveWorkers}, p.plan.handle)
	})
	g.Go(func() error {
		return b.Work(ctx, topology.ScannerJobsBulk, bus.Options{Workers: s.cfg.BulkWorkers}, p.plan.handle)
	})
	return g.Wait()
}

// Ready returns nil while the scanner holds its consumers.
func (s *Scanner) Ready() error {
	return s.env.Bus.Consuming(topology.ScannerNotifications, topology.ScannerDue, topology.ScannerJobsLive, topology.ScannerJobsBulk)
}

// parts are what a scanner is made of.
type parts struct {
	config *config
	notify *notifications
	scans  *scans
	plan   *planner
	follow *followers
}

// open binds the registers and joins the parts.
func (s *Scanner) open(ctx context.Context) (*parts, error) {
	b := s.env.Bus
	connectors, err := store.Open[store.Connector](ctx, b, topology.Connectors)
	if err != nil {
		return nil, err
	}
	automations, err := store.Open[store.Automation](ctx, b, topology.Automations)
	if err != nil {
		return nil, err
	}
	scanRecords, err := store.Open[store.Scan](ctx, b, topology.Scans)
	if err != nil {
		return nil, err
	}
	jobs, err := store.Open[store.Job](ctx, b, topology.JobRecords)
	if err != nil {
		return nil, err
	}
	indexes, err := store.Open[store.Index](ctx, b, topology.Indexes)
	if err != nil {
		return nil, err
	}
	docs, err := store.OpenDocuments(ctx, b)
	if err != nil {
		return nil, err
	}
	leases, err := store.OpenLeases(ctx, b, s.env.Instance)
	if err != nil {
		return nil, err
	}
	log := s.env.Log
	c := newConfig(connectors, automations, jobs, log)
	a := &arrivals{bus: b, config: c, sources: s.sources, metrics: s.metrics}
	lim := newLimiters(s.cfg)
	sc := newScans(s.cfg, b, c, scanRecords, a, lim, s.sources, s.metrics, log)
	return &parts{
		config: c,
		notify: &notifications{bus: b, config: c, arrivals: a, sources: s.sources, metrics: s.metrics},
		scans:  sc,
		plan:   &planner{bus: b, jobs: jobs, indexes: indexes, ledger: store.NewLedger(b), docs: docs, limits: lim, sources: s.sources, metrics: s.metrics, log: log},
		follow: &followers{bus: b, config: c, scans: sc, leases: leases, sources: s.sources, pubsub: s.cfg.PubSubEndpoint, transport: s.cfg.Transport, metrics: s.metrics, log: log},
	}, nil
}
