package worker

import (
	"context"
	"errors"
	"sync"

	"millrace/shared/store"
)

// errCancelled is the cause of a context that ended because its run was cancelled or deleted.
var errCancelled = errors.New("run cancelled")

// inHand tells those who carry runs out when a run is no longer wanted.
type inHand struct {
	mu   sync.Mutex
	runs map[*context.CancelCauseFunc]string // by what ends them, as one that comes again can be in hand twice
}

func newInHand() *inHand { return &inHand{runs: make(map[*context.CancelCauseFunc]string)} }

// follow cancels runs in hand as their records say, until ctx ends.
func (h *inHand) follow(ctx context.Context, records *store.Register[store.Run]) error {
	return records.Watch(ctx, func() {}, func(c store.Change[store.Run]) {
		if c.Value != nil && c.Value.Status != store.RunCancelled {
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for cancel, run := range h.runs {
			if run == c.Key {
				(*cancel)(errCancelled)
			}
		}
	})
}

// begin returns a context that ends when the run is cancelled, and the function that ends the work. What was cancelled
// before is for the caller to ask.
func (h *inHand) begin(ctx context.Context, run string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runs[&cancel] = run
	return ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		cancel(nil)
		delete(h.runs, &cancel)
	}
}
