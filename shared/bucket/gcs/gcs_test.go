package gcs_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/gcs/gcstest"
)

func data(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func sum(b []byte) string {
	h := bucket.NewHash()
	h.Write(b)
	return h.CRC32C()
}

func want(b []byte) bucket.Want { return bucket.Want{Size: int64(len(b)), CRC32C: sum(b)} }

func stat(t *testing.T, src *gcs.Source, path string) bucket.Object {
	t.Helper()
	obj, err := src.Stat(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return obj
}

func readAll(t *testing.T, src bucket.Source, path, version string, offset, length int64) ([]byte, error) {
	t.Helper()
	r, err := src.Open(t.Context(), path, version, offset, length)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func lastError(t *testing.T, src bucket.Source) (err error) {
	t.Helper()
	for _, err = range src.List(t.Context(), bucket.ListOptions{}) {
	}
	return err
}

// quick has a bucket.Reader not wait.
var quick = bucket.ReaderOptions{Backoff: func(int) time.Duration { return 0 }}

func TestErrors(t *testing.T) {
	tests := []struct {
		name     string
		fault    gcstest.Fault
		want     error
		after    time.Duration
		attempts int
	}{
		{"token expired", gcstest.Status(401, "authError", "Invalid Credentials"), bucket.ErrCredentials, 0, 1},
		{"no right", gcstest.Status(403, "forbidden", "x does not have storage.objects.get access"), bucket.ErrPermission, 0, 1},
		{"too fast", gcstest.Status(403, "userRateLimitExceeded", "slow down"), bucket.ErrThrottled, 0, 1},
		{"too fast, with a time", gcstest.Busy(429, 7*time.Second), bucket.ErrThrottled, 7 * time.Second, 1},
		{"down, with a time", gcstest.Busy(503, 9*time.Second), bucket.ErrUnavailable, 9 * time.Second, 1},
		{"down", gcstest.Status(503, "backendError", ""), bucket.ErrUnavailable, 0, 3},
		{"failing", gcstest.Status(500, "internalError", ""), bucket.ErrUnavailable, 0, 3},
		{"key of another", gcstest.Status(400, "resourceIsEncryptedWithCustomerEncryptionKey", "..."), bucket.ErrUnreadable, 0, 1},
		{"key switched off", gcstest.Status(403, "kmsPermissionDenied", "..."), bucket.ErrUnreadable, 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := gcstest.Start(t, "b")
			s.Put("b", "a.mp4", data(100, 1))
			src := source(t, s, gcs.Config{Bucket: "b"})
			s.Inject(-1, gcstest.Anything, tt.fault)
			calls := map[string]struct {
				match    gcstest.Match
				attempts int
				do       func() error
			}{
				"stat": {gcstest.Stats, tt.attempts, func() error { _, err := src.Stat(t.Context(), "a.mp4"); return err }},
				"list": {gcstest.Listings, tt.attempts, func() error { return lastError(t, src) }},
				"open": {gcstest.Reads, 1, func() error { _, err := src.Open(t.Context(), "a.mp4", "", 0, -1); return err }},
			}
			for name, call := range calls {
				err := call.do()
				if !errors.Is(err, tt.want) {
					t.Errorf("%s: %v, want %v", name, err, tt.want)
				}
				if after := bucket.RetryAfter(err); after != tt.after {
					t.Errorf("%s: retry after %s, want %s", name, after, tt.after)
				}
				if n := s.Requests(call.match); n != call.attempts {
					t.Errorf("%s: %d attempts, want %d", name, n, call.attempts)
				}
			}
		})
	}
}

func TestPassingErrorsAreRepeated(t *testing.T) {
	s := gcstest.Start(t, "b")
	s.Put("b", "a.mp4", data(100, 1))
	src, lib := source(t, s, gcs.Config{Bucket: "b"}), library(t, s, gcs.Config{Bucket: "b"})
	s.Inject(2, gcstest.Stats, gcstest.Status(502, "backendError", ""))
	s.Inject(1, gcstest.Listings, gcstest.Broken)
	s.Inject(1, gcstest.Deletes, gcstest.Lost)
	stat(t, src, "a.mp4")
	if err := lastError(t, src); err != nil {
		t.Error(err)
	}
	if err := lib.Delete(t.Context(), "a.mp4"); err != nil {
		t.Error(err)
	}
}

func TestNoBucket(t *testing.T) {
	s := gcstest.Start(t, "b")
	s.Put("b", "a.mp4", data(100, 1))
	obj := stat(t, source(t, s, gcs.Config{Bucket: "b"}), "a.mp4")
	for _, words := range []string{"google's", "others"} {
		if words == "others" {
			s.Inject(-1, func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/o/") }, gcstest.Status(404, "notFound", "Not Found"))
		}
		src, lib := source(t, s, gcs.Config{Bucket: "none"}), library(t, s, gcs.Config{Bucket: "none"})
		_, statErr := src.Stat(t.Context(), "a.mp4")
		_, openErr := src.Open(t.Context(), "a.mp4", "", 0, -1)
		_, pinnedErr := src.Open(t.Context(), "a.mp4", obj.Version, 0, -1)
		_, putErr := lib.Put(t.Context(), "aa/bb", strings.NewReader("x"), bucket.Want{Size: 1})
		_, copyErr := lib.CopyFrom(t.Context(), "aa/bb", src, obj, nil)
		for name, err := range map[string]error{
			"List": lastError(t, src), "Stat": statErr, "Open": openErr, "Open of a version": pinnedErr,
			"Put": putErr, "CopyFrom": copyErr, "Delete": lib.Delete(t.Context(), "aa/bb"),
		} {
			if !errors.Is(err, bucket.ErrNoBucket) {
				t.Errorf("in %s words, %s: %v", words, name, err)
			}
		}
	}
	// With the bucket there, the words of others mean the object.
	if _, err := source(t, s, gcs.Config{Bucket: "b"}).Stat(t.Context(), "none"); bucket.ClassOf(err) != bucket.ClassNotExist {
		t.Errorf("Stat of nothing: %v", err)
	}
}

func TestVersionedBucket(t *testing.T) {
	s := gcstest.Start(t)
	s.CreateVersionedBucket("b")
	s.Put("b", "a.mp4", []byte("old"))
	src := source(t, s, gcs.Config{Bucket: "b"})
	old := stat(t, src, "a.mp4")
	s.Put("b", "a.mp4", []byte("new"))
	if got, err := readAll(t, src, "a.mp4", old.Version, 0, -1); string(got) != "old" || err != nil {
		t.Errorf("the old version reads %q, %v", got, err)
	}
	if now := stat(t, src, "a.mp4"); now.Order <= old.Order || len(now.Order) != 20 {
		t.Errorf("order %q after %q", now.Order, old.Order)
	}
	for _, version := range []string{"x", "-1", "0", "007", "99999999999999999999"} {
		if _, err := readAll(t, src, "a.mp4", version, 0, -1); !errors.Is(err, bucket.ErrChanged) {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

func TestBrokenBodies(t *testing.T) {
	s := gcstest.Start(t, "b")
	body := data(300_000, 1)
	s.Put("b", "a.mp4", body)
	src := source(t, s, gcs.Config{Bucket: "b"})
	obj := stat(t, src, "a.mp4")

	s.Inject(1, gcstest.Reads, gcstest.Truncated(100_000))
	got, err := readAll(t, src, "a.mp4", obj.Version, 0, -1)
	if len(got) != 100_000 || bucket.ClassOf(err) != bucket.ClassBroken || s.Requests(gcstest.Reads) != 1 {
		t.Errorf("read %d bytes, %v, in %d requests", len(got), err, s.Requests(gcstest.Reads))
	}

	s.Inject(3, gcstest.Reads, gcstest.Truncated(50_000))
	r := bucket.NewReader(t.Context(), src, obj, quick)
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) {
		t.Errorf("Reader: %d bytes, %v", len(got), err)
	}

	s.Inject(1, gcstest.Reads, gcstest.Truncated(50_000))
	r = bucket.NewReader(t.Context(), src, obj, quick)
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 50_000)); err != nil {
		t.Fatal(err)
	}
	s.Put("b", "a.mp4", data(300_000, 2))
	if _, err := io.ReadAll(r); !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("Reader of an overwritten version: %v", err)
	}
}

func TestCorruptedBodies(t *testing.T) {
	s := gcstest.Start(t, "b")
	s.Put("b", "aa", data(300_000, 1))
	src, lib := source(t, s, gcs.Config{Bucket: "b"}), library(t, s, gcs.Config{Bucket: "b"})
	s.Inject(-1, gcstest.Reads, gcstest.Corrupted)
	if _, err := readAll(t, src, "aa", "", 0, -1); !errors.Is(err, bucket.ErrChecksum) {
		t.Errorf("Source.Open: %v", err)
	}
	r, err := lib.Open(t.Context(), "aa", 0, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); !errors.Is(err, bucket.ErrChecksum) {
		t.Errorf("Library.Open: %v", err)
	}
}

// TestWrongAnswers holds the driver against servers and proxies that do not do what was asked.
func TestWrongAnswers(t *testing.T) {
	s := gcstest.Start(t, "b")
	s.Put("b", "a.mp4", data(1000, 1))
	src := source(t, s, gcs.Config{Bucket: "b"})
	version := stat(t, src, "a.mp4").Version
	without := func(change func(*http.Request)) gcstest.Fault {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) { change(r); next.ServeHTTP(w, r) }
	}
	s.Inject(1, gcstest.Reads, without(func(r *http.Request) { r.Header.Del("Range") }))
	if _, err := readAll(t, src, "a.mp4", version, 10, 10); !errors.Is(err, bucket.ErrUnavailable) {
		t.Errorf("all instead of a part: %v", err)
	}
	s.Inject(1, gcstest.Reads, without(func(r *http.Request) { r.Header.Set("Range", "bytes=20-29") }))
	if _, err := readAll(t, src, "a.mp4", version, 10, 10); !errors.Is(err, bucket.ErrUnavailable) {
		t.Errorf("another part: %v", err)
	}
	s.Put("b", "a.mp4", data(1000, 2))
	s.Inject(1, gcstest.Reads, without(func(r *http.Request) { r.URL.RawQuery = "alt=media" }))
	if _, err := readAll(t, src, "a.mp4", version, 0, -1); !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("another version: %v", err)
	}
}

func TestGzip(t *testing.T) {
	s := gcstest.Start(t, "b", "l")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(bytes.Repeat([]byte("text "), 10_000))
	z.Close()
	s.PutObject(gcstest.Object{Bucket: "b", Name: "a.txt", Data: packed.Bytes(), ContentType: "text/plain", ContentEncoding: "gzip"})
	src, lib := source(t, s, gcs.Config{Bucket: "b"}), library(t, s, gcs.Config{Bucket: "l"})
	obj := stat(t, src, "a.txt")
	r := bucket.NewReader(t.Context(), src, obj, quick)
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, packed.Bytes()) {
		t.Errorf("read %d bytes of %d, %v", len(got), packed.Len(), err)
	}
	if got, err := readAll(t, src, "a.txt", obj.Version, 10, 20); err != nil || !bytes.Equal(got, packed.Bytes()[10:30]) {
		t.Errorf("read %x, %v", got, err)
	}
	if _, err := lib.CopyFrom(t.Context(), "aa/bb", src, obj, nil); err != nil {
		t.Fatal(err)
	}
	if got, encoding, _ := s.Get("l", "aa/bb"); !bytes.Equal(got, packed.Bytes()) || encoding != "" {
		t.Errorf("the copy has %d bytes, encoding %q", len(got), encoding)
	}
}

func TestListPages(t *testing.T) {
	s := gcstest.Start(t, "b")
	for _, name := range []string{"a", "b/", "b/1", "c\u00fc", "d"} {
		s.Put("b", name, nil)
	}
	src := source(t, s, gcs.Config{Bucket: "b"})
	list := func(opts bucket.ListOptions) (names []string) {
		for obj, err := range src.List(t.Context(), opts) {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, obj.Path)
		}
		return names
	}
	if got := list(bucket.ListOptions{Prefix: "b/", Delimiter: true}); !slices.Equal(got, []string{"b/", "b/1"}) {
		t.Errorf("a folder lists %q", got)
	}
	if got := list(bucket.ListOptions{StartAfter: "c\xc3\xbb\xff"}); !slices.Equal(got, []string{"cü", "d"}) {
		t.Errorf("after what is no name: %q", got)
	}
	if got := list(bucket.ListOptions{Prefix: "c\xc3"}); len(got) != 0 {
		t.Errorf("below what is no name: %q", got)
	}
}

func TestStalledCallsEnd(t *testing.T) {
	s := gcstest.Start(t, "b")
	src, lib := source(t, s, gcs.Config{Bucket: "b"}), library(t, s, gcs.Config{Bucket: "b"})
	calls := map[string]func(ctx context.Context) error{
		"Stat": func(ctx context.Context) error { _, err := src.Stat(ctx, "a"); return err },
		"Open": func(ctx context.Context) error { _, err := src.Open(ctx, "a", "", 0, -1); return err },
		"List": func(ctx context.Context) (err error) {
			for _, err = range src.List(ctx, bucket.ListOptions{}) {
			}
			return err
		},
		"Delete": func(ctx context.Context) error { return lib.Delete(ctx, "a") },
		"Put": func(ctx context.Context) error {
			_, err := lib.Put(ctx, "aa", bytes.NewReader(data(9<<20, 1)), bucket.Want{Size: 9 << 20})
			return err
		},
	}
	for name, call := range calls {
		ctx, cancel := context.WithCancel(t.Context())
		s.Heal()
		match := gcstest.Anything
		if name == "Put" {
			match = gcstest.Uploads
		}
		s.Inject(-1, match, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			cancel()
			gcstest.Stalled(w, r, next)
		})
		if err := call(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	s := gcstest.Start(t, "b")
	s.Put("b", "a.mp4", data(100, 1))
	key := s.Credentials(t)

	src := source(t, s, gcs.Config{Bucket: "b", CredentialsJSON: key})
	stat(t, src, "a.mp4")
	if _, err := readAll(t, src, "a.mp4", "", 0, -1); err != nil {
		t.Error(err)
	}
	if n := s.Requests(gcstest.Tokens); n != 1 {
		t.Errorf("asked for a token %d times", n)
	}
	if _, err := source(t, s, gcs.Config{Bucket: "b"}).Stat(t.Context(), "a.mp4"); !errors.Is(err, bucket.ErrCredentials) {
		t.Errorf("Stat without a token: %v", err)
	}

	s.Inject(-1, gcstest.Tokens, gcstest.Status(503, "backendError", "the inside of somebody's network"))
	_, err := source(t, s, gcs.Config{Bucket: "b", CredentialsJSON: key}).Stat(t.Context(), "a.mp4")
	if !errors.Is(err, bucket.ErrUnavailable) || strings.Contains(err.Error(), "inside") {
		t.Errorf("Stat without a token service: %v", err)
	}
	s.Heal()
	s.Revoke()
	fresh := source(t, s, gcs.Config{Bucket: "b", CredentialsJSON: key})
	for name, src := range map[string]*gcs.Source{"old token": src, "no new token": fresh} {
		if _, err := src.Stat(t.Context(), "a.mp4"); !errors.Is(err, bucket.ErrCredentials) {
			t.Errorf("%s: Stat: %v", name, err)
		}
		if _, err := src.Open(t.Context(), "a.mp4", "", 0, -1); !errors.Is(err, bucket.ErrCredentials) {
			t.Errorf("%s: Open: %v", name, err)
		}
		if err := lastError(t, src); !errors.Is(err, bucket.ErrCredentials) {
			t.Errorf("%s: List: %v", name, err)
		}
	}
}

func TestNew(t *testing.T) {
	s := gcstest.Start(t)
	key := s.Credentials(t)
	refused := []struct {
		name string
		cfg  gcs.Config
		want error
	}{
		{"no bucket", gcs.Config{}, bucket.ErrName},
		{"a path", gcs.Config{Bucket: "b/c"}, bucket.ErrName},
		{"no key", gcs.Config{Bucket: "b", CredentialsJSON: []byte("swordfish")}, bucket.ErrCredentials},
		{"half a key", gcs.Config{Bucket: "b", CredentialsJSON: key[:len(key)/2]}, bucket.ErrCredentials},
		{"an empty key", gcs.Config{Bucket: "b", CredentialsJSON: []byte(`{"type":"service_account"}`)}, bucket.ErrCredentials},
		{"another kind", gcs.Config{Bucket: "b", CredentialsJSON: []byte(
			`{"type":"external_account","credential_source":{"file":"/etc/passwd"}}`)}, bucket.ErrCredentials},
		{"an endpoint without a scheme", gcs.Config{Bucket: "b", Endpoint: "127.0.0.1:1"}, nil},
		{"an endpoint with a password", gcs.Config{Bucket: "b", Endpoint: "http://a:swordfish@127.0.0.1:1"}, nil},
		{"a payer without a name", gcs.Config{Bucket: "b", RequesterPays: true}, nil},
	}
	for _, tt := range refused {
		_, err := gcs.NewSource(t.Context(), tt.cfg)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || strings.Contains(err.Error(), "swordfish") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if _, err := gcs.NewLibrary(t.Context(), gcs.Config{Bucket: "b", Prefix: "a/../b"}); !errors.Is(err, bucket.ErrName) {
		t.Errorf("prefix: %v", err)
	}
	if n := s.Requests(gcstest.Anything); n != 0 {
		t.Errorf("%d requests were made", n)
	}

	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "none.json"))
	src, err := gcs.NewSource(t.Context(), gcs.Config{Bucket: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := src.Stat(t.Context(), "a"); !errors.Is(err, bucket.ErrCredentials) {
		t.Errorf("without default credentials: %v", err)
	}
}

func TestRequesterPays(t *testing.T) {
	s := gcstest.Start(t, "b")
	s.Put("b", "a.mp4", data(100, 1))
	src := source(t, s, gcs.Config{Bucket: "b", Project: "p1", RequesterPays: true})
	stat(t, src, "a.mp4")
	if _, err := readAll(t, src, "a.mp4", "", 0, -1); err != nil {
		t.Error(err)
	}
	if err := lastError(t, src); err != nil {
		t.Error(err)
	}
	if n := s.Requests(func(r *http.Request) bool { return r.URL.Query().Get("userProject") == "p1" }); n != 3 {
		t.Errorf("%d of 3 requests name who pays", n)
	}
}
