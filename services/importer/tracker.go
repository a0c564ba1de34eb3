package importer

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// tracker follows jobs to their end. It reads the file entries of all unfinished jobs in stream order, keeps their sums
// in memory, and writes progress into job records. It holds no truth: a new tracker reads the same entries again.
//
// One tracker at a time holds the lease. Two would do the same work twice and no harm.
type tracker struct {
	env     service.Env
	metrics metrics
	reg     *store.Register[store.Job]
	docs    *store.Documents

	mu    sync.Mutex
	jobs  map[string]*tracked
	dirty map[string]struct{} // jobs to look at
	wake  chan struct{}       // signalled when there is one
}

// tracked is one job in the tracker's eyes.
type tracked struct {
	rec     *store.Job // nil: not seen yet
	fold    *fold
	asOf    uint64 // sequence of the last entry folded
	shown   time.Time
	told    time.Time // of its progress, by the event toldAs
	toldAs  string
	busy    bool      // a step is under way
	settled bool      // by this tracker: its record says so soon
	notTill time.Time // a step failed or has to wait
}

func newTracker(env service.Env, m metrics) *tracker {
	return &tracker{env: env, metrics: m, wake: make(chan struct{}, 1)}
}

func (t *tracker) open(ctx context.Context) (err error) {
	if t.reg, err = store.Open[store.Job](ctx, t.env.Bus, topology.JobRecords); err != nil {
		return err
	}
	t.docs, err = store.OpenDocuments(ctx, t.env.Bus)
	return err
}

const (
	// trackEvery is how often the tracker looks at jobs that changed.
	trackEvery = 20 * time.Millisecond
	// showJobEvery bounds how often progress is written.
	showJobEvery = 500 * time.Millisecond
	// tellJobEvery bounds how often progress is announced.
	tellJobEvery = time.Second
	// stepRetry is the pause after a step that failed or has to wait for others.
	stepRetry = time.Second
	// steps is how many jobs are ended at a time.
	steps = 32
)

// run tracks until ctx ends. It begins from nothing.
func (t *tracker) run(ctx context.Context) error {
	t.jobs, t.dirty = make(map[string]*tracked), make(map[string]struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.reg.Watch(ctx, func() {}, t.seeJob) })
	g.Go(func() error { return t.readFiles(ctx) })
	g.Go(func() error {
		var work errgroup.Group
		work.SetLimit(steps)
		look := time.NewTimer(0)
		defer look.Stop()
		for idle := false; ; {
			select {
			case <-look.C:
				if idle = !t.look(ctx, &work); !idle {
					look.Reset(trackEvery)
				}
			case <-t.wake:
				if idle {
					idle = false
					look.Reset(trackEvery)
				}
			case <-ctx.Done():
				return work.Wait()
			}
		}
	})
	return g.Wait()
}

func (t *tracker) job(id string) *tracked {
	j := t.jobs[id]
	if j == nil {
		j = &tracked{fold: newFold()}
		t.jobs[id] = j
	}
	return j
}

// mark has a job looked at. The caller holds the lock.
func (t *tracker) mark(id string) {
	t.dirty[id] = struct{}{}
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *tracker) seeJob(c store.Change[store.Job]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.Value == nil {
		delete(t.jobs, c.Key)
		return
	}
	if c.Value.Settled && t.jobs[c.Key] == nil {
		return // long over
	}
	t.job(c.Key).rec = c.Value
	t.mark(c.Key)
}

// readFiles folds the entries of all jobs, from the first: the stream holds those of unfinished jobs only.
func (t *tracker) readFiles(ctx context.Context) error {
	b := t.env.Bus
	cons, err := b.JetStream().OrderedConsumer(ctx, b.Stream(topology.Files), jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverAllPolicy,
	})
	if err != nil {
		return fmt.Errorf("read file entries: %w", err)
	}
	cc, err := cons.Consume(t.seeFile, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		if ctx.Err() == nil {
			t.env.Log.Warn("reading file entries", "error", err)
		}
	}))
	if err != nil {
		return fmt.Errorf("read file entries: %w", err)
	}
	defer cc.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-cc.Closed():
		return fmt.Errorf("read file entries: the consumer ended")
	}
}

func (t *tracker) seeFile(m jetstream.Msg) {
	var f event.File
	md, err := m.Metadata()
	if err == nil {
		err = json.Unmarshal(m.Data(), &f)
	}
	if err != nil {
		t.env.Log.Error("file entry is not readable", "subject", m.Subject(), "error", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	j := t.job(f.Job)
	j.fold.add(event.ObjectHash(f.Connector, f.Path), f)
	j.asOf = md.Sequence.Stream
	t.mark(f.Job)
}

// look starts the next step of each job that has one, and reports whether there is anything left to look at.
func (t *tracker) look(ctx context.Context, work *errgroup.Group) bool {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.dirty {
		j := t.job(id)
		if j.busy || now.Before(j.notTill) {
			continue
		}
		s := next(j.rec, j.fold)
		switch {
		case s == nothing, s == settleEnded && j.settled:
			delete(t.dirty, id)
			if j.rec != nil && j.rec.Settled {
				delete(t.jobs, id)
			}
			continue
		case s == show && now.Sub(j.shown) < showJobEvery:
			continue
		}
		rec, progress, asOf := *j.rec, j.fold.progress(j.rec.Progress.Total), j.asOf
		started := work.TryGo(func() error {
			err := t.do(ctx, s, rec, progress, asOf)
			t.done(ctx, id, s, err)
			return nil
		})
		if !started {
			return true // all hands are busy; the next look goes on
		}
		j.busy = true
		delete(t.dirty, id)
	}
	return len(t.dirty) > 0
}

func (t *tracker) done(ctx context.Context, id string, s step, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	j := t.job(id)
	j.busy, j.shown = false, time.Now()
	if err == nil {
		return
	}
	j.notTill = time.Now().Add(stepRetry)
	t.mark(id)
	if ctx.Err() == nil {
		t.env.Log.Warn("following a job, will be tried again", "job_id", id, "step", s, "error", err)
	}
}

// do carries out one step. It may have been done before, by a tracker that crashed.
func (t *tracker) do(ctx context.Context, s step, rec store.Job, p store.Progress, asOf uint64) error {
	switch s {
	case show:
		return t.show(ctx, rec.ID, p, asOf)
	case end:
		return t.end(ctx, rec, p, asOf)
	case clearQueue:
		return t.clear(ctx, rec)
	case settleEnded:
		return t.settle(ctx, rec)
	case sweepUp:
		return t.purge(ctx, rec)
	}
	return nil
}

// show writes progress into a job that has not ended, and announces it now and then.
func (t *tracker) show(ctx context.Context, id string, p store.Progress, asOf uint64) error {
	rec, _, err := t.reg.Modify(ctx, id, func(j *store.Job) error {
		if !advanced(j, p, asOf) {
			return store.ErrUnchanged
		}
		return nil
	})
	if err != nil || rec.Status.Terminal() {
		return err
	}
	e, err := bus.NewEvent(event.JobProgress, rec.Index, id, time.Now(), jobEvent(rec))
	if err != nil {
		return err
	}
	e.ID = event.IDOf(e.Type, e.Index, id+" "+string(e.Data)) // it happens again and again
	if !t.tellNow(id, e.ID) {
		return nil
	}
	return t.env.Bus.PublishEvent(ctx, e)
}

// tellNow reports whether this event is to announce the progress of a job: one that was announced last says nothing new,
// as while a large file is in transfer.
func (t *tracker) tellNow(id, as string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	j, now := t.job(id), time.Now()
	if as == j.toldAs || now.Sub(j.told) < tellJobEvery {
		return false
	}
	j.told, j.toldAs = now, as
	return true
}
