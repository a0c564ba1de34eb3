package admin_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// arrive stores an arrival and merges it into the window of an automation.
func (w *world) arrive(index, path string, stored time.Time) event.Arrival {
	w.t.Helper()
	at, _, err := w.automations.Get(w.t.Context(), event.AutomationOfIndex(index))
	must(w.t, err)
	a := event.Arrival{Automation: at.ID, Index: index, Connector: at.Connector, Object: event.Object{Path: path, Version: "1", Size: 10}, Found: event.ByNotification}
	data, err := json.Marshal(a)
	must(w.t, err)
	seq, err := w.bus.Publish(w.t.Context(), bus.Message{Subject: w.bus.Subject("arrival", at.ID, event.ObjectHash(at.Connector, path)), Data: data})
	must(w.t, err)
	must(w.t, w.windows.Merge(w.t.Context(), at.ID, []window.Arrival{{Seq: seq, Stored: stored, Size: 10}}, window.Config{Interval: at.Interval(), Rev: at.Rev}))
	return a
}

// What waits in a window is counted as it lies there: a file once, however often it came, and not when it was deleted.
func TestPendingFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/indexes/" + f.index + "/automations/import"
	want := func(files int) {
		t.Helper()
		a := w.do("GET", path, nil).want(200)
		if a.at("pending_files") != float64(files) || a.at("pending_bytes") != float64(10*files) || a.str("pending_since") == "" {
			t.Errorf("want %d files: %s", files, a.raw)
		}
		if l := w.do("GET", "/automations?limit=1", nil).want(200); l.at("data", 0, "window", "files") != float64(files) || l.at("data", 0, "window", "bytes") != float64(10*files) {
			t.Errorf("want %d files: %s", files, l.raw)
		}
	}
	for _, name := range []string{"cams/1.mp4", "cams/2.mp4", "cams/1.mp4"} {
		w.arrive(f.index, name, time.Now())
	}
	want(2)
	gone := w.bus.Subject("arrival", event.AutomationOfIndex(f.index), event.ObjectHash(f.connector, "cams/2.mp4"))
	must(t, w.bus.Purge(t.Context(), topology.Arrivals, gone, 0)) // as a deletion does that is told
	want(1)
}

func TestAutomationsWithTheirWindows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	w.arrive(f.index, "cams/1.mp4", time.Now())
	w.arrive(f.index, "cams/2.mp4", time.Now())
	for i := range 5 {
		index := w.do("POST", "/indexes", obj{"name": fmt.Sprint(i)}).want(201).str("index_id")
		w.do("PUT", "/indexes/"+index+"/automations/import", obj{"connector_id": f.connector, "debounce_interval": "5m", "prompt_preset": nil}).want(200)
	}
	var indexes []string
	seen := make(map[string]bool)
	for cursor := ""; ; {
		a := w.do("GET", "/automations?limit=2&cursor="+url.QueryEscape(cursor), nil).want(200)
		for i := range a.at("data").([]any) {
			index := a.str("data", i, "automation", "index_id")
			indexes, seen[index] = append(indexes, index), true
			open := a.at("data", i, "window")
			if (index == f.index) != (open != nil) {
				t.Errorf("window of %s: %v", index, open)
			}
			if index != f.index {
				continue
			}
			left, _ := a.at("data", i, "window", "seconds_left").(float64)
			if a.at("data", i, "window", "files") != 2.0 || a.at("data", i, "window", "bytes") != 20.0 || a.at("data", i, "window", "held") != false || left < 200 || left > 300 {
				t.Errorf("%v", open)
			}
		}
		if cursor = a.str("pagination", "next_cursor"); cursor == "" {
			break
		}
	}
	if len(indexes) != 7 || len(seen) != 7 {
		t.Errorf("%d automations, %d different ones", len(indexes), len(seen))
	}
	w.do("POST", "/indexes/"+f.index+"/automations/import/pause", nil).want(200)
	if a := w.do("GET", "/automations?limit=1", nil).want(200); a.at("data", 0, "window", "held") != true {
		t.Errorf("paused: %s", a.raw)
	}
	w.do("GET", "/automations?cursor=x", nil).refused(422, "validation_error", "cursor")
}

func TestFlushExtendDrop(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/indexes/" + f.index + "/automations/import"
	w.do("POST", path+"/extend", obj{"by": "1h"}).refused(409, "import_window_not_open")
	if a := w.do("POST", path+"/flush", nil).want(200); a.at("window") != nil {
		t.Errorf("flush of nothing: %s", a.raw)
	}
	w.arrive(f.index, "cams/1.mp4", time.Now())

	open := w.do("POST", path+"/extend", obj{"by": "1h"}).want(200)
	if left := open.at("window", "seconds_left").(float64); left < 3800 || left > 3900 { // five minutes and an hour
		t.Errorf("extended: %s", open.raw)
	}
	until := time.Now().Add(5 * time.Hour).UTC().Truncate(time.Second)
	for range 2 { // a time, unlike a while, may be said twice
		open = w.do("POST", path+"/extend", obj{"until": until.Format(time.RFC3339)}).want(200)
		if got, err := time.Parse(time.RFC3339, open.str("window", "deadline")); err != nil || !got.Equal(until) {
			t.Errorf("until: %s", open.raw)
		}
	}

	w.do("POST", path+"/pause", nil).want(200)
	w.do("POST", path+"/flush", nil).refused(409, "import_automation_paused", "resume")
	w.do("POST", path+"/resume", nil).want(200)
	flushed := w.do("POST", path+"/flush", nil).want(200)
	if flushed.at("window", "seconds_left") != 0.0 || flushed.at("window", "files") != 1.0 {
		t.Errorf("flushed: %s", flushed.raw)
	}
	// Due means due to the debouncer.
	r, err := w.windows.Get(t.Context(), event.AutomationOfIndex(f.index))
	must(t, err)
	if !window.Due(r, time.Now()) {
		t.Errorf("flushed, the debouncer would wait: %+v", r.Open)
	}

	a := w.arrive(f.index, "cams/2.mp4", time.Now())
	if dropped := w.do("POST", path+"/drop", nil).want(200); dropped.at("window") != nil || dropped.at("automation", "pending_files") != 0.0 {
		t.Errorf("dropped: %s", dropped.raw)
	}
	w.do("POST", path+"/drop", nil).want(200)
	settled, err := w.ledger.Get(t.Context(), f.index, event.NewMediumID(f.index, a.Connector, a.Path, a.Version, ""))
	must(t, err)
	if len(settled) != 1 || settled[0].State != event.MediumBaseline {
		t.Errorf("what was dropped would come back with the next scan: %+v", settled)
	}
	if s, err := w.bus.State(t.Context(), topology.Arrivals); err != nil || s.Msgs != 0 {
		t.Errorf("%d arrivals are left, %v", s.Msgs, err)
	}
	_, _, err = w.automations.Modify(t.Context(), event.AutomationOfIndex(f.index), func(at *store.Automation) error { at.Enabled = false; return nil })
	must(t, err)
	w.do("POST", path+"/flush", nil).refused(409, "import_automation_disabled")
}

// A process that dies between the effect and its answer leaves a request that is carried out again: to no further effect.
func TestWindowCommandsAreNotDoneTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/indexes/" + f.index + "/automations/import"
	twice := func(verb string, body any, between func()) (first, second answer) {
		t.Helper()
		key := request{header: map[string]string{"Idempotency-Key": verb}}
		first = w.do("POST", path+verb, body, key).want(200)
		w.crash("POST", path+verb, verb)
		between()
		second = w.do("POST", path+verb, body, key).want(200)
		if second.header.Get("Idempotent-Replayed") != "" {
			t.Errorf("%s: an answer that was never kept", verb)
		}
		return first, second
	}
	arrives := func() { w.arrive(f.index, "cams/next.mp4", time.Now()) }
	nothing := func() {}

	w.arrive(f.index, "cams/1.mp4", time.Now())
	one, two := twice("/extend", obj{"by": "1h"}, nothing)
	if one.str("window", "deadline") != two.str("window", "deadline") {
		t.Errorf("extended to %s, then to %s", one.raw, two.raw)
	}
	if _, dropped := twice("/drop", nil, arrives); dropped.at("window", "files") != 1.0 {
		t.Errorf("what arrived after the drop is dropped: %s", dropped.raw)
	}
	closes := func() {
		must(t, w.windows.Drop(t.Context(), event.AutomationOfIndex(f.index))) // as good as closing, to the next one
		arrives()
	}
	if _, flushed := twice("/flush", nil, closes); flushed.at("window", "seconds_left") == 0.0 {
		t.Errorf("the window after the one that was flushed is flushed: %s", flushed.raw)
	}
	// With nothing open there is nothing to do, and nothing later either.
	w.do("POST", path+"/drop", nil).want(200)
	w.do("POST", path+"/drop", nil, keyed("empty")).want(200)
	w.crash("POST", path+"/drop", "empty")
	arrives()
	if a := w.do("POST", path+"/drop", nil, keyed("empty")).want(200); a.at("window", "files") != 1.0 {
		t.Errorf("dropped later: %s", a.raw)
	}
}
