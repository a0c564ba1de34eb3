package azure

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // what Azure has: against damage, not against people
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"math"
	"net/http"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"millrace/shared/bucket"
)

// Source reads a container.
type Source struct {
	client *client
}

var _ bucket.Source = (*Source)(nil)

// NewSource returns a Source. It asks nothing of the network yet: whether the container is there, and ours to read, the
// first call tells.
//
// ErrCredentials: the credentials cannot be ones. ErrName: no account or container has this name.
func NewSource(cfg Config) (*Source, error) {
	c, err := newClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("open container: %w", err)
	}
	return &Source{client: c}, nil
}

// List implements bucket.Source. The folders of an account with a hierarchical namespace are not objects, and are not
// listed.
func (s *Source) List(ctx context.Context, opts bucket.ListOptions) iter.Seq2[bucket.Object, error] {
	return s.client.list(ctx, opts)
}

// Stat implements bucket.Source.
func (s *Source) Stat(ctx context.Context, path string) (bucket.Object, error) {
	return s.client.stat(ctx, path)
}

// Open implements bucket.Source. It makes one attempt: patience is bucket.Reader's.
func (s *Source) Open(ctx context.Context, path, version string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.client.open(ctx, path, version, offset, length)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Streams implements bucket.Wide: one connection carries some 60 MB/s, whatever the network could. Azure sums up each part by
// itself, as it is no longer than rangeSums.
func (s *Source) Streams() int { return 4 }

// Close implements bucket.Source.
func (s *Source) Close() error { return s.client.close() }

// missingObject reports whether err is about a blob that is not there, in a container that is.
func missingObject(err error) bool {
	return errors.Is(err, bucket.ErrNotExist) && !errors.Is(err, bucket.ErrNoBucket)
}

// listOne is the cheapest question whether there is a container.
var listOne = container.ListBlobsFlatOptions{MaxResults: to.Ptr[int32](1)}

// newObject describes a blob as a listing does.
func (c *client) newObject(item *container.BlobItem) (bucket.Object, error) {
	p := item.Properties
	if item.Name == nil || p == nil || p.ETag == nil || p.ContentLength == nil || p.LastModified == nil {
		return bucket.Object{}, fmt.Errorf("listing without name, ETag, length or date: %w", bucket.ErrUnavailable)
	}
	return bucket.Object{
		Path: *item.Name, Version: versionOf(*p.ETag), Size: *p.ContentLength, ModTime: p.LastModified.UTC(),
		ContentType: value(p.ContentType), CRC32C: c.recorded(item.Metadata),
	}, nil
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// versionOf is an ETag as listings and Event Grid spell it; headers have it in quotes.
func versionOf(tag azcore.ETag) string { return strings.Trim(string(tag), `"`) }

// condition is the ETag that a version stands for, nil for whichever there is.
func condition(version string) *azcore.ETag {
	if version == "" {
		return nil
	}
	return to.Ptr(azcore.ETag(`"` + version + `"`))
}

// plausible reports whether a version can be one of Azure's. Anything else never existed, and is not sent.
func plausible(version string) bool {
	for i := range len(version) {
		if c := version[i]; c <= ' ' || c >= 0x7f || c == '"' || c == ',' {
			return false
		}
	}
	return version != "*"
}

// valid reports whether a blob can have this name at all. Anything else does not exist, and is not sent where it might be
// understood as something else: Azure takes "\" for "/".
func valid(path string) bool {
	if path == "" || !utf8.ValidString(path) || utf8.RuneCountInString(path) > 1024 || strings.ContainsAny(path, "\x00\\") {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return false
		}
	}
	return true
}

func (c *client) stat(ctx context.Context, path string) (bucket.Object, error) {
	if !valid(path) {
		return bucket.Object{}, fmt.Errorf("stat %q: %w", path, bucket.ErrNotExist)
	}
	got, err := c.blobs.NewBlobClient(path).GetProperties(ctx, nil)
	if err != nil {
		return bucket.Object{}, c.wrap(ctx, "stat", path, err)
	}
	if got.ETag == nil || got.ContentLength == nil || got.LastModified == nil {
		return bucket.Object{}, fmt.Errorf("stat %q: no ETag, length or date: %w", path, bucket.ErrUnavailable)
	}
	if isFolder(got.Metadata) && *got.ContentLength == 0 {
		return bucket.Object{}, fmt.Errorf("stat %q: it is a folder: %w", path, bucket.ErrNotExist)
	}
	return bucket.Object{
		Path: path, Version: versionOf(*got.ETag), Size: *got.ContentLength, ModTime: got.LastModified.UTC(),
		ContentType: value(got.ContentType), CRC32C: c.recorded(got.Metadata),
	}, nil
}

// isFolder reports whether metadata are those that Azure gives a folder of a hierarchical namespace.
func isFolder(metadata map[string]*string) bool {
	return value(metadatum(metadata, "hdi_isfolder")) == "true"
}

// metadatum finds a value by its name, whose case HTTP does not keep.
func metadatum(metadata map[string]*string, name string) *string {
	for key, v := range metadata {
		if strings.EqualFold(key, name) {
			return v
		}
	}
	return nil
}

// once has the client make a single attempt.
func once(ctx context.Context) context.Context {
	return policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1, ShouldRetry: func(*http.Response, error) bool { return false }})
}

// rangeSums is up to how many bytes Azure gives a checksum of a part: 4 MiB.
const rangeSums = 4 << 20

// open reads a part of a version, or of whichever is there if version is empty.
func (c *client) open(ctx context.Context, path, version string, offset, length int64) (*reader, error) {
	if offset < 0 {
		return nil, fmt.Errorf("open %q at %d: %w", path, offset, syscall.EINVAL)
	}
	if !valid(path) {
		return nil, fmt.Errorf("open %q: %w", path, bucket.ErrNotExist)
	}
	if !plausible(version) {
		return nil, fmt.Errorf("open %q: version %q: %w", path, version, c.superseded(ctx, path))
	}
	if length == 0 {
		obj, err := c.stat(ctx, path)
		if err == nil && version != "" && obj.Version != version {
			err = fmt.Errorf("open %q: version %s: %w", path, version, bucket.ErrChanged)
		}
		if err != nil {
			return nil, err
		}
		return &reader{ctx: ctx, path: path, body: http.NoBody}, nil
	}
	opts := &blob.DownloadStreamOptions{
		AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: condition(version)}},
	}
	if opts.Range.Offset = offset; length > 0 && length <= math.MaxInt64-offset {
		opts.Range.Count = length
		if length <= rangeSums {
			opts.RangeGetContentMD5 = to.Ptr(true)
		}
	}
	got, err := c.blobs.NewBlobClient(path).DownloadStream(once(ctx), opts)
	if bloberror.HasCode(err, bloberror.InvalidRange) { // the version is there, and ends before
		return &reader{ctx: ctx, path: path, body: http.NoBody}, nil
	}
	if bloberror.HasCode(err, bloberror.ConditionNotMet) { // which may be said of a blob that is gone, too
		return nil, fmt.Errorf("open %q: version %s: %w", path, version, c.superseded(ctx, path))
	}
	if err != nil {
		return nil, c.wrap(ctx, "open", path, err)
	}
	r := &reader{ctx: ctx, path: path, body: got.Body, left: length}
	if err := r.check(got.DownloadResponse, version, offset); err != nil {
		got.Body.Close()
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	return r, nil
}

// superseded says why a version is not there.
func (c *client) superseded(ctx context.Context, path string) error {
	if _, err := c.stat(ctx, path); err != nil {
		return err
	}
	return bucket.ErrChanged
}

// reader is the body of one answer.
type reader struct {
	ctx  context.Context
	path string
	body io.ReadCloser
	left int64 // bytes; negative: to the end
	sum  *sum  // of what the answer carries
}

// check holds the answer against the question.
func (r *reader) check(got blob.DownloadResponse, version string, offset int64) error {
	if version != "" && got.ETag != nil && versionOf(*got.ETag) != version {
		return fmt.Errorf("asked for version %s and got %s: %w", version, versionOf(*got.ETag), bucket.ErrChanged)
	}
	part := value(got.ContentRange) // bytes 0-99/1000; none: all
	if part == "" && offset > 0 || part != "" && !strings.HasPrefix(part, fmt.Sprintf("bytes %d-", offset)) {
		return fmt.Errorf("asked for bytes from %d and got %q: %w", offset, part, bucket.ErrUnavailable)
	}
	if got.ContentLength == nil || r.left > 0 && *got.ContentLength > r.left {
		return nil // a checksum would be of more than we read
	}
	want := got.ContentMD5
	if size := *got.ContentLength; part == fmt.Sprintf("bytes 0-%d/%d", size-1, size) && len(want) == 0 { // the part is the whole
		want = got.BlobContentMD5
	}
	if len(want) == md5.Size {
		r.sum = &sum{Hash: md5.New(), want: want} //nolint:gosec // as above
	}
	return nil
}

// sum is what the bytes of an answer add up to, and should.
type sum struct {
	hash.Hash
	want []byte
}

// Check implements bucket.Sum.
func (s *sum) Check() error {
	if got := s.Sum(nil); !bytes.Equal(got, s.want) {
		return fmt.Errorf("md5 %s instead of %s: %w", base64.StdEncoding.EncodeToString(got),
			base64.StdEncoding.EncodeToString(s.want), bucket.ErrChecksum)
	}
	return nil
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
	if r.sum != nil {
		r.sum.Write(p[:n])
	}
	if err == io.EOF {
		return n, r.end()
	}
	return n, wrap(r.ctx, "read", r.path, err)
}

// end is io.EOF if the bytes are those of the blob.
func (r *reader) end() error {
	if r.sum == nil {
		return io.EOF
	}
	if err := r.sum.Check(); err != nil {
		return fmt.Errorf("read %q: %w", r.path, err)
	}
	return io.EOF
}

func (r *reader) Close() error { return r.body.Close() }
