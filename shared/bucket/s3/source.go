package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"millrace/shared/bucket"
)

// Source reads a bucket.
type Source struct {
	client *client
}

var _ bucket.Source = (*Source)(nil)

// NewSource returns a Source. It asks nothing of the network yet: whether the bucket is there, and ours to read, the
// first call tells. The context is for construction alone.
//
// ErrCredentials: half of the credentials is missing. ErrName: no bucket has this name.
func NewSource(ctx context.Context, cfg Config) (*Source, error) {
	c, err := newClient(ctx, cfg)
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
func (s *Source) Open(ctx context.Context, path, versionName string, offset, length int64) (io.ReadCloser, error) {
	v, err := parseVersion(versionName)
	if err != nil {
		return nil, fmt.Errorf("open %q: version %q: %w", path, versionName, s.client.superseded(ctx, path, versionName))
	}
	r, err := s.client.open(ctx, path, v, offset, length)
	if v != live && (missingObject(err) || errors.Is(err, bucket.ErrChanged)) {
		return nil, fmt.Errorf("open %q: version %s: %w", path, versionName, s.client.superseded(ctx, path, versionName))
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Streams implements bucket.Wide: one connection to Amazon carries some 80 MB/s, whatever the network could.
func (s *Source) Streams() int { return 4 }

// Sum implements bucket.Summed: answers that are a part of an object carry no checksum, and listings none at all.
func (s *Source) Sum(ctx context.Context, path, versionName string) (bucket.Sum, error) {
	v, err := parseVersion(versionName)
	if err != nil {
		return nil, fmt.Errorf("checksum of %q: version %q: %w", path, versionName, s.client.superseded(ctx, path, versionName))
	}
	out, err := s.client.pin(ctx, path, v)
	if v != live && (missingObject(err) || errors.Is(err, bucket.ErrChanged)) {
		err = s.client.superseded(ctx, path, versionName)
	}
	if err != nil {
		return nil, fmt.Errorf("checksum of %q: %w", path, err)
	}
	return checksumOf(sumsOfHead(out)), nil
}

// Close implements bucket.Source.
func (s *Source) Close() error { return s.client.close() }

// missingObject reports whether err is about an object that is not there, in a bucket that is.
func missingObject(err error) bool {
	return errors.Is(err, bucket.ErrNotExist) && !errors.Is(err, bucket.ErrNoBucket)
}

func (c *client) stat(ctx context.Context, path string) (bucket.Object, error) {
	out, err := c.head(ctx, path, live)
	if err != nil {
		return bucket.Object{}, err
	}
	return statted(path, out), nil
}

func statted(path string, out *s3.HeadObjectOutput) bucket.Object {
	size := aws.ToInt64(out.ContentLength)
	return bucket.Object{
		Path:        path,
		Version:     Version(aws.ToString(out.VersionId), aws.ToString(out.ETag), size),
		Size:        size,
		ModTime:     modTime(out.LastModified),
		ContentType: aws.ToString(out.ContentType),
		CRC32C:      wholeCRC32C(out.ChecksumCRC32C, out.ChecksumType),
	}
}

// modTime is in whole seconds, which is all that some of the answers tell.
func modTime(t *time.Time) time.Time { return aws.ToTime(t).UTC().Truncate(time.Second) }

// head asks about one version. An object that is there and cannot be read as it is archived is no error.
func (c *client) head(ctx context.Context, path string, v version) (*s3.HeadObjectOutput, error) {
	if !valid(path) {
		return nil, fmt.Errorf("stat %q: %w", path, bucket.ErrNotExist)
	}
	in := &s3.HeadObjectInput{Bucket: &c.name, Key: &path}
	if v.id != "" {
		in.VersionId = &v.id
	}
	out, err := c.api.HeadObject(ctx, in, withChecksums)
	if err != nil {
		return nil, c.wrap(ctx, "stat", path, v, c.unsaid(ctx, path, v, err))
	}
	if err := c.settleID(ctx, &out.VersionId); err != nil {
		return nil, err
	}
	return out, nil
}

// settleID takes the id away from an object that has one although its bucket keeps no old versions.
func (c *client) settleID(ctx context.Context, id **string) error {
	if Version(aws.ToString(*id), "", 0) == "" {
		return nil
	}
	versioned, err := c.keepsVersions(ctx, freshVersioning)
	if err == nil && !versioned {
		versioned, err = c.keepsVersions(ctx, freshDoubt)
	}
	if err == nil && !versioned {
		*id = nil
	}
	return err
}

// unsaid asks again for what an answer without a body left unsaid: it has no place for the reason. What comes is at most
// a byte.
func (c *client) unsaid(ctx context.Context, path string, v version, err error) error {
	if status := statusOf(err); status != http.StatusBadRequest && status != http.StatusForbidden {
		return err
	}
	var answer *answerError
	if errors.As(translate(err), &answer) && errors.Is(answer.says, bucket.ErrNoBucket) {
		return err
	}
	in := &s3.GetObjectInput{Bucket: &c.name, Key: &path, Range: aws.String("bytes=0-0")}
	if v.id != "" {
		in.VersionId = &v.id
	}
	out, reason := c.api.GetObject(ctx, in, once)
	if reason == nil {
		out.Body.Close()
		return err
	}
	return reason
}

// wrap says what is the matter with one object.
func (c *client) wrap(ctx context.Context, op, path string, v version, err error) error {
	action := "s3:GetObject"
	if v.id != "" {
		action = "s3:GetObjectVersion"
	}
	if statusOf(err) == http.StatusNotFound && !errors.Is(translate(err), bucket.ErrNoBucket) && c.noBucket(ctx) {
		err = fmt.Errorf("%w: %w", bucket.ErrNoBucket, translate(err))
	}
	err = wrap(ctx, op, action, path, err)
	if lacksRight(err) {
		err = fmt.Errorf("%w; without s3:ListBucket this is also said of what does not exist", err)
	}
	return err
}

// noBucket reports whether it is the bucket that a 404 misses, not the object: a wrong guess would put it on record that
// every object is gone.
func (c *client) noBucket(ctx context.Context) bool {
	_, err := c.api.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &c.name})
	return statusOf(err) == http.StatusNotFound
}

// superseded says why a version is not there.
func (c *client) superseded(ctx context.Context, path, versionName string) error {
	obj, err := c.stat(ctx, path)
	switch {
	case err != nil:
		return err
	case obj.Version == versionName:
		return fmt.Errorf("it was missing, and is there now: %w", bucket.ErrUnavailable)
	}
	return fmt.Errorf("it is now %s: %w", obj.Version, bucket.ErrChanged)
}

// pin is stat for one version.
func (c *client) pin(ctx context.Context, path string, v version) (*s3.HeadObjectOutput, error) {
	out, err := c.head(ctx, path, v)
	if statusOf(err) == http.StatusMethodNotAllowed { // the version is a deletion
		return nil, fmt.Errorf("stat %q: %w", path, bucket.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	if v != live && !v.is(aws.ToString(out.VersionId), aws.ToString(out.ETag), aws.ToInt64(out.ContentLength)) {
		return nil, fmt.Errorf("stat %q: %w", path, bucket.ErrChanged)
	}
	return out, nil
}

func (c *client) open(ctx context.Context, path string, v version, offset, length int64) (*reader, error) {
	if offset < 0 {
		return nil, fmt.Errorf("open %q at %d: %w", path, offset, syscall.EINVAL)
	}
	if !valid(path) {
		return nil, fmt.Errorf("open %q: %w", path, bucket.ErrNotExist)
	}
	if length == 0 {
		return c.openNothing(ctx, path, v)
	}
	in := &s3.GetObjectInput{Bucket: &c.name, Key: &path}
	switch {
	case v.id != "":
		in.VersionId = &v.id
	case v != live:
		in.IfMatch = aws.String(`"` + v.etag + `"`)
	}
	switch {
	case length > 0 && length <= math.MaxInt64-offset:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	out, err := c.api.GetObject(ctx, in, once, withChecksums)
	switch statusOf(err) {
	case http.StatusRequestedRangeNotSatisfiable: // it ends before
		return c.openNothing(ctx, path, v)
	case http.StatusMethodNotAllowed: // the version is a deletion
		return nil, fmt.Errorf("open %q: %w", path, bucket.ErrNotExist)
	}
	if err != nil {
		return nil, c.wrap(ctx, "open", path, v, err)
	}
	r := &reader{ctx: ctx, path: path, body: out.Body, left: length}
	if err := r.check(out, v, offset); err != nil {
		out.Body.Close()
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	return r, nil
}

// openNothing returns no bytes of a version that is there.
func (c *client) openNothing(ctx context.Context, path string, v version) (*reader, error) {
	if _, err := c.pin(ctx, path, v); err != nil {
		return nil, err
	}
	return &reader{ctx: ctx, path: path, body: http.NoBody}, nil
}

// reader is the body of one answer.
type reader struct {
	ctx  context.Context
	path string
	body io.ReadCloser
	left int64 // bytes; negative: to the end
	sum  *checksum
}

// check holds the answer against the question. Not every server minds conditions and ranges.
func (r *reader) check(out *s3.GetObjectOutput, v version, offset int64) error {
	length := aws.ToInt64(out.ContentLength)
	size := length
	if part := aws.ToString(out.ContentRange); part != "" { // bytes 0-99/1000
		_, total, _ := strings.Cut(part, "/")
		var err error
		if size, err = strconv.ParseInt(total, 10, 64); err != nil || !strings.HasPrefix(part, fmt.Sprintf("bytes %d-", offset)) {
			return fmt.Errorf("asked for bytes from %d and got %q: %w", offset, part, bucket.ErrUnavailable)
		}
	} else if offset > 0 {
		return fmt.Errorf("asked for bytes from %d and got all: %w", offset, bucket.ErrUnavailable)
	}
	if v != live && !v.is(aws.ToString(out.VersionId), aws.ToString(out.ETag), size) {
		return bucket.ErrChanged
	}
	if offset == 0 && length == size && (r.left < 0 || r.left >= size) { // the answer is the whole object
		r.sum = checksumOf(sumsOfGet(out))
	}
	return nil
}

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
	_, _ = r.sum.Write(p[:n])
	if err == io.EOF {
		return n, r.end()
	}
	if err != nil {
		return n, wrap(r.ctx, "read", "s3:GetObject", r.path, err)
	}
	return n, nil
}

// TakeSum implements bucket.Summing.
func (r *reader) TakeSum() bucket.Sum {
	if r.sum == nil {
		return nil
	}
	taken := r.sum
	r.sum = nil
	return taken
}

// end is io.EOF if the bytes are those of the object.
func (r *reader) end() error {
	if err := r.sum.Check(); err != nil {
		return fmt.Errorf("read %q: %w", r.path, err)
	}
	return io.EOF
}

func (r *reader) Close() error { return r.body.Close() }
