package window

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// What a person may do to an open window. Flush and extend are wishes that become part of the window, so that arrivals,
// a changed configuration and a pause in between do not undo them.
//
// None of these can be done twice: a second flush or drop would meet the window after the one that was meant, and a
// second extension would be added to the first. So the record remembers the request that it followed last, in the write
// that follows it, and a request that is carried out again because the process died before it could answer changes
// nothing. Only the last one is remembered: another person's request in between makes the first count again. A request
// without a name ("") is always a new one.

// commanded is the deadline under what a person wishes: no earlier than NotBefore, and now if the window was flushed.
func (o *Open) commanded(deadline time.Time) time.Time {
	if o.NotBefore.After(deadline) {
		deadline = o.NotBefore
	}
	if !o.FlushedAt.IsZero() && o.FlushedAt.Before(deadline) {
		deadline = o.FlushedAt
	}
	return deadline
}

// Flush makes an open window due at now. One that is held stays open until its release.
func Flush(r Record, now time.Time) Record {
	if r.Open == nil || !r.Open.FlushedAt.IsZero() {
		return r
	}
	o := *r.Open
	o.FlushedAt = now.UTC()
	o.Deadline = o.commanded(o.Deadline)
	r.Open = &o
	return r
}

// Extend keeps an open window from closing before until, also beyond MaxWait; it takes back a flush. A window whose
// deadline is later than that is left alone.
func Extend(r Record, until time.Time) Record {
	if r.Open == nil || !until.After(r.Open.Deadline) {
		return r
	}
	o := *r.Open
	o.NotBefore, o.FlushedAt = until.UTC(), time.Time{}
	o.Deadline = o.commanded(o.Deadline)
	r.Open = &o
	return r
}

// ErrNotOpen says that there is no open window.
var ErrNotOpen = errors.New("no window is open")

// follow applies f to the record on behalf of a request, unless the record has followed that one already.
func (w *Windows) follow(ctx context.Context, automation, request string, f func(*Record) error) error {
	_, _, err := w.reg.Modify(ctx, automation, func(r *Record) error {
		if r.followed(request) {
			return store.ErrUnchanged
		}
		r.Automation = automation
		if request != "" {
			r.LastRequest = request
		}
		return f(r)
	})
	return err
}

func (r Record) followed(request string) bool { return request != "" && r.LastRequest == request }

// Flush closes the open window now, as far as it is not held. None open is no error: whatever was in it is on its way.
func (w *Windows) Flush(ctx context.Context, automation, request string) error {
	return w.follow(ctx, automation, request, func(r *Record) error {
		*r = Flush(*r, time.Now())
		return nil
	})
}

// Extend keeps the open window from closing before the time that until makes of its deadline. It fails with ErrNotOpen,
// and with what until fails with.
func (w *Windows) Extend(ctx context.Context, automation, request string, until func(deadline time.Time) (time.Time, error)) error {
	return w.follow(ctx, automation, request, func(r *Record) error {
		if r.Open == nil {
			return ErrNotOpen
		}
		at, err := until(r.Open.Deadline)
		if err == nil {
			*r = Extend(*r, at)
		}
		return err
	})
}

// discardBatch is how many arrivals are settled at a time.
const discardBatch = 500

// Discard drops the open window for good and returns how many arrivals were in it. Each object version is settled in the
// ledger as baseline, so that a listing does not bring it back; a newer version arrives as ever, and a one-time job still
// imports it. Arrivals of windows that have closed are left to their jobs.
//
// The order makes it safe to stop anywhere: first the ledger, then the arrivals, then the window. Without its arrivals a
// window closes into an empty job, which leaves no trace; and what a job has taken up meanwhile is skipped as baseline.
func (w *Windows) Discard(ctx context.Context, automation, request string, ledger *store.Ledger) (int, error) {
	dropped := 0
	for {
		r, err := w.Get(ctx, automation)
		if err != nil || r.followed(request) {
			return dropped, err
		}
		if r.Open != nil {
			n, err := w.empty(ctx, r, ledger)
			if err != nil {
				return dropped, err
			}
			dropped += n
		}
		again := false
		err = w.follow(ctx, automation, request, func(now *Record) error {
			if again = now.Open != nil && (r.Open == nil || now.Open.Epoch != r.Open.Epoch || now.Open.LastSeq != r.Open.LastSeq); again {
				return store.ErrUnchanged // more has arrived, and is dropped as well
			}
			*now = Drop(*now)
			return nil
		})
		if err != nil || !again {
			return dropped, err
		}
	}
}

// empty settles and removes the arrivals in the open window of r, and returns how many there were.
func (w *Windows) empty(ctx context.Context, r Record, ledger *store.Ledger) (int, error) {
	arrived, alone, err := w.arrived(ctx, r)
	if err != nil {
		return 0, err
	}
	for batch := range slices.Chunk(arrived, discardBatch) {
		if err := settle(ctx, ledger, batch); err != nil {
			return 0, fmt.Errorf("settle what is dropped of %s: %w", r.Automation, err)
		}
	}
	return len(arrived), w.purge(ctx, r, arrived, alone)
}

// pendingArrival is an arrival in an open window.
type pendingArrival struct {
	event.Arrival
	subject string
	seq     uint64
}

// arrived reads the arrivals that are in the open window of r, and whether there is nothing else up to its last one.
func (w *Windows) arrived(ctx context.Context, r Record) (found []pendingArrival, alone bool, err error) {
	alone = true
	for m, err := range w.bus.Last(ctx, topology.Arrivals, w.bus.Subject("arrival", r.Automation, "*")) {
		if err != nil {
			return nil, false, err
		}
		if m.Sequence > r.Open.LastSeq {
			continue
		}
		a := pendingArrival{subject: m.Subject, seq: m.Sequence}
		// What is no arrival is buried when the next window is planned.
		if m.Sequence <= r.ClosedSeq || json.Unmarshal(m.Data, &a.Arrival) != nil || a.Path == "" {
			alone = false
			continue
		}
		found = append(found, a)
	}
	return found, alone, nil
}

// purge removes arrivals: at once when they are alone, else one by one.
func (w *Windows) purge(ctx context.Context, r Record, arrived []pendingArrival, alone bool) error {
	if alone {
		return w.bus.Purge(ctx, topology.Arrivals, w.bus.Subject("arrival", r.Automation, "*"), r.Open.LastSeq)
	}
	for _, a := range arrived {
		if err := w.bus.Purge(ctx, topology.Arrivals, a.subject, a.seq); err != nil {
			return err
		}
	}
	return nil
}

// settle puts object versions into the ledger as baseline, but those that somebody has settled otherwise.
func settle(ctx context.Context, ledger *store.Ledger, arrived []pendingArrival) error {
	byIndex := make(map[string][]event.MediumID)
	for _, a := range arrived {
		byIndex[a.Index] = append(byIndex[a.Index], mediumOf(a.Arrival))
	}
	known := make(map[event.MediumID]store.Entry)
	for index, ids := range byIndex {
		entries, err := ledger.Get(ctx, index, ids...)
		if err != nil {
			return err
		}
		for _, e := range entries {
			known[e.ID] = e
		}
	}
	now := time.Now().UTC()
	var entries []store.Entry
	for _, a := range arrived {
		id := mediumOf(a.Arrival)
		old, there := known[id]
		if there && old.State != event.MediumFailed {
			continue
		}
		entries = append(entries, store.Entry{Revision: old.Revision, Medium: event.Medium{
			ID: id, Index: a.Index, Connector: a.Connector, Path: a.Path, Version: a.Version, Order: a.Order,
			State: event.MediumBaseline, Reason: string(event.Cancelled), Size: a.Size, CRC32C: a.CRC32C, CreatedAt: now,
		}})
	}
	for _, err := range ledger.Write(ctx, entries) {
		if err != nil && !errors.Is(err, bus.ErrConflict) { // a conflict: it was settled meanwhile
			return err
		}
	}
	return nil
}

func mediumOf(a event.Arrival) event.MediumID {
	return event.NewMediumID(a.Index, a.Connector, a.Path, a.Version, "")
}
