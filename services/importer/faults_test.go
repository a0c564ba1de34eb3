package importer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/connector"
	"millrace/shared/event"
	"millrace/shared/media"
	"millrace/shared/secret"
	"millrace/shared/service/servicetest"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// cloud is a rig whose source is a bucket that wants credentials.
type cloud struct {
	*rig
	storage    *gcstest.Server
	connectors *store.Register[store.Connector]
	opener     *connector.Opener
	hashes     map[string]string // of the objects, by path
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	c := &cloud{rig: newRig(t), storage: gcstest.Start(t, "b"), hashes: map[string]string{}}
	keeper, err := secret.Load(filepath.Join(t.TempDir(), "secrets.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	if c.connectors, err = store.Open[store.Connector](t.Context(), c.env.Bus, topology.Connectors); err != nil {
		t.Fatal(err)
	}
	sealed, err := keeper.Seal(c.storage.Credentials(t), "conn/credentials")
	if err != nil {
		t.Fatal(err)
	}
	record := store.Connector{
		ID: "conn", Provider: "gcs", Bucket: "b", Project: "p", EndpointURL: c.storage.URL, Credentials: sealed, Status: store.ConnectorActive,
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

// put uploads n pictures, each unlike the others, and returns their names.
func (c *cloud) put(n int) (paths []string) {
	for i := range n {
		p := fmt.Sprintf("%03d.jpg", i)
		c.upload(p, append(sample(c.t, "photo.jpg"), byte(i), byte(i>>8)))
		paths = append(paths, p)
	}
	return paths
}

func (c *cloud) upload(path string, data []byte) {
	c.storage.Put("b", path, data)
	sum := sha256.Sum256(data)
	c.hashes[path] = hex.EncodeToString(sum[:])
}

// begin runs an importer whose circuit does not wait long.
func (c *cloud) begin(cfg Config) {
	c.t.Helper()
	e := c.env
	e.Metrics = prometheus.NewRegistry()
	im, err := New(cfg, e, c.opener, c.library, media.New(media.Config{}))
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
	c := newCloud(t)
	paths := c.put(40)
	var reads atomic.Int64
	c.storage.Inject(-1, gcstest.Reads, gcstest.Before(func() {
		if reads.Add(1) == 10 {
			c.storage.Revoke()
		}
	}))
	c.begin(Config{Workers: 4})
	job := c.plan("auto", event.NewOnly, paths...)
	c.connector("the connector has failed", func(rec store.Connector) bool {
		return rec.Status == store.ConnectorFailed && rec.LastTestResult == "failed" && strings.Contains(rec.LastTestError, "credentials refused")
	})
	c.storage.Restore()
	rec, report := c.ended(job)
	if rec.Progress.Imported != len(paths) {
		t.Errorf("progress %+v", rec.Progress)
	}
	for path, f := range report {
		if f.Attempts != 1 || f.Error != "" {
			t.Errorf("%s: %d attempts, error %q", path, f.Attempts, f.Error)
		}
	}
	if n := reads.Load(); n > 48 {
		t.Errorf("%d requests for 40 objects", n)
	}
	c.connector("the connector works", func(rec store.Connector) bool {
		return rec.Status == store.ConnectorActive && rec.LastTestError == "" && rec.LastTestResult == "success"
	})
	c.checkBytes()
}

// Whatever the storage does to requests, no wrong byte is recorded, no worker is lost to it, and it is not asked again
// and again.
func TestFaultyStorage(t *testing.T) {
	t.Parallel()
	const objects, faults = 60, 6
	for name, fault := range map[string]gcstest.Fault{
		"hanging": gcstest.Stalled, "trickling": gcstest.Trickled(1, time.Second), "truncating": gcstest.Truncated(100), "corrupting": gcstest.Corrupted,
		"throttling": gcstest.Busy(429, time.Second), "unavailable": gcstest.Status(503, "backendError", ""), "breaking": gcstest.Broken,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t)
			paths := c.put(objects)
			// Large enough to be read by several requests at a time: a second box of zeros.
			const more = 9 << 20
			big := append(sample(t, "video.mp4"), make([]byte, more)...)
			copy(big[len(big)-more:], []byte{0x00, 0x90, 0x00, 0x00, 'f', 'r', 'e', 'e'})
			c.upload("big.mp4", big)
			c.storage.Inject(faults, gcstest.Reads, fault)
			c.begin(Config{Workers: 4, StallTimeout: time.Second})
			rec, report := c.ended(c.plan("auto", event.NewOnly, append(paths, "big.mp4")...))
			if rec.Progress.Imported != objects+1 {
				t.Errorf("progress %+v", rec.Progress)
				for path, f := range report {
					if f.State != event.Imported {
						t.Errorf("%s: %s %s", path, f.State, f.Error)
					}
				}
			}
			const partsOfBig = 8 // header, index, parts of 4 MiB
			if n := c.storage.Requests(gcstest.Reads); n > objects*12/10+partsOfBig {
				t.Errorf("%d requests for %d objects and a large one", n, objects)
			}
			c.checkBytes()
		})
	}
}
