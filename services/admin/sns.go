package admin

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"
)

// snsVerifier checks what SNS pushes. Each message is signed, and says where the certificate for that is: at Amazon, or it
// is not from there. Who may push at all an API key says, which stands in the address that the topic was given.
type snsVerifier struct {
	client *http.Client

	mu    sync.Mutex
	certs map[string]*x509.Certificate // by address
}

const (
	snsTimeout = 5 * time.Second
	maxCert    = 64 << 10 // bytes
	maxCerts   = 64       // Amazon has one per region at a time
)

func newSNSVerifier() *snsVerifier {
	return &snsVerifier{
		client: &http.Client{
			Timeout:       snsTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		certs: make(map[string]*x509.Certificate),
	}
}

// snsMessage is the envelope of SNS.
type snsMessage struct {
	Type             string
	MessageID        string `json:"MessageId"`
	TopicARN         string `json:"TopicArn"`
	Subject          *string
	Message          string
	Timestamp        string
	Token            string
	SubscribeURL     string
	SignatureVersion string
	Signature        string
	SigningCertURL   string
}

const (
	snsNotification = "Notification"
	snsSubscribe    = "SubscriptionConfirmation"
	snsUnsubscribe  = "UnsubscribeConfirmation"
)

// snsEnvelope returns the envelope that an event comes in; false: in none.
func snsEnvelope(data []byte) (m snsMessage, ok bool) {
	if json.Unmarshal(data, &m) != nil {
		return m, false
	}
	return m, m.Type == snsNotification || m.Type == snsSubscribe || m.Type == snsUnsubscribe
}

// signed is the text that the signature is of.
func (m snsMessage) signed() []byte {
	var b strings.Builder
	add := func(name, value string) { b.WriteString(name + "\n" + value + "\n") }
	add("Message", m.Message)
	add("MessageId", m.MessageID)
	if m.Type == snsNotification {
		if m.Subject != nil {
			add("Subject", *m.Subject)
		}
	} else {
		add("SubscribeURL", m.SubscribeURL)
	}
	add("Timestamp", m.Timestamp)
	if m.Type != snsNotification {
		add("Token", m.Token)
	}
	add("TopicArn", m.TopicARN)
	add("Type", m.Type)
	return []byte(b.String())
}

// snsSignatures are the versions there are. The first is of SHA-1, and still what a topic has that nobody changed.
var snsSignatures = map[string]x509.SignatureAlgorithm{"1": x509.SHA1WithRSA, "2": x509.SHA256WithRSA}

// The hosts of SNS, by region, and what its certificates are called. The region is held to its form because others can
// have names in amazonaws.com, such as that of a bucket: sns.s3.amazonaws.com, sns.s3-eu-west-1.amazonaws.com.
var (
	snsHost = regexp.MustCompile(`^sns\.[a-z]{2}(-[a-z]+)+-[0-9]{1,2}\.amazonaws\.com(\.cn)?$`)
	snsCert = regexp.MustCompile(`^/SimpleNotificationService-[0-9A-Za-z]{1,64}\.pem$`)
)

// atSNS parses an address that is to be at SNS.
func atSNS(s string) (*url.URL, bool) {
	u, err := url.Parse(s)
	return u, err == nil && u.Scheme == "https" && u.User == nil && u.Opaque == "" && snsHost.MatchString(u.Host)
}

// verify returns nil for what SNS has signed, a 403 for what it has not, and a 503 when the certificate cannot be had.
// SNS gives up what is answered 403, and brings again what is answered 503.
func (v *snsVerifier) verify(ctx context.Context, m snsMessage) error {
	refuse := func(why string) error {
		return newProblem(http.StatusForbidden, "notification_signature_invalid", "The message is not one of SNS: %s.", why)
	}
	algorithm, known := snsSignatures[m.SignatureVersion]
	if !known {
		return refuse("its SignatureVersion is neither 1 nor 2")
	}
	signature, err := base64.StdEncoding.DecodeString(m.Signature)
	if err != nil {
		return refuse("its Signature is not base64")
	}
	at, ok := atSNS(m.SigningCertURL)
	if !ok || !snsCert.MatchString(at.EscapedPath()) || at.RawQuery != "" || at.Fragment != "" {
		return refuse("its SigningCertURL does not lead to a certificate of SNS")
	}
	cert, err := v.certificate(ctx, at.String())
	if err != nil {
		p := newProblem(http.StatusServiceUnavailable, "notification_certificate_unavailable", "The certificate of SNS cannot be had now. Try again.")
		p.retryAfter = 5
		return p
	}
	if now := time.Now(); now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return refuse("its certificate has expired or is not valid yet")
	}
	if cert.CheckSignature(algorithm, m.signed(), signature) != nil {
		return refuse("its signature is of something else")
	}
	return nil
}

// certificate is what lies there. What was had once is kept: the name changes with the content.
func (v *snsVerifier) certificate(ctx context.Context, at string) (*x509.Certificate, error) {
	v.mu.Lock()
	cert := v.certs[at]
	v.mu.Unlock()
	if cert != nil {
		return cert, nil
	}
	data, err := v.get(ctx, at)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("not a certificate")
	}
	if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.certs) >= maxCerts {
		clear(v.certs)
	}
	v.certs[at] = cert
	return cert, nil
}

// confirm tells SNS that its messages are wanted here, which a signed message asked. Of the address in it only the host
// counts, so that it can do no more than this.
func (v *snsVerifier) confirm(ctx context.Context, m snsMessage) error {
	at, ok := atSNS(m.SubscribeURL)
	if !ok {
		return newProblem(http.StatusForbidden, "notification_signature_invalid", "The SubscribeURL does not lead to SNS.")
	}
	query := url.Values{"Action": {"ConfirmSubscription"}, "TopicArn": {m.TopicARN}, "Token": {m.Token}}
	if _, err := v.get(ctx, "https://"+at.Host+"/?"+query.Encode()); err != nil {
		p := newProblem(http.StatusServiceUnavailable, "notification_subscription_unconfirmed", "SNS did not take the confirmation of the subscription. Try again.")
		p.retryAfter = 5
		return p
	}
	return nil
}

func (v *snsVerifier) get(ctx context.Context, at string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, http.NoBody)
	if err != nil {
		return nil, err
	}
	res, err := v.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("SNS answers %s", res.Status)
	}
	return io.ReadAll(io.LimitReader(res.Body, maxCert))
}

// fromSNS verifies what came by way of SNS, and answers what is for us alone: done is what became of that, "" when events
// are left to be stored.
func (a *Admin) fromSNS(ctx context.Context, events [][]byte) (done string, err error) {
	for _, e := range events {
		m, wrapped := snsEnvelope(e)
		if !wrapped {
			continue
		}
		if err := a.sns.verify(ctx, m); err != nil {
			a.metrics.refused.WithLabelValues(refusedPush).Inc()
			return "", err
		}
		switch m.Type {
		case snsSubscribe:
			if err := a.sns.confirm(ctx, m); err != nil {
				return "", err
			}
			a.log.Info("subscription to a topic of SNS confirmed", "topic", m.TopicARN)
			done = "confirmed"
		case snsUnsubscribe:
			a.log.Warn("a topic of SNS tells nothing any more: somebody cancelled its subscription", "topic", m.TopicARN)
			done = "noted"
		}
	}
	return done, nil
}
