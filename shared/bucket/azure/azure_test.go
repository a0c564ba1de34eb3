package azure_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bucket/azure"
	"millrace/shared/bucket/azure/azuretest"
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

func stat(t *testing.T, src bucket.Source, path string) bucket.Object {
	t.Helper()
	obj, err := src.Stat(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return obj
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
	s := azuretest.Start(t, "cams")
	s.Put("cams", "a.mp4", data(100, 1))
	src := source(t, s, azure.Config{Container: "cams"})
	tests := []struct {
		name     string
		fault    gcstest.Fault
		want     bucket.Class
		after    time.Duration
		attempts int
		says     string
	}{
		{"no role", azuretest.Status(403, "AuthorizationPermissionMismatch"), bucket.ClassPermission, 0, 1, "Storage Blob Data Reader"},
		{"firewall", azuretest.Status(403, "AuthorizationFailure"), bucket.ClassPermission, 0, 1, "firewall"},
		{"wrong key", azuretest.Status(403, "AuthenticationFailed"), bucket.ClassCredentials, 0, 1, "has expired"},
		{"clock", azuretest.AtTime(time.Now().Add(time.Hour), 403, "AuthenticationFailed"), bucket.ClassCredentials, 0, 1, "clock of this machine"},
		{"token expired", azuretest.Status(401, "InvalidAuthenticationInfo"), bucket.ClassCredentials, 0, 1, ""},
		{"no container", azuretest.Status(404, "ContainerNotFound"), bucket.ClassNoBucket, 0, 1, ""},
		{"archived", azuretest.Status(409, "BlobArchived"), bucket.ClassArchived, 0, 1, "Hot"},
		{"on its way", azuretest.Status(409, "BlobBeingRehydrated"), bucket.ClassArchived, 0, 1, ""},
		{"key of another", azuretest.Status(409, "BlobUsesCustomerSpecifiedEncryption"), bucket.ClassUnreadable, 0, 1, ""},
		{"too fast", azuretest.Status(503, "ServerBusy"), bucket.ClassThrottled, 0, 1, ""},
		{"too fast, with a time", azuretest.Busy(503, "ServerBusy", 7*time.Second), bucket.ClassThrottled, 7 * time.Second, 1, ""},
		{"too fast, in HTTP's words", azuretest.Busy(429, "", 9*time.Second), bucket.ClassThrottled, 9 * time.Second, 1, ""},
		{"failing", azuretest.Status(500, "InternalError"), bucket.ClassUnavailable, 0, 3, ""},
		{"down", azuretest.Status(503, ""), bucket.ClassUnavailable, 0, 3, ""},
		{"cut off", gcstest.Broken, bucket.ClassBroken, 0, 3, ""},
	}
	for _, tt := range tests {
		s.Heal()
		s.Inject(-1, azuretest.Anything, tt.fault)
		calls := map[string]struct {
			match    gcstest.Match
			attempts int
			do       func() error
		}{
			"stat": {azuretest.Stats, tt.attempts, func() error { _, err := src.Stat(t.Context(), "a.mp4"); return err }},
			"list": {azuretest.Listings, tt.attempts, func() error { return lastError(t, src) }},
			"open": {azuretest.Reads, 1, func() error { _, err := src.Open(t.Context(), "a.mp4", "", 0, -1); return err }},
		}
		for name, call := range calls {
			before := s.Requests(call.match)
			err := call.do()
			if class := bucket.ClassOf(err); class != tt.want || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s, %s: %s, %v; want %s", tt.name, name, class, err, tt.want)
			}
			if after := bucket.RetryAfter(err); after != tt.after {
				t.Errorf("%s, %s: retry after %s, want %s", tt.name, name, after, tt.after)
			}
			n := s.Requests(call.match) - before
			again := tt.want == bucket.ClassBroken || tt.want == bucket.ClassNoBucket // of the connection pool; a second look
			if n < call.attempts || n > call.attempts && !again {
				t.Errorf("%s, %s: %d attempts, want %d", tt.name, name, n, call.attempts)
			}
		}
	}
	s.Heal()
	s.Inject(2, azuretest.Stats, azuretest.Status(502, ""))
	s.Inject(1, azuretest.Listings, gcstest.Broken)
	stat(t, src, "a.mp4")
	if err := lastError(t, src); err != nil {
		t.Error(err)
	}
}

func TestNoContainer(t *testing.T) {
	s := azuretest.Start(t, "cams")
	src, lib := source(t, s, azure.Config{Container: "none"}), library(t, s, azure.Config{Container: "none"})
	_, statErr := src.Stat(t.Context(), "a.mp4")
	_, openErr := src.Open(t.Context(), "a.mp4", "", 0, -1)
	_, putErr := lib.Put(t.Context(), "aa/bb", strings.NewReader("x"), bucket.Want{Size: 1})
	for name, err := range map[string]error{
		"List": lastError(t, src), "Stat": statErr, "Open": openErr, "Put": putErr, "Delete": lib.Delete(t.Context(), "aa/bb"),
	} {
		if !errors.Is(err, bucket.ErrNoBucket) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := source(t, s, azure.Config{Container: "cams"}).Stat(t.Context(), "none"); bucket.ClassOf(err) != bucket.ClassNotExist {
		t.Errorf("Stat of nothing in a container: %v", err)
	}
	// An account that does not exist is a name that does not resolve.
	gone, err := azure.NewSource(azure.Config{Account: "gone", Container: "cams", Credentials: azure.Credentials{AccountKey: s.Key}, Transport: unresolved{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gone.Stat(t.Context(), "a.mp4"); bucket.ClassOf(err) != bucket.ClassUnavailable || !strings.Contains(err.Error(), "gone.blob.core.windows.net") {
		t.Errorf("no such account: %v", err)
	}
}

// unresolved is a network without names.
type unresolved struct{}

func (unresolved) RoundTrip(r *http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: r.URL.Hostname(), IsNotFound: true}}
}

func TestCredentials(t *testing.T) {
	for name, c := range map[string]azure.Credentials{
		"half a principal": {TenantID: azuretest.Tenant, ClientID: azuretest.Client},
		"a bad key":        {AccountKey: "secret key"},
		"a bad signature":  {SAS: "sp=r"},
		"two kinds":        {SAS: "sig=x", AccountKey: "eA=="},
	} {
		_, err := azure.NewSource(azure.Config{Account: "a", Container: "cams", Credentials: c})
		if !errors.Is(err, bucket.ErrCredentials) || strings.Contains(err.Error(), "secret key") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := azure.NewSource(azure.Config{Account: "a", Container: "cams", Endpoint: "http://127.0.0.1:1/a"}); err == nil {
		t.Error("a token would go over plain http")
	}
	for _, name := range []string{"", "a/b", "a?b", "a b"} {
		if _, err := azure.NewSource(azure.Config{Account: name, Container: "cams"}); !errors.Is(err, bucket.ErrName) {
			t.Errorf("account %q: %v", name, err)
		}
	}

	s := azuretest.Start(t, "cams")
	s.Put("cams", "a.mp4", []byte("x"))
	stat(t, source(t, s, azure.Config{Container: "cams", Credentials: azure.Credentials{SAS: "?" + s.SAS()}}), "a.mp4")
	s.Inject(-1, azuretest.Anything, gcstest.Broken)
	src := source(t, s, azure.Config{Container: "cams", Credentials: azure.Credentials{SAS: s.SAS()}})
	_, err := src.Stat(t.Context(), "a.mp4")
	if err == nil || strings.Contains(err.Error(), "sig=") || strings.Contains(cmp.Or(lastError(t, src), err).Error(), "sig=") {
		t.Errorf("the error gives away the signature: %v", err)
	}
}

func TestServicePrincipal(t *testing.T) {
	s := azuretest.StartTLS(t, "cams", "shelf")
	s.Put("cams", "a.mp4", data(3_000_000, 1))
	s.Put("cams", "small.mp4", data(1000, 1))
	cfg := azure.Config{Container: "cams", Transport: s.Client().Transport, Credentials: azure.Credentials{
		TenantID: azuretest.Tenant, ClientID: azuretest.Client, ClientSecret: azuretest.ClientSecret, Authority: s.Login(),
	}}
	src := source(t, s, cfg)
	obj := stat(t, src, "a.mp4")
	if err := lastError(t, src); err != nil {
		t.Error(err)
	}
	if n := s.Requests(azuretest.Logins); n != 1 {
		t.Errorf("%d logins", n)
	}
	cfg.Container = "shelf"
	lib := library(t, s, cfg)
	for key, obj := range map[string]bucket.Object{"aa/bb": obj, "aa/cc": stat(t, src, "small.mp4")} { // in blocks, and whole
		if _, err := lib.CopyFrom(t.Context(), key, src, obj, nil); err != nil {
			t.Errorf("copy of %s: %v", obj.Path, err)
		}
		if got, _ := s.Get("shelf", key); int64(len(got)) != obj.Size {
			t.Errorf("copied %d bytes of %d", len(got), obj.Size)
		}
	}
	s.Revoke()
	if _, err := src.Stat(t.Context(), "a.mp4"); !errors.Is(err, bucket.ErrCredentials) {
		t.Errorf("revoked: %v", err)
	}
	fresh := source(t, s, cfg)
	_, err := fresh.Stat(t.Context(), "a.mp4")
	if !errors.Is(err, bucket.ErrCredentials) || !strings.Contains(err.Error(), "AADSTS7000215") ||
		strings.Contains(err.Error(), "Trace") || strings.Contains(err.Error(), azuretest.ClientSecret) {
		t.Errorf("a wrong secret: %v", err)
	}
}

func TestManagedIdentity(t *testing.T) {
	s := azuretest.StartTLS(t, "cams")
	s.Put("cams", "a.mp4", data(1000, 1))
	for _, name := range []string{"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE"} {
		t.Setenv(name, "") // to be put back
		_ = os.Unsetenv(name)
	}
	t.Setenv("IDENTITY_ENDPOINT", s.Identity())
	t.Setenv("IDENTITY_HEADER", azuretest.ClientSecret)
	machine := func() *azure.Source {
		src, err := azure.NewSource(azure.Config{Account: s.Account, Endpoint: s.URL, Container: "cams", Transport: s.Client().Transport})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = src.Close() })
		return src
	}
	stat(t, machine(), "a.mp4")
	s.Revoke()
	if _, err := machine().Stat(t.Context(), "a.mp4"); !errors.Is(err, bucket.ErrCredentials) {
		t.Errorf("a machine that lost its identity: %v", err)
	}
}

func TestReadChecksums(t *testing.T) {
	s := azuretest.Start(t, "cams")
	body := data(300_000, 1)
	s.Put("cams", "a.mp4", body)
	src := source(t, s, azure.Config{Container: "cams"})
	obj := stat(t, src, "a.mp4")
	for name, at := range map[string]struct{ offset, length int64 }{"all": {0, -1}, "a part": {1000, 5000}} {
		s.Heal()
		s.Inject(1, azuretest.Reads, gcstest.Corrupted)
		r, err := src.Open(t.Context(), "a.mp4", obj.Version, at.offset, at.length)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, bucket.ErrChecksum) {
			t.Errorf("corrupted, %s: %v", name, err)
		}
		r.Close()
	}
	s.Inject(1, azuretest.Reads, gcstest.Truncated(100_000))
	r := bucket.NewReader(t.Context(), src, obj, quick)
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) {
		t.Errorf("over a broken connection: %d bytes, %v", len(got), err)
	}

	// What came before the connection broke is held against the checksum as well, whether of the blob or of a part of it.
	large := data(9<<20, 2)
	s.Put("cams", "large.mp4", large)
	for _, tt := range []struct {
		name   string
		budget *bucket.Budget
		cut    gcstest.Fault // behind the middle of an answer
	}{
		{"in one stream", nil, gcstest.Truncated(6 << 20)},
		{"in several", bucket.NewBudget(4), gcstest.Truncated(3 << 20)},
	} {
		for _, want := range []error{nil, bucket.ErrChecksum} {
			fault := tt.cut
			if want != nil {
				fault = tt.cut.After(gcstest.Corrupted)
			}
			s.Inject(1, azuretest.Reads, fault)
			r := bucket.NewReading(t.Context(), src, stat(t, src, "large.mp4"), quick, tt.budget)
			got, err := io.ReadAll(r)
			r.Close()
			if !errors.Is(err, want) || want == nil && !bytes.Equal(got, large) {
				t.Errorf("%s, over a broken connection: %d bytes, %v; want %v", tt.name, len(got), err, want)
			}
		}
	}
}

// TestHierarchicalNamespace lists folder by folder, as an account does that has them.
func TestHierarchicalNamespace(t *testing.T) {
	s := azuretest.Start(t, "cams")
	names := []string{"cams-old/x.mp4", "cams.txt", "cams/a.mp4", "cams/b/c.mp4", "cams0", "a"}
	for _, name := range names {
		s.Put("cams", name, []byte("x"))
	}
	slices.Sort(names)
	marked := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		body := strings.ReplaceAll(rec.Body.String(), "<BlobType>", "<ResourceType>file</ResourceType><BlobType>")
		_, _ = io.WriteString(w, body)
	}
	s.Inject(-1, azuretest.Listings, marked)
	src := source(t, s, azure.Config{Container: "cams"})
	for range 2 { // it finds out, then it knows
		for _, after := range []string{"", "a", "cams", "cams/a.mp4", "cams/b/c.mp4", "cams0"} {
			var got []string
			for obj, err := range src.List(t.Context(), bucket.ListOptions{StartAfter: after}) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, obj.Path)
			}
			wanted := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name <= after })
			if !slices.Equal(got, wanted) {
				t.Errorf("after %q: %q, want %q", after, got, wanted)
			}
		}
	}
}

// A listing in another order than that of bytes fails once, and is walked by folder from then on.
func TestListingOutOfOrder(t *testing.T) {
	s := azuretest.Start(t, "cams")
	for _, name := range []string{"a", "b", "c/d"} {
		s.Put("cams", name, []byte("x"))
	}
	s.Inject(1, azuretest.Listings, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		swap := strings.NewReplacer("<Name>a</Name>", "<Name>b</Name>", "<Name>b</Name>", "<Name>a</Name>")
		_, _ = swap.WriteString(w, rec.Body.String())
	})
	src := source(t, s, azure.Config{Container: "cams"})
	if err := lastError(t, src); !errors.Is(err, bucket.ErrUnavailable) {
		t.Errorf("out of order: %v", err)
	}
	if err := lastError(t, src); err != nil {
		t.Errorf("and then: %v", err)
	}
}

func TestPutFaults(t *testing.T) {
	s := azuretest.Start(t, "shelf")
	lib := library(t, s, azure.Config{Container: "shelf"})
	for name, tt := range map[string]struct {
		size   int
		writes gcstest.Match
	}{"small": {1000, azuretest.Uploads}, "large": {2_500_000, azuretest.Commits}} {
		body := bytes.Repeat([]byte("swordfish"), tt.size/9)
		s.Heal()
		s.Inject(1, tt.writes, gcstest.Lost)
		if _, err := lib.Put(t.Context(), "aa/bb", bytes.NewReader(body), want(body)); err != nil {
			t.Errorf("%s, an answer was lost: %v", name, err)
		}
		if got, _ := s.Get("shelf", "aa/bb"); !bytes.Equal(got, body) {
			t.Errorf("%s: stored %d other bytes", name, len(got))
		}
		s.Delete("shelf", "aa/bb")

		changed := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			sent, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(bytes.Replace(sent, []byte("swordfish"), []byte("SWORDFISH"), 1)))
			next.ServeHTTP(w, r)
		}
		s.Inject(-1, azuretest.Uploads, changed)
		s.Inject(-1, azuretest.Blocks, changed)
		if _, err := lib.Put(t.Context(), "aa/bb", bytes.NewReader(body), want(body)); !errors.Is(err, bucket.ErrChecksum) {
			t.Errorf("%s, corrupted on its way: %v", name, err)
		}
		s.Heal()
		s.Inject(-1, azuretest.Uploads, azuretest.Busy(503, "ServerBusy", 5*time.Second))
		s.Inject(-1, azuretest.Blocks, azuretest.Busy(503, "ServerBusy", 5*time.Second))
		_, err := lib.Put(t.Context(), "aa/bb", bytes.NewReader(body), want(body))
		if !errors.Is(err, bucket.ErrThrottled) || bucket.RetryAfter(err) != 5*time.Second {
			t.Errorf("%s, throttled: %v", name, err)
		}
		if _, ok := s.Get("shelf", "aa/bb"); ok {
			t.Errorf("%s: it was stored", name)
		}
	}
}

// TestPutOvertaken has another writer commit the same key first, which throws our blocks away.
func TestPutOvertaken(t *testing.T) {
	s := azuretest.Start(t, "shelf")
	lib := library(t, s, azure.Config{Container: "shelf"})
	ours, theirs := data(2_500_000, 1), data(2_500_000, 2)
	for name, body := range map[string][]byte{"the same": ours, "something else": theirs} {
		s.Inject(1, azuretest.Commits, gcstest.Before(func() {
			if _, err := lib.Put(context.Background(), "aa/bb", bytes.NewReader(body), want(body)); err != nil {
				t.Errorf("%s: the other writer: %v", name, err)
			}
		}))
		_, err := lib.Put(t.Context(), "aa/bb", bytes.NewReader(ours), want(ours))
		if same := name == "the same"; (err == nil) != same || bucket.Permanent(err) {
			t.Errorf("%s: %v", name, err)
		}
		if got, _ := s.Get("shelf", "aa/bb"); !bytes.Equal(got, body) {
			t.Errorf("%s: the other's bytes were replaced", name)
		}
	}
}

func TestLibraryPrefix(t *testing.T) {
	s := azuretest.Start(t, "shelf")
	s.Put("shelf", "media2/x", nil)
	s.Put("shelf", "media/not a key", nil)
	lib := library(t, s, azure.Config{Container: "shelf", Prefix: "/media/"})
	stored, err := lib.Put(t.Context(), "aa/bb", strings.NewReader("x"), bucket.Want{Size: 1, ContentType: "video/mp4"})
	if err != nil || stored.URI != "az://"+s.Account+"/shelf/media/aa/bb" {
		t.Errorf("%+v, %v", stored, err)
	}
	for obj, err := range lib.List(t.Context()) {
		if err != nil || obj.Path != "aa/bb" || obj.ContentType != "video/mp4" || obj.CRC32C != sum([]byte("x")) {
			t.Errorf("lists %+v, %v", obj, err)
		}
	}
}

func TestCopyFrom(t *testing.T) {
	s, other := azuretest.Start(t, "cams", "shelf"), azuretest.Start(t, "cams")
	large, small := data(2_500_000, 1), data(1000, 2)
	lib := library(t, s, azure.Config{Container: "shelf"})
	for name, from := range map[string]*azuretest.Server{"near": s, "of another account": other} {
		from.Put("cams", "large", large)
		from.Put("cams", "small", small)
		src := source(t, from, azure.Config{Container: "cams"})
		for path, body := range map[string][]byte{"large": large, "small": small} {
			moved := int64(0)
			stored, err := lib.CopyFrom(t.Context(), "aa/bb", src, stat(t, src, path), &bucket.Copying{Moved: func(n int64) { moved += n }})
			if err != nil || stored.Size != int64(len(body)) || moved != stored.Size {
				t.Errorf("%s %s: %+v, %d moved, %v", path, name, stored, moved, err)
			}
			if got, _ := s.Get("shelf", "aa/bb"); !bytes.Equal(got, body) {
				t.Errorf("%s %s: copied %d other bytes", path, name, len(got))
			}
		}
	}

	// Overwritten, deleted and refused at the last moment.
	src := source(t, s, azure.Config{Container: "cams"})
	for _, path := range []string{"large", "small"} {
		obj := stat(t, src, path)
		s.Inject(1, azuretest.Copies, gcstest.Before(func() { s.Put("cams", path, data(int(obj.Size), 3)) }))
		if _, err := lib.CopyFrom(t.Context(), "aa/cc", src, obj, nil); !errors.Is(err, bucket.ErrChanged) {
			t.Errorf("%s, overwritten meanwhile: %v", path, err)
		}
		obj = stat(t, src, path)
		s.Inject(1, azuretest.Copies, azuretest.Status(403, "CannotVerifyCopySource"))
		if _, err := lib.CopyFrom(t.Context(), "aa/cc", src, obj, nil); bucket.ClassOf(err) != bucket.ClassUnsupported {
			t.Errorf("%s, not let in: %v", path, err)
		}
		s.Inject(1, azuretest.Copies, gcstest.Before(func() { s.Delete("cams", path) }))
		if _, err := lib.CopyFrom(t.Context(), "aa/cc", src, obj, nil); !errors.Is(err, bucket.ErrNotExist) {
			t.Errorf("%s, deleted meanwhile: %v", path, err)
		}
	}
	if _, ok := s.Get("shelf", "aa/cc"); ok {
		t.Error("something was stored")
	}
}
