package debouncer

import (
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// clock closes windows when they are due. It keeps the records of all open ones, fresh by a watch, in the order in which
// they end, so the deadline in the record is the only timer there is: nothing can be armed late, twice or not at all, and
// a debouncer that starts knows at once what is overdue. With several debouncers each closes what it sees first; the
// record decides who was.
type clock struct {
	d     *Debouncer
	ready chan struct{} // closed once all records were seen
	wake  chan struct{} // signalled when the first end may be earlier than it was

	mu      sync.Mutex
	windows map[string]*seen // by automation; idle ones are left out
	ends    ends
}

// seen is a record as the watch brought it last.
type seen struct {
	record   window.Record
	revision store.Revision
	queued   time.Time // of its valid entry in ends; zero: none
	stale    bool      // its closing was there at the last sweep too
}

func newClock(d *Debouncer) *clock {
	return &clock{d: d, ready: make(chan struct{}), wake: make(chan struct{}, 1), windows: make(map[string]*seen)}
}

func (c *clock) wait(ctx context.Context) bool { return done(ctx, c.ready) }

func (c *clock) watch(ctx context.Context) error {
	return c.d.windows.Watch(ctx, func() { close(c.ready) }, c.see)
}

func (c *clock) see(change store.Change[window.Record]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := change.Value
	if r == nil || (r.Open == nil && r.Closing == nil) {
		delete(c.windows, change.Key)
		return
	}
	w := c.windows[change.Key]
	if w == nil {
		w = new(seen)
		c.windows[change.Key] = w
	}
	w.stale = w.stale && r.Closing != nil && w.record.Closing != nil && r.Closing.Epoch == w.record.Closing.Epoch
	w.record, w.revision = *r, change.Revision
	if r.Open != nil && !r.Held {
		c.queue(change.Key, w, r.Open.Deadline)
	}
}

// queue has a window looked at no later than at. The caller holds the lock.
func (c *clock) queue(automation string, w *seen, at time.Time) {
	if !w.queued.IsZero() && !at.Before(w.queued) {
		return // it is looked at before that, and then again
	}
	w.queued = at
	heap.Push(&c.ends, end{at, automation})
	if c.ends[0].at.Equal(at) {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

const (
	// atOnce is how many windows are taken from the queue at a time; batchSize of them share their writes, and closers such
	// batches are written side by side.
	atOnce    = 10_000
	batchSize = 500
	closers   = 4
	// closeRetry is the pause after a window could not be closed.
	closeRetry = time.Second
)

// run closes windows until ctx ends.
func (c *clock) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-c.wake:
		case <-ctx.Done():
			return
		}
		for {
			due, next := c.due(time.Now())
			if len(due) == 0 {
				timer.Reset(next)
				break
			}
			c.d.merged(ctx)
			c.close(ctx, due)
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// idle is how long the clock sleeps when no window is open.
const idle = time.Hour

// due takes windows that are due from the queue, or says how long there will be none.
func (c *clock) due(now time.Time) (automations []string, next time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.ends) > 0 && len(automations) < atOnce {
		first := c.ends[0]
		if first.at.After(now) {
			return automations, first.at.Sub(now)
		}
		heap.Pop(&c.ends)
		w := c.windows[first.automation]
		if w == nil || !w.queued.Equal(first.at) {
			continue // closed, or queued again for an earlier time
		}
		w.queued = time.Time{}
		switch {
		case window.Due(w.record, now):
			automations = append(automations, first.automation)
		case w.record.Open != nil && !w.record.Held:
			c.queue(first.automation, w, w.record.Open.Deadline)
		}
	}
	return automations, idle
}

// close closes windows that are still due, and queues again what could not be closed.
func (c *clock) close(ctx context.Context, automations []string) {
	// Debouncers that have the same windows to close begin with different ones.
	rand.Shuffle(len(automations), func(i, j int) { automations[i], automations[j] = automations[j], automations[i] })
	var g errgroup.Group
	g.SetLimit(closers)
	for chunk := range slices.Chunk(automations, batchSize) {
		g.Go(func() error {
			c.closeBatch(ctx, chunk)
			return nil
		})
	}
	_ = g.Wait()
}

func (c *clock) closeBatch(ctx context.Context, automations []string) {
	now := time.Now()
	batch := make([]window.DueWindow, 0, len(automations))
	for _, id := range automations {
		a, err := c.d.automations.get(ctx, id)
		if err == nil && (a == nil || !a.Enabled) {
			err = c.d.windows.Drop(ctx, id)
			a = nil
		}
		if err != nil {
			c.failed(ctx, id, err)
		}
		if err != nil || a == nil {
			continue
		}
		c.mu.Lock()
		switch w := c.windows[id]; {
		case w == nil: // closed by another debouncer meanwhile
		case window.Due(w.record, now):
			batch = append(batch, window.DueWindow{Record: w.record, Revision: w.revision, Request: request(a)})
		case w.record.Open != nil && !w.record.Held:
			c.queue(id, w, w.record.Open.Deadline)
		}
		c.mu.Unlock()
	}
	for i, err := range c.d.windows.Close(ctx, batch) {
		if err != nil {
			c.failed(ctx, batch[i].Record.Automation, err)
			continue
		}
		c.d.metrics.closed.Inc()
		c.d.metrics.late.Observe(time.Since(batch[i].Record.Open.Deadline).Seconds())
	}
}

// failed has a window looked at again soon.
func (c *clock) failed(ctx context.Context, automation string, err error) {
	if ctx.Err() == nil && !errors.Is(err, bus.ErrConflict) {
		c.d.env.Log.Warn("a window could not be closed; trying again", "automation_id", automation, "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.windows[automation]; w != nil {
		c.queue(automation, w, time.Now().Add(closeRetry))
	}
}

// mergeTime bounds how long a window is kept open for arrivals that are stored and not yet merged.
const mergeTime = 1500 * time.Millisecond

// merged returns when every arrival that is stored by now has been merged, or after mergeTime. Without it a window could
// close over the head of an arrival that lies in the queue of a busy debouncer, and one drop would become two jobs.
func (d *Debouncer) merged(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, mergeTime)
	defer cancel()
	state, err := d.env.Bus.State(ctx, topology.Arrivals)
	for pause := 5 * time.Millisecond; err == nil; pause = min(2*pause, 50*time.Millisecond) {
		var all bool
		if all, err = d.env.Bus.Handled(ctx, topology.DebouncerArrivals, state.LastSeq); all {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// end is when a window is to be looked at.
type end struct {
	at         time.Time
	automation string
}

// ends is a heap, the earliest first.
type ends []end

func (e ends) Len() int           { return len(e) }
func (e ends) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e ends) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *ends) Push(x any)        { *e = append(*e, x.(end)) }
func (e *ends) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}
