package millrace_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"millrace/shared/topology"
)

// anExport is what this test looks at.
type anExport struct {
	ID         string  `json:"export_id"`
	Target     string  `json:"target_id"`
	Status     string  `json:"status"`
	Attempts   int     `json:"attempts"`
	LastError  *string `json:"last_error"`
	Size       int64   `json:"file_size_bytes"`
	Connector  *string `json:"destination_connector_id"`
	Subpath    *string `json:"destination_subpath"`
	Download   *string `json:"download_url"`
	Automation *string `json:"automation_id"`
}

// TestExportsSurviveKills has a run exported by an automation and many exports made by hand, for download and to a
// folder, while everything is killed again and again. In the end each export is there once and whole, and nothing else.
func TestExportsSurviveKills(t *testing.T) {
	t.Parallel()
	const files, byHand, kills = 40, 24, 5 // so that no export can lose all of its attempts
	seed := rand.Uint64()
	if s := os.Getenv("MILLRACE_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	t.Logf("MILLRACE_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))

	outbox, nats := t.TempDir(), freeAddr(t)
	up := startUp(t, "--allow-dir", outbox, "--executor", "exec="+countBytes, "--nats-listen", nats)
	p := wire(t, up.api, up.inbox)
	to := p.create("/connectors/dir", "connector_id", obj{"name": "Outbox", "path": outbox, "scopes": []string{"export"}, "export_base_path": "out"})
	must(t, p.api.Do(t.Context(), http.MethodPut, "/indexes/"+p.index+"/automations/export", obj{
		"destination_connector_id": to, "destination_subpath": "auto", "format": "jsonl",
	}, nil))
	p.automate(p.index, "1s", obj{"paused": true})
	for i := range files {
		p.drop(fmt.Sprintf("%02d.png", i), fmt.Appendf(sample(t, "photo.png"), "%d", i))
	}
	p.pending(files)
	p.resume()
	j := p.follow(p.nthJob(1).ID, patience)
	run := p.nthRun(1)
	p.followRun(run, j, patience)

	for i := range byHand {
		body := obj{"format": "jsonl"}
		if i%2 == 0 {
			body["destination_connector_id"], body["destination_subpath"] = to, "hand"
		}
		p.create("/exports/prompt-run/"+run, "export_id", body)
	}
	for range kills {
		select {
		case <-time.After(time.Duration(rnd.IntN(40)) * time.Millisecond): // the moment to be killed at
		case <-up.exited:
			t.Fatal(up.ended())
		}
		up.restart()
		up.waitReady(up.url)
	}

	var list []anExport
	within(t, 2*patience, "all exports end", func() error {
		list = nil
		if err := p.api.Get(t.Context(), "/exports", &list); err != nil {
			return err
		}
		if len(list) != byHand+1 {
			return fmt.Errorf("%d exports, want %d", len(list), byHand+1)
		}
		for _, x := range list {
			if x.Status != "completed" && x.Status != "failed" {
				return fmt.Errorf("%+v", x)
			}
		}
		return nil
	})
	want := map[string]bool{}
	attempts := 0
	for _, x := range list {
		attempts += x.Attempts
		if x.Status != "completed" || x.Target != run {
			t.Errorf("%+v, %v", x, x.LastError)
			continue
		}
		var data []byte
		if x.Connector != nil {
			name := filepath.Join("out", *x.Subpath, run+"-"+x.ID+".jsonl")
			want[name] = true
			var err error
			data, err = os.ReadFile(filepath.Join(outbox, name))
			must(t, err)
		} else {
			res, err := send(t.Context(), http.MethodGet, up.url+*x.Download, http.Header{"X-Api-Key": {apiKey}}, nil)
			must(t, err)
			if res.status != http.StatusOK || res.header.Get("Content-Type") != "application/x-ndjson" {
				t.Errorf("%s: %d %v", x.ID, res.status, res.header)
			}
			data = res.body
		}
		if n := bytes.Count(data, []byte(`"status":"completed"`)); int64(len(data)) != x.Size || n != files {
			t.Errorf("%s: %d results in %d bytes, recorded %d", x.ID, n, len(data), x.Size)
		}
	}
	t.Logf("%d exports took %d attempts", len(list), attempts)
	if !anyIn(want, "out/auto/") {
		t.Error("the automation exported nothing")
	}
	must(t, filepath.WalkDir(outbox, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Name() == ".millrace-tmp" {
			return filepath.SkipDir
		}
		if name, _ := filepath.Rel(outbox, path); err == nil && e.Type().IsRegular() && !want[name] {
			t.Errorf("%s belongs to no export", name)
		}
		return err
	}))
	nc := dial(t, "nats://"+nats)
	atRest(t, nc, "millrace")
	told := map[string]bool{}
	for _, m := range stored(t, nc, topology.Topology{Prefix: "millrace"}.Stream(topology.Events)) {
		if strings.Contains(m.Subject, ".export.") {
			told[m.Subject+" "+m.Header.Get("ce-id")] = true
		}
	}
	if len(told) != byHand+1 {
		t.Errorf("%d exports were announced, want %d", len(told), byHand+1)
	}
}

func anyIn(names map[string]bool, prefix string) bool {
	for name := range names {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
