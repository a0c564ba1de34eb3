package store

import (
	"context"
	"errors"
	"time"

	"millrace/shared/bus"
	"millrace/shared/topology"
)

// Lease is the record behind "only one does this at a time". It makes work less, never right: whatever is done under a
// lease must be safe to be done by two, because a process that is stopped and woken up does not know that it lost it.
type Lease struct {
	Holder string `json:"holder"`
	Beat   int    `json:"beat"` // changes with each renewal
}

// Leases hands out leases. There are no wall clocks in it: a lease is free when its record has not changed for its
// lifetime as measured by whoever wants it.
type Leases struct {
	reg    *Register[Lease]
	holder string
}

// OpenLeases binds the bucket. holder names this process; a process that comes back under the same name, as the
// all-in-one on its own broker does, has its leases at once.
func OpenLeases(ctx context.Context, b *bus.Bus, holder string) (*Leases, error) {
	reg, err := Open[Lease](ctx, b, topology.Leases)
	if err != nil {
		return nil, err
	}
	return &Leases{reg: reg, holder: holder}, nil
}

// LeaseTime is how long a lease outlives its holder.
const LeaseTime = 6 * time.Second

// Hold waits for the lease of key, runs do while it is held, and gives it back; again and again until ctx ends or do
// fails. The context of do ends when the lease is lost.
func (l *Leases) Hold(ctx context.Context, key string, do func(context.Context) error) error {
	for ctx.Err() == nil {
		if err := l.acquire(ctx, key); err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // it was told to end
			}
			return err
		}
		held, lost := context.WithCancel(ctx)
		go func() {
			defer lost()
			l.renew(held, key)
		}()
		err := do(held)
		lost()
		l.release(context.WithoutCancel(ctx), key)
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return nil
}

// keepAgain is how long after a failure what is kept begins anew.
const keepAgain = time.Second

// Keep is Hold of what begins anew when it fails, or when the lease cannot be asked for, until ctx ends: a broker that
// does not answer for a while must not end whatever else its process is at. failed hears why.
func (l *Leases) Keep(ctx context.Context, key string, failed func(error), do func(context.Context) error) {
	for ctx.Err() == nil {
		err := l.Hold(ctx, key, do)
		if err == nil || ctx.Err() != nil {
			continue
		}
		failed(err)
		select {
		case <-time.After(keepAgain):
		case <-ctx.Done():
		}
	}
}

func (l *Leases) acquire(ctx context.Context, key string) error {
	var seen Revision
	var since time.Time
	for {
		v, rev, err := l.reg.Get(ctx, key)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if rev != seen {
			seen, since = rev, time.Now()
		}
		if v.Holder == "" || v.Holder == l.holder || time.Since(since) >= LeaseTime {
			took := false
			_, _, err := l.reg.Modify(ctx, key, func(now *Lease) error {
				if took = *now == v; !took {
					return ErrUnchanged
				}
				*now = Lease{Holder: l.holder, Beat: now.Beat + 1}
				return nil
			})
			if err != nil || took {
				return err
			}
			continue
		}
		select {
		case <-time.After(LeaseTime / 6):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// renew beats until ctx ends, the lease is somebody else's, or no beat got through for half its lifetime.
func (l *Leases) renew(ctx context.Context, key string) {
	last := time.Now()
	tick := time.NewTicker(LeaseTime / 3) // each beat is a synced write, also when nothing else happens
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		mine := true
		bctx, cancel := context.WithTimeout(ctx, LeaseTime/3)
		_, _, err := l.reg.Modify(bctx, key, func(now *Lease) error {
			if mine = now.Holder == l.holder; !mine {
				return ErrUnchanged
			}
			now.Beat++
			return nil
		})
		cancel()
		switch {
		case !mine:
			return
		case err == nil:
			last = time.Now()
		case time.Since(last) > LeaseTime/2:
			return
		}
	}
}

func (l *Leases) release(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(ctx, LeaseTime)
	defer cancel()
	_, _, _ = l.reg.Modify(ctx, key, func(now *Lease) error { // a lease not given back runs out
		if now.Holder != l.holder {
			return ErrUnchanged
		}
		now.Holder = ""
		return nil
	})
}
