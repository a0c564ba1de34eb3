// Package debouncer answers "when?": it merges arrivals into the window of their automation, closes windows that have
// been quiet for long enough, and asks for their jobs.
//
// What a window is and decides stands in shared/window. Here is what drives it: arrivals in batches, a clock, and a sweep
// for what was left half done. Any number of debouncers may run.
package debouncer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// Config of a debouncer.
type Config struct {
	// MaxWaitFactor times an automation's interval is the longest life of a window under steady arrivals. Default 6.
	MaxWaitFactor int
	// SweepInterval is how often it is looked for what a process that died has left half done. Default 30 s.
	SweepInterval time.Duration
}

func (c *Config) setDefaults() {
	if c.MaxWaitFactor == 0 {
		c.MaxWaitFactor = 6
	}
	if c.SweepInterval == 0 {
		c.SweepInterval = 30 * time.Second
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
	return errors.Join(errs...)
}

// Debouncer is a running debouncer.
type Debouncer struct {
	cfg     Config
	env     service.Env
	metrics metrics

	automations *automations
	windows     *window.Windows
	clock       *clock
	orphans     map[string]uint64 // first pending arrival of automations without a window, as the sweep before found it
}

// New returns a debouncer that has opened nothing yet.
func New(cfg Config, env service.Env) (*Debouncer, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("debouncer: %w", err)
	}
	env.Log = env.Log.With("component", "debouncer")
	d := &Debouncer{cfg: cfg, env: env, metrics: newMetrics(env.Metrics)}
	d.automations = &automations{byID: make(map[string]*store.Automation), ready: make(chan struct{})}
	d.clock = newClock(d)
	return d, nil
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
	g.Go(func() error { return d.clock.watch(ctx) })
	g.Go(func() error {
		if !d.automations.wait(ctx) {
			return nil
		}
		return d.env.Bus.ConsumeBatch(ctx, topology.DebouncerArrivals, bus.Options{Batch: 1000}, d.arrive)
	})
	g.Go(func() error {
		if d.automations.wait(ctx) && d.clock.wait(ctx) {
			d.clock.run(ctx)
		}
		return nil
	})
	g.Go(func() error {
		if d.automations.wait(ctx) && d.clock.wait(ctx) {
			d.sweep(ctx)
		}
		return nil
	})
	return g.Wait()
}

// Ready returns nil while the debouncer holds its consumers.
func (d *Debouncer) Ready() error {
	select {
	case <-d.clock.ready:
		return d.env.Bus.Consuming(topology.DebouncerArrivals)
	default:
		return errors.New("the windows are still being read")
	}
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
	if err := failpoint.Here("debouncer.delivered"); err != nil {
		return err
	}
	if err := d.windows.Merge(ctx, id, arrivals, d.config(a)); err != nil {
		return err
	}
	return failpoint.Here("debouncer.merged")
}

// config is what an automation says about its windows.
func (d *Debouncer) config(a *store.Automation) window.Config {
	return window.Config{Interval: a.Interval(), MaxWait: time.Duration(d.cfg.MaxWaitFactor) * a.Interval(), Rev: a.Rev}
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
