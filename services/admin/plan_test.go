package admin_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
)

// TestPlan: a plan names exactly what is neither settled nor in a job, and imports nothing.
func TestPlan(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	ctx := t.Context()
	path := "/indexes/" + f.index + "/automations/import"
	object := func(path, version string) bucket.Object {
		return bucket.Object{Path: path, Version: version, Size: 10, ModTime: time.Now()}
	}
	w.sources.set(f.connector, nil,
		object("cams/a & b.mp4", "v1"), object("cams/new.mp4", "1"), object("cams/waits.mp4", "1"), object("cams/works.mp4", "1"),
		object("cams/again.mp4", "2"), object("cams/retried.mp4", "1"), object("cams/failed.mp4", "1"), object("cams/notes.txt", "1"),
		object("other/x.mp4", "1"))
	w.do("PUT", path, obj{"connector_id": f.connector, "source_prefix": "cams/", "file_pattern": "*.mp4", "debounce_interval": "1h", "prompt_preset": nil}).want(200)
	w.arrive(f.index, "cams/waits.mp4", time.Now())
	file := event.File{Job: "job_9", Connector: f.connector, Index: f.index, Path: "cams/works.mp4", Version: "1", State: event.Importing}
	data, err := json.Marshal(file)
	must(t, err)
	_, err = w.bus.Publish(ctx, bus.Message{Subject: w.bus.Subject("file", file.Job, event.ObjectHash(f.connector, file.Path)), Data: data})
	must(t, err)
	entry := func(path string, state event.MediumState, retry time.Time) store.Entry {
		return store.Entry{Medium: event.Medium{ID: event.NewMediumID(f.index, f.connector, path, "1", ""), Index: f.index, Connector: f.connector,
			Path: path, Version: "1", State: state, RetryAt: retry, CreatedAt: time.Now()}}
	}
	must(t, errors.Join(w.ledger.Write(ctx, []store.Entry{
		entry("cams/again.mp4", event.MediumImported, time.Time{}), entry("cams/retried.mp4", event.MediumFailed, time.Now().Add(-time.Minute)),
		entry("cams/failed.mp4", event.MediumFailed, time.Time{}),
	})...))

	a := w.do("GET", path+"/plan", nil).want(200)
	if a.at("matched_files") != 7.0 || a.at("settled_files") != 2.0 || a.at("importing_files") != 1.0 || a.at("bytes") != 40.0 || a.at("complete") != true {
		t.Errorf("plan: %s", a.raw)
	}
	want := map[string]bool{"cams/new.mp4": false, "cams/waits.mp4": true, "cams/again.mp4": false, "cams/retried.mp4": false}
	for i := range a.at("files").([]any) {
		waiting, planned := want[a.str("files", i, "path")]
		if !planned || a.at("files", i, "waiting") != waiting {
			t.Errorf("planned %v", a.at("files", i))
		}
		delete(want, a.str("files", i, "path"))
	}
	if len(want) > 0 {
		t.Errorf("not planned: %v", want)
	}
	if a := w.do("GET", path+"/plan?limit=1", nil).want(200); len(a.at("files").([]any)) != 1 || a.at("bytes") != 10.0 || a.at("complete") != false {
		t.Errorf("limited: %s", a.raw)
	}
	if r, err := w.windows.Get(ctx, event.AutomationOfIndex(f.index)); err != nil || r.Open.Count != 1 {
		t.Errorf("a plan let something arrive: %+v, %v", r.Open, err)
	}
	w.sources.set(f.connector, bucket.ErrNotExist)
	w.do("GET", path+"/plan", nil).refused(502, "connector_storage_unavailable")
}
