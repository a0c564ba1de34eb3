package scanner

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/store"
)

// Epochs of rings that stand outside of an automation's row of timers. Whoever wants a scan publishes an event.Timer
// with one of them to due.scan.<automation>.
const (
	scanNow     = "now"      // somebody asks; what it finds unannounced is drift
	scanCatchUp = "catch-up" // we know that we missed something
)

// announceTime is how long a notification may be on its way. What is younger than that is no drift yet.
const announceTime = time.Minute

// touchEvery and touchFor keep the sweep away from a scan that takes long: it moves its record's time ahead.
const (
	touchEvery = 30 * time.Second
	touchFor   = 2 * time.Minute
)

// scans lists automations on a schedule, for what no notification told. Each enabled automation has a record with the
// epoch of its one standing timer; the scan that this timer starts sets the next. Rings under another epoch are late or
// doubled, and ignored.
type scans struct {
	cfg      Config
	bus      *bus.Bus
	config   *config
	records  *store.Register[store.Scan]
	ledger   *store.Ledger
	arrivals *arrivals
	sources  Sources
	metrics  metrics
	log      *slog.Logger

	mu       sync.Mutex
	standing map[string]timer // by automation, fresh by a watch
}

// timer is the standing timer of one automation.
type timer struct {
	epoch string
	next  time.Time
}

// handle is the handler of the due consumer.
func (s *scans) handle(ctx context.Context, d *bus.Delivery) error {
	var ring event.Timer
	if err := d.Decode(&ring); err != nil {
		return err
	}
	id := d.Tokens()[2]
	a, err := s.config.freshAutomation(ctx, id)
	if err != nil {
		return err
	}
	if a == nil || !a.Enabled {
		return s.forget(ctx, id)
	}
	asked := ring.Epoch == scanNow || ring.Epoch == scanCatchUp
	rec, _, err := s.record(ctx, a, asked)
	if err != nil {
		return err
	}
	// A standing timer whose time has come is served by any ring: its own may have been replaced by the one at hand.
	due := rec.Epoch != "" && rec.Epoch == ring.Epoch || asked && !rec.NextAt.After(time.Now())
	if !due && !asked {
		return nil
	}
	return s.scan(ctx, a, rec, due, ring.Epoch == scanCatchUp)
}

// record returns the automation's record, the zero record if there is none and none shall be made.
func (s *scans) record(ctx context.Context, a *automation, create bool) (rec store.Scan, created bool, err error) {
	rec, _, err = s.records.Modify(ctx, a.ID, func(r *store.Scan) error {
		if created = create && r.Epoch == ""; !created {
			return store.ErrUnchanged
		}
		r.Automation, r.Epoch, r.NextAt = a.ID, newEpoch(), time.Now().UTC()
		r.Baseline = !a.IncludeExisting
		return nil
	})
	return rec, created, err
}

func newEpoch() string { return event.NewID("s") }

// forget ends the row of timers of an automation that is off or gone, so that enabling it scans at once. It asks the
// register, as an old message must not end a new row.
func (s *scans) forget(ctx context.Context, id string) error {
	a, err := s.config.freshAutomation(ctx, id)
	if err != nil || a != nil && a.Enabled {
		return err
	}
	if a == nil {
		return s.records.Delete(ctx, id)
	}
	_, _, err = s.records.Modify(ctx, id, func(r *store.Scan) error {
		if r.Epoch == "" {
			return store.ErrUnchanged
		}
		r.Epoch, r.NextAt, r.Scans, r.Baseline = "", time.Time{}, 0, false
		return nil
	})
	return err
}

// tally is what one scan counted.
type tally struct {
	notified bool // by the connector
	listed   int
	found    int // arrivals that the ledger had never met
	drift    int // of these, what should have been announced
	refused  string
	failure  error // of the listing
}

// scan lists an automation and puts on record what that found. due: it serves the standing timer, and sets the next.
//
// The timer is set before the record names it: a crash between the two leaves a timer that nobody knows, and its ring is
// ignored; the other way round nothing would ring.
func (s *scans) scan(ctx context.Context, a *automation, rec store.Scan, due, catchUp bool) error {
	start := time.Now()
	t, err := s.list(ctx, a, rec, due)
	if err != nil {
		return err
	}
	if t.failure != nil {
		s.metrics.scans.WithLabelValues(failed).Inc()
		s.log.Warn("automation cannot be listed", "automation", a.ID, "connector", a.Connector, "error", t.failure)
	} else {
		s.metrics.scans.WithLabelValues(done).Inc()
		s.metrics.scanTime.Observe(time.Since(start).Seconds())
	}
	if !t.notified || catchUp || rec.Scans == 0 {
		t.drift = 0 // it was never to be announced, or we know why it was not
	}
	s.metrics.drift.Add(float64(t.drift))

	now := time.Now().UTC()
	next := timer{epoch: newEpoch(), next: now.Add(s.cfg.pause(rec, t.notified, t.failure != nil, rand.Float64()))}
	if err := failpoint.Here("scan.listed"); err != nil {
		return err
	}
	if due {
		if err := s.arm(ctx, a.ID, next); err != nil {
			return err
		}
		if err := failpoint.Here("scan.armed"); err != nil {
			return err
		}
	}
	_, _, err = s.records.Modify(ctx, a.ID, func(r *store.Scan) error {
		if r.Epoch == "" {
			return store.ErrUnchanged // switched off meanwhile
		}
		note(r, t, now)
		if due && r.Epoch == rec.Epoch {
			r.Epoch, r.NextAt = next.epoch, next.next
		}
		return nil
	})
	if err != nil || t.drift == 0 {
		return err
	}
	return s.announce(ctx, a, t, now)
}

// note puts a tally on record.
func note(r *store.Scan, t tally, now time.Time) {
	r.LastAt = now
	r.Drift += t.drift
	if t.failure != nil {
		r.Error = t.failure.Error()
		return
	}
	r.Listed, r.Found, r.Error = t.listed, t.found, t.refused
	r.Scans++
	r.Baseline = false
}

func (s *scans) announce(ctx context.Context, a *automation, t tally, at time.Time) error {
	e, err := bus.NewEvent(event.ScanDrift, a.Index, a.ID, at, event.DriftEvent{Automation: a.ID, Found: t.drift, Listed: t.listed})
	if err != nil {
		return err
	}
	e.ID = event.IDOf(event.ScanDrift, a.Index, a.ID+" "+at.Format(time.RFC3339Nano)) // it happens again and again
	return s.bus.PublishEvent(ctx, e)
}

// pause is how long to wait until the next scan, given the record before this one; spread is from [0, 1).
//
// Scans of many automations begin together when they are switched on or the process starts. The second of each is set
// anywhere in the interval, so that they do not stay together. A listing that failed is tried again soon, then less and
// less often.
func (c Config) pause(rec store.Scan, notified, failed bool, spread float64) time.Duration {
	interval := c.ScanInterval
	if !notified {
		interval = min(interval, c.UnnotifiedScanInterval)
	}
	switch {
	case failed:
		pause := min(interval, c.UnnotifiedScanInterval)
		if rec.Error != "" {
			pause = max(pause, 2*rec.NextAt.Sub(rec.LastAt))
		}
		return min(pause, max(interval, c.ScanInterval))
	case rec.Scans == 0:
		return time.Duration((0.1 + 0.9*spread) * float64(interval))
	}
	return time.Duration((0.9 + 0.1*spread) * float64(interval))
}

func (s *scans) arm(ctx context.Context, automation string, t timer) error {
	body, err := json.Marshal(event.Timer{Automation: automation, Epoch: t.epoch})
	if err != nil {
		return err
	}
	// To the second, rounded up: schedules have no finer resolution. An epoch is armed once: a schedule that is replaced
	// while it is due can be lost.
	at := t.next.Add(time.Second - 1).Truncate(time.Second).UTC()
	_, err = s.bus.Publish(ctx, bus.Message{
		Subject: s.bus.Subject("timer", "scan", automation, t.epoch),
		Header: nats.Header{
			jetstream.ScheduleHeader:       {"@at " + at.Format(time.RFC3339)},
			jetstream.ScheduleTargetHeader: {s.bus.Subject("due", "scan", automation)},
		},
		Data: body,
	})
	if err != nil {
		return fmt.Errorf("arm the next scan of %s: %w", automation, err)
	}
	return nil
}

// ring asks for a scan at once. id, if not empty, lets the broker drop what other scanners ask for the same reason.
func (s *scans) ring(ctx context.Context, automation, epoch, id string) error {
	body, err := json.Marshal(event.Timer{Automation: automation, Epoch: epoch})
	if err != nil {
		return err
	}
	_, err = s.bus.Publish(ctx, bus.Message{Subject: s.bus.Subject("due", "scan", automation), Data: body, ID: id})
	return err
}

// list streams the listing through the arrival function. An error is the broker's; the storage's is in the tally.
func (s *scans) list(ctx context.Context, a *automation, rec store.Scan, due bool) (tally, error) {
	src, conn, err := s.sources.Source(ctx, a.Connector)
	t := tally{notified: conn.Notified()}
	if err == nil {
		err = a.broken
	}
	if err != nil {
		t.failure = err
		return t, ctx.Err()
	}
	touched := time.Now()
	for page, err := range list(ctx, src, a.Connector, a.selects, "") {
		if ctx.Err() != nil {
			return t, ctx.Err()
		}
		if err != nil {
			t.failure = err
			return t, nil
		}
		if err := s.take(ctx, a, conn, page, rec.Baseline, &t); err != nil {
			return t, err
		}
		if due && time.Since(touched) > touchEvery {
			touched = time.Now()
			if err := s.touch(ctx, a.ID, rec.Epoch); err != nil {
				return t, err
			}
		}
	}
	return t, nil
}

// take passes one page on.
func (s *scans) take(ctx context.Context, a *automation, conn store.Connector, pg page, baseline bool, t *tally) error {
	var candidates, present []candidate
	for _, f := range pg.files {
		if f.refused != "" {
			s.metrics.refused.Inc()
			t.refused = fmt.Sprintf("%q: %s", f.Path, f.refused)
			s.log.Warn("object cannot be imported", "automation", a.ID, "path", f.Path, "reason", f.refused)
			continue
		}
		t.listed++
		c := candidate{
			automation: a, connector: a.Connector, object: f.Object, exact: conn.Provider == "gcs",
			subject: s.bus.Subject("arrival", a.ID, event.ObjectHash(a.Connector, f.Path)),
		}
		// What came after the automation was switched on is no part of what was there, whenever it is listed.
		if baseline && (a.UpdatedAt.IsZero() || !f.ModTime.After(a.UpdatedAt)) {
			present = append(present, c)
		} else {
			candidates = append(candidates, c)
		}
	}
	s.metrics.scanned.Add(float64(len(pg.files)))
	if err := s.arrivals.baseline(ctx, s.ledger, present); err != nil {
		return err
	}
	latest := time.Now().Add(-announceTime)
	for i, answer := range s.arrivals.arrive(ctx, candidates, event.ByScan) {
		if answer.err != nil {
			return answer.err
		}
		if answer.verdict != news || !answer.unseen {
			continue
		}
		t.found++
		if candidates[i].object.ModTime.Before(latest) {
			t.drift++
		}
	}
	return nil
}

func (s *scans) touch(ctx context.Context, automation, epoch string) error {
	_, _, err := s.records.Modify(ctx, automation, func(r *store.Scan) error {
		if r.Epoch != epoch {
			return store.ErrUnchanged
		}
		r.NextAt = time.Now().Add(touchFor).UTC()
		return nil
	})
	return err
}
