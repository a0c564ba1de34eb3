package bucket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"
)

// ReaderOptions is how patient a Reader is. The zero value is what an import wants.
type ReaderOptions struct {
	// Attempts is how often in a row the object is opened without a byte coming of it. Default 4.
	Attempts int

	// Stall is how long a Read may go without a byte, over all its attempts, before it fails with ErrStalled, and how
	// long 32 KiB may take, as a trickle would hold its reader for days. The time between Reads does not count, nor does
	// that of Limit and OnProgress. Default 1 minute, negative: no limit.
	Stall time.Duration

	// Hasty leaves it to the caller to wait when the storage is throttled or says when to come back, unless bytes were
	// read that would have to be read again.
	Hasty bool

	// Limit is what all readers that share it may read together; nil: no limit. Bytes are paid for after they came, so
	// its burst bounds what one Read may bring.
	Limit *rate.Limiter

	// Backoff is the pause before attempt n, the first being 1; what the storage asks for in RetryAfter counts if it is
	// longer. Default: 200 ms doubling up to 10 s, with jitter.
	Backoff func(n int) time.Duration

	// OnProgress is called after each Read that brought bytes, with their number. It runs in the reading goroutine.
	OnProgress func(n int64)
}

func (o ReaderOptions) withDefaults() ReaderOptions {
	if o.Attempts <= 0 {
		o.Attempts = 4
	}
	if o.Stall == 0 {
		o.Stall = time.Minute
	}
	if o.Backoff == nil {
		o.Backoff = func(n int) time.Duration {
			d := min(200*time.Millisecond<<min(n-1, 10), 10*time.Second)
			return d/2 + rand.N(d)/2
		}
	}
	if o.OnProgress == nil {
		o.OnProgress = func(int64) {}
	}
	return o
}

// Reader reads one version of an object from beginning to end, whatever happens to the connection: when it breaks, the
// same version is opened again where reading stopped. It returns io.EOF only after exactly Object.Size bytes, and, if
// the object or the first answer brought a checksum, only if they have it; ErrChecksum otherwise.
//
// It fails at once for what is permanent. For the rest it fails when attempts in a row bring nothing, or after the stall
// time-out; such an error may pass, and a new Reader may be started later. A failed Reader stays failed.
//
// An Object without a version is read once and not resumed: what is live may be another version by then.
//
// A Reader is for one goroutine.
type Reader struct {
	src  Source
	obj  Object
	opts ReaderOptions

	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  *time.Timer // cancels ctx; runs during Read only

	body               io.ReadCloser // nil: to be opened
	start, offset, end int64
	failures           int // in a row without a byte
	pause              time.Duration
	spent              time.Duration // in reads since it was last looked how much they brought,
	brought            int64         // which is this
	sum                Sum           // nil: no checksum to hold the bytes against
	told               bool          // sum is what an answer brought
	err                error         // what every further Read returns
}

// NewReader returns a Reader of one version of an object. It opens nothing before the first Read. The context governs
// all its reads; the caller closes it.
func NewReader(ctx context.Context, src Source, obj Object, opts ReaderOptions) *Reader {
	r := newRangeReader(ctx, src, obj, 0, obj.Size, opts)
	r.sum = sumOf(obj)
	return r
}

// newRangeReader returns a Reader of a part of an object.
func newRangeReader(ctx context.Context, src Source, obj Object, offset, end int64, opts ReaderOptions) *Reader {
	r := &Reader{src: src, obj: obj, opts: opts.withDefaults(), start: offset, offset: offset, end: end}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	if r.opts.Stall > 0 {
		r.stall = time.AfterFunc(r.opts.Stall, func() {
			r.cancel(fmt.Errorf("%s without a byte: %w", r.opts.Stall, ErrStalled))
		})
		r.stall.Stop()
	}
	return r
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 || r.err != nil {
		return 0, r.err
	}
	if r.opts.Limit != nil {
		p = p[:min(len(p), r.opts.Limit.Burst())]
	}
	start := time.Now()
	if r.stall != nil {
		r.stall.Reset(r.opts.Stall)
	}
	for {
		n, err := r.read(p)
		if n > 0 {
			r.rest()
			r.offset += int64(n)
			r.trickles(time.Since(start), n)
			r.failures = 0
			if r.sum != nil {
				_, _ = r.sum.Write(p[:n])
			}
			switch {
			case errors.Is(err, ErrChecksum):
				r.err = r.judge(err)
			case err != nil:
				r.broke(err) // the next Read deals with it
			}
			if r.opts.Limit != nil {
				if err := r.opts.Limit.WaitN(r.ctx, n); err != nil && r.ctx.Err() == nil {
					r.err = fmt.Errorf("read %q: bandwidth: %w", r.obj.Path, err)
				}
			}
			r.opts.OnProgress(int64(n))
			return n, nil
		}
		if err == nil {
			continue
		}
		if r.err = r.judge(err); r.err != nil {
			r.rest()
			r.drop()
			return 0, r.err
		}
	}
}

// rest stops the clock of the stall time-out.
func (r *Reader) rest() {
	if r.stall != nil {
		r.stall.Stop()
	}
}

// trickle is the least that must come in a stall time-out, in bytes.
const trickle = 32 << 10

// trickles gives the object up when its bytes come too slowly to be worth a reader.
func (r *Reader) trickles(took time.Duration, n int) {
	r.spent, r.brought = r.spent+took, r.brought+int64(n)
	if r.opts.Stall <= 0 || r.spent < r.opts.Stall {
		return
	}
	if r.brought < trickle && r.offset < r.end {
		r.err = fmt.Errorf("read %q at %d of %d: %d bytes in %s: %w", r.obj.Path, r.offset, r.obj.Size, r.brought, r.spent, ErrStalled)
		r.drop()
	}
	r.spent, r.brought = 0, 0
}

// read makes one attempt.
func (r *Reader) read(p []byte) (int, error) {
	if r.pause > 0 {
		pause := time.NewTimer(r.pause)
		defer pause.Stop()
		select {
		case <-pause.C:
			r.pause = 0
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
	if r.body == nil {
		body, err := r.src.Open(r.ctx, r.obj.Path, r.obj.Version, r.offset, r.want())
		if err != nil {
			return 0, err
		}
		r.body = body
		if s, ok := body.(Summing); ok && r.offset == r.start && (r.sum == nil || r.told) {
			r.sum, r.told = s.TakeSum(), true
		}
	}
	if left := r.end - r.offset; left > 0 {
		p = p[:min(int64(len(p)), left)]
	} else {
		p = p[:1] // nothing should come but the end, and drivers check the version there
	}
	n, err := r.body.Read(p)
	if n > 0 && r.offset+int64(n) > r.end {
		return 0, fmt.Errorf("more than %d bytes: %w", r.end, ErrChanged)
	}
	return n, err
}

// want is the length to open: all of a whole object, because drivers can check more that way. Of a part they may be able
// to check that.
func (r *Reader) want() int64 {
	if r.start == 0 && r.end == r.obj.Size {
		return -1
	}
	return r.end - r.offset
}

// judge returns the error that err means for the Reader, or nil if it is worth another attempt.
func (r *Reader) judge(err error) error {
	if atEnd(err) && r.offset == r.end {
		if r.sum == nil {
			return io.EOF
		}
		if err := r.sum.Check(); err != nil {
			return fmt.Errorf("read %q: %w", r.obj.Path, err)
		}
		return io.EOF
	}
	if ended := r.ctx.Err(); ended != nil {
		if cause := context.Cause(r.ctx); errors.Is(cause, ErrStalled) {
			ended = cause
		}
		return fmt.Errorf("read %q at %d of %d: %w", r.obj.Path, r.offset, r.obj.Size, ended)
	}
	if atEnd(err) {
		err = io.ErrUnexpectedEOF
	}
	unpinned := r.obj.Version == "" && r.offset > r.start
	hasty := r.opts.Hasty && r.offset == r.start && (RetryAfter(err) > 0 || errors.Is(err, ErrThrottled))
	wrong := errors.Is(err, ErrChecksum) // these bytes have been read
	if Permanent(err) || wrong || unpinned || hasty || r.failures+1 >= r.opts.Attempts {
		return fmt.Errorf("read %q at %d of %d: %w", r.obj.Path, r.offset, r.obj.Size, err)
	}
	r.broke(err)
	return nil
}

// broke gives up the connection and says when to make the next.
func (r *Reader) broke(err error) {
	if atEnd(err) && r.offset == r.end {
		return // bytes and the end in one Read: the next Read meets the end again
	}
	r.drop()
	r.failures++
	r.pause = max(r.opts.Backoff(r.failures), RetryAfter(err))
}

func (r *Reader) drop() {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
}

// Err returns what made the Reader fail, nil if it did not.
func (r *Reader) Err() error {
	if atEnd(r.err) {
		return nil
	}
	return r.err
}

// Offset returns how many bytes were read.
func (r *Reader) Offset() int64 { return r.offset }

// Close lets go of the connection. It may be called twice.
func (r *Reader) Close() error {
	r.err = cmp.Or(r.err, errClosed)
	if r.stall != nil {
		r.stall.Stop()
	}
	r.drop()
	r.cancel(context.Canceled)
	return nil
}

var errClosed = errors.New("read of a closed reader")
