package connector

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"millrace/shared/bucket"
	"millrace/shared/bucket/azure"
	"millrace/shared/bucket/dir"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/s3"
	"millrace/shared/store"
)

// Writer writes into the storage of a connector, and nothing else: whoever holds one cannot read, list or delete there.
// The methods are those of bucket.Library.
type Writer interface {
	Put(ctx context.Context, key string, r io.Reader, want bucket.Want) (bucket.Stored, error)
	Sync(ctx context.Context, keys ...string) error
	Close() error
}

// Writer opens the storage of a connector for writing. Keys are those of the whole bucket or folder; what leads out of a
// folder, also by way of a symbolic link, is refused. It fails with ErrDisabled. The caller closes the Writer.
func (o *Opener) Writer(ctx context.Context, c store.Connector) (Writer, error) {
	if c.Status == store.ConnectorDisabled {
		return nil, fmt.Errorf("connector %s: %w", c.ID, ErrDisabled)
	}
	switch c.Provider {
	case "dir":
		path, err := o.CheckDir(c.Path)
		if err != nil {
			return nil, err
		}
		return dir.NewLibrary(dir.LibraryConfig{Path: path})
	case "gcs":
		cfg, err := o.gcsConfig(c)
		if err != nil {
			return nil, err
		}
		return gcs.NewLibrary(ctx, cfg)
	case "s3":
		cfg, err := o.s3Config(c)
		if err != nil {
			return nil, err
		}
		return s3.NewLibrary(ctx, cfg)
	case "azure":
		cfg, err := o.azureConfig(c)
		if err != nil {
			return nil, err
		}
		return azure.NewLibrary(cfg)
	}
	return nil, fmt.Errorf("connector %s: provider %q: %w", c.ID, c.Provider, errors.ErrUnsupported)
}

// TryWriting writes a small object below the connector's export path and deletes it again. It returns the key, and whether it
// was left there, as exports need no right to delete.
func (o *Opener) TryWriting(ctx context.Context, c store.Connector) (key string, left bool, err error) {
	key = ExportKey(c.ExportBasePath, "", "millrace-test-"+strings.ToLower(rand.Text())+".txt")
	w, err := o.Writer(ctx, c)
	if err != nil {
		return key, false, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	text := "Written by Millrace to see whether exports can be. It may be deleted.\n"
	if _, err := w.Put(ctx, key, strings.NewReader(text), bucket.Want{Size: int64(len(text)), ContentType: "text/plain"}); err != nil {
		return key, false, err
	}
	lib, ok := w.(bucket.Library)
	return key, !ok || lib.Delete(ctx, key) != nil, nil
}

// maxExportPath bounds a path of exports, in bytes, so that two of them and a file name still make a key.
const maxExportPath = 200

// CheckExportPath returns the cleaned form of a path below which exports are written, "" for none, or an error for people.
// It has no way out: no leading slash and no dots that lead upwards.
func CheckExportPath(p string) (string, error) {
	switch {
	case p == "":
		return "", nil
	case strings.HasPrefix(p, "/"):
		return "", errors.New("must not start with a slash")
	case len(p) > maxExportPath:
		return "", fmt.Errorf("must have at most %d bytes", maxExportPath)
	}
	p = strings.TrimSuffix(p, "/")
	if bucket.CheckKey(p) != nil {
		return "", errors.New("must be folder names separated by single slashes, of the letters A to Z, digits and - _ . ; no name may start with a dot")
	}
	return p, nil
}

// ExportKey is where the export called name lies below the two paths, each of which CheckExportPath let through.
func ExportKey(base, sub, name string) string { return path.Join(base, sub, name) }
