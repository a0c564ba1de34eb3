package gcs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace/shared/bucket"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/gcs/gcstest"
)

// TestGRPC is what holds of the driver over gRPC as it does over JSON: below this name, source and library speak it.
func TestGRPC(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"Suite": TestSuite, "Errors": TestErrors, "PassingErrorsAreRepeated": TestPassingErrorsAreRepeated, "NoBucket": TestNoBucket,
		"VersionedBucket": TestVersionedBucket, "BrokenBodies": TestBrokenBodies, "CorruptedBodies": TestCorruptedBodies,
		"WrongAnswers": TestWrongAnswers, "Gzip": TestGzip, "ListPages": TestListPages, "StalledCallsEnd": TestStalledCallsEnd,
		"Credentials": TestCredentials, "RequesterPays": TestRequesterPays, "PutWhoseAnswerIsLost": TestPutWhoseAnswerIsLost,
		"PutCorrupted": TestPutCorrupted, "PutRepeatsPieces": TestPutRepeatsPieces,
		"CopyFromRaces": TestCopyFromRaces, "CopyGoesOn": TestCopyGoesOn,
	} {
		t.Run(name, test)
	}
}

func TestGRPCStatus(t *testing.T) {
	for _, tt := range []struct {
		code    codes.Code
		message string
		reason  string
		wait    time.Duration
		want    error
		after   time.Duration
	}{
		{codes.Unauthenticated, "", "", 0, bucket.ErrCredentials, 0},
		{codes.PermissionDenied, "", "", 0, bucket.ErrPermission, 0},
		{codes.PermissionDenied, "", "RATE_LIMIT_EXCEEDED", 0, bucket.ErrThrottled, 0},
		{codes.InvalidArgument, "", "RESOURCE_IS_ENCRYPTED_WITH_CUSTOMER_ENCRYPTION_KEY", 0, bucket.ErrUnreadable, 0},
		{codes.FailedPrecondition, "Bucket is a requester pays bucket but no user project provided.", "", 0, bucket.ErrPermission, 0},
		{codes.FailedPrecondition, "", "", 0, bucket.ErrChanged, 0},
		{codes.NotFound, "", "", 0, bucket.ErrNotExist, 0},
		{codes.ResourceExhausted, "", "", 1500 * time.Millisecond, bucket.ErrThrottled, 2 * time.Second},
		{codes.Unavailable, "", "", 30 * time.Second, bucket.ErrUnavailable, 30 * time.Second},
		{codes.Internal, "", "", 0, bucket.ErrUnavailable, 0},
		{codes.DeadlineExceeded, "", "", 0, bucket.ErrUnavailable, 0},
		{codes.DataLoss, "", "", 0, bucket.ErrUnavailable, 0},
	} {
		s, err := status.New(tt.code, tt.message).WithDetails(
			&errdetails.ErrorInfo{Reason: tt.reason}, &errdetails.RetryInfo{RetryDelay: durationpb.New(tt.wait)})
		if err != nil {
			t.Fatal(err)
		}
		err = gcs.Translate(s)
		if !errors.Is(err, tt.want) || bucket.RetryAfter(err) != tt.after || !strings.Contains(err.Error(), tt.message) {
			t.Errorf("%s %s %q: %v", tt.code, tt.reason, tt.message, err)
		}
	}
}

// overTLS puts TLS before a server, and returns where it is and a transport that trusts it and knows the name it has.
func overTLS(t *testing.T, plain string) (string, *http.Transport) {
	t.Helper()
	ready := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	t.Cleanup(ready.Close)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: ready.TLS.Certificates, NextProtos: []string{"h2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(plain, "http://"))
			if err != nil {
				in.Close()
				return
			}
			go func() { _, _ = io.Copy(out, in); out.Close() }()
			go func() { _, _ = io.Copy(in, out); in.Close() }()
		}
	}()
	trusted := x509.NewCertPool()
	trusted.AddCert(ready.Certificate())
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: trusted},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "example.com:443" {
				addr = l.Addr().String()
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}
	return "https://example.com", transport
}

// The transport's dialer and certificates are those of gRPC, too: what it refuses nobody reaches.
func TestGRPCTransport(t *testing.T) {
	s := gcstest.Start(t, "b")
	s.Put("b", "a.mp4", data(1000, 1))
	where, transport := overTLS(t, s.GRPC(t))
	open := func(t http.RoundTripper) (*gcs.Source, error) {
		return gcs.NewSource(context.Background(), gcs.Config{Bucket: "b", GRPC: true, Endpoint: where, Transport: t})
	}
	src, err := open(transport)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	obj := stat(t, src, "a.mp4")
	if got, err := readAll(t, src, "a.mp4", obj.Version, 0, -1); err != nil || !bytes.Equal(got, data(1000, 1)) {
		t.Errorf("over TLS: %d bytes, %v", len(got), err)
	}

	stranger := transport.Clone()
	stranger.TLSClientConfig = nil
	errRefused := errors.New("not there")
	refusing := transport.Clone()
	refusing.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, errRefused }
	before := s.Requests(gcstest.Anything)
	for _, tt := range []struct {
		name      string
		transport *http.Transport
		says      string
		want      error
	}{
		{"refused", refusing, "not there", errRefused},
		{"unknown certificate", stranger, "x509", bucket.ErrUnavailable},
	} {
		src, err := open(tt.transport)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		_, statErr := src.Stat(t.Context(), "a.mp4")
		_, openErr := src.Open(t.Context(), "a.mp4", "", 0, -1)
		for op, err := range map[string]error{"Stat": statErr, "Open": openErr, "List": lastError(t, src)} {
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %s: %v", tt.name, op, err)
			}
		}
	}
	if n := s.Requests(gcstest.Anything); n != before {
		t.Errorf("%d requests got through", n-before)
	}
	if _, err := open(http.NewFileTransport(http.Dir("/"))); err == nil {
		t.Error("a transport that does not dial was taken")
	}
}

// A server that takes all and says nothing is given up.
func TestGRPCSilence(t *testing.T) {
	defer gcs.AnswerTimeout(50 * time.Millisecond)()
	s := gcstest.Start(t, "b")
	s.Put("b", "a.mp4", data(1000, 1))
	cfg := gcs.Config{Bucket: "b", GRPC: true, Endpoint: s.GRPC(t)}
	src, err := gcs.NewSource(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	lib, err := gcs.NewLibrary(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer lib.Close()
	s.Inject(-1, gcstest.Reads, gcstest.Stalled)
	s.Inject(-1, gcstest.Uploads, gcstest.Stalled)
	if _, err := src.Open(t.Context(), "a.mp4", "", 0, -1); bucket.ClassOf(err) != bucket.ClassTimeout {
		t.Errorf("Open: %v", err)
	}
	if _, err := lib.Put(t.Context(), "aa/bb", strings.NewReader("x"), bucket.Want{Size: 1}); bucket.ClassOf(err) != bucket.ClassTimeout {
		t.Errorf("Put: %v", err)
	}
}
