package webhooks_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/services/webhooks"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/secret"
	"millrace/shared/service"
	"millrace/shared/service/servicetest"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/webhook"
)

// world is a broker with the service on it and webhooks that lead to receivers here.
type world struct {
	testing.TB
	env        service.Env
	cfg        webhooks.Config
	keeper     *secret.Keeper
	reg        *store.Register[store.Webhook]
	deliveries *store.Deliveries
	jobs       *store.Register[store.Job]
	runs       *store.Register[store.Run]
	documents  *store.Documents
	service    service.Service
	stop       func()
}

// soon is a schedule for those who cannot wait.
var soon = []time.Duration{10 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond}

func newWorld(t testing.TB, change ...func(*webhooks.Config)) *world {
	t.Helper()
	w := &world{TB: t, env: servicetest.Env(t), cfg: webhooks.Config{AllowEndpoints: []string{"127.0.0.1"}, Schedule: soon}}
	for _, c := range change {
		c(&w.cfg)
	}
	ctx := t.Context()
	var err, kerr, jerr, rerr, derr error
	w.keeper, kerr = secret.Load(filepath.Join(t.TempDir(), "key"), true)
	w.reg, err = store.Open[store.Webhook](ctx, w.env.Bus, topology.Webhooks)
	w.jobs, jerr = store.Open[store.Job](ctx, w.env.Bus, topology.JobRecords)
	w.runs, rerr = store.Open[store.Run](ctx, w.env.Bus, topology.RunRecords)
	w.documents, derr = store.OpenDocuments(ctx, w.env.Bus)
	w.must(errors.Join(err, kerr, jerr, rerr, derr))
	w.deliveries = store.NewDeliveries(w.env.Bus)
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// start runs the service, another one each time.
func (w *world) start() {
	w.Helper()
	env := w.env
	env.Metrics = prometheus.NewRegistry()
	s, err := webhooks.New(w.cfg, env, w.keeper)
	w.must(err)
	w.service, w.stop = s, servicetest.Run(w, s)
}

// stopping tells the service to stop and returns when it has heard that; stopped waits until it has, which must not take
// long.
func (w *world) stopping() (stopped func()) {
	w.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.stop()
	}()
	servicetest.Eventually(w, "the service takes no more events", func() error {
		if w.service.Ready() == nil {
			return errors.New("it does")
		}
		return nil
	})
	return func() {
		w.Helper()
		select {
		case <-done:
		case <-time.After(15 * time.Second):
			w.Fatal("it does not stop")
		}
	}
}

const signingSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// hook makes a webhook; its id is a function of name.
func (w *world) hook(name, url string, change ...func(*store.Webhook)) store.Webhook {
	w.Helper()
	id := event.WebhookOfKey("test", name)
	sealed, err := w.keeper.Seal([]byte(signingSecret), webhook.SecretAAD(id))
	w.must(err)
	now := time.Now().UTC()
	h := store.Webhook{
		ID: id, Name: name, URL: url, Events: webhook.Events(), Status: store.WebhookActive, Secret: sealed,
		Since: now, CreatedAt: now, UpdatedAt: now,
	}
	for _, c := range change {
		c(&h)
	}
	w.must(w.reg.Put(w.Context(), id, h))
	return h
}

// happen publishes an event about a job without a record and returns its id.
func (w *world) happen(typ event.Type, index, subject string, data any) string {
	w.Helper()
	e, err := bus.NewEvent(typ, index, subject, time.Now(), data)
	w.must(err)
	w.must(w.env.Bus.PublishEvent(w.Context(), e))
	return e.ID
}

func (w *world) job(subject string) string {
	w.Helper()
	return w.happen(event.JobCompleted, "idx_1", subject, event.JobEvent{Job: subject, Index: "idx_1", Connector: "con_1", Status: "completed", Total: 1, Imported: 1})
}

// stands waits until a delivery is in a state, and returns it.
func (w *world) stands(h store.Webhook, eventID string, state event.DeliveryState) (d event.Delivery) {
	w.Helper()
	servicetest.Eventually(w, fmt.Sprintf("%s is %s", eventID, state), func() (err error) {
		if d, _, err = w.deliveries.Get(w.Context(), event.DeliveryOf(h.ID, eventID)); err == nil && d.State != state {
			err = fmt.Errorf("is %s after %d attempts: %s", d.State, d.Attempts, d.Error)
		}
		return err
	})
	return d
}

func (w *world) record(h store.Webhook, what string, ok func(store.Webhook) bool) (now store.Webhook) {
	w.Helper()
	servicetest.Eventually(w, what, func() (err error) {
		if now, _, err = w.reg.Get(w.Context(), h.ID); err == nil && !ok(now) {
			now.Secret = ""
			err = fmt.Errorf("%+v", now)
		}
		return err
	})
	return now
}

// receiver answers as answer says for the n-th request from 1, and keeps all it got.
type receiver struct {
	*httptest.Server
	mu  sync.Mutex
	got []request
}

type request struct {
	header http.Header
	body   []byte
}

func receive(t testing.TB, answer func(n int, rw http.ResponseWriter, r *http.Request)) *receiver {
	t.Helper()
	rc := new(receiver)
	rc.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		rc.mu.Lock()
		rc.got = append(rc.got, request{r.Header, body})
		n := len(rc.got)
		rc.mu.Unlock()
		answer(n, rw, r)
	}))
	t.Cleanup(rc.Close)
	return rc
}

func (rc *receiver) requests() []request {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return append([]request(nil), rc.got...)
}

// want returns all requests, of which there must be n.
func (rc *receiver) want(t testing.TB, n int) []request {
	t.Helper()
	got := rc.requests()
	if len(got) != n {
		t.Fatalf("%d requests, want %d", len(got), n)
	}
	return got
}

func status(code int) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(code) }
}

// ailing is a receiver that fails as fail says, until it is healed.
func ailing(t testing.TB, fail http.HandlerFunc) (rc *receiver, heal func()) {
	t.Helper()
	var healed atomic.Bool
	rc = receive(t, func(_ int, rw http.ResponseWriter, r *http.Request) {
		if !healed.Load() {
			fail(rw, r)
		}
	})
	return rc, func() { healed.Store(true) }
}

func ill(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusInternalServerError) }

// signed checks the signature over the raw bytes, with nothing of ours.
func signed(t testing.TB, r request, key string) {
	t.Helper()
	h := hmac.New(sha256.New, []byte(key))
	h.Write(r.body)
	if want := "sha256=" + hex.EncodeToString(h.Sum(nil)); r.header.Get("X-Webhook-Signature") != want {
		t.Errorf("signature %q, want %q", r.header.Get("X-Webhook-Signature"), want)
	}
}

// An event goes out once to each webhook that wants it, as the contract spells it, and the books are kept.
func TestDelivered(t *testing.T) {
	t.Parallel()
	rc := receive(t, status(200))
	w := newWorld(t)
	w.start()
	all := w.hook("all", rc.URL+"/all", func(h *store.Webhook) { h.Metadata = json.RawMessage(`{"z":"<&>","a":1}`) })
	w.hook("other events", rc.URL, func(h *store.Webhook) { h.Events = []string{"export.ready"} })
	w.hook("other index", rc.URL, func(h *store.Webhook) { h.Indexes = []string{"idx_2"} })
	w.hook("paused", rc.URL, func(h *store.Webhook) { h.SetStatus(store.WebhookPaused, h.CreatedAt) })

	now := time.Now().UTC()
	w.must(store.WriteLines(t.Context(), w.documents, "jobs/job_1.jsonl", func(yield func(event.File, error) bool) {
		_ = yield(event.File{State: event.Imported, Video: "vid_a"}, nil) && yield(event.File{State: event.Failed}, nil) &&
			yield(event.File{State: event.Imported, Video: "vid_b"}, nil)
	}))
	w.must(w.jobs.Put(t.Context(), "job_1", store.Job{
		ID: "job_1", Status: store.JobCompleted, EndedAt: now, Report: "jobs/job_1.jsonl", Progress: store.Progress{Total: 3, Imported: 2, Failed: 1, Bytes: 10},
	}))
	id := w.happen(event.JobPartialCompleted, "idx_1", "job_1", event.JobEvent{
		Job: "job_1", Index: "idx_1", Connector: "con_1", Automation: "auto_1", Status: "completed", Total: 3, Imported: 2, Failed: 1,
	})
	w.happen(event.ScanDrift, "idx_1", "auto_1", event.DriftEvent{}) // nobody can subscribe to that
	d := w.stands(all, id, event.DeliveryDelivered)
	if d.Attempts != 1 || d.Code != 200 || d.EndedAt.IsZero() || !d.DueAt.IsZero() || d.Error != "" {
		t.Errorf("%+v", d)
	}
	r := rc.want(t, 1)[0]
	signed(t, r, signingSecret)
	for name, want := range map[string]string{"X-Webhook-Id": all.ID, "X-Delivery-Id": d.ID, "Idempotency-Key": id, "X-Event-Type": "import_job.partial_completed"} {
		if r.header.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, r.header.Get(name), want)
		}
	}
	var env struct {
		CreatedAt time.Time `json:"created_at"`
	}
	w.must(json.Unmarshal(r.body, &env))
	want := `{"api_version":"2024-01","created_at":"` + env.CreatedAt.Format("2006-01-02T15:04:05.000Z") +
		`","data":{"automation_id":"auto_1","connector_id":"con_1","index_id":"idx_1","job_id":"job_1",` +
		`"progress":{"bytes_transferred":10,"current_file":null,"failed":1,"imported":2,"skipped":0,"total_files":3},` +
		`"status":"completed","video_ids":["vid_a","vid_b"]},"event":"import_job.partial_completed","id":"` + id + `","metadata":{"a":1,"z":"<&>"}}`
	if string(r.body) != want {
		t.Errorf("\n got %s\nwant %s", r.body, want)
	}
	w.record(all, "the success is in the books", func(h store.Webhook) bool { return !h.LastSuccessAt.IsZero() && h.Failures == 0 })
}

// Each kind of event tells what it is about; one without an index goes to filtered webhooks as well.
func TestKinds(t *testing.T) {
	t.Parallel()
	rc := receive(t, status(204))
	w := newWorld(t)
	w.start()
	h := w.hook("h", rc.URL, func(h *store.Webhook) { h.Indexes = []string{"idx_1"} })
	w.must(w.jobs.Put(t.Context(), "job_1", store.Job{ID: "job_1", Automation: "auto_1"}))
	w.must(w.runs.Put(t.Context(), "run_1", store.Run{
		ID: "run_1", Error: "no luck", Tallies: map[string]store.Tally{"video": {Total: 3, Completed: 1, Failed: 2}, "audio": {Total: 1, Completed: 1}},
	}))
	run := event.RunEvent{Run: "run_1", Job: "job_1", Prompt: "prm_1", Status: "failed", Total: 4, Completed: 2, Failed: 2}
	for id, want := range map[string]string{
		w.happen(event.RunFailed, bus.NoIndex, "run_1", run): `{"automation_id":"auto_1","completed_audios":1,"completed_images":0,"completed_videos":1,` +
			`"error_message":"no luck","failed_audios":0,"failed_images":0,"failed_videos":2,"job_id":"job_1","prompt_id":"prm_1","run_id":"run_1",` +
			`"status":"failed","total_audios":1,"total_images":0,"total_videos":3}`,
		w.happen(event.MediaCreated, "idx_1", "vid_1", event.MediaEvent{Video: "vid_1", Index: "idx_1", Job: "job_1", Path: "a/b & c.mp4", MediaType: "video", Seconds: 1.5, Size: 7}): `{"duration_seconds":1.5,` +
			`"index_id":"idx_1","job_id":"job_1","media_type":"video","size_bytes":7,"source_path":"a/b & c.mp4","status":"not_processed","title":"b & c.mp4","video_id":"vid_1"}`,
		w.happen("export.ready", "idx_1", "exp_1", map[string]string{"export_id": "exp_1"}):           `{"export_id":"exp_1"}`,
		w.happen("media.processing.failed", "idx_1", "vid_1", map[string]string{"video_id": "vid_1"}): `{"video_id":"vid_1"}`,
		w.happen(event.JobStarted, "idx_1", "job_1", event.JobEvent{Job: "job_1", Index: "idx_1", Connector: "con_1", Status: "scanning"}): `{"connector_id":"con_1","index_id":"idx_1","job_id":"job_1",` +
			`"progress":{"bytes_transferred":0,"current_file":null,"failed":0,"imported":0,"skipped":0,"total_files":0},"status":"scanning"}`,
	} {
		w.stands(h, id, event.DeliveryDelivered)
		found, err := w.deliveries.Envelopes(t.Context(), id)
		w.must(err)
		var env event.Envelope
		w.must(json.Unmarshal(found[id], &env))
		if string(env.Data) != want || env.ID != id {
			t.Errorf("%s\n got %s\nwant %s", env.Event, env.Data, want)
		}
	}
	rc.want(t, 5)
	// What is no event is buried, and nothing stands still because of it.
	_, err := w.env.Bus.Publish(t.Context(), bus.Message{Subject: w.env.Bus.Subject("event", "export.ready", "idx_1", "exp_2"), Data: []byte(`"x"`)})
	w.must(err)
	_, err = w.env.Bus.Publish(t.Context(), bus.Message{Subject: w.env.Bus.Subject("event", "export.ready", "idx_1", "exp_3"), Data: []byte(`{}`), Header: map[string][]string{"ce-id": {"a.b > *"}}})
	w.must(err)
	servicetest.Eventually(t, "the stranger's event arrived", func() error {
		if len(rc.requests()) != 6 {
			return errors.New("not yet")
		}
		return nil
	})
	servicetest.Eventually(t, "the malformed one is dead", func() error {
		state, err := w.env.Bus.State(t.Context(), topology.DeadLetters)
		if err == nil && state.Msgs != 1 {
			err = fmt.Errorf("%d dead letters", state.Msgs)
		}
		return err
	})
}

// A receiver that fails is asked again under one id until it takes the delivery; each attempt is another one.
func TestRetried(t *testing.T) {
	t.Parallel()
	rc := receive(t, func(n int, rw http.ResponseWriter, r *http.Request) {
		switch n {
		case 1:
			http.Error(rw, "bad gateway\xff", http.StatusBadGateway)
		case 2:
			http.Redirect(rw, r, "/elsewhere", http.StatusFound)
		}
	})
	w := newWorld(t)
	w.start()
	h := w.hook("h", rc.URL)
	id := w.job("job_1")
	d := w.stands(h, id, event.DeliveryDelivered)
	if d.Attempts != 3 {
		t.Errorf("%d attempts", d.Attempts)
	}
	got := rc.want(t, 3)
	seen := make(map[string]bool)
	for _, r := range got {
		signed(t, r, signingSecret)
		seen[r.header.Get("X-Delivery-Attempt-Id")] = true
		if r.header.Get("X-Delivery-Id") != d.ID || r.header.Get("Idempotency-Key") != id || string(r.body) != string(got[0].body) {
			t.Errorf("another delivery: %v", r.header)
		}
	}
	if len(seen) != 3 {
		t.Errorf("attempts %v", seen)
	}
	w.record(h, "the success makes good", func(h store.Webhook) bool {
		return !h.LastFailureAt.IsZero() && h.Failures == 0 && !h.LastSuccessAt.IsZero()
	})
}

// At the end of the schedule a delivery is given up, which is recorded; a person can have it tried again, all over.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	rc, heal := ailing(t, func(rw http.ResponseWriter, r *http.Request) {
		ill(rw, r)
		_, _ = io.WriteString(rw, strings.Repeat("no ", 10000))
	})
	w := newWorld(t)
	w.start()
	h := w.hook("h", rc.URL)
	id := w.job("job_1")
	d := w.stands(h, id, event.DeliveryFailed)
	if d.Attempts != len(soon)+1 || d.Error != "receiver answered 500" || d.Code != 500 || d.EndedAt.IsZero() || len(d.Body) > 4096 || !strings.HasPrefix(d.Body, "no no") {
		t.Errorf("%+v", d)
	}
	w.record(h, "failures are counted", func(h store.Webhook) bool {
		return h.Failures == 4 && h.Exhausted == 1 && h.Status == store.WebhookActive
	})
	heal()
	w.retry(d.ID)
	if d = w.stands(h, id, event.DeliveryDelivered); d.Attempts != len(soon)+2 {
		t.Errorf("%d attempts", d.Attempts)
	}
}

// retry does what the API does.
func (w *world) retry(id string) {
	w.Helper()
	d, rev, err := w.deliveries.Get(w.Context(), id)
	w.must(err)
	d.State, d.Tries, d.DueAt, d.EndedAt = event.DeliveryPending, 0, time.Time{}, time.Time{}
	_, err = w.deliveries.Write(w.Context(), d, rev)
	w.must(err)
}

// A receiver that says it is gone is not asked again, and neither is one that never takes anything.
func TestDisabled(t *testing.T) {
	t.Parallel()
	gone, broken := receive(t, status(410)), receive(t, status(500))
	w := newWorld(t, func(c *webhooks.Config) { c.Schedule, c.DisableAfter = soon[:1], 3 })
	w.start()
	h, b := w.hook("gone", gone.URL), w.hook("broken", broken.URL)
	first := w.job("job_1")
	if d := w.stands(h, first, event.DeliveryFailed); d.Attempts != 1 || d.Code != 410 {
		t.Errorf("%+v", d)
	}
	w.record(h, "disabled", func(h store.Webhook) bool { return h.Status == store.WebhookDisabled })
	second, third := w.job("job_2"), w.job("job_3")
	w.stands(b, second, event.DeliveryFailed)
	w.stands(b, third, event.DeliveryFailed)
	w.record(b, "disabled", func(h store.Webhook) bool { return h.Status == store.WebhookDisabled })
	fourth := w.job("job_4")
	w.settled()
	for _, h := range []store.Webhook{h, b} {
		if _, _, err := w.deliveries.Get(t.Context(), event.DeliveryOf(h.ID, fourth)); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("an event was kept for a disabled webhook: %v", err)
		}
	}
	gone.want(t, 1)
	broken.want(t, 6)
}

// set changes the status of a webhook, as the API does.
func (w *world) set(h store.Webhook, status string) {
	w.Helper()
	_, _, err := w.reg.Modify(w.Context(), h.ID, func(h *store.Webhook) error {
		h.SetStatus(status, time.Now().UTC())
		return nil
	})
	w.must(err)
}

// settled waits until all events so far have been looked at.
func (w *world) settled() {
	w.Helper()
	servicetest.Eventually(w, "all events are looked at", func() error {
		c, err := w.env.Bus.Bind(w.Context(), w.env.Bus.JetStream(), topology.WebhooksEvents)
		if err != nil {
			return err
		}
		info, err := c.Info(w.Context())
		if err == nil && (info.NumPending > 0 || info.NumAckPending > 0) {
			err = fmt.Errorf("%d to come, %d in hand", info.NumPending, info.NumAckPending)
		}
		return err
	})
}

// What is queued waits while a webhook is paused; what happens meanwhile is not for it.
func TestPaused(t *testing.T) {
	t.Parallel()
	rc, heal := ailing(t, ill)
	w := newWorld(t, func(c *webhooks.Config) { c.Schedule = []time.Duration{200 * time.Millisecond, time.Hour} })
	w.start()
	h := w.hook("h", rc.URL)
	before := w.job("job_1")
	w.stands(h, before, event.DeliveryRetrying)
	clock := w.hook("clock", receive(t, status(http.StatusInternalServerError)).URL) // is retried a little later than h would be
	w.set(h, store.WebhookPaused)
	requests := len(rc.requests())
	during := w.job("job_2")
	w.settled()
	servicetest.Eventually(t, "it would have been sent by now", func() error {
		d, _, err := w.deliveries.Get(t.Context(), event.DeliveryOf(clock.ID, during))
		if err == nil && d.Attempts < 2 {
			err = errors.New("not yet")
		}
		return err
	})
	if n := len(rc.requests()); n > requests+1 {
		t.Errorf("%d requests during a pause", n-requests)
	}
	heal()
	w.set(h, store.WebhookActive)
	w.stands(h, before, event.DeliveryDelivered)
	after := w.job("job_3")
	w.stands(h, after, event.DeliveryDelivered)
	if _, _, err := w.deliveries.Get(t.Context(), event.DeliveryOf(h.ID, during)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an event of the pause was kept: %v", err)
	}
}

// What waits too long for a paused webhook is given up, and that is recorded.
func TestWaitedTooLong(t *testing.T) {
	t.Parallel()
	rc := receive(t, status(http.StatusInternalServerError))
	w := newWorld(t, func(c *webhooks.Config) { c.Schedule, c.MaxWait = soon, time.Second })
	h := w.hook("h", rc.URL)
	id := w.job("job_1") // before the pause, so it is for the webhook
	w.set(h, store.WebhookPaused)
	w.start()
	if d := w.stands(h, id, event.DeliveryFailed); d.Attempts != 0 || !strings.Contains(d.Error, "paused for longer than 1s") {
		t.Errorf("%+v", d)
	}
	rc.want(t, 0)
}

// The schedule is on the broker: a service that is stopped between attempts, however it ends, changes nothing, and
// deliveries that were made before the start are sent.
func TestRestart(t *testing.T) {
	t.Parallel()
	rc, heal := ailing(t, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Retry-After", "3")
		rw.WriteHeader(http.StatusServiceUnavailable)
	})
	w := newWorld(t, func(c *webhooks.Config) { c.Schedule = []time.Duration{time.Millisecond} })
	w.start()
	h := w.hook("h", rc.URL)
	id := w.job("job_1")
	d := w.stands(h, id, event.DeliveryRetrying)
	if pause := d.DueAt.Sub(d.LastAt); pause < 3*time.Second || pause > 4*time.Second {
		t.Errorf("Retry-After was not honoured: due after %s", pause)
	}
	w.stop()
	later := w.job("job_2") // while nobody is there
	heal()
	w.start()
	w.stands(h, later, event.DeliveryDelivered)
	if now, _, err := w.deliveries.Get(t.Context(), d.ID); err != nil || !now.DueAt.Equal(d.DueAt) || now.Attempts != 1 {
		t.Errorf("the schedule moved: %+v %v", now, err)
	}
	after := w.stands(h, id, event.DeliveryDelivered)
	if after.Attempts != 2 || after.LastAt.Before(d.DueAt) || after.LastAt.Sub(d.DueAt) > 5*time.Second {
		t.Errorf("sent at %s, due at %s", after.LastAt, d.DueAt)
	}
}

// An event that comes again, as after a crash before its ack, makes nothing new.
func TestTwice(t *testing.T) {
	t.Parallel()
	rc := receive(t, status(200))
	w := newWorld(t)
	w.start()
	h := w.hook("h", rc.URL)
	id := w.job("job_1")
	w.stands(h, id, event.DeliveryDelivered)
	late := w.hook("late", rc.URL, func(h *store.Webhook) { h.Since = h.Since.Add(-time.Hour) })
	w.job("job_1")
	w.stands(late, id, event.DeliveryDelivered) // as if the crash had come between two deliveries
	w.settled()
	rc.want(t, 2)
}

// A receiver that answers nothing, or never stops answering, holds up nobody but itself.
func TestSlowReceiver(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	release := sync.OnceFunc(func() { close(stop) })
	t.Cleanup(release)
	var now, most atomic.Int32
	slow := receive(t, func(n int, rw http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		if n%2 == 0 {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(rw, strings.Repeat("x", 1<<16)); err != nil {
					return
				}
			}
		}
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	})
	fast := receive(t, status(200))
	w := newWorld(t, func(c *webhooks.Config) { c.Timeout, c.Concurrency, c.PerWebhook = 20*time.Second, 16, 4 })
	w.start()
	s, f := w.hook("slow", slow.URL), w.hook("fast", fast.URL)
	var ids []string
	for i := range 100 {
		ids = append(ids, w.job(fmt.Sprintf("job_%d", i)))
	}
	start := time.Now()
	for _, id := range ids {
		w.stands(f, id, event.DeliveryDelivered)
	}
	if took := time.Since(start); took > 15*time.Second { // before the first time-out
		t.Errorf("the fast receiver had all after %s", took)
	}
	if n := most.Load(); n > 5 { // one that was hung up on may not know yet
		t.Errorf("%d requests at once to the slow one", n)
	}
	release()
	w.stands(s, ids[99], event.DeliveryDelivered)
}

// Nothing is sent to an address that is not public and not allowed, and that is a failure like others.
func TestPrivateAddress(t *testing.T) {
	t.Parallel()
	rc := receive(t, status(200))
	w := newWorld(t, func(c *webhooks.Config) { c.AllowEndpoints = nil })
	w.start()
	_, port, _ := strings.Cut(strings.TrimPrefix(rc.URL, "http://"), ":")
	hosts := []string{"https://localhost:" + port, "https://127.0.0.1:" + port, "http://127.0.0.1:" + port, "https://[::ffff:127.0.0.1]:" + port, "https://169.254.169.254/latest"}
	var hooks []store.Webhook
	for _, url := range hosts {
		hooks = append(hooks, w.hook(url, url))
	}
	id := w.job("job_1")
	for _, h := range hooks {
		if d := w.stands(h, id, event.DeliveryFailed); d.Attempts != len(soon)+1 || d.Code != 0 || !strings.Contains(d.Error, "--allow-endpoint") {
			t.Errorf("%s: %+v", h.URL, d)
		}
	}
	rc.want(t, 0)
}

// A new secret signs from now on, what is queued as well; the old one signs beside it for a while.
func TestRotation(t *testing.T) {
	t.Parallel()
	rc, heal := ailing(t, ill)
	w := newWorld(t, func(c *webhooks.Config) { c.Schedule = []time.Duration{time.Hour} })
	w.start()
	h := w.hook("h", rc.URL)
	id := w.job("job_1")
	d := w.stands(h, id, event.DeliveryRetrying)
	fresh := webhook.NewSecret()
	sealed, err := w.keeper.Seal([]byte(fresh.Reveal()), webhook.SecretAAD(h.ID))
	w.must(err)
	_, _, err = w.reg.Modify(t.Context(), h.ID, func(h *store.Webhook) error {
		h.OldSecret, h.Secret, h.OldUntil = h.Secret, sealed, time.Now().Add(time.Hour)
		return nil
	})
	w.must(err)
	heal()
	next := w.job("job_2") // behind the rotation in every order
	w.stands(h, next, event.DeliveryDelivered)
	w.retry(d.ID)
	w.stands(h, id, event.DeliveryDelivered)
	got := rc.requests()
	signed(t, got[0], signingSecret)
	for _, r := range got[1:] {
		signed(t, r, fresh.Reveal())
		if n := len(strings.Fields(r.header.Get("webhook-signature"))); n != 2 {
			t.Errorf("%d signatures during the overlap", n)
		}
	}
	if n := len(strings.Fields(got[0].header.Get("webhook-signature"))); n != 1 {
		t.Errorf("%d signatures before", n)
	}
}

// What answers while the service stops counts: the delivery, how the webhook is doing, and that it is gone.
func TestAnsweredWhileStopping(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}, 2), make(chan struct{})
	late := func(code int) func(int, http.ResponseWriter, *http.Request) {
		return func(_ int, rw http.ResponseWriter, _ *http.Request) {
			asked <- struct{}{}
			<-answer
			rw.WriteHeader(code)
		}
	}
	gone, broken := receive(t, late(410)), receive(t, late(500))
	w := newWorld(t, func(c *webhooks.Config) { c.Schedule = []time.Duration{time.Hour} })
	w.start()
	g, b := w.hook("gone", gone.URL), w.hook("broken", broken.URL)
	id := w.job("job_1")
	<-asked
	<-asked
	stopped := w.stopping()
	close(answer)
	stopped()
	w.stands(g, id, event.DeliveryFailed)
	w.stands(b, id, event.DeliveryRetrying)
	for h, ok := range map[string]func(store.Webhook) bool{
		g.ID: func(h store.Webhook) bool { return h.Status == store.WebhookDisabled && h.Failures == 1 },
		b.ID: func(h store.Webhook) bool { return h.Status == store.WebhookActive && h.Failures == 1 },
	} {
		now, _, err := w.reg.Get(t.Context(), h)
		w.must(err)
		if !ok(now) {
			t.Errorf("%s is %s after %d failures", now.Name, now.Status, now.Failures)
		}
	}
}

// A broker that takes nothing does not hold up the end of the service. What came of the attempt is lost then, and the
// attempt is made again.
func TestStopsWithoutBroker(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}, 2), make(chan struct{})
	rc := receive(t, func(_ int, _ http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-answer
	})
	w := newWorld(t)
	w.start()
	h := w.hook("h", rc.URL)
	id := w.job("job_1")
	<-asked
	full := func(is bool) {
		t.Helper()
		s, err := w.env.Bus.JetStream().Stream(t.Context(), w.env.Bus.Stream(topology.Deliveries))
		w.must(err)
		cfg := s.CachedInfo().Config
		cfg.Discard, cfg.DiscardNewPerSubject = jetstream.DiscardOld, is
		if is {
			cfg.Discard = jetstream.DiscardNew
		}
		_, err = w.env.Bus.JetStream().UpdateStream(t.Context(), cfg)
		w.must(err)
	}
	full(true)
	stopped := w.stopping()
	close(answer)
	stopped()
	w.stands(h, id, event.DeliveryPending)
	full(false)
	w.start()
	if d := w.stands(h, id, event.DeliveryDelivered); d.Attempts != 1 {
		t.Errorf("%+v", d)
	}
	rc.want(t, 2)
}

// What the receiver of a webhook that was deleted says is nothing to the one that has its id now.
func TestEarlierLife(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	former := receive(t, func(_ int, rw http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-answer
		rw.WriteHeader(http.StatusGone)
	})
	w := newWorld(t, func(c *webhooks.Config) { c.PerWebhook = 1 }) // so the next attempt shows that this one is over
	w.start()
	w.hook("h", former.URL)
	w.job("job_1")
	<-asked
	w.must(w.reg.Delete(t.Context(), event.WebhookOfKey("test", "h")))
	h := w.hook("h", receive(t, status(200)).URL)
	id := w.job("job_2")
	w.settled()
	close(answer)
	w.stands(h, id, event.DeliveryDelivered)
	if now, _, err := w.reg.Get(t.Context(), h.ID); err != nil || now.Status != store.WebhookActive || now.Failures != 0 {
		t.Errorf("%s after %d failures, %v", now.Status, now.Failures, err)
	}
}

// What is queued for a webhook that was deleted is not sent, also when another one has its id.
func TestDeleted(t *testing.T) {
	t.Parallel()
	rc := receive(t, status(500))
	w := newWorld(t, func(c *webhooks.Config) { c.Schedule = []time.Duration{100 * time.Millisecond, 100 * time.Millisecond} })
	w.start()
	h := w.hook("h", rc.URL)
	id := w.job("job_1")
	d := w.stands(h, id, event.DeliveryRetrying)
	w.must(w.reg.Delete(t.Context(), h.ID))
	reborn := receive(t, status(200))
	w.hook("h", reborn.URL)
	servicetest.Eventually(t, "the delivery is forgotten", func() error {
		_, _, err := w.deliveries.Get(t.Context(), d.ID)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return fmt.Errorf("still there: %w", err)
	})
	reborn.want(t, 0)
}

// The webhook's secret is nowhere but in its record, and sealed there.
func TestSecretStaysInside(t *testing.T) {
	t.Parallel()
	rc := receive(t, status(500))
	w := newWorld(t)
	w.start()
	h := w.hook("h", rc.URL)
	w.stands(h, w.job("job_1"), event.DeliveryFailed)
	w.record(h, "the books are written", func(h store.Webhook) bool { return h.Failures > 0 })
	names := w.env.Bus.JetStream().StreamNames(t.Context())
	for name := range names.Name() {
		s, err := w.env.Bus.JetStream().Stream(t.Context(), name)
		w.must(err)
		info := s.CachedInfo().State
		for seq := info.FirstSeq; seq <= info.LastSeq; seq++ {
			if m, err := s.GetMsg(context.Background(), seq); err == nil && strings.Contains(string(m.Data)+fmt.Sprint(m.Header), signingSecret) {
				t.Errorf("%s holds the secret", m.Subject)
			}
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	if err := (webhooks.Config{}).Validate(); err != nil {
		t.Error(err)
	}
	err := webhooks.Config{AllowEndpoints: []string{"10/8 "}, Schedule: []time.Duration{0}, PerWebhook: -1}.Validate()
	for _, word := range []string{"--allow-endpoint", "pause 0s", "per webhook -1"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v says nothing of %s", err, word)
		}
	}
	var days time.Duration
	for _, d := range webhooks.DefaultSchedule() {
		days += d
	}
	if days < 60*time.Hour {
		t.Errorf("the schedule ends after %s", days)
	}
}
