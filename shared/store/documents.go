package store

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/topology"
)

// Documents holds what is too big for a record, as JSON Lines.
type Documents struct {
	objects jetstream.ObjectStore
	stream  jetstream.Stream // behind objects
	bucket  string
}

// OpenDocuments binds the object store of the topology.
func OpenDocuments(ctx context.Context, b *bus.Bus) (*Documents, error) {
	o, err := b.JetStream().ObjectStore(ctx, b.Bucket(topology.Documents))
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		err = topology.ErrMissing
	}
	var stream jetstream.Stream
	if err == nil {
		stream, err = b.JetStream().Stream(ctx, "OBJ_"+b.Bucket(topology.Documents))
	}
	if err != nil {
		return nil, fmt.Errorf("open object store %s: %w", topology.Documents, err)
	}
	return &Documents{objects: o, stream: stream, bucket: b.Bucket(topology.Documents)}, nil
}

// WriteLines stores a line for each value under name, replacing what was there. Lines are made while they are stored,
// so memory stays constant.
func WriteLines[T any](ctx context.Context, d *Documents, name string, lines iter.Seq2[T, error]) error {
	r, w := io.Pipe()
	go func() {
		buf := bufio.NewWriterSize(w, 64<<10)
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
	_, err := d.objects.Put(ctx, jetstream.ObjectMeta{Name: name}, r)
	r.CloseWithError(err) // lets the writer go when storing failed first
	if err != nil {
		return fmt.Errorf("store document %s: %w", name, err)
	}
	return nil
}

// ReadLines yields the values of a document, or ErrNotFound.
func ReadLines[T any](ctx context.Context, d *Documents, name string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var v T
		// Without a deadline the client waits 5 s for bytes, with one it waits that long.
		open, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		o, err := d.objects.Get(open, name)
		if errors.Is(err, jetstream.ErrObjectNotFound) {
			err = ErrNotFound
		}
		if err != nil {
			yield(v, fmt.Errorf("document %s: %w", name, err))
			return
		}
		defer func() { _ = o.Close() }()
		dec := json.NewDecoder(bufio.NewReaderSize(whole{o}, 64<<10))
		for {
			var v T
			err := dec.Decode(&v)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(v, fmt.Errorf("read document %s: %w", name, err))
				return
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

// errReplaced says that bytes of a document do not come: somebody wrote it anew while it was being read, and what it was
// made of is gone.
var errReplaced = errors.New("the document was replaced while it was being read")

// whole is a reader of a document that does not wait for bytes that are gone.
type whole struct{ io.Reader }

func (w whole) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if n == 0 && err == nil && len(p) > 0 { // how the client says that nothing came in time
		return 0, errReplaced
	}
	return n, err
}
