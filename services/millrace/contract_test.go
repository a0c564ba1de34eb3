package millrace_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"millrace/services/admin/strict"
	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/secret"
	"millrace/shared/webhook"
)

// What official clients do, done over HTTP to the real server: every answer is read as the strictest of them reads it.

// caller is such a client.
type caller struct {
	t    testing.TB
	url  string
	key  string
	http *http.Client
}

func newCaller(t testing.TB, url, key string) *caller {
	return &caller{t: t, url: url, key: key, http: &http.Client{
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// reply is an answer that obeys what holds for all answers.
type reply struct {
	t      testing.TB
	what   string
	status int
	header http.Header
	raw    []byte
	body   any
}

// call sends body as JSON; []byte is sent as it is, nil is no body.
func (c *caller) call(method, path string, body any, header ...string) reply {
	c.t.Helper()
	raw, isRaw := body.([]byte)
	if !isRaw && body != nil {
		var err error
		raw, err = json.Marshal(body)
		must(c.t, err)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.url+"/api/v2"+path, bytes.NewReader(raw))
	must(c.t, err)
	if c.key != "" {
		req.Header.Set("X-API-Key", c.key)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for pair := range slices.Chunk(header, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	res, err := c.http.Do(req)
	must(c.t, err)
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	must(c.t, err)
	r := reply{t: c.t, what: method + " " + path, status: res.StatusCode, header: res.Header, raw: data}
	r.check(method, path)
	return r
}

func (r *reply) check(method, path string) {
	r.t.Helper()
	id := r.header.Get("X-Request-ID")
	switch {
	case id == "":
		r.t.Errorf("%s: no request id", r.what)
	case r.status == http.StatusNoContent && path == "/auth/validate", r.header.Get("Content-Disposition") != "":
		return
	case r.status >= 300 && r.status < 400:
		r.t.Errorf("%s: a redirect", r.what)
	}
	if kind := r.header.Get("Content-Type"); kind != "application/json; charset=utf-8" {
		r.t.Errorf("%s: %d of type %q", r.what, r.status, kind)
	}
	if err := json.Unmarshal(r.raw, &r.body); err != nil {
		r.t.Fatalf("%s: %d %q: %v", r.what, r.status, r.raw, err)
	}
	if r.status < 300 {
		if err := strict.Check(method, path, r.raw); err != nil {
			r.t.Error(err)
		}
		return
	}
	if r.str("error", "code") == "" || r.str("error", "message") == "" || r.str("error", "request_id") != id || r.str("request_id") != id {
		r.t.Errorf("%s: not the envelope of errors: %s", r.what, r.raw)
	}
	if wait := r.header.Get("Retry-After"); (r.status == 429 || r.status == 503) != regexp.MustCompile(`^[1-9]\d{0,2}$`).MatchString(wait) {
		r.t.Errorf("%s: %d with Retry-After %q", r.what, r.status, wait)
	}
}

func (r reply) want(status int) reply {
	r.t.Helper()
	if r.status != status {
		r.t.Fatalf("%s: %d, want %d: %s", r.what, r.status, status, r.raw)
	}
	return r
}

func (r reply) refused(status int, code string) reply {
	r.t.Helper()
	if r.status != status || r.str("error", "code") != code {
		r.t.Fatalf("%s: %d %s, want %d %s", r.what, r.status, r.raw, status, code)
	}
	return r
}

// at walks into the body: names, and numbers for elements.
func (r reply) at(path ...any) any { return strict.At(r.body, path...) }

func (r reply) str(path ...any) string { s, _ := r.at(path...).(string); return s }
func (r reply) list(path ...any) []any { l, _ := r.at(path...).([]any); return l }

// each is one member of all elements of a list.
func (r reply) each(member string, path ...any) (all []string) {
	for _, e := range r.list(path...) {
		m, _ := e.(map[string]any)
		s, _ := m[member].(string)
		all = append(all, s)
	}
	slices.Sort(all)
	return all
}

// gcs makes a connector with a form, scopes as repeated parts.
func (c *caller) gcs(storage *gcstest.Server, bucket string, credentials []byte, scopes []string, header ...string) reply {
	c.t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	fields := [][2]string{{"name", "Cloud"}, {"bucket", bucket}, {"gcp_project_id", "p"}, {"endpoint_url", storage.URL}, {"import_mode", "new_only"}}
	for _, s := range scopes {
		fields = append(fields, [2]string{"scopes", s})
	}
	for _, f := range fields {
		must(c.t, w.WriteField(f[0], f[1]))
	}
	part, err := w.CreateFormFile("credentials_file", "anything at all")
	must(c.t, err)
	_, err = part.Write(credentials)
	must(c.t, errors.Join(err, w.Close()))
	return c.call("POST", "/connectors/gcs", b.Bytes(), append(header, "Content-Type", w.FormDataContentType())...)
}

// ended polls a job or a run to its end.
func (c *caller) ended(path string) (r reply) {
	c.t.Helper()
	eventually(c.t, path+" ends", func() error {
		r = c.call("GET", path, nil).want(200)
		if s := r.str("status"); s == "pending" || s == "scanning" || s == "importing" || s == "processing" {
			return errors.New(s)
		}
		return nil
	})
	return r
}

// hookServer notes what is delivered to it, and answers 500 to the first failures of them.
type hookServer struct {
	*httptest.Server
	mu       sync.Mutex
	failures int
	got      []delivered
}

type delivered struct {
	header http.Header
	body   []byte
}

func newHookServer(t testing.TB) *hookServer {
	h := new(hookServer)
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.got = append(h.got, delivered{r.Header, body})
		if h.failures > 0 {
			h.failures--
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hookServer) deliveries() []delivered {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.got)
}

// events verifies deliveries as a receiver does, over the raw bytes, and returns the events, each once, in order.
func (h *hookServer) events(t testing.TB, id, key string) (events []string) {
	t.Helper()
	seen := make(map[string]bool)
	for _, d := range h.deliveries() {
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write(d.body)
		if d.header.Get("X-Webhook-Signature") != "sha256="+hex.EncodeToString(mac.Sum(nil)) || d.header.Get("X-Webhook-ID") != id {
			t.Errorf("not signed for %s: %v", id, d.header)
		}
		var e struct {
			ID, Event  string
			APIVersion string `json:"api_version"`
			Created    string `json:"created_at"`
			Data       map[string]any
		}
		must(t, json.Unmarshal(d.body, &e))
		if e.ID == "" || e.Event != d.header.Get("X-Event-Type") || e.APIVersion != "2024-01" || e.Created == "" || e.Data == nil || d.header.Get("X-Delivery-ID") == "" {
			t.Errorf("an envelope that is not whole: %s", d.body)
		}
		if !seen[d.header.Get("X-Delivery-ID")] {
			seen[d.header.Get("X-Delivery-ID")] = true
			events = append(events, e.Event)
		}
	}
	return events
}

func count(list []string, s string) (n int) {
	for _, e := range list {
		if e == s {
			n++
		}
	}
	return n
}

// TestContractSequence is the end-to-end sequence of contract §19, with a bucket in the cloud.
func TestContractSequence(t *testing.T) {
	t.Parallel()
	storage := gcstest.Start(t, "field-recordings")
	for i, name := range []string{"cams/a.mp4", "cams/b.mov", "cams/notes.txt", "cams/cut.mp4", "other/c.mp4"} {
		file := map[string]string{"cams/b.mov": "video.mov", "cams/notes.txt": "text.mp4", "cams/cut.mp4": "cut.mp4"}[name]
		if file == "" {
			file = "video.mp4"
		}
		storage.Put("field-recordings", name, fmt.Appendf(sample(t, file), "%d", i))
	}
	hooks := newHookServer(t)
	up := startUp(t, "--allow-endpoint", "127.0.0.0/8", "--executor", "exec="+countBytes)
	c := newCaller(t, up.url, apiKey)
	c.call("GET", "/auth/validate", nil).want(204)

	// 1 to 3: a connector, tested and browsed.
	made := c.gcs(storage, "field-recordings", storage.Credentials(t), nil, "Idempotency-Key", "connector-create-gcs:0123456789abcdef0123456789abcdef").want(201)
	conn := made.str("connector_id")
	if made.str("status") != "active" || made.at("last_tested_at") != nil {
		t.Errorf("a new connector: %s", made.raw)
	}
	if r := c.call("POST", "/connectors/"+conn+"/test", nil).want(200); r.at("success") != true || r.at("error_message") != nil {
		t.Fatalf("test: %s", r.raw)
	}
	if r := c.call("GET", "/connectors/"+conn, nil).want(200); r.at("last_tested_at") == nil || r.at("last_test_result") != "success" {
		t.Errorf("a tested connector: %s", r.raw)
	}
	found := c.call("POST", "/connectors/"+conn+"/browse", obj{"prefix": "cams/", "pattern": "*.{mp4,mov}", "recursive": true}).want(200)
	if got := found.each("path"); !slices.Equal(got, []string{"cams/a.mp4", "cams/b.mov", "cams/cut.mp4"}) {
		t.Errorf("browse: %v", got)
	}

	// 4 and 5: an index and a webhook.
	index := c.call("POST", "/indexes", obj{"name": "Cameras"}, "Idempotency-Key", "index-create:1").want(201).str("index_id")
	hook := c.call("POST", "/webhooks", obj{"name": "n8n", "url": hooks.URL, "index_ids": []string{index}, "metadata": obj{"n8n_workflow_id": "12"}, "events": []string{
		"import_job.started", "import_job.completed", "import_job.partial_completed", "import_job.failed", "media.created",
		"media.processing.completed", "media.processing.failed",
		"prompt_run.started", "prompt_run.completed", "prompt_run.partial_completed", "prompt_run.failed", "export.ready",
	}}, "Idempotency-Key", "n8n-webhook-1").want(201)
	if len(hooks.deliveries()) > 0 {
		t.Error("something was sent before the creation was answered")
	}
	told := func(want ...string) {
		t.Helper()
		eventually(t, fmt.Sprint("told of ", want), func() error {
			got := hooks.events(t, hook.str("webhook_id"), hook.str("secret"))
			for _, e := range want {
				if count(got, e) < count(want, e) {
					return fmt.Errorf("%v", got)
				}
			}
			return nil
		})
	}

	// 6 and 7: an import job, polled to its end.
	request := obj{"connector_id": conn, "index_id": index, "source_prefix": "cams/", "file_pattern": "*.{mp4,mov}", "recursive": true}
	job := c.call("POST", "/import-jobs", request, "Idempotency-Key", "import-job-create:1").want(202)
	if job.str("status") != "pending" || job.str("target_index_id") != index {
		t.Errorf("a new job: %s", job.raw)
	}
	id := job.str("job_id")
	done := c.ended("/import-jobs/" + id)
	if done.str("status") != "completed" || len(done.list("video_ids")) != 2 || !slices.Equal(done.each("path", "failed_files"), []string{"cams/cut.mp4"}) {
		t.Fatalf("the job: %s", done.raw)
	}
	told("import_job.started", "media.created", "media.created", "import_job.partial_completed")

	// The same key again is the same job; a new one finds everything imported.
	if again := c.call("POST", "/import-jobs", request, "Idempotency-Key", "import-job-create:1").want(202); !bytes.Equal(again.raw, job.raw) {
		t.Errorf("repeated: %s, then %s", job.raw, again.raw)
	}
	request["file_pattern"] = "*.{mov,mp4}"
	request["source_prefix"] = "cams/a.mp4" // a whole key
	second := c.ended("/import-jobs/" + c.call("POST", "/import-jobs", request, "Idempotency-Key", "import-job-create:2").want(202).str("job_id"))
	if second.str("status") != "completed" || len(second.list("video_ids")) != 0 || !slices.Equal(second.each("reason", "skipped_files"), []string{"already imported"}) {
		t.Errorf("imported before: %s", second.raw)
	}
	if n := len(c.call("GET", "/import-jobs?index_id="+index, nil).want(200).list()); n != 2 {
		t.Errorf("%d jobs", n)
	}

	// 8: its media.
	batch := c.call("POST", "/videos/batch", obj{"video_ids": done.at("video_ids")}).want(200)
	page := c.call("GET", "/indexes/"+index+"/videos", nil).want(200)
	if !slices.Equal(batch.each("title"), []string{"a.mp4", "b.mov"}) || !slices.Equal(batch.each("video_id"), page.each("video_id", "data")) {
		t.Errorf("media: %s, %s", batch.raw, page.raw)
	}

	// 9 and 10: a run on them, and its results.
	prompt := c.call("POST", "/prompts", obj{"name": "Vehicle log", "prompt_text": "Which vehicles can be seen?", "json_schema": obj{"type": "object"}}).want(201).str("prompt_id")
	execute := obj{"prompt_id": prompt, "target": obj{"type": "videos", "video_ids": done.at("video_ids"), "index_id": index},
		"video_segmentation_type": "smart", "audio_segmentation_type": "content_aware", "enable_transcription": true, "enable_image_embedding": true}
	c.call("POST", "/prompt-runs/estimate", execute).want(200)
	run := c.call("POST", "/prompt-runs/execute", execute, "Idempotency-Key", "prompt-run-execute:1").want(202).str("run_id")
	if r := c.ended("/prompt-runs/" + run); r.str("status") != "completed" || r.at("total_videos") != 2.0 || r.at("completed_videos") != 2.0 {
		t.Errorf("the run: %s", r.raw)
	}
	results := c.call("GET", "/prompt-runs/"+run+"/results?video_id="+batch.str(0, "video_id"), nil).want(200)
	if bytes, _ := results.at("data", 0, "metadata", "bytes").(float64); len(results.list("data")) != 1 || bytes == 0 {
		t.Errorf("results: %s", results.raw)
	}
	told("prompt_run.started", "media.processing.completed", "prompt_run.completed")
	export := c.call("POST", "/exports/prompt-run/"+run, nil).want(202).str("export_id")
	var ready reply
	eventually(t, "the export is ready", func() error {
		ready = c.call("GET", "/exports/"+export, nil).want(200)
		if ready.at("download_url") == nil {
			return errors.New(ready.str("status"))
		}
		return nil
	})
	file := c.call("GET", strings.TrimPrefix(ready.str("download_url"), "/api/v2"), nil).want(200)
	if file.header.Get("Content-Encoding") != "" || file.header.Get("Content-Length") != fmt.Sprint(ready.at("file_size_bytes")) ||
		file.header.Get("Content-Type") != "application/json" || !json.Valid(file.raw) {
		t.Errorf("download: %v, %d bytes", file.header, len(file.raw))
	}
	told("export.ready")

	// 11: from now on by itself.
	c.call("PUT", "/indexes/"+index+"/automations/import", obj{
		"enabled": true, "paused": false, "connector_id": conn, "source_prefix": "other/", "file_pattern": "*.{mp4,mov}", "recursive": true,
		"debounce_interval": "1s", "prompt_preset": obj{"prompt_id": prompt},
	}).want(200)
	var jobs reply
	eventually(t, "a job of the automation", func() error {
		if jobs = c.call("GET", "/import-jobs?automation_only=true&index_id="+index, nil).want(200); len(jobs.list()) == 0 {
			return errors.New("none")
		}
		return nil
	})
	byItself := c.ended("/import-jobs/" + jobs.str(0, "job_id"))
	eventually(t, "its run", func() error {
		r := c.call("GET", "/indexes/"+index+"/prompt-runs", nil).want(200)
		if len(r.list("data")) != 2 || r.str("data", 0, "status") != "completed" || r.str("data", 0, "run_context", "video_ids", 0) != byItself.str("video_ids", 0) {
			return fmt.Errorf("%s", r.raw)
		}
		return nil
	})
	told("import_job.completed", "prompt_run.completed", "prompt_run.completed")
}

// TestContractChecklist is the checklist of contract §22, one test per item. What an item means in detail, and what
// does not fit into a sentence, is held by the tests of services/admin and services/webhooks.
func TestContractChecklist(t *testing.T) {
	t.Parallel()
	storage := gcstest.Start(t, "bucket", "slow")
	for i, name := range []string{"in/a.mp4", "in/deep/b.mov", "in/c.png", "in/bad.mp4"} {
		file := map[string]string{"in/c.png": "photo.png", "in/bad.mp4": "cut.mp4"}[name]
		if file == "" {
			file = "video.mp4"
		}
		storage.Put("bucket", name, fmt.Appendf(sample(t, file), "%d", i))
	}
	storage.Put("slow", "in/s.mp4", sample(t, "video.mp4"))
	hooks := newHookServer(t)
	up := startUp(t, "--allow-endpoint", "127.0.0.0/8", "--executor", "exec="+countBytes, "--write-limit", "300/20000")
	c := newCaller(t, up.url, apiKey)
	credentials := storage.Credentials(t)
	conn := c.gcs(storage, "bucket", credentials, []string{"import"}).want(201).str("connector_id")
	index := c.call("POST", "/indexes", obj{"name": "Main"}).want(201).str("index_id")
	prompt := c.call("POST", "/prompts", obj{"name": "Count", "prompt_text": "Count the bytes.", "json_schema": obj{"type": "object"}}).want(201).str("prompt_id")
	hook := c.call("POST", "/webhooks", obj{"name": "all", "url": hooks.URL, "events": webhook.Events()}).want(201)
	job := c.ended("/import-jobs/" + c.call("POST", "/import-jobs", obj{"connector_id": conn, "index_id": index, "source_prefix": "in/"}).want(202).str("job_id"))
	run := c.ended("/prompt-runs/" + c.call("POST", "/prompt-runs/execute", obj{"prompt_id": prompt, "target": obj{"type": "index", "index_id": index}}).want(202).str("run_id"))

	keyOf := func(t *testing.T, scope string) string {
		t.Helper()
		p := start(t, "key", "create", scope, "--scope", scope, "--data", up.data, "-o", "json")
		<-p.exited
		var k struct{ Key string }
		text := p.output()
		must(t, json.Unmarshal([]byte(text), &k))
		return k.Key
	}
	item := func(name string, check func(t *testing.T, c *caller)) {
		t.Run(name, func(t *testing.T) { check(t, newCaller(t, up.url, apiKey)) })
	}

	item("Every 2xx except auth validate has a JSON body; arrays are never null", func(t *testing.T, c *caller) {
		if r := c.call("GET", "/auth/validate", nil).want(204); len(r.raw) > 0 {
			t.Errorf("validate: %q", r.raw)
		}
		empty := c.call("POST", "/indexes", obj{"name": "Empty"}).want(201).str("index_id")
		for _, path := range []string{ // each is read strictly
			"/indexes", "/connectors", "/import-jobs", "/prompt-runs", "/webhooks", "/webhooks/events", "/exports", "/prompts", "/usage/details",
			"/usage/metric-types", "/rate-limit/status", "/playground/videos", "/automations", "/dead", "/indexes/" + empty + "/videos",
			"/indexes/" + empty + "/prompt-runs", "/prompt-runs/" + run.str("run_id") + "/llm-calls", "/webhooks/" + hook.str("webhook_id") + "/deliveries",
		} {
			c.call("GET", path, nil).want(200)
		}
		if r := c.call("GET", "/import-jobs?index_id="+empty, nil).want(200); string(bytes.TrimSpace(r.raw)) != "[]" {
			t.Errorf("no jobs: %s", r.raw)
		}
	})
	item("Error envelope with code, message, request id in three places", func(t *testing.T, c *caller) {
		newCaller(t, up.url, "").call("GET", "/indexes", nil).refused(401, "authentication_invalid_api_key")
		c.call("GET", "/nowhere", nil).refused(404, "route_not_found")
		c.call("GET", "/import-jobs/job_x", nil).refused(404, "resource_import_job_not_found")
		c.call("POST", "/indexes", []byte(`{`)).refused(400, "request_malformed")
		c.call("POST", "/indexes", obj{"name": 5}).refused(422, "validation_error")
		c.call("POST", "/indexes", obj{"name": strings.Repeat("x", 2<<20)}).refused(413, "request_too_large")
		c.call("DELETE", "/indexes", nil).refused(405, "method_not_allowed")
		for _, path := range []string{"/videos", "/videos/upload", "/search", "/workflow/search", "/markers", "/billing"} { // outside: never 5xx, which is retried
			if r := c.call("POST", path, obj{}); r.status != 404 {
				t.Errorf("%s: %d", path, r.status)
			}
		}
	})
	item("Keys match the 48-hex pattern; scopes nest; scope before look-up", func(t *testing.T, c *caller) {
		levels := []string{"search", "read", "write", "admin"}
		for have, level := range levels {
			key := keyOf(t, level)
			if !regexp.MustCompile(`^sk_live_[0-9a-f]{48}$`).MatchString(key) {
				t.Fatalf("key %q", key)
			}
			c.key = key
			c.call("GET", "/auth/validate", nil).want(204)
			for need, ask := range [][2]string{{"GET", "/indexes/nothing"}, {"GET", "/import-jobs/nothing"}, {"POST", "/import-jobs/nothing/cancel"}, {"DELETE", "/webhooks/nothing"}} {
				r := c.call(ask[0], ask[1], nil)
				if want := map[bool]int{true: 404, false: 403}[have >= need]; r.status != want {
					t.Errorf("%s %s with %s: %d, want %d", ask[0], ask[1], level, r.status, want)
				}
			}
		}
	})
	item("Retry-After integer on 429 and 503", func(t *testing.T, c *caller) {
		c.key = keyOf(t, "write") // and the limit is its own
		eventually(t, "a key is limited", func() error {
			r := c.call("POST", "/import-jobs/job_x/cancel", nil)
			if r.status != 429 {
				return fmt.Errorf("%d", r.status)
			}
			r.refused(429, "rate_limit_exceeded") // with Retry-After, see check
			return nil
		})
		c.call("GET", "/import-jobs", nil).want(200)
		// 503: TestBrokerAway, TestStoreFull and TestSilentProcess of services/admin, whose answers are checked the same.
	})
	item("POST replays by key with equal answers; mismatch 409; {} equals no body; only 2xx kept", func(t *testing.T, c *caller) {
		body := obj{"name": "Once"}
		first := c.call("POST", "/indexes", body, "Idempotency-Key", "k:1").want(201)
		if again := c.call("POST", "/indexes", []byte("{ \"name\" : \"Once\" }"), "Idempotency-Key", " k:1 ").want(201); !bytes.Equal(first.raw, again.raw) {
			t.Errorf("%s, then %s", first.raw, again.raw)
		}
		c.call("POST", "/indexes", obj{"name": "Twice"}, "Idempotency-Key", "k:1").refused(409, "idempotency_request_mismatch")
		c.call("POST", "/indexes", obj{"name": ""}, "Idempotency-Key", "k:2").want(422)
		c.call("POST", "/indexes", obj{"name": "Right"}, "Idempotency-Key", "k:2").want(201)
		export := "/exports/prompt-run/" + run.str("run_id")
		none := c.call("POST", export, nil, "Idempotency-Key", "k:3").want(202)
		if empty := c.call("POST", export, obj{}, "Idempotency-Key", "k:3").want(202); !bytes.Equal(none.raw, empty.raw) {
			t.Errorf("%s, then %s", none.raw, empty.raw)
		}
	})
	item("Webhook creation replays the secret; recreation after delete keeps the id", func(t *testing.T, c *caller) {
		body := obj{"name": "n8n", "url": hooks.URL + "//x?a=b#c", "events": []string{"export.failed"}, "metadata": obj{"n": 1.50, "n8n_node_id": "a"}}
		key := "n8n-webhook-" + strings.Repeat("ab", 32)
		first := c.call("POST", "/webhooks", body, "Idempotency-Key", key).want(201)
		if again := c.call("POST", "/webhooks", body, "Idempotency-Key", key).want(201); !bytes.Equal(again.raw, first.raw) || first.str("url") != body["url"] {
			t.Errorf("%s, then %s", first.raw, again.raw)
		}
		id := first.str("webhook_id")
		c.call("DELETE", "/webhooks/"+id, nil).want(200)
		anew := c.call("POST", "/webhooks", body, "Idempotency-Key", key).want(201)
		if anew.str("webhook_id") != id || anew.str("secret") == first.str("secret") {
			t.Errorf("recreated: %s", anew.raw)
		}
	})
	item("GCS multipart: repeated scopes, 65536-byte limit inclusive", func(t *testing.T, c *caller) {
		if r := c.gcs(storage, "bucket", credentials, []string{"import", "export"}).want(201); len(r.list("scopes")) != 2 {
			t.Errorf("scopes: %s", r.raw)
		}
		padded := append(slices.Clone(credentials), bytes.Repeat([]byte(" "), 65536-len(credentials))...)
		c.gcs(storage, "bucket", padded, nil).want(201)
		if r := c.gcs(storage, "bucket", append(padded, ' '), nil); r.status != 413 && r.status != 422 {
			t.Errorf("65537 bytes: %d", r.status)
		}
	})
	item("Browse, jobs, automations share one matcher; a full key as prefix works; brace alternatives work", func(t *testing.T, c *caller) {
		for _, m := range []struct {
			prefix, pattern string
			recursive       bool
			want            []string
		}{
			{"in/", "*.{mp4,mov}", true, []string{"in/a.mp4", "in/bad.mp4", "in/deep/b.mov"}},
			{"in/a.mp4", "a.mp4", false, []string{"in/a.mp4"}},
			{"in/", "*", false, []string{"in/a.mp4", "in/bad.mp4", "in/c.png"}},
			{"", "in/deep/*.mov", true, []string{"in/deep/b.mov"}},
			{"in", "**/b.*", true, []string{"in/deep/b.mov"}},
		} {
			found := c.call("POST", "/connectors/"+conn+"/browse", obj{"prefix": m.prefix, "pattern": m.pattern, "recursive": m.recursive}).want(200).each("path")
			into := c.call("POST", "/indexes", obj{"name": "Match"}).want(201).str("index_id")
			c.call("PUT", "/indexes/"+into+"/automations/import", obj{"enabled": false, "connector_id": conn, "source_prefix": m.prefix, "file_pattern": m.pattern,
				"recursive": m.recursive, "debounce_interval": "1h", "prompt_preset": nil}).want(200)
			planned := c.call("GET", "/indexes/"+into+"/automations/import/plan", nil).want(200).each("path", "files")
			id := c.call("POST", "/import-jobs", obj{"connector_id": conn, "index_id": into, "source_prefix": m.prefix, "file_pattern": m.pattern, "recursive": m.recursive}).want(202).str("job_id")
			c.ended("/import-jobs/" + id)
			imported := c.call("GET", "/import-jobs/"+id+"/files", nil).want(200).each("path", "data")
			if !slices.Equal(found, m.want) || !slices.Equal(planned, m.want) || !slices.Equal(imported, m.want) {
				t.Errorf("%q %q: browsed %v, planned %v, imported %v, want %v", m.prefix, m.pattern, found, planned, imported, m.want)
			}
		}
		c.call("POST", "/connectors/"+conn+"/browse", obj{"pattern": "{a"}).refused(422, "validation_error")
	})
	item("index_id in, target_index_id out; only strings inside the file lists", func(t *testing.T, c *caller) {
		r := c.call("GET", "/import-jobs/"+job.str("job_id"), nil).want(200)
		if r.str("target_index_id") != index || r.at("index_id") != nil || len(r.list("failed_files")) != 1 {
			t.Errorf("job: %s", r.raw)
		}
		if r := c.call("POST", "/import-jobs", obj{"connector_id": conn, "target_index_id": index}); r.status != 422 {
			t.Errorf("target_index_id in: %d", r.status)
		}
	})
	item("completed with failures, partial_completed event, no seventh status", func(t *testing.T, c *caller) {
		if job.str("status") != "completed" || job.at("progress", "failed") != 1.0 || job.at("progress", "imported") != 3.0 {
			t.Errorf("job: %s", job.raw)
		}
		eventually(t, "the job is told", func() error {
			got := hooks.events(t, hook.str("webhook_id"), hook.str("secret"))
			if !slices.Contains(got, "import_job.partial_completed") {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
	})
	item("Cancel answers cancelled at once; terminal 400", func(t *testing.T, c *caller) {
		c.call("POST", "/import-jobs/"+job.str("job_id")+"/cancel", nil).refused(400, "import_job_not_cancellable")
		slow := c.gcs(storage, "slow", credentials, nil).want(201).str("connector_id")
		storage.Inject(1000, func(r *http.Request) bool { return strings.Contains(r.URL.Path, "s.mp4") }, gcstest.Stalled)
		defer storage.Heal()
		id := c.call("POST", "/import-jobs", obj{"connector_id": slow, "index_id": index}).want(202).str("job_id")
		r := c.call("POST", "/import-jobs/"+id+"/cancel", obj{}).want(200)
		if r.str("status") != "cancelled" {
			t.Errorf("cancelled: %s", r.raw)
		}
		c.call("POST", "/import-jobs/"+id+"/cancel", nil).want(400)
		c.call("POST", "/import-jobs/"+id+"/retry", nil).refused(400, "import_job_not_retryable")
	})
	item("automation_only, index_id, status, limit filters on jobs", func(t *testing.T, c *caller) {
		if r := c.call("GET", "/import-jobs?automation_only=true", nil).want(200); len(r.list()) != 0 {
			t.Errorf("of automations: %s", r.raw)
		}
		if r := c.call("GET", "/import-jobs?index_id="+index+"&status=COMPLETED&limit=200", nil).want(200); !slices.Contains(r.each("job_id"), job.str("job_id")) {
			t.Errorf("completed: %s", r.raw)
		}
		if r := c.call("GET", "/import-jobs?limit=1", nil).want(200); len(r.list()) != 1 {
			t.Errorf("one: %s", r.raw)
		}
		c.call("GET", "/import-jobs?status=partial", nil).want(422)
		c.call("GET", "/import-jobs?limit=201", nil).want(422)
	})
	item("Automation PUT is a whole replacement; four debounce values; pause keeps everything", func(t *testing.T, c *caller) {
		at := "/indexes/" + c.call("POST", "/indexes", obj{"name": "Auto"}).want(201).str("index_id") + "/automations/import"
		c.call("GET", at, nil).refused(404, "resource_import_automation_not_found")
		c.call("POST", at+"/pause", nil).refused(404, "resource_import_automation_not_found")
		put := func(interval string, change obj) reply {
			body := obj{"enabled": false, "connector_id": conn, "debounce_interval": interval, "prompt_preset": obj{"prompt_id": prompt}}
			maps.Copy(body, change)
			return c.call("PUT", at, body)
		}
		for _, interval := range []string{"5m", "10m", "1h", "1d"} {
			put(interval, nil).want(200)
		}
		put("7m", nil).want(422)
		put("5m", obj{"source_prefix": "in/", "file_pattern": "*.mp4", "recursive": false}).want(200)
		if r := put("5m", nil).want(200); r.str("source_prefix") != "" || r.str("file_pattern") != "*" || r.at("recursive") != true {
			t.Errorf("replaced: %s", r.raw)
		}
		c.call("PUT", at, obj{"connector_id": conn, "debounce_interval": "5m"}).want(422)
		before := c.call("GET", at, nil).want(200)
		paused := c.call("POST", at+"/pause", nil).want(200)
		if paused.at("paused") != true || paused.at("enabled") != false {
			t.Errorf("paused: %s", paused.raw)
		}
		resumed := c.call("POST", at+"/resume", obj{}).want(200)
		for _, member := range []string{"enabled", "paused", "connector_id", "source_prefix", "file_pattern", "debounce_interval"} {
			if resumed.at(member) != before.at(member) {
				t.Errorf("%s was %v, and is %v", member, before.at(member), resumed.at(member))
			}
		}
	})
	item("All 15 media counters and both objects in every run", func(t *testing.T, c *caller) {
		r := c.call("GET", "/prompt-runs/"+run.str("run_id"), nil).want(200)
		for _, kind := range []string{"videos", "audios", "images"} {
			for _, state := range []string{"total", "completed", "failed", "partial", "cancelled"} {
				if _, ok := r.at(state + "_" + kind).(float64); !ok {
					t.Errorf("%s_%s: %v", state, kind, r.at(state+"_"+kind))
				}
			}
		}
		_, context := r.at("run_context").(map[string]any)
		if _, stop := r.at("stop_state").(map[string]any); !context || !stop || r.at("total_videos") != 2.0 || r.at("total_images") != 1.0 {
			t.Errorf("run: %s", r.raw)
		}
	})
	item("Two list shapes, each on its own routes", func(t *testing.T, c *caller) {
		if len(c.call("GET", "/prompt-runs", nil).want(200).list()) == 0 || len(c.call("GET", "/indexes/"+index+"/prompt-runs", nil).want(200).list("data")) == 0 {
			t.Error("no runs")
		}
		seen := make(map[string]bool)
		for cursor := ""; ; {
			r := c.call("GET", "/indexes/"+index+"/videos?limit=1&cursor="+cursor, nil).want(200)
			if next := r.str("pagination", "next_cursor"); next == "" {
				break
			} else if cursor = next; seen[cursor] {
				t.Fatal("a cursor came twice")
			}
			seen[cursor] = true
		}
		if len(seen) < 2 { // three media, and what other items import
			t.Errorf("%d pages before the last", len(seen))
		}
	})
	item("Signature over the exact bytes; test vector passes; X-Delivery-ID stable", func(t *testing.T, c *caller) {
		body := `{"api_version":"2024-01","created_at":"2026-03-01T10:05:00Z","data":{"index_id":"idx_7f3a","job_id":"job_51c2","status":"completed","title":"Café & Co"},"event":"import_job.completed","id":"evt_0192"}`
		if got := webhook.Signature(secret.NewString("whsec_example_do_not_use"), []byte(body)); got != "sha256=d95f1d3374ffce4784dd6562ffc8c55194a650f090a9737a5afcfd0fd39ded5b" {
			t.Errorf("test vector: %s", got)
		}
		own := newHookServer(t)
		own.failures = 1
		made := c.call("POST", "/webhooks", obj{"name": "own", "url": own.URL, "events": []string{"export.ready"}}).want(201)
		id := made.str("webhook_id")
		c.call("POST", "/exports/prompt-run/"+run.str("run_id"), nil).want(202)
		var failed reply
		eventually(t, "a delivery failed", func() error {
			if failed = c.call("GET", "/webhooks/"+id+"/deliveries?status=retrying", nil).want(200); len(failed.list()) != 1 {
				return fmt.Errorf("%s", failed.raw)
			}
			return nil
		})
		delivery := failed.str(0, "delivery_id")
		c.call("POST", "/webhooks/deliveries/"+delivery+"/retry", nil).want(200)
		eventually(t, "it is delivered", func() error {
			if r := c.call("GET", "/webhooks/deliveries/"+delivery, nil).want(200); r.str("status") != "delivered" {
				return fmt.Errorf("%s", r.raw)
			}
			return nil
		})
		got := own.deliveries()
		if len(got) != 2 || !bytes.Equal(got[0].body, got[1].body) {
			t.Fatalf("%d attempts", len(got))
		}
		for _, stable := range []string{"X-Delivery-ID", "Idempotency-Key", "X-Webhook-Signature"} {
			if a, b := got[0].header.Get(stable), got[1].header.Get(stable); a == "" || a != b {
				t.Errorf("%s: %q, then %q", stable, a, b)
			}
		}
		if got[0].header.Get("X-Delivery-ID") != delivery || got[0].header.Get("X-Delivery-Attempt-ID") == got[1].header.Get("X-Delivery-Attempt-ID") {
			t.Errorf("attempts of %s: %v, %v", delivery, got[0].header, got[1].header)
		}
		if events := own.events(t, id, made.str("secret")); !slices.Equal(events, []string{"export.ready"}) {
			t.Errorf("events: %v", events)
		}
		if r := c.call("POST", "/webhooks/"+id+"/test", obj{}).want(200); r.at("success") != true || r.at("status_code") != 200.0 || r.at("error") != nil {
			t.Errorf("test delivery: %s", r.raw)
		}
	})
	item("No route conflicts, no redirects, https-only hooks", func(t *testing.T, c *caller) {
		id := hook.str("webhook_id")
		c.call("GET", "/webhooks/deliveries/dlv_x", nil).refused(404, "resource_webhook_delivery_not_found")
		c.call("GET", "/webhooks/"+id+"/deliveries", nil).want(200)
		c.call("GET", "/webhooks/events", nil).want(200)
		c.call("POST", "/exports/exp_x/download-url", nil).refused(404, "resource_export_not_found")
		for _, path := range []string{"/indexes/", "//indexes", "/indexes/../indexes", "/connectors//test"} {
			if r := c.call("GET", path, nil); r.status != 404 {
				t.Errorf("%s: %d", path, r.status)
			}
		}
		for _, url := range []string{"http://hooks.example.org/", "https://10.0.0.1/", "https://[::ffff:10.0.0.1]/", "https://u:p@hooks.example.org/", "ftp://hooks.example.org/"} {
			c.call("POST", "/webhooks", obj{"name": "n", "url": url, "events": []string{"export.ready"}}).refused(422, "validation_error")
		}
		want := webhook.Events()
		if r := c.call("GET", "/webhooks/events", nil).want(200); len(r.list()) != 17 || len(want) != 17 {
			t.Errorf("events: %s", r.raw)
		}
	})
	item("Export object has every key", func(t *testing.T, c *caller) {
		id := c.call("POST", "/exports/index/"+index, obj{"prompt_run_ids": []string{run.str("run_id")}, "result_scope": "all"}).want(202).str("export_id")
		eventually(t, "the export ends", func() error {
			if r := c.call("GET", "/exports/"+id, nil).want(200); r.str("queue_status") != "succeeded" {
				return errors.New(r.str("status"))
			}
			return nil
		})
		if r := c.call("POST", "/exports/"+id+"/download-url", nil).want(200); r.at("download_url") != nil {
			t.Errorf("a link over plain http: %s", r.raw)
		}
		// All of them are read whole, with no other member: one that is wrong spoils the list.
		if r := c.call("GET", "/exports", nil).want(200); !slices.Contains(r.each("export_id"), id) {
			t.Errorf("exports: %s", r.raw)
		}
	})
}
