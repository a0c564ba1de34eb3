package connector

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/egress"
)

// ErrEndpoint says that the server of a connector lies where only this machine or its network can reach. It is known when a
// connection is opened, whatever a name resolved to before.
var ErrEndpoint = fmt.Errorf(
	"the endpoint is not at a public address, and whoever runs this server did not allow it with --allow-endpoint: %w", bucket.ErrPermission)

// newTransport returns the transport of requests whose target somebody wrote into a connector: an endpoint, or the place
// that gives tokens for a key. The operator's proxy is not for them.
func newTransport(guard *egress.Guard, trusted *tls.Config) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil
	t.MaxIdleConnsPerHost = 64 // as many transfers as an importer runs at a time, and then some
	t.ResponseHeaderTimeout = 2 * time.Minute
	t.TLSClientConfig = trusted
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := guard.DialContext(ctx, network, addr)
		if errors.Is(err, egress.ErrRefused) {
			return nil, fmt.Errorf("%w (%w)", ErrEndpoint, err)
		}
		return conn, err
	}
	return t
}

// trusting returns what connections are secured with when the certificates of a file are trusted too.
func trusting(file string) (*tls.Config, error) {
	roots, err := readRoots(file)
	if err != nil {
		return nil, fmt.Errorf("--storage-ca: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, nil
}

// readRoots returns the system's certificates and those in a file, nil for the system's alone.
func readRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	return pool, nil
}
