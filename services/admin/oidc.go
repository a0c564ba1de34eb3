package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// pushVerifier checks the OIDC token that Pub/Sub sends along with a push: signed by the issuer, made for us, and of
// the one service account that may push.
type pushVerifier struct {
	audience string
	account  string
	issuers  []string
	jwks     string
	client   *http.Client

	mu      sync.Mutex
	keys    jose.JSONWebKeySet
	fetched time.Time
}

const (
	// clockSkew is how far the issuer's clock may be off.
	clockSkew = time.Minute
	// jwksLifetime is how long signing keys are believed; jwksPause is the shortest time between two attempts to get
	// them, so that tokens with made-up key ids do not make us ask for each.
	jwksLifetime = time.Hour
	jwksPause    = 30 * time.Second
	jwksTimeout  = 5 * time.Second
	maxJWKS      = 1 << 20 // bytes
)

func newPushVerifier(cfg Config) *pushVerifier {
	return &pushVerifier{
		audience: cfg.PushAudience, account: cfg.PushServiceAccount, issuers: cfg.PushIssuers, jwks: cfg.PushJWKS,
		client: &http.Client{Timeout: jwksTimeout},
	}
}

type pushClaims struct {
	jwt.Claims
	Email    string `json:"email"`
	Verified bool   `json:"email_verified"`
}

// verify returns nil for a good token, a 401 for a bad one, and a 503 when the signing keys cannot be had.
func (v *pushVerifier) verify(ctx context.Context, token string) error {
	refuse := func(why string) error {
		return newProblem(http.StatusUnauthorized, "authentication_invalid_token", "The push token does not verify: %s.", why)
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil || len(parsed.Headers) != 1 {
		return refuse("it is not a JWT signed with RS256")
	}
	key, err := v.key(ctx, parsed.Headers[0].KeyID)
	if err != nil {
		p := newProblem(http.StatusServiceUnavailable, "push_keys_unavailable", "The signing keys of the push tokens cannot be had now. Try again.")
		p.retryAfter = 5
		return p
	}
	var claims pushClaims
	if key == nil || parsed.Claims(key, &claims) != nil {
		return refuse("it is not signed by the issuer")
	}
	switch {
	case !slices.Contains(v.issuers, claims.Issuer):
		return refuse("it is of another issuer")
	case len(claims.Audience) != 1 || claims.Audience[0] != v.audience:
		return refuse("it was made for another audience")
	case claims.Expiry == nil || claims.ValidateWithLeeway(jwt.Expected{Time: time.Now()}, clockSkew) != nil:
		return refuse("it has expired or is not valid yet")
	case claims.Email != v.account || !claims.Verified:
		return refuse("it is of another service account")
	}
	return nil
}

// key returns the issuer's signing key of that id, nil if it has none. While the issuer cannot be reached, the keys it
// had last are good.
func (v *pushVerifier) key(ctx context.Context, id string) (*jose.JSONWebKey, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	found := v.find(id)
	age := time.Since(v.fetched)
	if (found != nil && age < jwksLifetime) || (len(v.keys.Keys) > 0 && age < jwksPause) {
		return found, nil
	}
	keys, err := v.fetch(ctx)
	if err != nil {
		if found != nil {
			return found, nil
		}
		return nil, err
	}
	v.keys, v.fetched = keys, time.Now()
	return v.find(id), nil
}

func (v *pushVerifier) find(id string) *jose.JSONWebKey {
	for _, k := range v.keys.Key(id) {
		if k.Use != "enc" {
			return &k
		}
	}
	return nil
}

func (v *pushVerifier) fetch(ctx context.Context) (keys jose.JSONWebKeySet, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.jwks, http.NoBody)
	if err != nil {
		return keys, err
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return keys, fmt.Errorf("get signing keys: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return keys, fmt.Errorf("get signing keys: %s", resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxJWKS)).Decode(&keys); err != nil {
		return keys, fmt.Errorf("get signing keys: %w", err)
	}
	return keys, nil
}
