package importer

import (
	"context"
	"errors"
	"sync"

	"millrace/shared/store"
)

// errCancelled is the cause of a context that ended because its job was cancelled.
var errCancelled = errors.New("job cancelled")

// jobs tells workers when the job of their task is cancelled.
type jobs struct {
	reg *store.Register[store.Job]

	mu        sync.Mutex
	cancelled map[string]bool
	working   map[*context.CancelCauseFunc]string // the job of each task in hand; there are few
}

func newJobs() *jobs {
	return &jobs{cancelled: make(map[string]bool), working: make(map[*context.CancelCauseFunc]string)}
}

func (js *jobs) follow(ctx context.Context) error {
	return js.reg.Watch(ctx, func() {}, func(c store.Change[store.Job]) {
		js.mu.Lock()
		defer js.mu.Unlock()
		if c.Value == nil || c.Value.Status != store.JobCancelled || c.Value.Settled {
			delete(js.cancelled, c.Key)
			return
		}
		js.cancelled[c.Key] = true
		for cancel, job := range js.working {
			if job == c.Key {
				(*cancel)(errCancelled)
			}
		}
	})
}

// begin returns a context that ends when the job is cancelled, and the function that ends the work.
func (js *jobs) begin(ctx context.Context, job string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.cancelled[job] {
		cancel(errCancelled)
	}
	js.working[&cancel] = job
	return ctx, func() {
		js.mu.Lock()
		defer js.mu.Unlock()
		cancel(nil)
		delete(js.working, &cancel)
	}
}
