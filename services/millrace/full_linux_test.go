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

	// The store's limit.
	cloudy := make([]byte, 1<<20-8<<10)
	stored := 0
	var res response
	for res.status == 0 || res.status == http.StatusOK {
		if res = request(t, up.url, http.MethodPost, "/notifications/"+p.connector, cloudy); res.status == http.StatusOK {
			stored++
		}
		if stored > 64 {
			t.Fatal("the store does not fill up")
		}
	}
	tellsWhen(t, res, "full")
	var name string
	for i := range 10_000 { // small ones may still fit
		name = fmt.Sprintf("Refused %d", i)
		if res = request(t, up.url, http.MethodPost, "/indexes", fmt.Appendf(nil, `{"name":%q}`, name)); res.status != http.StatusCreated {
			break
		}
	}
	tellsWhen(t, res, "full")
	if hasIndex(p, name) {
		t.Errorf("%q was refused and is there", name)
	}

	// The disk itself.
	ballast := filepath.Join(up.data, "ballast")
	fill(t, ballast)
	p.drop("meanwhile.mp4", sample(t, "video.mov"))
	res = request(t, up.url, http.MethodPost, "/prompts", []byte(`{"name":"P","prompt_text":"x"}`))
	tellsWhen(t, res, "")
	if up.ended() != nil {
		t.Log("it has ended on the full disk")
	}

	// Space again.
	up.kill()
	must(t, os.Remove(ballast))
	size(syscall.MS_REMOUNT, 256)
	up.start()
	up.waitReady(up.url)
	must(t, p.api.Do(t.Context(), http.MethodPost, "/indexes", obj{"name": "After"}, nil))
	if !hasIndex(p, "Main") || !hasIndex(p, "After") || hasIndex(p, name) {
		t.Error("the indexes are not what was acknowledged")
	}
	var again client.Job
	must(t, p.api.Get(t.Context(), "/import-jobs/"+first.ID, &again))
	if again.Status != "completed" || len(again.Videos) != 1 {
		t.Errorf("the job of before is %s with %v", again.Status, again.Videos)
	}
	p.resume()
	j := p.nthJob(2)
	j = p.follow(j.ID, 2*patience)
	if got := p.outcomes(j); len(got) != 1 || got["meanwhile.mp4"] != "imported" {
		t.Errorf("%q", got)
	}
	p.followRun(p.nthRun(2), j, 2*patience)
}

// tellsWhen holds an answer against what a client must hear that cannot be served now.
func tellsWhen(t testing.TB, res response, word string) {
	t.Helper()
	if res.header.Get("Retry-After") == "" {
		t.Errorf("%d without Retry-After: %s", res.status, res.body)
	}
	refused(t, res, http.StatusServiceUnavailable, word)
}

func hasIndex(p *pipeline, name string) bool {
	p.t.Helper()
	for cursor := ""; ; {
		var page client.Page[struct{ Name string }]
		must(p.t, p.api.Get(p.t.Context(), "/indexes?limit=100&cursor="+cursor, &page))
		for _, i := range page.Data {
			if i.Name == name {
				return true
			}
		}
		if !page.Pagination.HasMore {
			return false
		}
		cursor = *page.Pagination.Next
	}
}

// fill writes until the disk is full.
func fill(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer func() { _ = f.Close() }()
	for block := 1 << 20; block > 0; {
		if _, err := f.Write(make([]byte, block)); err != nil {
			block /= 2
		}
	}
}
