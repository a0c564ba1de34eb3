package bucket

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
)

// scripted is a Source of one object whose opens go by a script: each func gets the bytes from the offset on and
// returns the body. After the script, bodies are whole.
type scripted struct {
	data   []byte
	script []func(rest []byte) (io.ReadCloser, error)
	opens  []string
}

func (s *scripted) List(context.Context, ListOptions) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) { yield(s.object(), nil) }
}

func (s *scripted) Stat(context.Context, string) (Object, error) { return s.object(), nil }

func (s *scripted) object() Object {
	h := NewHash()
	h.Write(s.data)
	return Object{Path: "a.mp4", Version: "1", Size: int64(len(s.data)), CRC32C: h.CRC32C()}
}

func (s *scripted) Open(ctx context.Context, path, version string, offset, length int64) (io.ReadCloser, error) {
	s.opens = append(s.opens, fmt.Sprintf("%s@%s %d+%d", path, version, offset, length))
	rest := s.data[min(offset, int64(len(s.data))):]
	if length >= 0 {
		rest = rest[:min(length, int64(len(rest)))]
	}
	if n := len(s.opens); n <= len(s.script) {
		return s.script[n-1](rest)
	}
	return io.NopCloser(bytes.NewReader(rest)), nil
}

func (s *scripted) Close() error { return nil }

// refuse fails to open.
func refuse(err error) func([]byte) (io.ReadCloser, error) {
	return func([]byte) (io.ReadCloser, error) { return nil, err }
}

// breakAfter serves n bytes and then fails; io.EOF makes it an end that comes early.
func breakAfter(n int, err error) func([]byte) (io.ReadCloser, error) {
	return func(rest []byte) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(rest[:n]), failing{err})), nil
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// hang serves n bytes and then nothing until the reader is given up.
func (s *scripted) hang(ctx func() context.Context, n int) func([]byte) (io.ReadCloser, error) {
	return func(rest []byte) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(rest[:n]), waiting{ctx()})), nil
	}
}

type waiting struct{ ctx context.Context }

func (w waiting) Read([]byte) (int, error) {
	<-w.ctx.Done()
	return 0, w.ctx.Err()
}
