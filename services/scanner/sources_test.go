package scanner

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace/shared/bucket"
	"millrace/shared/bucket/dir"
	"millrace/shared/bucket/s3/s3test"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// folder is a Sources with one real folder.
type folder struct {
	mu     sync.Mutex // of record, while it is followed
	record store.Connector
	source *dir.Source
}

func newFolder(tb testing.TB) *folder {
	tb.Helper()
	path := tb.TempDir()
	src, err := dir.NewSource(path)
	must(tb, err)
	tb.Cleanup(func() { _ = src.Close() })
	return &folder{record: store.Connector{ID: testConnector, Provider: "dir", Path: path, Status: "active"}, source: src}
}

func (f *folder) Source(context.Context, string) (bucket.Source, store.Connector, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.source, f.record, nil
}

func (f *folder) Credentials(store.Connector) ([]byte, error) { return nil, nil }

func (f *folder) write(tb testing.TB, path string) {
	tb.Helper()
	full := filepath.Join(f.record.Path, path)
	must(tb, os.MkdirAll(filepath.Dir(full), 0o750))
	must(tb, os.WriteFile(full, []byte(path), 0o600))
}

// runAll runs the whole scanner over a real folder.
func (r *rig) runAll(f *folder) {
	r.tb.Helper()
	put(r.tb, r.bus, topology.Connectors, testConnector, f.record)
	r.scanner.sources = f
	r.start(r.scanner.Run)
	eventually(r.tb, "the scanner is ready", func() bool { return r.scanner.Ready() == nil })
}

func (r *rig) waiting(path string) func() bool {
	return func() bool {
		for _, a := range r.arrivals() {
			if a.Path == path {
				return true
			}
		}
		return false
	}
}

func TestFolderIsFollowed(t *testing.T) {
	r := newRig(t, "dir", testAutomation)
	f := newFolder(t)
	f.write(t, "in/before.mp4")
	r.runAll(f)
	eventually(t, "what was there before arrives", r.waiting("in/before.mp4"))
	eventually(t, "the folder is watched and no scan is left to come", func() bool {
		// Two rings share a subject: the first one, and the catch-up once the watch stands. The catch-up may come first and
		// make the other needless, or one may replace the other before it is served. So it was there when it is the last
		// one, or when there are three messages: both rings and the next timer. Whatever was served last began behind it.
		c, err := r.bus.Bind(t.Context(), r.bus.JetStream(), topology.ScannerDue)
		must(t, err)
		all := r.lastSeq(topology.Timers)
		for m, err := range r.bus.Last(t.Context(), topology.Timers, r.bus.Subject("due", "scan", "*")) {
			must(t, err)
			var ring event.Timer
			must(t, json.Unmarshal(m.Data, &ring))
			if ring.Epoch != scanCatchUp && all < 3 || m.Sequence > c.CachedInfo().AckFloor.Stream {
				return false
			}
		}
		return all > 0
	})

	f.write(t, "in/new.mp4")
	f.write(t, "in/new.txt")
	f.write(t, "in/deep/er.mp4")
	eventually(t, "a new file arrives", r.waiting("in/new.mp4"))
	eventually(t, "a file in a new folder arrives", r.waiting("in/deep/er.mp4"))
	// A file in a new folder can be seen while it is written; its close-write then brings the version that stays.
	eventually(t, "every arrival is of the version that is there", func() bool {
		for _, a := range r.arrivals() {
			o, err := f.source.Stat(t.Context(), a.Path)
			must(t, err)
			if a.Object != objectOf(o) {
				return false
			}
		}
		return true
	})
	for _, a := range r.arrivals() {
		if a.Path == "in/new.mp4" && a.Found != event.ByNotification {
			t.Errorf("%s was found by %s", a.Path, a.Found)
		}
	}

	must(t, os.Remove(filepath.Join(f.record.Path, "in", "new.mp4")))
	eventually(t, "a removed file is withdrawn", func() bool { return !r.waiting("in/new.mp4")() })
}

// A connector is followed while at least one of its automations is enabled, and once for all of them.
func TestFollowersFollowTheConfiguration(t *testing.T) {
	r := newRig(t, "dir")
	f := newFolder(t)
	put(t, r.bus, topology.Connectors, testConnector, f.record)
	r.follow.sources = f
	r.start(r.follow.lead)
	gauge := r.scanner.metrics.following.WithLabelValues("dir")

	second := testAutomation
	second.ID, second.Index = "auto_2", "idx_2"
	for i, step := range []struct {
		automation store.Automation
		enabled    bool
		want       float64
	}{{testAutomation, true, 1}, {second, true, 1}, {testAutomation, false, 1}, {second, false, 0}, {second, true, 1}} {
		step.automation.Enabled = step.enabled
		put(t, r.bus, topology.Automations, step.automation.ID, step.automation)
		eventually(t, fmt.Sprintf("step %d", i), func() bool {
			return r.config.isEnabled(step.automation.ID) == step.enabled && testutil.ToFloat64(gauge) == step.want
		})
	}
	elsewhere := newFolder(t)
	f.mu.Lock()
	f.record.Path = elsewhere.record.Path
	f.mu.Unlock()
	put(t, r.bus, topology.Connectors, testConnector, f.record)
	eventually(t, "the new folder is watched", func() bool {
		elsewhere.write(t, "in/a.mp4")
		return len(read[event.Notification](r, topology.Notifications, "notification", testConnector)) > 0
	})
}

// Pub/Sub is acknowledged when what it said is stored, and only then.
func TestSubscriptionIsFollowed(t *testing.T) {
	pubsub := pstest.NewServer()
	t.Cleanup(func() { _ = pubsub.Close() })
	const topic, subscription = "projects/p/topics/t", "projects/p/subscriptions/s"
	_, err := pubsub.GServer.CreateTopic(t.Context(), &pubsubpb.Topic{Name: topic})
	must(t, err)
	_, err = pubsub.GServer.CreateSubscription(t.Context(), &pubsubpb.Subscription{Name: subscription, Topic: topic, AckDeadlineSeconds: 10})
	must(t, err)

	r := newRig(t, "gcs", testAutomation)
	record := r.store.record
	record.Subscription = subscription
	put(t, r.bus, topology.Connectors, testConnector, record)
	r.follow.pubsub = pubsub.Addr
	const n = 50
	ids := make([]string, n)
	for i := range ids {
		ids[i] = pubsub.Publish(topic, []byte(pushedObject), map[string]string{
			"eventType": "OBJECT_FINALIZE", "bucketId": "drop", "objectId": fmt.Sprintf("in/%d.mp4", i), "objectGeneration": "1709280764000000",
		})
	}
	r.start(r.follow.lead)
	r.runNotifications()
	eventually(t, "all arrive", func() bool { return len(r.arrivals()) == n })
	for _, id := range ids {
		eventually(t, "message "+id+" is acknowledged", func() bool { return pubsub.Message(id).Acks > 0 })
	}
	want := event.Object{
		Path: "in/7.mp4", Version: "1709280764000000", Order: "00001709280764000000", Size: 73400320, CRC32C: "AAAAAA==",
		ModTime: time.Date(2026, 3, 1, 8, 12, 44, 1e6, time.UTC),
	}
	for _, a := range r.arrivals() {
		if a.Path == want.Path && a.Object != want {
			t.Errorf("arrived as %+v, want %+v", a.Object, want)
		}
	}
}

// A queue is emptied when what it said is stored, and what is nothing of ours goes to the dead letters.
func TestQueueIsFollowed(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretAccessKey)
	queue := s3test.NewQueue(t)
	r := newRig(t, "s3", testAutomation)
	record := r.store.record
	record.Subscription, record.Bucket = queue.URL, "drop"
	put(t, r.bus, topology.Connectors, testConnector, record)
	const n = 50
	for i := range n {
		queue.Send(fmt.Sprintf(`{"Records":[{"eventName":"ObjectCreated:Put","eventTime":"2026-03-01T08:12:44Z","s3":{
			"bucket":{"name":"drop"},"object":{"key":"in/%d+%%C3%%BC.mp4","size":9,"eTag":"d41d8cd98f00b204e9800998ecf8427e"}}}]}`, i))
	}
	queue.Send(`{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"drop"}`)
	queue.Send(`{"Records":[{"eventName":"ObjectCreated:Put"}]}`)
	r.start(r.follow.lead)
	r.runNotifications()
	eventually(t, "all arrive", func() bool { return len(r.arrivals()) == n })
	eventually(t, "the queue is empty", func() bool { return queue.Len() == 0 })
	eventually(t, "what is malformed is dead", func() bool { return len(r.dead()) == 1 })
	for _, a := range r.arrivals() {
		if a.Path == "in/7 ü.mp4" && a.Version == "d41d8cd98f00b204e9800998ecf8427e-9" {
			return
		}
	}
	t.Errorf("arrived: %+v", r.arrivals())
}

func TestTwoScannersShareTheWork(t *testing.T) {
	r := newRig(t, "dir", testAutomation)
	f := newFolder(t)
	r.runAll(f)
	r.start(r.scanner.Run) // the same again: metrics are shared, all else is its own
	eventually(t, "the first scan", func() bool { return r.scan(testAutomation.ID).Scans > 0 })
	const n = 300
	for i := range n {
		f.write(t, fmt.Sprintf("in/%d.mp4", i))
	}
	eventually(t, "all files arrive", func() bool { return len(r.arrivals()) == n })
	r.handledAll()
	if got := len(r.arrivals()); got != n {
		t.Errorf("%d arrivals of %d files", got, n)
	}
}
