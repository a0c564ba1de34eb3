package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
)

func (s *source) Stat(_ context.Context, path string) (bucket.Object, error) {
	if s.err != nil {
		return bucket.Object{}, s.err
	}
	for _, o := range s.objects {
		if o.Path == path {
			return o, nil
		}
	}
	return bucket.Object{}, fmt.Errorf("stat %q: %w", path, bucket.ErrNotExist)
}

func (w *world) explain(connector, path string) answer {
	w.t.Helper()
	return w.do("GET", "/explain?connector_id="+connector+"&path="+url.QueryEscape(path), nil).want(200)
}

// steps are the kinds of the steps of an explanation, in order.
func steps(a answer) (kinds []string) {
	for i := range a.at("steps").([]any) {
		kinds = append(kinds, a.str("steps", i, "step"))
	}
	return kinds
}

func wantVerdict(t *testing.T, a answer, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(a.str("verdict"), word) {
			t.Errorf("%s: nothing of %q in %q", a.what, word, a.str("verdict"))
		}
	}
}

func TestExplainWhatWasImported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	const path = "cams/a & b.mp4"
	w.sources.set(f.connector, nil, bucket.Object{Path: path, Version: "v1", Size: 10})
	for _, p := range []string{path, "cams/another.mp4"} {
		n, err := json.Marshal(event.Notification{Op: event.Created, Path: p, Version: "v1"})
		must(t, err)
		w.do("POST", "/notifications/"+f.connector, nil, request{raw: n}).want(200)
	}
	a := w.explain(f.connector, path)
	wantVerdict(t, a, f.video, f.run, "completed", f.index)
	kinds := steps(a)
	for _, kind := range []string{"notification", "job", "file", "media", "run"} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("no %s in %v", kind, kinds)
		}
	}
	if n := len(slices.DeleteFunc(kinds, func(k string) bool { return k != "notification" })); n != 1 {
		t.Errorf("%d notifications, one is about it: %s", n, a.raw)
	}
	last := ""
	for i := range a.at("steps").([]any) {
		if at := a.str("steps", i, "at"); at < last {
			t.Error("the steps are not in order")
		} else {
			last = at
		}
	}
	if a.str("object", "version") != "v1" || a.at("storage_error") != nil || a.at("notifications_searched_since") != nil {
		t.Errorf("object: %s", a.raw)
	}
	for i := range a.at("automations").([]any) {
		matches, reason := a.at("automations", i, "matches"), a.str("automations", i, "reason")
		if a.str("automations", i, "index_id") == f.calm {
			if matches != false || !strings.Contains(reason, `source_prefix "calm/"`) {
				t.Errorf("calm: %v %s", matches, reason)
			}
		} else if matches != true {
			t.Errorf("%v %s", matches, reason)
		}
	}
	if w.sources.set(f.connector, errors.New("boom")); w.explain(f.connector, path).str("storage_error") == "" {
		t.Error("a storage that does not answer is not told")
	}
}

func TestExplainWhyNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	connector := w.do("POST", "/connectors/dir", obj{"name": "Drop", "path": "/allowed/drop"}).want(201).str("connector_id")
	wantVerdict(t, w.explain(connector, "in/a.mp4"), "No automation is about this connector")
	put := func(change obj) {
		t.Helper()
		w.do("PUT", "/indexes/"+f.calm+"/automations/import", merged(obj{
			"connector_id": connector, "source_prefix": "in/", "file_pattern": "*.mp4", "debounce_interval": "5m", "prompt_preset": nil,
		}, change)).want(200)
	}
	w.sources.set(connector, nil, bucket.Object{Path: "in/a.mp4", Version: "1"}, bucket.Object{Path: "in/deep/a.mp4", Version: "1"})
	for _, c := range []struct {
		change obj
		path   string
		words  []string
	}{
		{nil, "out/a.mp4", []string{"No automation wants", `source_prefix "in/"`}},
		{nil, "in/a.mov", []string{"No automation wants", `file_pattern "*.mp4"`}},
		{nil, "in/deep/", []string{"No automation wants", "folder"}},
		{obj{"recursive": false}, "in/deep/a.mp4", []string{"No automation wants", "recursive is false"}},
		{obj{"enabled": false}, "in/a.mp4", []string{"No automation wants", "disabled"}},
		{nil, "in/nothing.mp4", []string{"no such object"}},
		{nil, "in/a.mp4", []string{"not noticed", "listing"}},
	} {
		put(c.change)
		wantVerdict(t, w.explain(connector, c.path), c.words...)
	}
	w.do("GET", "/explain?connector_id="+connector, nil).refused(422, "validation_error", "path", "is required")
	w.do("GET", "/explain?path=x", nil).refused(422, "validation_error", "connector_id")
}

func TestExplainOnTheWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	ctx := t.Context()
	const path = "cams/new.mp4"
	w.arrive(f.index, path, time.Now())
	a := w.explain(f.connector, path)
	wantVerdict(t, a, "open window", "closes at")
	if kinds := steps(a); !slices.Equal(kinds, []string{"arrival"}) {
		t.Errorf("steps %v", kinds)
	}
	w.do("POST", "/indexes/"+f.index+"/automations/import/pause", nil).want(200)
	wantVerdict(t, w.explain(f.connector, path), "held", "paused")

	// A job has it in hand.
	job := store.Job{ID: "job_now", Index: f.index, Connector: f.connector, Automation: event.AutomationOfIndex(f.index), Status: store.JobImporting, CreatedAt: time.Now()}
	must(t, w.jobs.Put(ctx, job.ID, job))
	data, err := json.Marshal(event.File{Job: job.ID, Index: f.index, Connector: f.connector, Path: path, Version: "1", State: event.Queued, Error: "connection reset", Attempts: 2})
	must(t, err)
	_, err = w.bus.Publish(ctx, bus.Message{Subject: w.bus.Subject("file", job.ID, event.ObjectHash(f.connector, path)), Data: data})
	must(t, err)
	a = w.explain(f.connector, path)
	wantVerdict(t, a, "queued", "job_now")
	if !strings.Contains(string(a.raw), "connection reset") || !strings.Contains(string(a.raw), "Attempts: 2") {
		t.Errorf("attempts: %s", a.raw)
	}

	// A letter about it, found by its subject, and one found by its text.
	w.bury(event.Dead{Subject: w.bus.Subject("task", "live", job.ID, event.ObjectHash(f.connector, path)), Data: []byte("x")})
	w.bury(event.Dead{Subject: w.bus.Subject("notification", f.connector), Data: []byte(`{"op":"moved","path":"cams/new.mp4"}`)})
	if kinds := steps(w.explain(f.connector, path)); len(slices.DeleteFunc(kinds, func(k string) bool { return k != "dead" })) != 2 {
		t.Errorf("letters: %v", kinds)
	}
}

func TestExplainHowItWasSettled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	for i, c := range []struct {
		medium event.Medium
		words  []string
	}{
		{event.Medium{State: event.MediumFailed, Reason: "unreadable_media", Error: "no moov box"}, []string{"Failed: unreadable_media", "no moov box"}},
		{event.Medium{State: event.MediumFailed, Reason: "timeout", RetryAt: time.Now().Add(time.Hour)}, []string{"Failed", "tries it again from"}},
		{event.Medium{State: event.MediumSkipped, Reason: string(event.UnsupportedType)}, []string{"Skipped: unsupported file type"}},
		{event.Medium{State: event.MediumBaseline, Reason: string(event.Baseline)}, []string{"before the automation"}},
		{event.Medium{State: event.MediumBaseline, Reason: string(event.Cancelled)}, []string{"dropped the window"}},
		{event.Medium{State: event.MediumDeleted}, []string{"deleted by a person"}},
	} {
		m := c.medium
		m.Path = fmt.Sprintf("cams/%d.mp4", i)
		m.ID, m.Index, m.Connector, m.Version, m.CreatedAt = event.NewMediumID(f.index, f.connector, m.Path, "1", ""), f.index, f.connector, "1", time.Now()
		must(t, errors.Join(w.ledger.Write(t.Context(), []store.Entry{{Medium: m}})...))
		wantVerdict(t, w.explain(f.connector, m.Path), c.words...)
		w.sources.set(f.connector, nil, bucket.Object{Path: m.Path, Version: "2"})
		wantVerdict(t, w.explain(f.connector, m.Path), "An older version, 1")
	}
	// An import into an index that no automation fills is told too.
	other := w.do("POST", "/indexes", obj{"name": "Other"}).want(201).str("index_id")
	m := event.Medium{Path: "x/y.mp4", ID: event.NewMediumID(other, f.connector, "x/y.mp4", "1", ""), Index: other, Connector: f.connector, Version: "1", State: event.MediumImported, CreatedAt: time.Now()}
	must(t, errors.Join(w.ledger.Write(t.Context(), []store.Entry{{Medium: m}})...))
	wantVerdict(t, w.explain(f.connector, m.Path), other, m.ID.String())
}
