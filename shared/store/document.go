package store

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
)

// chunkSize is what a document is cut into. The client lets 4,000 chunks be on their way when the broker is slower than
// the writer, so this bounds the broker's memory too: at 128 MiB, where it is the most that a stream takes.
const chunkSize = 32 << 10

// Write stores what r has under name, replacing what was there, and returns its size in bytes. An error of r is returned
// wrapped, and nothing is stored then. Memory stays constant.
func (d *Documents) Write(ctx context.Context, name string, r io.Reader) (int64, error) {
	return d.write(ctx, jetstream.ObjectMeta{Name: name}, r)
}

func (d *Documents) write(ctx context.Context, meta jetstream.ObjectMeta, r io.Reader) (int64, error) {
	// The client shall see the reader fail rather than its context end: then it takes back what it has stored so far.
	// Without a deadline it bounds each chunk, with one only the whole.
	meta.Opts = &jetstream.ObjectMetaOptions{ChunkSize: chunkSize}
	info, err := d.objects.Put(context.WithoutCancel(ctx), meta, untilDone{ctx, r})
	if err != nil {
		return 0, fmt.Errorf("store document %s: %w", meta.Name, err)
	}
	return int64(info.Size), nil
}

// untilDone is a reader that fails once its context has ended.
type untilDone struct {
	ctx context.Context //nolint:containedctx // of one call
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// Delete removes a document; none there is no error.
func (d *Documents) Delete(ctx context.Context, name string) error {
	if err := d.objects.Delete(ctx, name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return fmt.Errorf("delete document %s: %w", name, err)
	}
	return nil
}

// Document is a document as it was stored.
type Document struct {
	Name string
	Size int64 // bytes as they are stored

	codec   string // "": none, as all had in format 1
	bus     *bus.Bus
	stream  string // the broker's name of it
	subject string // of the chunks
	digest  string
}

// Find returns a document, or ErrNotFound.
func (d *Documents) Find(ctx context.Context, name string) (Document, error) {
	info, err := d.objects.GetInfo(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		err = ErrNotFound
	}
	if err != nil {
		return Document{}, fmt.Errorf("document %s: %w", name, err)
	}
	return Document{
		Name: name, Size: int64(info.Size), codec: info.Metadata[codecKey],
		bus: d.bus, stream: d.stream, subject: "$O." + d.bucket + ".C." + info.NUID, digest: info.Digest,
	}, nil
}

// What a document's metadata says of how its bytes are packed.
const (
	codecKey = "millrace.codec"
	codecS2  = "s2"
)

// plain is Reader without what compresses it.
func (doc Document) plain(ctx context.Context) io.Reader {
	if doc.codec == codecS2 {
		return s2.NewReader(doc.Reader(ctx), s2.ReaderMaxBlockSize(lineBlock))
	}
	return doc.Reader(ctx)
}

// Reader reads the stored bytes of a document from its beginning. It takes what time its reader takes, holds one chunk, and
// is held against the checksum: the last Read fails rather than returning io.EOF when these are not the bytes that were
// stored. When somebody replaces or deletes the document meanwhile, a Read fails.
//
// It asks for chunk after chunk, where the client's own reader gives up when the whole takes longer than one request may.
func (doc Document) Reader(ctx context.Context) io.Reader {
	return &documentReader{ctx: ctx, doc: doc, sum: sha256.New(), left: doc.Size}
}

type documentReader struct {
	ctx  context.Context //nolint:containedctx // of the one who reads
	doc  Document
	sum  hash.Hash
	buf  []byte
	next uint64 // sequence behind the last chunk
	left int64  // bytes that are not in buf yet
}

func (r *documentReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.buf) == 0 && r.left > 0 {
		if err := r.fetch(); err != nil {
			return 0, fmt.Errorf("read document %s: %w", r.doc.Name, err)
		}
	}
	if len(r.buf) == 0 {
		if sum := "SHA-256=" + base64.URLEncoding.EncodeToString(r.sum.Sum(nil)); sum != r.doc.digest {
			return 0, fmt.Errorf("read document %s: %w", r.doc.Name, errReplaced)
		}
		return 0, io.EOF
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// errReplaced says that bytes of a document are gone or are others: somebody wrote it anew while it was being read.
var errReplaced = errors.New("the document was replaced while it was being read")

func (r *documentReader) fetch() error {
	m, err := r.doc.bus.Next(r.ctx, r.doc.stream, r.doc.subject, r.next)
	if err != nil {
		return err
	}
	if int64(len(m.Data)) > r.left || len(m.Data) == 0 { // or there is no more
		return errReplaced
	}
	r.sum.Write(m.Data)
	r.buf, r.next, r.left = m.Data, m.Sequence+1, r.left-int64(len(m.Data))
	return nil
}
