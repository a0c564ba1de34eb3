package admin_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"millrace/services/admin"
	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

func TestGCSForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	send := func(credentials []byte, parts ...[2]string) answer {
		raw, ct := gcsForm(t, credentials, parts...)
		return w.do("POST", "/connectors/gcs", nil, request{raw: raw, header: map[string]string{"Content-Type": ct}})
	}
	padded := func(size int) []byte {
		plain := account(obj{"pad": ""})
		return account(obj{"pad": strings.Repeat("x", size-len(plain))})
	}
	a := send(padded(65536), gcsParts...).want(201)
	if scopes, _ := json.Marshal(a.at("scopes")); string(scopes) != `["import","export"]` {
		t.Errorf("scopes %s", scopes)
	}
	stored, _, err := w.connectors.Get(t.Context(), a.str("connector_id"))
	must(t, err)
	if opened, err := w.keeper.Open(stored.Credentials, stored.ID+"/credentials"); err != nil || len(opened) != 65536 || admin.CredentialsAAD("c") != "c/credentials" {
		t.Errorf("sealed as %.100q: %v", stored.Credentials, err)
	}
	if strings.Contains(string(a.raw), "PLANTED") || strings.Contains(string(a.raw), stored.Credentials) {
		t.Errorf("credentials in the answer: %s", a.raw)
	}
	send(padded(65537), gcsParts...).refused(422, "connector_credentials_too_large", "65536")
	send(padded(200<<10), gcsParts...).refused(413, "request_too_large")
	send([]byte("PLANTED"), gcsParts...).refused(422, "connector_credentials_invalid", "JSON object")
	send([]byte{}, gcsParts...).refused(422, "connector_credentials_invalid")
	send(account(obj{"type": "authorized_user"}), gcsParts...).refused(422, "connector_credentials_invalid", "service_account")
	for _, name := range []string{"project_id", "private_key_id", "private_key", "client_email", "token_uri"} {
		send(account(obj{name: ""}), gcsParts...).refused(422, "connector_credentials_invalid", name)
	}
	send(nil, gcsParts...).refused(422, "validation_error", "credentials_file")
	send(account(nil), [2]string{"scopes", "steal"}, [2]string{"endpoint_url", "ftp://x"}, [2]string{"subscription", "mine"}, [2]string{"import_mode", "x"}).
		refused(422, "validation_error", "name", "bucket", "gcp_project_id", "scopes", "endpoint_url", "subscription", "import_mode")
	send(account(nil), append(gcsParts, [2]string{"subscription", "projects/p/subscriptions/s"}, [2]string{"endpoint_url", "http://127.0.0.1:1/storage/v1/"})...).want(201)
	w.do("POST", "/connectors/gcs", obj{"name": "x"}).refused(400, "request_malformed", "multipart")
	w.do("POST", "/connectors/gcs", nil).refused(400, "request_malformed")
	if strings.Contains(w.log.String(), "PLANTED") {
		t.Error("credentials in the log")
	}
}

func TestConnectorTestAndBrowse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/connectors/" + f.connector
	before := w.do("GET", path, nil).want(200)
	if before.at("last_tested_at") != nil || before.str("status") != "active" {
		t.Errorf("fresh: %s", before.raw)
	}
	if a := w.do("POST", path+"/test", nil).want(200); a.at("success") != true || a.at("error_message") != nil {
		t.Errorf("good: %s", a.raw)
	}
	w.sources.set(f.connector, fmt.Errorf("list: %w", bucket.ErrNoBucket))
	a := w.do("POST", path+"/test", nil).want(200)
	if a.at("success") != false || !strings.Contains(a.str("error_message"), "does not exist") {
		t.Errorf("no bucket: %s", a.raw)
	}
	if c := w.do("GET", path, nil); c.str("status") != "failed" || c.str("last_test_result") != "failed" || c.str("last_test_error") == "" || c.str("last_tested_at") == "" {
		t.Errorf("after a failed test: %s", c.raw)
	}
	w.do("POST", path+"/browse", nil).refused(502, "connector_storage_unavailable", "does not exist")

	now := time.Now()
	w.sources.set(f.connector, nil, bucket.Object{Path: "a/", ModTime: now}, bucket.Object{Path: "a/B.MP4", Size: 3, ModTime: now},
		bucket.Object{Path: "a/b/c.mov", ModTime: now}, bucket.Object{Path: "a/plain", ModTime: now})
	paths := func(body obj) string {
		var out []string
		for _, e := range w.do("POST", path+"/browse", body).want(200).body.([]any) {
			out = append(out, e.(map[string]any)["path"].(string))
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		body obj
		want string
	}{
		{nil, "a/B.MP4 a/b/c.mov a/plain"},
		{obj{"pattern": "*.{MP4,mov}"}, "a/B.MP4 a/b/c.mov"},
		{obj{"prefix": "a/", "recursive": false}, "a/B.MP4 a/plain"},
		{obj{"prefix": "a/b/c.mov", "pattern": "c.mov", "recursive": false}, "a/b/c.mov"},
		{obj{"limit": 1}, "a/B.MP4"},
		{obj{"prefix": "zzz"}, ""},
	} {
		if got := paths(c.body); got != c.want {
			t.Errorf("%v: %q, want %q", c.body, got, c.want)
		}
	}
	file := w.do("POST", path+"/browse", obj{"limit": 1}).at(0).(map[string]any)
	if file["extension"] != "mp4" || file["name"] != "B.MP4" || file["content_type"] != "video/mp4" {
		t.Errorf("file %v", file)
	}
}

func TestJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	ctx := t.Context()
	create := func(body obj) answer {
		return w.do("POST", "/import-jobs", merged(obj{"connector_id": f.connector, "index_id": f.index}, body))
	}
	a := create(obj{"source_prefix": "cams/", "file_pattern": "*.{mp4,mov}", "import_mode_override": ""}).want(202)
	id := a.str("job_id")
	if a.str("status") != "pending" || a.str("target_index_id") != f.index || a.str("import_mode") != "all" || a.str("origin") != "manual" {
		t.Errorf("created: %s", a.raw)
	}
	var asked event.JobRequested
	for m, err := range w.bus.Last(ctx, topology.Jobs, w.bus.Subject("job", "requested", "bulk", id)) {
		must(t, err)
		must(t, json.Unmarshal(m.Data, &asked))
	}
	if asked.Job != id || asked.Lane != event.Bulk || asked.Prefix != "cams/" || asked.Mode != event.All || !asked.Recursive {
		t.Errorf("asked for %+v", asked)
	}
	create(obj{"connector_id": gone}).refused(404, "resource_connector_not_found", gone)
	create(obj{"index_id": gone}).refused(404, "resource_index_not_found", gone)
	export := w.do("POST", "/connectors/dir", obj{"name": "Out", "path": "/allowed/out", "scopes": []string{"export"}}).str("connector_id")
	create(obj{"connector_id": export}).refused(409, "connector_scope_missing")
	create(obj{"file_pattern": "[a"}).refused(422, "validation_error", "file_pattern")

	// While it runs the arrays come from the bus.
	must(t, w.jobs.Put(ctx, id, store.Job{ID: id, Index: f.index, Connector: f.connector, Mode: event.NewOnly, Status: store.JobImporting, Progress: store.Progress{Total: 4, Current: "x"}, CreatedAt: time.Now()}))
	states := []event.File{
		{Path: "done", State: event.Imported, Video: "vid_1"}, {Path: "bad", State: event.Failed, Error: "why"},
		{Path: "waiting", State: event.Queued}, {Path: "moving", State: event.Importing},
	}
	for _, s := range states {
		s.Job = id
		data, err := json.Marshal(s)
		must(t, err)
		_, err = w.bus.Publish(ctx, bus.Message{Subject: w.bus.Subject("file", id, event.ObjectHash("c", s.Path)), Data: data})
		must(t, err)
	}
	running := w.do("GET", "/import-jobs/"+id, nil).want(200)
	if running.str("video_ids", 0) != "vid_1" || running.str("failed_files", 0, "error") != "why" || len(running.at("skipped_files").([]any)) != 0 || running.str("progress", "current_file") != "x" {
		t.Errorf("running: %s", running.raw)
	}
	cancelled := w.do("POST", "/import-jobs/"+id+"/cancel", nil).want(200)
	if cancelled.str("status") != "cancelled" || len(cancelled.at("skipped_files").([]any)) != 2 || cancelled.str("skipped_files", 0, "reason") != "job cancelled" ||
		cancelled.at("progress", "skipped") != 2.0 || cancelled.at("progress", "imported") != 1.0 || cancelled.at("progress", "current_file") != nil {
		t.Errorf("cancelled: %s", cancelled.raw)
	}
	w.do("POST", "/import-jobs/"+id+"/cancel", nil).refused(400, "import_job_not_cancellable", "cancelled")

	// Once it has ended they come from the report.
	settled := w.do("GET", "/import-jobs/"+f.job, nil).want(200)
	if settled.str("video_ids", 0) != f.video || settled.str("skipped_files", 0, "reason") != "already imported" || !strings.Contains(string(settled.raw), "a & b") && !strings.Contains(string(settled.raw), "c.mov") {
		t.Errorf("settled: %s", settled.raw)
	}
	must(t, w.jobs.Put(ctx, "job_big", store.Job{ID: "job_big", Index: "other", Connector: f.connector, Mode: event.All, Status: store.JobCompleted, Report: "report", Settled: true, Progress: store.Progress{Total: 101, Imported: 101}, CreatedAt: time.Now().Add(time.Hour)}))
	list := w.do("GET", "/import-jobs", nil).want(200)
	if list.str(0, "job_id") != "job_big" || list.at(0, "files_omitted") != true || list.at(1, "files_omitted") != false {
		t.Errorf("list: %s", list.raw)
	}
	for query, want := range map[string]int{
		"": 3, "?limit=1": 1, "?status=CANCELLED": 1, "?status=cancelled&index_id=" + f.index: 1, "?automation_only=true": 1,
		"?index_id=other": 1, "?index_id=nothing": 0,
	} {
		if got := len(w.do("GET", "/import-jobs"+query, nil).want(200).body.([]any)); got != want {
			t.Errorf("%s: %d jobs, want %d", query, got, want)
		}
	}
	w.do("GET", "/import-jobs?status=partial", nil).refused(422, "validation_error", "importing")
	for _, limit := range []string{"0", "201", "x", "1.5"} {
		w.do("GET", "/import-jobs?limit="+limit, nil).refused(422, "validation_error", "limit")
	}
}

func merged(parts ...obj) obj {
	out := make(obj)
	for _, m := range parts {
		maps.Copy(out, m)
	}
	return out
}

func TestAutomationValidation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	index := w.do("POST", "/indexes", obj{"name": "fresh"}).str("index_id")
	path := "/indexes/" + index + "/automations/import"
	w.do("GET", path, nil).refused(404, "resource_import_automation_not_found")
	w.do("POST", path+"/pause", nil).refused(404, "resource_import_automation_not_found")
	w.do("POST", path+"/resume", obj{}).refused(404, "resource_import_automation_not_found")
	good := obj{"connector_id": f.connector, "debounce_interval": "10m", "prompt_preset": obj{"prompt_id": f.prompt}}
	put := func(change obj) answer { return w.do("PUT", path, merged(good, change)) }

	put(obj{"debounce_interval": "7m"}).refused(422, "validation_error", "debounce_interval", "5m, 10m, 1h, 1d, 2s")
	put(obj{"debounce_interval": "5M"}).refused(422, "validation_error", "debounce_interval")
	put(obj{"debounce_interval": nil}).refused(422, "validation_error", "debounce_interval")
	put(obj{"file_pattern": "{a"}).refused(422, "validation_error", "file_pattern")
	put(obj{"connector_id": gone}).refused(404, "resource_connector_not_found")
	put(obj{"prompt_preset": obj{"prompt_id": gone}}).refused(404, "resource_prompt_not_found")
	put(obj{"prompt_preset": obj{}}).refused(422, "validation_error", "prompt_preset.prompt_id")
	put(obj{"prompt_preset": obj{"prompt_id": nil}}).refused(422, "validation_error", "prompt_preset.prompt_id")
	put(obj{"prompt_preset": "x"}).refused(422, "validation_error", "prompt_preset")
	put(obj{"prompt_preset": []int{1}}).refused(422, "validation_error", "prompt_preset")
	put(obj{"prompt_preset": obj{"prompt_id": 5}}).refused(422, "validation_error", "prompt_preset.prompt_id")
	preset := func(change obj) obj { return obj{"prompt_preset": merged(obj{"prompt_id": f.prompt}, change)} }
	put(preset(obj{"video_segmentation_type": "slow"})).refused(422, "validation_error", "smart, fixed, content_aware")
	put(preset(obj{"audio_segmentation_type": "smart"})).refused(422, "validation_error", "fixed, content_aware")
	put(preset(obj{"video_segmentation_type": "fixed"})).refused(422, "validation_error", "prompt_preset.video_segment_duration", "1 to 300")
	put(preset(obj{"video_segmentation_type": "fixed", "video_segment_duration": 301})).refused(422, "validation_error", "1 to 300")
	put(preset(obj{"audio_segmentation_type": "fixed", "audio_segment_duration": 2.5})).refused(422, "validation_error", "audio_segment_duration")
	put(preset(obj{"enable_transcription": "yes"})).refused(422, "validation_error", "true or false")
	missing := merged(good)
	delete(missing, "prompt_preset")
	w.do("PUT", path, missing).refused(422, "validation_error", "prompt_preset", "is required")
	w.do("GET", path, nil).refused(404, "resource_import_automation_not_found") // nothing was half done

	a := put(preset(obj{"custom": obj{"deep": []any{1, nil}}, "processing_model": nil})).want(200)
	got := a.at("prompt_preset").(map[string]any)
	if got["video_segmentation_type"] != "smart" || got["audio_segmentation_type"] != "content_aware" || got["enable_transcription"] != true ||
		got["video_segment_duration"] != nil || fmt.Sprint(got["custom"]) != "map[deep:[1 <nil>]]" {
		t.Errorf("preset %v", got)
	}
	if a.at("enabled") != true || a.at("paused") != false || a.str("file_pattern") != "*" || a.at("recursive") != true || a.at("include_existing") != true {
		t.Errorf("defaults: %s", a.raw)
	}
	if b := put(obj{"prompt_preset": nil}).want(200); b.at("prompt_preset") != nil || b.str("created_at") != a.str("created_at") {
		t.Errorf("import only: %s", b.raw)
	}
	export := w.do("POST", "/connectors/dir", obj{"name": "Out", "path": "/allowed/out", "scopes": []string{"export"}}).str("connector_id")
	put(obj{"connector_id": export}).refused(409, "connector_scope_missing")
}

// due tells whether a scan of the automation has been asked for since the last call.
func (w *world) due(automation string) bool {
	w.t.Helper()
	subject := w.bus.Subject("due", "scan", automation)
	asked := false
	for m, err := range w.bus.Last(w.t.Context(), topology.Timers, subject) {
		must(w.t, err)
		var timer event.Timer
		must(w.t, json.Unmarshal(m.Data, &timer))
		asked = timer.Epoch == "now" && timer.Automation == automation
	}
	must(w.t, w.bus.Purge(w.t.Context(), topology.Timers, subject, 0))
	return asked
}

func TestAutomationEffects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	ctx := t.Context()
	id := event.AutomationOfIndex(f.index)
	path := "/indexes/" + f.index + "/automations/import"
	scans := register[store.Scan](w, topology.Scans)
	put := func(change obj) answer {
		return w.do("PUT", path, merged(obj{"connector_id": f.connector, "debounce_interval": "1h", "prompt_preset": nil}, change)).want(200)
	}
	if !w.due(id) {
		t.Error("the first configuration did not ask for a scan")
	}
	must(t, scans.Put(ctx, id, store.Scan{Automation: id, Epoch: "s_1"}))
	put(nil)
	if w.due(id) {
		t.Error("a changed interval asked for a scan")
	}
	rev := func() int {
		at, _, err := w.automations.Get(ctx, id)
		must(t, err)
		return at.Rev
	}
	first := rev()
	put(nil)
	if rev() != first {
		t.Error("a repetition counts as a configuration")
	}
	put(obj{"file_pattern": "*.mov"})
	if !w.due(id) || rev() != first+1 {
		t.Errorf("a changed pattern asked for no scan, or is revision %d", rev())
	}
	must(t, scans.Delete(ctx, id))
	put(obj{"file_pattern": "*.mov"})
	if !w.due(id) {
		t.Error("a repetition of what was not finished asked for no scan")
	}
	must(t, scans.Put(ctx, id, store.Scan{Automation: id, Epoch: "s_1"}))

	// An open window follows.
	arrived := time.Now().UTC().Truncate(time.Millisecond)
	w.arrive(f.index, "cams/new.mov", arrived)
	stampOf := func(x time.Time) string { return x.UTC().Format("2006-01-02T15:04:05.000Z") }
	open := w.do("GET", path, nil)
	if open.str("pending_since") != stampOf(arrived) || open.str("next_fire_at") != stampOf(arrived.Add(time.Hour)) || open.at("pending_files") != 1.0 {
		t.Errorf("open: %s", open.raw)
	}
	if a := put(obj{"debounce_interval": "1d", "file_pattern": "*.mov"}); a.str("next_fire_at") != stampOf(arrived.Add(24*time.Hour)) {
		t.Errorf("longer: %s", a.raw)
	}
	if a := w.do("POST", path+"/pause", nil).want(200); a.at("paused") != true || a.at("next_fire_at") != nil || a.str("pending_since") == "" {
		t.Errorf("paused: %s", a.raw)
	}
	if r, _ := w.windows.Get(ctx, id); !r.Held {
		t.Error("the window is not held")
	}
	if a := w.do("POST", path+"/resume", nil).want(200); a.at("paused") != false || a.str("next_fire_at") == "" {
		t.Errorf("resumed: %s", a.raw)
	}
	if a := put(obj{"enabled": false}); a.at("enabled") != false || a.at("pending_since") != nil {
		t.Errorf("disabled: %s", a.raw)
	}
	if w.due(id) {
		t.Error("disabling asked for a scan")
	}
	put(obj{"enabled": true, "paused": true})
	if r, _ := w.windows.Get(ctx, id); !r.Held || !w.due(id) {
		t.Error("enabled and paused: not held, or not scanned")
	}

	// What it started last.
	job := event.JobOfWindow(id, "w_1")
	reg := register[window.Record](w, topology.Windows)
	_, _, err := reg.Modify(ctx, id, func(r *window.Record) error { r.LastJob, r.LastClosed = job, arrived; return nil })
	must(t, err)
	if a := w.do("GET", path, nil); a.str("last_job_id") != f.job || a.str("last_run_id") != f.run || a.str("last_triggered_at") != stampOf(arrived) || a.at("last_error") != nil {
		t.Errorf("last: %s", a.raw)
	}
	must(t, w.connectors.Delete(ctx, f.connector))
	if a := w.do("GET", path, nil).want(200); !strings.Contains(a.str("last_error"), f.connector) {
		t.Errorf("without its connector: %s", a.raw)
	}
}

// TestPauseHolds: once a pause is answered no window closes, although many try, and however pauses and resumes met.
func TestPauseHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	ctx := t.Context()
	id := event.AutomationOfIndex(f.index)
	path := "/indexes/" + f.index + "/automations/import"
	w.do("PUT", path, obj{"connector_id": f.connector, "debounce_interval": "2s", "prompt_preset": nil}).want(200)
	at, _, err := w.automations.Get(ctx, id)
	must(t, err)
	cfg := window.Config{Interval: at.Interval(), Rev: at.Rev}
	records, err := store.Open[window.Record](ctx, w.bus, topology.Windows)
	must(t, err)
	var seq atomic.Uint64
	// closeOne opens a window that is long due and closes it as a debouncer does that has just seen it.
	closeOne := func() (closed bool) {
		must(t, w.windows.Merge(ctx, id, []window.Arrival{{Seq: seq.Add(1), Stored: time.Now().Add(-time.Hour)}}, cfg))
		r, rev, err := records.Get(ctx, id)
		must(t, err)
		if !window.Due(r, time.Now()) {
			return false
		}
		request := event.JobRequested{Lane: event.Live, Index: f.index, Connector: f.connector}
		err = w.windows.Close(ctx, []window.DueWindow{{Record: r, Revision: rev, Request: request}})[0]
		if err != nil && !errors.Is(err, bus.ErrConflict) {
			t.Error(err)
		}
		return err == nil
	}
	if !closeOne() {
		t.Fatal("an overdue window does not close: this test would prove nothing")
	}
	for range 5 {
		stop := make(chan struct{})
		var closers sync.WaitGroup
		for range 2 {
			closers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						closeOne()
					}
				}
			})
		}
		w.do("POST", path+"/pause", nil).want(200)
		r, err := w.windows.Get(ctx, id)
		must(t, err)
		closed := r.LastJob
		for range 20 {
			closeOne()
		}
		if r, _ = w.windows.Get(ctx, id); r.LastJob != closed {
			t.Fatal("a window closed after the pause was answered")
		}
		close(stop)
		closers.Wait()

		var steerers sync.WaitGroup
		for i := range 8 {
			steerers.Go(func() { w.do("POST", path+[]string{"/pause", "/resume"}[i%2], nil).want(200) })
		}
		steerers.Wait()
		at, _, err = w.automations.Get(ctx, id)
		must(t, err)
		if r, _ = w.windows.Get(ctx, id); r.Held != at.Paused {
			t.Fatalf("record says paused %v, window held %v", at.Paused, r.Held)
		}
		w.do("POST", path+"/resume", nil).want(200)
		r, err = w.windows.Get(ctx, id)
		must(t, err)
		if r.Held {
			t.Fatal("held after a resume")
		}
	}
}

func TestVideosAndRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	ctx := t.Context()
	v := w.do("GET", "/videos/"+f.video, nil).want(200)
	if v.str("video_uri") != "millrace://"+f.index+"/"+f.video || v.str("title") != "a & b.mp4" || v.str("status") != "processed" || v.at("processing_status", 0, "successful_segments") != 1.0 {
		t.Errorf("video: %s", v.raw)
	}
	if bytes.Contains(v.raw, []byte("/srv/")) || !bytes.Contains(v.raw, []byte("a & b.mp4")) {
		t.Errorf("a local path, or escaped characters: %s", v.raw)
	}
	var entries []store.Entry
	for i, state := range []event.MediumState{event.MediumImported, event.MediumImported, event.MediumDeleted, event.MediumSkipped, event.MediumFailed, event.MediumBaseline} {
		id := event.NewMediumID(f.index, f.connector, fmt.Sprint(i), "v", "")
		entries = append(entries, store.Entry{Medium: event.Medium{ID: id, Index: f.index, Path: fmt.Sprint(i), State: state, MediaType: "image",
			URI: []string{"gs://b/k?x", "https://user:PLANTED@h/x"}[min(i, 1)], Job: "job_x", CreatedAt: time.Now()}})
	}
	must(t, errors.Join(w.ledger.Write(ctx, entries)...))
	for i, e := range entries {
		want := 404
		if i < 2 {
			want = 200
		}
		a := w.do("GET", "/videos/"+e.ID.String(), nil).want(want)
		if want == 200 && (strings.Contains(string(a.raw), "PLANTED") || a.str("status") != "not_processed" || a.at("duration_seconds") != nil) {
			t.Errorf("%s", a.raw)
		}
	}

	var seen []string
	cursor, path := "", "/indexes/"+f.index+"/videos?limit=1"
	for {
		p := w.do("GET", path+"&cursor="+cursor, nil).want(200)
		if p.at("pagination", "limit") != 1.0 {
			t.Fatalf("limit: %s", p.raw)
		}
		for _, d := range p.at("data").([]any) {
			seen = append(seen, d.(map[string]any)["title"].(string))
		}
		more, _ := p.at("pagination", "has_more").(bool)
		if next := p.str("pagination", "next_cursor"); more != (next != "") || next == cursor && more {
			t.Fatalf("page %s", p.raw)
		}
		if !more {
			break
		}
		cursor = p.str("pagination", "next_cursor")
	}
	if !slices.Equal(seen, []string{"1", "0", "a & b.mp4"}) {
		t.Errorf("newest first: %v", seen)
	}
	other := w.do("POST", "/indexes", obj{"name": "other"}).str("index_id")
	w.do("GET", "/indexes/"+other+"/videos?cursor="+cursor, nil).refused(422, "validation_error", "cursor")
	w.do("GET", path+"&cursor=x", nil).refused(422, "validation_error", "cursor")
	if p := w.do("GET", "/indexes/"+other+"/videos", nil).want(200); string(p.raw) != `{"data":[],"pagination":{"limit":50,"has_more":false,"next_cursor":null}}`+"\n" {
		t.Errorf("empty page: %s", p.raw)
	}
	w.do("GET", "/indexes/"+other+"/videos?limit=101", nil).refused(422, "validation_error", "limit", "100")

	r := w.do("GET", "/prompt-runs/"+f.run, nil).want(200)
	if r.str("run_context", "video_ids", 0) != f.video || r.str("video_segmentation_type") != "smart" || r.at("completed_videos") != 1.0 || r.str("executor") != "nats" {
		t.Errorf("run: %s", r.raw)
	}
	must(t, w.runs.Put(ctx, "run_big", store.Run{ID: "run_big", Prompt: f.prompt, Count: 1001, Media: "media", Status: store.RunPending, CreatedAt: time.Now().Add(time.Hour)}))
	big := w.do("GET", "/prompt-runs?limit=1", nil).want(200)
	if _, there := big.at(0, "run_context").(map[string]any)["video_ids"]; there || big.at(0, "run_context", "media_count") != 1001.0 {
		t.Errorf("big run: %s", big.raw)
	}

	path = "/prompt-runs/" + f.run + "/results"
	res := w.do("GET", path+"?video_id="+f.video, nil).want(200)
	if res.str("data", 0, "metadata_text") != `{"seen":"<car> & bus"}` || res.str("data", 0, "metadata", "seen") != "<car> & bus" || res.str("data", 0, "result_type") != "segment" {
		t.Errorf("result: %s", res.raw)
	}
	if !bytes.Contains(res.raw, []byte("<car> & bus")) {
		t.Errorf("escaped for HTML: %s", res.raw)
	}
	w.do("GET", path, nil).refused(422, "validation_error", "video_id")
	w.do("GET", path+"?video_id=*", nil).refused(422, "validation_error", "video_id")
	report := func(body event.Report) answer {
		data, err := json.Marshal(body)
		must(t, err)
		_, err = w.bus.Publish(ctx, bus.Message{Subject: w.bus.Subject("run", "report", f.run, f.video), Data: data})
		must(t, err)
		return w.do("GET", path+"?video_id="+f.video, nil).want(200)
	}
	if a := report(event.Report{Run: f.run, Video: f.video, State: event.Processing}); len(a.at("data").([]any)) != 0 {
		t.Errorf("processing: %s", a.raw)
	}
	if a := report(event.Report{Run: f.run, Video: f.video, State: event.Unsuccessful, Error: "out of memory"}); a.at("data", 0, "field_extraction_succeeded") != false || a.str("data", 0, "error_message") != "out of memory" || a.str("data", 0, "metadata_text") != "{}" {
		t.Errorf("failed: %s", a.raw)
	}
	if a := report(event.Report{Run: f.run, Video: f.video, State: event.Successful, Result: json.RawMessage(`[1]`)}); a.str("data", 0, "metadata_text") != `{"result":[1]}` {
		t.Errorf("not an object: %s", a.raw)
	}
}

func TestPrompts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	body := obj{"name": "Ünïcødé", "prompt_text": "0123456789", "json_schema": json.RawMessage(schema),
		"video_level":       obj{"instructions_text": "x", "included_segment_fields": []string{"a"}, "json_schema": obj{"type": "object"}},
		"semantic_indexing": obj{"disabled_segment_fields": []string{}}, "execution_config": obj{"a": nil, "b": `<&\u003c\`}, "selection_filter": obj{"b": 1}}
	a := w.do("POST", "/prompts", body).want(201)
	got := w.do("GET", "/prompts/"+a.str("prompt_id"), nil).want(200)
	if !bytes.Equal(a.raw, got.raw) {
		t.Errorf("%s\n%s", a.raw, got.raw)
	}
	for _, k := range []string{"video_level", "semantic_indexing", "execution_config", "selection_filter"} {
		want, _ := json.Marshal(body[k])
		if have, _ := json.Marshal(got.at(k)); !bytes.Equal(have, want) {
			t.Errorf("%s: %s, want %s", k, have, want)
		}
	}
	if !bytes.Contains(got.raw, []byte(`"a<b"`)) {
		t.Errorf("escaped for HTML: %s", got.raw)
	}
	if got.at("description") != "" {
		t.Errorf("description %v", got.at("description"))
	}
}

func TestPushedNotifications(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	var down atomic.Bool
	issuer := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		if down.Load() {
			http.Error(rw, "no", http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(rw).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "RS256", Use: "sig"}}})
	}))
	defer issuer.Close()
	w := newWorld(t, func(c *admin.Config) {
		c.PushAudience, c.PushServiceAccount, c.PushJWKS = "https://millrace.example/push", "pusher@p.iam", issuer.URL
	})
	f := w.fixture()
	token := func(k any, alg jose.SignatureAlgorithm, change obj) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: k, KeyID: "k1"}}, nil)
		must(t, err)
		claims := merged(obj{"iss": "https://accounts.google.com", "aud": "https://millrace.example/push", "exp": time.Now().Add(time.Hour).Unix(),
			"email": "pusher@p.iam", "email_verified": true}, change)
		s, err := jwt.Signed(signer).Claims(map[string]any(claims)).Serialize()
		must(t, err)
		return s
	}
	push := func(token string) answer {
		return w.do("POST", "/notifications/"+f.connector, nil, request{key: "-", raw: []byte(`{"message":{"data":"e30="}}`),
			header: map[string]string{"Authorization": "Bearer " + token, "Content-Type": "application/json"}})
	}
	good := token(key, jose.RS256, nil)
	down.Store(true)
	push(good).refused(503, "push_keys_unavailable")
	down.Store(false)
	push(good).want(200)
	down.Store(true) // the keys are known
	push(good).want(200)
	for name, bad := range map[string]string{
		"stranger":   token(stranger, jose.RS256, nil),
		"symmetric":  token([]byte(strings.Repeat("x", 64)), jose.HS256, nil),
		"audience":   token(key, jose.RS256, obj{"aud": "https://millrace.example/push/"}),
		"audiences":  token(key, jose.RS256, obj{"aud": []string{"https://millrace.example/push", "x"}}),
		"issuer":     token(key, jose.RS256, obj{"iss": "https://evil.example"}),
		"account":    token(key, jose.RS256, obj{"email": "other@p.iam"}),
		"unverified": token(key, jose.RS256, obj{"email_verified": false}),
		"expired":    token(key, jose.RS256, obj{"exp": time.Now().Add(-time.Hour).Unix()}),
		"endless":    token(key, jose.RS256, obj{"exp": nil}),
		"garbage":    "a.b.c",
	} {
		if a := push(bad); a.status != 401 {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	w.do("POST", "/notifications/"+gone, nil, request{key: "-", raw: []byte(`{}`), header: map[string]string{"Authorization": "Bearer " + good}}).
		refused(404, "resource_connector_not_found")

	// Anything is taken as it is, with a key.
	raw := []byte("\x00 not JSON at all")
	w.do("POST", "/notifications/"+f.connector, nil, request{raw: raw, header: map[string]string{"Content-Type": "text/x-odd"}}).want(200)
	found := false
	for m, err := range w.bus.Scan(t.Context(), topology.Notifications, w.bus.Subject("notification", f.connector), 0) {
		must(t, err)
		found = found || bytes.Equal(m.Data, raw)
	}
	if !found {
		t.Error("the body was not stored as it is")
	}
	w.do("POST", "/notifications/"+f.connector, nil).refused(400, "request_malformed", "empty")
	w.do("POST", "/notifications/"+f.connector, nil, request{raw: make([]byte, 2<<20)}).refused(413, "request_too_large")
	w.do("POST", "/notifications/"+f.connector, nil, request{raw: make([]byte, 1<<20-8<<10)}).want(200)
}

// TestPanic: whatever breaks in a handler, the client gets the envelope and the log the reason.
func TestPanic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.do("POST", "/connectors/dir", obj{"name": "n", "path": "/allowed"}).str("connector_id")
	w.sources.panics = true
	w.do("POST", "/connectors/"+c+"/test", nil).refused(500, "internal_error")
	if log := w.log.String(); !strings.Contains(log, "PLANTED PANIC") {
		t.Error("the panic is not in the log")
	}
}
