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
	"regexp"
	"slices"
	"strings"

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
	bus  *bus.Bus
	kv   jetstream.KeyValue
	name string
}

// Open binds a bucket of the topology. It fails with topology.ErrMissing when nobody has made it.
func Open[T any](ctx context.Context, b *bus.Bus, name string) (*Register[T], error) {
	kv, err := b.JetStream().KeyValue(ctx, b.Bucket(name))
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		err = topology.ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", name, err)
	}
	return &Register[T]{bus: b, kv: kv, name: name}, nil
}

// Revision identifies one state of a record for compare-and-set. 0: there is none.
type Revision = uint64

// Get returns a record and its revision, or ErrNotFound.
func (r *Register[T]) Get(ctx context.Context, key string) (T, Revision, error) {
	v, _, rev, err := r.get(ctx, key)
	if err != nil {
		rev = 0
	}
	return v, rev, err
}

// get is Get with the bytes as stored. Of a record that was deleted it returns the revision of the marker that is left in
// its place, which compare-and-set has to name.
func (r *Register[T]) get(ctx context.Context, key string) (v T, raw []byte, rev Revision, err error) {
	if !validKey.MatchString(key) { // it could be a wildcard
		return v, nil, 0, fmt.Errorf("%s %s: %w", r.name, key, ErrNotFound)
	}
	m, err := r.bus.Get(ctx, r.behind(), r.subject(key))
	if err != nil {
		return v, nil, 0, fmt.Errorf("read %s %s: %w", r.name, key, err)
	}
	if len(m.Data) == 0 { // never there, or deleted
		return v, nil, m.Sequence, fmt.Errorf("%s %s: %w", r.name, key, ErrNotFound)
	}
	if err := json.Unmarshal(m.Data, &v); err != nil {
		return v, nil, 0, fmt.Errorf("decode %s %s: %w", r.name, key, err)
	}
	return v, m.Data, m.Sequence, nil
}

// validKey is what a key-value client lets through (NATS ADR-8), without the separators that we do not use.
var validKey = regexp.MustCompile(`^[A-Za-z0-9_=/-]+$`)

// behind is the broker's name of the stream behind the bucket.
func (r *Register[T]) behind() string { return "KV_" + r.bus.Bucket(r.name) }

// Put writes a record, whatever is there.
func (r *Register[T]) Put(ctx context.Context, key string, v T) error {
	return r.write(ctx, key, v, nil)
}

// Create writes a record that must not be there yet, else fails with bus.ErrConflict. A deleted record counts as absent
// only for Modify.
func (r *Register[T]) Create(ctx context.Context, key string, v T) error {
	return r.write(ctx, key, v, bus.Absent())
}

// Update writes a record whose revision must still be rev, else fails with bus.ErrConflict.
//
// A write that was not answered in time, or that conflicts, is read back: equal bytes mean that it is done, by whoever.
func (r *Register[T]) Update(ctx context.Context, key string, v T, rev Revision) error {
	return r.write(ctx, key, v, &rev)
}

// Write is one update of a record whose revision must still be Revision.
type Write[T any] struct {
	Key      string
	Value    T
	Revision Revision
}

// UpdateAll is Update for many records, as atomic batches. Each has its own revision and error.
func (r *Register[T]) UpdateAll(ctx context.Context, writes []Write[T]) ([]Revision, []error) {
	msgs := make([]bus.Message, len(writes))
	for i, w := range writes {
		data, err := r.encode(w.Key, w.Value)
		if err != nil {
			return make([]Revision, len(writes)), slices.Repeat([]error{err}, len(writes))
		}
		msgs[i] = bus.Message{Subject: r.subject(w.Key), Data: data, Expect: &w.Revision}
	}
	revs, errs := r.bus.PublishAll(ctx, msgs)
	for i, err := range errs {
		if errors.Is(err, bus.ErrUnknown) || errors.Is(err, bus.ErrConflict) && writes[i].Revision != 0 {
			if rev, ok := r.holds(ctx, writes[i].Key, msgs[i].Data); ok {
				revs[i], errs[i] = rev, nil
			}
		}
	}
	return revs, errs
}

// Swap is Update, and Create for revision 0, that returns the new revision. A conflict is never excused: values that
// must be told apart although they are equal carry something that is unlike.
func (r *Register[T]) Swap(ctx context.Context, key string, v T, rev Revision) (Revision, error) {
	data, err := r.encode(key, v)
	if err != nil {
		return 0, err
	}
	return r.put(ctx, key, data, &rev)
}

// Last returns the revision of the newest write to the bucket, 0 when there was none.
func (r *Register[T]) Last(ctx context.Context) (Revision, error) {
	s, err := r.bus.JetStream().Stream(ctx, r.behind())
	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", r.name, err)
	}
	return s.CachedInfo().State.LastSeq, nil
}

func (r *Register[T]) write(ctx context.Context, key string, v T, expect *uint64) error {
	data, err := r.encode(key, v)
	if err != nil {
		return err
	}
	_, err = r.put(ctx, key, data, expect)
	if errors.Is(err, bus.ErrConflict) && *expect != 0 {
		if _, ok := r.holds(ctx, key, data); ok {
			return nil
		}
	}
	return err
}

// put writes the bytes of a record. A write that was not answered is read back.
func (r *Register[T]) put(ctx context.Context, key string, data []byte, expect *uint64) (Revision, error) {
	rev, err := r.bus.Publish(ctx, bus.Message{Subject: r.subject(key), Data: data, Expect: expect})
	if err == nil {
		return rev, nil
	}
	if errors.Is(err, bus.ErrUnknown) {
		if rev, ok := r.holds(ctx, key, data); ok {
			return rev, nil
		}
	}
	return 0, fmt.Errorf("write %s %s: %w", r.name, key, err)
}

// holds reports whether a record is stored as data, and under which revision.
func (r *Register[T]) holds(ctx context.Context, key string, data []byte) (Revision, bool) {
	_, raw, rev, err := r.get(ctx, key)
	return rev, err == nil && bytes.Equal(raw, data)
}

func (r *Register[T]) encode(key string, v T) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", r.name, key, err)
	}
	return data, nil
}

func (r *Register[T]) subject(key string) string { return "$KV." + r.bus.Bucket(r.name) + "." + key }

// Modify reads a record, lets change edit it, and writes it if nobody else did meanwhile; else it starts over. change
// sees the zero value when there is no record, may run several times, and must decide by its argument alone. The
// returned record is what is stored when Modify returns nil or when change returned ErrUnchanged, which is not an
// error of Modify. Any other error of change ends it.
func (r *Register[T]) Modify(ctx context.Context, key string, change func(v *T) error) (T, Revision, error) {
	for {
		v, raw, rev, err := r.get(ctx, key)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return v, 0, err
		}
		if err := change(&v); err != nil {
			if errors.Is(err, ErrUnchanged) {
				err = nil
			}
			return v, rev, err
		}
		data, err := r.encode(key, v)
		if err != nil {
			return v, rev, err
		}
		if bytes.Equal(data, raw) {
			return v, rev, nil
		}
		// Equal bytes of somebody else are no excuse here: two that add one to the same number write the same.
		expect := rev // of its own: a write that was given up may still be looking at it
		rev, err = r.put(ctx, key, data, &expect)
		if !errors.Is(err, bus.ErrConflict) {
			return v, rev, err
		}
	}
}

// Delete removes a record; none there is no error.
func (r *Register[T]) Delete(ctx context.Context, key string) error {
	if err := r.kv.Delete(ctx, key); err != nil {
		return fmt.Errorf("delete %s %s: %w", r.name, key, err)
	}
	return nil
}

// Deleted reports whether there was a record under key and it was deleted.
func (r *Register[T]) Deleted(ctx context.Context, key string) (bool, error) {
	_, _, rev, err := r.get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return rev != 0, nil
	}
	return false, err
}

// All yields every record, oldest write first. One that is written meanwhile may come twice, and is never left out.
//
// It is not a watch that ends: the client ends the first pass of a watch by a count, which is short by a record that is
// replaced at that moment.
func (r *Register[T]) All(ctx context.Context) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for e, err := range r.Entries(ctx) {
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			if !yield(*e.Value, nil) {
				return
			}
		}
	}
}

// Entries is All with the key and the revision of each record.
func (r *Register[T]) Entries(ctx context.Context) iter.Seq2[Change[T], error] {
	return func(yield func(Change[T], error) bool) {
		for m, err := range r.bus.Records(ctx, r.behind()) {
			if err == nil && len(m.Data) == 0 {
				continue // deleted
			}
			v := new(T)
			if err == nil {
				err = json.Unmarshal(m.Data, v)
			}
			if err != nil {
				yield(Change[T]{}, fmt.Errorf("list %s: %w", r.name, err))
				return
			}
			if !yield(Change[T]{Key: strings.TrimPrefix(m.Subject, r.subject("")), Value: v, Revision: m.Sequence}, nil) {
				return
			}
		}
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
	if err != nil && ctx.Err() != nil {
		return nil // it was over before it began
	}
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
