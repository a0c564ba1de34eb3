package gcs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"

	"millrace/shared/bucket"
)

const (
	scopeRead  = "https://www.googleapis.com/auth/devstorage.read_only"
	scopeWrite = "https://www.googleapis.com/auth/devstorage.read_write"
)

// defaultTransport is shared: connections to Google serve any bucket.
var defaultTransport = sync.OnceValue(func() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 64 // as many transfers as an importer runs at a time, and then some
	t.ResponseHeaderTimeout = 2 * time.Minute
	return t
})

// newTransport adds the credentials of cfg to its transport.
func newTransport(cfg Config, scope string) (http.RoundTripper, error) {
	base := cfg.Transport
	if base == nil {
		base = defaultTransport()
	}
	switch {
	case len(cfg.CredentialsJSON) > 0:
		creds, err := serviceAccount(cfg.CredentialsJSON, scope, base)
		if err != nil {
			return nil, err
		}
		return &authorized{base: base, creds: creds}, nil
	case cfg.Endpoint != "":
		return base, nil
	}
	return &authorized{base: base, detect: func() (*auth.Credentials, error) { return detect(scope, base) }}, nil
}

// serviceAccount reads a key. It asks nobody.
func serviceAccount(key []byte, scope string, base http.RoundTripper) (*auth.Credentials, error) {
	creds, err := credentials.NewCredentialsFromJSON(credentials.ServiceAccount, key, &credentials.DetectOptions{
		Scopes: []string{scope}, Client: tokenClient(base),
	})
	if err != nil {
		// The library's words could quote the key.
		return nil, fmt.Errorf("read credentials: not a service account key: %w", bucket.ErrCredentials)
	}
	return creds, nil
}

// detect looks for the application default credentials, for which it may have to ask the network.
func detect(scope string, base http.RoundTripper) (*auth.Credentials, error) {
	creds, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{scope}, Client: tokenClient(base)})
	if err != nil {
		return nil, fmt.Errorf("find application default credentials: %w: %w", bucket.ErrCredentials, err)
	}
	return creds, nil
}

func tokenClient(base http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     base,
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// authorized adds a token to each request.
type authorized struct {
	base   http.RoundTripper
	detect func() (*auth.Credentials, error)

	mu    sync.Mutex
	creds *auth.Credentials
}

func (t *authorized) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := t.token(req.Context())
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+token)
	return t.base.RoundTrip(req)
}

func (t *authorized) token(ctx context.Context) (string, error) {
	creds, err := t.credentials()
	if err != nil {
		return "", err
	}
	token, err := creds.Token(ctx)
	if err != nil {
		return "", tokenError(err)
	}
	return token.Value, nil
}

// credentials looks again each time as long as there are none: they may be put in place while we run.
func (t *authorized) credentials() (*auth.Credentials, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.creds == nil {
		creds, err := t.detect()
		if err != nil {
			return nil, err
		}
		t.creds = creds
	}
	return t.creds, nil
}

// CloseIdleConnections lets http.Client reach the transport below.
func (t *authorized) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// maxSkew is how far off a clock may be before Google refuses what was signed by it: some minutes, less a margin.
const maxSkew = 4 * time.Minute

// tokenError says in the bucket's words why there is no token.
func tokenError(err error) error {
	var refused *auth.Error
	if !errors.As(err, &refused) || refused.Response == nil {
		return fmt.Errorf("get token: %w", translate(err))
	}
	status := refused.Response.StatusCode
	says := bucket.ErrCredentials
	if status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500 {
		says = bucket.ErrUnavailable
	}
	if off := bucket.ClockOff(refused.Response.Header, maxSkew); off != "" && errors.Is(says, bucket.ErrCredentials) {
		return fmt.Errorf("get token: %w: %s", says, off)
	}
	// The body stays out of it: the address the answer came from was written by whoever wrote the key.
	return fmt.Errorf("get token: %w: %d %s", says, status, http.StatusText(status))
}
