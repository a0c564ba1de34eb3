package bucket

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// Wide is implemented by sources whose throughput for one large object grows with the number of requests that read it.
// Folders are none: their disk is read in order, and the kernel reads ahead.
type Wide interface {
	// Streams is how many parts of an object are worth reading at a time.
	Streams() int
}

// StreamsOf returns how many parts of an object of a source, whatever wraps it, are worth reading at a time.
func StreamsOf(src Source) int {
	if w, ok := As[Wide](src); ok {
		return w.Streams()
	}
	return 1
}

// Summed is implemented by sources that know checksums which their listings do not tell, nor answers that are a part of an
// object.
type Summed interface {
	// Sum returns what the bytes of a version are to be held against, which takes anything if the storage knows nothing of
	// the kind. Its errors are those of Open.
	Sum(ctx context.Context, path, version string) (Sum, error)
}

// Summing is implemented by bodies whose answer brought a checksum of all that was asked for. A body holds what it brings
// against it, unless somebody took it: who goes on after a broken connection has bytes of several answers.
type Summing interface {
	// TakeSum returns the checksum, of no bytes yet, or nil if there is none. It comes before the first Read.
	TakeSum() Sum
}

// Sum is a checksum of bytes that are written to it in order. Write never fails; Check returns an error wrapping
// ErrChecksum if they are not what they should be.
type Sum interface {
	io.Writer
	Check() error
}

// wanted is the checksum that an object brought along.
type wanted struct {
	*Hash
	want Want
}

func (w wanted) Check() error { return w.Hash.Check(w.want) }

// sumOf returns what an object is held against as far as it is known without asking, nil: not at all.
func sumOf(obj Object) Sum {
	if obj.CRC32C == "" {
		return nil
	}
	return wanted{NewChecksum(), obj.Want()}
}

// AheadPart is what one request of an Ahead brings, in bytes.
const AheadPart = 4 << 20

// Budget is the memory that all Aheads of a process may hold together, in parts of AheadPart bytes. Who gets none reads
// in a single stream, so that memory is bounded and nobody waits.
type Budget struct {
	parts chan []byte
	size  int64 // of a part
}

// NewBudget returns a budget of so many parts. Their memory is taken when it is first needed, and then kept.
func NewBudget(parts int) *Budget {
	b := &Budget{parts: make(chan []byte, parts), size: AheadPart}
	for range parts {
		b.parts <- nil
	}
	return b
}

// take returns up to n parts, and fewer when there are no more.
func (b *Budget) take(n int) (parts [][]byte) {
	for range n {
		select {
		case p := <-b.parts:
			if p == nil {
				p = make([]byte, b.size)
			}
			parts = append(parts, p)
		default:
			return parts
		}
	}
	return parts
}

func (b *Budget) give(parts ...[]byte) {
	for _, p := range parts {
		b.parts <- p
	}
}

// Ahead reads one version of an object from beginning to end, as Reader does, by several requests at a time: while the
// first part is consumed those behind it are on their way. Each part is resumed and timed as a Reader is, and the
// checksum is held against the whole.
type Ahead struct {
	obj    Object
	budget *Budget
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	parts chan *part // in order; each is being read
	free  chan []byte
	at    *part // that is being consumed
	rest  []byte
	n     int64
	sums  Summed // asked for sum before the first byte; nil: nobody to ask
	sum   Sum    // nil: nothing to hold it against
	err   error
	seen  func(int64)
}

type part struct {
	buf  []byte
	size int
	done chan error
}

// NewReading returns what reads a version of an object best: an Ahead where the source gains by it and the budget has
// memory left, else a Reader. The budget may be nil. OnProgress is called from the goroutine that reads.
func NewReading(ctx context.Context, src Source, obj Object, opts ReaderOptions, budget *Budget) Reading {
	streams := StreamsOf(src)
	if budget == nil || streams < 2 || obj.Version == "" || obj.Size < 2*budget.size {
		return NewReader(ctx, src, obj, opts)
	}
	bufs := budget.take(int(min(int64(streams), (obj.Size+budget.size-1)/budget.size)))
	if len(bufs) < 2 {
		budget.give(bufs...)
		return NewReader(ctx, src, obj, opts)
	}
	var sums Summed
	if obj.CRC32C == "" {
		sums, _ = As[Summed](src)
	}
	opts = opts.withDefaults()
	a := &Ahead{
		obj: obj, budget: budget, seen: opts.OnProgress, sums: sums, sum: sumOf(obj),
		parts: make(chan *part, len(bufs)), free: make(chan []byte, len(bufs)),
	}
	a.ctx, a.cancel = context.WithCancel(ctx)
	for _, b := range bufs {
		a.free <- b
	}
	opts.OnProgress, opts.Hasty = nil, false // the parts before would be lost
	a.wg.Go(func() { a.plan(src, opts) })
	return a
}

// Reading is a Reader or an Ahead.
type Reading interface {
	io.ReadCloser
	// Err returns what made reading fail, nil if it did not.
	Err() error
}

// plan begins a part for each buffer that is free, in order.
func (a *Ahead) plan(src Source, opts ReaderOptions) {
	defer close(a.parts)
	for offset := int64(0); offset < a.obj.Size; offset += a.budget.size {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.ctx.Done():
			return
		}
		p := &part{buf: buf, size: int(min(a.budget.size, a.obj.Size-offset)), done: make(chan error, 1)}
		a.wg.Go(func() {
			r := newRangeReader(a.ctx, src, a.obj, offset, offset+int64(p.size), opts)
			_, err := io.ReadFull(r, p.buf[:p.size])
			if err == nil {
				if _, end := r.Read(make([]byte, 1)); !atEnd(end) { // the version holds only from here on
					err = end
				}
			}
			_ = r.Close()
			p.done <- err
		})
		a.parts <- p // never full: there are as many places as buffers
	}
}

// Read implements io.Reader.
func (a *Ahead) Read(p []byte) (int, error) {
	if len(p) == 0 || a.err != nil {
		return 0, a.err
	}
	if len(a.rest) == 0 {
		if a.err = a.next(); a.err != nil {
			return 0, a.err
		}
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	a.n += int64(n)
	if a.sum != nil {
		_, _ = a.sum.Write(p[:n])
	}
	a.seen(int64(n))
	return n, nil
}

// next waits for the next part.
func (a *Ahead) next() error {
	if a.sums != nil { // while the first parts are on their way
		sum, err := a.sums.Sum(a.ctx, a.obj.Path, a.obj.Version)
		if err != nil {
			return err
		}
		a.sums, a.sum = nil, sum
	}
	if a.at != nil {
		a.free <- a.at.buf
		a.at = nil
	}
	p, ok := <-a.parts
	if !ok {
		if a.n < a.obj.Size {
			return fmt.Errorf("read %q at %d of %d: %w", a.obj.Path, a.n, a.obj.Size, a.ctx.Err())
		}
		if a.sum != nil {
			if err := a.sum.Check(); err != nil {
				return fmt.Errorf("read %q: %w", a.obj.Path, err)
			}
		}
		return io.EOF
	}
	a.at = p
	if err := <-p.done; err != nil {
		return err
	}
	a.rest = p.buf[:p.size]
	return nil
}

// Err implements Reading.
func (a *Ahead) Err() error {
	if atEnd(a.err) {
		return nil
	}
	return a.err
}

// Close ends all requests and gives the memory back.
func (a *Ahead) Close() error {
	a.cancel()
	a.wg.Wait()
	if a.err == nil {
		a.err = errClosed
	}
	if a.at != nil {
		a.budget.give(a.at.buf)
		a.at = nil
	}
	for p := range a.parts {
		a.budget.give(p.buf)
	}
	for {
		select {
		case b := <-a.free:
			a.budget.give(b)
		default:
			return nil
		}
	}
}
