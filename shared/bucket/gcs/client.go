// Package gcs is the bucket driver for Google Cloud Storage, and the way to its notifications through Pub/Sub.
//
// A version is a generation, in decimal. Every read names the generation it wants, so the bytes of one reader are one
// version's whatever happens to the object meanwhile. In a bucket that keeps old versions, an overwritten generation
// can still be read.
//
// Objects with a Content-Encoding of gzip are read as they are stored: their size and checksum are those of the
// compressed bytes.
package gcs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"cloud.google.com/go/storage"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	gtransport "google.golang.org/api/transport/grpc"

	"millrace/shared/bucket"
)

// Config says which bucket, and how to get at it. Only Bucket is required.
type Config struct {
	Bucket string

	// Prefix is where a library keeps its objects: "media" and "media/" both mean gs://bucket/media/…. A source always
	// shows the whole bucket.
	Prefix string

	// Project is billed for what a requester-pays bucket costs, if RequesterPays is set; it is not needed otherwise.
	Project       string
	RequesterPays bool

	// Endpoint is the root of a server other than Google's: a private endpoint, or an emulator such as
	// http://127.0.0.1:4443. Without credentials it is spoken to anonymously.
	Endpoint string

	// CredentialsJSON is a service account key. Other kinds of credentials can name commands, files and addresses of
	// their own, so they are not taken from a connector. If it is empty, and so is Endpoint, the application default
	// credentials count, which the operator of this process provides; they are looked for at the first request.
	CredentialsJSON []byte

	// GRPC has the storage spoken to over gRPC instead of JSON, at the same endpoint. Tokens come over HTTP all the same.
	GRPC bool

	// Transport makes all requests, those for tokens included. For gRPC it has to be an *http.Transport, whose dialer and
	// certificates then count. Default: one of the driver's own.
	Transport http.RoundTripper
}

const googleEndpoint = "https://storage.googleapis.com"

// How often, and how soon, the client repeats a request by itself. What takes longer is for the caller, who can see the
// queue, and knows of RetryAfter.
const maxAttempts = 3

func backoff() gax.Backoff {
	return gax.Backoff{Initial: 100 * time.Millisecond, Max: time.Second, Multiplier: 3}
}

// client is one bucket with the credentials for it.
type client struct {
	name     string
	endpoint string
	project  string // billed; "" for the owner of the bucket
	http     *http.Client
	grpc     *pool // nil: JSON
	storage  *storage.Client
	bucket   *storage.BucketHandle
}

func newClient(ctx context.Context, cfg Config, scope string) (*client, error) {
	if cfg.Bucket == "" || strings.ContainsAny(cfg.Bucket, "/?#") {
		return nil, fmt.Errorf("bucket name %q: %w", cfg.Bucket, bucket.ErrName)
	}
	c := &client{name: cfg.Bucket}
	if cfg.RequesterPays {
		if cfg.Project == "" {
			return nil, errors.New("requester pays, and no project is named")
		}
		c.project = cfg.Project
	}
	var err error
	if c.endpoint, err = endpoint(cfg.Endpoint); err != nil {
		return nil, err
	}
	transport, err := newTransport(cfg, scope)
	if err != nil {
		return nil, err
	}
	c.http = &http.Client{
		Transport: transport,
		// The API does not redirect, and our token is nobody else's business.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	// The clients come with their credentials; the option keeps the library from looking for some by itself.
	if cfg.GRPC {
		if c.grpc, err = newPool(cfg, c.endpoint, transport); err == nil {
			c.storage, err = storage.NewGRPCClient(ctx, gtransport.WithConnPool(c.grpc), option.WithoutAuthentication(),
				storage.WithDisabledClientMetrics()) // which would go to the project's own account
		}
	} else {
		c.storage, err = storage.NewClient(ctx,
			option.WithHTTPClient(c.http), option.WithEndpoint(c.endpoint), option.WithoutAuthentication())
	}
	if err != nil {
		if c.grpc != nil {
			err = errors.Join(err, c.grpc.Close())
		}
		return nil, fmt.Errorf("storage client: %w", err)
	}
	// All our calls can be repeated, also those of which the library cannot know that.
	c.storage.SetRetry(storage.WithPolicy(storage.RetryAlways), storage.WithMaxAttempts(maxAttempts),
		storage.WithBackoff(backoff()), storage.WithErrorFunc(repeatable))
	c.bucket = c.storage.Bucket(cfg.Bucket)
	if c.project != "" {
		c.bucket = c.bucket.UserProject(c.project)
	}
	return c, nil
}

func endpoint(s string) (string, error) {
	if s == "" {
		s = googleEndpoint
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
		return "", errors.New("endpoint: want http://host:port or https://host, and no password in it")
	}
	const api = "/storage/v1"
	return u.Scheme + "://" + u.Host + strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), api) + api + "/", nil
}

func (c *client) close() error {
	err := c.storage.Close()
	c.http.CloseIdleConnections()
	return err
}
