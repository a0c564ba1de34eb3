// Package store is the durable state of Millrace as typed records: what people configure, and where jobs, runs and
// windows stand.
//
// Every record is a compare-and-set register in a key-value bucket. Revisions are good for compare-and-set and for
// nothing else: after corruption or a restore they can be handed out again.
package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/topology"
)

// ErrNotFound says that there is no such record.
var ErrNotFound = errors.New("not found")

// ErrUnchanged may be returned by the function given to Modify: the record is as it should be, nothing is written.
var ErrUnchanged = errors.New("unchanged")

// Register is one bucket of records of type T, by key. A key is an id: letters, digits, "-" and "_".
type Register[T any] struct {
	bus    *bus.Bus
	kv     jetstream.KeyValue
	stream jetstream.Stream // behind kv
	name   string
}

// Open binds a bucket of the topology. It fails with topology.ErrMissing when nobody has made it.
func Open[T any](ctx context.Context, b *bus.Bus, name string) (*Register[T], error) {
	kv, err := b.JetStream().KeyValue(ctx, b.Bucket(name))
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		err = topology.ErrMissing
	}
	var stream jetstream.Stream
	if err == nil {
		stream, err = b.JetStream().Stream(ctx, "KV_"+b.Bucket(name))
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", name, err)
	}
	return &Register[T]{bus: b, kv: kv, stream: stream, name: name}, nil
}

// Revision identifies one state of a record for compare-and-set. 0: there is none.
type Revision = uint64

// Get returns a record and its revision, or ErrNotFound.
func (r *Register[T]) Get(ctx context.Context, key string) (T, Revision, error) {
	v, _, rev, err := r.get(ctx, key)
	return v, rev, err
}

func (r *Register[T]) get(ctx context.Context, key string) (v T, raw []byte, rev Revision, err error) {
	e, err := r.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return v, nil, 0, fmt.Errorf("%s %s: %w", r.name, key, ErrNotFound)
	}
	if err != nil {
		return v, nil, 0, fmt.Errorf("read %s %s: %w", r.name, key, err)
	}
	if err := json.Unmarshal(e.Value(), &v); err != nil {
		return v, nil, 0, fmt.Errorf("decode %s %s: %w", r.name, key, err)
	}
	return v, e.Value(), e.Revision(), nil
}

// Put writes a record, whatever is there.
func (r *Register[T]) Put(ctx context.Context, key string, v T) error {
	_, err := r.write(ctx, key, v, nil)
	return err
}

// Create writes a record that must not be there yet, else fails with bus.ErrConflict. A deleted record counts as absent
// only for Modify.
func (r *Register[T]) Create(ctx context.Context, key string, v T) error {
	_, err := r.write(ctx, key, v, bus.Absent())
	return err
}

// Update writes a record whose revision must still be rev, else fails with bus.ErrConflict.
//
// A write that was not answered in time, or that conflicts, is read back: equal bytes mean that it is done, by whoever.
func (r *Register[T]) Update(ctx context.Context, key string, v T, rev Revision) error {
	_, err := r.write(ctx, key, v, &rev)
	return err
}

func (r *Register[T]) write(ctx context.Context, key string, v T, expect *uint64) (Revision, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return 0, fmt.Errorf("encode %s %s: %w", r.name, key, err)
	}
	rev, err := r.put(ctx, key, data, expect)
	if errors.Is(err, bus.ErrConflict) && *expect != 0 {
		if _, raw, rev, rerr := r.get(ctx, key); rerr == nil && bytes.Equal(raw, data) {
			return rev, nil
		}
	}
	return rev, err
}

// put writes the bytes of a record. A write that was not answered is read back.
func (r *Register[T]) put(ctx context.Context, key string, data []byte, expect *uint64) (Revision, error) {
	rev, err := r.bus.Publish(ctx, bus.Message{Subject: r.subject(key), Data: data, Expect: expect})
	if err == nil {
		return rev, nil
	}
	if errors.Is(err, bus.ErrUnknown) {
		if _, raw, rev, rerr := r.get(ctx, key); rerr == nil && bytes.Equal(raw, data) {
			return rev, nil
		}
	}
	return 0, fmt.Errorf("write %s %s: %w", r.name, key, err)
}

func (r *Register[T]) subject(key string) string { return "$KV." + r.bus.Bucket(r.name) + "." + key }

// Modify reads a record, lets change edit it, and writes it if nobody else did meanwhile; else it starts over. change
// sees the zero value when there is no record, may run several times, and must decide by its argument alone. The
// returned record is what is stored when Modify returns nil or when change returned ErrUnchanged, which is not an
// error of Modify. Any other error of change ends it.
func (r *Register[T]) Modify(ctx context.Context, key string, change func(v *T) error) (T, Revision, error) {
	for {
		v, raw, rev, err := r.get(ctx, key)
		if errors.Is(err, ErrNotFound) {
			// A deleted key leaves a marker, and compare-and-set has to name it.
			var created bool
			if rev, created, err = r.tombstone(ctx, key); err != nil {
				return v, 0, err
			}
			if created {
				continue
			}
		} else if err != nil {
			return v, 0, err
		}
		if err := change(&v); err != nil {
			if errors.Is(err, ErrUnchanged) {
				err = nil
			}
			return v, rev, err
		}
		data, err := json.Marshal(v)
		if err != nil {
			return v, rev, fmt.Errorf("encode %s %s: %w", r.name, key, err)
		}
		if bytes.Equal(data, raw) {
			return v, rev, nil
		}
		// Equal bytes of somebody else are no excuse here: two that add one to the same number write the same.
		rev, err = r.put(ctx, key, data, &rev)
		if !errors.Is(err, bus.ErrConflict) {
			return v, rev, err
		}
	}
}

// tombstone returns the revision of the marker that a deleted record leaves, 0 when there never was one, or says that
// somebody created the record meanwhile.
func (r *Register[T]) tombstone(ctx context.Context, key string) (rev Revision, created bool, err error) {
	m, err := r.stream.GetLastMsgForSubject(ctx, r.subject(key))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read %s %s: %w", r.name, key, err)
	}
	return m.Sequence, len(m.Data) > 0, nil
}

// Delete removes a record; none there is no error.
func (r *Register[T]) Delete(ctx context.Context, key string) error {
	if err := r.kv.Delete(ctx, key); err != nil {
		return fmt.Errorf("delete %s %s: %w", r.name, key, err)
	}
	return nil
}

// All yields every record, oldest write first.
func (r *Register[T]) All(ctx context.Context) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		w, err := r.kv.WatchAll(ctx, jetstream.IgnoreDeletes())
		if err != nil {
			var zero T
			yield(zero, fmt.Errorf("list %s: %w", r.name, err))
			return
		}
		defer func() { _ = w.Stop() }()
		for e := range w.Updates() {
			if e == nil {
				return
			}
			var v T
			if err := json.Unmarshal(e.Value(), &v); err != nil {
				err = fmt.Errorf("decode %s %s: %w", r.name, e.Key(), err)
				yield(v, err)
				return
			}
			if !yield(v, nil) {
				return
			}
		}
		var zero T
		err = ctx.Err()
		if err == nil {
			err = errors.New("the subscription ended")
		}
		yield(zero, fmt.Errorf("list %s: %w", r.name, err))
	}
}

// Change is one step in the life of a record.
type Change[T any] struct {
	Key      string
	Value    *T // nil: deleted
	Revision Revision
}

// Watch calls each with every record as it stands and then with every change, in order, until ctx ends. Once the
// records as they stood are through, it calls ready.
func (r *Register[T]) Watch(ctx context.Context, ready func(), each func(Change[T])) error {
	w, err := r.kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("watch %s: %w", r.name, err)
	}
	defer func() { _ = w.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("watch %s: the subscription ended", r.name)
			case e == nil:
				ready()
			case e.Operation() != jetstream.KeyValuePut:
				each(Change[T]{Key: e.Key(), Revision: e.Revision()})
			default:
				v := new(T)
				if err := json.Unmarshal(e.Value(), v); err != nil {
					return fmt.Errorf("decode %s %s: %w", r.name, e.Key(), err)
				}
				each(Change[T]{Key: e.Key(), Value: v, Revision: e.Revision()})
			}
		}
	}
}

// Deleted reports whether there was a record under key and somebody deleted it: what lets a repeated deletion be told
// from one of what never was.
func (r *Register[T]) Deleted(ctx context.Context, key string) (bool, error) {
	rev, there, err := r.tombstone(ctx, key)
	return rev > 0 && !there, err
}
