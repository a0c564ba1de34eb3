package millrace_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"millrace/services/millrace/client"
	"millrace/shared/topology"
)

// kept is what a data folder of an earlier format is known to hold, beside the folder itself.
type kept struct {
	Index, Connector, Prompt, Job, Run, Webhook string
}

// TestDataOfEarlierFormats starts on a data folder of each format that was ever released: everything in it is there, and
// the work goes on. MILLRACE_KEEP_FORMAT=1 writes the folder of this program's format, which is done once, when the format is new.
func TestDataOfEarlierFormats(t *testing.T) {
	t.Parallel()
	for f := 1; f <= topology.Format; f++ {
		t.Run(fmt.Sprint(f), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join("testdata", fmt.Sprintf("format-%d.tar.gz", f))
			if f == topology.Format && os.Getenv("MILLRACE_KEEP_FORMAT") != "" {
				keepFormat(t, path)
			}
			goesOn(t, path)
		})
	}
}

// keepFormat has a job and its run made, and an automation paused with a file in its window.
func keepFormat(t *testing.T, path string) {
	t.Helper()
	up := startUp(t, "--executor", "exec="+countBytes)
	p := wire(t, up.api, up.inbox)
	p.automate(p.index, "1s", nil)
	hook := p.create("/webhooks", "webhook_id", obj{"name": "Kept", "url": "http://127.0.0.1:1/hook", "events": []string{"import_job.completed"}})
	p.pause()
	dropEarly(t, p)
	p.pending(3)
	p.resume()
	j := p.follow(p.nthJob(1).ID, patience)
	run := p.nthRun(1)
	p.followRun(run, j, patience)
	p.pause()
	p.drop("waits.png", sample(t, "photo.png"))
	p.pending(1)
	up.stop()
	story, err := json.Marshal(kept{Index: p.index, Connector: p.connector, Prompt: p.prompt, Job: j.ID, Run: run, Webhook: hook})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(up.data, "story.json"), story, 0o600))
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, pack(t, up.data), 0o644))
}

func dropEarly(t *testing.T, p *pipeline) {
	t.Helper()
	p.drop("photo.png", sample(t, "photo.png"))
	p.drop("audio.mp3", sample(t, "audio.mp3"))
	p.drop("broken.mp4", []byte("no video"))
}

// goesOn starts the program on what path holds.
func goesOn(t *testing.T, path string) {
	t.Helper()
	up := newUp(t, "--executor", "exec="+countBytes)
	unpack(t, path, up.data)
	data, err := os.ReadFile(filepath.Join(up.data, "story.json"))
	must(t, err)
	var k kept
	must(t, json.Unmarshal(data, &k))
	up.start()
	up.waitReady(up.url)

	old := &pipeline{t: t, api: up.api, inbox: t.TempDir(), exists: map[string][]byte{}, index: k.Index}
	dropEarly(t, old)
	j := old.follow(k.Job, patience)
	if got := old.outcomes(j); len(got) != 3 || got["photo.png"] != "imported" || got["audio.mp3"] != "imported" {
		t.Errorf("the job's files: %v", got)
	}
	old.genuine("", j.Videos)
	old.followRun(k.Run, j, patience)
	if a := old.pending(1); !a.Paused {
		t.Errorf("the automation: %+v", a)
	}
	must(t, up.api.Get(t.Context(), "/webhooks/"+k.Webhook, nil))

	p := wire(t, up.api, up.inbox)
	p.prompt = k.Prompt
	p.automate(p.index, "1s", nil)
	p.drop("new.png", sample(t, "photo.png"))
	p.follow(p.nthJob(1).ID, patience)
	must(t, up.api.Do(t.Context(), http.MethodPost, "/import-jobs/"+k.Job+"/prompt-run", obj{"prompt_preset": obj{"prompt_id": k.Prompt}}, nil))
	// Its files are not in this library, so that all that can be asked is that it ends.
	eventually(t, "the new job's run and the old job's second end", func() error {
		runs, err := p.runs()
		if err == nil && (len(runs) < 3 || slices.ContainsFunc(runs, func(r client.Run) bool { return !r.Done() })) {
			err = fmt.Errorf("%+v", runs)
		}
		return err
	})
}

func pack(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	must(t, w.AddFS(os.DirFS(dir)))
	must(t, errors.Join(w.Close(), z.Close()))
	return b.Bytes()
}

func unpack(t *testing.T, path, dir string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must(t, err)
	root, err := openRoot(dir)
	must(t, err)
	defer root.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		must(t, err)
		if h.Typeflag == tar.TypeDir {
			must(t, root.MkdirAll(h.Name, 0o700))
			continue
		}
		must(t, root.MkdirAll(filepath.Dir(h.Name), 0o700))
		data, err := io.ReadAll(r)
		must(t, err)
		must(t, root.WriteFile(h.Name, data, 0o600))
	}
}

func openRoot(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.OpenRoot(dir)
}
