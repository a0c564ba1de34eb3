package s3_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"millrace/shared/bucket"
	"millrace/shared/bucket/faulttest"
	"millrace/shared/bucket/s3"
	"millrace/shared/bucket/s3/s3test"
)

func data(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func stat(t testing.TB, src bucket.Source, path string) bucket.Object {
	t.Helper()
	obj, err := src.Stat(t.Context(), path)
	if err != nil {
		t.Fatalf("Stat %q: %v", path, err)
	}
	return obj
}

// listed describes an object as a listing does.
func listed(t testing.TB, src bucket.Source, path string) (obj bucket.Object) {
	t.Helper()
	for o, err := range src.List(t.Context(), bucket.ListOptions{Prefix: path}) {
		if err != nil {
			t.Fatalf("List %q: %v", path, err)
		}
		obj = o
	}
	return obj
}

func readAll(t testing.TB, src bucket.Source, path, version string) ([]byte, error) {
	t.Helper()
	r, err := src.Open(t.Context(), path, version, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func lastError(t testing.TB, src bucket.Source) (err error) {
	t.Helper()
	for _, err = range src.List(t.Context(), bucket.ListOptions{}) {
	}
	return err
}

// quick has a bucket.Reader not wait.
var quick = bucket.ReaderOptions{Backoff: func(int) time.Duration { return 0 }}

func TestErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		fault    faulttest.Fault
		want     error
		says     string
		after    time.Duration
		attempts int // of a listing
	}{
		{"no right", s3test.Status(403, "AccessDenied", "Access Denied"), bucket.ErrPermission, "s3:", 0, 1},
		{"key unknown", s3test.Status(403, "InvalidAccessKeyId", "..."), bucket.ErrCredentials, "", 0, 1},
		{"wrong secret", s3test.Status(403, "SignatureDoesNotMatch", "..."), bucket.ErrCredentials, "", 0, 1},
		{"session over", s3test.Status(400, "ExpiredToken", "...", "X-Amz-Bucket-Region", s3test.Region), bucket.ErrCredentials, "", 0, 1},
		{"clock", s3test.Status(403, "RequestTimeTooSkewed", "..."), bucket.ErrUnavailable, "clock", 0, 3},
		{"region", s3test.Status(301, "PermanentRedirect", "...", "X-Amz-Bucket-Region", "eu-west-1"), bucket.ErrNoBucket, "it is in eu-west-1", 0, 1},
		{"region of a signature", s3test.Status(400, "AuthorizationHeaderMalformed", "...", "X-Amz-Bucket-Region", "eu-west-1"), bucket.ErrNoBucket, "it is in eu-west-1", 0, 1},
		{"too fast", s3test.Status(503, "SlowDown", "..."), bucket.ErrThrottled, "", 0, 1},
		{"too fast, with a time", s3test.Busy(503, 7*time.Second), bucket.ErrThrottled, "", 7 * time.Second, 1},
		{"too many", s3test.Busy(429, 9*time.Second), bucket.ErrThrottled, "", 9 * time.Second, 1},
		{"down", s3test.Status(503, "ServiceUnavailable", "..."), bucket.ErrUnavailable, "", 0, 3},
		{"failing", s3test.Status(500, "InternalError", "..."), bucket.ErrUnavailable, "", 0, 3},
		{"key of KMS", s3test.Status(403, "AccessDenied", "User u is not authorized to perform: kms:Decrypt on resource r"), bucket.ErrUnreadable, "KMS", 0, 1},
		{"key switched off", s3test.Status(400, "KMS.DisabledException", "..."), bucket.ErrUnreadable, "", 0, 1},
		{"key of its owner", s3test.Status(400, "InvalidRequest", "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object."), bucket.ErrUnreadable, "SSE-C", 0, 1},
	}
	s := s3test.Fake(t, "drops")
	s.Put(t, "drops", "a.mp4", data(100, 1))
	for _, tt := range tests {
		src := source(t, s, "drops")
		stat(t, src, "a.mp4") // which also looks at the versioning
		s.Heal()
		s.Inject(-1, faulttest.Anything, tt.fault)
		before := s.Requests(s3test.Listings)
		listErr := lastError(t, src)
		if n := s.Requests(s3test.Listings) - before; n != tt.attempts {
			t.Errorf("%s: listed %d times, want %d", tt.name, n, tt.attempts)
		}
		_, openErr := src.Open(t.Context(), "a.mp4", "", 0, -1)
		_, statErr := src.Stat(t.Context(), "a.mp4")
		for op, err := range map[string]error{"list": listErr, "open": openErr, "stat": statErr} {
			if op == "stat" && tt.attempts == 3 || op == "stat" && errors.Is(tt.want, bucket.ErrThrottled) {
				// An answer to HEAD says no more than its status.
				if c := bucket.ClassOf(err); c != bucket.ClassUnavailable && c != bucket.ClassThrottled && tt.name != "clock" {
					t.Errorf("%s: stat: %v", tt.name, err)
				}
				continue
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %s: %v, want %v that says %q", tt.name, op, err, tt.want, tt.says)
			}
			if after := bucket.RetryAfter(err); after != tt.after {
				t.Errorf("%s: %s: retry after %s, want %s", tt.name, op, after, tt.after)
			}
		}
		s.Heal()
	}
}

// An archived object can be described, and says what to do when it is read.
func TestArchived(t *testing.T) {
	t.Parallel()
	s := s3test.Fake(t, "drops")
	s.Put(t, "drops", "a.mp4", data(100, 1))
	src := source(t, s, "drops")
	s.Inject(-1, s3test.Reads, s3test.Status(403, "InvalidObjectState", "The operation is not valid for the object's storage class"))
	obj := stat(t, src, "a.mp4")
	_, err := src.Open(t.Context(), "a.mp4", obj.Version, 0, -1)
	if bucket.ClassOf(err) != bucket.ClassArchived || !bucket.Permanent(err) || !strings.Contains(err.Error(), "restore it") {
		t.Errorf("Open: %v", err)
	}
}

func TestNoBucket(t *testing.T) {
	t.Parallel()
	s := s3test.Gateway(t)
	s.CreateBucket(t, "bucket")
	s.Put(t, "bucket", "a.mp4", data(100, 1))
	obj := stat(t, source(t, s, "bucket"), "a.mp4")
	src, lib := source(t, s, "nothing"), library(t, s, s3.Config{Bucket: "nothing"})
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
			t.Errorf("%s: %v", name, err)
		}
	}
	wrong, err := s3.NewSource(t.Context(), s3.Config{Bucket: "bucket", Endpoint: s.URL, AccessKeyID: s3test.AccessKeyID, SecretAccessKey: "wrong"})
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	_, statErr = wrong.Stat(t.Context(), "a.mp4")
	for name, err := range map[string]error{"List": lastError(t, wrong), "Stat": statErr} {
		if !errors.Is(err, bucket.ErrCredentials) {
			t.Errorf("%s with a wrong secret: %v", name, err)
		}
	}
}

// A bucket that keeps old versions: they have ids, can be read after an overwrite, and a listing shows the live ones.
func TestVersionedBucket(t *testing.T) {
	t.Parallel()
	s := s3test.Gateway(t)
	s.CreateBucket(t, "bucket")
	s.Put(t, "bucket", "before.mp4", []byte("before"))
	early := stat(t, source(t, s, "bucket"), "before.mp4")
	s.KeepVersions(t, "bucket")
	src := source(t, s, "bucket")
	id := s.Put(t, "bucket", "a.mp4", []byte("old"))
	old := stat(t, src, "a.mp4")
	s.Put(t, "bucket", "a.mp4", []byte("new"))
	s.Put(t, "bucket", "gone.mp4", []byte("gone"))
	gone := stat(t, src, "gone.mp4")
	s.Delete(t, "bucket", "gone.mp4")
	if id == "" || old.Version != s3.Version(id, "", 3) {
		t.Errorf("version %q, of id %q", old.Version, id)
	}
	for version, want := range map[string]string{old.Version: "old", stat(t, src, "a.mp4").Version: "new"} {
		if got, err := readAll(t, src, "a.mp4", version); err != nil || string(got) != want {
			t.Errorf("version %s reads %q, %v; want %q", version, got, err, want)
		}
	}
	if got, err := readAll(t, src, "gone.mp4", gone.Version); err != nil || string(got) != "gone" {
		t.Errorf("a version whose object was deleted reads %q, %v", got, err)
	}
	if _, err := src.Stat(t.Context(), "gone.mp4"); !errors.Is(err, bucket.ErrNotExist) {
		t.Errorf("Stat of what was deleted: %v", err)
	}
	if now := stat(t, src, "before.mp4"); now.Version != early.Version {
		t.Errorf("what was there before is now %q and was %q", now.Version, early.Version)
	}
	listed := map[string]string{}
	for obj, err := range src.List(t.Context(), bucket.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		listed[obj.Path] = obj.Version
	}
	if len(listed) != 2 || listed["a.mp4"] != stat(t, src, "a.mp4").Version || listed["before.mp4"] != early.Version {
		t.Errorf("lists %v", listed)
	}
	for _, version := range []string{"x", "-", "id:", "etag-x", s3.Version("unknown", "", 0)} {
		if _, err := readAll(t, src, "a.mp4", version); !errors.Is(err, bucket.ErrChanged) && bucket.ClassOf(err) != bucket.ClassOther {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

func TestBrokenBodies(t *testing.T) {
	t.Parallel()
	s := s3test.Gateway(t)
	s.CreateBucket(t, "bucket")
	body := data(300_000, 1)
	s.Put(t, "bucket", "a.mp4", body)
	src := source(t, s, "bucket")
	obj := stat(t, src, "a.mp4")

	s.Inject(1, s3test.Reads, faulttest.Truncated(100_000))
	if got, err := readAll(t, src, "a.mp4", obj.Version); len(got) != 100_000 || bucket.ClassOf(err) != bucket.ClassBroken {
		t.Errorf("cut off: %d bytes, %v", len(got), err)
	}
	s.Inject(2, s3test.Reads, faulttest.Truncated(50_000))
	s.Inject(1, s3test.Reads, faulttest.Broken)
	s.Inject(1, s3test.Reads, faulttest.Trickled(20_000, time.Millisecond))
	r := bucket.NewReader(t.Context(), src, obj, quick)
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) {
		t.Errorf("Reader: %d bytes, %v", len(got), err)
	}
	s.Heal()
	s.Inject(-1, s3test.Reads, faulttest.Corrupted)
	if _, err := readAll(t, src, "a.mp4", obj.Version); !errors.Is(err, bucket.ErrChecksum) {
		t.Errorf("corrupted: %v", err)
	}
	s.Heal()
	s.Inject(1, s3test.Reads, faulttest.Truncated(200_000).After(faulttest.Corrupted))
	r = bucket.NewReader(t.Context(), src, listed(t, src, "a.mp4"), quick)
	defer r.Close()
	if got, err := io.ReadAll(r); len(got) != len(body) || !errors.Is(err, bucket.ErrChecksum) {
		t.Errorf("corrupted before the connection broke: %d bytes, %v", len(got), err)
	}
	s.Inject(1, s3test.Reads, faulttest.Truncated(50_000))
	r = bucket.NewReader(t.Context(), src, obj, quick)
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 50_000)); err != nil {
		t.Fatal(err)
	}
	s.Put(t, "bucket", "a.mp4", data(300_000, 2))
	if _, err := io.ReadAll(r); !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("Reader of an overwritten version: %v", err)
	}
	s.Inject(-1, s3test.Reads, faulttest.Stalled)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := src.Open(ctx, "a.mp4", "", 0, -1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open that nobody answers: %v", err)
	}
}

// A large object survives what happens to its parts, or leaves nothing behind.
func TestUploadsInParts(t *testing.T) {
	t.Parallel()
	s := s3test.Gateway(t)
	s.CreateBucket(t, "bucket")
	lib := library(t, s, s3.Config{Bucket: "bucket"})
	body := data(18<<20, 1)
	put := func() (bucket.Stored, error) {
		return lib.Put(t.Context(), "aa/bb", bytes.NewReader(body), bucket.Want{Size: int64(len(body))})
	}
	s.Inject(1, s3test.Parts, faulttest.Lost)
	s.Inject(1, s3test.Parts, s3test.Status(500, "InternalError", "..."))
	s.Inject(1, s3test.Completions, faulttest.Lost)
	stored, err := put()
	if err != nil {
		t.Fatalf("Put through faults: %v", err)
	}
	if got, ok := s.Get(t, "bucket", "aa/bb"); !ok || !bytes.Equal(got, body) {
		t.Errorf("%d bytes are stored", len(got))
	}
	if obj, err := lib.Stat(t.Context(), "aa/bb"); err != nil || obj.CRC32C != stored.CRC32C {
		t.Errorf("the checksum of the whole is %q, want %q (%v)", obj.CRC32C, stored.CRC32C, err)
	}
	s.Delete(t, "bucket", "aa/bb")

	s.Inject(1, s3test.Parts, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		sent, _ := io.ReadAll(r.Body)
		sent[1000] ^= 1
		r.Body = io.NopCloser(bytes.NewReader(sent))
		next.ServeHTTP(w, r)
	})
	if _, err := put(); !errors.Is(err, bucket.ErrChecksum) {
		t.Errorf("Put of a part that was damaged on its way: %v", err)
	}
	s.Inject(-1, s3test.Parts, s3test.Status(403, "AccessDenied", "..."))
	if _, err := put(); !errors.Is(err, bucket.ErrPermission) || !strings.Contains(err.Error(), "s3:PutObject") {
		t.Errorf("Put without the right to: %v", err)
	}
	s.Heal()
	ctx, cancel := context.WithCancel(t.Context())
	s.Inject(1, s3test.Parts, faulttest.Before(cancel))
	if _, err := lib.Put(ctx, "aa/bb", bytes.NewReader(body), bucket.Want{Size: -1}); !errors.Is(err, context.Canceled) {
		t.Errorf("Put that was cancelled: %v", err)
	}
	if _, ok := s.Get(t, "bucket", "aa/bb"); ok {
		t.Error("a Put that failed has stored something")
	}
	if n := s.Uploads(t, "bucket"); n != 0 {
		t.Errorf("%d uploads are left behind", n)
	}
}

// What is too large for one request is copied in parts, at the version asked for.
func TestCopyInParts(t *testing.T) {
	t.Parallel()
	s := s3test.Gateway(t)
	s.CreateBucket(t, "bucket")
	src, lib := source(t, s, "bucket"), library(t, s, s3.Config{Bucket: "bucket", Prefix: "media"})
	body := data(11<<20, 1)
	s.PutSummed(t, "bucket", "a b#%+ü.mp4", body, types.ChecksumAlgorithmSha256)
	obj := stat(t, src, "a b#%+ü.mp4")
	hash := bucket.NewHash()
	hash.Write(body)
	moved := int64(0)
	stored, err := lib.CopyFrom(t.Context(), "aa/bb", src, obj, &bucket.Copying{Moved: func(n int64) { moved += n }})
	if err != nil || obj.CRC32C != "" || stored.CRC32C != hash.CRC32C() || moved != obj.Size {
		t.Fatalf("%+v, %d bytes moved, %v; of %+v", stored, moved, err, obj)
	}
	if got, _ := s.Get(t, "bucket", "media/aa/bb"); !bytes.Equal(got, body) {
		t.Errorf("%d bytes are there", len(got))
	}
	s.Inject(1, s3test.Parts, faulttest.Before(func() { s.Put(t, "bucket", "a b#%+ü.mp4", data(11<<20, 2)) }))
	if _, err := lib.CopyFrom(t.Context(), "aa/cc", src, obj, nil); !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("a copy of what was overwritten meanwhile: %v", err)
	}
	// The server gives each part the checksum of the whole, if that is of the kind that is asked for.
	s.Put(t, "bucket", "summed.mp4", body)
	if _, err := lib.CopyFrom(t.Context(), "aa/dd", src, stat(t, src, "summed.mp4"), nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a copy that the server adds up wrongly: %v", err)
	}
	for _, key := range []string{"media/aa/cc", "media/aa/dd"} {
		if _, ok := s.Get(t, "bucket", key); ok {
			t.Errorf("%s was stored", key)
		}
	}
	if n := s.Uploads(t, "bucket"); n != 0 {
		t.Errorf("%d uploads are left behind", n)
	}
}

// Whatever checksum a server has of an object is one that its bytes are held against.
func TestChecksums(t *testing.T) {
	t.Parallel()
	s := s3test.Gateway(t)
	s.CreateBucket(t, "bucket")
	src := source(t, s, "bucket")
	body := data(10_000, 1)
	for _, sum := range []types.ChecksumAlgorithm{
		types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmCrc32c, types.ChecksumAlgorithmCrc64nvme, types.ChecksumAlgorithmSha1,
		types.ChecksumAlgorithmSha256,
	} {
		s.Heal()
		s.PutSummed(t, "bucket", "a.mp4", body, sum)
		if got, err := readAll(t, src, "a.mp4", ""); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s: %d bytes, %v", sum, len(got), err)
		}
		s.Inject(-1, s3test.Reads, faulttest.Corrupted)
		if _, err := readAll(t, src, "a.mp4", ""); !errors.Is(err, bucket.ErrChecksum) {
			t.Errorf("%s, corrupted: %v", sum, err)
		}
	}
}

// What is read in several parts is held against a checksum all the same.
func TestLargeChecksum(t *testing.T) {
	t.Parallel()
	s := s3test.Gateway(t)
	s.CreateBucket(t, "bucket")
	src := source(t, s, "bucket")
	body := data(9<<20, 1)
	s.PutSummed(t, "bucket", "a.mp4", body, types.ChecksumAlgorithmCrc64nvme)
	read := func() error {
		r := bucket.NewReading(t.Context(), src, stat(t, src, "a.mp4"), bucket.ReaderOptions{}, bucket.NewBudget(4))
		defer r.Close()
		if _, ok := r.(*bucket.Ahead); !ok {
			t.Fatalf("it is read by a %T", r)
		}
		got, err := io.ReadAll(r)
		if err == nil && !bytes.Equal(got, body) {
			t.Errorf("%d bytes, which are others", len(got))
		}
		return err
	}
	if err := read(); err != nil {
		t.Error(err)
	}
	s.Inject(1, s3test.Reads, faulttest.Corrupted)
	if err := read(); !errors.Is(err, bucket.ErrChecksum) {
		t.Errorf("corrupted: %v", err)
	}
}

func TestNew(t *testing.T) {
	noMachine(t)
	for name, cfg := range map[string]s3.Config{
		"no bucket":          {Region: "r"},
		"a path":             {Bucket: "b/c", Region: "r"},
		"no region":          {Bucket: "b"},
		"half of the keys":   {Bucket: "b", Region: "r", AccessKeyID: "swordfish"},
		"no scheme":          {Bucket: "b", Endpoint: "127.0.0.1:1"},
		"endpoint with user": {Bucket: "b", Endpoint: "http://a:swordfish@127.0.0.1:1"},
	} {
		if _, err := s3.NewSource(t.Context(), cfg); err == nil || strings.Contains(err.Error(), "swordfish") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s3.NewLibrary(t.Context(), s3.Config{Bucket: "b", Region: "r", Prefix: "a/../b"}); !errors.Is(err, bucket.ErrName) {
		t.Errorf("prefix: %v", err)
	}
	src, err := s3.NewSource(t.Context(), s3.Config{Bucket: "b", Region: "eu-central-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := src.Stat(t.Context(), "a"); !errors.Is(err, bucket.ErrCredentials) {
		t.Errorf("without credentials of the machine: %v", err)
	}
}

// A machine gets the credentials of its role where it runs: in ECS and EKS with Pod Identity from an address that its environment
// names, in EKS with a web identity for a token from STS. They are short-lived, and asked for again.
func TestRoleOfTheMachine(t *testing.T) {
	s := s3test.Fake(t) // the other server knows no sessions
	s.CreateBucket(t, "drops")
	s.Put(t, "drops", "a.mp4", []byte("abc"))
	s.Inject(-1, func(r *http.Request) bool {
		return r.Header.Get("X-Amz-Security-Token") != "session" || !strings.Contains(r.Header.Get("Authorization"), "Credential=role/")
	}, s3test.Status(http.StatusForbidden, "AccessDenied", ""))
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("web identity"), 0o600); err != nil {
		t.Fatal(err)
	}
	const arn = "arn:aws:iam::1:role/reader"
	over := time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)
	for name, role := range map[string]struct {
		environ map[string]string // but for the address, which is what is empty here
		asks    func(r *http.Request) bool
		answer  string
	}{
		"container": {
			map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "machine"},
			func(r *http.Request) bool { return r.Header.Get("Authorization") == "machine" },
			`{"AccessKeyId":"role","SecretAccessKey":"secret","Token":"session","Expiration":"` + over + `"}`,
		},
		"web identity": {
			map[string]string{"AWS_ENDPOINT_URL_STS": "", "AWS_WEB_IDENTITY_TOKEN_FILE": token, "AWS_ROLE_ARN": arn, "AWS_REGION": s3test.Region},
			func(r *http.Request) bool {
				return r.FormValue("WebIdentityToken") == "web identity" && r.FormValue("RoleArn") == arn
			},
			`<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>role</AccessKeyId>` +
				`<SecretAccessKey>secret</SecretAccessKey><SessionToken>session</SessionToken><Expiration>` + over + `</Expiration>` +
				`</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			var refused atomic.Int32
			machine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				if status := int(refused.Load()); status != 0 {
					http.Error(w, "", status)
					return
				}
				if !role.asks(r) {
					t.Errorf("%s %s %v", r.Method, r.URL, r.Form)
				}
				_, _ = io.WriteString(w, role.answer)
			}))
			t.Cleanup(machine.Close)
			noMachine(t)
			for variable, value := range role.environ {
				t.Setenv(variable, cmp.Or(value, machine.URL))
			}
			src, err := s3.NewSource(t.Context(), s3.Config{Bucket: "drops", Endpoint: s.URL})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			for range 2 {
				if _, err := src.Stat(t.Context(), "a.mp4"); err != nil {
					t.Error(err)
				}
			}
			if n := asked.Load(); n < 2 {
				t.Errorf("asked %d times for credentials that are over each time", n)
			}
			for status, want := range map[int]error{http.StatusForbidden: bucket.ErrCredentials, http.StatusServiceUnavailable: bucket.ErrUnavailable} {
				refused.Store(int32(status))
				if _, err := src.Stat(t.Context(), "a.mp4"); !errors.Is(err, want) {
					t.Errorf("a machine whose role is answered with %d: %v", status, err)
				}
			}
		})
	}
}

// noMachine takes away what credentials the machine of the test has.
func noMachine(t *testing.T) {
	for _, variable := range []string{"AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} {
		t.Setenv(variable, "")
	}
	t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func TestPull(t *testing.T) {
	t.Parallel()
	q := s3test.NewQueue(t)
	q.Hidden = time.Millisecond
	for _, body := range []string{"one", "two", "three"} {
		q.Send(body)
	}
	cfg := s3.PullConfig{Queue: q.URL, AccessKeyID: s3test.AccessKeyID, SecretAccessKey: "x"}
	ctx, cancel := context.WithCancel(t.Context())
	bodies := make(chan string, 100)
	ended := make(chan error, 1)
	failed := make(chan struct{}, 1)
	failed <- struct{}{}
	go func() {
		ended <- s3.Pull(ctx, cfg, func(_ context.Context, body []byte) error {
			select {
			case <-failed:
				return errors.New("not yet")
			default:
			}
			bodies <- string(body)
			return nil
		})
	}()
	seen := map[string]bool{}
	for len(seen) < 3 {
		seen[<-bodies] = true
	}
	for q.Len() > 0 {
		select {
		case <-bodies: // one may come twice
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Pull ended with %v", err)
	}

	refuse := func(context.Context, []byte) error { return nil }
	unknown := cfg
	unknown.AccessKeyID = "nobody"
	if err := s3.Pull(t.Context(), unknown, refuse); !errors.Is(err, bucket.ErrCredentials) {
		t.Errorf("Pull by nobody: %v", err)
	}
	cfg.Queue = strings.TrimSuffix(cfg.Queue, "drops") + "none"
	if err := s3.Pull(t.Context(), cfg, refuse); !errors.Is(err, s3.ErrNoQueue) {
		t.Errorf("Pull from nothing: %v", err)
	}
}
