// Package kms has a key management service encrypt and decrypt what is small: the keys that a deployment's secrets are
// sealed with. It speaks the two calls it needs over HTTP, with the machine's own credentials: the clients of these services
// would make the program larger by more than all of this package's callers.
package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// purpose is bound to what is encrypted, so that nothing else that a key has encrypted passes for keys of ours.
const purpose = "millrace secrets key"

// Key is one key of a service.
type Key struct {
	uri string
	service
}

// service encrypts or decrypts a text.
type service interface {
	call(ctx context.Context, client *http.Client, encrypt bool, text []byte) ([]byte, error)
}

// Open returns the key that a URI names. It asks nobody yet.
//
//	aws-kms://arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab
//	gcp-kms://projects/P/locations/L/keyRings/R/cryptoKeys/K
//
// A private endpoint of the service is given as ?endpoint=https://….
func Open(uri string) (*Key, error) {
	name, query, _ := strings.Cut(uri, "?")
	scheme, name, _ := strings.Cut(name, "://")
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", uri, err)
	}
	endpoint := strings.TrimSuffix(values.Get("endpoint"), "/")
	if values.Del("endpoint"); len(values) > 0 {
		return nil, fmt.Errorf("key %q: endpoint is all that may follow the question mark", uri)
	}
	if u, err := url.Parse(endpoint); endpoint != "" && (err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
		return nil, fmt.Errorf("key %q: endpoint: want https://host", uri)
	}
	k := &Key{uri: uri}
	switch scheme {
	case "aws-kms":
		k.service, err = openAmazon(name, endpoint)
	case "gcp-kms":
		k.service, err = openGoogle(name, endpoint)
	default:
		err = errors.New("want aws-kms://arn:aws:kms:… or gcp-kms://projects/…")
	}
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", uri, err)
	}
	return k, nil
}

// Encrypt returns what Decrypt will return the text for. It has tried that.
func (k *Key) Encrypt(ctx context.Context, text []byte) ([]byte, error) {
	sealed, err := k.patiently(ctx, true, text)
	if err != nil {
		return nil, err
	}
	back, err := k.Decrypt(ctx, sealed)
	if err == nil && !bytes.Equal(back, text) {
		err = fmt.Errorf("key %s: it does not decrypt what it has encrypted", k.uri)
	}
	return sealed, err
}

// Decrypt returns what was encrypted.
func (k *Key) Decrypt(ctx context.Context, sealed []byte) ([]byte, error) {
	return k.patiently(ctx, false, sealed)
}

const (
	attempts = 3
	pause    = 500 * time.Millisecond
	timeout  = 10 * time.Second // of one attempt
	most     = 1 << 20          // bytes of an answer
)

func (k *Key) patiently(ctx context.Context, encrypt bool, text []byte) (out []byte, err error) {
	what := "decrypt"
	if encrypt {
		what = "encrypt"
	}
	client := &http.Client{
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for n := 1; ; n++ {
		out, err = k.call(ctx, client, encrypt, text)
		var refused *refusal
		if err == nil || n == attempts || errors.As(err, &refused) && refused.status < 500 && refused.status != http.StatusTooManyRequests {
			break
		}
		select {
		case <-time.After(pause << (n - 1)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s with key %s: %w", what, k.uri, err)
	}
	return out, nil
}

// refusal is an answer that says no.
type refusal struct {
	status int
	words  string
}

func (r *refusal) Error() string { return fmt.Sprintf("HTTP %d: %s", r.status, r.words) }

// ask sends a request and decodes the answer into out. words finds the reason in an answer that says no.
func ask(client *http.Client, req *http.Request, out any, words func(body []byte) string) error {
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, most))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return &refusal{res.StatusCode, words(body)}
	}
	if err := json.Unmarshal(body, out); err != nil {
		return errors.New("the answer is not JSON") // it could be quoted, and holds keys
	}
	return nil
}
