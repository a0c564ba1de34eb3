package millrace_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"testing"

	"millrace/services/millrace"
	"millrace/services/millrace/client"
	"millrace/shared/bucket/azure/azuretest"
)

// gridTime is the same for all events: what orders them is their sequencer.
const gridTime = "2026-03-01T08:12:44.9324462Z"

// gridEvent is an event as Event Grid sends it.
func gridEvent(account, kind, name, tag string, size, sequence int) obj {
	data := obj{
		"api": "PutBlob", "blobType": "BlockBlob", "contentType": "image/png", "sequencer": fmt.Sprintf("%032d", sequence),
		"url": "https://" + account + ".blob.core.windows.net/drops/" + name,
	}
	if kind == "BlobCreated" {
		data["eTag"], data["contentLength"] = tag, size
	}
	return obj{
		"topic": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/" + account,
		"id":    fmt.Sprint(sequence), "subject": "/blobServices/default/containers/drops/blobs/" + name,
		"eventType": "Microsoft.Storage." + kind, "eventTime": gridTime, "data": data, "dataVersion": "", "metadataVersion": "1",
	}
}

// A container of Azure, its library in another: 100 blobs that nobody told of and 100 that Event Grid did, twice and in
// no order, one of them overwritten and one deleted while the window is open, are one job and one run.
func TestAzure(t *testing.T) {
	s := azuretest.Start(t, "drops", "shelf", "outbox")
	t.Setenv("AZURE_STORAGE_KEY", s.Key)
	o := millrace.Options{
		Data: filepath.Join(t.TempDir(), "data"), HTTP: freeAddr(t), APIKey: apiKey, ExtraDebounceIntervals: []string{"5s"}, Executor: "nats",
	}
	o.Prefix, o.AllowEndpoint = "azure", []string{"127.0.0.1"}
	o.Library.Library, o.LibraryEndpoint = "az://"+s.Account+"/shelf/media", s.URL
	up, _ := inProcess(t, o)
	up()
	p := &pipeline{t: t, api: client.New("http://"+o.HTTP, apiKey), exists: map[string][]byte{}}
	container := func(name, scope string) string {
		return p.create("/connectors/azure", "connector_id", obj{
			"name": name, "storage_account": s.Account, "container": name, "endpoint_url": s.URL, "account_key": s.Key,
			"import_mode": "new_only", "scopes": []string{scope},
		})
	}
	p.connector = container("drops", "import")
	p.index = p.create("/indexes", "index_id", obj{"name": "Main"})
	p.prompt = p.create("/prompts", "prompt_id", obj{"name": "Count", "prompt_text": "Count the bytes.", "json_schema": obj{"type": "object"}})
	var tested struct {
		Success bool    `json:"success"`
		Error   *string `json:"error_message"`
	}
	must(t, p.api.Do(t.Context(), http.MethodPost, "/connectors/"+p.connector+"/test", nil, &tested))
	if !tested.Success {
		t.Fatalf("connector test: %s", *tested.Error)
	}

	png := sample(t, "photo.png")
	names := []string{"cams/a b#%.png", "cams/100%25.png", "cams/日本語/ü.png", "cams/*.png", "cams/a..b/\u202egnp.png", "cams/'quote\".png", "cams/a?b=c.png"}
	for i := len(names); i < 200; i++ {
		names = append(names, fmt.Sprintf("cams/%03d.png", i))
	}
	sequence := 0
	put := func(name, what string) obj {
		p.exists[name] = fmt.Appendf(slices.Clip(png), "%s of %s", what, name)
		sequence++
		return gridEvent(s.Account, "BlobCreated", name, s.Put("drops", name, p.exists[name]), len(p.exists[name]), sequence)
	}
	push := func(events []obj) {
		t.Helper()
		must(t, p.api.Do(t.Context(), http.MethodPost, "/notifications/"+p.connector, events, nil))
	}
	for i := 0; i < 200; i += 2 {
		put(names[i], "first")
	}
	p.automate(p.index, "5s", obj{"source_prefix": "cams/", "file_pattern": "**/*.png"})
	p.pending(100)
	p.pause() // however long it takes to upload the rest, the window waits
	var events []obj
	for i := 1; i < 200; i += 2 {
		events = append(events, put(names[i], "first"))
	}
	slices.Reverse(events)
	push(events[:60])
	push(events[40:])
	p.pending(200)
	stale := events[0]
	push([]obj{put(names[199], "second"), stale})
	s.Delete("drops", names[198])
	delete(p.exists, names[198])
	push([]obj{gridEvent(s.Account, "BlobDeleted", names[198], "", 0, sequence+1)})
	p.resume()

	j := p.follow(p.nthJob(1).ID, patience)
	want := map[string]string{}
	for name := range p.exists {
		want[name] = "imported"
	}
	got := p.outcomes(j)
	if got[names[198]] == "skipped: object gone" { // the job began before the deletion was looked up
		delete(got, names[198])
	}
	if !maps.Equal(got, want) {
		t.Errorf("%d of %d files imported: %+v", j.Progress.Imported, len(want), j.Skipped)
	}
	kept := map[string]bool{}
	for _, key := range s.Names("shelf") {
		data, _ := s.Get("shelf", key)
		kept[hash(data)] = true
	}
	for id, m := range p.media(p.index) {
		if m.SHA256 != hash(p.exists[m.Path]) || !kept[m.SHA256] {
			t.Errorf("%s, %q: its record or the library has other bytes", id, m.Path)
		}
	}
	p.nthRun(1)

	// What came in leaves again, into a third container.
	var made struct {
		ID string `json:"export_id"`
	}
	must(t, p.api.Do(t.Context(), http.MethodPost, "/exports/import-job/"+j.ID, obj{
		"destination_connector_id": container("outbox", "export"), "format": "jsonl",
	}, &made))
	eventually(t, "the export", func() error {
		found := s.Names("outbox")
		if len(found) != 1 {
			return fmt.Errorf("%q", found)
		}
		data, _ := s.Get("outbox", found[0])
		if lines := bytes.Split(bytes.TrimSpace(data), []byte("\n")); len(lines) != j.Progress.Total || !json.Valid(lines[0]) {
			t.Fatalf("%d lines", len(lines))
		}
		return nil
	})
}
