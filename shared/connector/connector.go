// Package connector opens the storage behind connectors, and the library.
package connector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bucket/azure"
	"millrace/shared/bucket/dir"
	"millrace/shared/bucket/gcs"
	"millrace/shared/secret"
	"millrace/shared/store"
)

// Errors of opening. They wrap what a storage would say, so that a caller can tell what may pass from what will not.
var (
	// ErrNotAllowed: the folder lies outside of what the operator allows.
	ErrNotAllowed = fmt.Errorf("it is not inside a folder given with --allow-dir: %w", bucket.ErrPermission)
	// ErrDisabled: the connector is switched off.
	ErrDisabled = fmt.Errorf("connector is disabled: %w", bucket.ErrPermission)
)

// Config of an Opener.
type Config struct {
	// AllowDirs are the roots that folder connectors may name. None: no folder connectors.
	AllowDirs []string
	// Keeper opens sealed credentials.
	Keeper *secret.Keeper
}

// Opener opens the buckets of connectors and keeps them open.
type Opener struct {
	cfg Config
	reg *store.Register[store.Connector]

	mu   sync.Mutex
	open map[string]*opened
}

type opened struct {
	source  bucket.Source
	record  store.Connector
	checked time.Time
}

// New returns an opener over the connectors register.
func New(cfg Config, reg *store.Register[store.Connector]) (*Opener, error) {
	for i, d := range cfg.AllowDirs {
		abs, err := filepath.Abs(d)
		if err == nil {
			abs, err = filepath.EvalSymlinks(abs)
		}
		if err != nil {
			return nil, fmt.Errorf("--allow-dir %q: %w", d, err)
		}
		cfg.AllowDirs[i] = abs
	}
	return &Opener{cfg: cfg, reg: reg, open: make(map[string]*opened)}, nil
}

// fresh is how long a connector's record is believed.
const fresh = 2 * time.Second

// Source returns the open bucket of a connector, shared by all callers, and its record. It fails with store.ErrNotFound
// or with what opening said.
func (o *Opener) Source(ctx context.Context, id string) (bucket.Source, store.Connector, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	have := o.open[id]
	if have != nil && time.Since(have.checked) < fresh {
		return have.source, have.record, nil
	}
	record, _, err := o.reg.Get(ctx, id)
	if err != nil {
		return nil, record, err
	}
	if record.Status == "disabled" {
		return nil, record, fmt.Errorf("connector %s: %w", id, ErrDisabled)
	}
	if have != nil && sameAccess(have.record, record) {
		have.record, have.checked = record, time.Now()
		return have.source, record, nil
	}
	source, err := o.Open(ctx, record)
	if err != nil {
		return nil, record, err
	}
	if have != nil {
		_ = have.source.Close() // readers that are still open stay usable
	}
	o.open[id] = &opened{source: source, record: record, checked: time.Now()}
	return source, record, nil
}

// sameAccess reports whether two records of one connector lead to the same bucket with the same rights.
func sameAccess(a, b store.Connector) bool {
	return a.Path == b.Path && a.Bucket == b.Bucket && a.StorageAccount == b.StorageAccount && a.Container == b.Container &&
		a.EndpointURL == b.EndpointURL && a.Credentials == b.Credentials
}

// Open opens the bucket of a record that need not be stored. The caller closes it.
func (o *Opener) Open(ctx context.Context, c store.Connector) (bucket.Source, error) {
	switch c.Provider {
	case "dir":
		path, err := o.CheckDir(c.Path)
		if err != nil {
			return nil, err
		}
		return dir.NewSource(path)
	case "gcs":
		key, err := o.Credentials(c)
		if err != nil {
			return nil, err
		}
		return gcs.NewSource(ctx, gcs.Config{Bucket: c.Bucket, Project: c.Project, Endpoint: c.EndpointURL, CredentialsJSON: key})
	case "azure":
		cfg, err := o.azure(c)
		if err != nil {
			return nil, err
		}
		return azure.NewSource(cfg)
	}
	return nil, fmt.Errorf("connector %s: provider %q: %w", c.ID, c.Provider, errors.ErrUnsupported)
}

// azure returns what an azure connector is opened with. It has credentials of its own: those of this machine are for the
// operator to use.
func (o *Opener) azure(c store.Connector) (azure.Config, error) {
	cfg := azure.Config{Account: c.StorageAccount, Container: c.Container, Endpoint: c.EndpointURL}
	sealed, err := o.Credentials(c)
	if err != nil {
		return cfg, err
	}
	var opened store.AzureCredentials
	if json.Unmarshal(sealed, &opened) != nil || opened == (store.AzureCredentials{}) {
		return cfg, fmt.Errorf("connector %s has no credentials: %w", c.ID, bucket.ErrCredentials)
	}
	cfg.Credentials = azure.Credentials{
		TenantID: opened.TenantID, ClientID: opened.ClientID, ClientSecret: opened.ClientSecret,
		SAS: opened.SAS, AccountKey: opened.AccountKey,
	}
	return cfg, nil
}

// Credentials opens the sealed credentials of a connector; nil when it has none.
func (o *Opener) Credentials(c store.Connector) ([]byte, error) {
	if c.Credentials == "" {
		return nil, nil
	}
	key, err := o.cfg.Keeper.Open(c.Credentials, c.ID+"/credentials")
	if err != nil {
		return nil, fmt.Errorf("credentials of connector %s: %w", c.ID, err)
	}
	return key, nil
}

// CheckDir returns the real path of a folder, or why no connector may name it: it does not exist, or lies outside the
// allowed roots, also by way of a symbolic link.
func (o *Opener) CheckDir(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("folder %q: must be an absolute path", path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		if !o.allowed(filepath.Clean(path)) {
			return "", fmt.Errorf("folder %q: %w", path, ErrNotAllowed) // says nothing of what exists elsewhere
		}
		return "", fmt.Errorf("folder %q: %w: %w", path, bucket.ErrNoBucket, err)
	}
	if !o.allowed(real) {
		return "", fmt.Errorf("folder %q: %w", path, ErrNotAllowed)
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", fmt.Errorf("folder %q: %w", path, err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%q is not a folder: %w", path, bucket.ErrNoBucket)
	}
	return real, nil
}

func (o *Opener) allowed(path string) bool {
	for _, root := range o.cfg.AllowDirs {
		rel, err := filepath.Rel(root, path)
		if err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

// OpenLibrary opens the library that spec names: a folder, gs://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX, or none, for
// which it returns nil. In a cloud the machine's own credentials are used, for Azure the key of the account if
// AZURE_STORAGE_KEY has one. Endpoint, when not empty, is another server's than the provider's, such as an emulator's.
func OpenLibrary(ctx context.Context, spec, endpoint string) (bucket.Library, error) {
	switch {
	case spec == "":
		return nil, errors.New("library: required: a folder, gs://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX or none")
	case spec == "none":
		return nil, nil
	case strings.HasPrefix(spec, "gs://"):
		u, err := url.Parse(spec)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("library %q: want gs://BUCKET/PREFIX", spec)
		}
		return gcs.NewLibrary(ctx, gcs.Config{Bucket: u.Host, Prefix: strings.TrimPrefix(u.Path, "/"), Endpoint: endpoint})
	case strings.HasPrefix(spec, "az://"):
		u, err := url.Parse(spec)
		if err != nil {
			return nil, fmt.Errorf("library %q: want az://ACCOUNT/CONTAINER/PREFIX", spec)
		}
		name, prefix, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		if u.Host == "" || name == "" {
			return nil, fmt.Errorf("library %q: want az://ACCOUNT/CONTAINER/PREFIX", spec)
		}
		return azure.NewLibrary(azure.Config{
			Account: u.Host, Container: name, Prefix: prefix, Endpoint: endpoint,
			Credentials: azure.Credentials{AccountKey: os.Getenv("AZURE_STORAGE_KEY")},
		})
	case strings.Contains(spec, "://"):
		return nil, fmt.Errorf("library %q: want a folder, gs://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX or none", spec)
	}
	path, err := filepath.Abs(spec)
	if err != nil {
		return nil, fmt.Errorf("library %q: %w", spec, err)
	}
	return dir.NewLibrary(dir.LibraryConfig{Path: path})
}
