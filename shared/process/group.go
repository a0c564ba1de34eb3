package process

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Group runs actors that live and die together: the first to return, with an error or without, stops the others, and
// Wait waits for all of them. Make one with NewGroup.
type Group struct {
	ctx    context.Context // the group is the scope of this context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	errs []error // the first actor's first
}

// NewGroup returns a group without actors. Its actors are also told to stop when ctx ends.
func NewGroup(ctx context.Context) *Group {
	g := &Group{}
	g.ctx, g.cancel = context.WithCancel(ctx)
	return g
}

// Go starts an actor. run must return soon after its context ends, and may then return that context's error. Actors
// may start others; once Wait has returned, Go must not be called.
func (g *Group) Go(name string, run func(ctx context.Context) error) {
	g.wg.Go(func() {
		defer g.cancel()
		err := run(g.ctx)
		// An actor that did what it was told has nothing to report.
		if err == nil || g.ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.errs = append(g.errs, fmt.Errorf("%s: %w", name, err))
	})
}

// Wait returns when every actor has. The error joins what they returned, by name, without the cancellations; it is nil
// when all ended as told. The context given to NewGroup having ended is not an error.
func (g *Group) Wait() error {
	g.wg.Wait()
	g.cancel() // a group that never had an actor
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.errs...)
}
