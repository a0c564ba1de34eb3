package scanner

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
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

// markEvery is how often a scan puts on record how far it is, which is where it goes on after a crash, and what people
// see. markedFor keeps the sweep away from it meanwhile.
const (
	markEvery = 2 * time.Second
	markedFor = 2 * time.Minute
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
	limits   *limiters
	sources  Sources
	metrics  metrics
	log      *slog.Logger

	markEvery time.Duration

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
	return s.scan(ctx, &scan{scans: s, automation: a, before: rec, ring: ringID(ring, d.Sequence), due: due, asked: asked, catchUp: ring.Epoch == scanCatchUp})
}

// ringID names a ring, the same at each delivery: of those who ask, each is another.
func ringID(ring event.Timer, seq uint64) string {
	if ring.Epoch == scanNow || ring.Epoch == scanCatchUp {
		return ring.Epoch + "-" + strconv.FormatUint(seq, 10)
	}
	return ring.Epoch
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

// scan is one scan of an automation.
type scan struct {
	*scans
	automation *automation
	before     store.Scan // the record as it was found
	ring       string     // what it serves
	due        bool       // that is the standing timer, and the scan sets the next
	asked      bool       // it was asked for beside the row
	catchUp    bool

	goesOn  string // the ring of the scan that did not come to its end, if it goes on with that
	listing *listing
	index   *index // what is settled in the automation's index
	began   time.Time
	marked  time.Time
	tally
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

// scan lists an automation and puts on record what that found.
//
// The timer is set before the record names it: a crash between the two leaves a timer that nobody knows, and its ring is
// ignored; the other way round nothing would ring.
func (s *scans) scan(ctx context.Context, sc *scan) error {
	a, start := sc.automation, time.Now()
	if err := sc.run(ctx); err != nil {
		return err
	}
	if sc.failure != nil {
		s.metrics.scans.WithLabelValues(failed).Inc()
		s.log.Warn("automation cannot be listed", "automation", a.ID, "connector", a.Connector, "error", sc.failure)
	} else {
		s.metrics.scans.WithLabelValues(done).Inc()
		s.metrics.scanTime.Observe(time.Since(start).Seconds())
	}
	now := time.Now().UTC()
	next := timer{epoch: newEpoch(), next: now.Add(s.cfg.pause(sc.before, sc.notified, sc.failure != nil, rand.Float64()))}
	if err := failpoint.Here("scan.listed"); err != nil {
		return err
	}
	if sc.due {
		if err := s.arm(ctx, a.ID, next); err != nil {
			return err
		}
		if err := failpoint.Here("scan.armed"); err != nil {
			return err
		}
	}
	_, _, err := s.records.Modify(ctx, a.ID, func(r *store.Scan) error {
		if r.Epoch == "" {
			return store.ErrUnchanged // switched off meanwhile
		}
		sc.note(r, now)
		if sc.due && r.Epoch == sc.before.Epoch {
			r.Epoch, r.NextAt = next.epoch, next.next
		}
		return nil
	})
	if err != nil || sc.failure != nil {
		return err
	}
	s.metrics.drift.Add(float64(sc.drift))
	if sc.drift == 0 {
		return nil
	}
	return s.announce(ctx, a, sc.tally, now)
}

// note puts what was counted on record. A listing that failed in the middle is left on record for the next to go on.
func (sc *scan) note(r *store.Scan, now time.Time) {
	r.LastAt = now
	if sc.failure != nil {
		r.Error = sc.failure.Error()
		if sc.listing != nil {
			sc.mark(r)
		}
		return
	}
	r.Listed, r.Found, r.Error = sc.listed, sc.found, sc.refused
	r.Drift += sc.drift
	r.Scans++
	r.Baseline = false
	if r.Underway != nil && (r.Underway.Ring == sc.ring || r.Underway.Ring == sc.goesOn) {
		r.Underway = nil
	}
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

// run streams the listing through the arrival function. An error is the broker's; the storage's is in the tally.
func (sc *scan) run(ctx context.Context) error {
	a := sc.automation
	src, conn, err := sc.sources.Source(ctx, a.Connector)
	sc.notified = conn.Notified()
	if err == nil {
		err = a.broken
	}
	if err != nil {
		sc.failure = err
		return ctx.Err()
	}
	left := sc.resume()
	sc.listing = newListing(src, conn, a.selects, sc.limits.of(a.Connector), left)
	sc.index = newIndex(sc.ledger, a.Index, sc.before.Listed)
	defer sc.index.close()
	for page, err := range sc.listing.pages(ctx) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			sc.failure = err
			return nil
		}
		if err := sc.checkpoint(ctx); err != nil {
			return err
		}
		if err := sc.take(ctx, conn, page); err != nil {
			return err
		}
	}
	return nil
}

// resume takes over from a listing that did not come to its end, and returns what that left; nothing stands for
// everything. The scan of the row goes on where the one before stopped, be it by a crash or because the storage failed:
// what appeared behind it meanwhile is found by the next. Who asks for a scan wants to know what is there now, and only
// goes on with what the same request began.
func (sc *scan) resume() []store.Range {
	sc.began = time.Now().UTC()
	sc.marked = sc.began
	u := sc.before.Underway
	if u == nil || u.Rev != sc.automation.Rev || u.Ring != sc.ring && (!u.Row || sc.asked) {
		return nil
	}
	sc.log.Info("scan goes on where it was", "automation", sc.automation.ID, "listed", u.Listed)
	sc.goesOn = u.Ring
	sc.began, sc.listed, sc.found, sc.drift, sc.refused = u.StartedAt, u.Listed, u.Found, u.Drift, u.Refused
	return u.Left
}

// checkpoint puts on record, every few seconds, how far the scan is, and keeps the sweep away from it.
func (sc *scan) checkpoint(ctx context.Context) error {
	if time.Since(sc.marked) < sc.markEvery {
		return nil
	}
	sc.marked = time.Now()
	_, _, err := sc.records.Modify(ctx, sc.automation.ID, func(r *store.Scan) error {
		if r.Epoch == "" || sc.due && r.Epoch != sc.before.Epoch {
			return store.ErrUnchanged // switched off, or somebody else's turn
		}
		sc.mark(r)
		if sc.due {
			r.NextAt = time.Now().Add(markedFor).UTC()
		}
		return nil
	})
	return err
}

// mark puts on record where the listing is. One that has left nothing has ended.
func (sc *scan) mark(r *store.Scan) {
	left := sc.listing.left()
	if len(left) == 0 {
		return
	}
	r.Underway = &store.Underway{
		Ring: sc.ring, Row: sc.due && !sc.asked, Rev: sc.automation.Rev, StartedAt: sc.began,
		Listed: sc.listed, Found: sc.found, Drift: sc.drift, Refused: sc.refused, Left: left,
	}
}

// take passes one page on.
func (sc *scan) take(ctx context.Context, conn store.Connector, pg page) error {
	a := sc.automation
	var candidates, present []candidate
	known := 0
	if err := sc.index.expect(ctx, len(pg.files)); err != nil {
		return err
	}
	for _, f := range pg.files {
		if f.refused != "" {
			sc.metrics.refused.Inc()
			sc.refused = fmt.Sprintf("%q: %s", f.Path, f.refused)
			sc.log.Warn("object cannot be imported", "automation", a.ID, "path", f.Path, "reason", f.refused)
			continue
		}
		sc.listed++
		if sc.index.settled(event.NewMediumID(a.Index, a.Connector, f.Path, f.Version, "")) {
			known++
			continue
		}
		c := candidate{
			automation: a, connector: a.Connector, object: f.Object, exact: conn.Provider == "gcs",
			subject: sc.bus.Subject("arrival", a.ID, event.ObjectHash(a.Connector, f.Path)),
		}
		// What came after the automation was switched on is no part of what was there, whenever it is listed.
		if sc.before.Baseline && (a.UpdatedAt.IsZero() || !f.ModTime.After(a.UpdatedAt)) {
			present = append(present, c)
		} else {
			candidates = append(candidates, c)
		}
	}
	sc.metrics.scanned.Add(float64(len(pg.files)))
	sc.metrics.dropped.WithLabelValues(string(settled)).Add(float64(known))
	if err := sc.arrivals.baseline(ctx, sc.ledger, present); err != nil {
		return err
	}
	latest := time.Now().Add(-announceTime)
	for i, answer := range sc.arrivals.arrive(ctx, candidates, event.ByScan) {
		if answer.err != nil {
			return answer.err
		}
		if answer.verdict != news || !answer.unseen {
			continue
		}
		sc.found++
		// What was never to be announced is no drift, nor what we know we missed.
		if sc.notified && !sc.catchUp && sc.before.Scans > 0 && candidates[i].object.ModTime.Before(latest) {
			sc.drift++
		}
	}
	return nil
}
