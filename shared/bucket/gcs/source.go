package gcs

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"

	"millrace/shared/bucket"
)

// Source reads a bucket.
type Source struct {
	client *client
}

var _ bucket.Source = (*Source)(nil)

// NewSource returns a Source that asks for read-only rights. It asks nothing of the network yet: whether the bucket is
// there, and ours to read, the first call tells. The context is for construction alone.
//
// ErrCredentials: the credentials are not a service account key. ErrName: no bucket has this name.
func NewSource(ctx context.Context, cfg Config) (*Source, error) {
	c, err := newClient(ctx, cfg, scopeRead)
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	return &Source{client: c}, nil
}

// List implements bucket.Source. An object whose path ends in "/", which some programs leave as the mark of a folder, is
// an object like any other.
func (s *Source) List(ctx context.Context, opts bucket.ListOptions) iter.Seq2[bucket.Object, error] {
	return s.client.list(ctx, opts)
}

// Stat implements bucket.Source.
func (s *Source) Stat(ctx context.Context, path string) (bucket.Object, error) {
	return s.client.stat(ctx, path)
}

// Open implements bucket.Source. It makes one attempt: patience is bucket.Reader's.
func (s *Source) Open(ctx context.Context, path, version string, offset, length int64) (io.ReadCloser, error) {
	generation, err := parseVersion(version)
	if err != nil {
		return nil, fmt.Errorf("open %q: version %q: %w", path, version, s.client.superseded(ctx, path, generation))
	}
	r, err := s.client.open(ctx, path, generation, offset, length)
	if missingObject(err) && generation != live {
		return nil, fmt.Errorf("open %q: version %s: %w", path, version, s.client.superseded(ctx, path, generation))
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// streams are worth their number: one connection carries some 50 MB/s, whatever the network could.
const streams = 4

// Streams implements bucket.Wide.
func (s *Source) Streams() int { return streams }

// Close implements bucket.Source.
func (s *Source) Close() error { return s.client.close() }

// live stands for whichever generation is live.
const live int64 = 0

// parseVersion returns the generation a version stands for. What is not a generation of ours never existed.
func parseVersion(version string) (int64, error) {
	if version == "" {
		return live, nil
	}
	generation, err := strconv.ParseInt(version, 10, 64)
	if err != nil || generation <= 0 || strconv.FormatInt(generation, 10) != version {
		return -1, fmt.Errorf("version %q: %w", version, bucket.ErrChanged)
	}
	return generation, nil
}

// missingObject reports whether err is about an object that is not there, in a bucket that is.
func missingObject(err error) bool {
	return errors.Is(err, bucket.ErrNotExist) && !errors.Is(err, bucket.ErrNoBucket)
}

// listed is all that a listing needs to carry: a tenth of what it would be.
var listed = []string{"Name", "Generation", "Size", "Created", "ContentType", "CRC32C", "CustomerKeySHA256"}

func (c *client) list(ctx context.Context, opts bucket.ListOptions) iter.Seq2[bucket.Object, error] {
	return func(yield func(bucket.Object, error) bool) {
		if !utf8.ValidString(opts.Prefix) {
			return // as is every name
		}
		query := &storage.Query{
			Prefix: opts.Prefix, StartOffset: validPart(opts.StartAfter), Projection: storage.ProjectionNoACL,
		}
		if opts.Delimiter {
			query.Delimiter = "/"
		}
		if err := query.SetAttrSelection(listed); err != nil {
			yield(bucket.Object{}, fmt.Errorf("list %q: %w", opts.Prefix, err))
			return
		}
		for it := c.bucket.Objects(ctx, query); ; {
			attrs, err := it.Next()
			if errors.Is(err, iterator.Done) {
				return
			}
			if errors.Is(err, storage.ErrBucketNotExist) {
				err = fmt.Errorf("%w: %w", bucket.ErrNoBucket, translate(err))
			}
			if err == nil {
				err = ctx.Err() // a page can outlive its context
			}
			if err != nil {
				yield(bucket.Object{}, wrap(ctx, "list", opts.Prefix, err))
				return
			}
			if attrs.Name == "" || attrs.Name <= opts.StartAfter { // a sub-folder; or the start, which the API includes
				continue
			}
			if !yield(newObject(attrs), nil) {
				return
			}
		}
	}
}

// validPart returns s up to the first byte that cannot be part of a name.
func validPart(s string) string {
	for i, r := range s {
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)) {
			return s[:i]
		}
	}
	return s
}

func newObject(attrs *storage.ObjectAttrs) bucket.Object {
	obj := bucket.Object{
		Path:        attrs.Name,
		Version:     strconv.FormatInt(attrs.Generation, 10),
		Size:        attrs.Size,
		ModTime:     attrs.Created.UTC(),
		ContentType: attrs.ContentType,
		CRC32C:      bucket.EncodeCRC32C(attrs.CRC32C),
		Order:       fmt.Sprintf("%020d", attrs.Generation),
	}
	if attrs.CustomerKeySHA256 != "" {
		obj.CRC32C = "" // not told without the key
	}
	return obj
}

// valid reports whether an object can have this name at all. Anything else does not exist, and is not sent where it
// might be understood as something else.
func valid(path string) bool {
	return path != "" && path != "." && path != ".." && len(path) <= 1024 && utf8.ValidString(path) &&
		!strings.ContainsAny(path, "\r\n")
}

func (c *client) stat(ctx context.Context, path string) (bucket.Object, error) {
	attrs, err := c.attrs(ctx, path, live)
	if err != nil {
		return bucket.Object{}, err
	}
	return newObject(attrs), nil
}

func (c *client) attrs(ctx context.Context, path string, generation int64) (*storage.ObjectAttrs, error) {
	if !valid(path) {
		return nil, fmt.Errorf("stat %q: %w", path, bucket.ErrNotExist)
	}
	attrs, err := c.object(path, generation).Attrs(ctx)
	if err != nil {
		return nil, c.wrap(ctx, "stat", path, err)
	}
	return attrs, nil
}

func (c *client) object(path string, generation int64) *storage.ObjectHandle {
	o := c.bucket.Object(path)
	if generation != live {
		o = o.Generation(generation)
	}
	return o
}

// superseded says why a generation is not there.
func (c *client) superseded(ctx context.Context, path string, generation int64) error {
	obj, err := c.stat(ctx, path)
	switch {
	case err != nil:
		return err
	case obj.Version == strconv.FormatInt(generation, 10):
		return fmt.Errorf("it was missing, and is there now: %w", bucket.ErrUnavailable)
	}
	return fmt.Errorf("it is now %s: %w", obj.Version, bucket.ErrChanged)
}

// open asks for bytes of one generation. It does without the library's own Reader, because that one opens a body that
// broke again by itself, as often as it breaks and without a pause.
func (c *client) open(ctx context.Context, path string, generation, offset, length int64) (*reader, error) {
	if offset < 0 {
		return nil, fmt.Errorf("open %q at %d: %w", path, offset, syscall.EINVAL)
	}
	if !valid(path) {
		return nil, fmt.Errorf("open %q: %w", path, bucket.ErrNotExist)
	}
	if length == 0 {
		if _, err := c.attrs(ctx, path, generation); err != nil {
			return nil, err
		}
		return &reader{ctx: ctx, path: path, body: http.NoBody}, nil
	}
	if c.grpc != nil {
		return c.openGRPC(ctx, path, generation, offset, length)
	}
	req, err := c.download(ctx, path, generation, offset, length)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, wrap(ctx, "open", path, err)
	}
	if res.StatusCode == http.StatusRequestedRangeNotSatisfiable { // the generation is there, and ends before
		res.Body.Close()
		return &reader{ctx: ctx, path: path, body: http.NoBody}, nil
	}
	if err := googleapi.CheckResponse(res); err != nil {
		res.Body.Close()
		return nil, c.wrap(ctx, "open", path, err)
	}
	r := &reader{ctx: ctx, path: path, body: res.Body, left: length}
	if err := r.check(res, generation, offset); err != nil {
		res.Body.Close()
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	return r, nil
}

// download returns the request for bytes from an offset on: so many of them, or, if length is negative, all.
func (c *client) download(ctx context.Context, path string, generation, offset, length int64) (*http.Request, error) {
	query := url.Values{"alt": {"media"}}
	if generation != live {
		query.Set("generation", strconv.FormatInt(generation, 10))
	}
	if c.project != "" {
		query.Set("userProject", c.project)
	}
	where := c.endpoint + "b/" + url.PathEscape(c.name) + "/o/" + url.PathEscape(path) + "?" + query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "gzip") // as stored: it would be unpacked for us otherwise
	switch {
	case length > 0 && length <= math.MaxInt64-offset:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	return req, nil
}

// reader is the body of one answer.
type reader struct {
	ctx  context.Context
	path string
	body io.ReadCloser
	left int64  // bytes; negative: to the end
	want string // crc32c of what the answer carries; "" if that is not known
	crc  uint32
}

// check holds the answer against the question.
func (r *reader) check(res *http.Response, generation, offset int64) error {
	got := res.Header.Get("X-Goog-Generation")
	if generation != live && got != "" && got != strconv.FormatInt(generation, 10) {
		return fmt.Errorf("asked for generation %d and got %s: %w", generation, got, bucket.ErrChanged)
	}
	if res.StatusCode == http.StatusPartialContent {
		part := res.Header.Get("Content-Range") // bytes 0-99/1000
		if !strings.HasPrefix(part, fmt.Sprintf("bytes %d-", offset)) {
			return fmt.Errorf("asked for bytes from %d and got %q: %w", offset, part, bucket.ErrUnavailable)
		}
		if part == fmt.Sprintf("bytes 0-%d/%d", res.ContentLength-1, res.ContentLength) { // the part is the whole
			r.want = checksum(res.Header)
		}
		return nil
	}
	if offset > 0 {
		return fmt.Errorf("asked for bytes from %d and got all: %w", offset, bucket.ErrUnavailable)
	}
	if r.left < 0 || res.ContentLength >= 0 && res.ContentLength <= r.left {
		r.want = checksum(res.Header)
	}
	return nil
}

// checksum returns the crc32c of the whole object.
func checksum(h http.Header) string {
	for _, line := range h["X-Goog-Hash"] {
		for value := range strings.SplitSeq(line, ",") {
			if sum, ok := strings.CutPrefix(strings.TrimSpace(value), "crc32c="); ok {
				return sum
			}
		}
	}
	return ""
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, fmt.Errorf("read %q: %w", r.path, err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.left == 0 {
		return 0, r.end()
	}
	if r.left > 0 {
		p = p[:min(int64(len(p)), r.left)]
	}
	n, err := r.body.Read(p)
	if r.left > 0 {
		r.left -= int64(n)
	}
	if r.want != "" {
		r.crc = crc32.Update(r.crc, castagnoli, p[:n])
	}
	if err == io.EOF {
		return n, r.end()
	}
	return n, wrap(r.ctx, "read", r.path, err)
}

// end is io.EOF if the bytes are those of the object.
func (r *reader) end() error {
	if got := bucket.EncodeCRC32C(r.crc); r.want != "" && got != r.want {
		return fmt.Errorf("read %q: crc32c %s instead of %s: %w", r.path, got, r.want, bucket.ErrChecksum)
	}
	return io.EOF
}

func (r *reader) Close() error { return r.body.Close() }
