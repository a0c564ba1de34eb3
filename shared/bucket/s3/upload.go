package s3

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"

	"millrace/shared/bucket"
)

const (
	partSize = 8 << 20 // the smallest that is allowed is 5 MiB
	maxParts = 10_000
)

var partBuffers = sync.Pool{New: func() any { return new([partSize]byte) }}

// partFor returns the size of a part for an object. All parts but the last are of one size, as some servers want it; an
// object of unknown size has room for 8 MiB × 10,000.
func partFor(size int64) int {
	return int(max(partSize, (size+maxParts-1)/maxParts))
}

// upload is a writer that stores what is written to it as one object: in a single request if it fits into a part, and
// else in parts, one of them on its way while the next fills.
type upload struct {
	ctx         context.Context
	library     *Library
	key         string // in the bucket
	contentType string
	size        int // of a part

	filling []byte // its length is what it holds
	pooled  []*[partSize]byte

	id      string // "": no part was sent yet
	parts   []types.CompletedPart
	sending chan error // of the part on its way; nil: none
	spare   []byte     // the buffer of the part on its way, or of the one before
}

func newUpload(ctx context.Context, l *Library, key string, want bucket.Want) *upload {
	u := &upload{
		ctx: ctx, library: l, key: l.prefix + key, contentType: cmp.Or(want.ContentType, octets), size: partFor(want.Size),
	}
	if want.Size >= 0 && want.Size < partSize/8 {
		u.filling = make([]byte, 0, want.Size+1) // small ones should not hold what large ones need
		u.size = cap(u.filling)
	} else {
		u.filling = u.buffer()
	}
	return u
}

// buffer returns room for a part.
func (u *upload) buffer() []byte {
	if u.size != partSize {
		return make([]byte, 0, u.size)
	}
	b := partBuffers.Get().(*[partSize]byte)
	u.pooled = append(u.pooled, b)
	return b[:0]
}

// release gives the buffers back. Nothing may be on its way.
func (u *upload) release() {
	for _, b := range u.pooled {
		partBuffers.Put(b)
	}
}

// Write implements io.Writer. A full part goes out when more comes, so that what fits into one is never split.
func (u *upload) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(u.filling) == u.size {
			if err := u.flush(); err != nil {
				return n, err
			}
		}
		m := min(len(p)-n, u.size-len(u.filling))
		u.filling = append(u.filling, p[n:n+m]...)
		n += m
	}
	return n, nil
}

// flush sends the part that is full, once the one before has arrived.
func (u *upload) flush() error {
	if err := u.wait(); err != nil {
		return err
	}
	if u.id == "" {
		out, err := u.library.client.api.CreateMultipartUpload(u.ctx, &s3.CreateMultipartUploadInput{
			Bucket: &u.library.client.name, Key: &u.key, ContentType: &u.contentType,
			ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c, ChecksumType: types.ChecksumTypeFullObject,
		})
		if err != nil {
			return err
		}
		u.id = aws.ToString(out.UploadId)
		u.spare = u.buffer()
	}
	part, number := u.filling, int32(len(u.parts)+1)
	sum := bucket.EncodeCRC32C(crc32.Checksum(part, castagnoli))
	u.parts = append(u.parts, types.CompletedPart{PartNumber: &number, ChecksumCRC32C: &sum})
	done := &u.parts[len(u.parts)-1]
	u.filling, u.spare = u.spare[:0], part
	u.sending = make(chan error, 1)
	go func(sent chan<- error) {
		out, err := u.library.client.api.UploadPart(u.ctx, &s3.UploadPartInput{
			Bucket: &u.library.client.name, Key: &u.key, UploadId: &u.id, PartNumber: &number,
			Body: bytes.NewReader(part), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c, ChecksumCRC32C: &sum,
		})
		if err == nil {
			done.ETag = out.ETag
			if out.ChecksumCRC32C == nil {
				done.ChecksumCRC32C = nil // the server knows no such thing
			}
		}
		sent <- err
	}(u.sending)
	return nil
}

// wait returns when no part is on its way.
func (u *upload) wait() error {
	if u.sending == nil {
		return nil
	}
	err := <-u.sending
	u.sending = nil
	return err
}

// finish stores what was written, which has this hash.
func (u *upload) finish(hash *bucket.Hash) error {
	size, crc := hash.Size(), hash.CRC32C()
	if u.id == "" {
		return u.putWhole(size, crc, hash.SHA256())
	}
	if len(u.filling) > 0 {
		if err := u.flush(); err != nil {
			return err
		}
	}
	if err := u.wait(); err != nil {
		return err
	}
	return u.library.complete(u.ctx, u.key, u.id, u.parts, size, crc)
}

// putWhole stores what fits into a single request.
func (u *upload) putWhole(size int64, crc, sha string) error {
	out, err := u.library.client.api.PutObject(u.ctx, &s3.PutObjectInput{
		Bucket: &u.library.client.name, Key: &u.key, ContentType: &u.contentType, ContentLength: &size,
		Body: bytes.NewReader(u.filling), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c, ChecksumCRC32C: &crc,
	}, hashed(sha))
	if err != nil {
		return err
	}
	got := bucket.Object{Size: size, CRC32C: wholeCRC32C(out.ChecksumCRC32C, out.ChecksumType)}
	return u.library.verify(u.ctx, u.key[len(u.library.prefix):], got, size, crc)
}

// hashed tells the client the SHA-256 of a body, which it signs and would otherwise compute a second time.
func hashed(sha string) func(*s3.Options) {
	return s3.WithAPIOptions(func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("hashed", func( //nolint:misspell // its own spelling
			ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
		) (middleware.InitializeOutput, middleware.Metadata, error) {
			return next.HandleInitialize(v4.SetPayloadHash(ctx, sha), in)
		}), middleware.Before)
	})
}

// complete makes an object of its parts. What became of it is looked up: not every server answers with the checksum, and
// an answer may get lost.
func (l *Library) complete(
	ctx context.Context, key, id string, parts []types.CompletedPart, size int64, crc string,
) error {
	_, err := l.client.api.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &l.client.name, Key: &key, UploadId: &id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if err != nil && statusOf(err) != http.StatusNotFound { // else an attempt before may have done it
		return err
	}
	got, serr := l.client.stat(ctx, key)
	if err != nil {
		if serr == nil && got.Size == size && crc != "" && got.CRC32C == crc {
			return nil
		}
		return err
	}
	if serr != nil {
		return serr
	}
	return l.verify(ctx, key[len(l.prefix):], got, size, crc)
}

// abortTime is how long the end of an upload that failed may take.
const abortTime = 10 * time.Second

// abort ends an upload that did not come to its end. Its context must have ended.
func (u *upload) abort() {
	_ = u.wait()
	if u.id != "" {
		u.library.abort(u.ctx, u.key, u.id)
	}
}

// abort has the server forget the parts of an upload. Those of a process that died cost money until a rule of the bucket
// removes them, see AbortIncompleteMultipartUpload.
func (l *Library) abort(ctx context.Context, key, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
	defer cancel()
	_, _ = l.client.api.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &l.client.name, Key: &key, UploadId: &id})
}

// Limits of copying: what one request may copy, and the parts of what is larger. Tests make them smaller.
var (
	copyLimit int64 = 5 << 30
	copyPart  int64 = 512 << 20
)

// copying is a copy within one storage.
type copying struct {
	library *Library
	key     string
	from    *client
	path    string
	version version
	object  bucket.Object // what is copied
	moved   func(int64)
}

// source is how a request names what to copy.
func (c *copying) source() *string {
	s := c.from.name + "/" + strings.ReplaceAll((&url.URL{Path: c.path}).EscapedPath(), "+", "%2B") // or it would be a space
	if c.version.id != "" {
		s += "?versionId=" + url.QueryEscape(c.version.id)
	}
	return &s
}

func (c *copying) condition() *string {
	if c.version.etag == "" {
		return nil
	}
	return aws.String(`"` + c.version.etag + `"`)
}

func (c *copying) run(ctx context.Context) (bucket.Object, error) {
	l, target := c.library, c.library.prefix+c.key
	contentType := cmp.Or(c.object.ContentType, octets)
	if c.object.Size > copyLimit {
		return c.inParts(ctx, target, contentType)
	}
	out, err := l.client.api.CopyObject(ctx, &s3.CopyObjectInput{
		Bucket: &l.client.name, Key: &target, CopySource: c.source(), CopySourceIfMatch: c.condition(),
		// Bytes and their type, and nothing else of what the source has.
		MetadataDirective: types.MetadataDirectiveReplace, TaggingDirective: types.TaggingDirectiveReplace,
		ContentType: &contentType, ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
	})
	if err != nil {
		return bucket.Object{}, err
	}
	copied := bucket.Object{Path: c.key, Size: c.object.Size}
	if r := out.CopyObjectResult; r != nil {
		copied.CRC32C = wholeCRC32C(r.ChecksumCRC32C, r.ChecksumType)
	}
	if copied.CRC32C == "" {
		if copied, err = l.client.stat(ctx, target); err != nil {
			return copied, err
		}
	}
	c.moved(copied.Size)
	return copied, nil
}

func (c *copying) inParts(ctx context.Context, target, contentType string) (_ bucket.Object, err error) {
	l := c.library
	made, err := l.client.api.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &l.client.name, Key: &target, ContentType: &contentType,
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c, ChecksumType: types.ChecksumTypeFullObject,
	})
	if err != nil {
		return bucket.Object{}, err
	}
	id := aws.ToString(made.UploadId)
	defer func() {
		if err != nil {
			l.abort(ctx, target, id)
		}
	}()
	size := max(copyPart, (c.object.Size+maxParts-1)/maxParts)
	var parts []types.CompletedPart
	for start := int64(0); start < c.object.Size; start += size {
		end := min(start+size, c.object.Size)
		number := int32(len(parts) + 1)
		out, err := l.client.api.UploadPartCopy(ctx, &s3.UploadPartCopyInput{
			Bucket: &l.client.name, Key: &target, UploadId: &id, PartNumber: &number, CopySource: c.source(),
			CopySourceIfMatch: c.condition(), CopySourceRange: aws.String(fmt.Sprintf("bytes=%d-%d", start, end-1)),
		})
		if err != nil {
			return bucket.Object{}, err
		}
		parts = append(parts, types.CompletedPart{
			PartNumber: &number, ETag: out.CopyPartResult.ETag, ChecksumCRC32C: out.CopyPartResult.ChecksumCRC32C,
		})
		c.moved(end - start)
	}
	if err := l.complete(ctx, target, id, parts, c.object.Size, c.object.CRC32C); err != nil {
		return bucket.Object{}, err
	}
	return l.client.stat(ctx, target)
}
