package importer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// deleter clears away what somebody deleted; that is the importer's, as the library and the ledger are its own to
// write.
//
// A medium goes in these steps, each safe to repeat:
//
//	ledger: deleted, with its URI ─▶ bytes removed, durably ─▶ ledger: deleted, without URI
//
// so that no record promises bytes that are gone, and a tombstone with a URI is one whose bytes may still be there. The
// tombstone stays: it keeps a re-scan from bringing back what a person removed.
//
// An index goes in these steps, of which its record says how far they are (contract §9):
//
//	draining: automation and window dropped, jobs and runs cancelled and awaited
//	deleting: its media, as above
//	deleted:  its part of the ledger purged; nothing can come back under an id that is never used again
//
// What a worker that was just committing, or an admin that had just looked the index up, writes behind our back is
// found by going through all of it once more, after lookAgain.
type deleter struct {
	im          *Importer
	indexes     *store.Register[store.Index]
	automations *store.Register[store.Automation]
	exports     *store.Register[store.ExportAutomation]
	runs        *store.Register[store.Run]
	deletions   *store.Register[store.Deletion]
	windows     *window.Windows
	lookAgain   time.Duration
}

const (
	// deleters is how many deletions are carried out at a time.
	deleters = 4
	// lookAgain is longer than a delivery outlives its worker.
	lookAgain = 30 * time.Second
	// drainEvery is how often it is looked whether a job has ended.
	drainEvery = 200 * time.Millisecond
	// eraseSize is how many media are removed at a time.
	eraseSize = 500
)

func (x *deleter) open(ctx context.Context, b *bus.Bus) (err error) {
	if x.indexes, err = store.Open[store.Index](ctx, b, topology.Indexes); err != nil {
		return err
	}
	if x.automations, err = store.Open[store.Automation](ctx, b, topology.Automations); err != nil {
		return err
	}
	if x.exports, err = store.Open[store.ExportAutomation](ctx, b, topology.ExportAutomations); err != nil {
		return err
	}
	if x.runs, err = store.Open[store.Run](ctx, b, topology.RunRecords); err != nil {
		return err
	}
	if x.deletions, err = store.Open[store.Deletion](ctx, b, topology.DeletionRecords); err != nil {
		return err
	}
	x.windows, err = window.Bind(ctx, b)
	return err
}

func (x *deleter) handle(ctx context.Context, d *bus.Delivery) error {
	var req event.DeletionRequested
	if err := d.Decode(&req); err != nil {
		return err
	}
	switch {
	case req.Index == "" || strings.ContainsAny(req.Index, ".*> "):
		return bus.Poison(fmt.Errorf("request %s: %q is not the id of an index", req.Deletion, req.Index))
	case req.Video != "":
		return x.medium(ctx, req)
	}
	if err := x.index(ctx, req); err != nil {
		return err
	}
	go func() {
		select {
		case <-time.After(x.lookAgain):
			d.Settle(ctx, x.index(ctx, req))
		case <-ctx.Done():
			d.Settle(ctx, ctx.Err())
		}
	}()
	return bus.ErrLater
}

// medium deletes one medium.
func (x *deleter) medium(ctx context.Context, req event.DeletionRequested) error {
	id, err := event.ParseMediumID(req.Video)
	if err != nil {
		return bus.Poison(err)
	}
	found, err := x.im.ledger.Get(ctx, req.Index, id)
	if err != nil {
		return err
	}
	return x.erase(ctx, found)
}

// erase removes media and their bytes. Entries that are no media are left alone.
func (x *deleter) erase(ctx context.Context, entries []store.Entry) error {
	var fresh, doomed []store.Entry
	for _, e := range entries {
		switch {
		case e.State == event.MediumImported:
			e.State = event.MediumDeleted
			fresh = append(fresh, e)
		case e.State == event.MediumDeleted && e.URI != "":
			doomed = append(doomed, e)
		}
	}
	if len(fresh) > 0 {
		written, err := x.write(ctx, fresh)
		if err != nil {
			return err
		}
		doomed = append(doomed, written...)
	}
	if len(doomed) == 0 {
		return nil
	}
	if err := x.removeBytes(ctx, doomed); err != nil {
		return err
	}
	for i := range doomed {
		doomed[i].URI = ""
	}
	_, err := x.write(ctx, doomed)
	return err
}

// write writes tombstones and returns them with their new revisions.
func (x *deleter) write(ctx context.Context, entries []store.Entry) ([]store.Entry, error) {
	msgs := make([]bus.Message, len(entries))
	for i, e := range entries {
		m, err := x.im.ledger.Message(e.Medium, e.Revision)
		if err != nil {
			return nil, err
		}
		msgs[i] = m
	}
	seqs, errs := x.im.env.Bus.PublishAll(ctx, msgs)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("write %d tombstones: %w", len(entries), err) // the next try reads what is there now
	}
	for i := range entries {
		entries[i].Revision = seqs[i]
	}
	return entries, nil
}

// removeBytes removes what our library holds of media. What was registered by reference, or lies in a library that was
// used before, is not ours to remove.
func (x *deleter) removeBytes(ctx context.Context, entries []store.Entry) error {
	library := x.im.library
	if library == nil {
		return nil
	}
	var keys []string
	for _, e := range entries {
		key := libraryKey(e.Index, e.ID, e.Path)
		if library.URI(key) != e.URI {
			x.im.env.Log.Warn("bytes of a deleted medium are not in this library, and stay", "video_id", e.ID, "index_id", e.Index)
			continue
		}
		if err := library.Delete(ctx, key); err != nil {
			return fmt.Errorf("delete %s from the library: %w", e.ID, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil
	}
	if err := library.Sync(ctx, keys...); err != nil {
		return fmt.Errorf("make %d deletions durable: %w", len(keys), err)
	}
	x.im.metrics.deleted.Add(float64(len(keys)))
	return nil
}

// index deletes an index with all that is in it. It may have been done before, in part or whole.
func (x *deleter) index(ctx context.Context, req event.DeletionRequested) error {
	err := x.progress(ctx, req, store.Draining)
	if err == nil {
		err = remove(ctx, x.indexes, req.Index)
	}
	if err != nil {
		return err
	}
	if err := x.drain(ctx, req.Index); err != nil {
		return err
	}
	if err := x.progress(ctx, req, store.Deleting); err != nil {
		return err
	}
	for clean := false; !clean; {
		if clean, err = x.sweep(ctx, req.Index); err != nil {
			return err
		}
	}
	return x.progress(ctx, req, store.Gone)
}

// sweep erases the media of an index. When there were none left it purges what it saw of the ledger and reports true;
// what was written behind it stays for the next look.
func (x *deleter) sweep(ctx context.Context, index string) (clean bool, err error) {
	n, dirty, last := 0, 0, store.Revision(0)
	group := make([]store.Entry, 0, eraseSize)
	for e, err := range x.im.ledger.All(ctx, index, 0) {
		if err != nil {
			return false, err
		}
		n, last = n+1, max(last, e.Revision)
		if e.State != event.MediumImported && (e.State != event.MediumDeleted || e.URI == "") {
			continue
		}
		dirty++
		if group = append(group, e); len(group) == eraseSize {
			if err := x.erase(ctx, group); err != nil {
				return false, err
			}
			group = group[:0]
		}
	}
	if err := x.erase(ctx, group); err != nil || dirty > 0 || n == 0 {
		return err == nil && dirty == 0, err
	}
	b := x.im.env.Bus
	return true, b.Purge(ctx, topology.Media, b.Subject("media", index, "*", "*"), last)
}

// progress puts on record how far a deletion is. It never goes back.
func (x *deleter) progress(ctx context.Context, req event.DeletionRequested, status store.DeletionStatus) error {
	order := map[store.DeletionStatus]int{store.Draining: 1, store.Deleting: 2, store.Gone: 3}
	now := time.Now().UTC()
	_, _, err := x.deletions.Modify(ctx, req.Index, func(d *store.Deletion) error {
		if order[d.Status] >= order[status] {
			return store.ErrUnchanged
		}
		d.ID, d.Index, d.Status = req.Deletion, req.Index, status
		if d.RequestedAt.IsZero() {
			d.RequestedAt = req.RequestedAt
		}
		if status == store.Gone {
			d.DeletedAt = now
		}
		return nil
	})
	return err
}

// drain sees to it that nothing is brought into an index any more, and nothing asked of what is in it.
func (x *deleter) drain(ctx context.Context, index string) error {
	automation := event.AutomationOfIndex(index)
	if err := remove(ctx, x.automations, automation); err != nil {
		return err
	}
	if err := remove(ctx, x.exports, event.ExportAutomationOfIndex(index)); err != nil {
		return err
	}
	if w, err := x.windows.Get(ctx, automation); err != nil {
		return err
	} else if w.Automation != "" {
		if err := x.windows.Drop(ctx, automation); err != nil {
			return err
		}
	}
	b := x.im.env.Bus
	if err := b.Purge(ctx, topology.Arrivals, b.Subject("arrival", automation, "*"), 0); err != nil {
		return err // those of closed windows too: their jobs are to find nothing
	}
	for r, err := range x.runs.All(ctx) {
		if err == nil && r.Index == index && !r.Status.Terminal() {
			err = x.cancelRun(ctx, r.ID)
		}
		if err != nil {
			return err
		}
	}
	for {
		busy, err := x.cancelJobs(ctx, index)
		if err != nil || len(busy) == 0 {
			return err
		}
		for _, id := range busy {
			if err := x.awaitJob(ctx, id); err != nil {
				return err
			}
		}
	}
}

// awaitJob waits until a job is settled or gone.
func (x *deleter) awaitJob(ctx context.Context, id string) error {
	for {
		j, _, err := x.im.jobs.reg.Get(ctx, id)
		switch {
		case errors.Is(err, store.ErrNotFound) || err == nil && j.Settled:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-time.After(drainEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// remove deletes a record, without leaving a trace where there is none.
func remove[T any](ctx context.Context, reg *store.Register[T], key string) error {
	_, _, err := reg.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return reg.Delete(ctx, key)
}

func (x *deleter) cancelRun(ctx context.Context, id string) error {
	now := time.Now().UTC()
	_, _, err := x.runs.Modify(ctx, id, func(r *store.Run) error {
		if r.ID == "" || r.Status.Terminal() {
			return store.ErrUnchanged
		}
		r.Status, r.EndedAt = store.RunCancelled, now
		return nil
	})
	return err
}

// cancelJobs cancels the jobs of an index and returns the ids of those that are not settled yet.
func (x *deleter) cancelJobs(ctx context.Context, index string) (busy []string, err error) {
	now := time.Now().UTC()
	for j, err := range x.im.jobs.reg.All(ctx) {
		if err != nil {
			return nil, err
		}
		if j.Index != index || j.Settled {
			continue
		}
		busy = append(busy, j.ID)
		if j.Status.Terminal() {
			continue
		}
		_, _, err := x.im.jobs.reg.Modify(ctx, j.ID, func(j *store.Job) error {
			if j.ID == "" || j.Status.Terminal() {
				return store.ErrUnchanged
			}
			j.Status, j.EndedAt, j.Progress.Current = store.JobCancelled, now, ""
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return busy, nil
}
