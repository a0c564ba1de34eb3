package millrace_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/services/millrace"
	"millrace/services/millrace/client"
	"millrace/shared/event"
	"millrace/shared/media/samples"
)

// site is a deployment as its users see it, and what may happen to it while the story is told.
type site struct {
	*pipeline
	interval string // of the automation
	library  string // its folder

	// at is called where something may happen to a process.
	at func(scene)
	// down and up end and begin everything but a broker that stands by itself.
	down, up func()

	seenJobs, seenRuns int
	beside             string // another index
}

// scene is a point of the story.
type scene string

const (
	windowOpen scene = "the window is open"
	jobBegun   scene = "the job has begun"
	jobDone    scene = "the job is done"
	runBegun   scene = "the run has begun"
	paused     scene = "the automation is paused"
	resuming   scene = "it is about to be resumed"
)

// TestStory tells the whole story on the all-in-one.
func TestStory(t *testing.T) {
	dir := t.TempDir()
	inbox, library := filepath.Join(dir, "inbox"), filepath.Join(dir, "library")
	must(t, os.Mkdir(inbox, 0o755))
	listen := freeAddr(t)
	o := millrace.Options{
		Data: filepath.Join(dir, "data"), HTTP: freeAddr(t), APIKey: apiKey, ExtraDebounceIntervals: []string{"2s"},
		Executor: "exec=" + countBytes, NATSListen: listen,
	}
	o.Prefix, o.AllowDir, o.Library.Library = "story", []string{inbox}, library

	up, down := inProcess(t, o)
	up()
	s := &site{
		pipeline: wire(t, client.New("http://"+o.HTTP, apiKey), inbox), interval: "2s", library: library,
		at: func(scene) {}, up: up, down: down,
	}
	s.automate(s.index, s.interval, nil)
	s.tell()
	atRest(t, dial(t, "nats://"+listen), o.Prefix)
	media := s.everything()
	down()
	nothingHalfDone(t, library, media)
}

// inProcess returns what starts an all-in-one in this process and what ends it.
func inProcess(t *testing.T, o millrace.Options) (up, down func()) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	var stop context.CancelFunc
	var ended chan error
	up = func() {
		t.Helper()
		app, err := millrace.New(t.Context(), o, log)
		must(t, err)
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		end := make(chan error, 1)
		stop, ended = cancel, end
		go func() { end <- app.Run(ctx) }()
		wait, enough := context.WithTimeout(t.Context(), patience)
		defer enough()
		must(t, app.WaitReady(wait))
	}
	down = func() {
		t.Helper()
		if stop == nil {
			return
		}
		stop()
		stop = nil
		if err := <-ended; err != nil {
			t.Error("run:", err)
		}
	}
	t.Cleanup(down)
	return up, down
}

// tell tells the story.
func (s *site) tell() {
	s.t.Helper()
	s.bursts()
	s.sameBytes()
	s.otherBytes()
	s.deleted()
	s.whilePaused()
	s.whileDown()

	// Nothing more came of all this than was told.
	jobs, err := s.jobs(s.index)
	must(s.t, err)
	runs, err := s.runs()
	must(s.t, err)
	if len(jobs) != s.seenJobs || len(runs) != s.seenRuns {
		s.t.Errorf("%d jobs and %d runs, want %d and %d", len(jobs), len(runs), s.seenJobs, s.seenRuns)
	}
}

// difficult are names that programs stumble over.
func difficult() []string {
	return []string{
		"with space.mp4", "hash # and percent %20.mp4", "a+b.mp4", "line\nbreak.mp4", "🎬 take one.mp4", `back\slash "quoted".mp4`,
		"caf\u00e9.mp4", "cafe\u0301.mp4", "-rf.mp4", "*.{mp4}", strings.Repeat("n", 251) + ".mp4",
	}
}

// bursts: two bursts, the second while the window is open, are one job and one run.
func (s *site) bursts() {
	s.t.Helper()
	want := map[string]string{}
	for name, what := range samples.Bad {
		want[name] = what
		if reason, skipped := strings.CutPrefix(what, "skipped: "); skipped {
			want[name] = "skipped: " + event.SkipReason(reason).Phrase()
		}
		s.drop(name, sample(s.t, name))
	}
	for _, name := range samples.Good {
		want[name] = "imported"
		s.drop(name, sample(s.t, name))
	}
	before := s.pending(len(want))
	s.at(windowOpen)
	for i, name := range difficult() {
		want[name] = "imported"
		s.drop(name, sample(s.t, samples.Good[i%4]))
	}
	s.drop("changed my mind.mp4", sample(s.t, "video.mp4"))
	s.remove("changed my mind.mp4")

	j := s.nextJob(want)
	if before.NextFireAt == nil || !j.Created.After(*before.NextFireAt) {
		s.t.Errorf("the window closed at %v: the second burst did not extend it beyond %v", j.Created, before.NextFireAt)
	}
	s.nextRun(j)
}

// nextJob waits for the next job and its end, and holds it against what should become of each file. The window must have
// been quiet for its interval (I6).
func (s *site) nextJob(want map[string]string) client.Job {
	s.t.Helper()
	s.seenJobs++
	j := s.nthJob(s.seenJobs)
	s.at(jobBegun)
	j = s.follow(j.ID, 2*patience) // one lease may have to run out
	s.at(jobDone)
	got := s.outcomes(j)
	if what, there := got["changed my mind.mp4"]; there && what == "skipped: object gone" {
		delete(got, "changed my mind.mp4") // the deletion came a moment after the window had closed
		j.Progress.Total--
	}
	if !maps.Equal(got, want) || j.Progress.Total != len(want) {
		s.t.Errorf("job %d has %d files:\n%q\nwant\n%q", s.seenJobs, j.Progress.Total, got, want)
	}
	s.genuine(s.library, j.Videos)
	interval, err := time.ParseDuration(s.interval)
	must(s.t, err)
	var newest time.Time
	for name := range want {
		if info, err := os.Stat(filepath.Join(s.inbox, name)); err == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	if quiet := j.Created.Sub(newest); quiet < interval-time.Millisecond { // timestamps of the API are cut to milliseconds
		s.t.Errorf("job %d began %s after its last file was written, the interval is %s", s.seenJobs, quiet, interval)
	}
	return j
}

// nextRun waits for the run of a job and its end.
func (s *site) nextRun(j client.Job) {
	s.t.Helper()
	s.seenRuns++
	id := s.nthRun(s.seenRuns)
	s.at(runBegun)
	s.followRun(id, j, patience)
}

// sameBytes: a touch and the same bytes again make no second medium, and no run.
func (s *site) sameBytes() {
	s.t.Helper()
	before := s.media(s.index)
	f, err := os.OpenFile(filepath.Join(s.inbox, "video.mp4"), os.O_WRONLY, 0) // as touch does it
	must(s.t, err)
	now := time.Now()
	must(s.t, errors.Join(os.Chtimes(f.Name(), now, now), f.Close()))
	s.drop("photo.png", sample(s.t, "photo.png"))
	j := s.nextJob(map[string]string{"video.mp4": "skipped: unchanged", "photo.png": "skipped: unchanged"})
	if after := s.media(s.index); len(j.Videos) > 0 || !maps.Equal(keys(before), keys(after)) {
		s.t.Errorf("the same bytes were imported again: %v", j.Videos)
	}
}

func keys[V any](m map[string]V) map[string]bool {
	set := make(map[string]bool, len(m))
	for k := range m {
		set[k] = true
	}
	return set
}

// otherBytes: a new version is a new window, job and run, for it alone; the old medium stays.
func (s *site) otherBytes() {
	s.t.Helper()
	before := s.media(s.index)
	s.drop("video.mp4", sample(s.t, "video.mov"))
	j := s.nextJob(map[string]string{"video.mp4": "imported"})
	after := s.media(s.index)
	for id := range before {
		if _, there := after[id]; !there {
			s.t.Errorf("medium %s of %q is gone", id, before[id].Path)
		}
	}
	if len(after) != len(before)+1 {
		s.t.Errorf("%d media, want one more than %d", len(after), len(before))
	}
	s.nextRun(j)
}

// deleted: what is removed from the folder stays in the index. That no job comes of it shows at the end of the story.
func (s *site) deleted() {
	s.t.Helper()
	s.remove("audio.mp3")
	for _, m := range s.media(s.index) {
		if m.Path == "audio.mp3" {
			return
		}
	}
	s.t.Error("the medium went with its file")
}

// whilePaused: no job while paused, however long, and nothing is lost (I11). How long is long shows another automation:
// it watches the same files, is not paused, and has long imported them.
func (s *site) whilePaused() {
	s.t.Helper()
	s.beside = s.create("/indexes", "index_id", obj{"name": "Beside"})
	s.automate(s.beside, s.interval, obj{"source_prefix": "while paused", "prompt_preset": nil})
	s.pause()
	s.at(paused)
	s.drop("while paused.wav", sample(s.t, "audio.wav"))
	s.pending(1)
	s.importedBeside(1)
	s.drop("while paused.flac", sample(s.t, "audio.flac"))
	s.pending(2)
	s.importedBeside(2)

	jobs, err := s.jobs(s.index)
	must(s.t, err)
	a, err := s.automation()
	must(s.t, err)
	if len(jobs) != s.seenJobs || !a.Paused || a.NextFireAt != nil {
		s.t.Errorf("while paused: %d jobs, want %d; %+v", len(jobs), s.seenJobs, a)
	}
	s.at(resuming)
	s.resume()
	s.nextRun(s.nextJob(map[string]string{"while paused.wav": "imported", "while paused.flac": "imported"}))
}

func (s *site) importedBeside(n int) {
	s.t.Helper()
	eventually(s.t, "the automation beside has imported", func() error {
		if got := len(s.media(s.beside)); got < n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
}

// everything is the media of both indexes.
func (s *site) everything() map[string]medium {
	s.t.Helper()
	all := s.media(s.index)
	maps.Copy(all, s.media(s.beside))
	return all
}

// whileDown: what happens while everything is down is found afterwards (I1).
func (s *site) whileDown() {
	s.t.Helper()
	s.down()
	s.drop("while down.webm", sample(s.t, "video.webm"))
	s.drop("photo.png", sample(s.t, "photo.jpg"))
	s.remove("audio.ogg")
	s.up()
	s.nextRun(s.nextJob(map[string]string{"while down.webm": "imported", "photo.png": "imported"}))
}

// nothingHalfDone: in a library that nobody has open there is what the media are, and nothing else.
func nothingHalfDone(t testing.TB, library string, media map[string]medium) {
	t.Helper()
	temp, err := os.ReadDir(filepath.Join(library, ".millrace-tmp"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for _, e := range temp {
		t.Errorf("left behind in the library: .millrace-tmp/%s", e.Name())
	}
	for id := range files(t, library) {
		if _, known := media[id]; !known {
			t.Errorf("the library has a file of no medium: %s", id)
		}
	}
}
