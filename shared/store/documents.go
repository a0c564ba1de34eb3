package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/topology"
)

// Documents holds what is too big for a record, as JSON Lines.
type Documents struct {
	objects jetstream.ObjectStore
	bus     *bus.Bus
	stream  string // behind objects
	bucket  string
}

// OpenDocuments binds the object store of the topology.
func OpenDocuments(ctx context.Context, b *bus.Bus) (*Documents, error) {
	o, err := b.JetStream().ObjectStore(ctx, b.Bucket(topology.Documents))
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		err = topology.ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("open object store %s: %w", topology.Documents, err)
	}
	return &Documents{objects: o, bus: b, stream: "OBJ_" + b.Bucket(topology.Documents), bucket: b.Bucket(topology.Documents)}, nil
}

// WriteLines stores a line for each value under name, replacing what was there. Lines are made while they are stored,
// so memory stays constant.
func WriteLines[T any](ctx context.Context, d *Documents, name string, lines iter.Seq2[T, error]) error {
	return writeLines(ctx, d, jetstream.ObjectMeta{Name: name}, lines, func(w io.Writer) lineWriter { return bufio.NewWriterSize(w, lineBlock) })
}

// lineBlock is how many bytes of lines are written, compressed and read at a time, so it bounds what a reader holds.
const lineBlock = 64 << 10

// WritePacked is WriteLines for documents that only this program reads: compressed, lines about files take a sixth of the
// broker's disk and cache.
func WritePacked[T any](ctx context.Context, d *Documents, name string, lines iter.Seq2[T, error]) error {
	meta := jetstream.ObjectMeta{Name: name, Metadata: map[string]string{codecKey: codecS2}}
	return writeLines(ctx, d, meta, lines, func(w io.Writer) lineWriter {
		return s2.NewWriter(w, s2.WriterBlockSize(lineBlock), s2.WriterConcurrency(1))
	})
}

type lineWriter interface {
	io.Writer
	Flush() error
}

func writeLines[T any](ctx context.Context, d *Documents, meta jetstream.ObjectMeta, lines iter.Seq2[T, error], to func(io.Writer) lineWriter) error {
	r, w := io.Pipe()
	go func() {
		buf := to(w)
		enc := json.NewEncoder(buf)
		enc.SetEscapeHTML(false)
		for v, err := range lines {
			if err == nil {
				err = enc.Encode(v)
			}
			if err != nil {
				w.CloseWithError(err)
				return
			}
		}
		w.CloseWithError(buf.Flush())
	}()
	_, err := d.write(ctx, meta, r)
	r.CloseWithError(err) // lets the writer go when storing failed first
	return err
}

// ReadLines yields the values of a document, or ErrNotFound. Memory stays constant, and the caller may take its time
// between two values. It fails when somebody replaces the document after the first of them.
func ReadLines[T any](ctx context.Context, d *Documents, name string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for line, err := range ReadLinesFrom[T](ctx, d, name, 0) {
			if !yield(line.Value, err) {
				return
			}
		}
	}
}

// Lines yields the lines of a document as they are, without their ends. The bytes are good until the next one.
func (doc Document) Lines(ctx context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		in := bufio.NewReaderSize(doc.plain(ctx), lineBlock)
		var long []byte // a line that is longer than the buffer
		for {
			line, err := in.ReadSlice('\n')
			if errors.Is(err, bufio.ErrBufferFull) {
				long = append(long, line...)
				continue
			}
			if len(long) > 0 {
				long = append(long, line...)
				line, long = long, nil
			}
			if err != nil && !errors.Is(err, io.EOF) {
				yield(nil, err)
				return
			}
			if line = bytes.TrimSuffix(line, []byte{'\n'}); len(line) > 0 && !yield(line, nil) || err != nil {
				return
			}
		}
	}
}

// Line is a value of a document, and the position behind it.
type Line[T any] struct {
	Value T
	Next  int64
}

// ReadLinesFrom is ReadLines from a position on: 0, or the Next of a line that was read before. What lies before it is
// passed over without being looked at.
func ReadLinesFrom[T any](ctx context.Context, d *Documents, name string, from int64) iter.Seq2[Line[T], error] {
	return func(yield func(Line[T], error) bool) {
		doc, err := d.Find(ctx, name)
		for err == nil {
			seen := false
			err = readLines(ctx, doc, from, func(line Line[T]) bool {
				seen = true
				return yield(line, nil)
			})
			if seen || !errors.Is(err, errReplaced) {
				break
			}
			// Two may write a document of the same content, and one of them while we look: what there is now is as good.
			now, ferr := d.Find(ctx, name)
			if ferr == nil && now == doc {
				break
			}
			doc, err = now, ferr
		}
		if err != nil {
			yield(Line[T]{}, err)
		}
	}
}

// readLines calls yield with the lines of a document from a position on, for as long as it returns true.
func readLines[T any](ctx context.Context, doc Document, from int64, yield func(Line[T]) bool) error {
	in := doc.plain(ctx)
	if _, err := io.CopyN(io.Discard, in, from); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	dec := json.NewDecoder(in)
	for {
		var v T
		err := dec.Decode(&v)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("decode document %s: %w", doc.Name, err)
		}
		if !yield(Line[T]{Value: v, Next: from + dec.InputOffset()}) {
			return nil
		}
	}
}
