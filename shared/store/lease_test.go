package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/store"
	"millrace/shared/topology"
)

func leases(t *testing.T, b *bus.Bus, holder string) *store.Leases {
	t.Helper()
	l, err := store.OpenLeases(t.Context(), b, holder)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestOneHolderAtATime(t *testing.T) {
	t.Parallel()
	connect := open(t)
	var holding, turns atomic.Int32
	var g sync.WaitGroup
	for i := range 3 {
		b, _ := connect()
		l := leases(t, b, fmt.Sprint("holder", i))
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		g.Go(func() {
			mine := 0
			err := l.Hold(ctx, "tracker", func(ctx context.Context) error {
				if n := holding.Add(1); n != 1 {
					t.Errorf("%d hold it", n)
				}
				defer holding.Add(-1)
				turns.Add(1)
				if mine++; mine == 3 {
					cancel()
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if turns.Load() != 9 {
		t.Errorf("%d turns", turns.Load())
	}
}

func TestHoldEndsWithTheError(t *testing.T) {
	t.Parallel()
	connect := open(t)
	b, _ := connect()
	boom := errors.New("boom")
	if err := leases(t, b, "a").Hold(t.Context(), "tracker", func(context.Context) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	// It was given back: another has it at once.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	start := time.Now()
	if err := leases(t, b, "b").Hold(ctx, "tracker", func(context.Context) error { cancel(); return nil }); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > store.LeaseTime/2 {
		t.Errorf("it took %s", d)
	}
}

// TestKeepOutlivesTrouble: leases that cannot be read, and work that fails, are a reason to begin anew and not to end.
func TestKeepOutlivesTrouble(t *testing.T) {
	t.Parallel()
	connect := open(t)
	b, _ := connect()
	lease := leases(t, b, "a")
	bucket := "KV_" + b.Bucket(topology.Leases)
	if err := b.JetStream().DeleteStream(t.Context(), bucket); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failures, held, over := make(chan error, 8), make(chan struct{}), make(chan struct{})
	boom := errors.New("boom")
	go func() {
		defer close(over)
		times := 0
		lease.Keep(ctx, "tracker", func(err error) { failures <- err }, func(ctx context.Context) error {
			if times++; times == 1 {
				return boom
			}
			close(held)
			<-ctx.Done()
			return nil
		})
	}()
	if err := await(t, "leases that cannot be read", failures); errors.Is(err, boom) {
		t.Fatalf("it is held although there are no leases: %v", err)
	}
	if err := b.Apply(t.Context(), b.JetStream()); err != nil {
		t.Fatal(err)
	}
	for !errors.Is(await(t, "work that fails", failures), boom) {
	}
	await(t, "work that begins anew", held)
	cancel()
	await(t, "the end", over)
}

// When a holder's connection dies, it knows that it lost the lease before anybody else has it; who waits gets it after
// the lifetime of the lease, and a process that comes back under the same name at once.
func TestTakeover(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, successor string
		from, to        time.Duration
	}{
		{"another holder", "second", store.LeaseTime, store.LeaseTime * 2},
		{"the same holder", "first", 0, store.LeaseTime / 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			connect := open(t)
			b, nc := connect()
			first := leases(t, b, "first")
			held := make(chan context.Context, 1)
			lost := make(chan struct{})
			go func() {
				_ = first.Hold(context.Background(), "tracker", func(ctx context.Context) error {
					held <- ctx
					<-ctx.Done()
					close(lost)
					return ctx.Err()
				})
			}()
			await(t, "the first holder", held)
			nc.Close()

			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			b, _ = connect()
			var took time.Duration
			err := leases(t, b, c.successor).Hold(ctx, "tracker", func(context.Context) error {
				took = time.Since(start)
				if c.successor != "first" {
					select {
					case <-lost:
					default:
						t.Error("the first holder does not know")
					}
				}
				cancel()
				return nil
			})
			if err != nil || took < c.from || took > c.to {
				t.Errorf("taken over after %s: %v", took, err)
			}
			await(t, "the first holder to know", lost)
		})
	}
}
