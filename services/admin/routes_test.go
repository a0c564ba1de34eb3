package admin_test

import (
	"bytes"
	"encoding/json"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"regexp"
	"strings"
	"testing"
)

// probe is what the tables know of one operation. Paths are below the base; {…} in unknown are ids that nothing has.
type probe struct {
	scope   string // least one
	path    func(fixture) string
	unknown []string // the same path for things that do not exist
	body    func(fixture) any
	multi   bool
	ok      int
	emptyOK bool // a request without a body will do
	wrong   []obj
	read    string // model of the answer
}

const gone = "nothing_1"

func at(path string) func(fixture) string { return func(fixture) string { return path } }

func gcsForm(t testing.TB, credentials []byte, parts ...[2]string) ([]byte, string) {
	t.Helper()
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	for _, p := range parts {
		must(t, m.WriteField(p[0], p[1]))
	}
	if credentials != nil {
		h := textproto.MIMEHeader{"Content-Disposition": {`form-data; name="credentials_file"; filename="x"`}, "Content-Type": {"application/json"}}
		p, err := m.CreatePart(h)
		must(t, err)
		_, err = p.Write(credentials)
		must(t, err)
	}
	must(t, m.Close())
	return b.Bytes(), m.FormDataContentType()
}

var gcsParts = [][2]string{{"name", "Archive"}, {"bucket", "b"}, {"gcp_project_id", "p"}, {"scopes", "import"}, {"scopes", "export"}, {"export_base_path", ""}}

func account(change obj) []byte {
	a := obj{"type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": "PLANTED-SECRET", "client_email": "e", "token_uri": "u"}
	for k, v := range change {
		a[k] = v
	}
	b, _ := json.Marshal(a)
	return b
}

func probes() map[string]probe {
	jobBody := func(f fixture) any { return obj{"connector_id": f.connector, "index_id": f.index} }
	automation := func(f fixture) string { return "/indexes/" + f.index + "/automations/import" }
	return map[string]probe{
		"GET /auth/validate": {scope: "none", path: at("/auth/validate"), ok: 204},
		"POST /connectors/dir": {scope: "write", path: at("/connectors/dir"), ok: 201, read: "connector",
			body:  func(fixture) any { return obj{"name": "n", "path": "/allowed/x", "scopes": nil, "import_mode": nil} },
			wrong: []obj{{"name": 5, "path": "/allowed"}, {"name": "", "path": "/allowed"}, {"name": "n", "path": "/allowed", "scopes": "import"}, {"name": "n", "path": "/allowed", "scopes": []string{"x"}}, {"name": "n", "path": "/allowed", "import_mode": "x"}, {"path": "/allowed"}, {"name": "n"}, {"name": "n", "path": "/etc"}}},
		"POST /connectors/gcs":                 {scope: "write", path: at("/connectors/gcs"), multi: true, ok: 201, read: "connector"},
		"GET /connectors":                      {scope: "read", path: at("/connectors"), ok: 200, read: "[connector"},
		"GET /connectors/{connector_id}":       {scope: "read", path: func(f fixture) string { return "/connectors/" + f.connector }, unknown: []string{"/connectors/" + gone, "/connectors/*", "/connectors/%3E", "/connectors/a.b"}, ok: 200, read: "connector"},
		"POST /connectors/{connector_id}/test": {scope: "write", path: func(f fixture) string { return "/connectors/" + f.connector + "/test" }, unknown: []string{"/connectors/" + gone + "/test"}, ok: 200, emptyOK: true, read: "test"},
		"POST /connectors/{connector_id}/browse": {scope: "read", path: func(f fixture) string { return "/connectors/" + f.connector + "/browse" }, unknown: []string{"/connectors/" + gone + "/browse"}, ok: 200, emptyOK: true, read: "[file",
			body:  func(fixture) any { return obj{"prefix": "", "pattern": "*.{mp4,mov}", "recursive": true, "limit": 10} },
			wrong: []obj{{"prefix": 1}, {"recursive": "yes"}, {"limit": 0}, {"limit": 1001}, {"limit": 5.5}, {"pattern": "["}, {"pattern": "{a"}}},
		"POST /indexes":                              {scope: "write", path: at("/indexes"), ok: 201, body: func(fixture) any { return obj{"name": "n"} }, wrong: []obj{{"name": ""}, {"name": 1}, {"name": strings.Repeat("x", 256)}, {"name": nil}}, read: "index"},
		"GET /indexes":                               {scope: "search", path: at("/indexes?include_defaults=false"), ok: 200, read: "[index"},
		"GET /indexes/{index_id}":                    {scope: "search", path: func(f fixture) string { return "/indexes/" + f.index }, unknown: []string{"/indexes/" + gone}, ok: 200, read: "index"},
		"GET /indexes/{index_id}/videos":             {scope: "read", path: func(f fixture) string { return "/indexes/" + f.index + "/videos?limit=1" }, unknown: []string{"/indexes/" + gone + "/videos"}, ok: 200, read: "page video"},
		"GET /indexes/{index_id}/automations/import": {scope: "read", path: automation, unknown: []string{"/indexes/" + gone + "/automations/import"}, ok: 200, read: "automation"},
		"PUT /indexes/{index_id}/automations/import": {scope: "write", path: automation, unknown: []string{"/indexes/" + gone + "/automations/import"}, ok: 200, read: "automation",
			body: func(f fixture) any {
				return obj{"connector_id": f.connector, "debounce_interval": "1h", "prompt_preset": nil, "recursive": nil}
			}, wrong: []obj{{"debounce_interval": "5m", "prompt_preset": nil}, {"connector_id": "c", "prompt_preset": nil}}},
		"POST /indexes/{index_id}/automations/import/pause":  {scope: "write", path: func(f fixture) string { return automation(f) + "/pause" }, unknown: []string{"/indexes/" + gone + "/automations/import/pause"}, ok: 200, emptyOK: true, read: "automation"},
		"POST /indexes/{index_id}/automations/import/resume": {scope: "write", path: func(f fixture) string { return automation(f) + "/resume" }, unknown: []string{"/indexes/" + gone + "/automations/import/resume"}, ok: 200, emptyOK: true, read: "automation"},
		"POST /prompts": {scope: "write", path: at("/prompts"), ok: 201, read: "prompt",
			body: func(fixture) any {
				return obj{"name": "abc", "prompt_text": "0123456789", "json_schema": obj{"type": "object"}, "video_level": nil, "execution_config": obj{"x": 1}}
			},
			wrong: []obj{{"name": "ab", "prompt_text": "0123456789", "json_schema": obj{"type": "object"}}, {"name": "abc", "prompt_text": "short", "json_schema": obj{"type": "object"}}, {"name": "abc", "prompt_text": "0123456789", "json_schema": obj{"type": "array"}}, {"name": "abc", "prompt_text": "0123456789", "json_schema": "x"}, {"name": "abc", "prompt_text": "0123456789"}, {"name": "abc", "prompt_text": "0123456789", "json_schema": obj{"type": "object"}, "selection_filter": 1}, {"name": "abc", "prompt_text": "0123456789", "json_schema": obj{"type": "object"}, "video_level": obj{}}}},
		"GET /prompts":                      {scope: "read", path: at("/prompts?active_only=true"), ok: 200, read: "prompts"},
		"GET /prompts/{prompt_id}":          {scope: "read", path: func(f fixture) string { return "/prompts/" + f.prompt }, unknown: []string{"/prompts/" + gone}, ok: 200, read: "prompt"},
		"POST /import-jobs":                 {scope: "write", path: at("/import-jobs"), ok: 202, body: jobBody, read: "job", wrong: []obj{{"connector_id": 1, "index_id": "i"}, {"connector_id": "c"}, {"index_id": "i"}, {"connector_id": "c", "index_id": "i", "file_pattern": "[a"}, {"connector_id": "c", "index_id": "i", "import_mode_override": "some"}, {"connector_id": "c", "index_id": "i", "recursive": 2}}},
		"GET /import-jobs":                  {scope: "read", path: at("/import-jobs?status=COMPLETED&automation_only=true&limit=200"), ok: 200, read: "[job"},
		"GET /import-jobs/{job_id}":         {scope: "read", path: func(f fixture) string { return "/import-jobs/" + f.job }, unknown: []string{"/import-jobs/" + gone}, ok: 200, read: "job"},
		"POST /import-jobs/{job_id}/cancel": {scope: "write", path: func(f fixture) string { return "/import-jobs/" + f.job + "/cancel" }, unknown: []string{"/import-jobs/" + gone + "/cancel", "/import-jobs/%2A/cancel"}, ok: 400, emptyOK: true},
		"GET /prompt-runs":                  {scope: "read", path: at("/prompt-runs?limit=1"), ok: 200, read: "[run"},
		"GET /prompt-runs/{run_id}":         {scope: "read", path: func(f fixture) string { return "/prompt-runs/" + f.run }, unknown: []string{"/prompt-runs/" + gone}, ok: 200, read: "run"},
		"GET /prompt-runs/{run_id}/results": {scope: "read", path: func(f fixture) string { return "/prompt-runs/" + f.run + "/results?video_id=" + f.video }, unknown: []string{"/prompt-runs/" + gone + "/results?video_id=vid_x"}, ok: 200, read: "page result"},
		"GET /videos/{video_id}":            {scope: "read", path: func(f fixture) string { return "/videos/" + f.video }, unknown: []string{"/videos/" + gone, "/videos/vid_00000000000000000000000000_0000000000000000"}, ok: 200, read: "video"},
		"GET /webhooks/events":              {scope: "public", path: at("/webhooks/events"), ok: 200},
		"POST /webhooks": {scope: "write", path: at("/webhooks"), ok: 201, read: "new webhook", body: hookBody,
			wrong: []obj{
				{"url": hookURL, "events": hookEvents}, {"name": "n", "events": hookEvents}, {"name": "n", "url": hookURL},
				{"name": "", "url": hookURL, "events": hookEvents}, {"name": strings.Repeat("x", 101), "url": hookURL, "events": hookEvents},
				{"name": "n", "url": "http://hooks.example.org/", "events": hookEvents}, {"name": "n", "url": "https://127.0.0.1/", "events": hookEvents},
				{"name": "n", "url": "https://u:p@hooks.example.org/", "events": hookEvents}, {"name": "n", "url": 7, "events": hookEvents},
				{"name": "n", "url": hookURL, "events": []string{}}, {"name": "n", "url": hookURL, "events": []string{"video.processed"}},
				{"name": "n", "url": hookURL, "events": "export.ready"}, {"name": "n", "url": hookURL, "events": hookEvents, "index_ids": "idx_1"},
				{"name": "n", "url": hookURL, "events": hookEvents, "index_ids": []string{"a.*"}}, {"name": "n", "url": hookURL, "events": hookEvents, "metadata": []int{1}},
				{"name": "n", "url": hookURL, "events": hookEvents, "metadata": obj{"x": strings.Repeat("x", 20000)}},
			}},
		"GET /webhooks":              {scope: "read", path: at("/webhooks"), ok: 200, read: "[webhook"},
		"GET /webhooks/{webhook_id}": {scope: "read", path: func(f fixture) string { return "/webhooks/" + f.webhook }, unknown: []string{"/webhooks/" + gone, "/webhooks/%3E"}, ok: 200, read: "webhook"},
		"PATCH /webhooks/{webhook_id}": {scope: "write", path: func(f fixture) string { return "/webhooks/" + f.webhook }, unknown: []string{"/webhooks/" + gone}, ok: 200, read: "webhook",
			body:  func(fixture) any { return obj{"index_ids": nil, "url": nil, "status": "active"} },
			wrong: []obj{{"status": "disabled"}, {"name": ""}, {"url": "http://x/"}, {"events": []string{}}, {"events": []string{"x"}}, {"metadata": 1}, {"index_ids": 1}, {"unknown": 1}, {"name": nil}}},
		"DELETE /webhooks/{webhook_id}":                 {scope: "admin", path: func(f fixture) string { return "/webhooks/" + f.otherWebhook }, unknown: []string{"/webhooks/" + gone}, ok: 200},
		"POST /webhooks/{webhook_id}/rotate-secret":     {scope: "write", path: func(f fixture) string { return "/webhooks/" + f.webhook + "/rotate-secret" }, unknown: []string{"/webhooks/" + gone + "/rotate-secret"}, ok: 200, emptyOK: true, read: "rotated"},
		"POST /webhooks/{webhook_id}/test":              {scope: "write", path: func(f fixture) string { return "/webhooks/" + f.webhook + "/test" }, unknown: []string{"/webhooks/" + gone + "/test"}, ok: 200, emptyOK: true, read: "webhook test"},
		"GET /webhooks/{webhook_id}/deliveries":         {scope: "read", path: func(f fixture) string { return "/webhooks/" + f.webhook + "/deliveries?status=delivered&limit=1" }, unknown: []string{"/webhooks/" + gone + "/deliveries"}, ok: 200, read: "[delivery"},
		"GET /webhooks/deliveries/{delivery_id}":        {scope: "read", path: func(f fixture) string { return "/webhooks/deliveries/" + f.delivery }, unknown: []string{"/webhooks/deliveries/" + gone, "/webhooks/deliveries/*"}, ok: 200, read: "delivery"},
		"POST /webhooks/deliveries/{delivery_id}/retry": {scope: "write", path: func(f fixture) string { return "/webhooks/deliveries/" + f.delivery + "/retry" }, unknown: []string{"/webhooks/deliveries/" + gone + "/retry"}, ok: 400, emptyOK: true},
		"POST /notifications/{connector_id}":            {scope: "write", path: func(f fixture) string { return "/notifications/" + f.connector }, unknown: []string{"/notifications/" + gone}, ok: 200, body: func(fixture) any { return obj{"message": obj{}} }, read: "message"},
	}
}

// eachOperation walks the OpenAPI document: a route without a probe fails.
func eachOperation(t *testing.T, w *world, f func(t *testing.T, name string, p probe)) {
	t.Helper()
	known := probes()
	doc := w.do("GET", "//openapi.json", nil, request{key: "-"})
	paths, _ := doc.at("paths").(map[string]any)
	if len(paths) == 0 || doc.str("openapi")[:3] != "3.1" {
		t.Fatalf("no OpenAPI 3.1 document: %.100s", doc.raw)
	}
	for path, methods := range paths {
		for method := range methods.(map[string]any) {
			name := strings.ToUpper(method) + " " + path
			p, ok := known[name]
			if !ok {
				t.Errorf("no probe for %s", name)
				continue
			}
			delete(known, name)
			t.Run(name, func(t *testing.T) { f(t, name, p) })
		}
	}
	for name := range known {
		t.Errorf("no such route: %s", name)
	}
}

func (p probe) send(w *world, name, path string, f fixture, with request) answer {
	method, _, _ := strings.Cut(name, " ")
	if p.multi {
		raw, ct := gcsForm(w.t, account(nil), gcsParts...)
		with.raw, with.header = raw, map[string]string{"Content-Type": ct}
	}
	var body any
	if p.body != nil {
		body = p.body(f)
	}
	return w.do(method, path, body, with)
}

// TestEveryRoute holds each operation against the rules that all share.
func TestEveryRoute(t *testing.T) {
	w := newWorld(t)
	f := w.fixture()
	levels := []string{"none", "search", "read", "write", "admin"}
	eachOperation(t, w, func(t *testing.T, name string, p probe) {
		method, _, _ := strings.Cut(name, " ")
		path := p.path(f)
		if p.scope == "public" {
			p.send(w, name, path, f, request{key: "-"}).want(p.ok)
			return
		}
		p.send(w, name, path, f, request{key: "-"}).refused(401, "authentication_invalid_api_key")
		p.send(w, name, path, f, request{key: "sk_live_wrong"}).refused(401, "authentication_invalid_api_key")
		allowed := false
		for _, level := range levels {
			allowed = allowed || level == p.scope
			if allowed {
				p.send(w, name, path, f, request{key: w.keys[level]}).want(p.ok)
				continue
			}
			for _, path := range append([]string{path}, p.unknown...) { // before any look-up
				p.send(w, name, path, f, request{key: w.keys[level]}).refused(403, "authorization_insufficient_scope")
			}
		}
		for _, path := range p.unknown {
			a := p.send(w, name, path, f, request{})
			if a.status != 404 || !strings.HasPrefix(a.str("error", "code"), "resource_") {
				t.Errorf("%s: %d %s", path, a.status, a.raw)
			}
		}
		if p.read != "" {
			a := p.send(w, name, path, f, request{})
			a.want(p.ok)
			conform(t, name, p.read, a.body)
		}
		if p.emptyOK {
			w.do(method, path, nil).want(p.ok)
			w.do(method, path, obj{}).want(p.ok)
		}
		if p.body == nil || strings.Contains(name, "notifications") {
			return
		}
		if !p.emptyOK {
			w.do(method, path, nil).refused(422, "validation_error", "is required")
		}
		body := p.body(f).(obj)
		body["nobody_knows_this"], body["NAME"] = obj{"x": []int{1}}, strings.Repeat("x", 1000)
		w.do(method, path, body).want(p.ok)
		for _, wrong := range p.wrong {
			a := w.do(method, path, wrong).refused(422, "validation_error")
			if a.at("error", "details", "fields", 0, "field") == nil || a.at("error", "details", "fields", 0, "message") == nil {
				t.Errorf("%v: %s", wrong, a.raw)
			}
			if strings.Contains(string(a.raw), "expected") || strings.Contains(string(a.raw), "invalid") {
				t.Errorf("%v: not reworded: %s", wrong, a.raw)
			}
		}
		send := func(raw, contentType string) answer {
			return w.do(method, path, nil, request{raw: []byte(raw), header: map[string]string{"Content-Type": contentType}})
		}
		send(`{"name":`, "application/json").refused(400, "request_malformed")
		send(`[1]`, "application/json").refused(400, "request_malformed")
		send(`"x"`, "").refused(400, "request_malformed")
		send(`{}`, "text/plain").refused(400, "request_malformed", "application/json")
		send(`{"name":"`+strings.Repeat("x", 2<<20)+`"}`, "application/json").refused(413, "request_too_large", "1048576")
	})
}

func TestNoSuchRoute(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"//nowhere", "/nowhere", "/indexes/", "/connectors//test", "//api/v2/../v2/indexes", "//api//v2/indexes", "/indexes/%2e%2e/x/y"} {
		w.do("GET", path, nil).refused(404, "route_not_found")
	}
	for method, path := range map[string]string{"DELETE": "/indexes", "PATCH": "/connectors/x", "GET": "/connectors/x/test", "OPTIONS": "/indexes"} {
		a := w.do(method, path, nil).refused(405, "method_not_allowed")
		if a.header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", method, path)
		}
	}
	r, err := http.NewRequest(http.MethodGet, "/healthz", nil)
	must(t, err)
	rec := httptest.NewRecorder()
	w.admin.Handler().ServeHTTP(rec, r)
	if rec.Body.String() != "ops /healthz" {
		t.Errorf("ops: %q", rec.Body)
	}
}

// model is what the strict client wants of an answer (contract §20.1): members that must be there and not null, and
// of these the arrays.
type model struct {
	required []string
	arrays   []string
	members  map[string]string // nested models
	strings  []string          // arrays of objects all of whose values are strings
}

func words(s string) []string { return strings.Fields(s) }

var models = map[string]model{
	"message":   {required: words("message")},
	"test":      {required: words("success")},
	"connector": {required: words("connector_id name provider status scopes import_mode"), arrays: words("scopes")},
	"file":      {required: words("path name size_bytes last_modified extension")},
	"index":     {required: words("index_id name user_id created_at is_default")},
	"job": {required: words("job_id connector_id target_index_id source_prefix status progress file_pattern recursive video_ids failed_files skipped_files"),
		arrays: words("video_ids failed_files skipped_files"), strings: words("failed_files skipped_files"), members: map[string]string{"progress": "progress"}},
	"progress": {required: words("total_files imported failed skipped bytes_transferred")},
	"video": {required: words("video_id title video_uri status created_at updated_at media_type marker"),
		members: map[string]string{"processing_status": "[media run"}},
	"media run": {required: words("run_id status total_segments pending_segments processing_segments successful_segments failed_segments segments"), arrays: words("segments")},
	"prompt":    {required: words("prompt_id user_id name description prompt_text json_schema created_at is_active")},
	"prompts":   {required: words("prompts total_count active_count"), arrays: words("prompts"), members: map[string]string{"prompts": "[prompt"}},
	"run": {required: words(`run_id prompt_id prompt_name prompt_type executed_at executed_by status run_context
		total_videos completed_videos failed_videos partial_videos cancelled_videos
		total_audios completed_audios failed_audios partial_audios cancelled_audios
		total_images completed_images failed_images partial_images cancelled_images
		total_segments completed_segments field_extraction_failures transcription_failures image_embedding_failures
		video_segmentation_type audio_segmentation_type image_segmentation_type
		created_new_segments enable_transcription enable_image_embedding video_level_enabled total_video_seconds
		video_level_total_items video_level_completed_items video_level_failed_items video_level_partial_items
		billing_estimated_mt billing_actual_mt stop_state marker`), members: map[string]string{"run_context": "context"}},
	"context":      {required: words("type index_id video_ids"), arrays: words("video_ids")},
	"result":       {required: words("segment_id run_id prompt_id executed_at metadata metadata_text result_type field_extraction_succeeded thumbnail_available gif_available")},
	"automation":   {required: words("automation_id index_id enabled paused connector_id source_prefix file_pattern recursive debounce_interval created_at updated_at")},
	"webhook":      {required: words("webhook_id name url events status failure_count created_at updated_at"), arrays: words("events")},
	"new webhook":  {required: words("webhook_id name url events status failure_count secret"), arrays: words("events")},
	"rotated":      {required: words("webhook_id new_secret")},
	"webhook test": {required: words("success")},
	"delivery":     {required: words("delivery_id webhook_id event_type status attempts created_at payload")},
	"page":         {required: words("data pagination"), arrays: words("data"), members: map[string]string{"pagination": "pagination"}},
	"pagination":   {required: words("limit has_more")},
}

var timestamps = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`)

// conform walks an answer.
func conform(t *testing.T, where, name string, v any) {
	t.Helper()
	if inner, ok := strings.CutPrefix(name, "page "); ok {
		conform(t, where, "page", v)
		conform(t, where+".data", "["+inner, v.(map[string]any)["data"])
		return
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		list, ok := v.([]any)
		if !ok || len(list) == 0 {
			t.Errorf("%s: want a list with something in it, got %v", where, v)
		}
		for _, e := range list {
			conform(t, where+"[]", inner, e)
		}
		return
	}
	m, ok := models[name]
	if !ok {
		t.Fatalf("no model %s", name)
	}
	o, ok := v.(map[string]any)
	if !ok {
		t.Errorf("%s: want an object, got %v", where, v)
		return
	}
	for _, k := range m.required {
		if o[k] == nil {
			t.Errorf("%s: %s is missing or null", where, k)
		}
	}
	for _, k := range m.arrays {
		if _, ok := o[k].([]any); !ok {
			t.Errorf("%s: %s is not an array", where, k)
		}
	}
	for _, k := range m.strings {
		for _, item := range o[k].([]any) {
			for name, value := range item.(map[string]any) {
				if _, ok := value.(string); !ok {
					t.Errorf("%s: %s.%s is not a string", where, k, name)
				}
			}
		}
	}
	for k, inner := range m.members {
		conform(t, where+"."+k, inner, o[k])
	}
	for k, value := range o {
		if s, ok := value.(string); ok && strings.HasSuffix(k, "_at") && !timestamps.MatchString(s) {
			t.Errorf("%s: %s is %q", where, k, s)
		}
	}
}
