package importer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/bucket"
	"millrace/shared/bucket/azure/azuretest"
	"millrace/shared/bucket/faulttest"
	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/bucket/s3/s3test"
	"millrace/shared/connector"
	"millrace/shared/event"
	"millrace/shared/media"
	"millrace/shared/secret"
	"millrace/shared/service/servicetest"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// backend is a bucket of one provider, behind a layer of faults.
type backend struct {
	layer interface {
		Inject(n int, match faulttest.Match, do faulttest.Fault)
		Heal()
		Requests(match faulttest.Match) int
	}
	put            func(name string, data []byte)
	erase          func(name string)
	reads          faulttest.Match
	busy, down     faulttest.Fault
	revoke, regain func()

	record      store.Connector // how to get there
	credentials any             // sealed as JSON, if they are not bytes
}

var backends = map[string]func(*testing.T) backend{
	"gcs": func(t *testing.T) backend {
		s := gcstest.Start(t, "b")
		return backend{
			layer: s, put: func(name string, data []byte) { s.Put("b", name, data) }, reads: gcstest.Reads,
			erase: func(name string) { s.Delete("b", name) },
			busy:  gcstest.Busy(429, time.Second), down: gcstest.Status(503, "backendError", ""),
			revoke: s.Revoke, regain: s.Restore,
			record: store.Connector{Bucket: "b", Project: "p", EndpointURL: s.URL}, credentials: s.Credentials(t),
		}
	},
	"s3": func(t *testing.T) backend {
		s := s3test.Gateway(t)
		s.CreateBucket(t, "bucket")
		return backend{
			layer: s, put: func(name string, data []byte) { s.Put(t, "bucket", name, data) }, reads: s3test.Reads,
			erase: func(name string) { s.Delete(t, "bucket", name) },
			busy:  s3test.Busy(503, time.Second), down: s3test.Status(500, "InternalError", ""),
			revoke: func() {
				s.Inject(-1, faulttest.Anything, s3test.Status(403, "InvalidAccessKeyId", "It does not exist."))
			}, regain: s.Heal,
			record:      store.Connector{Bucket: "bucket", EndpointURL: s.URL},
			credentials: store.S3Credentials{AccessKeyID: s3test.AccessKeyID, SecretAccessKey: s3test.SecretAccessKey},
		}
	},
	"azure": func(t *testing.T) backend {
		s := azuretest.Start(t, "bucket")
		return backend{
			layer: s, put: func(name string, data []byte) { s.Put("bucket", name, data) }, reads: azuretest.Reads,
			erase: func(name string) { s.Delete("bucket", name) },
			busy:  azuretest.Busy(503, "ServerBusy", time.Second), down: azuretest.Status(500, "InternalError"),
			revoke: func() { s.Inject(-1, faulttest.Anything, azuretest.Status(403, "AuthenticationFailed")) }, regain: s.Heal,
			record:      store.Connector{StorageAccount: s.Account, Container: "bucket", EndpointURL: s.URL},
			credentials: store.AzureCredentials{AccountKey: s.Key},
		}
	},
}

// cloud is a rig whose source is a bucket that wants credentials.
type cloud struct {
	*rig
	backend
	connectors *store.Register[store.Connector]
	opener     *connector.Opener
	hashes     map[string]string // of the objects, by path
}

func newCloud(t *testing.T, provider string) *cloud {
	t.Helper()
	c := &cloud{rig: newRig(t), backend: backends[provider](t), hashes: map[string]string{}}
	keeper, err := secret.Load(filepath.Join(t.TempDir(), "secrets.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	if c.connectors, err = store.Open[store.Connector](t.Context(), c.env.Bus, topology.Connectors); err != nil {
		t.Fatal(err)
	}
	credentials, ok := c.credentials.([]byte)
	if !ok {
		if credentials, err = json.Marshal(c.credentials); err != nil {
			t.Fatal(err)
		}
	}
	record := c.record
	record.ID, record.Provider, record.Status = "conn", provider, store.ConnectorActive
	if record.Credentials, err = keeper.Seal(credentials, "conn/credentials"); err != nil {
		t.Fatal(err)
	}
	if err := c.connectors.Create(t.Context(), "conn", record); err != nil {
		t.Fatal(err)
	}
	if c.opener, err = connector.New(connector.Config{Keeper: keeper, AllowEndpoints: []string{"127.0.0.1"}}, c.connectors); err != nil {
		t.Fatal(err)
	}
	if c.source.Source, err = c.opener.Open(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	return c
}

// upload uploads n pictures to a folder, each unlike the others, and returns their names.
func (c *cloud) upload(folder string, n int) (paths []string) {
	for i := range n {
		paths = append(paths, c.uploaded(fmt.Sprintf("%s/%03d.jpg", folder, i), sample(c.t, "photo.jpg")))
	}
	return paths
}

// uploaded uploads a file under a name, which makes it unlike the others.
func (c *cloud) uploaded(path string, data []byte) string {
	data = append(slices.Clip(data), path...)
	c.put(path, data)
	sum := sha256.Sum256(data)
	c.hashes[path] = hex.EncodeToString(sum[:])
	return path
}

// begin runs an importer whose circuit does not wait long.
func (c *cloud) begin(cfg Config, library bucket.Library) {
	c.t.Helper()
	e := c.env
	e.Metrics = prometheus.NewRegistry()
	im, err := New(cfg, e, c.opener, library, media.New(media.Config{}))
	if err != nil {
		c.t.Fatal(err)
	}
	im.circuits.first = 500 * time.Millisecond
	servicetest.Run(c.t, im)
}

// checkBytes holds every record and everything in the library against what was uploaded.
func (c *cloud) checkBytes() {
	c.t.Helper()
	c.checkLibrary()
	for _, m := range c.media() {
		if m.State != event.MediumImported || m.SHA256 != c.hashes[m.Path] {
			c.t.Errorf("%s is %s with hash %s instead of %s", m.Path, m.State, m.SHA256, c.hashes[m.Path])
		}
	}
}

func (c *cloud) connector(what string, good func(store.Connector) bool) {
	c.t.Helper()
	servicetest.Eventually(c.t, what, func() error {
		rec, _, err := c.connectors.Get(c.t.Context(), "conn")
		if err == nil && !good(rec) {
			err = fmt.Errorf("%s: %q", rec.Status, rec.LastTestError)
		}
		return err
	})
}

// Credentials that are revoked in the middle of a job show on the connector, with the reason; no task pays for it, and
// when they are good again the job goes on by itself.
func TestRevokedCredentials(t *testing.T) {
	t.Parallel()
	for provider := range backends {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t, provider)
			paths := c.upload("cams", 20)
			var reads atomic.Int64
			c.layer.Inject(-1, c.reads, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if reads.Add(1) == 8 {
					c.layer.Heal()
					c.revoke()
				}
				next.ServeHTTP(w, r)
			})
			c.begin(Config{Workers: 4}, c.library)
			job := c.plan("auto", event.NewOnly, paths...)
			c.connector("the connector has failed", func(rec store.Connector) bool {
				return rec.Status == store.ConnectorFailed && rec.LastTestResult == "failed" && strings.Contains(rec.LastTestError, "credentials refused")
			})
			c.regain()
			rec, report := c.ended(job)
			if rec.Progress.Imported != len(paths) {
				t.Errorf("progress %+v", rec.Progress)
			}
			for path, f := range report {
				if f.Attempts != 1 || f.Error != "" {
					t.Errorf("%s: %d attempts, error %q", path, f.Attempts, f.Error)
				}
			}
			if n := c.layer.Requests(c.reads); n > 28 {
				t.Errorf("%d requests for %d objects", n, len(paths))
			}
			c.connector("the connector works", func(rec store.Connector) bool {
				return rec.Status == store.ConnectorActive && rec.LastTestError == "" && rec.LastTestResult == "success"
			})
			c.checkBytes()
		})
	}
}

// Whatever the storage does to requests, no wrong byte is recorded, no worker is lost to it, and it is not asked again
// and again.
func TestFaultyStorage(t *testing.T) {
	t.Parallel()
	const objects, faults = 20, 2
	for provider := range backends {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t, provider)
			c.begin(Config{Workers: 4, StallTimeout: 2 * time.Second}, c.library)
			// meet imports what lies at paths, through faults, and says how many requests that took.
			meet := func(what string, paths []string) int {
				before := c.layer.Requests(c.reads)
				rec, report := c.ended(c.plan("auto", event.NewOnly, paths...))
				if rec.Progress.Imported != len(paths) {
					t.Errorf("%s: progress %+v", what, rec.Progress)
					for path, f := range report {
						if f.State != event.Imported {
							t.Errorf("%s: %s %s", path, f.State, f.Error)
						}
					}
				}
				return c.layer.Requests(c.reads) - before
			}
			for what, fault := range map[string]faulttest.Fault{
				"hanging": faulttest.Stalled, "trickling": faulttest.Trickled(1, time.Second), "truncating": faulttest.Truncated(100),
				"corrupting": faulttest.Corrupted, "throttling": c.busy, "unavailable": c.down, "breaking": faulttest.Broken,
			} {
				c.layer.Inject(faults, c.reads, fault)
				if n := meet(what, c.upload(what, objects)); n > objects*12/10 {
					t.Errorf("%s: %d requests for %d objects", what, n, objects)
				}
			}

			// A wrong byte before the connection breaks: read on, to no avail, and then read again.
			c.layer.Inject(1, c.reads, faulttest.Truncated(len(sample(t, "photo.jpg"))).After(faulttest.Corrupted))
			if n := meet("both", c.upload("both", objects)); n > objects*12/10 {
				t.Errorf("%d requests for %d objects, of which one comes wrong and in two pieces", n, objects)
			}

			// Large enough to be read by several requests at a time: a second box of zeros. One of these has a wrong byte.
			const more = 9 << 20
			big := append(sample(t, "video.mp4"), make([]byte, more)...)
			copy(big[len(big)-more:], []byte{0x00, 0x90, 0x00, 0x00, 'f', 'r', 'e', 'e'})
			c.layer.Inject(1, func(r *http.Request) bool {
				part := cmp.Or(r.Header.Get("X-Ms-Range"), r.Header.Get("Range"))
				return c.reads(r) && strings.HasPrefix(part, fmt.Sprintf("bytes=%d-", bucket.AheadPart))
			}, faulttest.Corrupted)
			const requests = 5 // header, index, three parts
			if n := meet("large", []string{c.uploaded("big.mp4", big)}); n > 2*requests {
				t.Errorf("%d requests for a large object with a wrong byte", n)
			}
			c.checkBytes()
		})
	}
}

// after does something once an object is stored and before that is on record.
type after struct {
	bucket.Library
	do func(bytes int64)
}

func (a after) Put(ctx context.Context, key string, r io.Reader, want bucket.Want) (bucket.Stored, error) {
	stored, err := a.Library.Put(ctx, key, r, want)
	a.do(stored.Size)
	return stored, err
}

// I1, I4 and I5: an object that is overwritten or deleted at any step of its import is imported as the version that its task
// names, or is superseded, and then the version that took its place is announced, or is gone.
func TestChangedAtEachStep(t *testing.T) {
	t.Parallel()
	const size = 1<<20 + 4096 // too much to be read at once: there is one request for the header, and one for all of it
	before := faulttest.Before
	midst := func(change func()) faulttest.Fault {
		return faulttest.Truncated(size / 2).After(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(w, r)
			change()
		})
	}
	for provider := range backends {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t, provider)
			var paths []string
			var waiting []func()
			stored := map[int64]func(){} // by the number of bytes
			want, changed := map[string]string{}, new(sync.Map)
			for _, how := range []string{"overwritten", "deleted"} {
				for _, step := range []struct {
					name string
					read int // what happens then, if it is a request
					do   func(change func()) faulttest.Fault
				}{
					{"waiting", 0, nil}, {"asked for", 1, before}, {"probed", 2, before}, {"half read", 2, midst}, {"stored", 0, nil},
				} {
					path := how + " when " + step.name + ".mp4"
					data := append(sample(t, "video.mp4"), 0, 0, 0, 0, 'f', 'r', 'e', 'e') // one more box, to the end
					data = append(data, make([]byte, size)...)
					paths = append(paths, c.uploaded(path, data))
					change := func() {
						if how == "deleted" {
							c.erase(path)
						} else {
							c.put(path, slices.Concat(sample(t, "video.webm"), []byte(path)))
						}
						changed.Store(path, true)
					}
					want[path] = "skipped superseded"
					if how == "deleted" {
						want[path] = "skipped object_gone"
					}
					switch step.name {
					case "waiting":
						waiting = append(waiting, change)
					case "stored":
						want[path], stored[int64(len(data)+len(path))] = "imported ", change
					default:
						n := 0
						c.layer.Inject(1, func(r *http.Request) bool {
							if !c.reads(r) || !strings.HasSuffix(r.URL.Path, "/"+path) {
								return false
							}
							n++
							return n == step.read
						}, step.do(change))
					}
				}
			}
			job := c.plan("auto", event.NewOnly, paths...)
			for _, change := range waiting {
				change()
			}
			c.begin(Config{Workers: 4}, after{c.library, func(bytes int64) {
				if change := stored[bytes]; change != nil {
					change()
				}
			}})
			_, report := c.ended(job)
			announced := map[string]string{}
			for m, err := range c.env.Bus.Last(t.Context(), topology.Arrivals, c.env.Bus.Subject("arrival", "auto", "*")) {
				var a event.Arrival
				if err != nil || json.Unmarshal(m.Data, &a) != nil {
					t.Fatal(err)
				}
				announced[a.Path] = a.Version
			}
			for _, path := range paths {
				if _, ok := changed.Load(path); !ok {
					t.Errorf("%s: it was not", path)
				}
				f := report[path]
				if got := string(f.State) + " " + string(f.Reason); got != want[path] {
					t.Errorf("%s: %s (%s), want %s", path, got, f.Error, want[path])
				}
				if f.Reason != event.Superseded {
					continue
				}
				live, err := c.source.Stat(t.Context(), path)
				if err != nil || announced[path] != live.Version {
					t.Errorf("%s: announced is version %q; there is %q, %v", path, announced[path], live.Version, err)
				}
			}
			c.checkBytes()
		})
	}
}
