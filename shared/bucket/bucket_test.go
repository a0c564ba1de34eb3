package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestClassOf(t *testing.T) {
	dial := &net.OpError{Op: "dial", Net: "tcp", Err: &os.SyscallError{Syscall: "connect", Err: syscall.ECONNREFUSED}}
	read := &net.OpError{Op: "read", Net: "tcp", Err: &os.SyscallError{Syscall: "read", Err: syscall.ECONNRESET}}
	tests := []struct {
		err                   error
		class                 Class
		permanent, bucketwide bool
	}{
		{nil, ClassNone, false, false},
		{ErrNotExist, ClassNotExist, true, false},
		{ErrChanged, ClassChanged, true, false},
		{ErrUnreadable, ClassUnreadable, true, false},
		{ErrArchived, ClassArchived, true, false},
		{ErrName, ClassName, true, false},
		{errors.ErrUnsupported, ClassUnsupported, true, false},
		{ErrPermission, ClassPermission, true, false},
		{ErrCredentials, ClassCredentials, true, true},
		{fmt.Errorf("%w: %w", ErrNoBucket, ErrNotExist), ClassNoBucket, true, true},
		{ErrChecksum, ClassChecksum, false, false},
		{ErrStalled, ClassStalled, false, false},
		{&ThrottledError{RetryAfter: time.Second, Err: ErrThrottled}, ClassThrottled, false, true},
		{&ThrottledError{RetryAfter: time.Second, Err: ErrUnavailable}, ClassUnavailable, false, true},
		{ErrFull, ClassFull, false, true},
		{ErrLost, ClassOther, false, false},
		{context.Canceled, ClassCancelled, false, false},
		{context.DeadlineExceeded, ClassTimeout, false, false},
		{os.ErrDeadlineExceeded, ClassTimeout, false, false},
		{io.ErrUnexpectedEOF, ClassBroken, false, false},
		{dial, ClassUnavailable, false, true},
		{read, ClassBroken, false, false},
		{&net.DNSError{Name: "storage.example", IsNotFound: true}, ClassUnavailable, false, true},
		{errors.New("what"), ClassOther, false, false},
	}
	for _, tt := range tests {
		err := tt.err
		if err != nil {
			err = fmt.Errorf("open: %w", err)
		}
		class := ClassOf(err)
		if class != tt.class || class.Permanent() != tt.permanent || class.Bucketwide() != tt.bucketwide {
			t.Errorf("%v: %q, permanent %v, bucketwide %v", tt.err, class, class.Permanent(), class.Bucketwide())
		}
	}
	if got := RetryAfter(fmt.Errorf("list: %w", &ThrottledError{3 * time.Second, ErrThrottled})); got != 3*time.Second {
		t.Errorf("RetryAfter = %s", got)
	}
}

func TestCheckKey(t *testing.T) {
	for _, key := range []string{"a", "ab/cdef012", "A-Z_09.bin", strings.Repeat("a", 255)} {
		if err := CheckKey(key); err != nil {
			t.Error(err)
		}
	}
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".millrace-tmp/x", "a b", "a\x00", "ä", "a%2f", `a\b`, "a\n",
		strings.Repeat("a", 256), strings.Repeat("a/", 256) + "b",
	} {
		if err := CheckKey(key); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v, want ErrName", key, err)
		}
	}
}

func TestHash(t *testing.T) {
	h := NewHash()
	io.WriteString(h, "123456789")
	// The check value of CRC-32C, and the SHA-256 of the same text.
	if h.CRC32C() != EncodeCRC32C(0xe3069283) || h.CRC32C() != "4waSgw==" {
		t.Errorf("crc32c %s", h.CRC32C())
	}
	if h.SHA256() != "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225" {
		t.Errorf("sha256 %s", h.SHA256())
	}
}

func TestHashCopy(t *testing.T) {
	full := errors.New("no room")
	tests := []struct {
		name string
		r    io.Reader
		w    io.Writer
		want Want
		err  error
	}{
		{"whole", strings.NewReader("123456789"), io.Discard, Want{Size: 9, CRC32C: "4waSgw=="}, nil},
		{"by the byte", iotest.OneByteReader(strings.NewReader("123456789")), io.Discard, Want{Size: 9, CRC32C: "4waSgw=="}, nil},
		{"end with the bytes", iotest.DataErrReader(strings.NewReader("123456789")), io.Discard, Want{Size: 9}, nil},
		{"nothing promised", strings.NewReader("123456789"), io.Discard, Want{Size: -1}, nil},
		{"empty", strings.NewReader(""), io.Discard, Want{}, nil},
		{"short", strings.NewReader("12345678"), io.Discard, Want{Size: 9}, ErrChecksum},
		{"long", strings.NewReader("1234567890"), io.Discard, Want{Size: 9}, ErrChecksum},
		{"wrong", strings.NewReader("123456788"), io.Discard, Want{Size: 9, CRC32C: "4waSgw=="}, ErrChecksum},
		{"source fails", iotest.ErrReader(ErrChanged), io.Discard, Want{Size: 9}, ErrChanged},
		{"source is stuck", iotest.ErrReader(nil), io.Discard, Want{Size: 9}, io.ErrNoProgress},
		{"library fails", strings.NewReader("123456789"), failingWriter{full}, Want{Size: 9}, full},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := NewHash().Copy(t.Context(), tt.w, tt.r, make([]byte, 4), tt.want)
			if !errors.Is(err, tt.err) {
				t.Errorf("%v, want %v", err, tt.err)
			}
		})
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := NewMetrics(reg)
	if n := testutil.CollectAndCount(m.operations); n != 12 {
		t.Errorf("%d series at the start, want one per operation", n)
	}
	inner := &scripted{data: content(100), script: []func([]byte) (io.ReadCloser, error){
		refuse(ErrChanged), refuse(ErrPermission), breakAfter(30, errBroken),
	}}
	src := m.Source(inner)
	for range 4 {
		if r, err := src.Open(t.Context(), "a.mp4", "1", 0, -1); err == nil {
			io.Copy(io.Discard, r)
			r.Close()
			r.Close()
		}
	}
	for _, err := range src.List(t.Context(), ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	const want = `
# HELP bucket_bytes_total Bytes read from storage, put there, and copied inside it.
# TYPE bucket_bytes_total counter
bucket_bytes_total{operation="copy",side="library"} 0
bucket_bytes_total{operation="put",side="library"} 0
bucket_bytes_total{operation="read",side="library"} 0
bucket_bytes_total{operation="read",side="source"} 130
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "bucket_bytes_total"); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		op                   string
		operations, failures float64
	}{{"open", 4, 1}, {"read", 2, 1}, {"list", 1, 0}, {"stat", 0, 0}} {
		ops, failures := m.operations.WithLabelValues("source", tt.op), m.failures.WithLabelValues("source", tt.op)
		if testutil.ToFloat64(ops) != tt.operations || testutil.ToFloat64(failures) != tt.failures {
			t.Errorf("%s: %v calls, %v failures", tt.op, testutil.ToFloat64(ops), testutil.ToFloat64(failures))
		}
	}
	if got, ok := As[*scripted](src); !ok || got != inner {
		t.Error("As does not see through the wrapper")
	}
	if _, ok := As[*bytes.Buffer](src); ok {
		t.Error("As finds what is not there")
	}
}
