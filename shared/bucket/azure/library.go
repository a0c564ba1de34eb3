package azure

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"strings"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"millrace/shared/bucket"
)

// Library keeps blobs in a container, below a prefix. Each tells its CRC32C in its metadata.
type Library struct {
	client *client
	prefix string // empty, or ends in "/"
}

var _ bucket.Library = (*Library)(nil)

// NewLibrary returns a Library. For what it asks and when, see NewSource.
func NewLibrary(cfg Config) (*Library, error) {
	prefix := strings.Trim(cfg.Prefix, "/")
	if prefix != "" {
		if err := bucket.CheckKey(prefix); err != nil {
			return nil, fmt.Errorf("open library: prefix: %w", err)
		}
		prefix += "/"
	}
	c, err := newClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("open library: %w", err)
	}
	c.sums = true
	return &Library{client: c, prefix: prefix}, nil
}

// Close implements bucket.Library.
func (l *Library) Close() error { return l.client.close() }

// URI implements bucket.Library.
func (l *Library) URI(key string) string {
	u := url.URL{Scheme: "az", Host: l.client.account, Path: "/" + l.client.name + "/" + l.prefix + key}
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

// Open implements bucket.Library.
func (l *Library) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := bucket.CheckKey(key); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	r, err := l.client.open(ctx, l.prefix+key, "", offset, length)
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
	_, err := l.client.blobs.NewBlobClient(l.prefix+key).Delete(ctx, nil)
	if err = l.client.wrap(ctx, "delete", key, err); missingObject(err) {
		return nil
	}
	return err
}

// List implements bucket.Library. Blobs that no Put can have made are left out.
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

const (
	bufSize   = 256 << 10 // the unit in which bytes move
	maxBlocks = 50_000    // of one blob, says Azure
	maxBlob   = maxBlocks * (4000 << 20)
)

// blockSize is what a Put holds in memory, to send it again if need be. Tests make it smaller.
var blockSize = 8 << 20

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// blockFor returns the memory to set aside for a blob: all of a small one, which goes out in a single request, and more
// than the usual for one that would have too many blocks.
func blockFor(size int64) int {
	switch {
	case size < 0:
		return blockSize
	case size < int64(blockSize):
		return int(size) + 1 // so that one byte too many is seen before anything goes out
	}
	return max(blockSize, int(min(size, maxBlob)/maxBlocks)+1)
}

// Put implements bucket.Library. It holds up to 8 MiB of the object in memory, or a 50,000th part of one over 400 GB. A
// reader that does not say its size may bring up to 400 GB.
//
// Of a large object blocks are staged, which nobody sees, and committed at once in the end. What was staged and never
// committed Azure forgets after a week.
func (l *Library) Put(ctx context.Context, key string, r io.Reader, want bucket.Want) (bucket.Stored, error) {
	if err := bucket.CheckKey(key); err != nil {
		return bucket.Stored{}, fmt.Errorf("store: %w", err)
	}
	up := &upload{
		lib: l, ctx: ctx, key: key, want: want, hash: bucket.NewHash(),
		blob: l.client.blobs.NewBlockBlobClient(l.prefix + key), block: make([]byte, 0, blockFor(want.Size)),
	}
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)
	err := up.hash.Copy(ctx, up, r, buf[:], want)
	if up.err != nil {
		err = up.err
	} else if err == nil {
		err = up.commit()
	}
	if err != nil {
		return bucket.Stored{}, fmt.Errorf("store %q: %w", key, err)
	}
	return bucket.Stored{
		Key: key, URI: l.URI(key), Size: up.hash.Size(), CRC32C: up.hash.CRC32C(), SHA256: up.hash.SHA256(),
	}, nil
}

// upload is one Put: a writer that stages a block whenever one is full.
type upload struct {
	lib   *Library
	ctx   context.Context
	key   string
	want  bucket.Want
	hash  *bucket.Hash
	blob  *blockblob.Client
	block []byte
	ids   blockIDs
	err   error // of the storage, apart from those of the reader
}

// Write implements io.Writer.
func (u *upload) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		if len(u.block) == cap(u.block) {
			if u.err = u.stage(); u.err != nil {
				return written, u.err
			}
		}
		n := copy(u.block[len(u.block):cap(u.block)], p[written:])
		u.block = u.block[:len(u.block)+n]
		written += n
	}
	return written, nil
}

// checked has Azure hold what it received against our CRC64.
func checked() blob.TransferValidationType { return blob.TransferValidationTypeComputeCRC64() }

func (u *upload) stage() error {
	id, err := u.ids.next()
	if err != nil {
		return err
	}
	body := streaming.NopCloser(bytes.NewReader(u.block))
	_, err = u.blob.StageBlock(u.ctx, id, body, &blockblob.StageBlockOptions{TransactionalValidation: checked()})
	u.block = u.block[:0]
	return u.lib.client.wrapWrite(u.ctx, "upload", u.key, err)
}

// commit makes the blob: in one request if no block had to be staged, out of its blocks otherwise.
func (u *upload) commit() error {
	if len(u.ids.list) == 0 {
		body := streaming.NopCloser(bytes.NewReader(u.block))
		_, err := u.blob.Upload(u.ctx, body, &blockblob.UploadOptions{
			TransactionalValidation: checked(), Metadata: record(u.hash.CRC32C()), HTTPHeaders: headers(u.want.ContentType),
		})
		return u.lib.client.wrapWrite(u.ctx, "upload", u.key, err)
	}
	if len(u.block) > 0 {
		if err := u.stage(); err != nil {
			return err
		}
	}
	return u.lib.commit(u.ctx, u.key, u.ids.list, &blockblob.CommitBlockListOptions{
		Metadata: record(u.hash.CRC32C()), HTTPHeaders: headers(u.want.ContentType),
	}, u.hash.Size(), u.hash.CRC32C())
}

// errOvertaken: another writer of the same key committed first, and Azure threw away the blocks of all others. It may be
// put again.
var errOvertaken = errors.New("another object was put there meanwhile")

// commit makes a blob out of blocks. Blocks that are gone were thrown away by another writer of the key who was faster,
// or by an earlier attempt of our own whose answer was lost; if what is there now is what we were about to put, then it
// is done.
func (l *Library) commit(
	ctx context.Context, key string, ids []string, opts *blockblob.CommitBlockListOptions, size int64, crc string,
) error {
	_, err := l.client.blobs.NewBlockBlobClient(l.prefix+key).CommitBlockList(ctx, ids, opts)
	if err = l.client.wrapWrite(ctx, "upload", key, err); !errors.Is(err, errOvertaken) {
		return err
	}
	there, serr := l.client.stat(ctx, l.prefix+key)
	if serr == nil && there.Size == size && there.CRC32C == crc && crc != "" {
		return nil
	}
	return err
}

// wrapWrite is wrap for what is sent to be stored.
func (c *client) wrapWrite(ctx context.Context, op, key string, err error) error {
	err = c.wrap(ctx, op, key, err)
	if missingObject(err) { // of a write, there is but one thing that can be missing
		return fmt.Errorf("%w: %w", bucket.ErrNoBucket, err)
	}
	return err
}

// blockIDs are names for the blocks of one upload. They are random, because several uploads of one key share its blocks,
// and all of one length, because Azure wants that.
type blockIDs struct {
	upload [16]byte
	list   []string
}

func (b *blockIDs) next() (string, error) {
	if len(b.list) == 0 {
		_, _ = rand.Read(b.upload[:]) // never fails
	}
	if len(b.list) == maxBlocks {
		return "", fmt.Errorf("more than %d blocks; the size has to be known beforehand: %w", maxBlocks, errors.ErrUnsupported)
	}
	id := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(b.upload[:16:16], uint32(len(b.list))))
	b.list = append(b.list, id)
	return id, nil
}

// sumName is where a blob of ours tells its CRC32C: metadata have names that are C# identifiers.
const sumName = "millrace_crc32c"

func record(crc string) map[string]*string { return map[string]*string{sumName: to.Ptr(crc)} }

// recorded is what a blob of ours tells of its CRC32C. What a stranger's says is nothing to rely on.
func (c *client) recorded(metadata map[string]*string) string {
	if !c.sums {
		return ""
	}
	return value(metadatum(metadata, sumName))
}

func headers(contentType string) *blob.HTTPHeaders {
	return &blob.HTTPHeaders{BlobContentType: to.Ptr(cmp.Or(contentType, "application/octet-stream"))}
}
