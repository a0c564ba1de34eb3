package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"millrace/shared/bucket"
)

// credentialsOf returns the credentials of cfg, and the region that comes with them. It asks nobody yet.
func credentialsOf(ctx context.Context, cfg Config) (aws.CredentialsProvider, string, error) {
	if (cfg.AccessKeyID == "") != (cfg.SecretAccessKey == "") {
		return nil, "", fmt.Errorf("access key id and secret access key: give both or neither: %w", bucket.ErrCredentials)
	}
	if cfg.AccessKeyID != "" {
		return credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, ""), "", nil
	}
	ambient, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("find the machine's own credentials: %w: %w", bucket.ErrCredentials, err)
	}
	return aws.NewCredentialsCache(chain{ambient.Credentials}), ambient.Region, nil
}

// chain says in the bucket's words that there are no credentials. They are looked for again each time, as they may be put
// in place while we run.
type chain struct{ from aws.CredentialsProvider }

func (c chain) Retrieve(ctx context.Context) (aws.Credentials, error) {
	got, err := c.from.Retrieve(ctx)
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		why := bucket.ErrCredentials
		var answer *smithyhttp.ResponseError
		var fault smithy.APIError
		if errors.As(err, &answer) && (answer.HTTPStatusCode() == http.StatusTooManyRequests || answer.HTTPStatusCode() >= 500) ||
			errors.As(err, &fault) && fault.ErrorFault() == smithy.FaultServer {
			why = bucket.ErrUnavailable
		}
		err = fmt.Errorf("find the machine's own credentials: %w: %v", why, err) //nolint:errorlint // an answer, and not the storage's
	}
	return got, err
}

// isAddress reports whether no bucket name can stand in front of a host.
func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil || strings.EqualFold(host, "localhost")
}
