//go:build unix

package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/broker/brokertest"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// world is a broker with the topology and a folder of media.
type world struct {
	testing.TB
	bus  *bus.Bus
	env  service.Env
	runs *store.Register[store.Run]
	docs *store.Documents
	dir  string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	broker := brokertest.Start(t)
	log := slog.New(slog.DiscardHandler)
	b, err := bus.New(brokertest.Connect(t, broker), topology.Topology{Prefix: "t", Replicas: 1}, "worker", log)
	must(t, err)
	must(t, b.Apply(t.Context(), b.JetStream()))
	w := &world{TB: t, bus: b, dir: t.TempDir(), env: service.Env{
		Bus: b, Log: log, Instance: "one",
		Connect: func(name string) (*nats.Conn, error) { return broker.Connect(name) },
	}}
	w.runs, err = store.Open[store.Run](t.Context(), b, topology.RunRecords)
	must(t, err)
	w.docs, err = store.OpenDocuments(t.Context(), b)
	must(t, err)
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start runs a worker until the test ends, or stop is called.
func (w *world) start(cfg Config) (stop func()) {
	w.Helper()
	env := w.env
	env.Metrics = prometheus.NewRegistry()
	folders, err := NewFolders(w.dir)
	must(w, err)
	worker, err := New(cfg, env, folders)
	must(w, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- worker.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
	}
	w.Cleanup(stop)
	return stop
}

// file makes a medium of a file in the folder.
func (w *world) file(video, name string) event.RunMedium {
	w.Helper()
	path := filepath.Join(w.dir, name)
	must(w, os.MkdirAll(filepath.Dir(path), 0o700))
	must(w, os.WriteFile(path, []byte("bytes of "+video), 0o600))
	return event.RunMedium{Video: video, Title: filepath.Base(name), URI: fileURI(path), MediaType: "video", Size: 7}
}

// ask has a run carried out.
func (w *world) ask(id string, media ...event.RunMedium) {
	w.Helper()
	must(w, w.runs.Put(w.Context(), id, store.Run{ID: id, Status: store.RunPending}))
	req := event.RunRequested{
		Run: id, Index: "idx_1", Prompt: event.Prompt{ID: "prm_1", Text: "What happens?"}, MediaCount: len(media),
		MediaObject: "runs/" + id + ".media.jsonl",
	}
	if len(media) <= event.MaxInlineMedia {
		req.Media = media
	} else {
		must(w, store.WriteLines(w.Context(), w.docs, req.MediaObject, all(media)))
	}
	data, err := json.Marshal(req)
	must(w, err)
	_, err = w.bus.Publish(w.Context(), bus.Message{Subject: w.bus.Subject("run", "requested", "prm_1"), Data: data})
	must(w, err)
}

func all[T any](values []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range values {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// fileURI spells a path as the library does.
func fileURI(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }

// reports is what is reported about a run, by video.
func (w *world) reports(run string) map[string]event.Report {
	w.Helper()
	found := make(map[string]event.Report)
	for m, err := range w.bus.Scan(w.Context(), topology.Reports, w.bus.Subject("run", "report", run, "*"), 0) {
		must(w, err)
		var r event.Report
		must(w, json.Unmarshal(m.Data, &r))
		found[r.Video] = r
	}
	return found
}

// done waits until nobody has work any more.
func (w *world) done() {
	w.Helper()
	w.eventually("the work queue is empty", func() bool {
		state, err := w.bus.State(w.Context(), topology.Runs)
		must(w, err)
		return state.Msgs == 0
	})
}

func (w *world) eventually(what string, fact func() bool) {
	w.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for !fact() {
		select {
		case <-tick.C:
		case <-late:
			w.Fatal("never: " + what)
		}
	}
}

func TestWhatACommandGets(t *testing.T) {
	t.Setenv("MILLRACE_SECRET", "s3cret")
	w := newWorld(t)
	m := w.file("vid_1", "a/clip one.mp4")
	far := event.RunMedium{Video: "vid_2", Title: "far.mp4", URI: "gs://bucket/far.mp4", MediaType: "audio"}
	elsewhere := event.RunMedium{Video: "vid_3", Title: "passwd", URI: "file:///etc/passwd", MediaType: "video"}
	w.start(Config{Command: `
		read -r input
		printf '{"arg":"%s","run":"%s","video":"%s","path":"%s","uri":"%s","type":"%s","title":"%s","index":"%s","secret":"%s","input":%s}' \
			"$1" "$MILLRACE_RUN_ID" "$MILLRACE_VIDEO_ID" "$MILLRACE_MEDIA_PATH" "$MILLRACE_MEDIA_URI" \
			"$MILLRACE_MEDIA_TYPE" "$MILLRACE_TITLE" "$MILLRACE_INDEX_ID" "$MILLRACE_SECRET" "$input"`})
	w.ask("run_1", m, far, elsewhere)
	w.done()

	type seen struct {
		Arg, Run, Video, Path, URI, Type, Title, Index, Secret string
		Input                                                  Input
	}
	got := make(map[string]seen)
	for video, r := range w.reports("run_1") {
		if r.State != event.Successful || r.Error != "" || r.ReportedAt.IsZero() {
			t.Errorf("%+v", r)
		}
		var s seen
		must(t, json.Unmarshal(r.Result, &s))
		got[video] = s
	}
	path := filepath.Join(w.dir, "a/clip one.mp4")
	s := got["vid_1"]
	if s.Arg != path || s.Path != path || s.URI != m.URI || s.Run != "run_1" || s.Video != "vid_1" || s.Type != "video" || s.Title != "clip one.mp4" || s.Index != "idx_1" {
		t.Errorf("%+v", s)
	}
	if in := s.Input; in.Run != "run_1" || in.Prompt.Text != "What happens?" || in.Medium.Video != "vid_1" || in.Medium.Path != path {
		t.Errorf("%+v", in)
	}
	if s.Secret != "" {
		t.Error("the command sees the settings of the worker")
	}
	for video, uri := range map[string]string{"vid_2": far.URI, "vid_3": elsewhere.URI} {
		if s := got[video]; s.Arg != uri || s.URI != uri || s.Path != "" || s.Input.Medium.Path != "" {
			t.Errorf("%+v", s)
		}
	}
}

// Names are data, whatever a shell would make of them.
func TestHostileNames(t *testing.T) {
	w := newWorld(t)
	var media []event.RunMedium
	for i, name := range []string{
		"$(touch injected).mp4", "`touch injected`.mp4", "; touch injected; .mp4", "' || touch injected #.mp4", `" && touch injected && ".mp4`,
		"-rf", "--", "a\nb.mp4", "%s%n.mp4", "\\$1 $1 ${1}.mp4", "ü \xff.mp4", "#? &.mp4", "*",
	} {
		media = append(media, w.file(fmt.Sprint("vid_", i), name))
	}
	t.Chdir(t.TempDir())
	w.start(Config{Command: `test "$1" = "$MILLRACE_MEDIA_PATH" && cat -- "$1"`, Parallel: 2})
	w.ask("run_1", media...)
	w.done()
	for i := range media {
		r := w.reports("run_1")[fmt.Sprint("vid_", i)]
		if want := fmt.Sprintf(`{"text":"bytes of vid_%d"}`, i); r.State != event.Successful || string(r.Result) != want {
			t.Errorf("%q: %s %s %s", media[i].Title, r.State, r.Result, r.Error)
		}
	}
	left, err := os.ReadDir(".")
	must(t, err)
	if len(left) > 0 {
		t.Errorf("a name made %v", left)
	}
}

func TestHowCommandsEnd(t *testing.T) {
	w := newWorld(t)
	cases := map[string]struct {
		command string
		want    event.ReportState
		result  string
		err     string
	}{
		"nothing": {`:`, event.Successful, `{}`, ""},
		"object":  {`echo '{"a": [1, 2]}'`, event.Successful, `{"a":[1,2]}`, ""},
		"text":    {`echo 'a car'; echo 'a "dog"'`, event.Successful, `{"text":"a car\na \"dog\""}`, ""},
		"array":   {`echo '[1]'`, event.Successful, `{"text":"[1]"}`, ""},
		"lines":   {`echo '{}'; echo '{}'`, event.Successful, `{"text":"{}\n{}"}`, ""},
		"failure": {`echo result; echo first >&2; echo 'no such model' >&2; echo >&2; exit 3`, event.Unsuccessful, "", "exit status 3: no such model"},
		"silent":  {`exit 4`, event.Unsuccessful, "", "exit status 4"},
		"killed":  {`kill -9 $$`, event.Unsuccessful, "", "signal: killed"},
		"endless": {`exec cat /dev/zero`, event.Unsuccessful, "", "printed more than 4194304 bytes"},
		"too big": {`head -c 2000000 /dev/zero | tr '\0' x`, event.Unsuccessful, "", "bigger than the broker takes"},
		"shouts":  {`head -c 100000 /dev/zero | tr '\0' x >&2; exit 1`, event.Unsuccessful, "", "exit status 1: xxxx"},
		"unread":  {`exec <&-; echo '{"ok":true}'`, event.Successful, `{"ok":true}`, ""},
	}
	var script strings.Builder
	var media []event.RunMedium
	fmt.Fprintln(&script, `case "$MILLRACE_TITLE" in`)
	for name, c := range cases {
		fmt.Fprintf(&script, "%q) %s ;;\n", name, c.command)
		media = append(media, event.RunMedium{Video: "vid_" + strings.ReplaceAll(name, " ", "_"), Title: name, URI: "gs://b/" + name})
	}
	fmt.Fprintln(&script, `esac`)
	media = append(media, event.RunMedium{Video: "vid_nowhere", Title: "nowhere"})
	w.start(Config{Command: script.String(), Parallel: 4})
	w.ask("run_1", media...)
	w.done()
	got := w.reports("run_1")
	for name, c := range cases {
		r := got["vid_"+strings.ReplaceAll(name, " ", "_")]
		if r.State != c.want || string(r.Result) != c.result || !strings.Contains(r.Error, c.err) || (c.err == "") != (r.Error == "") || len(r.Error) > 2*maxReason {
			t.Errorf("%s: %s %.100s %.100s", name, r.State, r.Result, r.Error)
		}
	}
	if r := got["vid_nowhere"]; r.State != event.Unsuccessful || r.Error == "" {
		t.Errorf("nowhere: %+v", r)
	}
}

func TestAttempts(t *testing.T) {
	w := newWorld(t)
	count := filepath.Join(t.TempDir(), "count")
	w.start(Config{Command: `echo x >> "` + count + `"; test $(wc -l < "` + count + `") -ge 2`, MaxAttempts: 2})
	w.ask("run_1", w.file("vid_1", "a.mp4"))
	w.done()
	if r := w.reports("run_1")["vid_1"]; r.State != event.Successful {
		t.Errorf("%+v", r)
	}
}

// pid waits for a process id in a file.
func (w *world) pid(file string) int {
	w.Helper()
	var pid int
	w.eventually("a process id in "+file, func() bool {
		b, _ := os.ReadFile(file)
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		pid = n
		return err == nil && strings.HasSuffix(string(b), "\n")
	})
	return pid
}

// gone waits until a process is no more, or is a zombie that nobody has reaped yet.
func (w *world) gone(pid int) {
	w.Helper()
	w.eventually(fmt.Sprintf("process %d is gone", pid), func() bool {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return true
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && strings.Contains(string(stat), ") Z ")
	})
}

// A command that takes too long is killed with its grandchildren, also those in the background.
func TestTimeoutKillsTheGroup(t *testing.T) {
	t.Parallel() // the time is such that the command has begun even on a busy machine
	w := newWorld(t)
	pid := filepath.Join(t.TempDir(), "pid")
	w.start(Config{Command: `sh -c 'sleep 1000 & echo $! > "` + pid + `"; wait'; echo never`, Timeout: 3 * time.Second})
	w.ask("run_1", w.file("vid_1", "a.mp4"))
	w.done()
	if r := w.reports("run_1")["vid_1"]; r.State != event.Unsuccessful || r.Error != "timed out after 3s" {
		t.Errorf("%+v", r)
	}
	w.gone(w.pid(pid))
}

// A command that ends well takes what it left in the background with it, and its result counts.
func TestNothingIsLeftBehind(t *testing.T) {
	w := newWorld(t)
	pid := filepath.Join(t.TempDir(), "pid")
	w.start(Config{Command: `sleep 1000 & echo $! > "` + pid + `"; echo '{"ok":1}'`})
	w.ask("run_1", w.file("vid_1", "a.mp4"))
	w.done()
	if r := w.reports("run_1")["vid_1"]; r.State != event.Successful || string(r.Result) != `{"ok":1}` {
		t.Errorf("%+v", r)
	}
	w.gone(w.pid(pid))
}

// A worker that is stopped kills its commands and gives the run back; the next one goes on where it was.
func TestGoesOnWhereItWas(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	pid, again := filepath.Join(dir, "pid"), filepath.Join(dir, "again")
	script := `echo "$MILLRACE_VIDEO_ID" >> "` + dir + `/started"
		if [ "$MILLRACE_VIDEO_ID" = vid_2 ] && [ ! -e "` + again + `" ]; then
			sleep 1000 & echo $! > "` + pid + `"; wait
		fi`
	stop := w.start(Config{Command: script, Parallel: 1})
	w.ask("run_1", w.file("vid_1", "a.mp4"), w.file("vid_2", "b.mp4"), w.file("vid_3", "c.mp4"))
	process := w.pid(pid)
	w.eventually("two media reported", func() bool { return len(w.reports("run_1")) == 2 })
	if r := w.reports("run_1"); r["vid_1"].State != event.Successful || r["vid_2"].State != event.Processing {
		t.Errorf("%+v", r)
	}
	stop()
	w.gone(process)
	if r := w.reports("run_1"); r["vid_2"].State != event.Processing {
		t.Errorf("a command that was stopped was reported: %+v", r["vid_2"])
	}
	must(t, os.WriteFile(again, nil, 0o600))
	w.start(Config{Command: script, Parallel: 1})
	w.done()
	started, err := os.ReadFile(filepath.Join(dir, "started"))
	must(t, err)
	if string(started) != "vid_1\nvid_2\nvid_2\nvid_3\n" {
		t.Errorf("started: %q", started)
	}
	for video, r := range w.reports("run_1") {
		if r.State != event.Successful {
			t.Errorf("%s: %+v", video, r)
		}
	}
}

// Long lists are read from the document; what is reported by somebody else is left out.
func TestLongRun(t *testing.T) {
	w := newWorld(t)
	const n = 1200
	var media []event.RunMedium
	var reports []bus.Message
	for i := range n {
		m := event.RunMedium{Video: fmt.Sprint("vid_", i), URI: "gs://b/x"}
		media = append(media, m)
		if i%100 == 0 {
			continue
		}
		data, err := json.Marshal(event.Report{Run: "run_1", Video: m.Video, State: event.Unsuccessful, Error: "before"})
		must(t, err)
		reports = append(reports, bus.Message{Subject: w.bus.Subject("run", "report", "run_1", m.Video), Data: data})
	}
	_, errs := w.bus.PublishAll(t.Context(), reports)
	must(t, errors.Join(errs...))
	w.start(Config{Command: ":", Parallel: 4})
	w.ask("run_1", media...)
	w.done()
	got := w.reports("run_1")
	if len(got) != n {
		t.Errorf("%d reports", len(got))
	}
	for i := range n {
		r := got[fmt.Sprint("vid_", i)]
		if ours := i%100 == 0; ours != (r.State == event.Successful) {
			t.Errorf("%d: %+v", i, r)
		}
	}
}

// A run that was cancelled or deleted starts no more commands.
func TestUnwantedRuns(t *testing.T) {
	w := newWorld(t)
	witness := filepath.Join(t.TempDir(), "started")
	m := w.file("vid_1", "a.mp4")
	w.ask("run_cancelled", m)
	must(t, w.runs.Put(t.Context(), "run_cancelled", store.Run{ID: "run_cancelled", Status: store.RunCancelled}))
	w.ask("run_deleted", m)
	must(t, w.runs.Delete(t.Context(), "run_deleted"))
	w.start(Config{Command: `touch "` + witness + `"`})
	w.done()
	if _, err := os.Stat(witness); err == nil {
		t.Error("a command was started")
	}
}

// A run that is cancelled while its commands run has them killed, and is not asked for again; others go on.
func TestCancelledInHand(t *testing.T) {
	w := newWorld(t)
	started := filepath.Join(t.TempDir(), "started")
	w.start(Config{Parallel: 2, Command: `case "$1" in *a.mp4) touch "` + started + `"; sleep 600;; *) echo fine;; esac`})
	w.ask("run_1", w.file("vid_1", "a.mp4"), w.file("vid_2", "b.mp4"))
	w.eventually("started", func() bool { _, err := os.Stat(started); return err == nil })
	must(t, w.runs.Put(t.Context(), "run_1", store.Run{ID: "run_1", Status: store.RunCancelled}))
	w.ask("run_2", w.file("vid_2", "b.mp4"))
	w.done()
	if r := w.reports("run_1")["vid_1"]; r.State == event.Successful || r.State == event.Unsuccessful {
		t.Errorf("a killed command was reported: %+v", r)
	}
	if r := w.reports("run_2")["vid_2"]; r.State != event.Successful {
		t.Errorf("%+v", r)
	}
}

func TestBadRequestsAreDead(t *testing.T) {
	w := newWorld(t)
	w.start(Config{Command: ":"})
	for _, body := range []string{
		"no json", `{"run_id":""}`, `{"run_id":"run_1","media":[{"video_id":"a.b"}]}`, `{"run_id":"run_1","media":[{"video_id":"*"}]}`,
		`{"run_id":"run_1","media_object":"runs/none"}`,
	} {
		_, err := w.bus.Publish(t.Context(), bus.Message{Subject: w.bus.Subject("run", "requested", "prm_1"), Data: []byte(body)})
		must(t, err)
	}
	w.done()
	w.eventually("five dead letters", func() bool {
		n := 0
		for _, err := range w.bus.Scan(t.Context(), topology.DeadLetters, w.bus.Subject("dead", "worker", topology.WorkerRuns), 0) {
			must(t, err)
			n++
		}
		return n == 5
	})
}

func TestFolders(t *testing.T) {
	f, err := NewFolders("/lib", "/more media/")
	must(t, err)
	for uri, want := range map[string]string{
		"file:///lib/a/b.mp4":              "/lib/a/b.mp4",
		"file:///more%20media/%23%3F.mp4":  "/more media/#?.mp4",
		"file:///lib/a/../b":               "/lib/b",
		"file:///lib":                      "",
		"file:///lib/../etc/passwd":        "",
		"file:///lib/%2e%2e/etc/passwd":    "",
		"file:///library/a":                "",
		"file://host/lib/a":                "",
		"file:/lib/a%00b":                  "",
		"/lib/a":                           "",
		"gs://lib/a":                       "",
		"":                                 "",
		"file:lib/a":                       "",
		"file:///lib/a\x00":                "",
		"https://example.com/lib/a?x=file": "",
	} {
		if got, ok := f.Path(uri); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", uri, got, ok)
		}
	}
}
