// Package storage is the flags of services that open buckets, and what they open. It is apart from run so that a service
// that touches no object does not link a cloud's client.
package storage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"millrace/shared/bucket"
	"millrace/shared/connector"
	"millrace/shared/secret"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Sources are the flags of services that open buckets.
type Sources struct {
	AllowDir   []string `help:"Folder that connectors may name, with all below it. Repeatable; without it there are no folder connectors." placeholder:"DIR"`
	SecretsKey string   `help:"File with the key that seals credentials. Made at the first start (default: secrets.key in the data folder)." placeholder:"FILE"`
}

// Opener opens the storage of connectors for a service.
func (s Sources) Opener(ctx context.Context, env service.Env) (*connector.Opener, *secret.Keeper, error) {
	if s.SecretsKey == "" {
		return nil, nil, errors.New("--secrets-key: required; all services of a deployment share one file")
	}
	keeper, err := secret.Load(s.SecretsKey, true)
	if err != nil {
		return nil, nil, err
	}
	reg, err := store.Open[store.Connector](ctx, env.Bus, topology.Connectors)
	if err != nil {
		return nil, nil, err
	}
	opener, err := connector.New(connector.Config{AllowDirs: s.AllowDir, Keeper: keeper}, reg)
	return opener, keeper, err
}

// Library are the flags of the library.
type Library struct {
	Library         string `help:"Where imported media are kept: a folder, gs://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX, or none to register them by reference (default: library in the data folder)." placeholder:"DIR|gs://…|az://…|none"`
	LibraryEndpoint string `help:"Address of a storage emulator for a gs:// or az:// library." hidden:""`
}

// Open opens the library; nil for none.
func (l Library) Open(ctx context.Context) (bucket.Library, error) {
	library, err := connector.OpenLibrary(ctx, l.Library, l.LibraryEndpoint)
	if err != nil {
		return nil, fmt.Errorf("--library: %w", err)
	}
	return library, nil
}

// In returns path, or name in folder dir when path is empty.
func In(dir, path, name string) string {
	if path != "" {
		return path
	}
	return filepath.Join(dir, name)
}
