package strict

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
)

const job = `{"job_id":"job_1","connector_id":"conn_1","target_index_id":"idx_1","source_prefix":"","file_pattern":"*","recursive":true,
	"status":"completed","progress":{"total_files":2,"imported":1,"failed":1,"skipped":0,"bytes_transferred":10,"current_file":null},
	"video_ids":["vid_1"],"failed_files":[{"path":"a.mp4","error":"gone"}],"skipped_files":[],"created_at":"2026-03-01T10:00:00.000Z",
	"started_at":null,"completed_at":null,"error_message":null,"import_mode":"all","automation_id":null,"retry_of":null,"origin":"manual"}`

// Each of these makes a client throw.
func TestJob(t *testing.T) {
	if err := Check("GET", "/import-jobs/job_1", []byte(job)); err != nil {
		t.Fatal(err)
	}
	for change, want := range map[string]string{
		`{"video_ids":null}`:                           "video_ids is no array",
		`{"failed_files":[{"path":"a","error":null}]}`: "failed_files[0].error",
		`{"failed_files":[{"path":"a","error":5}]}`:    "failed_files[0].error",
		`{"skipped_files":[{"path":"a"}]}`:             "without path or reason",
		`{"progress":null}`:                            "progress is null",
		`{"progress":{"total_files":2}}`:               "progress.imported is missing",
		`{"status":"partial"}`:                         "status is not",
		`{"source_prefix":null}`:                       "source_prefix is null",
		`{"created_at":"2026-03-01T10:00:00Z"}`:        "created_at is not ts",
		`{"created_at":"2026-13-01T10:00:00.000Z"}`:    "created_at is not ts",
		`{"job_id":"job/1"}`:                           "job_id is not id",
		`{"recursive":"true"}`:                         "recursive is not bool",
		`{"status":"completed","progress":{"total_files":3,"imported":1,"failed":1,"skipped":0,"bytes_transferred":5.5,"current_file":null}}`: "bytes_transferred is not count",
	} {
		var o, changed map[string]any
		must(t, json.Unmarshal([]byte(job), &o))
		must(t, json.Unmarshal([]byte(change), &changed))
		maps.Copy(o, changed)
		body, err := json.Marshal(o)
		must(t, err)
		if err := Check("GET", "/import-jobs/job_1", body); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", change, err, want)
		}
	}
}

func TestRoutes(t *testing.T) {
	for path, want := range map[string]string{
		"/webhooks/events": "[]str", "/webhooks/wh_1": "webhook", "/webhooks/deliveries/d": "delivery", "/webhooks/wh_1/deliveries?limit=1": "[]delivery",
	} {
		if got, _ := shapeOf("GET", path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	for method, path := range map[string]string{"GET": "/nowhere", "PUT": "/indexes"} {
		if Check(method, path, []byte(`{}`)) == nil {
			t.Errorf("%s %s has a shape", method, path)
		}
	}
	if err := Check("GET", "/exports/e", []byte(`{"more":1}`)); err == nil || !strings.Contains(err.Error(), "more must not be there") {
		t.Errorf("a closed object: %v", err)
	}
	if err := Check("GET", "/dead", []byte(`{"data":[],"pagination":{"limit":1,"has_more":true,"next_cursor":null}}`)); err == nil {
		t.Error("more, and no cursor")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
