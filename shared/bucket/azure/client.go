// Package azure is the bucket driver for Azure Blob Storage.
//
// A version is an ETag, without its quotes. Every read names the one it wants, so the bytes of one reader are one
// version's whatever happens to the blob meanwhile. Azure gives a blob a new ETag when its properties or metadata
// change as well: that is a new version here, of the same bytes.
//
// Azure knows no CRC32C. Reads are held against the MD5 of the blob, which Azure has of what was uploaded in one
// request and of what uploaders computed one for; writes carry a CRC64 per request, which Azure checks.
package azure

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"millrace/shared/bucket"
)

// Config says which container, and how to get at it. Only Account and Container are required.
type Config struct {
	Account   string // the storage account's name
	Container string

	// Prefix is where a library keeps its blobs: "media" and "media/" both mean az://account/container/media/…. A source
	// always shows the whole container.
	Prefix string

	// Endpoint is the root of the account at a place other than https://ACCOUNT.blob.core.windows.net: a sovereign cloud,
	// a private endpoint, or an emulator such as http://127.0.0.1:10000/devstoreaccount1.
	Endpoint string

	Credentials Credentials

	// Transport makes all requests, those for tokens included. Default: one of the driver's own.
	Transport http.RoundTripper
}

// How often, and how soon, the client repeats a request by itself. What takes longer is for the caller, who can see the
// queue, and knows of RetryAfter.
const (
	maxAttempts   = 3
	retryDelay    = 100 * time.Millisecond
	maxRetryDelay = time.Second
)

// defaultTransport is shared: connections serve any container.
var defaultTransport = sync.OnceValue(func() http.RoundTripper { return NewTransport() })

// NewTransport returns a transport as the driver uses by itself, for whoever changes how it connects.
func NewTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 64 // as many transfers as an importer runs at a time, and then some
	t.ResponseHeaderTimeout = 2 * time.Minute
	return t
}

// client is one container with the credentials for it.
type client struct {
	account  string
	name     string
	endpoint string // of the account, without a slash at its end
	http     *http.Client
	login    *login // nil: a key or a shared access signature
	key      bool   // the key of the account
	blobs    *container.Client
	sums     bool // the blobs are ours, and their metadata say their CRC32C

	// folders says that the account has a hierarchical namespace, or lists in some other order that is not that of bytes.
	folders atomic.Bool
}

// plainName is what accounts and containers are called, so that neither changes which server is asked, or for what.
var plainName = regexp.MustCompile(`^[$]?[A-Za-z0-9-]{1,63}$`)

func newClient(cfg Config) (*client, error) {
	for _, name := range []string{cfg.Account, cfg.Container} {
		if !plainName.MatchString(name) {
			return nil, fmt.Errorf("name %q of a storage account or container: %w", name, bucket.ErrName)
		}
	}
	c := &client{account: cfg.Account, name: cfg.Container}
	var err error
	if c.endpoint, err = endpoint(cfg); err != nil {
		return nil, err
	}
	base := cfg.Transport
	if base == nil {
		base = defaultTransport()
	}
	c.http = &http.Client{
		Transport: base,
		// The API does not redirect, and our credentials are nobody else's business.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	opts := azcore.ClientOptions{
		Transport: c.http,
		Telemetry: policy.TelemetryOptions{ApplicationID: "millrace"},
		Retry: policy.RetryOptions{
			MaxRetries: maxAttempts - 1, RetryDelay: retryDelay, MaxRetryDelay: maxRetryDelay, ShouldRetry: repeatable,
		},
		PerCallPolicies: []policy.Policy{asStored{}},
	}
	if err := c.connect(cfg.Credentials, opts); err != nil {
		return nil, err
	}
	return c, nil
}

func endpoint(cfg Config) (string, error) {
	s := cfg.Endpoint
	if s == "" {
		s = "https://" + cfg.Account + ".blob.core.windows.net"
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return "", errors.New("endpoint: want https://host or http://host:port/account, and no password or signature in it")
	}
	return u.Scheme + "://" + u.Host + strings.TrimSuffix(u.EscapedPath(), "/"), nil
}

// asStored has blobs come as they are: a transport would unpack those whose encoding is gzip.
type asStored struct{}

func (asStored) Do(req *policy.Request) (*http.Response, error) {
	req.Raw().Header.Set("Accept-Encoding", "identity")
	return req.Next()
}

func (c *client) close() error {
	c.http.CloseIdleConnections()
	return nil
}
