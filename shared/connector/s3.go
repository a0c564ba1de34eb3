package connector

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"millrace/shared/bucket"
	"millrace/shared/bucket/s3"
	"millrace/shared/store"
)

// errAmbient: a connector without credentials would use what the machine may do.
var errAmbient = fmt.Errorf("it has no credentials, and whoever runs this server did not allow the machine's own for connectors "+
	"with --machine-credentials: %w", bucket.ErrCredentials)

// s3Config is how to get at the bucket of a connector.
func (o *Opener) s3Config(c store.Connector) (s3.Config, error) {
	cfg := s3.Config{Bucket: c.Bucket, Region: c.Region, Endpoint: c.EndpointURL, PathStyle: c.ForcePathStyle}
	key, err := o.Credentials(c)
	if err != nil {
		return cfg, err
	}
	switch {
	case key == nil && c.EndpointURL != "": // it would be shown tokens that it can use
		return cfg, fmt.Errorf("connector %s: an endpoint other than Amazon's needs credentials of its own: %w", c.ID, bucket.ErrCredentials)
	case key == nil && !o.cfg.MachineCredentials:
		return cfg, fmt.Errorf("connector %s: %w", c.ID, errAmbient)
	case key != nil:
		var pair store.S3Credentials
		if err := json.Unmarshal(key, &pair); err != nil || pair.AccessKeyID == "" || pair.SecretAccessKey == "" {
			return cfg, fmt.Errorf("credentials of connector %s: not a pair of keys: %w", c.ID, bucket.ErrCredentials)
		}
		cfg.AccessKeyID, cfg.SecretAccessKey = pair.AccessKeyID, pair.SecretAccessKey
	}
	if c.EndpointURL != "" {
		cfg.Transport = o.raw
	}
	return cfg, nil
}

// openS3Library opens s3://BUCKET/PREFIX?endpoint=URL&region=NAME&path-style=true with the machine's own credentials.
// What is not in the query counts as elsewhere: region and credentials are looked for where Amazon's tools do.
func openS3Library(ctx context.Context, lib LibraryConfig) (bucket.Library, error) {
	form := fmt.Errorf("library %q: want s3://BUCKET/PREFIX, and as a query endpoint=URL, region=NAME, path-style=true", lib.Spec)
	u, err := url.Parse(lib.Spec)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, form
	}
	transport := s3.NewTransport()
	if transport.TLSClientConfig, err = trusting(lib.CAFile); err != nil {
		return nil, err
	}
	cfg := s3.Config{Bucket: u.Host, Prefix: strings.TrimPrefix(u.Path, "/"), Endpoint: lib.Endpoint, Transport: transport}
	for name, values := range u.Query() {
		switch value := values[len(values)-1]; name {
		case "endpoint":
			cfg.Endpoint = cmp.Or(value, cfg.Endpoint)
		case "region":
			cfg.Region = value
		case "path-style":
			if cfg.PathStyle, err = strconv.ParseBool(value); err != nil {
				return nil, form
			}
		default:
			return nil, errors.Join(fmt.Errorf("library: %q is no option of it", name), form)
		}
	}
	return s3.NewLibrary(ctx, cfg)
}
