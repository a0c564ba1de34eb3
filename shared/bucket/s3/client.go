// Package s3 is the bucket driver for Amazon S3 and the many servers that speak its protocol, and the way to its
// notifications through SQS.
//
// A version is the version id in a bucket that keeps old versions, and else the ETag with the size. Every read names the
// version it wants, and the answer is held against it, because not every server minds what it was asked. The ETag is
// never taken for a checksum: of an object in several parts, or encrypted with a key of KMS, it is none.
//
// Whether a bucket keeps old versions is asked once in a while. Listing one that does costs a page for every thousand
// versions, old ones included: a plain listing does not tell version ids.
package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"millrace/shared/bucket"
)

// Config says which bucket, and how to get at it. Only Bucket is required, and the region where Amazon's own servers are
// asked.
type Config struct {
	Bucket string

	// Prefix is where a library keeps its objects: "media" and "media/" both mean s3://bucket/media/…. A source always
	// shows the whole bucket.
	Prefix string

	// Region is the bucket's. Default: with an Endpoint us-east-1, which servers that know no regions take; else what the
	// environment of this process says (AWS_REGION).
	Region string

	// Endpoint is the root of a server other than Amazon's: https://minio.example.org:9000.
	Endpoint string

	// PathStyle puts the bucket in the path and not in the host name. An Endpoint that is an address or localhost implies
	// it.
	PathStyle bool

	// AccessKeyID and SecretAccessKey are the credentials. If they are empty the default chain counts, which the operator
	// of this process provides: environment, files, the role of the machine. It is looked at with the first request.
	AccessKeyID, SecretAccessKey string

	// Transport makes all requests to the storage. Default: one of the driver's own.
	Transport http.RoundTripper
}

// How often, and how soon, the client repeats a request by itself. What takes longer is for the caller, who can see the
// queue, and knows of RetryAfter.
const (
	maxAttempts = 3
	maxPause    = time.Second
)

// client is one bucket with the credentials for it.
type client struct {
	name     string
	region   string
	endpoint string // "" for Amazon's own
	http     *http.Client
	api      *s3.Client

	mu        sync.Mutex
	versioned bool
	asked     time.Time // when versioned was true to the bucket; zero: never
}

// defaultTransport is shared: connections to one server serve any of its buckets.
var defaultTransport = sync.OnceValue(func() http.RoundTripper { return NewTransport() })

// NewTransport returns a transport as the driver likes it, to be changed and put into Config.
func NewTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 64 // as many transfers as an importer runs at a time, and then some
	t.ResponseHeaderTimeout = 2 * time.Minute
	t.DisableCompression = true // bytes are wanted as they are stored
	return t
}

func newClient(ctx context.Context, cfg Config) (*client, error) {
	if cfg.Bucket == "" || strings.ContainsAny(cfg.Bucket, "/?# ") {
		return nil, fmt.Errorf("bucket name %q: %w", cfg.Bucket, bucket.ErrName)
	}
	c := &client{name: cfg.Bucket, region: cfg.Region}
	if cfg.Endpoint != "" {
		u, err := url.Parse(cfg.Endpoint)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" {
			return nil, errors.New("endpoint: want http://host:port or https://host, and no password in it")
		}
		c.endpoint = strings.TrimSuffix(u.String(), "/")
		cfg.PathStyle = cfg.PathStyle || isAddress(u.Hostname())
		c.region = cmp.Or(c.region, "us-east-1")
	}
	provider, region, err := credentialsOf(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if c.region = cmp.Or(c.region, region); c.region == "" {
		return nil, errors.New("region: required for Amazon S3, such as eu-central-1")
	}
	transport := cfg.Transport
	if transport == nil {
		transport = defaultTransport()
	}
	c.http = &http.Client{
		Transport: transport,
		// A redirect means the wrong region, which the owner of the connector wants to know; and what we signed is nobody
		// else's business.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.api = s3.New(s3.Options{
		Region:       c.region,
		Credentials:  provider,
		HTTPClient:   c.http,
		UsePathStyle: cfg.PathStyle,
		Retryer:      newRetryer(),
		AppID:        "millrace",
		// We compute and check sums ourselves, where they can be put into words; many servers know no trailing ones.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
	}, func(o *s3.Options) {
		if c.endpoint != "" {
			o.BaseEndpoint = aws.String(c.endpoint)
		}
	})
	return c, nil
}

// newRetryer repeats what an overloaded or restarting server does to some requests, not what it says to all.
func newRetryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts, o.MaxBackoff, o.RateLimiter = maxAttempts, maxPause, ratelimit.None
		o.Retryables = []retry.IsErrorRetryable{
			retry.RetryableError{}, // a clock that is wrong: the client sets it right for the next attempt
			retry.IsErrorRetryableFunc(func(err error) aws.Ternary { return aws.BoolTernary(repeatable(err)) }),
		}
	})
}

// once has a call made a single time: patience is somebody else's.
func once(o *s3.Options) { o.RetryMaxAttempts = 1 }

// withChecksums asks for the checksums that the server has. As a header and not as a parameter, because the client would
// check them itself then, in words of its own.
var withChecksums = s3.WithAPIOptions(smithyhttp.AddHeaderValue("X-Amz-Checksum-Mode", "ENABLED"))

func (c *client) close() error {
	c.http.CloseIdleConnections()
	return nil
}

// How long is believed what a bucket does with old versions: for all, and where an object has an id that it should not have.
const (
	freshVersioning = time.Minute
	freshDoubt      = time.Second
)

// keepsVersions reports whether the bucket keeps old versions under version ids, as known for no longer than fresh. Taking
// one kind for the other would make every object look new, and listings do not tell ids; so all go by what the bucket says
// of itself, also where a server gives ids to everything.
func (c *client) keepsVersions(ctx context.Context, fresh time.Duration) (bool, error) {
	c.mu.Lock()
	versioned, asked := c.versioned, c.asked
	c.mu.Unlock()
	if !asked.IsZero() && time.Since(asked) < fresh {
		return versioned, nil
	}
	out, err := c.api.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &c.name})
	switch err = wrap(ctx, "look at the versioning of", "s3:GetBucketVersioning", c.name, err); {
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, errRefused): // the server knows nothing of that
		versioned = false
	case err != nil:
		return false, err
	default:
		versioned = out.Status != "" // also when it was suspended: older objects have their ids still
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.versioned, c.asked = versioned, time.Now()
	return versioned, nil
}
