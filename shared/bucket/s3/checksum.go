package s3

import (
	"crypto/sha1" //nolint:gosec // one of the sums that the protocol knows; it guards against accidents
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"millrace/shared/bucket"
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	nvme       = crc64.MakeTable(0x9a6c9329ac4bc9b5) // CRC-64/NVME, reflected
)

// checksum is what the bytes of an object add up to, and should. A nil one knows nothing and is always right.
type checksum struct {
	name string
	want string // base64
	hash hash.Hash
}

// checksumOf returns the best of the checksums that came with an object. Those of objects in several parts may be sums of
// sums, which says nothing about the bytes as they come; they end in the number of parts.
func checksumOf(out *s3.GetObjectOutput) *checksum {
	if out.ChecksumType == types.ChecksumTypeComposite {
		return nil
	}
	for _, k := range []struct {
		name string
		want *string
		hash func() hash.Hash
	}{
		{"crc32c", out.ChecksumCRC32C, func() hash.Hash { return crc32.New(castagnoli) }},
		{"crc64nvme", out.ChecksumCRC64NVME, func() hash.Hash { return crc64.New(nvme) }},
		{"crc32", out.ChecksumCRC32, func() hash.Hash { return crc32.NewIEEE() }},
		{"sha256", out.ChecksumSHA256, sha256.New},
		{"sha1", out.ChecksumSHA1, sha1.New},
	} {
		if k.want != nil && *k.want != "" && !strings.Contains(*k.want, "-") {
			return &checksum{name: k.name, want: *k.want, hash: k.hash()}
		}
	}
	return nil
}

func (c *checksum) add(p []byte) {
	if c != nil {
		c.hash.Write(p)
	}
}

func (c *checksum) check() error {
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
