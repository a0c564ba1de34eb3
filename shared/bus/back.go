package bus

import (
	"context"
	"fmt"
	"iter"
	"slices"
)

// Bounds of how far Back reads at a time: it reaches further back the less it finds, and never holds much.
const (
	backWidth = 64
	backMost  = 1 << 20 // sequences
	backHeld  = 256     // messages, about
)

// Back yields the messages of a stream whose subject matches filter and that lie before sequence before (0: all), the
// newest first. A stream is only readable forwards, so it reads windows of sequences.
func (b *Bus) Back(ctx context.Context, stream, filter string, before uint64) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		state, err := b.State(ctx, stream)
		if err != nil {
			yield(Stored{}, fmt.Errorf("read back: %w", err))
			return
		}
		first := max(state.FirstSeq, 1)
		if before == 0 || before > state.LastSeq {
			before = state.LastSeq + 1
		}
		for width := uint64(backWidth); before > first; {
			from := first
			if before-first > width {
				from = before - width
			}
			var window []Stored
			for m, err := range b.Scan(ctx, stream, filter, from) {
				if err != nil {
					yield(Stored{}, err)
					return
				}
				if m.Sequence >= before {
					break
				}
				window = append(window, m)
			}
			for _, m := range slices.Backward(window) {
				if !yield(m, nil) {
					return
				}
			}
			before = from
			switch {
			case len(window) < backHeld/4:
				width = min(4*width, backMost)
			case len(window) > backHeld:
				width = max(width/4, backWidth)
			}
		}
	}
}
