package millrace_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"millrace/services/millrace/client"
)

// TestFullDisk: with the store at its limit, and then with no byte left on the disk, the API says so with 503 and when to
// come back, and changes nothing. With space again and after a restart all goes on, and all that was acknowledged is there.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a small disk")
	}
	up := newUp(t, "--executor", "exec="+countBytes)
	must(t, os.Mkdir(up.data, 0o755))
	size := func(flags uintptr, megabytes int) {
		t.Helper()
		must(t, syscall.Mount("tmpfs", up.data, "tmpfs", flags, fmt.Sprintf("size=%dm", megabytes)))
	}
	size(0, 32)
	t.Cleanup(func() {
		up.kill()
		_ = syscall.Unmount(up.data, syscall.MNT_DETACH)
	})
	up.start()
	up.waitReady(up.url)
	p := wire(t, up.api, up.inbox)
	p.automate(p.index, "1s", nil)
	p.drop("before.mp4", sample(t, "video.mp4"))
	first := p.nthJob(1)
	first = p.follow(first.ID, patience)
	p.followRun(p.nthRun(1), first, patience)
	p.pause()

	// The disk itself.
	ballast := filepath.Join(up.data, "ballast")
	fill(t, ballast)
	p.drop("meanwhile.mp4", sample(t, "video.mov"))
	create := func(prefix string) (acknowledged []string, res response) {
		for i := range 10_000 { // small ones may still fit
			name := fmt.Sprint(prefix, i)
			res = request(t, up.url, http.MethodPost, "/indexes", fmt.Appendf(nil, `{"name":%q}`, name))
			if res.status != http.StatusCreated {
				break
			}
			acknowledged = append(acknowledged, name)
		}
		return acknowledged, res
	}
	acknowledged, res := create("On a full disk ")
	tellsWhen(t, res, "")
	up.kill()
	must(t, os.Remove(ballast))
	up.start()
	up.waitReady(up.url)
	p.holds(first, acknowledged)
	p.pending(1)

	// The store's limit, which is there so that the disk does not fill up.
	noise := make([]byte, 1<<20-8<<10)
	for range 64 {
		if res = request(t, up.url, http.MethodPost, "/notifications/"+p.connector, noise); res.status != http.StatusOK {
			break
		}
	}
	tellsWhen(t, res, "full")
	more, res := create("In a full store ")
	tellsWhen(t, res, "full")
	acknowledged = append(acknowledged, more...)
	p.holds(first, acknowledged)
	must(t, ready(t.Context(), up.url))

	// Space again: the limit follows the disk at the next start.
	up.stop()
	size(syscall.MS_REMOUNT, 256)
	up.start()
	up.waitReady(up.url)
	must(t, p.api.Do(t.Context(), http.MethodPost, "/indexes", obj{"name": "With space again"}, nil))
	p.holds(first, append(acknowledged, "With space again"))
	if p.indexes()[fmt.Sprint("In a full store ", len(more))] {
		t.Error("what was refused with a clear answer is there")
	}
	p.resume()
	j := p.nthJob(2)
	j = p.follow(j.ID, 2*patience)
	if got := p.outcomes(j); len(got) != 1 || got["meanwhile.mp4"] != "imported" {
		t.Errorf("%q", got)
	}
	p.followRun(p.nthRun(2), j, 2*patience)
}

// holds checks that what was acknowledged is there.
func (p *pipeline) holds(j client.Job, indexes []string) {
	p.t.Helper()
	var now client.Job
	must(p.t, p.api.Get(p.t.Context(), "/import-jobs/"+j.ID, &now))
	a, err := p.automation()
	must(p.t, err)
	if now.Status != "completed" || len(now.Videos) != 1 || !a.Paused {
		p.t.Errorf("the job is %s with %v, the automation %+v", now.Status, now.Videos, a)
	}
	have := p.indexes()
	for _, name := range append(indexes, "Main") {
		if !have[name] {
			p.t.Errorf("index %q is gone", name)
		}
	}
}

// indexes returns the names of all.
func (p *pipeline) indexes() map[string]bool {
	p.t.Helper()
	var list []struct{ Name string }
	must(p.t, p.api.Get(p.t.Context(), "/indexes", &list))
	names := map[string]bool{}
	for _, i := range list {
		names[i.Name] = true
	}
	return names
}

// tellsWhen holds an answer against what a client must hear that cannot be served now.
func tellsWhen(t testing.TB, res response, word string) {
	t.Helper()
	if res.header.Get("Retry-After") == "" {
		t.Errorf("%d without Retry-After: %s", res.status, res.body)
	}
	refused(t, res, http.StatusServiceUnavailable, word)
}
