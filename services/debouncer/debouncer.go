// Package debouncer answers "when?": it merges arrivals into the window of their automation, closes windows that have
// been quiet for long enough, and asks for their jobs.
//
// What a window is and decides stands in shared/window. Here is what drives it: arrivals in batches, the alarm clock,
// and a sweep for what no alarm rang for. Any number of debouncers may run.
package debouncer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/control"
	"millrace/shared/event"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// Config of a debouncer.
type Config struct {
	// MaxWaitFactor times an automation's interval is the longest life of a window under steady arrivals. Default 6.
	MaxWaitFactor int
	// SweepInterval is how often windows are looked at that no alarm rang for. Default 30 s.
	SweepInterval time.Duration
	// Closers is how many windows are closed at a time; their writes share fsyncs. Default 64: each costs
	// an idle process a pull of its own.
	Closers int
}

func (c *Config) setDefaults() {
	if c.MaxWaitFactor == 0 {
		c.MaxWaitFactor = 6
	}
	if c.SweepInterval == 0 {
		c.SweepInterval = 30 * time.Second
	}
	if c.Closers == 0 {
		c.Closers = 64
	}
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if c.MaxWaitFactor < 1 {
		errs = append(errs, fmt.Errorf("max wait factor %d: must be at least 1", c.MaxWaitFactor))
	}
	if c.SweepInterval < time.Second {
		errs = append(errs, fmt.Errorf("sweep interval %s: must be at least 1s", c.SweepInterval))
	}
	if c.Closers < 1 {
		errs = append(errs, fmt.Errorf("closers %d: must be at least 1", c.Closers))
	}
	return errors.Join(errs...)
}

// Debouncer is a running debouncer.
type Debouncer struct {
	cfg     Config
	env     service.Env
	router  *control.Router
	metrics metrics

	automations *automations
	windows     *window.Windows
	sweep       *sweep
}

// New returns a debouncer that has opened nothing yet.
func New(cfg Config, env service.Env) (*Debouncer, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("debouncer: %w", err)
	}
	env.Log = env.Log.With("component", "debouncer")
	router, err := env.Router()
	if err != nil {
		return nil, fmt.Errorf("debouncer: %w", err)
	}
	d := &Debouncer{cfg: cfg, env: env, router: router, metrics: newMetrics(env.Metrics)}
	d.automations = &automations{byID: make(map[string]*store.Automation), ready: make(chan struct{})}
	d.sweep = newSweep(d)
	return d, router.Add(control.Handler{
		Name:        "due-windows",
		Stream:      env.Bus.Stream(topology.Timers),
		Consumer:    topology.DebouncerDue,
		Concurrency: cfg.Closers,
		Handle:      control.Handle(d.ring),
	})
}

// Run works until ctx ends. It fails when the topology is missing.
func (d *Debouncer) Run(ctx context.Context) error {
	var err error
	if d.windows, err = window.Bind(ctx, d.env.Bus); err != nil {
		return err
	}
	if d.automations.reg, err = store.Open[store.Automation](ctx, d.env.Bus, topology.Automations); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.automations.follow(ctx) })
	g.Go(func() error { return d.sweep.run(ctx) })
	g.Go(func() error {
		if !d.automations.wait(ctx) {
			return nil
		}
		return d.env.Bus.ConsumeBatch(ctx, topology.DebouncerArrivals, bus.Options{Batch: 1000}, d.arrive)
	})
	g.Go(func() error {
		if !d.automations.wait(ctx) {
			return nil
		}
		return d.router.Run(ctx)
	})
	return g.Wait()
}

// Ready returns nil while the debouncer holds its consumers.
func (d *Debouncer) Ready() error {
	return errors.Join(d.env.Bus.Consuming(topology.DebouncerArrivals), d.router.Ready())
}

// mergers is how many windows take arrivals at a time; their writes share fsyncs.
const mergers = 64

// arrive merges a batch of arrivals. They are stored already, so nothing can be lost from here on: whatever fails is
// delivered again, and merging again changes nothing.
func (d *Debouncer) arrive(ctx context.Context, batch []*bus.Delivery) []error {
	errs := make([]error, len(batch))
	type share struct {
		arrivals []window.Arrival
		from     []int // places in batch
	}
	byAutomation := make(map[string]*share)
	for i, m := range batch {
		var a struct {
			Automation string `json:"automation_id"`
			Size       int64  `json:"size"`
		}
		if errs[i] = m.Decode(&a); errs[i] != nil {
			continue
		}
		s := byAutomation[a.Automation]
		if s == nil {
			s = new(share)
			byAutomation[a.Automation] = s
		}
		s.arrivals = append(s.arrivals, window.Arrival{Seq: m.Sequence, Stored: m.Stored, Size: a.Size})
		s.from = append(s.from, i)
	}
	var g errgroup.Group
	g.SetLimit(mergers)
	for id, s := range byAutomation {
		g.Go(func() error {
			err := d.merge(ctx, id, s.arrivals)
			for _, i := range s.from {
				errs[i] = err
			}
			return nil
		})
	}
	_ = g.Wait()
	d.metrics.arrivals.Add(float64(len(batch)))
	return errs
}

func (d *Debouncer) merge(ctx context.Context, id string, arrivals []window.Arrival) error {
	a, err := d.automations.get(ctx, id)
	if err != nil {
		return err
	}
	if a == nil || !a.Enabled {
		return nil // switched off after the arrival was recorded: enabling scans
	}
	return d.windows.Merge(ctx, id, arrivals, d.config(a))
}

// config is what an automation says about its windows.
func (d *Debouncer) config(a *store.Automation) window.Config {
	return window.Config{Interval: a.Interval(), MaxWait: time.Duration(d.cfg.MaxWaitFactor) * a.Interval(), Rev: a.Rev}
}

// ring handles the ring of an alarm. It is late by nature and may come twice or for a window long closed; the record
// decides.
func (d *Debouncer) ring(ctx context.Context, t event.Timer, _ *control.Message) error {
	did, err := d.close(ctx, t.Automation, t.Epoch)
	if err == nil && did == window.Close {
		d.metrics.closed.Inc()
	}
	return err
}

// close closes the window of epoch if it is due.
func (d *Debouncer) close(ctx context.Context, automation, epoch string) (window.Action, error) {
	a, err := d.automations.get(ctx, automation)
	if err != nil {
		return window.Ignore, err
	}
	if a == nil || !a.Enabled {
		return window.Ignore, d.windows.Drop(ctx, automation)
	}
	return d.windows.Ring(ctx, automation, epoch, func() (event.JobRequested, error) { return request(a), nil })
}

// request is the job that a window of a becomes: what is configured now.
func request(a *store.Automation) event.JobRequested {
	preset := a.Preset
	if string(preset) == "null" {
		preset = nil
	}
	return event.JobRequested{
		Lane:      event.Live,
		Index:     a.Index,
		Connector: a.Connector,
		Prefix:    a.Prefix,
		Pattern:   a.Pattern,
		Recursive: a.Recursive,
		Mode:      event.NewOnly, // whatever the connector says, or each window would import everything again
		Preset:    preset,
	}
}
