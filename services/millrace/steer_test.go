package millrace_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/services/millrace"
	"millrace/services/millrace/client"
)

// explanation is what tests look at of the story of an object.
type explanation struct {
	Verdict string `json:"verdict"`
	Steps   []struct {
		At   time.Time `json:"at"`
		Step string    `json:"step"`
	} `json:"steps"`
}

func (p *pipeline) explain(name string) (e explanation, err error) {
	query := url.Values{"connector_id": {p.connector}, "path": {name}}
	err = p.api.Get(p.t.Context(), "/explain?"+query.Encode(), &e)
	return e, err
}

// TestSteering is what a person does when waiting is not enough: flush a window, try failed files again, drop what was not
// meant, and ask why. The debounce interval is a public one, so nothing here happens by itself in the time of the test.
func TestSteering(t *testing.T) {
	dir := t.TempDir()
	inbox := filepath.Join(dir, "inbox")
	must(t, os.Mkdir(inbox, 0o755))
	o := millrace.Options{Data: filepath.Join(dir, "data"), HTTP: freeAddr(t), APIKey: apiKey, Executor: "exec=" + countBytes}
	o.Prefix, o.AllowDir, o.Library.Library = "steer", []string{inbox}, filepath.Join(dir, "library")
	up, down := inProcess(t, o)
	up()
	defer down()
	p := wire(t, client.New("http://"+o.HTTP, apiKey), inbox)
	p.automate(p.index, "5m", nil)

	// Flushed, what has arrived is a job at once, and its run follows.
	p.drop("good.mp4", sample(t, "video.mp4"))
	p.drop("bad.mp4", sample(t, "truncated.mp4"))
	p.pending(2)
	p.steer("flush")
	first := p.follow(p.nthJob(1).ID, patience)
	if len(first.Videos) != 1 || len(first.Failed) != 1 {
		t.Fatalf("flushed: %+v", first)
	}
	p.followRun(p.nthRun(1), first, patience)

	// The file is mended, and what failed is tried again: one more job and one more run, on exactly that file.
	p.drop("bad.mp4", sample(t, "video.mov"))
	p.pending(1)
	var retried struct {
		client.Job
		RetryOf string `json:"retry_of"`
	}
	must(t, p.api.Do(t.Context(), http.MethodPost, "/import-jobs/"+first.ID+"/retry-failed", nil, &retried))
	second := p.follow(retried.ID, patience)
	if retried.RetryOf != first.ID || len(second.Videos) != 1 || second.Videos[0] == first.Videos[0] {
		t.Fatalf("retried: %+v", second)
	}
	p.followRun(p.nthRun(2), second, patience)
	if now := p.follow(first.ID, patience); len(now.Failed) != 1 || len(now.Videos) != 1 {
		t.Errorf("the job before has changed: %+v", now)
	}
	e, err := p.explain("bad.mp4")
	must(t, err)
	if !strings.Contains(e.Verdict, second.Videos[0]) {
		t.Errorf("why bad.mp4: %s", e.Verdict)
	}

	// Its arrival still waits; nothing is imported a second time, and no run is made for nothing (I2, I3).
	p.steer("flush")
	third := p.follow(p.nthJob(3).ID, patience)
	if len(third.Videos) != 0 || len(third.Skipped) != 1 {
		t.Errorf("already imported: %+v", third)
	}

	// Dropped, a file stays away, whatever a listing finds.
	p.drop("unwanted.mp3", sample(t, "audio.mp3"))
	p.pending(1)
	p.steer("drop")
	p.automate(p.index, "5m", obj{"enabled": false})
	enabled := time.Now()
	p.automate(p.index, "5m", nil)
	eventually(t, "a listing", func() error {
		if e, err = p.explain("unwanted.mp3"); err != nil {
			return err
		}
		for _, s := range e.Steps {
			if s.Step == "scan" && s.At.After(enabled) {
				return nil
			}
		}
		return fmt.Errorf("not listed since: %+v", e)
	})
	if a, err := p.automation(); err != nil || a.PendingFiles != 0 || !strings.Contains(e.Verdict, "dropped the window") {
		t.Errorf("%d files are pending, %v: %s", a.PendingFiles, err, e.Verdict)
	}
	if list, err := p.jobs(p.index); err != nil || len(list) != 3 {
		t.Errorf("%d jobs, %v", len(list), err)
	}
	if list, err := p.runs(); err != nil || len(list) != 2 {
		t.Errorf("%d runs, %v", len(list), err)
	}
}
