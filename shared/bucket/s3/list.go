package s3

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"millrace/shared/bucket"
)

// list yields what is live. A page of a listing tells of neither type nor checksum.
func (c *client) list(ctx context.Context, opts bucket.ListOptions) iter.Seq2[bucket.Object, error] {
	return func(yield func(bucket.Object, error) bool) {
		if !utf8.ValidString(opts.Prefix) || strings.ContainsRune(opts.Prefix, 0) {
			return // as is every name
		}
		versioned, err := c.keepsVersions(ctx, freshVersioning)
		if err != nil {
			yield(bucket.Object{}, err)
			return
		}
		p := &pages{client: c, opts: opts, after: validPart(opts.StartAfter)}
		next, action := p.plain, "s3:ListBucket"
		if versioned {
			next, action = p.versions, "s3:ListBucketVersions"
		}
		last := opts.StartAfter
		for more := true; more; {
			var page []bucket.Object
			page, more, err = next(ctx)
			if err == nil {
				err = ctx.Err() // a page can outlive its context
			}
			if statusOf(err) == http.StatusNotFound {
				err = fmt.Errorf("%w: %w", bucket.ErrNoBucket, translate(err))
			}
			if err != nil {
				yield(bucket.Object{}, wrap(ctx, "list", action, opts.Prefix, err))
				return
			}
			for _, obj := range page {
				switch {
				case obj.Path == last || obj.Path <= opts.StartAfter:
					continue // some servers begin with where we wanted to begin after
				case obj.Path < last:
					yield(bucket.Object{}, fmt.Errorf("list %q: %w", opts.Prefix, errOrder))
					return
				}
				last = obj.Path
				if !yield(obj, nil) {
					return
				}
			}
		}
	}
}

// errOrder: a listing that is not in order cannot be resumed, and would lose names without anybody noticing. The
// directory buckets of S3 Express are like that.
var errOrder = fmt.Errorf("the server does not list in the order of bytes: %w", errors.ErrUnsupported)

// validPart returns s up to the first byte that cannot be part of a name.
func validPart(s string) string {
	for i, r := range s {
		if r == 0 || r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)) {
			return s[:i]
		}
	}
	return s
}

// pages is a listing under way.
type pages struct {
	client *client
	opts   bucket.ListOptions
	after  string  // where to begin
	token  *string // where to go on
	marker *string // of versions: within the key to go on with
}

func (p *pages) delimiter() *string {
	if p.opts.Delimiter {
		return aws.String("/")
	}
	return nil
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (p *pages) plain(ctx context.Context) ([]bucket.Object, bool, error) {
	in := &s3.ListObjectsV2Input{
		Bucket: &p.client.name, Prefix: optional(p.opts.Prefix), Delimiter: p.delimiter(),
		EncodingType: types.EncodingTypeUrl, ContinuationToken: p.token,
	}
	if p.token == nil {
		in.StartAfter = optional(p.after)
	}
	var objects []types.Object
	out, err := p.client.api.ListObjectsV2(ctx, in, quick(&objects))
	if err != nil {
		return nil, false, err
	}
	if objects == nil {
		objects = out.Contents
	}
	page := make([]bucket.Object, 0, len(objects))
	for _, o := range objects {
		obj, err := listed(out.EncodingType, o.Key, nil, o.ETag, o.Size, o.LastModified)
		if err != nil {
			return nil, false, err
		}
		page = append(page, obj)
	}
	p.token = out.NextContinuationToken
	return page, aws.ToBool(out.IsTruncated) && p.token != nil, nil
}

func (p *pages) versions(ctx context.Context) ([]bucket.Object, bool, error) {
	in := &s3.ListObjectVersionsInput{
		Bucket: &p.client.name, Prefix: optional(p.opts.Prefix), Delimiter: p.delimiter(),
		EncodingType: types.EncodingTypeUrl, KeyMarker: p.token, VersionIdMarker: p.marker,
	}
	if p.token == nil {
		in.KeyMarker = optional(p.after)
	}
	out, err := p.client.api.ListObjectVersions(ctx, in)
	if err != nil {
		return nil, false, err
	}
	page := make([]bucket.Object, 0, len(out.Versions))
	for _, o := range out.Versions {
		if !aws.ToBool(o.IsLatest) {
			continue
		}
		obj, err := listed(out.EncodingType, o.Key, o.VersionId, o.ETag, o.Size, o.LastModified)
		if err != nil {
			return nil, false, err
		}
		page = append(page, obj)
	}
	marker, err := decoded(out.EncodingType, aws.ToString(out.NextKeyMarker))
	p.token, p.marker = optional(marker), out.NextVersionIdMarker
	return page, aws.ToBool(out.IsTruncated) && p.token != nil, err
}

// listed makes an object of a line of a listing.
func listed(encoding types.EncodingType, key, id, etag *string, size *int64, modified *time.Time) (bucket.Object, error) {
	path, err := decoded(encoding, aws.ToString(key))
	if err != nil {
		return bucket.Object{}, fmt.Errorf("name %q: %w", path, err)
	}
	return bucket.Object{
		Path: path, Size: aws.ToInt64(size), ModTime: modTime(modified),
		Version: Version(aws.ToString(id), aws.ToString(etag), aws.ToInt64(size)),
	}, nil
}

// decoded is a name as it is. XML has no place for some characters, so we ask for names in the encoding of forms.
func decoded(encoding types.EncodingType, key string) (string, error) {
	if encoding != types.EncodingTypeUrl {
		return key, nil
	}
	return url.QueryUnescape(key)
}
