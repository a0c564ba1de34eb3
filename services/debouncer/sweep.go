package debouncer

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// sweep finds what no alarm rang for. Alarms are lost when a store was full as they rang, when two writers race, when a
// process dies between opening a window and arming its alarm; all of it costs lateness of at most one sweep. What the
// sweep had to do is counted: it measures dead alarms.
type sweep struct {
	d *Debouncer

	mu      sync.Mutex
	windows map[string]glance // by automation; idle ones are left out

	orphans map[string]uint64 // first pending arrival of automations without a window, as the last look found it
}

// glance is what the sweep remembers of a record.
type glance struct {
	epoch    string
	deadline time.Time
	rev      int
	held     bool
	closing  string // epoch
	stale    bool   // the closing was there at the last sweep too
}

// grace is how late an alarm may be before the sweep takes over.
const grace = 2 * time.Second

// orphanEvery is how many sweeps lie between looks for arrivals without a window: it costs a request per automation.
const orphanEvery = 10

func newSweep(d *Debouncer) *sweep {
	return &sweep{d: d, windows: make(map[string]glance), orphans: make(map[string]uint64)}
}

func (s *sweep) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	known := make(chan struct{})
	g.Go(func() error { return s.d.windows.Watch(ctx, func() { close(known) }, s.see) })
	g.Go(func() error {
		select {
		case <-known:
		case <-ctx.Done():
			return nil
		}
		if !s.d.automations.wait(ctx) {
			return nil
		}
		tick := time.NewTicker(s.d.cfg.SweepInterval)
		defer tick.Stop()
		for n := 0; ; n++ {
			s.once(ctx, n%orphanEvery < 2) // two looks in a row: one to suspect, one to act
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

func (s *sweep) see(c store.Change[window.Record]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := c.Value
	if r == nil || (r.Open == nil && r.Closing == nil) {
		delete(s.windows, c.Key)
		return
	}
	g := glance{held: r.Held}
	if r.Open != nil {
		g.epoch, g.deadline, g.rev = r.Open.Epoch, r.Open.Deadline, r.Open.ConfigRev
	}
	if r.Closing != nil {
		g.closing = r.Closing.Epoch
		if old := s.windows[c.Key]; old.closing == g.closing {
			g.stale = old.stale
		}
	}
	s.windows[c.Key] = g
}

// task is one thing the sweep found to do.
type task struct {
	automation string
	kind       string // label of the metric
	do         func(context.Context) error
}

func (s *sweep) once(ctx context.Context, orphans bool) {
	start := time.Now()
	tasks := s.due(start)
	if orphans {
		tasks = append(tasks, s.findOrphans(ctx)...)
	}
	var g errgroup.Group
	g.SetLimit(mergers)
	for _, t := range tasks {
		g.Go(func() error {
			if err := t.do(ctx); err != nil {
				if ctx.Err() == nil {
					s.d.env.Log.Warn("sweep", "automation_id", t.automation, "kind", t.kind, "error", err)
				}
				return nil
			}
			s.d.metrics.swept.WithLabelValues(t.kind).Inc()
			s.d.env.Log.Info("the sweep had to act", "automation_id", t.automation, "kind", t.kind)
			return nil
		})
	}
	_ = g.Wait()
	s.d.metrics.sweep.Observe(time.Since(start).Seconds())
}

// due lists overdue windows, closings that somebody did not finish, and windows under an old configuration.
func (s *sweep) due(now time.Time) []task {
	s.mu.Lock()
	defer s.mu.Unlock()
	var tasks []task
	for id, g := range s.windows {
		if g.closing != "" {
			if g.stale {
				tasks = append(tasks, task{id, sweptClosing, func(ctx context.Context) error { return s.d.windows.Finish(ctx, id) }})
			}
			g.stale = true
			s.windows[id] = g
		}
		if g.epoch == "" {
			continue
		}
		if a := s.d.automations.cached(id); a != nil && a.Rev != g.rev {
			tasks = append(tasks, task{id, sweptConfig, func(ctx context.Context) error {
				return s.d.windows.Reconfigure(ctx, id, s.d.config(a))
			}})
			continue
		}
		if !g.held && now.Sub(g.deadline) > grace {
			tasks = append(tasks, task{id, sweptOverdue, func(ctx context.Context) error {
				_, err := s.d.close(ctx, id, g.epoch)
				return err
			}})
		}
	}
	return tasks
}

// findOrphans lists automations whose arrivals belong to no window. While a job is being planned its arrivals look
// like that, so only those count that were there at the look before.
func (s *sweep) findOrphans(ctx context.Context) []task {
	state, err := s.d.env.Bus.State(ctx, topology.Arrivals)
	if err != nil || state.Msgs == 0 {
		return nil
	}
	suspects := make(map[string]uint64)
	var tasks []task
	for _, a := range s.d.automations.all() {
		s.mu.Lock()
		_, busy := s.windows[a.ID]
		s.mu.Unlock()
		if busy || !a.Enabled {
			continue
		}
		first, ok := s.firstArrival(ctx, a.ID)
		if !ok {
			continue
		}
		suspects[a.ID] = first.Sequence
		if s.orphans[a.ID] == first.Sequence {
			tasks = append(tasks, task{a.ID, sweptOrphan, func(ctx context.Context) error { return s.adopt(ctx, a) }})
		}
	}
	s.orphans = suspects
	return tasks
}

func (s *sweep) firstArrival(ctx context.Context, automation string) (bus.Stored, bool) {
	for m, err := range s.d.env.Bus.Scan(ctx, topology.Arrivals, s.d.env.Bus.Subject("arrival", automation, "*"), 0) {
		return m, err == nil
	}
	return bus.Stored{}, false
}

// adopt opens a window for all pending arrivals of an automation.
func (s *sweep) adopt(ctx context.Context, a *store.Automation) error {
	var arrivals []window.Arrival
	for m, err := range s.d.env.Bus.Scan(ctx, topology.Arrivals, s.d.env.Bus.Subject("arrival", a.ID, "*"), 0) {
		if err != nil {
			return err
		}
		arrivals = append(arrivals, window.Arrival{Seq: m.Sequence, Stored: m.Time})
	}
	return s.d.windows.Merge(ctx, a.ID, arrivals, s.d.config(a))
}
