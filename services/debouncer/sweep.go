package debouncer

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// orphanEvery is how many sweeps lie between looks for arrivals without a window: it costs a request per automation.
const orphanEvery = 10

// sweep looks now and then for what a process that died has left half done: a closing window without its job, a window
// under an old configuration, arrivals that no window knows. What it had to do is counted, and should stay at zero while
// nothing crashes.
func (d *Debouncer) sweep(ctx context.Context) {
	tick := time.NewTicker(d.cfg.SweepInterval)
	defer tick.Stop()
	d.clock.suspectAll() // whoever left something half done is gone by now, or finds it done
	for n := 0; ; n++ {
		d.sweepOnce(ctx, n%orphanEvery < 2) // two looks in a row: one to suspect, one to act
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// task is one thing the sweep found to do.
type task struct {
	automation string
	kind       string // label of the metric
	do         func(context.Context) error
}

func (d *Debouncer) sweepOnce(ctx context.Context, orphans bool) {
	start := time.Now()
	tasks := d.clock.halfDone()
	if orphans {
		tasks = append(tasks, d.findOrphans(ctx)...)
	}
	var g errgroup.Group
	g.SetLimit(mergers)
	for _, t := range tasks {
		g.Go(func() error {
			if err := t.do(ctx); err != nil {
				if ctx.Err() == nil {
					d.env.Log.Warn("sweep", "automation_id", t.automation, "kind", t.kind, "error", err)
				}
				return nil
			}
			d.metrics.swept.WithLabelValues(t.kind).Inc()
			d.env.Log.Info("the sweep had to act", "automation_id", t.automation, "kind", t.kind)
			return nil
		})
	}
	_ = g.Wait()
	d.metrics.sweep.Observe(time.Since(start).Seconds())
}

// suspectAll has the next sweep finish every closing that is there now.
func (c *clock) suspectAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.windows {
		w.stale = true
	}
}

// halfDone lists closings that somebody did not finish, and windows under an old configuration.
func (c *clock) halfDone() []task {
	c.mu.Lock()
	defer c.mu.Unlock()
	var tasks []task
	for id, w := range c.windows {
		if w.record.Closing != nil {
			if w.stale {
				tasks = append(tasks, task{id, sweptClosing, func(ctx context.Context) error { return c.d.windows.Finish(ctx, id) }})
			}
			w.stale = true
		}
		if w.record.Open == nil {
			continue
		}
		if a := c.d.automations.cached(id); a != nil && a.Rev != w.record.Open.ConfigRev {
			tasks = append(tasks, task{id, sweptConfig, func(ctx context.Context) error {
				return c.d.windows.Reconfigure(ctx, id, c.d.config(a))
			}})
		}
	}
	return tasks
}

// known reports whether an automation has a window.
func (c *clock) known(automation string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.windows[automation] != nil
}

// findOrphans lists automations whose arrivals belong to no window. While a job is being planned its arrivals look
// like that, so only those count that were there at the look before.
func (d *Debouncer) findOrphans(ctx context.Context) []task {
	state, err := d.env.Bus.State(ctx, topology.Arrivals)
	if err != nil || state.Msgs == 0 {
		return nil
	}
	suspects := make(map[string]uint64)
	var tasks []task
	for _, a := range d.automations.all() {
		if !a.Enabled || d.clock.known(a.ID) {
			continue
		}
		first, ok := d.firstArrival(ctx, a.ID)
		if !ok {
			continue
		}
		suspects[a.ID] = first.Sequence
		if d.orphans[a.ID] == first.Sequence {
			tasks = append(tasks, task{a.ID, sweptOrphan, func(ctx context.Context) error { return d.adopt(ctx, a) }})
		}
	}
	d.orphans = suspects
	return tasks
}

func (d *Debouncer) firstArrival(ctx context.Context, automation string) (bus.Stored, bool) {
	for m, err := range d.env.Bus.Scan(ctx, topology.Arrivals, d.env.Bus.Subject("arrival", automation, "*"), 0) {
		return m, err == nil
	}
	return bus.Stored{}, false
}

// adopt opens a window for all pending arrivals of an automation.
func (d *Debouncer) adopt(ctx context.Context, a *store.Automation) error {
	var arrivals []window.Arrival
	for m, err := range d.env.Bus.Scan(ctx, topology.Arrivals, d.env.Bus.Subject("arrival", a.ID, "*"), 0) {
		if err != nil {
			return err
		}
		arrivals = append(arrivals, window.Arrival{Seq: m.Sequence, Stored: m.Time})
	}
	return d.windows.Adopt(ctx, a.ID, arrivals, d.config(a))
}
