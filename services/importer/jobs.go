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
	working   map[string]map[*context.CancelCauseFunc]struct{} // by job
}

func newJobs() *jobs {
	return &jobs{cancelled: make(map[string]bool), working: make(map[string]map[*context.CancelCauseFunc]struct{})}
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
		for cancel := range js.working[c.Key] {
			(*cancel)(errCancelled)
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
	set := js.working[job]
	if set == nil {
		set = make(map[*context.CancelCauseFunc]struct{})
		js.working[job] = set
	}
	set[&cancel] = struct{}{}
	return ctx, func() {
		js.mu.Lock()
		defer js.mu.Unlock()
		cancel(nil)
		delete(set, &cancel)
		if len(set) == 0 {
			delete(js.working, job)
		}
	}
}
