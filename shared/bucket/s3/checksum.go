package s3

import (
	"crypto/sha1" //nolint:gosec // one of the sums that the protocol knows; it guards against accidents
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"hash/crc32"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/minio/crc64nvme"

	"millrace/shared/bucket"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is what the bytes of an object add up to, and should. A nil one knows nothing and is always right.
type checksum struct {
	name string
	want string // base64
	hash hash.Hash
}

// sums are the checksums that an answer may carry.
type sums struct {
	crc32c, nvme, crc32, sha256, sha1 *string
	kind                              types.ChecksumType
}

func sumsOfGet(o *s3.GetObjectOutput) sums {
	return sums{o.ChecksumCRC32C, o.ChecksumCRC64NVME, o.ChecksumCRC32, o.ChecksumSHA256, o.ChecksumSHA1, o.ChecksumType}
}

func sumsOfHead(o *s3.HeadObjectOutput) sums {
	return sums{o.ChecksumCRC32C, o.ChecksumCRC64NVME, o.ChecksumCRC32, o.ChecksumSHA256, o.ChecksumSHA1, o.ChecksumType}
}

// checksumOf returns the best of the checksums that came with an object. Those of objects in several parts may be sums of
// sums, which says nothing about the bytes as they come; they end in the number of parts.
func checksumOf(s sums) *checksum {
	if s.kind == types.ChecksumTypeComposite {
		return nil
	}
	for _, k := range []struct {
		name string
		want *string
		hash func() hash.Hash
	}{
		{"crc32c", s.crc32c, func() hash.Hash { return crc32.New(castagnoli) }},
		{"crc64nvme", s.nvme, func() hash.Hash { return crc64nvme.New() }},
		{"crc32", s.crc32, func() hash.Hash { return crc32.NewIEEE() }},
		{"sha256", s.sha256, sha256.New},
		{"sha1", s.sha1, sha1.New},
	} {
		if k.want != nil && *k.want != "" && !strings.Contains(*k.want, "-") {
			return &checksum{name: k.name, want: *k.want, hash: k.hash()}
		}
	}
	return nil
}

// Write implements bucket.Sum.
func (c *checksum) Write(p []byte) (int, error) {
	if c != nil {
		c.hash.Write(p)
	}
	return len(p), nil
}

// Check implements bucket.Sum.
func (c *checksum) Check() error {
	if c == nil {
		return nil
	}
	if got := base64.StdEncoding.EncodeToString(c.hash.Sum(nil)); got != c.want {
		return fmt.Errorf("%s %s instead of %s: %w", c.name, got, c.want, bucket.ErrChecksum)
	}
	return nil
}

// wholeCRC32C returns a CRC32C if it is one of all the bytes.
func wholeCRC32C(sum *string, kind types.ChecksumType) string {
	if sum == nil || kind == types.ChecksumTypeComposite || strings.Contains(*sum, "-") {
		return ""
	}
	return *sum
}
