package bus

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// Stored is a message as a stream holds it.
type Stored struct {
	Subject  string
	Sequence uint64
	Time     time.Time // when the broker stored it
	Data     []byte
}

// pageSize is how many messages one direct get asks for.
const pageSize = 500

// Scan yields the messages of a stream whose subject matches filter, from sequence from on (0: the first), in stream
// order. It pages, so memory stays constant; what is written meanwhile may or may not be seen.
func (b *Bus) Scan(ctx context.Context, stream, filter string, from uint64) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		for from = max(from, 1); ; {
			n := 0
			for m, err := range b.page(ctx, stream, filter, from, pageSize) {
				if err != nil {
					yield(Stored{}, err)
					return
				}
				n++
				from = m.Sequence + 1
				if !yield(m, nil) {
					return
				}
			}
			if n < pageSize {
				return
			}
		}
	}
}

func (b *Bus) page(ctx context.Context, stream, filter string, from uint64, n int) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		msgs, err := jetstreamext.GetBatch(ctx, b.js, b.Stream(stream), n,
			jetstreamext.GetBatchSeq(from), jetstreamext.GetBatchSubject(filter))
		b.yieldAll(stream, msgs, err, yield)
	}
}

// lastBound is how many subjects one request for last messages may name.
const lastBound = 500

// Last yields the newest message of each of the subjects, which may have wildcards, in no particular order. Subjects
// without a message yield nothing.
func (b *Bus) Last(ctx context.Context, stream string, subjects ...string) iter.Seq2[Stored, error] {
	return b.LastOf(ctx, b.Stream(stream), subjects...)
}

// LastOf is Last for a stream given by the broker's name, as those behind buckets are.
func (b *Bus) LastOf(ctx context.Context, stream string, subjects ...string) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		for chunk := range slices.Chunk(subjects, lastBound) {
			msgs, err := jetstreamext.GetLastMsgsFor(ctx, b.js, stream, chunk)
			if !b.yieldAll(stream, msgs, err, yield) {
				return
			}
		}
	}
}

func (b *Bus) yieldAll(stream string, msgs iter.Seq2[*jetstream.RawStreamMsg, error], err error, yield func(Stored, error) bool) bool {
	if err != nil {
		yield(Stored{}, fmt.Errorf("read stream %s: %w", stream, err))
		return false
	}
	for m, err := range msgs {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return true
		}
		if err != nil {
			yield(Stored{}, fmt.Errorf("read stream %s: %w", stream, err))
			return false
		}
		if !yield(Stored{Subject: m.Subject, Sequence: m.Sequence, Time: m.Time, Data: m.Data}, nil) {
			return false
		}
	}
	return true
}

// Purge removes the messages of a stream whose subject matches filter, up to and including sequence upTo (0: all).
func (b *Bus) Purge(ctx context.Context, stream, filter string, upTo uint64) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	s, err := b.js.Stream(ctx, b.Stream(stream))
	if err != nil {
		return fmt.Errorf("purge %s of stream %s: %w", filter, stream, err)
	}
	opts := []jetstream.StreamPurgeOpt{jetstream.WithPurgeSubject(filter)}
	if upTo > 0 {
		opts = append(opts, jetstream.WithPurgeSequence(upTo+1))
	}
	if err := s.Purge(ctx, opts...); err != nil {
		return fmt.Errorf("purge %s of stream %s: %w", filter, stream, err)
	}
	return nil
}

// State returns the size and bounds of a stream.
func (b *Bus) State(ctx context.Context, stream string) (jetstream.StreamState, error) {
	s, err := b.js.Stream(ctx, b.Stream(stream))
	if err != nil {
		return jetstream.StreamState{}, fmt.Errorf("state of stream %s: %w", stream, err)
	}
	return s.CachedInfo().State, nil
}
