package bucket

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EncodeCRC32C spells a Castagnoli checksum as Object does.
func EncodeCRC32C(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// Hash counts and hashes what is written to it, with both checksums we keep in one pass. See NewHash.
type Hash struct {
	size int64
	crc  uint32
	sha  hash.Hash
}

// NewHash returns a Hash of nothing.
func NewHash() *Hash { return &Hash{sha: sha256.New()} }

// NewChecksum returns a Hash that leaves out the SHA-256, which is most of the work; its SHA256 is "".
func NewChecksum() *Hash { return &Hash{} }

// Write never fails.
func (h *Hash) Write(p []byte) (int, error) {
	h.crc = crc32.Update(h.crc, castagnoli, p)
	if h.sha != nil {
		h.sha.Write(p)
	}
	h.size += int64(len(p))
	return len(p), nil
}

// Size returns the number of bytes so far.
func (h *Hash) Size() int64 { return h.size }

// CRC32C returns the Castagnoli checksum so far, spelled as in Object.
func (h *Hash) CRC32C() string { return EncodeCRC32C(h.crc) }

// SHA256 returns the SHA-256 so far in lower-case hex.
func (h *Hash) SHA256() string {
	if h.sha == nil {
		return ""
	}
	return hex.EncodeToString(h.sha.Sum(nil))
}

// Check returns an error wrapping ErrChecksum unless what was written is what want says.
func (h *Hash) Check(want Want) error {
	if want.Size >= 0 && h.size != want.Size {
		return fmt.Errorf("%d bytes instead of %d: %w", h.size, want.Size, ErrChecksum)
	}
	if want.CRC32C != "" && h.CRC32C() != want.CRC32C {
		return fmt.Errorf("crc32c %s instead of %s: %w", h.CRC32C(), want.CRC32C, ErrChecksum)
	}
	return nil
}

// Copy is the inner loop of Put: it copies r to w through buf, hashing, until r ends, and checks the outcome. It stops
// early when ctx ends, and as soon as there are more bytes than want allows. Errors of r come back wrapped. A w with
// buffers of its own, which it may hold on to after a Write, has each piece read to its Buffer instead of buf.
func (h *Hash) Copy(ctx context.Context, w io.Writer, r io.Reader, buf []byte, want Want) error {
	own, _ := w.(interface{ Buffer() []byte })
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if own != nil {
			buf = own.Buffer()
		}
		n, err := fill(r, buf)
		if n > 0 {
			h.Write(buf[:n])
			if want.Size >= 0 && h.size > want.Size {
				return fmt.Errorf("more than %d bytes: %w", want.Size, ErrChecksum)
			}
			if _, err := w.Write(buf[:n]); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		if atEnd(err) {
			return h.Check(want)
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
	}
}

// atEnd reports whether err is the end of a reader. An error that wraps io.EOF is not: connections break with those.
func atEnd(err error) bool { return err == io.EOF } //nolint:errorlint // see above

// fill reads until buf is full or r has no more. Unlike io.ReadFull it keeps what r said at its end, so that a short
// last piece is no error and a broken connection is.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for empty := 0; n < len(buf) && err == nil; {
		var m int
		m, err = r.Read(buf[n:])
		n += m
		if m > 0 {
			empty = 0
		} else if empty++; err == nil && empty >= 100 {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// errNegativeOffset is what seeking and reading before the start gives.
var errNegativeOffset = errors.New("negative offset")
