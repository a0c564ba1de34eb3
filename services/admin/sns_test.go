package admin_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // what SNS signs with unless told otherwise
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/shared/topology"
)

// amazon stands in for the network at Amazon: certificates by address, and what else was asked.
type amazon struct {
	mu    sync.Mutex
	certs map[string][]byte
	down  bool
	asked []string
}

func (a *amazon) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, r.URL.String())
	status, body := http.StatusNotFound, []byte("no")
	switch cert := a.certs[r.URL.String()]; {
	case a.down:
		status = http.StatusServiceUnavailable
	case cert != nil:
		status, body = http.StatusOK, cert
	case r.URL.Query().Get("Action") == "ConfirmSubscription":
		status, body = http.StatusOK, []byte("<ConfirmSubscriptionResponse/>")
	}
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}

// questions returns what was asked since it was last called.
func (a *amazon) questions() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	asked := a.asked
	a.asked = nil
	return asked
}

// certificate is one that a server made for itself, of such a time.
func certificate(t *testing.T, key *rsa.PrivateKey, from time.Time) []byte {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sns.amazonaws.com"}, NotBefore: from, NotAfter: from.Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

const (
	snsCert    = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0123456789abcdef.pem"
	snsExpired = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-00000000000000ee.pem"
	snsTopic   = "arn:aws:sns:eu-west-1:123456789012:drops"
)

// signedBySNS signs an envelope as Amazon describes it.
func signedBySNS(t *testing.T, key *rsa.PrivateKey, envelope obj) obj {
	t.Helper()
	names := []string{"Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"}
	if envelope["Type"] != "Notification" {
		names = []string{"Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"}
	}
	var text strings.Builder
	for _, name := range names {
		if value, ok := envelope[name]; ok {
			fmt.Fprintf(&text, "%s\n%s\n", name, value)
		}
	}
	kind, sum := crypto.SHA256, sha256.Sum256([]byte(text.String()))
	digest := sum[:]
	if envelope["SignatureVersion"] == "1" {
		old := sha1.Sum([]byte(text.String()))
		kind, digest = crypto.SHA1, old[:]
	}
	signature, err := rsa.SignPKCS1v15(nil, key, kind, digest)
	must(t, err)
	return merged(envelope, obj{"Signature": base64.StdEncoding.EncodeToString(signature)})
}

// What SNS pushes has to be signed by a certificate that lies at SNS, and a subscription is confirmed there and nowhere
// else.
func TestSNS(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	network := &amazon{certs: map[string][]byte{
		snsCert: certificate(t, key, time.Now().Add(-time.Hour)), snsExpired: certificate(t, key, time.Now().Add(-48*time.Hour)),
	}}
	w := newWorld(t)
	w.admin.ReachSNS(network)
	connector := w.do("POST", "/connectors/s3", s3Body()).want(201).str("connector_id")
	push := func(message obj) answer {
		t.Helper()
		raw, err := json.Marshal(message)
		must(t, err)
		return w.do("POST", "/notifications/"+connector+"?code="+w.keys["write"], nil, request{
			key: "-", raw: raw, header: map[string]string{"Content-Type": "text/plain; charset=UTF-8", "X-Amz-Sns-Message-Type": "Notification"},
		})
	}
	stored := func() (n int) {
		t.Helper()
		for _, err := range w.bus.Scan(t.Context(), topology.Notifications, w.bus.Subject("notification", connector), 0) {
			must(t, err)
			n++
		}
		return n
	}
	notification := obj{
		"Type": "Notification", "MessageId": "1", "TopicArn": snsTopic, "Subject": "Amazon S3 Notification", "Timestamp": "2026-03-01T08:12:44.932Z",
		"Message":          `{"Records":[{"eventName":"ObjectCreated:Put","s3":{"bucket":{"name":"field-recordings"},"object":{"key":"a.mp4"}}}]}`,
		"SignatureVersion": "2", "SigningCertURL": snsCert,
	}
	network.down = true
	push(signedBySNS(t, key, notification)).refused(503, "notification_certificate_unavailable")
	network.down = false
	for _, version := range []string{"1", "2"} {
		push(signedBySNS(t, key, merged(notification, obj{"SignatureVersion": version}))).want(200)
		push(signedBySNS(t, key, merged(without(notification, "Subject"), obj{"SignatureVersion": version}))).want(200)
	}
	if n := stored(); n != 4 {
		t.Errorf("%d of 4 are stored", n)
	}
	if asked := network.questions(); len(asked) != 2 { // the one that failed, and one more
		t.Errorf("asked %q", asked)
	}
	push(obj{"Records": []any{}}).want(200) // raw delivery has no envelope

	good := signedBySNS(t, key, notification)
	for name, bad := range map[string]obj{
		"of somebody else":         signedBySNS(t, stranger, notification),
		"unsigned":                 without(good, "Signature"),
		"changed":                  merged(good, obj{"Message": "{}"}),
		"of another topic":         merged(good, obj{"TopicArn": snsTopic + "2"}),
		"of another version":       merged(good, obj{"SignatureVersion": "1"}),
		"of no version":            merged(good, obj{"SignatureVersion": "3"}),
		"with a subject put in":    merged(signedBySNS(t, key, without(notification, "Subject")), obj{"Subject": "x"}),
		"of a certificate too old": signedBySNS(t, key, merged(notification, obj{"SigningCertURL": snsExpired})),
	} {
		if a := push(bad); a.status != 403 || a.str("error", "code") != "notification_signature_invalid" {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	listed, err := json.Marshal([]obj{merged(signedBySNS(t, stranger, notification), obj{"eventType": "x"})}) // is taken apart
	must(t, err)
	w.do("POST", "/notifications/"+connector, nil, request{raw: listed}).refused(403, "notification_signature_invalid")
	network.questions()

	// The certificate of whoever can choose an address is worth nothing: nobody is asked for it.
	pem := "/SimpleNotificationService-0123456789abcdef.pem"
	for _, at := range []string{
		"", "http://sns.eu-west-1.amazonaws.com" + pem, "https://evil.example" + pem, "https://sns.eu-west-1.amazonaws.com.evil.example" + pem,
		"https://sns.eu-west-1.amazonaws.com@evil.example" + pem, "https://x:y@sns.eu-west-1.amazonaws.com" + pem,
		"https://evil.example#@sns.eu-west-1.amazonaws.com" + pem, `https://evil.example\@sns.eu-west-1.amazonaws.com` + pem,
		"https://sns.eu-west-1.amazonaws.com:8443" + pem, "https://sns.s3.amazonaws.com" + pem, "https://sns.s3-eu-west-1.amazonaws.com" + pem,
		"https://sns.s3.eu-west-1.amazonaws.com" + pem, "https://s3.eu-west-1.amazonaws.com/sns" + pem, "https://xsns.eu-west-1.amazonaws.com" + pem,
		"https://sns.eu-west-1.amazonaws.com/?x=" + pem, "https://sns.eu-west-1.amazonaws.com/../x" + pem, "https://sns.eu-west-1.amazonaws.com" + pem + "?Action=x",
		"https://sns.eu-west-1.amazonaws.com" + pem + "#x", "https://169.254.169.254" + pem, "https://sns.eu-west-1.amazonaws.com\n.evil.example" + pem,
	} {
		network.certs[at] = network.certs[snsCert]
		if a := push(signedBySNS(t, key, merged(notification, obj{"SigningCertURL": at}))); a.status != 403 {
			t.Errorf("a certificate at %q: %d %s", at, a.status, a.raw)
		}
	}
	if asked := network.questions(); len(asked) != 0 {
		t.Errorf("asked %q", asked)
	}

	// A subscription is confirmed where SNS is, and with nothing but what that takes.
	subscription := obj{
		"Type": "SubscriptionConfirmation", "MessageId": "2", "TopicArn": snsTopic, "Timestamp": "2026-03-01T08:12:44.932Z", "Token": "t&Action=DeleteTopic",
		"Message":          "You have chosen to subscribe to the topic",
		"SubscribeURL":     "https://sns.eu-west-1.amazonaws.com/?Action=DeleteTopic&TopicArn=" + snsTopic + "&Token=t",
		"SignatureVersion": "1", "SigningCertURL": snsCert,
	}
	if a := push(signedBySNS(t, key, subscription)).want(200); a.str("message") != "confirmed" {
		t.Errorf("%s", a.raw)
	}
	want := "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=t%26Action%3DDeleteTopic&TopicArn=arn%3Aaws%3Asns%3Aeu-west-1%3A123456789012%3Adrops"
	if asked := network.questions(); !slices.Equal(asked, []string{want}) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	push(signedBySNS(t, stranger, subscription)).refused(403, "notification_signature_invalid")
	push(signedBySNS(t, key, merged(subscription, obj{"SubscribeURL": "https://evil.example/?Action=ConfirmSubscription"}))).
		refused(403, "notification_signature_invalid")
	if asked := network.questions(); len(asked) != 0 {
		t.Errorf("asked %q", asked)
	}
	if a := push(signedBySNS(t, key, merged(subscription, obj{"Type": "UnsubscribeConfirmation"}))).want(200); a.str("message") != "noted" {
		t.Errorf("%s", a.raw)
	}
	network.down = true
	push(signedBySNS(t, key, subscription)).refused(503, "notification_subscription_unconfirmed")
	if n := stored(); n != 5 {
		t.Errorf("%d are stored, not 5", n)
	}
}
