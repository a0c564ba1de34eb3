package scanner

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// patience is how long a test waits for a fact.
const patience = 20 * time.Second

// newBus starts a broker in the process, applies the topology and returns a bus.
func newBus(tb testing.TB) *bus.Bus {
	tb.Helper()
	s, err := server.NewServer(&server.Options{JetStream: true, StoreDir: tb.TempDir(), DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		tb.Fatal(err)
	}
	s.Start()
	tb.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		tb.Fatal("the broker did not start")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(nc.Close)
	b, err := bus.New(nc, topology.Topology{Prefix: "t", Replicas: 1}, "scanner", slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	if err := b.Apply(tb.Context(), b.JetStream()); err != nil {
		tb.Fatal(err)
	}
	return b
}

// rig is a scanner's parts on a broker of their own, none of them running.
type rig struct {
	tb testing.TB
	*parts
	bus     *bus.Bus
	scanner *Scanner
	store   *memory
	jobs    *store.Register[store.Job]
	records *store.Register[store.Scan]
}

const (
	testIndex     = "idx_1"
	testConnector = "conn_1"
)

var testAutomation = store.Automation{
	ID: "auto_1", Index: testIndex, Enabled: true, Connector: testConnector, Prefix: "in/", Pattern: "*.mp4", Recursive: true,
	Debounce: "5m", IncludeExisting: true, Rev: 1,
}

func newRig(tb testing.TB, provider string, automations ...store.Automation) *rig {
	tb.Helper()
	b := newBus(tb)
	r := &rig{tb: tb, bus: b}
	r.store = &memory{
		record:  store.Connector{ID: testConnector, Provider: provider, Bucket: "drop", Status: "active"},
		objects: make(map[string]bucket.Object),
	}
	put(tb, b, topology.Connectors, testConnector, r.store.record)
	put(tb, b, topology.Indexes, testIndex, store.Index{ID: testIndex})
	for _, a := range automations {
		put(tb, b, topology.Automations, a.ID, a)
	}
	var err error
	r.scanner, err = New(Config{}, service.Env{
		Bus: b, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Instance: "test",
	}, r.store)
	must(tb, err)
	r.parts, err = r.scanner.open(tb.Context())
	must(tb, err)
	r.jobs, r.records = r.plan.jobs, r.scans.records
	go func() { _ = r.config.follow(tb.Context()) }()
	if !r.config.wait(tb.Context()) {
		tb.Fatal("the configuration did not come")
	}
	return r
}

func put[T any](tb testing.TB, b *bus.Bus, bucketName, key string, v T) {
	tb.Helper()
	reg, err := store.Open[T](tb.Context(), b, bucketName)
	must(tb, err)
	must(tb, reg.Put(tb.Context(), key, v))
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// eventually waits for a fact.
func eventually(tb testing.TB, what string, fact func() bool) {
	tb.Helper()
	deadline := time.Now().Add(patience)
	for !fact() {
		if time.Now().After(deadline) {
			tb.Fatalf("never: %s", what)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-tb.Context().Done():
			tb.FailNow()
		}
	}
}

// read returns the messages of a stream by filter, decoded, in stream order.
func read[T any](r *rig, stream string, filter ...string) []T {
	r.tb.Helper()
	var all []T
	for m, err := range r.bus.Scan(r.tb.Context(), stream, r.bus.Subject(filter...), 0) {
		must(r.tb, err)
		var v T
		must(r.tb, json.Unmarshal(m.Data, &v))
		all = append(all, v)
	}
	return all
}

func (r *rig) arrivals() []event.Arrival {
	return read[event.Arrival](r, topology.Arrivals, "arrival", "*", "*")
}

func (r *rig) files(job string) []event.File {
	return read[event.File](r, topology.Files, "file", job, "*")
}

func (r *rig) tasks(job string) []event.Task {
	return read[event.Task](r, topology.Tasks, "task", "*", job, "*")
}

func (r *rig) dead() []event.Dead {
	return read[event.Dead](r, topology.DeadLetters, "dead", "*", "*")
}

func (r *rig) lastSeq(stream string) uint64 {
	r.tb.Helper()
	st, err := r.bus.State(r.tb.Context(), stream)
	must(r.tb, err)
	return st.LastSeq
}

func (r *rig) publish(v any, subject ...string) {
	r.tb.Helper()
	data, ok := v.([]byte)
	if !ok {
		data = encode(r.tb, v)
	}
	_, err := r.bus.Publish(r.tb.Context(), bus.Message{Subject: r.bus.Subject(subject...), Data: data})
	must(r.tb, err)
}

func encode(tb testing.TB, v any) []byte {
	tb.Helper()
	data, err := json.Marshal(v)
	must(tb, err)
	return data
}

// start runs do in the background until the test ends.
func (r *rig) start(do func(context.Context) error) {
	ctx, cancel := context.WithCancel(r.tb.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := do(ctx); err != nil {
			r.tb.Error(err)
		}
	}()
	r.tb.Cleanup(func() { cancel(); <-done })
}

func (r *rig) runNotifications() {
	r.start(func(ctx context.Context) error {
		return r.bus.ConsumeBatch(ctx, topology.ScannerNotifications, bus.Options{}, r.notify.handle)
	})
}

func (r *rig) runPlanner(consumer string, workers int) {
	r.start(func(ctx context.Context) error {
		return r.bus.Work(ctx, consumer, bus.Options{Workers: workers}, r.plan.handle)
	})
}

// deliver runs the notifications handler over bodies as one batch, without a consumer.
func (r *rig) deliver(bodies ...any) []error {
	r.tb.Helper()
	batch := make([]*bus.Delivery, len(bodies))
	for i, body := range bodies {
		data, ok := body.([]byte)
		if !ok {
			data = encode(r.tb, body)
		}
		batch[i] = &bus.Delivery{Subject: r.bus.Subject("notification", testConnector), Data: data, Delivered: 1}
	}
	return r.notify.handle(r.tb.Context(), batch)
}

// settle writes ledger entries.
func (r *rig) settle(media ...event.Medium) {
	r.tb.Helper()
	entries := make([]store.Entry, len(media))
	for i, m := range media {
		m.Index, m.Connector = testIndex, testConnector
		m.ID = event.NewMediumID(testIndex, testConnector, m.Path, m.Version, m.Job)
		entries[i].Medium = m
	}
	must(r.tb, errors.Join(store.NewLedger(r.bus).Write(r.tb.Context(), entries)...))
}

// version n of a path, as Google Cloud Storage would count.
func version(path string, n int) event.Object {
	return event.Object{
		Path: path, Version: fmt.Sprint(n), Order: fmt.Sprintf("%020d", n), Size: int64(1000 + n),
		ModTime: time.Date(2026, 3, 1, 0, 0, n, 0, time.UTC),
	}
}

func created(o event.Object) event.Notification {
	return event.Notification{Op: event.Created, Path: o.Path, Version: o.Version, Order: o.Order, Size: o.Size, ModTime: o.ModTime}
}

func deleted(o event.Object) event.Notification {
	return event.Notification{Op: event.Deleted, Path: o.Path, Version: o.Version, Order: o.Order}
}

// memory is a bucket, and the Sources that open it.
type memory struct {
	mu       sync.Mutex
	record   store.Connector
	objects  map[string]bucket.Object
	openErr  error
	listErr  error
	listErrs int // after so many objects
	lists    int
	folders  []string // that cannot be read
	yielded  int      // objects that listings told of
	told     func(n int)
}

func (m *memory) Source(context.Context, string) (bucket.Source, store.Connector, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m, m.record, m.openErr
}

func (m *memory) put(objects ...event.Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range objects {
		m.objects[o.Path] = bucket.Object{Path: o.Path, Version: o.Version, Order: o.Order, Size: o.Size, ModTime: o.ModTime}
	}
}

func (m *memory) remove(path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, path)
}

func (m *memory) List(_ context.Context, opts bucket.ListOptions) iter.Seq2[bucket.Object, error] {
	return func(yield func(bucket.Object, error) bool) {
		m.mu.Lock()
		m.lists++
		var found []bucket.Object
		for _, o := range m.objects {
			if strings.HasPrefix(o.Path, opts.Prefix) && o.Path > opts.StartAfter {
				found = append(found, o)
			}
		}
		listErr, after, folders := m.listErr, m.listErrs, m.folders
		m.mu.Unlock()
		slices.SortFunc(found, func(a, b bucket.Object) int { return cmp.Compare(a.Path, b.Path) })
		for _, f := range folders {
			if !yield(bucket.Object{Path: f}, fmt.Errorf("%w: closed", bucket.ErrUnreadable)) {
				return
			}
		}
		for i, o := range found {
			if listErr != nil && i >= after {
				break
			}
			m.tell()
			if !yield(o, nil) {
				return
			}
		}
		if listErr != nil && len(found) >= after { // a range with less in it has no such page
			yield(bucket.Object{}, listErr)
		}
	}
}

func (m *memory) tell() {
	m.mu.Lock()
	m.yielded++
	n, told := m.yielded, m.told
	m.mu.Unlock()
	if told != nil {
		told(n)
	}
}

func (m *memory) Stat(_ context.Context, path string) (bucket.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[path]
	if !ok {
		return o, fmt.Errorf("stat %q: %w", path, bucket.ErrNotExist)
	}
	return o, nil
}

func (m *memory) Open(context.Context, string, string, int64, int64) (io.ReadCloser, error) {
	return nil, errors.ErrUnsupported
}

func (m *memory) Close() error                                { return nil }
func (m *memory) Credentials(store.Connector) ([]byte, error) { return nil, nil }
