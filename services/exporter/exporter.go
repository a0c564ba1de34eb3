// Package exporter answers "where to?": it makes files of what runs and jobs have brought, for download or in the
// storage of a connector, when somebody asks and after each run of an index with an export automation.
//
//	POST /exports/… ──▶ export.requested ──▶ attempt counted ──▶ file written ──▶ record completed ──▶ event, settled
//	run completed ──▶ automation ──┘  ▲                               │
//	                                  └──── backoff ◀── it may pass ──┴──▶ record failed ──▶ event, settled
//
// The name of the file follows from the export, and its bytes from what is exported: whoever repeats an attempt that
// died writes the same again in the same place. The id of an automation's export follows from the automation and the
// run, so an event that comes twice exports once. Any number of exporters may run.
package exporter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/connector"
	"millrace/shared/control"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Config of an exporter.
type Config struct {
	// Workers is how many exports are made at a time. Default 2.
	Workers int
	// Backoff is the pause after the first attempt that failed; each further one is three times as long. Default 5 s,
	// with which an export gives up after some ten minutes.
	Backoff time.Duration
	// Timeout bounds one attempt. Default 2 hours.
	Timeout time.Duration
	// Keep is how long files for download are kept. Default 30 days.
	Keep time.Duration
	// SweepInterval is how often it is looked for runs held back by a pause that is over, if nobody has rung for them.
	// Default 1 minute.
	SweepInterval time.Duration
}

func (c *Config) setDefaults() {
	if c.Workers == 0 {
		c.Workers = 2
	}
	if c.Backoff == 0 {
		c.Backoff = 5 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Hour
	}
	if c.Keep == 0 {
		c.Keep = 30 * 24 * time.Hour
	}
	if c.SweepInterval == 0 {
		c.SweepInterval = time.Minute
	}
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(c.Workers < 1, "workers %d: must be at least 1", c.Workers)
	bad(c.Backoff <= 0, "backoff %s: must be positive", c.Backoff)
	bad(c.Timeout <= 0, "timeout %s: must be positive", c.Timeout)
	bad(c.Keep <= 0, "keep %s: must be positive", c.Keep)
	bad(c.SweepInterval <= 0, "sweep interval %s: must be positive", c.SweepInterval)
	return errors.Join(errs...)
}

// Destinations opens the storage of connectors for writing. A connector.Opener is one.
type Destinations interface {
	Writer(ctx context.Context, c store.Connector) (connector.Writer, error)
}

// Exporter is a running exporter.
type Exporter struct {
	cfg          Config
	env          service.Env
	router       *control.Router
	destinations Destinations
	metrics      metrics
	released     chan struct{} // signalled when the pause of an automation with runs held back is over

	exports     *Exports
	automations *store.Register[store.ExportAutomation]
	connectors  *store.Register[store.Connector]
	jobs        *store.Register[store.Job]
	runs        *store.Register[store.Run]
	documents   *store.Documents
	ledger      *store.Ledger
}

// New returns an exporter that has opened nothing yet.
func New(cfg Config, env service.Env, destinations Destinations) (*Exporter, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("exporter: %w", err)
	}
	env.Log = env.Log.With("component", "exporter")
	router, err := env.Router()
	if err != nil {
		return nil, fmt.Errorf("exporter: %w", err)
	}
	e := &Exporter{
		cfg: cfg, env: env, router: router, destinations: destinations, metrics: newMetrics(env.Metrics),
		released: make(chan struct{}, 1),
	}
	return e, router.Add(control.Handler{
		Name:        "run-events",
		Stream:      env.Bus.Stream(topology.Events),
		Consumer:    topology.ExporterRuns,
		Concurrency: 8,
		Handle:      control.Handle(e.runEnded),
	})
}

// Run works until ctx ends; what is being written then is given up and begun again by the next. It fails when the
// topology is missing.
func (e *Exporter) Run(ctx context.Context) error {
	if err := e.open(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.router.Run(ctx) })
	g.Go(func() error {
		return e.env.Bus.Work(ctx, topology.ExporterExports, bus.Options{Workers: e.cfg.Workers}, e.carryOut)
	})
	g.Go(func() error { e.watch(ctx); return nil })
	g.Go(func() error { e.sweep(ctx); return nil })
	return g.Wait()
}

func (e *Exporter) open(ctx context.Context) (err error) {
	b := e.env.Bus
	if e.exports, err = Open(ctx, b); err != nil {
		return err
	}
	if e.automations, err = store.Open[store.ExportAutomation](ctx, b, topology.ExportAutomations); err != nil {
		return err
	}
	if e.connectors, err = store.Open[store.Connector](ctx, b, topology.Connectors); err != nil {
		return err
	}
	if e.jobs, err = store.Open[store.Job](ctx, b, topology.JobRecords); err != nil {
		return err
	}
	if e.runs, err = store.Open[store.Run](ctx, b, topology.RunRecords); err != nil {
		return err
	}
	e.documents, err = store.OpenDocuments(ctx, b)
	e.ledger = store.NewLedger(b)
	return err
}

// Ready returns nil while the exporter holds its consumers.
func (e *Exporter) Ready() error {
	return errors.Join(e.router.Ready(), e.env.Bus.Consuming(topology.ExporterExports))
}

// expireInterval is how often it is looked for files to be removed.
const expireInterval = time.Hour

// sweep looks after what nobody rings for, until ctx ends.
func (e *Exporter) sweep(ctx context.Context) {
	tick := time.NewTicker(e.cfg.SweepInterval)
	defer tick.Stop()
	var expired time.Time
	for {
		err := e.catchUp(ctx)
		if time.Since(expired) >= min(expireInterval, e.cfg.Keep/10) {
			expired = time.Now()
			err = errors.Join(err, e.expire(ctx))
		}
		if err != nil && ctx.Err() == nil {
			e.env.Log.Warn("the sweep did not get through, and will be repeated", "error", err)
		}
		select {
		case <-tick.C:
		case <-e.released:
		case <-ctx.Done():
			return
		}
	}
}

// expire removes files for download whose time is over. The export stays, without a file.
func (e *Exporter) expire(ctx context.Context) error {
	now := time.Now().UTC()
	for x, err := range e.exports.records.All(ctx) {
		if err != nil {
			return err
		}
		if x.Document == "" || !x.Settled || now.Sub(x.EndedAt) < e.cfg.Keep {
			continue
		}
		if err := e.documents.Delete(ctx, x.Document); err != nil {
			return err
		}
		_, _, err := e.exports.records.Modify(ctx, x.ID, func(x *store.Export) error {
			if x.ID == "" {
				return store.ErrUnchanged
			}
			x.Document, x.URI, x.UpdatedAt = "", "", now
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
