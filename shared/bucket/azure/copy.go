package azure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"millrace/shared/bucket"
)

// How much Azure copies in one request: a whole blob, and a block of a larger one. Tests make them smaller.
var (
	copyWhole int64 = 256 << 20
	copyBlock int64 = 1 << 30
)

// CopyFrom implements bucket.Library for a Source in any storage account of Azure: the library's storage reads there by
// itself, with the source's credentials. What is copied has a checksum only if Azure knew one, so Stored.CRC32C is empty;
// an object that comes with a CRC32C is therefore left to the caller, who can hold the bytes against it.
func (l *Library) CopyFrom(
	ctx context.Context, key string, src bucket.Source, obj bucket.Object, progress *bucket.Copying,
) (bucket.Stored, error) {
	if err := bucket.CheckKey(key); err != nil {
		return bucket.Stored{}, fmt.Errorf("copy: %w", err)
	}
	from, ok := bucket.As[*Source](src)
	if !ok {
		return bucket.Stored{}, fmt.Errorf("copy %q: source is not in Azure: %w", obj.Path, errors.ErrUnsupported)
	}
	if obj.CRC32C != "" {
		return bucket.Stored{}, fmt.Errorf("copy %q: Azure does not hold it against a CRC32C: %w", obj.Path, errors.ErrUnsupported)
	}
	err := l.copy(ctx, key, from.client, obj, progress.Report())
	if errors.Is(err, bucket.ErrPermission) {
		// The library's storage is not let in there. The caller may still be, and can carry the bytes over.
		err = fmt.Errorf("%w: %v", errors.ErrUnsupported, err) //nolint:errorlint // no longer one of permission
	}
	if err != nil {
		return bucket.Stored{}, fmt.Errorf("copy %q to %q: %w", obj.Path, key, err)
	}
	return bucket.Stored{Key: key, URI: l.URI(key), Size: obj.Size}, nil
}

func (l *Library) copy(ctx context.Context, key string, from *client, obj bucket.Object, moved func(int64)) error {
	there, err := from.stat(ctx, obj.Path)
	switch {
	case err != nil:
		return err
	case obj.Version != "" && there.Version != obj.Version:
		return fmt.Errorf("version %s: %w", obj.Version, bucket.ErrChanged)
	case there.Size != obj.Size:
		return fmt.Errorf("%d bytes instead of %d: %w", there.Size, obj.Size, bucket.ErrChecksum)
	}
	obj.Version = there.Version
	origin, bearer, err := from.origin(ctx, obj.Path)
	if err != nil {
		return err
	}
	pinned := &blob.SourceModifiedAccessConditions{SourceIfMatch: condition(obj.Version)}
	if there.Size <= copyWhole {
		_, err := l.client.blobs.NewBlobClient(l.prefix+key).CopyFromURL(ctx, origin, &blob.CopyFromURLOptions{
			CopySourceAuthorization: bearer, SourceModifiedAccessConditions: pinned, Metadata: map[string]*string{copiedName: to.Ptr("1")},
		})
		if err == nil {
			moved(there.Size)
		}
		return l.copied(ctx, key, from, obj, err)
	}
	target := l.client.blobs.NewBlockBlobClient(l.prefix + key)
	var ids blockIDs
	size := max(copyBlock, there.Size/maxBlocks+1)
	for at := int64(0); at < there.Size; at += size {
		id, err := ids.next()
		if err != nil {
			return err
		}
		part := blob.HTTPRange{Offset: at, Count: min(size, there.Size-at)}
		_, err = target.StageBlockFromURL(ctx, id, origin, &blockblob.StageBlockFromURLOptions{
			CopySourceAuthorization: bearer, SourceModifiedAccessConditions: pinned, Range: part,
		})
		if err != nil {
			return l.copied(ctx, key, from, obj, err)
		}
		moved(part.Count)
		if origin, bearer, err = from.origin(ctx, obj.Path); err != nil { // a token does not last as long as a large copy
			return err
		}
	}
	return l.commit(ctx, key, ids.list, &blockblob.CommitBlockListOptions{
		Metadata: map[string]*string{copiedName: to.Ptr("1")}, HTTPHeaders: headers(obj.ContentType),
	}, 0, "")
}

// copiedName marks a copy. Metadata of our own keep those of the source from coming along.
const copiedName = "millrace_copied"

// copied tells what went missing on the side of the source from what did on ours.
func (l *Library) copied(ctx context.Context, key string, from *client, obj bucket.Object, err error) error {
	if err == nil {
		return nil
	}
	err = wrap(ctx, "write", key, err)
	if class := bucket.ClassOf(err); class != bucket.ClassNotExist && class != bucket.ClassChanged {
		return err
	}
	there, serr := from.stat(ctx, obj.Path)
	switch {
	case serr != nil:
		return serr
	case there.Version != obj.Version:
		return fmt.Errorf("version %s: %w", obj.Version, bucket.ErrChanged)
	}
	return l.client.wrapWrite(ctx, "write", key, err)
}

// originLife is how long a signature for a copy lasts. Azure looks at it when the request begins.
const originLife = 15 * time.Minute

// origin returns the address of a blob for another storage to read it, and the token that it needs for that.
func (c *client) origin(ctx context.Context, path string) (url string, bearer *string, err error) {
	b := c.blobs.NewBlobClient(path)
	if c.login != nil {
		token, err := c.login.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://storage.azure.com/.default"}})
		if err != nil {
			return "", nil, translate(err)
		}
		return b.URL(), to.Ptr("Bearer " + token.Token), nil
	}
	if !c.key {
		return b.URL(), nil, nil // signed as it is
	}
	url, err = b.GetSASURL(sas.BlobPermissions{Read: true}, time.Now().Add(originLife), nil)
	return url, nil, err
}
