package gcs

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cloud.google.com/go/storage"

	"millrace/shared/bucket"
)

// Library keeps objects in a bucket, below a prefix.
//
// Every write names the generation it replaces, or that there is none, so that of two writers of one key neither
// overwrites what it has not seen.
type Library struct {
	client *client
	prefix string // empty, or ends in "/"
}

var _ bucket.Library = (*Library)(nil)

// NewLibrary returns a Library. For what it asks and when, see NewSource.
func NewLibrary(ctx context.Context, cfg Config) (*Library, error) {
	prefix := strings.Trim(cfg.Prefix, "/")
	if prefix != "" {
		if err := bucket.CheckKey(prefix); err != nil {
			return nil, fmt.Errorf("open library: prefix: %w", err)
		}
		prefix += "/"
	}
	c, err := newClient(ctx, cfg, scopeWrite)
	if err != nil {
		return nil, fmt.Errorf("open library: %w", err)
	}
	return &Library{client: c, prefix: prefix}, nil
}

// Close implements bucket.Library.
func (l *Library) Close() error { return l.client.close() }

// URI implements bucket.Library.
func (l *Library) URI(key string) string {
	u := url.URL{Scheme: "gs", Host: l.client.name, Path: "/" + l.prefix + key}
	return u.String()
}

// Sync implements bucket.Library. There is nothing to wait for: a write is answered only once it is stored redundantly,
// and is seen by every read and listing from then on.
func (l *Library) Sync(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := bucket.CheckKey(key); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// Open implements bucket.Library. What is read as a whole is held against its checksum.
func (l *Library) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := bucket.CheckKey(key); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	r, err := l.client.open(ctx, l.prefix+key, live, offset, length)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Stat implements bucket.Library.
func (l *Library) Stat(ctx context.Context, key string) (bucket.Object, error) {
	if err := bucket.CheckKey(key); err != nil {
		return bucket.Object{}, fmt.Errorf("stat: %w", err)
	}
	obj, err := l.client.stat(ctx, l.prefix+key)
	if err != nil {
		return bucket.Object{}, err
	}
	obj.Path = key
	return obj, nil
}

// Delete implements bucket.Library.
func (l *Library) Delete(ctx context.Context, key string) error {
	if err := bucket.CheckKey(key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	err := l.client.wrap(ctx, "delete", key, l.client.bucket.Object(l.prefix+key).Delete(ctx))
	if missingObject(err) {
		return nil
	}
	return err
}

// List implements bucket.Library. Objects that no Put can have made are left out.
func (l *Library) List(ctx context.Context) iter.Seq2[bucket.Object, error] {
	return func(yield func(bucket.Object, error) bool) {
		for obj, err := range l.client.list(ctx, bucket.ListOptions{Prefix: l.prefix}) {
			if err == nil {
				obj.Path = strings.TrimPrefix(obj.Path, l.prefix)
				if bucket.CheckKey(obj.Path) != nil {
					continue
				}
			}
			if !yield(obj, err) {
				return
			}
		}
	}
}

// bufSize is the unit in which bytes move, and of which a chunk is a multiple.
const bufSize = 256 << 10

// chunkSize is what a Put holds in memory, to send it again if need be. Tests make it smaller.
var chunkSize = 8 << 20

// chunkTimeout is how long the storage may take to say that it has a chunk.
const chunkTimeout = 10 * time.Minute

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// chunkFor returns the memory to set aside for an object. One that fits goes out in a single request.
func chunkFor(size int64) int {
	if size < 0 || size >= int64(chunkSize) {
		return chunkSize
	}
	return int(size/bufSize+1) * bufSize
}

// Put implements bucket.Library. It holds up to 8 MiB of the object in memory.
func (l *Library) Put(ctx context.Context, key string, r io.Reader, want bucket.Want) (bucket.Stored, error) {
	if err := bucket.CheckKey(key); err != nil {
		return bucket.Stored{}, fmt.Errorf("store: %w", err)
	}
	hash := bucket.NewHash()
	if err := l.put(ctx, key, r, want, hash); err != nil {
		return bucket.Stored{}, fmt.Errorf("store %q: %w", key, err)
	}
	return bucket.Stored{
		Key: key, URI: l.URI(key), Size: hash.Size(), CRC32C: hash.CRC32C(), SHA256: hash.SHA256(),
	}, nil
}

func (l *Library) put(ctx context.Context, key string, r io.Reader, want bucket.Want, hash *bucket.Hash) error {
	target, err := l.target(ctx, key)
	if err != nil {
		return err
	}
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)

	// The way to give up an upload is to cancel its context; closing the writer alone would complete it.
	uploading, abort := context.WithCancel(ctx)
	defer abort()
	attempts := &attempts{}
	w := target.Retryer(storage.WithErrorFunc(attempts.again)).NewWriter(uploading)
	w.ChunkSize = chunkFor(want.Size)
	if l.client.grpc != nil {
		w.ChunkTransferTimeout = chunkTimeout // over HTTP the transport has its own
	}
	w.ProgressFunc = func(int64) { attempts.failed.Store(0) }
	w.ContentType = cmp.Or(want.ContentType, "application/octet-stream") // or it would be guessed
	if sum, ok := decodeCRC32C(want.CRC32C); ok {
		w.CRC32C, w.SendCRC32C = sum, true // the server checks; otherwise the client counts, and sends its sum last
	}
	sink := &sink{w: w}
	if err := hash.Copy(ctx, sink, r, buf[:], want); err != nil && sink.err == nil {
		abort()
		_ = w.Close() // waits for the upload to end
		return err
	}
	if err := w.Close(); err != nil {
		sink.err = err // what the upload died of, where Write may know only that it is dead
	}
	switch {
	case sink.err == nil:
		return l.verify(ctx, key, w.Attrs(), hash.Size(), hash.CRC32C())
	case statusOf(sink.err) == http.StatusPreconditionFailed:
		return l.overtaken(ctx, key, r, buf[:], want, hash)
	}
	return wrapWrite(ctx, "upload", key, sink.err)
}

// sink keeps the error of a writer apart from that of the reader it is fed from.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.err = err
	return n, err
}

// attempts bounds how often an upload repeats one request in a row, which the library bounds by time alone.
type attempts struct{ failed atomic.Int32 }

func (a *attempts) again(err error) bool { return repeatable(err) && a.failed.Add(1) < maxAttempts }

// target returns the key's object on the condition that it stays what it is now.
func (l *Library) target(ctx context.Context, key string) (*storage.ObjectHandle, error) {
	object := l.client.bucket.Object(l.prefix + key)
	attrs, err := l.client.attrs(ctx, l.prefix+key, live)
	switch {
	case err == nil:
		return object.If(storage.Conditions{GenerationMatch: attrs.Generation}), nil
	case missingObject(err):
		return object.If(storage.Conditions{DoesNotExist: true}), nil
	}
	return nil, err
}

// errOvertaken: another writer put something else under the key. It may be put again.
var errOvertaken = errors.New("another object was put there meanwhile")

// overtaken settles a Put whose condition failed: somebody else, or an earlier attempt of our own whose answer was lost,
// has put something there. If it is what we were about to put, then it is done; the rest of r is read to know that.
func (l *Library) overtaken(
	ctx context.Context, key string, r io.Reader, buf []byte, want bucket.Want, hash *bucket.Hash,
) error {
	there, err := l.there(ctx, key)
	if err != nil {
		return err
	}
	if want.Size >= 0 && want.Size != there.Size || want.CRC32C != "" && want.CRC32C != there.CRC32C {
		return errOvertaken
	}
	if err := hash.Copy(ctx, io.Discard, r, buf, want); err != nil {
		return err
	}
	if hash.Size() != there.Size || hash.CRC32C() != there.CRC32C {
		return errOvertaken
	}
	return nil
}

// there returns the object that made a condition fail.
func (l *Library) there(ctx context.Context, key string) (bucket.Object, error) {
	obj, err := l.client.stat(ctx, l.prefix+key)
	if missingObject(err) {
		return bucket.Object{}, fmt.Errorf("%w, and deleted", errOvertaken)
	}
	return obj, err
}

// verify holds what the server says it stored against what we sent, and takes back what is not that.
func (l *Library) verify(ctx context.Context, key string, attrs *storage.ObjectAttrs, size int64, crc string) error {
	got := newObject(attrs)
	if got.Size == size && (got.CRC32C == crc || got.CRC32C == "" || crc == "") {
		return nil
	}
	err := fmt.Errorf("stored as %d bytes of crc32c %s instead of %d of %s: %w",
		got.Size, got.CRC32C, size, crc, bucket.ErrChecksum)
	ours := l.client.bucket.Object(l.prefix + key).If(storage.Conditions{GenerationMatch: attrs.Generation})
	if derr := ours.Delete(ctx); derr != nil {
		return fmt.Errorf("%w; and it is still there: %v", err, wrap(ctx, "delete", key, derr)) //nolint:errorlint // it counts as what err is
	}
	return err
}

func decodeCRC32C(s string) (uint32, bool) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}

// CopyFrom implements bucket.Library for a Source at the same endpoint that the library's credentials can read too; the
// source's own do not count.
func (l *Library) CopyFrom(
	ctx context.Context, key string, src bucket.Source, obj bucket.Object, progress *bucket.Copying,
) (bucket.Stored, error) {
	if err := bucket.CheckKey(key); err != nil {
		return bucket.Stored{}, fmt.Errorf("copy: %w", err)
	}
	from, ok := bucket.As[*Source](src)
	if !ok || from.client.endpoint != l.client.endpoint {
		return bucket.Stored{}, fmt.Errorf("copy %q: source is not in the same storage: %w", obj.Path, errors.ErrUnsupported)
	}
	if progress == nil {
		progress = new(bucket.Copying)
	}
	copied, err := l.copy(ctx, key, from, obj, progress)
	if forgotten(err) && progress.Mark != "" {
		progress.Mark = ""
		copied, err = l.copy(ctx, key, from, obj, progress)
	}
	if errors.Is(err, bucket.ErrPermission) {
		// The one account may not read there, or the buckets are walled off from each other. The caller has both
		// accounts, and can still carry the bytes over.
		err = fmt.Errorf("%w: %v", errors.ErrUnsupported, err) //nolint:errorlint // no longer one of permission
	}
	if err != nil {
		return bucket.Stored{}, fmt.Errorf("copy %q to %q: %w", obj.Path, key, err)
	}
	return bucket.Stored{Key: key, URI: l.URI(key), Size: copied.Size, CRC32C: copied.CRC32C}, nil
}

func (l *Library) copy(
	ctx context.Context, key string, from *Source, obj bucket.Object, progress *bucket.Copying,
) (bucket.Object, error) {
	origin := l.client.to(from.client)
	want, generation, err := origin.pinned(ctx, obj)
	if err != nil {
		return bucket.Object{}, err
	}
	target, err := l.target(ctx, key)
	if err != nil {
		return bucket.Object{}, err
	}
	copier := target.CopierFrom(origin.object(obj.Path, generation))
	// Naming one attribute leaves the others behind, among them an encoding: the library's objects are just bytes.
	copier.ContentType = cmp.Or(obj.ContentType, "application/octet-stream")
	copier.RewriteToken = progress.Mark
	moved, reported := progress.Report(), int64(0)
	report := func(total int64) {
		if n := min(total, want.Size) - reported; n > 0 {
			reported += n
			moved(n)
		}
	}
	copier.ProgressFunc = func(done, _ uint64) {
		progress.Mark = copier.RewriteToken
		report(int64(done))
	}
	attrs, err := copier.Run(ctx)
	switch {
	case statusOf(err) == http.StatusPreconditionFailed:
		there, err := l.there(ctx, key)
		if err == nil && (there.Size != want.Size || there.CRC32C != want.CRC32C) {
			err = errOvertaken
		}
		return there, err
	case statusOf(err) == http.StatusNotFound: // the source, or the bucket we copy to
		if _, _, err := origin.pinned(ctx, obj); err != nil {
			return bucket.Object{}, err
		}
		return bucket.Object{}, wrapWrite(ctx, "write", key, err)
	case err != nil:
		return bucket.Object{}, wrapWrite(ctx, "write", key, err)
	}
	if err := l.verify(ctx, key, attrs, want.Size, want.CRC32C); err != nil {
		return bucket.Object{}, err
	}
	report(want.Size)
	return newObject(attrs), nil
}

// forgotten reports whether a copy may have failed because the storage no longer knows how far it was: after a week, or when
// something else was put there.
func forgotten(err error) bool {
	var says *answerError
	return errors.As(err, &says) && (says.answer.Code == http.StatusBadRequest || says.answer.Code == http.StatusGone)
}

// to returns another bucket as the credentials of this one see it.
func (c *client) to(other *client) *client {
	there := *c
	there.name, there.project, there.bucket = other.name, other.project, c.storage.Bucket(other.name)
	if there.project != "" {
		there.bucket = there.bucket.UserProject(there.project)
	}
	return &there
}

// pinned returns the version of an object that obj is about, as it is there now, and its generation. ErrChecksum: it is
// not what obj says.
func (c *client) pinned(ctx context.Context, obj bucket.Object) (bucket.Object, int64, error) {
	generation, err := parseVersion(obj.Version)
	if err != nil {
		return bucket.Object{}, 0, c.superseded(ctx, obj.Path, generation)
	}
	attrs, err := c.attrs(ctx, obj.Path, generation)
	if missingObject(err) && generation != live {
		err = c.superseded(ctx, obj.Path, generation)
	}
	if err != nil {
		return bucket.Object{}, 0, err
	}
	there := newObject(attrs)
	if there.Size != obj.Size || obj.CRC32C != "" && there.CRC32C != "" && there.CRC32C != obj.CRC32C {
		return bucket.Object{}, 0, fmt.Errorf("%d bytes of crc32c %s instead of %d of %s: %w",
			there.Size, there.CRC32C, obj.Size, obj.CRC32C, bucket.ErrChecksum)
	}
	return there, attrs.Generation, nil
}
