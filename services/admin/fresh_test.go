package admin

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// One question answers all who asked while the one before was under way, and none who came after it was put.
func TestSharedAnswersAreFresh(t *testing.T) {
	t.Parallel()
	put, told := make(chan struct{}), make(chan int)
	s := shared[int]{ask: func(context.Context) (int, error) {
		put <- struct{}{}
		if n := <-told; n > 0 {
			return n, nil
		}
		return 0, errors.New("nothing")
	}}
	var asking sync.WaitGroup
	get := func(want int) {
		asking.Go(func() {
			if n, err := s.get(t.Context()); n != want || (err != nil) != (want == 0) {
				t.Errorf("%d, %v, want %d", n, err, want)
			}
		})
	}
	waiting := func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.next != nil }
	get(1)
	<-put
	for range 10 { // these come too late for the question that is under way
		get(2)
	}
	for !waiting() {
		if t.Context().Err() != nil {
			t.Fatal("nobody waits")
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if _, err := s.get(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("one who left: %v", err)
	}
	told <- 1
	<-put
	told <- 2
	go func() { // in case not all of them had come before that question was put
		for {
			select {
			case <-put:
				told <- 2
			case <-t.Context().Done():
				return
			}
		}
	}()
	asking.Wait()
}

func TestSharedErrors(t *testing.T) {
	t.Parallel()
	n := 0
	s := shared[int]{ask: func(context.Context) (int, error) {
		if n++; n == 1 {
			return 0, errors.New("nothing")
		}
		return n, nil
	}}
	if _, err := s.get(t.Context()); err == nil {
		t.Error("no error")
	}
	if v, err := s.get(t.Context()); v != 2 || err != nil {
		t.Errorf("%d, %v: an answer must not outlive its question", v, err)
	}
}
