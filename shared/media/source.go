package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	window = 16 << 10 // read ahead where the parser reads on
	jump   = 1 << 10  // read ahead where it jumps: index boxes lie far apart
)

// errExhausted answers a parser that wants to read more than MaxRead. It is no verdict on the file.
var errExhausted = errors.New("read limit reached")

// source is the file as parsers see it: in memory where they look, bounded by MaxRead, and with the reader's own
// errors kept apart from what the bytes say. Past the end of the file it returns io.EOF or io.ErrUnexpectedEOF.
type source struct {
	ctx  context.Context
	r    io.ReaderAt
	size int64

	pos       int64 // of Read and Seek
	budget    int64 // bytes that may still be read
	exhausted bool  // errExhausted was returned
	err       error // the first error of r or ctx; parsers may swallow it, Probe looks here

	at  int64 // offset of buf in the file
	n   int   // bytes in buf
	buf [window]byte
}

var sources = sync.Pool{New: func() any { return new(source) }}

func newSource(ctx context.Context, r io.ReaderAt, size int64) *source {
	s := sources.Get().(*source)
	s.ctx, s.r, s.size = ctx, r, max(size, 0)
	s.pos, s.budget, s.exhausted, s.err = 0, MaxRead, false, nil
	s.at, s.n = 0, 0
	return s
}

func (s *source) release() {
	s.ctx, s.r, s.err = nil, nil, nil
	sources.Put(s)
}

// fill loads buf from off with at least want bytes, or with the rest of the file when that is less.
func (s *source) fill(off int64, want int) error {
	if s.err != nil {
		return s.err
	}
	if s.err = s.ctx.Err(); s.err != nil {
		return s.err
	}
	n := max(want, jump)
	if off == s.at+int64(s.n) {
		n = window
	}
	n = int(min(int64(n), s.size-off))
	if int64(n) > s.budget {
		s.exhausted = true
		return errExhausted
	}
	s.budget -= int64(n)
	s.at, s.n = off, 0
	m, err := s.r.ReadAt(s.buf[:n], off)
	switch {
	case m == n: // io.ReaderAt may say io.EOF here
		s.n = n
		return nil
	case err == nil || err == io.EOF:
		s.err = fmt.Errorf("file ends at %d of %d bytes: %w", off+int64(m), s.size, io.ErrUnexpectedEOF)
	default:
		s.err = err
	}
	return s.err
}

// peekUpTo returns n bytes at off, fewer at the end of the file and none after it. n is at most window. The bytes
// are valid until the next call of any method.
func (s *source) peekUpTo(off int64, n int) ([]byte, error) {
	if off < 0 || off >= s.size {
		return nil, nil
	}
	n = int(min(int64(n), s.size-off))
	if off < s.at || off+int64(n) > s.at+int64(s.n) {
		if err := s.fill(off, n); err != nil {
			return nil, err
		}
	}
	i := int(off - s.at)
	return s.buf[i : i+n], nil
}

// peek is peekUpTo for those who need all n bytes.
func (s *source) peek(off int64, n int) ([]byte, error) {
	b, err := s.peekUpTo(off, n)
	if err == nil && len(b) < n {
		return nil, io.ErrUnexpectedEOF
	}
	return b, err
}

// ReadAt implements io.ReaderAt.
func (s *source) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		b, err := s.peekUpTo(off+int64(n), min(len(p)-n, window))
		if err != nil {
			return n, err
		}
		if len(b) == 0 {
			return n, io.EOF
		}
		n += copy(p[n:], b)
	}
	return n, nil
}

// Read implements io.Reader, for decoders that know no other way.
func (s *source) Read(p []byte) (int, error) {
	b, err := s.peekUpTo(s.pos, min(len(p), window))
	if err != nil {
		return 0, err
	}
	if len(b) == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	s.pos += int64(len(b))
	return copy(p, b), nil
}

// load returns a copy of the n bytes at off. Callers bound n.
func (s *source) load(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > s.size-n {
		return nil, io.ErrUnexpectedEOF
	}
	b := make([]byte, n)
	_, err := s.ReadAt(b, off)
	return b, err
}
