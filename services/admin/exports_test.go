package admin_test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Every state an export can be in is shown with exactly the members that clients know.
func TestExportObject(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	now := time.Now().UTC()
	put := func(id string, change func(*store.Export)) {
		x := store.Export{
			ID: id, Type: event.ExportOfRun, Target: f.run, Status: store.ExportPending, MaxAttempts: 3, CreatedAt: now, AvailableAt: now, UpdatedAt: now,
		}
		change(&x)
		must(t, w.exports.Put(t.Context(), id, x))
	}
	put("exp_pending", func(*store.Export) {})
	put("exp_retrying", func(x *store.Export) { x.Attempts, x.LastError, x.StartedAt = 1, "busy", now })
	put("exp_running", func(x *store.Export) { x.Status, x.Attempts = store.ExportProcessing, 1 })
	put("exp_dead", func(x *store.Export) {
		x.Status, x.Attempts, x.LastError, x.EndedAt = store.ExportFailed, 3, "busy", now
	})
	put("exp_failed", func(x *store.Export) {
		x.Status, x.Attempts, x.LastError, x.EndedAt = store.ExportFailed, 1, "gone", now
	})
	put("exp_expired", func(x *store.Export) { x.Status, x.Attempts, x.Size, x.EndedAt = store.ExportCompleted, 1, 5, now })
	delivered := func(x *store.Export) {
		x.Type, x.Target, x.Runs, x.Connector, x.BasePath, x.Subpath = event.ExportOfIndex, f.index, []string{f.run}, f.outbox, "exports", "a/b"
	}
	put("exp_sending", delivered)
	put("exp_sent", func(x *store.Export) {
		delivered(x)
		x.Status, x.Attempts, x.Size, x.URI, x.EndedAt = store.ExportCompleted, 1, 5, "file:///allowed/outbox/exports/a/b/x.json", now
	})
	put("exp_bare", func(x *store.Export) { x.Connector = f.outbox })
	put("exp_job", func(x *store.Export) { x.Type, x.Target = event.ExportOfJob, f.job })

	list := w.do("GET", "/exports", nil).want(200)
	shown := make(map[string]map[string]any)
	for _, x := range list.body.([]any) {
		x := x.(map[string]any)
		if x["export_type"] == "import_job" {
			t.Errorf("%s: official clients refuse the whole list for one of a type they do not know", x["export_id"])
		}
		shown[x["export_id"].(string)] = x
	}
	if len(shown) != 10 || shown["exp_job"] != nil {
		t.Errorf("%d exports in the list: %v", len(shown), slices.Sorted(maps.Keys(shown)))
	}
	for id, want := range map[string]obj{
		"exp_pending":  {"queue_status": "queued", "error_message": nil, "file_size_bytes": nil, "download_url": nil},
		"exp_retrying": {"queue_status": "queued", "error_message": nil, "last_error": "busy"},
		"exp_running":  {"queue_status": "running"},
		"exp_dead":     {"queue_status": "dead_letter", "error_message": "busy", "last_error": "busy"},
		"exp_failed":   {"queue_status": "failed", "error_message": "gone"},
		"exp_expired":  {"queue_status": "succeeded", "download_url": nil, "gcs_uri": nil},
		"exp_sent":     {"gcs_uri": "file:///allowed/outbox/exports/a/b/x.json", "destination_subpath": "a/b", "download_url": nil, "file_size_bytes": 5.0},
		"exp_bare":     {"destination_base_path": nil, "destination_subpath": nil, "gcs_uri": nil},
		f.export:       {"download_url": "/api/v2/exports/" + f.export + "/download", "error_message": nil},
	} {
		for name, value := range want {
			if shown[id][name] != value {
				t.Errorf("%s: %s is %v, want %v", id, name, shown[id][name], value)
			}
		}
		one := w.do("GET", "/exports/"+id, nil).want(200)
		for name := range shown[id] {
			if fmt.Sprint(one.at(name)) != fmt.Sprint(shown[id][name]) {
				t.Errorf("%s: %s differs between list and get", id, name)
			}
		}
	}
	if n := len(w.do("GET", "/exports?limit=2", nil).want(200).body.([]any)); n != 2 {
		t.Errorf("limit 2: %d", n)
	}
	w.do("GET", "/exports?limit=201", nil).refused(422, "validation_error")
	w.do("GET", "/exports?export_type=x", nil).refused(422, "validation_error")
	if jobs := w.do("GET", "/exports?export_type=import_job", nil).want(200); jobs.at(0, "export_id") != "exp_job" || jobs.at(1) != nil {
		t.Errorf("exports of jobs: %s", jobs.raw)
	}
	for id, code := range map[string]string{
		"exp_pending": "export_not_ready", "exp_failed": "export_not_ready", "exp_sent": "export_not_downloadable",
	} {
		w.do("GET", "/exports/"+id+"/download", nil).refused(409, code)
	}
	w.do("GET", "/exports/exp_expired/download", nil).refused(404, "resource_export_not_found", "make another")
}

// What is asked for is on record and in the queue, and says no more than it may.
func TestCreateExport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	create := func(path string, body any) (store.Export, answer) {
		t.Helper()
		a := w.do("POST", path, body).want(202)
		if got := slices.Sorted(maps.Keys(a.body.(map[string]any))); !slices.Equal(got, strings.Fields("export_id status")) || a.str("status") != "pending" {
			t.Errorf("%s", a.raw)
		}
		x, _, err := w.exports.Get(t.Context(), a.str("export_id"))
		must(t, err)
		one := w.do("GET", "/exports/"+x.ID, nil).want(200)
		return x, one
	}
	x, a := create("/exports/index/"+f.index, nil)
	if x.Scope != event.AllResults || x.Format != event.FormatJSON || x.Index != f.index || a.at("export_params", "prompt_run_ids") != nil || a.str("destination_type") != "download" {
		t.Errorf("%+v shown as %s", x, a.raw)
	}
	x, a = create("/exports/index/"+f.index, obj{
		"prompt_run_ids": []string{f.run}, "destination_connector_id": f.outbox, "destination_subpath": "daily/", "result_scope": "matches", "format": "csv",
	})
	if x.Scope != event.OnlyMatches || x.Format != event.FormatCSV || x.BasePath != "exports" || x.Subpath != "daily" ||
		a.at("export_params", "prompt_run_ids", 0) != f.run || a.str("export_params", "destination_base_path") != "exports" {
		t.Errorf("%+v shown as %s", x, a.raw)
	}
	if x, a = create("/exports/index/"+f.index, obj{"prompt_run_ids": []string{}, "destination_subpath": "a"}); x.Runs != nil || x.Subpath != "" {
		t.Errorf("%+v shown as %s", x, a.raw)
	}
	if x, _ = create("/exports/prompt-run/"+f.run, obj{}); x.Type != event.ExportOfRun || x.Target != f.run || x.Index != f.index {
		t.Errorf("%+v", x)
	}
	if x, _ = create("/exports/import-job/"+f.job, obj{"format": "jsonl"}); x.Type != event.ExportOfJob || x.Target != f.job {
		t.Errorf("%+v", x)
	}
	state, err := w.bus.State(t.Context(), topology.Exports)
	must(t, err)
	if state.Msgs != 5 {
		t.Errorf("%d requests in the queue, want 5", state.Msgs)
	}

	// Two at once are two exports.
	var wg sync.WaitGroup
	ids := make([]string, 8)
	for i := range ids {
		wg.Go(func() { ids[i] = w.do("POST", "/exports/prompt-run/"+f.run, nil).str("export_id") })
	}
	wg.Wait()
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 8 || ids[0] == "" {
		t.Errorf("ids %v", ids)
	}

	must(t, w.runs.Put(t.Context(), "run_2", store.Run{ID: "run_2", Index: "idx_2"}))
	w.do("POST", "/exports/index/"+f.index, obj{"prompt_run_ids": []string{"run_2"}}).refused(422, "validation_error", "prompt_run_ids[0]")
	w.do("POST", "/exports/index/"+f.index, obj{"prompt_run_ids": []string{"run_3"}}).refused(404, "resource_prompt_run_not_found")
	must(t, w.jobs.Put(t.Context(), "job_2", store.Job{ID: "job_2", Status: store.JobImporting}))
	w.do("POST", "/exports/import-job/job_2", nil).refused(409, "import_job_not_ended", "importing")
	run := "/exports/prompt-run/" + f.run
	w.do("POST", run, obj{"destination_connector_id": gone}).refused(404, "resource_connector_not_found")
	w.do("POST", run, obj{"destination_connector_id": f.connector}).refused(409, "connector_scope_missing", "export")
	for _, sub := range []string{"..", "a/../..", "/a", "a//b", "./a", ".a", "a\\b", "ä", strings.Repeat("x", 300), "a\x00b"} {
		w.do("POST", run, obj{"destination_connector_id": f.outbox, "destination_subpath": sub}).refused(422, "validation_error", "destination_subpath")
	}
	for _, change := range []struct {
		code string
		do   func(*store.Connector)
	}{
		{"connector_disabled", func(c *store.Connector) { c.Status = "disabled" }},
		{"connector_export_path_invalid", func(c *store.Connector) { c.ExportBasePath = "../out" }},
	} {
		c, _, err := w.connectors.Get(t.Context(), f.outbox)
		must(t, err)
		c.ID = "conn_other"
		change.do(&c)
		must(t, w.connectors.Put(t.Context(), c.ID, c))
		w.do("POST", run, obj{"destination_connector_id": c.ID}).refused(409, change.code)
		w.do("PUT", "/indexes/"+f.index+"/automations/export", obj{"destination_connector_id": c.ID}).refused(409, change.code)
	}
	for _, base := range []string{"../x", "/x", "a/../b"} {
		w.do("POST", "/connectors/dir", obj{"name": "n", "path": "/allowed", "scopes": []string{"export"}, "export_base_path": base}).refused(422, "validation_error", "export_base_path")
		w.do("POST", "/connectors/dir", obj{"name": "n", "path": "/allowed", "export_base_path": base}).want(201) // no effect without the scope
	}
}

var tokens = regexp.MustCompile(`^v1\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)

// A download is a plain file of known length; a link to it is made for clients that come by https, and opens that file
// alone, for a while.
func TestDownload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/exports/" + f.export + "/download"
	srv := httptest.NewServer(w.admin.Handler())
	defer srv.Close()
	get := func(path string, header map[string]string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/api/v2"+path, nil)
		must(t, err)
		r.Header.Set("Accept-Encoding", "gzip, br")
		r.Header.Set("Range", "bytes=1-2")
		for k, v := range header {
			r.Header.Set(k, v)
		}
		res, err := http.DefaultClient.Do(r)
		must(t, err)
		t.Cleanup(func() { _ = res.Body.Close() })
		return res
	}
	file := func(res *http.Response) {
		t.Helper()
		data, err := io.ReadAll(res.Body)
		must(t, err)
		if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/json" || res.Header.Get("Content-Length") != fmt.Sprint(len(exported)) ||
			len(res.TransferEncoding) > 0 || res.Header.Get("Content-Encoding") != "" || string(data) != exported {
			t.Errorf("%d %v %v %q", res.StatusCode, res.Header, res.TransferEncoding, data)
		}
	}
	file(get(path, map[string]string{"X-API-Key": w.keys["read"]}))
	file(get(path, map[string]string{"Authorization": "Bearer " + w.keys["read"]}))

	link := func(header map[string]string) answer {
		a := w.do("POST", "/exports/"+f.export+"/download-url", nil, request{key: w.keys["read"], header: header}).want(200)
		if got := slices.Sorted(maps.Keys(a.body.(map[string]any))); !slices.Equal(got, strings.Fields("destination_connector_id destination_type download_url export_id status")) {
			t.Errorf("members %v", got)
		}
		return a
	}
	for name, header := range map[string]map[string]string{
		"plain http": nil, "a proxy by http": {"X-Forwarded-Proto": "http"}, "a host that is none": {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "a@b/c"},
	} {
		if a := link(header); a.at("download_url") != nil {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
	a := link(map[string]string{"X-Forwarded-Proto": "https, http", "X-Forwarded-Host": "Media.example.org:443"})
	u, err := url.Parse(a.str("download_url"))
	must(t, err)
	token := u.Query().Get("token")
	if u.Scheme != "https" || u.Host != "media.example.org" || u.Path != "/api/v2"+path || u.RawQuery != "token="+token || u.Fragment != "" || u.User != nil ||
		!tokens.MatchString(token) || len(token) < 32 || len(token) > 2048 {
		t.Errorf("link %s", u)
	}
	if u, err := url.Parse(link(map[string]string{"X-Forwarded-Proto": "https"}).str("download_url")); err != nil || u.Host != "example.com" { // the request's own
		t.Errorf("link %s", u)
	}
	file(get(path+"?token="+token, nil))

	must(t, w.exports.Put(t.Context(), "exp_other", store.Export{ID: "exp_other", Status: store.ExportCompleted, Document: "exports/fixture", URI: "u"}))
	parts := strings.Split(token, ".")
	for name, path := range map[string]string{
		"another export":    "/exports/exp_other/download?token=" + token,
		"another signature": path + "?token=" + parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		"another time":      path + "?token=" + parts[0] + "." + parts[1][:len(parts[1])-4] + "OTk5." + parts[2],
		"no signature":      path + "?token=" + parts[0] + "." + parts[1] + ".",
		"rubbish":           path + "?token=x",
		"nothing":           path + "?token=",
	} {
		if res := get(path, nil); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, res.StatusCode)
		}
	}
	// A credential counts, also beside a token.
	if res := get(path+"?token="+token, map[string]string{"X-API-Key": w.keys["search"]}); res.StatusCode != http.StatusForbidden {
		t.Errorf("a key without the scope: %d", res.StatusCode)
	}
	if strings.Contains(w.log.String(), token) {
		t.Error("the token is in the log")
	}
	must(t, w.documents.Delete(t.Context(), "exports/fixture"))
	w.do("GET", path, nil).refused(404, "resource_export_not_found")
}

func TestExportAutomation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/indexes/" + f.index + "/automations/export"
	id := event.ExportAutomationOfIndex(f.index)
	reg := register[store.ExportAutomation](w, topology.ExportAutomations)
	stored := func() store.ExportAutomation {
		at, _, err := reg.Get(t.Context(), id)
		must(t, err)
		return at
	}
	other := w.do("POST", "/indexes", obj{"name": "Other"}).want(201).str("index_id")
	for method, path := range map[string]string{"GET": "", "POST": "/pause"} {
		a := w.do(method, "/indexes/"+other+"/automations/export"+path, nil).refused(404, "resource_export_automation_not_found", "no export automation")
		if a.at("error", "details", "index_id") != other {
			t.Errorf("%s", a.raw)
		}
	}
	w.do("PUT", path, obj{"destination_connector_id": f.connector}).refused(409, "connector_scope_missing")
	w.do("PUT", path, obj{"destination_connector_id": gone}).refused(404, "resource_connector_not_found")

	first := stored()
	a := w.do("GET", path, nil).want(200)
	for name, value := range map[string]any{
		"automation_id": id, "index_id": f.index, "enabled": true, "paused": false, "destination_connector_id": f.outbox, "destination_subpath": nil,
		"format": "json", "pending_since": nil, "last_triggered_at": nil, "last_export_id": nil, "last_error": nil,
	} {
		if got, there := a.body.(map[string]any)[name]; got != value || !there {
			t.Errorf("%s is %v, want %v", name, got, value)
		}
	}
	w.do("PUT", path, obj{"destination_connector_id": f.outbox}).want(200)
	if stored() != first {
		t.Error("a repetition changed something")
	}

	held := time.Now().UTC()
	_, _, err := reg.Modify(t.Context(), id, func(at *store.ExportAutomation) error {
		at.HeldFrom, at.LastExport, at.LastAt = held, "exp_last", held
		return nil
	})
	must(t, err)
	must(t, w.exports.Put(t.Context(), "exp_last", store.Export{ID: "exp_last", Status: store.ExportFailed, LastError: "it rained"}))
	if a := w.do("POST", path+"/pause", nil).want(200); a.at("paused") != true || a.at("enabled") != true || a.at("pending_since") == nil || a.at("last_error") != "it rained" {
		t.Errorf("paused: %s", a.raw)
	}
	w.do("POST", path+"/pause", nil).want(200)
	if a := w.do("POST", path+"/resume", nil).want(200); a.at("paused") != false {
		t.Errorf("resumed: %s", a.raw)
	}
	if at := stored(); !at.HeldFrom.Equal(held) || !at.EnabledAt.Equal(first.EnabledAt) || !at.UpdatedAt.After(first.UpdatedAt) {
		t.Errorf("a pause lost something: %+v", at)
	}
	// A replacement keeps what it did, and what waits unless it is switched off.
	w.do("PUT", path, obj{"destination_connector_id": f.outbox, "destination_subpath": "x", "format": "csv"}).want(200)
	if at := stored(); !at.HeldFrom.Equal(held) || at.LastExport != "exp_last" || at.Format != event.FormatCSV || !at.EnabledAt.Equal(first.EnabledAt) {
		t.Errorf("replaced: %+v", at)
	}
	w.do("PUT", path, obj{"destination_connector_id": f.outbox, "enabled": false}).want(200)
	if at := stored(); !at.HeldFrom.IsZero() || at.Subpath != "" || at.Format != event.FormatJSON {
		t.Errorf("off: %+v", at)
	}
	w.do("PUT", path, obj{"destination_connector_id": f.outbox}).want(200)
	if at := stored(); !at.EnabledAt.After(first.EnabledAt) || !at.CreatedAt.Equal(first.CreatedAt) {
		t.Errorf("on again: %+v", at)
	}
	c, _, err := w.connectors.Get(t.Context(), f.outbox)
	must(t, err)
	c.Status = "disabled"
	must(t, w.connectors.Put(t.Context(), c.ID, c))
	if a := w.do("GET", path, nil).want(200); !strings.Contains(a.str("last_error"), "disabled") {
		t.Errorf("%s", a.raw)
	}
}
