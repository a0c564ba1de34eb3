package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// overtime is what a step still gets when the steps before it used up the timeout: enough to let go of a file or a
// lock, which the last steps are about.
const overtime = time.Second

// Stack is what there is to undo, in reverse: each thing that was opened pushes the step that closes it, and Stop runs
// the steps last-in first-out. A start that fails half way stops with the same stack.
type Stack struct {
	log     *slog.Logger
	timeout time.Duration

	mu    sync.Mutex
	steps []step
}

type step struct {
	name string
	stop func(context.Context) error
}

// NewStack returns an empty stack whose steps have timeout together.
func NewStack(logger *slog.Logger, timeout time.Duration) *Stack {
	return &Stack{log: logger, timeout: timeout}
}

// Push adds a step under a name for the log. stop should return when its context ends.
func (s *Stack) Push(name string, stop func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name, stop})
}

// Stop runs every step, the last pushed first, one after the other, whatever the earlier ones returned. Each error is
// logged with the name of its step; all come back joined. A step that outlasts the timeout is left behind as an
// error, and those after it get a second each. Stop empties the stack: called again it does nothing.
func (s *Stack) Stop() error {
	s.mu.Lock()
	steps := s.steps
	s.steps = nil
	s.mu.Unlock()

	deadline := time.Now().Add(s.timeout)
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		st, began := steps[i], time.Now()
		err := st.run(max(time.Until(deadline), overtime))
		if err != nil {
			err = fmt.Errorf("stop %s: %w", st.name, err)
			errs = append(errs, err)
			s.log.Error("shutdown step failed", "step", st.name, "took", time.Since(began), "err", err)
			continue
		}
		s.log.Debug("shutdown step done", "step", st.name, "took", time.Since(began))
	}
	return errors.Join(errs...)
}

func (st step) run(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- st.stop(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// It was told at this very moment; let it say what became of it.
	select {
	case err := <-done:
		return err
	case <-time.After(overtime / 4):
		return fmt.Errorf("still running: %w", ctx.Err())
	}
}
