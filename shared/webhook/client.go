package webhook

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"millrace/shared/egress"
	"millrace/shared/event"
	"millrace/shared/secret"
)

// Timeout bounds one attempt, from looking the name up to the end of the answer.
const Timeout = 10 * time.Second

// Bounds of an answer, in bytes. What is beyond is not read.
const (
	maxHeader = 16 << 10
	maxKept   = 4 << 10 // of the body
)

// Client sends to receivers. It follows no redirects, takes no proxy from the environment, and opens connections only
// as its guard allows. It may be used concurrently.
type Client struct {
	guard   *egress.Guard
	http    *http.Client
	timeout time.Duration
}

// ClientConfig of a client.
type ClientConfig struct {
	// Timeout bounds one attempt. Default: Timeout.
	Timeout time.Duration
	// Roots are the authorities that receivers' certificates are held against. Default: the system's.
	Roots *x509.CertPool
}

// NewClient returns a client that reaches what guard allows.
func NewClient(guard *egress.Guard, cfg ClientConfig) *Client {
	return &Client{
		guard:   guard,
		timeout: cmp.Or(cfg.Timeout, Timeout),
		http: &http.Client{
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy:                  nil, // it would connect for us, past the guard
				DialContext:            guard.DialContext,
				TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots},
				ForceAttemptHTTP2:      true,
				MaxIdleConns:           1024,
				MaxIdleConnsPerHost:    1024, // many webhooks may be at one host
				IdleConnTimeout:        30 * time.Second,
				MaxResponseHeaderBytes: maxHeader,
				DisableCompression:     true, // what is small on the wire stays small
			},
		},
	}
}

// CheckURL says, in words for the one who gave it, why nothing can be sent to a URL.
func (c *Client) CheckURL(raw string) error {
	_, err := c.guard.CheckURL(raw)
	return err
}

// Request is one attempt of a delivery.
type Request struct {
	URL      string
	Webhook  string
	Delivery string // the same over all attempts
	EventID  string // as well
	Event    string
	Body     []byte // signed and sent as it is
	// Secrets are the keys to sign with: first the one that is valid, then those that were valid until a short while
	// ago.
	Secrets []secret.String
}

// Answer is what came of an attempt.
type Answer struct {
	Code       int           // of the status line; 0: there was no answer
	Body       string        // the beginning of it, as text
	RetryAfter time.Duration // what the receiver asked for; 0: nothing
	Error      string        // why it was no success, in words; "" for a success
	At         time.Time     // when it was sent
}

// Delivered reports whether the receiver took it.
func (a Answer) Delivered() bool { return a.Code >= 200 && a.Code < 300 }

// Send makes one attempt. It always returns within the client's timeout.
func (c *Client) Send(ctx context.Context, r Request) Answer {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	now := time.Now().UTC()
	a := Answer{At: now}
	if _, err := c.guard.CheckURL(r.URL); err != nil { // what may be allowed may have changed
		a.Error = "url: " + err.Error()
		return a
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL, bytes.NewReader(r.Body))
	if err != nil {
		a.Error = "url: " + err.Error()
		return a
	}
	for name, value := range map[string]string{
		"Content-Type":          "application/json",
		"User-Agent":            "Millrace-Webhooks/1",
		"Idempotency-Key":       r.EventID,
		"X-Webhook-ID":          r.Webhook,
		"X-Delivery-ID":         r.Delivery,
		"X-Delivery-Attempt-ID": event.NewID("dla"),
		"X-Event-Type":          r.Event,
		"webhook-id":            r.Delivery,
		"webhook-timestamp":     strconv.FormatInt(now.Unix(), 10),
		"webhook-signature":     Standard(r.Delivery, now, r.Body, r.Secrets...),
	} {
		req.Header.Set(name, value)
	}
	if len(r.Secrets) > 0 {
		req.Header.Set("X-Webhook-Signature", Signature(r.Secrets[0], r.Body))
	}
	res, err := c.http.Do(req)
	if err != nil {
		a.Error = c.explain(err)
		return a
	}
	defer func() { _ = res.Body.Close() }()
	a.Code = res.StatusCode
	// What cannot be read of the body changes nothing: the status has been said.
	head, _ := io.ReadAll(io.LimitReader(res.Body, maxKept))
	a.Body = strings.ToValidUTF8(string(head), "\uFFFD")
	if !a.Delivered() {
		a.Error = fmt.Sprintf("receiver answered %d", a.Code)
		if a.Code >= 300 && a.Code < 400 {
			a.Error += "; redirects are not followed"
		}
		a.RetryAfter = retryAfter(res.Header.Get("Retry-After"), now)
	}
	return a
}

// maxError bounds what is kept of an error, in bytes.
const maxError = 300

// explain says why there was no answer.
func (c *Client) explain(err error) string {
	var u *url.Error
	if errors.As(err, &u) { // it repeats the URL
		err = u.Err
	}
	var dns *net.DNSError
	var network net.Error
	switch {
	case errors.Is(err, egress.ErrRefused):
		// The operator's network is nobody else's business, so nothing is said of what the name resolves to.
		return "the host has no public address; whoever runs this server can allow it with --allow-endpoint"
	case errors.As(err, &dns):
		return "the host name could not be resolved"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return fmt.Sprintf("receiver did not answer within %s", c.timeout)
	}
	text := "request failed: " + err.Error()
	if len(text) > maxError {
		text = text[:maxError]
	}
	return strings.ToValidUTF8(text, "")
}

// retryAfter reads a Retry-After header, in seconds or as a date. What is neither says nothing.
func retryAfter(header string, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(header, 10, 32); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
