package azure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"millrace/shared/bucket"
)

// Credentials are one of: a service principal (tenant, client and secret), a shared access signature, the key of the
// account. None of them means those of the machine, which the operator of this process provides: environment variables,
// a workload identity, a managed identity, or the login of the command line tool, in this order.
type Credentials struct {
	TenantID, ClientID, ClientSecret string

	SAS        string // a shared access signature: the query of its URL, with or without "?"
	AccountKey string // base64

	// Authority is where service principals log in, for clouds other than the public one: https://login.microsoftonline.us/.
	// Default: what the operator says in AZURE_AUTHORITY_HOST, else the public cloud's.
	Authority string
}

// connect makes the client with its credentials. It asks nobody.
func (c *client) connect(cred Credentials, opts azcore.ClientOptions) error {
	where := c.endpoint + "/" + c.name
	options := &container.ClientOptions{ClientOptions: opts}
	principal := cred.TenantID != "" || cred.ClientID != "" || cred.ClientSecret != ""
	given := 0
	for _, is := range []bool{principal, cred.SAS != "", cred.AccountKey != ""} {
		if is {
			given++
		}
	}
	var err error
	switch {
	case given > 1:
		return fmt.Errorf("credentials of several kinds at once: %w", bucket.ErrCredentials)
	case cred.SAS != "":
		var signature url.Values
		signature, err = url.ParseQuery(strings.TrimPrefix(cred.SAS, "?"))
		if err != nil || signature.Get("sig") == "" {
			return fmt.Errorf("the shared access signature has no sig= in it: %w", bucket.ErrCredentials)
		}
		c.blobs, err = container.NewClientWithNoCredential(where+"?"+signature.Encode(), options)
	case cred.AccountKey != "":
		var key *container.SharedKeyCredential
		if key, err = container.NewSharedKeyCredential(c.account, cred.AccountKey); err != nil {
			return fmt.Errorf("the account key is not base64: %w", bucket.ErrCredentials) // the library's words could quote it
		}
		c.key = true
		c.blobs, err = container.NewClientWithSharedKeyCredential(where, key, options)
	default:
		if !strings.HasPrefix(c.endpoint, "https://") {
			return errors.New("endpoint: a token is sent over https alone; use https, an account key or a shared access signature")
		}
		if c.login, err = newLogin(cred, principal, opts); err == nil {
			c.blobs, err = container.NewClient(where, c.login, options)
		}
	}
	return err
}

// login gets tokens, and says in the bucket's words why there is none.
type login struct{ azcore.TokenCredential }

func newLogin(cred Credentials, principal bool, opts azcore.ClientOptions) (*login, error) {
	opts.PerCallPolicies = nil
	opts.Retry.ShouldRetry = nil // its own rules: a login says 400 to what may pass
	if cred.Authority != "" {
		opts.Cloud = cloud.Configuration{ActiveDirectoryAuthorityHost: cred.Authority}
	}
	if !principal {
		found, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: opts})
		if err != nil {
			return nil, fmt.Errorf("find the machine's own credentials: %w", bucket.ErrCredentials)
		}
		return &login{found}, nil
	}
	made, err := azidentity.NewClientSecretCredential(cred.TenantID, cred.ClientID, cred.ClientSecret,
		&azidentity.ClientSecretCredentialOptions{ClientOptions: opts, DisableInstanceDiscovery: cred.Authority != ""})
	if err != nil {
		return nil, fmt.Errorf("tenant, client id and client secret must all be there: %w", bucket.ErrCredentials)
	}
	return &login{made}, nil
}

// GetToken implements azcore.TokenCredential.
func (l *login) GetToken(ctx context.Context, opts policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := l.TokenCredential.GetToken(ctx, opts)
	if err != nil {
		return token, &tokenError{loginError(ctx, err)}
	}
	return token, nil
}

// tokenError is one that the client does not repeat: the login had its own attempts.
type tokenError struct{ error }

func (e *tokenError) Unwrap() error { return e.error }

// NonRetriable marks it for the client.
func (*tokenError) NonRetriable() {}

// loginError passes on no more of an answer than its code: the rest says a lot about the directory it came from.
func loginError(ctx context.Context, err error) error {
	if ended := ctx.Err(); ended != nil {
		return fmt.Errorf("log in: %w", ended)
	}
	var failed *azidentity.AuthenticationFailedError
	if !errors.As(err, &failed) {
		return fmt.Errorf("log in: no credentials on this machine: no environment variables AZURE_…, workload identity or "+
			"managed identity: %w", bucket.ErrCredentials)
	}
	res := failed.RawResponse
	if res == nil { // the reason is in its text alone
		return fmt.Errorf("log in: no answer: %w", bucket.ErrUnavailable)
	}
	if res.StatusCode == http.StatusRequestTimeout || res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= 500 {
		return fmt.Errorf("log in: %w: %d %s", bucket.ErrUnavailable, res.StatusCode, http.StatusText(res.StatusCode))
	}
	code := loginCode(res)
	if hint := loginHints[code]; hint != "" {
		return fmt.Errorf("log in: %s (%s): %w", hint, code, bucket.ErrCredentials)
	}
	return fmt.Errorf("log in: %w: %d %s %s", bucket.ErrCredentials, res.StatusCode, http.StatusText(res.StatusCode), code)
}

// loginHints says what the commonest refusals are about.
var loginHints = map[string]string{
	"AADSTS7000215": "the client secret is wrong: take its value, not its id",
	"AADSTS7000222": "the client secret has expired: make a new one",
	"AADSTS700016":  "there is no application of this client_id in the tenant",
	"AADSTS90002":   "there is no such tenant",
	"AADSTS700027":  "the clock of this machine is off",
}

var loginCodes = regexp.MustCompile(`^AADSTS[0-9]{4,10}`)

func loginCode(res *http.Response) string {
	var said struct {
		Description string `json:"error_description"`
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil || json.Unmarshal(data, &said) != nil {
		return ""
	}
	return loginCodes.FindString(said.Description)
}
