package scanner

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/store"
	"millrace/shared/topology"
)

func newScans(cfg Config, b *bus.Bus, c *config, records *store.Register[store.Scan], a *arrivals, lim *limiters, sources Sources, m metrics, log *slog.Logger) *scans {
	return &scans{
		cfg: cfg, bus: b, config: c, records: records, ledger: store.NewLedger(b), arrivals: a, limits: lim, sources: sources,
		metrics: m, log: log, markEvery: markEvery, standing: make(map[string]timer),
	}
}

const (
	// overdue is how late a ring may be before the sweep takes it for lost.
	overdue = time.Minute
	// fewOverdue is how many of those the sweep calls up while others wait to be scanned: then rings are late because
	// there is much to do, and not lost.
	fewOverdue = 100
	// sweepers is how many records are written at a time; the writes share fsyncs.
	sweepers = 64
)

// sweep starts the row of timers of automations that were switched on, ends that of those switched off, and makes up
// for rings that did not come. Between changes it looks at what watches have brought, and asks nobody.
func (s *scans) sweep(ctx context.Context) error {
	changed, quiet := s.config.onChange()
	defer quiet()
	known := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.records.Watch(ctx, func() { close(known) }, s.see) })
	g.Go(func() error {
		select {
		case <-known:
		case <-ctx.Done():
			return nil
		}
		tick := time.NewTicker(s.cfg.SweepInterval)
		defer tick.Stop()
		for {
			s.look(ctx)
			select {
			case <-tick.C:
			case <-changed:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

func (s *scans) see(c store.Change[store.Scan]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Value == nil {
		delete(s.standing, c.Key)
		return
	}
	s.standing[c.Key] = timer{epoch: c.Value.Epoch, next: c.Value.NextAt}
}

// look does one sweep. What fails is found again by the next.
func (s *scans) look(ctx context.Context) {
	fresh, late, off := s.find(time.Now())
	if len(late) > fewOverdue && s.busy(ctx) {
		late = late[:fewOverdue]
	}
	var g errgroup.Group
	g.SetLimit(sweepers)
	attempt := func(what, id string, do func() error) {
		g.Go(func() error {
			if err := do(); err != nil && ctx.Err() == nil {
				s.log.Warn("sweep", "step", what, "automation", id, "error", err)
			}
			return nil
		})
	}
	// What is there already and was not wanted before is found by listing.
	for id, a := range s.config.takeReselected() {
		attempt("scan of another selection", id, func() error {
			return s.ring(ctx, id, scanCatchUp, fmt.Sprintf("%s-%d", id, a.Rev))
		})
	}
	for _, a := range fresh {
		attempt("first scan", a.ID, func() error { return s.first(ctx, a) })
	}
	for _, id := range late {
		attempt("overdue scan", id, func() error { return s.recall(ctx, id) })
	}
	for _, id := range off {
		attempt("no more scans", id, func() error { return s.forget(ctx, id) })
	}
	_ = g.Wait()
}

// find compares what is configured with what stands.
func (s *scans) find(now time.Time) (fresh []*automation, late, off []string) {
	enabled := s.config.enabled()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range enabled {
		switch t := s.standing[a.ID]; {
		case t.epoch == "":
			fresh = append(fresh, a)
		case now.Sub(t.next) > overdue:
			late = append(late, a.ID)
		}
	}
	for id, t := range s.standing {
		if t.epoch != "" && !s.config.isEnabled(id) {
			off = append(off, id)
		}
	}
	return fresh, late, off
}

// busy reports whether rings wait to be served.
func (s *scans) busy(ctx context.Context) bool {
	cons, err := s.bus.Bind(ctx, s.bus.JetStream(), topology.ScannerDue)
	return err == nil && cons.CachedInfo().NumPending > 0
}

// first starts the row of timers of an automation with a scan at once.
func (s *scans) first(ctx context.Context, a *automation) error {
	rec, created, err := s.record(ctx, a, true)
	if err != nil {
		return err
	}
	s.see(store.Change[store.Scan]{Key: a.ID, Value: &rec}) // the watch will say so too, later
	if !created {
		return nil // another scanner was first
	}
	return s.ring(ctx, a.ID, rec.Epoch, rec.Epoch)
}

// recall makes up for a ring that did not come. A new epoch keeps the old one from ringing twice.
func (s *scans) recall(ctx context.Context, id string) error {
	epoch := newEpoch()
	rec, _, err := s.records.Modify(ctx, id, func(r *store.Scan) error {
		if r.Epoch == "" || time.Since(r.NextAt) <= overdue {
			return store.ErrUnchanged
		}
		r.Epoch, r.NextAt = epoch, time.Now().UTC()
		return nil
	})
	if err != nil || rec.Epoch != epoch {
		return err
	}
	s.metrics.swept.Inc()
	s.log.Warn("scan was overdue", "automation", id)
	return s.ring(ctx, id, epoch, epoch)
}
