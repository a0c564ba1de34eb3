// Package connector opens the storage behind connectors, and the library.
package connector

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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
	"millrace/shared/bucket/s3"
	"millrace/shared/egress"
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
	// AllowEndpoints are networks, addresses and hosts that the endpoints of connectors may be at although they are not
	// public; see egress.New.
	AllowEndpoints []string
	// CAFile holds certificates in PEM form to trust the endpoints of connectors by, beside the system's. Empty: none.
	CAFile string
	// MachineCredentials lets connectors that bring no credentials use those of this machine: the role it runs under.
	MachineCredentials bool
	// GoogleGRPC has Google Cloud Storage spoken to over gRPC. Connectors with an endpoint of their own keep to JSON, which
	// servers other than Google's know, and whose client does not count on the server to be right.
	GoogleGRPC bool
	// PubSubEndpoint is the host:port of a Pub/Sub emulator. Default: Google's own service.
	PubSubEndpoint string
}

// Opener opens the buckets of connectors and keeps them open.
type Opener struct {
	cfg Config
	reg *store.Register[store.Connector]

	transport *http.Transport // to where connectors say
	raw       *http.Transport // the same, and bytes come as they are stored

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
	guard, err := egress.New(cfg.AllowEndpoints)
	if err != nil {
		return nil, err
	}
	trusted, err := trusting(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	o := &Opener{cfg: cfg, reg: reg, open: make(map[string]*opened), transport: newTransport(guard, trusted)}
	o.raw = o.transport.Clone()
	o.raw.DisableCompression = true
	return o, nil
}

// Transport makes requests to where connectors say.
func (o *Opener) Transport() http.RoundTripper { return o.transport }

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
	if record.Status == store.ConnectorDisabled {
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

// maxReason bounds what is kept of a provider's own words, in bytes.
const maxReason = 400

// Report puts on a connector's record that its storage refuses us, with the reason, or, with nil, that it works. A test
// says the same; whoever works with the storage knows it sooner.
func (o *Opener) Report(ctx context.Context, id string, failure error) error {
	now := time.Now().UTC()
	_, _, err := o.reg.Modify(ctx, id, func(c *store.Connector) error {
		status, result, reason := store.ConnectorActive, "success", ""
		if failure != nil {
			status, result, reason = store.ConnectorFailed, "failed", failure.Error()
			if len(reason) > maxReason {
				reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
			}
		}
		if c.ID == "" || c.Status == store.ConnectorDisabled || c.Status == status && failure == nil {
			return store.ErrUnchanged
		}
		c.Status, c.LastTestResult, c.LastTestError, c.LastTestedAt, c.UpdatedAt = status, result, reason, now, now
		return nil
	})
	if err != nil {
		return fmt.Errorf("report on connector %s: %w", id, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if have := o.open[id]; have != nil {
		have.checked = time.Time{} // its record is another now
	}
	return nil
}

// sameAccess reports whether two records of one connector lead to the same bucket with the same rights.
func sameAccess(a, b store.Connector) bool {
	return a.Path == b.Path && a.Poll == b.Poll && a.Mount == b.Mount && a.Bucket == b.Bucket && a.Region == b.Region &&
		a.UserProject == b.UserProject && a.StorageAccount == b.StorageAccount &&
		a.Container == b.Container && a.EndpointURL == b.EndpointURL && a.ForcePathStyle == b.ForcePathStyle && a.Credentials == b.Credentials
}

// Open opens the bucket of a record that need not be stored. The caller closes it.
func (o *Opener) Open(ctx context.Context, c store.Connector) (bucket.Source, error) {
	switch c.Provider {
	case "dir":
		path, err := o.CheckDir(c.Path)
		if err != nil {
			return nil, err
		}
		return dir.Open(path, dir.Options{Poll: c.Poll, Mount: c.Mount})
	case "gcs":
		cfg, err := o.gcsConfig(c)
		if err != nil {
			return nil, err
		}
		return gcs.NewSource(ctx, cfg)
	case "s3":
		cfg, err := o.s3Config(c)
		if err != nil {
			return nil, err
		}
		return s3.NewSource(ctx, cfg)
	case "azure":
		cfg, err := o.azureConfig(c)
		if err != nil {
			return nil, err
		}
		return azure.NewSource(cfg)
	}
	return nil, fmt.Errorf("connector %s: provider %q: %w", c.ID, c.Provider, errors.ErrUnsupported)
}

// gcsConfig is how to get at the bucket of a connector. Its key names the place that gives tokens, so that is guarded as
// an endpoint is.
func (o *Opener) gcsConfig(c store.Connector) (gcs.Config, error) {
	cfg := gcs.Config{Bucket: c.Bucket, Project: c.UserProject, RequesterPays: c.UserProject != "", Endpoint: c.EndpointURL}
	cfg.GRPC = o.cfg.GoogleGRPC && c.EndpointURL == ""
	key, err := o.Credentials(c)
	if err != nil {
		return cfg, err
	}
	if key == nil && c.EndpointURL == "" && !o.cfg.MachineCredentials {
		return cfg, fmt.Errorf("connector %s: %w", c.ID, errAmbient)
	}
	cfg.CredentialsJSON = key
	if key != nil || c.EndpointURL != "" {
		cfg.Transport = o.transport
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

// LibraryConfig is where a library is.
type LibraryConfig struct {
	Spec     string // a folder, gs://BUCKET/PREFIX, s3://BUCKET/PREFIX?endpoint=…&region=…, az://ACCOUNT/CONTAINER/PREFIX, or none
	Endpoint string // of an emulator; "": the provider's own
	CAFile   string // as in Config

	GoogleGRPC bool // of gs://, as in Config
}

// OpenLibrary opens a library; nil for none. For one in a cloud the machine's own credentials are used, at Azure the key of
// the account if AZURE_STORAGE_KEY has one. Its endpoint is the operator's choice, so it may be anywhere.
func OpenLibrary(ctx context.Context, cfg LibraryConfig) (bucket.Library, error) {
	const want = "a folder, gs://BUCKET/PREFIX, s3://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX or none"
	spec := cfg.Spec
	switch {
	case spec == "":
		return nil, errors.New("library: required: " + want)
	case spec == "none":
		return nil, nil
	case strings.HasPrefix(spec, "gs://"):
		u, err := url.Parse(spec)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("library %q: want gs://BUCKET/PREFIX", spec)
		}
		return gcs.NewLibrary(ctx, gcs.Config{
			Bucket: u.Host, Prefix: strings.TrimPrefix(u.Path, "/"), Endpoint: cfg.Endpoint, GRPC: cfg.GoogleGRPC,
		})
	case strings.HasPrefix(spec, "s3://"):
		return openS3Library(ctx, cfg)
	case strings.HasPrefix(spec, "az://"):
		return openAzureLibrary(cfg)
	case strings.Contains(spec, "://"):
		return nil, fmt.Errorf("library %q: want %s", spec, want)
	}
	path, err := filepath.Abs(spec)
	if err != nil {
		return nil, fmt.Errorf("library %q: %w", spec, err)
	}
	return dir.NewLibrary(dir.LibraryConfig{Path: path})
}
