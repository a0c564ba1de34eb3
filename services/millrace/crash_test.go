package millrace_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/services/millrace/client"
)

// stall is how long a place stands still that stands still.
const stall = "4s"

// failpoints is a millrace that has them.
var failpoints = sync.OnceValues(func() (string, error) { return build("failpoints") })

var named = regexp.MustCompile(`(?:failpoint\.Here\(|crash\([^\n]*)"([a-z]+\.[a-z]+)"`)

// places reads the names of all failpoints from the source.
func places(t *testing.T) (names []string) {
	t.Helper()
	for _, root := range []string{"..", filepath.Join("..", "..", "shared")} {
		must(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			src, err := os.ReadFile(path)
			for _, m := range named.FindAllStringSubmatch(string(src), -1) {
				names = append(names, m[1])
			}
			return err
		}))
	}
	slices.Sort(names)
	if twice := len(names) - len(slices.Compact(slices.Clone(names))); twice > 0 {
		t.Fatalf("%d failpoints have the name of another: %v", twice, names)
	}
	return names
}

// TestCrashMatrix takes a small drop through the whole product once for each failpoint and each way to fail there: killed,
// an error, and a while in which nothing goes on. Afterwards it is as if nothing had happened (I1 to I5, I7, I9, I10).
// It is run by `make crash`: it takes a program of its own, and minutes.
func TestCrashMatrix(t *testing.T) {
	t.Parallel()
	all, only := places(t), os.Getenv("MILLRACE_CRASH")
	if len(all) < 30 {
		t.Fatalf("only %d failpoints were found: %v", len(all), all)
	}
	if only == "" {
		t.Skip("make crash runs it")
	}
	for _, name := range all {
		for _, how := range []string{"kill", "error", stall} {
			at := name + "=" + how
			if only != "all" && !strings.HasPrefix(at, only) {
				continue
			}
			t.Run(at, func(t *testing.T) {
				t.Parallel()
				crashAt(t, at, how == "kill")
			})
		}
	}
}

// crashAt is one cell of the matrix.
func crashAt(t *testing.T, at string, killed bool) {
	t.Helper()
	told := newReceiver(t)
	outbox, nats := t.TempDir(), freeAddr(t)
	path, err := failpoints()
	must(t, err)
	up := newUpOf(t, path, "--allow-dir", outbox, "--allow-endpoint", "127.0.0.0/8", "--executor", "exec="+countBytes,
		"--workers", "2", "--nats-listen", nats)
	up.start()
	up.waitReady(up.url)
	p := wire(t, up.api, up.inbox)
	to := p.create("/connectors/dir", "connector_id", obj{"name": "Outbox", "path": outbox, "scopes": []string{"export"}, "export_base_path": "out"})
	must(t, p.api.Do(t.Context(), http.MethodPut, "/indexes/"+p.index+"/automations/export", obj{
		"destination_connector_id": to, "destination_subpath": "auto", "format": "jsonl",
	}, nil))
	must(t, p.api.Do(t.Context(), http.MethodPost, "/webhooks", obj{
		"name": "test", "url": told.URL, "events": []string{"import_job.completed", "prompt_run.completed"}, "index_ids": []string{p.index},
	}, nil))

	// From here on the place is armed, for one life.
	hit := filepath.Join(t.TempDir(), "hit")
	up.kill()
	up.env = []string{"MILLRACE_FAILPOINT=" + at, "MILLRACE_FAILPOINT_HIT=" + hit}
	up.start()
	up.env = nil
	up.waitReady(up.url)
	revived := false
	revive := func() {
		if killed && !revived && up.ended() != nil {
			revived = true
			up.cmd = nil
			up.start()
			up.waitReady(up.url)
		}
	}
	eventually(t, "the automation is put", func() error {
		err := p.api.Do(t.Context(), http.MethodPut, "/indexes/"+p.index+"/automations/import", obj{
			"connector_id": p.connector, "debounce_interval": "2s", "prompt_preset": obj{"prompt_id": p.prompt},
		}, nil)
		if err != nil {
			revive()
		}
		return err
	})
	p.drop("gone.png", sample(t, "photo.png"))
	p.remove("gone.png")
	delete(p.exists, "gone.png")
	for i := range 4 {
		p.drop(fmt.Sprintf("%d.png", i), fmt.Appendf(sample(t, "photo.png"), "%d", i))
	}
	dropped := time.Now()
	within(t, 2*patience, at+" is come by", func() error {
		_, err := os.Stat(hit)
		// The first listing may have found what else a notification would have brought.
		if err != nil && time.Since(dropped) > 5*time.Second {
			p.drop(fmt.Sprintf("%d.png", len(p.exists)), fmt.Appendf(sample(t, "photo.png"), "%d", len(p.exists)))
			dropped = time.Now()
		}
		return err
	})
	if killed && !revived {
		<-up.exited
		revive()
	}

	// All files are in, in jobs that each have their one run on exactly what they brought in, which was exported and told.
	var jobs []client.Job
	within(t, 3*patience, "all files come in", func() (err error) {
		if jobs, err = p.jobs(p.index); err != nil {
			return err
		}
		n := 0
		for _, j := range jobs {
			if !j.Done() {
				return fmt.Errorf("job %s is %s", j.ID, j.Status)
			}
			n += j.Progress.Imported
		}
		if n < len(p.exists) {
			return fmt.Errorf("%d files", n)
		}
		return nil
	})
	var videos []string
	ran := map[string]int{}
	within(t, 3*patience, "each job has its run, and each run its export", func() error {
		runs, err := p.runs()
		if err != nil {
			return err
		}
		clear(ran)
		for _, r := range runs {
			if !r.Done() {
				return errors.New(r.Status)
			}
			ran[r.ID]++
		}
		if len(runs) < brought(jobs) {
			return fmt.Errorf("%d runs of %d jobs", len(runs), len(jobs))
		}
		if n := exported(t, outbox); n < len(runs) {
			return fmt.Errorf("%d exports of %d runs", n, len(runs))
		}
		return told.of(len(jobs) + len(runs))
	})
	if len(ran) != brought(jobs) || exported(t, outbox) != len(ran) {
		t.Errorf("%d runs and %d exports of %d jobs that brought something in", len(ran), exported(t, outbox), brought(jobs))
	}
	for _, j := range jobs {
		j = p.follow(j.ID, patience)
		videos = append(videos, j.Videos...)
		if len(j.Videos) > 0 {
			p.ranOn(j)
		}
	}
	media := p.media(p.index)
	if len(videos) != len(p.exists) || len(media) != len(p.exists) {
		t.Errorf("%d videos in jobs, %d media, %d files", len(videos), len(media), len(p.exists))
	}
	p.genuine(up.library, videos)
	atRest(t, dial(t, "nats://"+nats), "millrace")
	up.stop()
	nothingHalfDone(t, up.library, media)
}

// brought counts the jobs that imported something.
func brought(jobs []client.Job) (n int) {
	for _, j := range jobs {
		if j.Progress.Imported > 0 {
			n++
		}
	}
	return n
}

// ranOn holds the one run of a job against it.
func (p *pipeline) ranOn(j client.Job) {
	p.t.Helper()
	runs, err := p.runs()
	must(p.t, err)
	of := 0
	for _, r := range runs {
		var full client.Run
		must(p.t, p.api.Get(p.t.Context(), "/prompt-runs/"+r.ID, &full))
		if slices.Contains(full.Context.Videos, j.Videos[0]) {
			of++
			p.followRun(r.ID, j, patience)
		}
	}
	if of != 1 {
		p.t.Errorf("job %s has %d runs", j.ID, of)
	}
}

func exported(t *testing.T, outbox string) (n int) {
	t.Helper()
	must(t, filepath.WalkDir(outbox, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // temporary, and moved or removed meanwhile
			return nil
		case err == nil && strings.HasSuffix(path, ".jsonl"):
			n++
		}
		return err
	}))
	return n
}

// receiver takes webhooks and remembers which deliveries were about what.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	events map[string]string // delivery by event
	wrong  error
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{events: map[string]string{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		var told struct {
			ID string `json:"id"`
		}
		err := json.NewDecoder(q.Body).Decode(&told)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.wrong = errors.Join(r.wrong, err)
		event, delivery := told.ID, q.Header.Get("X-Delivery-ID")
		if had, again := r.events[event]; again && had != delivery {
			r.wrong = fmt.Errorf("event %s is told as %s and as %s", event, had, delivery)
		}
		r.events[event] = delivery
	}))
	t.Cleanup(r.Close)
	return r
}

// of is nil when n events were told, each under one id.
func (r *receiver) of(n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wrong == nil && len(r.events) != n {
		return fmt.Errorf("%d events are told, want %d", len(r.events), n)
	}
	return r.wrong
}
