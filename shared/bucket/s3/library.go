package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"millrace/shared/bucket"
)

// Library keeps objects in a bucket, below a prefix. What it puts carries a CRC32C that the server has checked, where the
// server knows such a thing.
type Library struct {
	client *client
	prefix string // empty, or ends in "/"

	sumless atomic.Bool // the server does not tell the checksum of what it copies
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
	c, err := newClient(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open library: %w", err)
	}
	return &Library{client: c, prefix: prefix}, nil
}

// Close implements bucket.Library.
func (l *Library) Close() error { return l.client.close() }

// URI implements bucket.Library.
func (l *Library) URI(key string) string {
	u := url.URL{Scheme: "s3", Host: l.client.name, Path: "/" + l.prefix + key}
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
	_, err := l.client.api.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &l.client.name, Key: aws.String(l.prefix + key)})
	if err = wrap(ctx, "delete", "s3:DeleteObject", key, err); missingObject(err) {
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

// bufSize is the unit in which bytes move.
const bufSize = 256 << 10

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

const octets = "application/octet-stream"

// Put implements bucket.Library. It holds up to two parts of the object in memory, 16 MiB; more only for objects of which
// 10,000 parts of 8 MiB would not be enough.
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
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)
	uploading, stop := context.WithCancel(ctx)
	defer stop()
	u := newUpload(uploading, l, key, want)
	defer u.release()
	sink := &sink{w: u}
	err := hash.Copy(uploading, sink, r, buf[:], want)
	if err != nil && sink.err == nil {
		stop()
		u.abort()
		return err
	}
	if err = sink.err; err == nil {
		err = u.finish(hash)
	}
	if err != nil {
		stop()
		u.abort()
		return wrapWrite(ctx, "upload", "s3:PutObject", key, err)
	}
	return nil
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

// verify holds what the server says it stored against what we sent, and takes back what is not that.
func (l *Library) verify(ctx context.Context, key string, got bucket.Object, size int64, crc string) error {
	if got.Size == size && (got.CRC32C == crc || got.CRC32C == "" || crc == "") {
		return nil
	}
	return l.takeBack(ctx, key, fmt.Errorf("stored as %d bytes of crc32c %s instead of %d of %s: %w",
		got.Size, got.CRC32C, size, crc, bucket.ErrChecksum))
}

// takeBack deletes what should not have been stored, for the reason err.
func (l *Library) takeBack(ctx context.Context, key string, err error) error {
	if derr := l.Delete(context.WithoutCancel(ctx), key); derr != nil {
		return fmt.Errorf("%w; and it is still there: %v", err, derr) //nolint:errorlint // it counts as what err is
	}
	return err
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
	if !ok || from.client.endpoint != l.client.endpoint || from.client.region != l.client.region {
		return bucket.Stored{}, fmt.Errorf("copy %q: source is not in the same storage: %w", obj.Path, errors.ErrUnsupported)
	}
	copied, err := l.copy(ctx, key, from.client.name, obj, progress.Report())
	if class := bucket.ClassOf(err); class == bucket.ClassPermission || class == bucket.ClassUnreadable {
		// The one account may not read there. The caller has both accounts, and can still carry the bytes over.
		err = fmt.Errorf("%w: %v", errors.ErrUnsupported, err) //nolint:errorlint // no longer one of permission
	}
	if err != nil {
		return bucket.Stored{}, fmt.Errorf("copy %q to %q: %w", obj.Path, key, err)
	}
	return bucket.Stored{Key: key, URI: l.URI(key), Size: copied.Size, CRC32C: copied.CRC32C}, nil
}

func (l *Library) copy(
	ctx context.Context, key, from string, obj bucket.Object, moved func(int64),
) (bucket.Object, error) {
	origin := &client{name: from, region: l.client.region, endpoint: l.client.endpoint, http: l.client.http, api: l.client.api}
	v, there, err := origin.pinned(ctx, obj)
	if err != nil {
		return bucket.Object{}, err
	}
	crc := cmp.Or(there.CRC32C, obj.CRC32C)
	if crc == "" && l.sumless.Load() {
		return bucket.Object{}, fmt.Errorf("nobody would know its checksum: %w", errors.ErrUnsupported)
	}
	c := &copying{library: l, key: key, from: origin, path: obj.Path, version: v, object: there, moved: moved}
	copied, err := c.run(ctx)
	switch err = translate(err); {
	case missingObject(err), errors.Is(err, bucket.ErrChanged):
		return bucket.Object{}, origin.gone(ctx, obj)
	case errors.Is(err, bucket.ErrChecksum): // as below
		return bucket.Object{}, fmt.Errorf("%w: %v", errors.ErrUnsupported, err) //nolint:errorlint // not about the object
	case err != nil:
		return bucket.Object{}, wrapWrite(ctx, "write", "s3:PutObject", key, err)
	}
	if copied.CRC32C == "" && crc == "" {
		l.sumless.Store(true)
		return bucket.Object{}, l.takeBack(ctx, key, fmt.Errorf("nobody knows its checksum: %w", errors.ErrUnsupported))
	}
	if err := l.verify(ctx, key, copied, there.Size, crc); err != nil {
		// The server adds up wrongly what it copies. Carried over, the bytes are added up here.
		return bucket.Object{}, fmt.Errorf("%w: %v", errors.ErrUnsupported, err) //nolint:errorlint // not about the object
	}
	copied.CRC32C = cmp.Or(copied.CRC32C, crc)
	return copied, nil
}

// gone is why a version that was there a moment ago is not.
func (c *client) gone(ctx context.Context, obj bucket.Object) error {
	if _, _, err := c.pinned(ctx, obj); err != nil {
		return err
	}
	return fmt.Errorf("it was missing, and is there now: %w", bucket.ErrUnavailable)
}

// pinned returns the version that obj is about, as it is there now. ErrChecksum: it is not what obj says.
func (c *client) pinned(ctx context.Context, obj bucket.Object) (version, bucket.Object, error) {
	v, err := parseVersion(obj.Version)
	if err != nil {
		return v, bucket.Object{}, c.superseded(ctx, obj.Path, obj.Version)
	}
	out, err := c.pin(ctx, obj.Path, v)
	if v != live && (missingObject(err) || errors.Is(err, bucket.ErrChanged)) {
		err = c.superseded(ctx, obj.Path, obj.Version)
	}
	if err != nil {
		return v, bucket.Object{}, err
	}
	there := statted(obj.Path, out)
	if there.Size != obj.Size || obj.CRC32C != "" && there.CRC32C != "" && there.CRC32C != obj.CRC32C {
		return v, bucket.Object{}, fmt.Errorf("%d bytes of crc32c %s instead of %d of %s: %w",
			there.Size, there.CRC32C, obj.Size, obj.CRC32C, bucket.ErrChecksum)
	}
	v, err = parseVersion(there.Version)
	return v, there, err
}
