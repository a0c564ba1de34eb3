package admin_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/secret"
	"millrace/shared/topology"
)

// firstFlush is a writer that ends the request once something has been sent.
type firstFlush struct {
	*httptest.ResponseRecorder
	end func()
}

func (f firstFlush) Flush() { f.ResponseRecorder.Flush(); f.end() }

// glimpse sees the beginning of a stream, or the refusal.
func (w *world) glimpse(path string, with request) answer {
	w.t.Helper()
	ctx, end := context.WithCancel(w.t.Context())
	defer end()
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	switch with.key {
	case "-":
	case "":
		r.Header.Set("X-API-Key", w.keys["admin"])
	default:
		r.Header.Set("X-API-Key", with.key)
	}
	for k, v := range with.header {
		r.Header.Set(k, v)
	}
	rec := firstFlush{httptest.NewRecorder(), end}
	w.admin.Handler().ServeHTTP(rec, r)
	a := answer{t: w.t, what: "GET " + path, status: rec.Code, header: rec.Header(), raw: rec.Body.Bytes()}
	if a.status != http.StatusOK {
		a.check()
		return a
	}
	if ct := a.header.Get("Content-Type"); ct != "text/event-stream" || !strings.HasPrefix(string(a.raw), "retry: ") {
		w.t.Errorf("%s: %s %q", a.what, ct, a.raw)
	}
	return a
}

// follower reads a stream from a real server.
type follower struct {
	t     *testing.T
	lines chan string
	stop  func()
}

func (w *world) serve(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(w.admin.Handler())
	t.Cleanup(s.Close)
	return s.URL + base
}

func follow(t *testing.T, url, key, last string) *follower {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	must(t, err)
	r.Header.Set("X-API-Key", key)
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	res, err := http.DefaultClient.Do(r)
	must(t, err)
	f := &follower{t: t, lines: make(chan string, 4096), stop: stop}
	go func() {
		defer close(f.lines)
		defer func() { _ = res.Body.Close() }()
		for s := bufio.NewScanner(res.Body); s.Scan(); {
			f.lines <- s.Text()
		}
	}()
	t.Cleanup(stop)
	for range 3 { // retry, comment, blank: from here on nothing is missed
		f.line()
	}
	return f
}

func (f *follower) line() string {
	f.t.Helper()
	select {
	case l, ok := <-f.lines:
		if !ok {
			f.t.Fatal("the stream ended")
		}
		return l
	case <-time.After(10 * time.Second):
		f.t.Fatal("nothing came")
	}
	return ""
}

// next reads one event.
func (f *follower) next() (id string, e event.Event) {
	f.t.Helper()
	name := ""
	for {
		l := f.line()
		switch field, value, _ := strings.Cut(l, ": "); field {
		case "id":
			id = value
		case "event":
			name = value
		case "data":
			must(f.t, json.Unmarshal([]byte(value), &e))
		case "":
			if l != "" {
				continue
			}
			if id == "" || name != string(e.Type) {
				f.t.Errorf("id %q, event %q, data %+v", id, name, e)
			}
			return id, e
		}
	}
}

func (f *follower) ends() {
	f.t.Helper()
	late := time.After(10 * time.Second)
	for {
		select {
		case _, ok := <-f.lines:
			if !ok {
				return
			}
		case <-late:
			f.t.Fatal("the stream goes on")
		}
	}
}

func (w *world) happen(typ event.Type, index, subject string) event.Event {
	w.t.Helper()
	e, err := bus.NewEvent(typ, index, subject, time.Now(), map[string]string{"what": "<" + subject + ">\n"})
	must(w.t, err)
	must(w.t, w.bus.PublishEvent(w.t.Context(), e))
	return e
}

func TestEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	url := w.serve(t)
	w.happen(event.JobCompleted, "idx_1", "job_before")
	everything := follow(t, url+"/events", w.keys["read"], "")
	jobs := follow(t, url+"/events?type=import_job.*,import_job.completed,media.created", w.keys["read"], "")
	second := follow(t, url+"/events?index_id=idx_2", w.keys["read"], "")
	want := w.happen(event.JobStarted, "idx_1", "job_1")
	w.happen(event.RunCompleted, "idx_1", "run_1")
	w.happen(event.MediaCreated, "idx_2", "vid_1")

	_, got := everything.next()
	if got.ID != want.ID || got.Type != want.Type || got.Index != "idx_1" || got.Subject != "job_1" || !got.Time.Equal(want.Time) || string(got.Data) != string(`{"what":"<job_1>\n"}`) {
		t.Errorf("got %+v %s", got, got.Data)
	}
	subjects := func(f *follower, n int) string {
		var s []string
		for range n {
			_, e := f.next()
			s = append(s, e.Subject)
		}
		return strings.Join(s, " ")
	}
	if got := subjects(everything, 2); got != "run_1 vid_1" {
		t.Errorf("all: %s", got)
	}
	if got := subjects(jobs, 2); got != "job_1 vid_1" {
		t.Errorf("by type: %s", got)
	}
	if got := subjects(second, 1); got != "vid_1" {
		t.Errorf("by index: %s", got)
	}
	for query, field := range map[string]string{"type=import_job": "type", "type=import_job.%3E": "type", "type=*.*": "type", "index_id=a.b": "index_id", "last_event_id=x": "last_event_id", "last_event_id=1-": "last_event_id"} {
		w.do("GET", "/events?"+query, nil).refused(422, "validation_error", field)
	}
}

func TestEventsGoOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	url := w.serve(t)
	f := follow(t, url+"/events", w.keys["read"], "")
	w.happen(event.JobStarted, "idx_1", "job_1")
	last, _ := f.next()
	f.stop()
	for i := range 300 { // more than is fetched ahead
		w.happen(event.MediaCreated, "idx_1", fmt.Sprint("vid_", i))
	}
	f = follow(t, url+"/events", w.keys["read"], last)
	for i := range 300 {
		id, e := f.next()
		if e.Subject != fmt.Sprint("vid_", i) {
			t.Fatalf("%d: %s", i, e.Subject)
		}
		last = id
	}
	// The place of the last event holds another one now, as after a restore: time tells where to go on.
	place, at, _ := strings.Cut(last, "-")
	if place == "" || at == "" {
		t.Fatalf("id %q", last)
	}
	f = follow(t, url+"/events?last_event_id=1-"+at, w.keys["read"], "")
	if _, e := f.next(); e.Subject != "vid_299" { // at least once
		t.Errorf("by time: %s", e.Subject)
	}
}

func TestEventsEndWithTheKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := follow(t, w.serve(t)+"/events", w.keys["read"], "")
	must(t, w.keyring.Delete(t.Context(), secret.HashKey(w.keys["read"])))
	f.ends()
}

func TestEventsEndWithTheServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.admin.Run(ctx) }()
	eventually(t, "ready", func() bool { return w.admin.Ready() == nil })
	f := follow(t, "http://"+w.admin.Addr()+base+"/events", w.keys["read"], "")
	start := time.Now()
	stop()
	f.ends()
	must(t, <-ended)
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("an open stream holds up the server for %s", took)
	}
}

// stuck is a client that accepts nothing any more.
type stuck struct {
	*httptest.ResponseRecorder
	writes int
}

func (s *stuck) Write(p []byte) (int, error) {
	if s.writes++; s.writes > 2 {
		return 0, os.ErrDeadlineExceeded
	}
	return s.ResponseRecorder.Write(p)
}

func TestSlowClientsAreDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, base+"/events?last_event_id=1-1", nil)
	r.Header.Set("X-API-Key", w.keys["read"])
	for i := range 5 {
		w.happen(event.MediaCreated, "idx_1", fmt.Sprint("vid_", i))
	}
	s := &stuck{ResponseRecorder: httptest.NewRecorder()}
	w.admin.Handler().ServeHTTP(s, r) // returns
	if s.writes != 3 {
		t.Errorf("%d writes", s.writes)
	}
}

func TestTooManyEventStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	url := w.serve(t)
	var open []*follower
	for range 256 {
		open = append(open, follow(t, url+"/events", w.keys["read"], ""))
	}
	consumers := func() int {
		s, err := w.bus.JetStream().Stream(t.Context(), w.bus.Stream(topology.Events))
		must(t, err)
		return s.CachedInfo().State.Consumers
	}
	before := consumers()
	w.do("GET", "/events", nil).refused(503, "too_many_event_streams")
	if after := consumers(); after != before {
		t.Errorf("a refusal made a consumer: %d, then %d", before, after)
	}
	open[0].stop()
	eventually(t, "a place", func() bool { return w.glimpse("/events", request{}).status == 200 })
	for range 2 { // a stream that cannot be opened takes none
		w.do("GET", "/events?last_event_id=x", nil).refused(422, "validation_error", "last_event_id")
	}
	eventually(t, "a place still", func() bool { return w.glimpse("/events", request{}).status == 200 })
}
