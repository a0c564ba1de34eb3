package bucket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// wide is a source that several requests at a time are good for. Some of its bodies break, and some are wrong.
type wide struct {
	scripted
	opens, now, most atomic.Int64
	breaks, corrupts bool
	budget           *Budget
}

func (w *wide) Streams() int { return 4 }

func (w *wide) Open(_ context.Context, _, _ string, offset, length int64) (io.ReadCloser, error) {
	n := w.opens.Add(1)
	w.most.Store(max(w.most.Load(), w.now.Add(1)))
	rest := w.data[offset:]
	if length >= 0 {
		rest = rest[:length]
	}
	if w.corrupts && n == 3 && len(rest) > 10 {
		rest = bytes.Clone(rest)
		rest[7] ^= 1
	}
	r := io.Reader(bytes.NewReader(rest))
	if w.breaks && n%3 == 0 {
		r = io.MultiReader(bytes.NewReader(rest[:len(rest)/2]), failing{errBroken})
	}
	return &counted{Reader: r, now: &w.now}, nil
}

type counted struct {
	io.Reader
	now *atomic.Int64
}

func (c *counted) Close() error { c.now.Add(-1); return nil }

const testPart = 64 << 10

func newWide(size int) *wide {
	b := NewBudget(4)
	b.size = testPart
	return &wide{scripted: scripted{data: content(size)}, budget: b}
}

func (w *wide) reading(t *testing.T, opts ReaderOptions) Reading {
	t.Helper()
	opts.Backoff = func(int) time.Duration { return 0 }
	return NewReading(t.Context(), w, w.object(), opts, w.budget)
}

// left is how much of the budget is there.
func (w *wide) left() int { return len(w.budget.parts) }

func TestAhead(t *testing.T) {
	t.Parallel()
	for _, breaks := range []bool{false, true} {
		w := newWide(5*testPart + 12345)
		w.breaks = breaks
		progress := int64(0)
		r := w.reading(t, ReaderOptions{OnProgress: func(n int64) { progress += n }})
		if _, ok := r.(*Ahead); !ok {
			t.Fatalf("it is read by a %T", r)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, w.data) || progress != int64(len(w.data)) {
			t.Errorf("breaks %v: %d bytes of %d, progress %d: %v", breaks, len(got), len(w.data), progress, err)
		}
		_ = r.Close()
		if n := w.now.Load(); n != 0 || w.left() != 4 || w.most.Load() > 4 {
			t.Errorf("breaks %v: %d bodies open, %d parts left, up to %d at a time", breaks, n, w.left(), w.most.Load())
		}
	}
}

// One byte that is wrong anywhere is told at the end of the whole.
func TestAheadChecks(t *testing.T) {
	t.Parallel()
	w := newWide(3 * testPart)
	w.corrupts = true
	r := w.reading(t, ReaderOptions{})
	if _, err := io.ReadAll(r); !errors.Is(err, ErrChecksum) || !errors.Is(r.Err(), ErrChecksum) {
		t.Errorf("%v", err)
	}
	_ = r.Close()
}

// summed is a wide source that knows a checksum which its objects do not bring along.
type summed struct{ *wide }

func (s *summed) Sum(context.Context, string, string) (Sum, error) {
	obj := s.object()
	return wanted{NewChecksum(), obj.Want()}, nil
}

// A checksum that only a question tells counts as well.
func TestAheadAsksForSums(t *testing.T) {
	t.Parallel()
	for _, corrupts := range []bool{false, true} {
		w := newWide(3 * testPart)
		w.corrupts = corrupts
		obj := w.object()
		obj.CRC32C = ""
		r := NewReading(t.Context(), &summed{w}, obj, ReaderOptions{}, w.budget)
		_, err := io.ReadAll(r)
		if errors.Is(err, ErrChecksum) != corrupts || !corrupts && err != nil {
			t.Errorf("corrupt %v: %v", corrupts, err)
		}
		_ = r.Close()
	}
}

// Who comes when the memory is used up reads in one stream; who gives up gives back.
func TestAheadBudget(t *testing.T) {
	t.Parallel()
	w := newWide(6 * testPart)
	first := w.reading(t, ReaderOptions{})
	if _, err := io.ReadFull(first, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	second := w.reading(t, ReaderOptions{})
	if _, ok := second.(*Reader); !ok {
		t.Errorf("without memory it is read by a %T", second)
	}
	if got, err := io.ReadAll(second); err != nil || len(got) != len(w.data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	_, _ = first.Close(), second.Close()
	if w.left() != 4 || w.now.Load() != 0 {
		t.Errorf("%d parts left, %d bodies open", w.left(), w.now.Load())
	}
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("a closed one can be read")
	}
}

func TestReaderKeepsToALimit(t *testing.T) {
	t.Parallel()
	src := &scripted{data: content(300_000)}
	limit := rate.NewLimiter(1_000_000, 50_000)
	start := time.Now()
	r := NewReader(t.Context(), src, src.object(), ReaderOptions{Limit: limit, Stall: 50 * time.Millisecond})
	defer r.Close()
	got, err := io.ReadAll(r)
	if took := time.Since(start); err != nil || len(got) != 300_000 || took < 240*time.Millisecond {
		t.Errorf("%d bytes at 1 MB/s in %s: %v", len(got), took, err)
	}
}
