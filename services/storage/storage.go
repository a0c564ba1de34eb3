// Package storage is the flags of services that open buckets, and what they open. It is apart from run so that a service
// that touches no object does not link a cloud's client.
package storage

import (
	"context"
	"fmt"
	"path/filepath"

	"millrace/services/run"
	"millrace/shared/bucket"
	"millrace/shared/connector"
	"millrace/shared/secret"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Sources are the flags of services that open buckets.
type Sources struct {
	run.Endpoints
	AllowDir       []string `help:"Folder that connectors may name, with all below it. Repeatable; without it there are no folder connectors." placeholder:"DIR"`
	SecretsKey     string   `help:"File with the key that seals credentials. Made at the first start (default: secrets.key in the data folder)." placeholder:"FILE"`
	SecretsKeyData string   `help:"The content of such a file, where the environment keeps secrets better than files do; see millrace secrets key." placeholder:"KEY" secret:"yes"`
	StorageCA      string   `name:"storage-ca" help:"File with certificates (PEM) to trust storage endpoints by, beside the system's." type:"path" placeholder:"FILE"`

	MachineCredentials bool   `help:"Let connectors that bring no credentials use those of this machine: the AWS role or the Google service account it runs under. Whoever may make connectors can then read what this machine can."`
	GoogleGRPC         bool   `name:"google-grpc" help:"Speak gRPC with Google Cloud Storage instead of JSON. Connectors with an endpoint of their own keep to JSON."`
	PubSubEndpoint     string `help:"Address of a Pub/Sub emulator." hidden:""`
}

// Opener opens the storage of connectors for a service.
func (s Sources) Opener(ctx context.Context, env service.Env) (*connector.Opener, *secret.Keeper, error) {
	keeper, err := secret.From(s.SecretsKey, s.SecretsKeyData)
	if err != nil {
		return nil, nil, err
	}
	reg, err := store.Open[store.Connector](ctx, env.Bus, topology.Connectors)
	if err != nil {
		return nil, nil, err
	}
	opener, err := connector.New(connector.Config{
		AllowDirs: s.AllowDir, Keeper: keeper, AllowEndpoints: s.AllowEndpoint, CAFile: s.StorageCA, MachineCredentials: s.MachineCredentials,
		GoogleGRPC: s.GoogleGRPC, PubSubEndpoint: s.PubSubEndpoint,
	}, reg)
	return opener, keeper, err
}

// Library are the flags of the library.
type Library struct {
	Library         string `help:"Where imported media are kept: a folder, gs://BUCKET/PREFIX, s3://BUCKET/PREFIX (with ?endpoint=URL&region=NAME&path-style=true where needed), az://ACCOUNT/CONTAINER/PREFIX, or none to register them by reference (default: library in the data folder)." placeholder:"DIR|gs://…|s3://…|az://…|none"`
	LibraryEndpoint string `help:"Address of a storage emulator for a library in a cloud." hidden:""`
}

// Open opens the library; nil for none.
func (l Library) Open(ctx context.Context, s Sources) (bucket.Library, error) {
	library, err := connector.OpenLibrary(ctx, connector.LibraryConfig{
		Spec: l.Library, Endpoint: l.LibraryEndpoint, CAFile: s.StorageCA, GoogleGRPC: s.GoogleGRPC,
	})
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
