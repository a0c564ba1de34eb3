package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/services/admin"
	"millrace/services/admin/strict"
	"millrace/shared/bucket"
	"millrace/shared/bus"
	conn "millrace/shared/connector"
	"millrace/shared/event"
	"millrace/shared/secret"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

const base = "/api/v2"

// world is an admin on a broker of its own, with keys of every scope.
type world struct {
	t       testing.TB
	bus     *bus.Bus
	env     service.Env
	admin   *admin.Admin
	sources *sources
	keys    map[string]string // by scope
	keeper  *secret.Keeper
	log     *safeBuffer
	stop    func() // the broker

	connectors  *store.Register[store.Connector]
	indexes     *store.Register[store.Index]
	automations *store.Register[store.Automation]
	prompts     *store.Register[store.Prompt]
	jobs        *store.Register[store.Job]
	runs        *store.Register[store.Run]
	keyring     *store.Register[store.Key]
	answers     *store.Register[store.Answer]
	windows     *window.Windows
	ledger      *store.Ledger
	documents   *store.Documents
	exports     *store.Register[store.Export]
}

// emptyStore is the folder of a broker that has the topology and nothing in it. Each world gets a copy: to make the streams
// anew takes a multiple of that. TestMain sets it.
var emptyStore string

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "millrace-admin-")
	if err == nil {
		err = makeStore(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	emptyStore = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func makeStore(dir string) error {
	s, nc, err := startBroker(dir)
	if err != nil {
		return err
	}
	defer func() { nc.Close(); s.Shutdown(); s.WaitForShutdown() }()
	b, err := bus.New(nc, names, "admin", slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return names.Apply(context.Background(), b.JetStream())
}

func startBroker(dir string) (*server.Server, *nats.Conn, error) {
	s, err := server.NewServer(&server.Options{JetStream: true, StoreDir: dir, DontListen: true, NoSigs: true, NoLog: true, JetStreamMaxStore: 32 << 20})
	if err != nil {
		return nil, nil, err
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		return nil, nil, errors.New("the broker did not start")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s), nats.MaxReconnects(0))
	return s, nc, err
}

var names = topology.Topology{Prefix: "t", Replicas: 1}

func newWorld(t testing.TB, change ...func(*admin.Config)) *world {
	t.Helper()
	dir := t.TempDir()
	must(t, os.CopyFS(dir, os.DirFS(emptyStore)))
	s, nc, err := startBroker(dir)
	must(t, err)
	stop := sync.OnceFunc(func() { s.Shutdown(); s.WaitForShutdown() })
	t.Cleanup(stop)
	t.Cleanup(nc.Close)
	w := &world{t: t, log: new(safeBuffer), sources: &sources{objects: make(map[string][]bucket.Object)}, keys: make(map[string]string), stop: stop}
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.bus, err = bus.New(nc, names, "admin", log)
	must(t, err)
	connect := func(name string) (*nats.Conn, error) {
		return nats.Connect("", nats.InProcessServer(s), nats.Name(name))
	}
	w.env = service.Env{Bus: w.bus, Log: log, Metrics: prometheus.NewRegistry(), Connect: connect, Instance: "test"}
	w.connectors, w.indexes = register[store.Connector](w, topology.Connectors), register[store.Index](w, topology.Indexes)
	w.automations, w.prompts = register[store.Automation](w, topology.Automations), register[store.Prompt](w, topology.Prompts)
	w.jobs, w.runs = register[store.Job](w, topology.JobRecords), register[store.Run](w, topology.RunRecords)
	w.keyring, w.answers = register[store.Key](w, topology.Keys), register[store.Answer](w, topology.Answers)
	w.exports = register[store.Export](w, topology.ExportRecords)
	w.windows, err = window.Bind(t.Context(), w.bus)
	must(t, err)
	w.ledger = store.NewLedger(w.bus)
	w.documents, err = store.OpenDocuments(t.Context(), w.bus)
	must(t, err)

	w.keeper, err = secret.Load(filepath.Join(t.TempDir(), "secrets.key"), true)
	must(t, err)
	w.sources.opener, err = conn.New(conn.Config{Keeper: w.keeper, AllowEndpoints: []string{"127.0.0.1"}}, w.connectors)
	must(t, err)
	cfg := admin.Config{Addr: "127.0.0.1:0", ExtraIntervals: []string{"2s"}, Executor: "nats"}
	for _, c := range change {
		c(&cfg)
	}
	w.admin, err = admin.New(cfg, w.env, admin.Deps{
		Sources: w.sources, Sealer: w.keeper,
		Ops: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, "ops "+r.URL.Path) }),
	})
	must(t, err)
	for _, scope := range []string{"search", "read", "write", "admin", "none"} {
		k := secret.NewKey()
		w.keys[scope] = k
		must(t, w.keyring.Put(t.Context(), secret.HashKey(k), store.Key{Hash: secret.HashKey(k), Name: scope, Scopes: []string{scope}}))
	}
	return w
}

func register[T any](w *world, name string) *store.Register[T] {
	r, err := store.Open[T](w.t.Context(), w.bus, name)
	must(w.t, err)
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// sources is storage in memory: objects by connector id, or one error for everything.
type sources struct {
	mu      sync.Mutex
	objects map[string][]bucket.Object
	err     error
	panics  bool
	blocked func() // what Open waits for

	opener *conn.Opener
}

// block makes the next Open wait for release; busy tells when it does.
func (s *sources) block() (busy <-chan struct{}, release func()) {
	reached, released := make(chan struct{}), make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked = func() { close(reached); <-released }
	return reached, func() { close(released) }
}

func (s *sources) set(connector string, err error, objects ...bucket.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[connector], s.err = objects, err
}

func (s *sources) Open(_ context.Context, c store.Connector) (bucket.Source, error) {
	s.mu.Lock()
	wait := s.blocked
	s.blocked = nil
	s.mu.Unlock()
	if wait != nil {
		wait()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.panics {
		panic("PLANTED PANIC")
	}
	return &source{objects: s.objects[c.ID], err: s.err}, nil
}

func (s *sources) Source(ctx context.Context, id string) (bucket.Source, store.Connector, error) {
	c := store.Connector{ID: id}
	src, err := s.Open(ctx, c)
	return src, c, err
}

func (s *sources) TryWriting(context.Context, store.Connector) (string, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "out/test.txt", false, s.err
}

func (s *sources) CheckDir(path string) (string, error) {
	if !strings.HasPrefix(path, "/allowed") {
		return "", fmt.Errorf("folder %q is not inside a folder given with --allow-dir", path)
	}
	return path, nil
}

func (s *sources) Announce(ctx context.Context, c store.Connector, name string, create bool) (conn.Announcements, error) {
	return s.opener.Announce(ctx, c, name, create)
}

type source struct {
	bucket.Source
	objects []bucket.Object
	err     error
}

func (s *source) Close() error { return nil }

func (s *source) Open(context.Context, string, string, int64, int64) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("x")), s.err
}

func (s *source) List(_ context.Context, opts bucket.ListOptions) iter.Seq2[bucket.Object, error] {
	return func(yield func(bucket.Object, error) bool) {
		if s.err != nil {
			yield(bucket.Object{}, s.err)
			return
		}
		for _, o := range s.objects {
			rest, ok := strings.CutPrefix(o.Path, opts.Prefix)
			if !ok || (opts.Delimiter && strings.Contains(rest, "/")) {
				continue
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

// answer is a response, checked for what every response must have.
type answer struct {
	t      testing.TB
	what   string
	status int
	header http.Header
	raw    []byte
	body   any
}

type request struct {
	key    string // default: the admin key; "-": none
	header map[string]string
	raw    []byte // in place of JSON
}

func (w *world) do(method, path string, body any, with ...request) answer {
	w.t.Helper()
	var req request
	if len(with) > 0 {
		req = with[0]
	}
	var in io.Reader
	if req.raw != nil {
		in = bytes.NewReader(req.raw)
	} else if body != nil {
		b, err := json.Marshal(body)
		must(w.t, err)
		in = bytes.NewReader(b)
	}
	if root, ok := strings.CutPrefix(path, "//"); ok { // not below the base
		path = "/" + root
	} else {
		path = base + path
	}
	r := httptest.NewRequestWithContext(w.t.Context(), method, path, in)
	if body != nil && req.raw == nil {
		r.Header.Set("Content-Type", "application/json")
	}
	switch req.key {
	case "-":
	case "":
		r.Header.Set("X-API-Key", w.keys["admin"])
	default:
		r.Header.Set("X-API-Key", req.key)
	}
	for k, v := range req.header {
		r.Header.Set(k, v)
	}
	rec := httptest.NewRecorder()
	w.admin.Handler().ServeHTTP(rec, r)
	a := answer{t: w.t, what: method + " " + path, status: rec.Code, header: rec.Header(), raw: rec.Body.Bytes()}
	a.check()
	return a
}

var requestIDs = regexp.MustCompile(`^req_[0-9a-v]{16}$`)

// check holds an answer against the transport rules and the error envelope.
func (a *answer) check() {
	a.t.Helper()
	id := a.header.Get("X-Request-ID")
	if !requestIDs.MatchString(id) {
		a.t.Errorf("%s: request id %q", a.what, id)
	}
	if a.status >= 300 && a.status < 400 {
		a.t.Errorf("%s: redirect", a.what)
	}
	if a.status == http.StatusNoContent {
		if len(a.raw) > 0 {
			a.t.Errorf("%s: 204 with a body", a.what)
		}
		return
	}
	if a.status == http.StatusOK && a.header.Get("Content-Disposition") != "" { // a file
		return
	}
	if ct := a.header.Get("Content-Type"); ct != "application/json; charset=utf-8" {
		a.t.Errorf("%s: content type %q", a.what, ct)
	}
	if err := json.Unmarshal(a.raw, &a.body); err != nil {
		a.t.Fatalf("%s: %d with body %q: %v", a.what, a.status, a.raw, err)
	}
	if a.status < 400 {
		method, path, _ := strings.Cut(a.what, " ")
		if path, below := strings.CutPrefix(path, base); below {
			if err := strict.Check(method, path, a.raw); err != nil {
				a.t.Error(err)
			}
		}
		return
	}
	e, _ := a.at("error").(map[string]any)
	if e["code"] == nil || e["message"] == "" || e["request_id"] != id || a.at("request_id") != id || e["timestamp"] == nil {
		a.t.Errorf("%s: envelope %s", a.what, a.raw)
	}
	if d, there := e["details"]; there {
		if _, ok := d.(map[string]any); !ok {
			a.t.Errorf("%s: details %v", a.what, d)
		}
	}
	if (a.status == 429 || a.status == 503) != regexp.MustCompile(`^[1-9]\d*$`).MatchString(a.header.Get("Retry-After")) {
		a.t.Errorf("%s: %d with Retry-After %q", a.what, a.status, a.header.Get("Retry-After"))
	}
}

// at walks into the body: names, and numbers for array elements.
func (a answer) at(path ...any) any { return strict.At(a.body, path...) }

func (a answer) str(path ...any) string {
	s, _ := a.at(path...).(string)
	return s
}

func (a answer) want(status int) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s: %d, want %d: %s", a.what, a.status, status, a.raw)
	}
	return a
}

// refused wants an error with this status and code whose text has all of these words.
func (a answer) refused(status int, code string, words ...string) answer {
	a.t.Helper()
	if a.status != status || a.str("error", "code") != code {
		a.t.Fatalf("%s: %d %s, want %d %s: %s", a.what, a.status, a.str("error", "code"), status, code, a.raw)
	}
	for _, word := range words {
		if !strings.Contains(string(a.raw), word) {
			a.t.Errorf("%s: nothing of %q in %s", a.what, word, a.raw)
		}
	}
	return a
}

// fixture is one of everything.
type fixture struct {
	connector, index, prompt, job, run, video string

	doomedIndex, doomedVideo, doomedPrompt string // for those who delete
	goneIndex, goneVideo                   string // deleted already
	spare                                  string // a connector that nothing uses
	calm                                   string // an index whose automation nobody pauses
	cutLetter, letter                      string // dead letters: one that is not whole, one that is
	outbox, export                         string // a connector that takes exports, and an export that is ready for download
	webhook, otherWebhook, delivery        string // the other one is to be deleted
}

// exported is the file of the export.
const exported = `{"runs":[]}` + "\n"

const schema = `{"type":"object","properties":{"a<b":{"type":"string"}}}`

func (w *world) fixture() fixture {
	w.t.Helper()
	ctx := w.t.Context()
	var f fixture
	f.connector = w.do("POST", "/connectors/dir", obj{"name": "Inbox", "path": "/allowed/inbox"}).want(201).str("connector_id")
	f.spare = w.do("POST", "/connectors/s3", s3Body()).want(201).str("connector_id")
	f.index = w.do("POST", "/indexes", obj{"name": "Cameras"}).want(201).str("index_id")
	f.prompt = w.do("POST", "/prompts", obj{"name": "Log", "prompt_text": "Say what is there.", "json_schema": json.RawMessage(schema)}).want(201).str("prompt_id")
	w.do("PUT", "/indexes/"+f.index+"/automations/import", obj{"connector_id": f.connector, "debounce_interval": "5m", "prompt_preset": obj{"prompt_id": f.prompt}}).want(200)
	f.calm = w.do("POST", "/indexes", obj{"name": "Calm"}).want(201).str("index_id")
	w.do("PUT", "/indexes/"+f.calm+"/automations/import", obj{"connector_id": f.connector, "source_prefix": "calm/", "debounce_interval": "5m", "prompt_preset": nil}).want(200)

	now := time.Now().UTC()
	f.job = event.JobOfWindow(event.AutomationOfIndex(f.index), "w_1")
	f.run = event.RunOfJob(f.job)
	id := event.NewMediumID(f.index, f.connector, "cams/a & b.mp4", "v1", "")
	f.video = id.String()
	must(w.t, errors.Join(w.ledger.Write(ctx, []store.Entry{{Medium: event.Medium{
		ID: id, Index: f.index, Connector: f.connector, Path: "cams/a & b.mp4", Version: "v1", State: event.MediumImported,
		Size: 10, URI: "file:///srv/secret/a.mp4", MediaType: "video", Seconds: 61.4, Job: f.job, CreatedAt: now,
	}}})...))
	files := []event.File{
		{Job: f.job, Path: "cams/a & b.mp4", State: event.Imported, Video: f.video},
		{Job: f.job, Path: "cams/c.mov", State: event.Failed, Error: "object vanished"},
		{Job: f.job, Path: "cams/d.mp4", State: event.Skipped, Reason: event.AlreadyImported},
	}
	must(w.t, store.WriteLines(ctx, w.documents, "report", seq(files)))
	must(w.t, w.jobs.Put(ctx, f.job, store.Job{
		ID: f.job, Index: f.index, Connector: f.connector, Automation: event.AutomationOfIndex(f.index), Origin: store.ByAutomation,
		Pattern: "*", Recursive: true, Mode: event.NewOnly, Status: store.JobCompleted, CreatedAt: now, StartedAt: now, EndedAt: now,
		Progress: store.Progress{Total: 3, Imported: 1, Failed: 1, Skipped: 1, Bytes: 10}, Report: "report", Settled: true,
	}))
	must(w.t, store.WriteLines(ctx, w.documents, "media", seq([]event.RunMedium{{Video: f.video}})))
	must(w.t, w.runs.Put(ctx, f.run, store.Run{
		ID: f.run, Job: f.job, Index: f.index, Prompt: f.prompt, PromptName: "Log", Preset: json.RawMessage(`{"prompt_id":"` + f.prompt + `"}`),
		Status: store.RunCompleted, Tallies: map[string]store.Tally{"video": {Total: 1, Completed: 1}}, Seconds: 61.4,
		Media: "media", Count: 1, CreatedAt: now, StartedAt: now, EndedAt: now,
	}))
	report, err := json.Marshal(event.Report{Run: f.run, Video: f.video, State: event.Successful, Result: json.RawMessage(`{ "seen": "<car> & bus" }`), ReportedAt: now})
	must(w.t, err)
	_, err = w.bus.Publish(ctx, bus.Message{Subject: w.bus.Subject("run", "report", f.run, f.video), Data: report})
	must(w.t, err)
	f.doomedIndex = w.do("POST", "/indexes", obj{"name": "Doomed"}).want(201).str("index_id")
	f.doomedPrompt = w.do("POST", "/prompts", obj{"name": "Doomed", "prompt_text": "Say nothing at all.", "json_schema": json.RawMessage(schema)}).want(201).str("prompt_id")
	f.goneIndex = w.do("POST", "/indexes", obj{"name": "Gone"}).want(201).str("index_id")
	w.do("DELETE", "/indexes/"+f.goneIndex, nil).want(200)
	doomed, goneID := event.NewMediumID(f.index, f.connector, "doomed.mp4", "v1", ""), event.NewMediumID(f.index, f.connector, "gone.mp4", "v1", "")
	f.doomedVideo, f.goneVideo = doomed.String(), goneID.String()
	must(w.t, errors.Join(w.ledger.Write(ctx, []store.Entry{
		{Medium: event.Medium{ID: doomed, Index: f.doomedIndex, Path: "doomed.mp4", State: event.MediumImported, URI: "gs://b/k", CreatedAt: now}},
		{Medium: event.Medium{ID: goneID, Index: f.doomedIndex, Path: "gone.mp4", State: event.MediumDeleted, CreatedAt: now}},
	})...))
	must(w.t, w.bus.Bury(ctx, event.Dead{Consumer: "c", Subject: w.bus.Subject("notification", f.connector), Reason: "why", Stage: "decode", Cut: true, Data: []byte("x")}))
	must(w.t, w.bus.Bury(ctx, event.Dead{Consumer: "c", Subject: w.bus.Subject("notification", f.connector), Reason: "why", Stage: "decode", Data: []byte("x")}))
	dead := w.do("GET", "/dead", nil).want(200)
	f.letter, f.cutLetter = dead.str("data", 0, "dead_id"), dead.str("data", 1, "dead_id")
	f.outbox = w.do("POST", "/connectors/dir", obj{"name": "Outbox", "path": "/allowed/outbox", "scopes": []string{"export"}, "export_base_path": "exports/"}).want(201).str("connector_id")
	w.do("PUT", "/indexes/"+f.index+"/automations/export", obj{"destination_connector_id": f.outbox}).want(200)
	f.export = "exp_fixture"
	size, err := w.documents.Write(ctx, "exports/fixture", strings.NewReader(exported))
	must(w.t, err)
	must(w.t, w.exports.Put(ctx, f.export, store.Export{
		ID: f.export, Type: event.ExportOfRun, Target: f.run, Index: f.index, Scope: event.AllResults, Format: event.FormatJSON,
		Status: store.ExportCompleted, Attempts: 1, MaxAttempts: 6, CreatedAt: now, AvailableAt: now, StartedAt: now, EndedAt: now, UpdatedAt: now,
		Size: size, URI: "millrace://exports/fixture.json", Document: "exports/fixture", Settled: true,
	}))
	w.webhooks(&f)
	w.sources.set(f.connector, nil, bucket.Object{Path: "cams/a & b.mp4", Size: 10, ModTime: now}, bucket.Object{Path: "cams/README", Size: 1, ModTime: now})
	return f
}

type obj map[string]any

func seq[T any](values []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range values {
			if !yield(v, nil) {
				return
			}
		}
	}
}

func TestConfig(t *testing.T) {
	must(t, admin.Config{}.Validate())
	err := admin.Config{Addr: "nowhere", BasePath: "x/", ExtraIntervals: []string{"1ms"}, PushAudience: "a"}.Validate()
	for _, word := range []string{"--http", "base path", "--extra-debounce-intervals", "push service account"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v says nothing of %s", err, word)
		}
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if w.admin.Ready() == nil {
		t.Error("ready before it runs")
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.admin.Run(ctx) }()
	eventually(t, "ready", func() bool { return w.admin.Ready() == nil })

	resp, err := http.Get("http://" + w.admin.Addr() + "/healthz")
	must(t, err)
	_ = resp.Body.Close()

	// A second one cannot have the same address.
	other, err := admin.New(admin.Config{Addr: w.admin.Addr()}, service.Env{Bus: w.bus, Log: w.env.Log, Connect: w.env.Connect},
		admin.Deps{Sources: w.sources, Sealer: w.keeper})
	must(t, err)
	if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), w.admin.Addr()) || !strings.Contains(err.Error(), "--http") {
		t.Errorf("port in use: %v", err)
	}

	// A revocation takes effect while keys are answered from memory.
	w.do("GET", "/auth/validate", nil, request{key: w.keys["read"]}).want(204)
	must(t, w.keyring.Delete(t.Context(), secret.HashKey(w.keys["read"])))
	eventually(t, "revoked", func() bool {
		return w.do("GET", "/auth/validate", nil, request{key: w.keys["read"]}).status == 401
	})
	stop()
	must(t, <-ended)
	if w.admin.Ready() == nil {
		t.Error("ready after it ended")
	}
}

// eventually waits for what another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("never %s", what)
		}
	}
}

func TestEnsureKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	for _, k := range w.keys {
		must(t, w.keyring.Delete(ctx, secret.HashKey(k)))
	}
	first, err := w.admin.EnsureKey(ctx, "")
	must(t, err)
	if !secret.ValidKey(first) {
		t.Fatalf("generated %q", first)
	}
	w.do("GET", "/auth/validate", nil, request{key: first}).want(204)
	if again, err := w.admin.EnsureKey(ctx, ""); err != nil || again != "" {
		t.Errorf("second start: %q, %v", again, err)
	}
	for _, bad := range []string{"short", "has a blank inside it", strings.Repeat("x", 300)} {
		if _, err := w.admin.EnsureKey(ctx, bad); !errors.Is(err, admin.ErrKey) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, given := range []string{"a-key-of-my-own-1", "a-key-of-my-own-2", "a-key-of-my-own-2"} {
		if shown, err := w.admin.EnsureKey(ctx, given); err != nil || shown != "" {
			t.Fatalf("given: %q, %v", shown, err)
		}
	}
	w.do("POST", "/indexes", obj{"name": "x"}, request{key: "-", header: map[string]string{"Authorization": "Bearer a-key-of-my-own-2"}}).want(201)
	w.do("GET", "/auth/validate", nil, request{key: first}).want(204)
	w.do("GET", "/auth/validate", nil, request{key: "a-key-of-my-own-1"}).refused(401, "authentication_invalid_api_key")
	if log := w.log.String(); strings.Contains(log, "a-key-of-my-own") || strings.Contains(log, first) {
		t.Error("a key is in the log")
	}
	for k, err := range w.keyring.All(ctx) {
		must(t, err)
		if strings.Contains(k.Prefix, "own") || len(k.Prefix) > 12 {
			t.Errorf("too much of the key is kept: %q", k.Prefix)
		}
	}
}

func TestBrokerAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do("GET", "/indexes", nil).want(200)
	w.stop()
	w.do("GET", "/indexes", nil).refused(503, "broker_unavailable")
}

func TestStoreFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	var a answer
	for range 64 {
		a = w.do("POST", "/notifications/"+f.connector, nil, request{raw: make([]byte, 1<<20-8<<10)})
		if a.status != 200 {
			break
		}
	}
	a.refused(503, "store_full", "Free space")
	w.do("GET", "/connectors/"+f.connector, nil).want(200) // reading goes on
}
