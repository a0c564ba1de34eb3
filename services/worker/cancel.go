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
	runs map[string]map[*context.CancelCauseFunc]struct{} // by id
}

func newInHand() *inHand {
	return &inHand{runs: make(map[string]map[*context.CancelCauseFunc]struct{})}
}

// follow cancels runs in hand as their records say, until ctx ends.
func (h *inHand) follow(ctx context.Context, records *store.Register[store.Run]) error {
	return records.Watch(ctx, func() {}, func(c store.Change[store.Run]) {
		if c.Value != nil && c.Value.Status != store.RunCancelled {
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for cancel := range h.runs[c.Key] {
			(*cancel)(errCancelled)
		}
	})
}

// begin returns a context that ends when the run is cancelled, and the function that ends the work. What was cancelled
// before is for the caller to ask.
func (h *inHand) begin(ctx context.Context, run string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	set := h.runs[run]
	if set == nil {
		set = make(map[*context.CancelCauseFunc]struct{})
		h.runs[run] = set
	}
	set[&cancel] = struct{}{}
	return ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		cancel(nil)
		delete(set, &cancel)
		if len(set) == 0 {
			delete(h.runs, run)
		}
	}
}
