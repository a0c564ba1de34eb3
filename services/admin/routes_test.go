package admin_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/shared/event"
)

// probe is what the tables know of one operation. Paths are below the base; {…} in unknown are ids that nothing has.
type probe struct {
	scope   string // least one
	path    func(fixture) string
	unknown []string // the same path for things that do not exist
	body    func(fixture) any
	multi   bool
	stream  bool // the answer has no end
	ok      int
	emptyOK bool // a request without a body will do
	wrong   []obj
	lists   bool // the answer is a list, with something in it here, so that its shape is seen
	// fresh makes something on which the operation succeeds, where it does not on the fixture or not twice, and returns
	// the path.
	fresh   func(w *world, f fixture) string
	freshOK int
	repeats bool // the key belongs to what was created, and no answer is kept (contract §5.2)
	never   bool // it has no success on this server, so there is no answer to keep
	usesUp  bool // it succeeds once on a thing: who asks again after a crash is refused, and nothing happens twice
}

const gone = "nothing_1"

func at(path string) func(fixture) string { return func(fixture) string { return path } }

func gcsForm(t testing.TB, credentials []byte, parts ...[2]string) ([]byte, string) {
	t.Helper()
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	for _, p := range parts {
		must(t, m.WriteField(p[0], p[1]))
	}
	if credentials != nil {
		h := textproto.MIMEHeader{"Content-Disposition": {`form-data; name="credentials_file"; filename="x"`}, "Content-Type": {"application/json"}}
		p, err := m.CreatePart(h)
		must(t, err)
		_, err = p.Write(credentials)
		must(t, err)
	}
	must(t, m.Close())
	return b.Bytes(), m.FormDataContentType()
}

var gcsParts = [][2]string{{"name", "Archive"}, {"bucket", "b"}, {"gcp_project_id", "p"}, {"scopes", "import"}, {"scopes", "export"}, {"export_base_path", ""}}

func account(change obj) []byte {
	a := obj{"type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": "PLANTED-SECRET", "client_email": "e", "token_uri": "u"}
	for k, v := range change {
		a[k] = v
	}
	b, _ := json.Marshal(a)
	return b
}

// noVideo is a medium that is well spelled and not there.
const noVideo = "/videos/vid_00000000000000000000000000_0000000000000000"

func badBatches(most int) []obj {
	return []obj{{"video_ids": []string{}}, {"video_ids": make([]string, most+1)}, {"video_ids": "x"}, {"video_ids": []any{nil}}, {"video_ids": []int{1}}}
}

func runBody(f fixture) any {
	return obj{"prompt_id": f.prompt, "target": obj{"type": "videos", "video_ids": []string{f.video}, "index_id": nil}, "processing_model": nil, "video_segment_duration": 900}
}

var badRuns = []obj{
	{"target": obj{"type": "index", "index_id": "x"}}, {"prompt_id": "x"}, {"prompt_id": "x", "target": "index"}, {"prompt_id": "x", "target": obj{}},
	{"prompt_id": "x", "target": obj{"type": "all"}}, {"prompt_id": "x", "target": obj{"type": "index"}}, {"prompt_id": "x", "target": obj{"type": "videos"}},
	{"prompt_id": "x", "target": obj{"type": "videos", "video_ids": []string{}}}, {"prompt_id": "x", "target": obj{"type": "videos", "video_ids": []string{""}}},
	{"prompt_id": "x", "target": obj{"type": "videos", "video_ids": []string{"x"}, "index_id": ""}},
	{"prompt_id": "x", "target": obj{"type": "playground"}}, {"prompt_id": "x", "target": obj{"type": "index", "index_id": "x"}, "video_segmentation_type": "fixed"},
	{"prompt_id": "x", "target": obj{"type": "index", "index_id": "x"}, "audio_segmentation_type": "fixed", "audio_segment_duration": 301},
	{"prompt_id": "x", "target": obj{"type": "index", "index_id": "x"}, "audio_segmentation_type": "smart"}, {"prompt_id": "x", "target": obj{"type": "index", "index_id": "x"}, "enable_transcription": "yes"},
	{"prompt_id": "x", "target": obj{"type": "index", "index_id": "x"}, "video_segment_duration": 5.5},
}

func probes() map[string]probe {
	jobBody := func(f fixture) any { return obj{"connector_id": f.connector, "index_id": f.index} }
	automation := func(f fixture) string { return "/indexes/" + f.index + "/automations/import" }
	calm := func(verb string) func(f fixture) string {
		return func(f fixture) string { return "/indexes/" + f.calm + "/automations/import/" + verb }
	}
	exporting := func(f fixture) string { return "/indexes/" + f.index + "/automations/export" }
	return map[string]probe{
		"GET /auth/validate":       {scope: "none", path: at("/auth/validate"), ok: 204},
		"GET /rate-limit/status":   {scope: "none", path: at("/rate-limit/status"), ok: 200},
		"POST /rate-limit/refresh": {scope: "none", path: at("/rate-limit/refresh"), ok: 200, emptyOK: true},
		"GET /usage":               {scope: "read", path: at("/usage"), ok: 200},
		"GET /usage/history":       {scope: "read", path: at("/usage/history?limit=5"), ok: 200},
		"GET /usage/details":       {scope: "read", path: at("/usage/details?metric_type=x"), ok: 200},
		"GET /usage/breakdown":     {scope: "read", path: at("/usage/breakdown"), ok: 200},
		"GET /usage/metric-types":  {scope: "public", path: at("/usage/metric-types"), ok: 200},
		"POST /connectors/dir": {scope: "write", path: at("/connectors/dir"), ok: 201,
			body:  func(fixture) any { return obj{"name": "n", "path": "/allowed/x", "scopes": nil, "import_mode": nil} },
			wrong: []obj{{"name": 5, "path": "/allowed"}, {"name": "", "path": "/allowed"}, {"name": "n", "path": "/allowed", "scopes": "import"}, {"name": "n", "path": "/allowed", "scopes": []string{"x"}}, {"name": "n", "path": "/allowed", "import_mode": "x"}, {"path": "/allowed"}, {"name": "n"}, {"name": "n", "path": "/etc"}}},
		"POST /connectors/gcs": {scope: "write", path: at("/connectors/gcs"), multi: true, ok: 201},
		"POST /connectors/s3": {scope: "write", path: at("/connectors/s3"), ok: 201, body: func(fixture) any { return s3Body() },
			wrong: []obj{without(s3Body(), "name"), without(s3Body(), "region"), without(s3Body(), "aws_secret_access_key"), merged(s3Body(), obj{"bucket": "s3://b"}), merged(s3Body(), obj{"bucket": 5}), merged(s3Body(), obj{"aws_access_key_id": ""}), merged(s3Body(), obj{"scopes": []string{"x"}}), merged(s3Body(), obj{"endpoint_url": "ftp://x"}), merged(s3Body(), obj{"endpoint_url": "https://u:p@x"})}},
		"POST /connectors/azure": {scope: "write", path: at("/connectors/azure"), ok: 201, body: func(fixture) any { return azureBody() },
			wrong: []obj{without(azureBody(), "container"), without(azureBody(), "tenant_id"), without(azureBody(), "client_secret"), merged(azureBody(), obj{"storage_account": "a/b"}), merged(azureBody(), obj{"import_mode": "some"})}},
		"PATCH /connectors/{connector_id}": {scope: "write", path: func(f fixture) string { return "/connectors/" + f.connector }, unknown: []string{"/connectors/" + gone, "/connectors/*"}, ok: 200, emptyOK: true,
			body:  func(fixture) any { return obj{"name": "n", "scopes": nil} },
			wrong: []obj{{"name": ""}, {"name": 5}, {"scopes": []string{}}, {"scopes": "import"}, {"import_mode": "x"}, {"path": "/allowed/y"}, {"bucket": "b"}, {"provider": 5}, {"aws_access_key_id": "k"}}},
		"DELETE /connectors/{connector_id}":    {scope: "admin", path: func(f fixture) string { return "/connectors/" + f.spare }, unknown: []string{"/connectors/" + gone, "/connectors/*"}, ok: 200, emptyOK: true},
		"GET /connectors":                      {scope: "read", path: at("/connectors"), ok: 200, lists: true},
		"GET /connectors/{connector_id}":       {scope: "read", path: func(f fixture) string { return "/connectors/" + f.connector }, unknown: []string{"/connectors/" + gone, "/connectors/*", "/connectors/%3E", "/connectors/a.b"}, ok: 200},
		"POST /connectors/{connector_id}/test": {scope: "write", path: func(f fixture) string { return "/connectors/" + f.connector + "/test" }, unknown: []string{"/connectors/" + gone + "/test"}, ok: 200, emptyOK: true},
		"POST /connectors/{connector_id}/notify": {scope: "admin", path: func(f fixture) string { return "/connectors/" + f.connector + "/notify" }, unknown: []string{"/connectors/" + gone + "/notify"}, ok: 200, emptyOK: true,
			body: func(fixture) any { return obj{"create": true, "name": nil} }, wrong: []obj{{"create": "yes"}, {"name": 5}, {"name": strings.Repeat("x", 81)}, {"subscription": "https://sqs.example.com/1/q"}}},
		"POST /connectors/{connector_id}/browse": {scope: "read", path: func(f fixture) string { return "/connectors/" + f.connector + "/browse" }, unknown: []string{"/connectors/" + gone + "/browse"}, ok: 200, emptyOK: true, lists: true,
			body: func(fixture) any {
				return obj{"prefix": "", "pattern": "*.{mp4,mov}", "recursive": true, "limit": json.RawMessage("10.0")}
			},
			wrong: []obj{{"prefix": 1}, {"recursive": "yes"}, {"limit": 0}, {"limit": 1001}, {"limit": 5.5}, {"limit": json.RawMessage("1e2")}, {"pattern": "["}, {"pattern": "{a"}}},
		"POST /indexes":                              {scope: "write", path: at("/indexes"), ok: 201, body: func(fixture) any { return obj{"name": "n"} }, wrong: []obj{{"name": ""}, {"name": 1}, {"name": strings.Repeat("x", 256)}, {"name": nil}}},
		"GET /indexes":                               {scope: "search", path: at("/indexes?include_defaults=false"), ok: 200, lists: true},
		"GET /indexes/{index_id}":                    {scope: "search", path: func(f fixture) string { return "/indexes/" + f.index }, unknown: []string{"/indexes/" + gone}, ok: 200},
		"GET /indexes/{index_id}/videos":             {scope: "read", path: func(f fixture) string { return "/indexes/" + f.index + "/videos?limit=1" }, unknown: []string{"/indexes/" + gone + "/videos"}, ok: 200, lists: true},
		"GET /indexes/{index_id}/automations/import": {scope: "read", path: automation, unknown: []string{"/indexes/" + gone + "/automations/import"}, ok: 200},
		"PUT /indexes/{index_id}/automations/import": {scope: "write", path: automation, unknown: []string{"/indexes/" + gone + "/automations/import"}, ok: 200,
			body: func(f fixture) any {
				return obj{"connector_id": f.connector, "debounce_interval": "1h", "prompt_preset": nil, "recursive": nil}
			}, wrong: []obj{{"debounce_interval": "5m", "prompt_preset": nil}, {"connector_id": "c", "prompt_preset": nil}}},
		"POST /indexes/{index_id}/automations/import/pause":  {scope: "write", path: func(f fixture) string { return automation(f) + "/pause" }, unknown: []string{"/indexes/" + gone + "/automations/import/pause"}, ok: 200, emptyOK: true},
		"POST /indexes/{index_id}/automations/import/resume": {scope: "write", path: func(f fixture) string { return automation(f) + "/resume" }, unknown: []string{"/indexes/" + gone + "/automations/import/resume"}, ok: 200, emptyOK: true},
		"GET /automations": {scope: "read", path: at("/automations?limit=1"), ok: 200, lists: true},
		"GET /indexes/{index_id}/automations/import/plan":   {scope: "read", path: func(f fixture) string { return automation(f) + "/plan?limit=5" }, unknown: []string{"/indexes/" + gone + "/automations/import/plan"}, ok: 200},
		"POST /indexes/{index_id}/automations/import/flush": {scope: "write", path: calm("flush"), unknown: []string{"/indexes/" + gone + "/automations/import/flush"}, ok: 200, emptyOK: true},
		"POST /indexes/{index_id}/automations/import/drop":  {scope: "write", path: calm("drop"), unknown: []string{"/indexes/" + gone + "/automations/import/drop"}, ok: 200, emptyOK: true},
		"POST /indexes/{index_id}/automations/import/extend": {scope: "write", path: calm("extend"), unknown: []string{"/indexes/" + gone + "/automations/import/extend"}, ok: 409,
			fresh: func(w *world, f fixture) string {
				index := w.do("POST", "/indexes", obj{"name": "Busy"}).want(201).str("index_id")
				w.do("PUT", "/indexes/"+index+"/automations/import", obj{"connector_id": f.connector, "debounce_interval": "5m", "prompt_preset": nil}).want(200)
				w.arrive(index, "cams/fresh.mp4", time.Now())
				return "/indexes/" + index + "/automations/import/extend"
			}, freshOK: 200, body: func(fixture) any { return obj{"by": "10m"} },
			wrong: []obj{{"by": "soon"}, {"by": 5}, {"by": "0s"}, {"by": "31d"}, {"until": "tomorrow"}, {"until": "2999-01-01T00:00:00Z"}, {"by": "1h", "until": "2026-03-01T10:00:00Z"}}},
		"POST /prompts": {scope: "write", path: at("/prompts"), ok: 201,
			body: func(fixture) any {
				return obj{"name": "abc", "prompt_text": "0123456789", "json_schema": obj{"type": "object"}, "video_level": nil, "execution_config": obj{"x": 1}}
			},
			wrong: []obj{{"name": "ab", "prompt_text": "0123456789", "json_schema": obj{"type": "object"}}, {"name": "abc", "prompt_text": "short", "json_schema": obj{"type": "object"}}, {"name": "abc", "prompt_text": "0123456789", "json_schema": obj{"type": "array"}}, {"name": "abc", "prompt_text": "0123456789", "json_schema": "x"}, {"name": "abc", "prompt_text": "0123456789"}, {"name": "abc", "prompt_text": "0123456789", "json_schema": obj{"type": "object"}, "selection_filter": 1}, {"name": "abc", "prompt_text": "0123456789", "json_schema": obj{"type": "object"}, "video_level": obj{}}}},
		"GET /prompts":              {scope: "read", path: at("/prompts?active_only=true"), ok: 200},
		"GET /prompts/{prompt_id}":  {scope: "read", path: func(f fixture) string { return "/prompts/" + f.prompt }, unknown: []string{"/prompts/" + gone}, ok: 200},
		"POST /import-jobs":         {scope: "write", path: at("/import-jobs"), ok: 202, body: jobBody, wrong: []obj{{"connector_id": 1, "index_id": "i"}, {"connector_id": "c"}, {"index_id": "i"}, {"connector_id": "c", "index_id": "i", "file_pattern": "[a"}, {"connector_id": "c", "index_id": "i", "import_mode_override": "some"}, {"connector_id": "c", "index_id": "i", "recursive": 2}}},
		"GET /import-jobs":          {scope: "read", path: at("/import-jobs?status=COMPLETED&automation_only=true&limit=200"), ok: 200, lists: true},
		"GET /import-jobs/{job_id}": {scope: "read", path: func(f fixture) string { return "/import-jobs/" + f.job }, unknown: []string{"/import-jobs/" + gone}, ok: 200},
		"POST /import-jobs/{job_id}/cancel": {scope: "write", path: func(f fixture) string { return "/import-jobs/" + f.job + "/cancel" }, unknown: []string{"/import-jobs/" + gone + "/cancel", "/import-jobs/%2A/cancel"}, ok: 400, emptyOK: true,
			fresh: func(w *world, f fixture) string {
				return "/import-jobs/" + w.do("POST", "/import-jobs", jobBody(f)).want(202).str("job_id") + "/cancel"
			}, freshOK: 200},
		"GET /import-jobs/{job_id}/files":         {scope: "read", path: func(f fixture) string { return "/import-jobs/" + f.job + "/files?state=FAILED&limit=1" }, unknown: []string{"/import-jobs/" + gone + "/files"}, ok: 200, lists: true},
		"POST /import-jobs/{job_id}/retry":        {scope: "write", path: func(f fixture) string { return "/import-jobs/" + f.job + "/retry" }, unknown: []string{"/import-jobs/" + gone + "/retry"}, ok: 400, emptyOK: true, never: true},
		"POST /import-jobs/{job_id}/retry-failed": {scope: "write", path: func(f fixture) string { return "/import-jobs/" + f.job + "/retry-failed" }, unknown: []string{"/import-jobs/" + gone + "/retry-failed"}, ok: 202, emptyOK: true},
		"POST /import-jobs/{job_id}/files/retry": {scope: "write", path: func(f fixture) string { return "/import-jobs/" + f.job + "/files/retry" }, unknown: []string{"/import-jobs/" + gone + "/files/retry"}, ok: 202,
			body: func(fixture) any { return obj{"path": "cams/c.mov"} }, wrong: []obj{{"path": ""}, {"path": 5}, {"path": nil}}},
		"GET /prompt-runs":                    {scope: "read", path: at("/prompt-runs?limit=1"), ok: 200, lists: true},
		"GET /prompt-runs/{run_id}":           {scope: "read", path: func(f fixture) string { return "/prompt-runs/" + f.run }, unknown: []string{"/prompt-runs/" + gone}, ok: 200},
		"GET /prompt-runs/{run_id}/results":   {scope: "read", path: func(f fixture) string { return "/prompt-runs/" + f.run + "/results?video_id=" + f.video }, unknown: []string{"/prompt-runs/" + gone + "/results?video_id=vid_x"}, ok: 200, lists: true},
		"DELETE /indexes/{index_id}":          {scope: "admin", path: func(f fixture) string { return "/indexes/" + f.doomedIndex }, unknown: []string{"/indexes/" + gone, "/indexes/*"}, ok: 200},
		"GET /indexes/{index_id}/deletion":    {scope: "admin", path: func(f fixture) string { return "/indexes/" + f.goneIndex + "/deletion" }, unknown: []string{"/indexes/" + gone + "/deletion", "/indexes/%3E/deletion"}, ok: 200},
		"GET /indexes/{index_id}/prompt-runs": {scope: "read", path: func(f fixture) string { return "/indexes/" + f.index + "/prompt-runs?limit=1" }, unknown: []string{"/indexes/" + gone + "/prompt-runs"}, ok: 200, lists: true},
		"DELETE /videos/{video_id}":           {scope: "admin", path: func(f fixture) string { return "/videos/" + f.doomedVideo }, unknown: []string{"/videos/" + gone, noVideo}, ok: 200},
		"GET /videos/{video_id}/deletion":     {scope: "admin", path: func(f fixture) string { return "/videos/" + f.goneVideo + "/deletion" }, unknown: []string{"/videos/" + gone + "/deletion", noVideo + "/deletion"}, ok: 200},
		"GET /videos/{video_id}/segments":     {scope: "read", path: func(f fixture) string { return "/videos/" + f.video + "/segments?latest_run=true" }, unknown: []string{"/videos/" + gone + "/segments", noVideo + "/segments"}, ok: 200},
		"GET /videos/{video_id}/prompt-runs":  {scope: "read", path: func(f fixture) string { return "/videos/" + f.video + "/prompt-runs" }, unknown: []string{"/videos/" + gone + "/prompt-runs", noVideo + "/prompt-runs"}, ok: 200, lists: true},
		"POST /videos/batch":                  {scope: "read", path: at("/videos/batch"), ok: 200, lists: true, body: func(f fixture) any { return obj{"video_ids": []string{f.video, "x"}} }, wrong: badBatches(100)},
		"POST /videos/batch/status":           {scope: "read", path: at("/videos/batch/status"), ok: 200, lists: true, body: func(f fixture) any { return obj{"video_ids": []string{f.video, "x"}} }, wrong: badBatches(100)},
		"POST /videos/batch/segments": {scope: "read", path: at("/videos/batch/segments"), ok: 200, lists: true, body: func(f fixture) any { return obj{"video_ids": []string{f.video, "x"}, "targets": nil} },
			wrong: append(badBatches(50), obj{"video_ids": []string{"x"}, "targets": []obj{{"video_id": "x"}}}, obj{"targets": []obj{{"run_id": "x"}}}, obj{"targets": []string{"x"}})},
		"POST /videos/signed-url": {scope: "read", path: at("/videos/signed-url"), ok: 422, never: true, body: func(fixture) any { return obj{"gcs_uri": "gs://b/k"} }, wrong: []obj{{"gcs_uri": 1}, {"gcs_uri": "x", "force_refresh": "x"}}},
		"GET /playground/videos":  {scope: "read", path: at("/playground/videos?limit=3"), ok: 200},
		"PUT /prompts/{prompt_id}": {scope: "write", path: func(f fixture) string { return "/prompts/" + f.prompt }, unknown: []string{"/prompts/" + gone, "/prompts/*"}, ok: 200, emptyOK: true,
			body: func(fixture) any {
				return obj{"name": "Log", "description": nil, "video_level": nil, "clear_video_level": true}
			},
			wrong: []obj{{"name": "ab"}, {"name": 1}, {"prompt_text": "short"}, {"json_schema": obj{"type": "array"}}, {"json_schema": "x"}, {"description": strings.Repeat("x", 501)}, {"video_level": obj{}}, {"execution_config": []int{1}}, {"clear_video_level": "yes"}}},
		"DELETE /prompts/{prompt_id}":    {scope: "admin", path: func(f fixture) string { return "/prompts/" + f.doomedPrompt }, unknown: []string{"/prompts/" + gone, "/prompts/*"}, ok: 200},
		"GET /prompts/{prompt_id}/usage": {scope: "read", path: func(f fixture) string { return "/prompts/" + f.prompt + "/usage" }, unknown: []string{"/prompts/" + gone + "/usage"}, ok: 200},
		"POST /prompts/test-schema": {scope: "write", path: at("/prompts/test-schema"), ok: 200, body: func(fixture) any { return obj{"json_schema": obj{"type": "object"}, "sample_data": obj{}} },
			wrong: []obj{{"json_schema": "x", "sample_data": 1}, {"json_schema": obj{}}, {"sample_data": 1}}},
		"POST /import-jobs/{job_id}/prompt-run": {scope: "write", path: func(f fixture) string { return "/import-jobs/" + f.job + "/prompt-run" }, unknown: []string{"/import-jobs/" + gone + "/prompt-run", "/import-jobs/*/prompt-run"}, ok: 202,
			body: func(f fixture) any { return obj{"prompt_preset": obj{"prompt_id": f.prompt}} }, wrong: []obj{{"prompt_preset": "x"}, {"prompt_preset": obj{}}, {"prompt_preset": obj{"prompt_id": "x", "enable_transcription": 1}}}},
		"POST /prompt-runs/execute":  {scope: "write", path: at("/prompt-runs/execute"), ok: 202, body: runBody, wrong: badRuns},
		"POST /prompt-runs/estimate": {scope: "read", path: at("/prompt-runs/estimate"), ok: 200, body: runBody, wrong: badRuns},
		"POST /prompt-runs/{run_id}/cancel": {scope: "write", path: func(f fixture) string { return "/prompt-runs/" + f.run + "/cancel" }, unknown: []string{"/prompt-runs/" + gone + "/cancel", "/prompt-runs/%2A/cancel"}, ok: 400, emptyOK: true,
			fresh: func(w *world, f fixture) string {
				return "/prompt-runs/" + w.do("POST", "/prompt-runs/execute", runBody(f)).want(202).str("run_id") + "/cancel"
			}, freshOK: 200},
		"GET /prompt-runs/{run_id}/videos/{video_id}/video-result": {scope: "read", path: func(f fixture) string { return "/prompt-runs/" + f.run + "/videos/" + f.video + "/video-result" },
			unknown: []string{"/prompt-runs/" + gone + noVideo + "/video-result"}, ok: 200},
		"GET /prompt-runs/{run_id}/failed-segments": {scope: "read", path: func(f fixture) string { return "/prompt-runs/" + f.run + "/failed-segments" }, unknown: []string{"/prompt-runs/" + gone + "/failed-segments"}, ok: 200},
		"POST /prompt-runs/{run_id}/videos/{video_id}/segments/{segment_id}/retry": {scope: "write", path: func(f fixture) string {
			return "/prompt-runs/" + f.run + "/videos/" + f.video + "/segments/seg_1/retry"
		},
			unknown: []string{"/prompt-runs/" + gone + noVideo + "/segments/seg_1/retry"}, ok: 400, emptyOK: true, never: true},
		"GET /prompt-runs/{run_id}/videos/{video_id}/segments/{segment_id}/retries/{retry_id}": {scope: "read", path: func(f fixture) string {
			return "/prompt-runs/" + f.run + "/videos/" + f.video + "/segments/seg_1/retries/r"
		},
			unknown: []string{"/prompt-runs/" + gone + noVideo + "/segments/seg_1/retries/r"}, ok: 404},
		"GET /prompt-runs/{run_id}/llm-calls": {scope: "read", path: func(f fixture) string { return "/prompt-runs/" + f.run + "/llm-calls" }, unknown: []string{"/prompt-runs/" + gone + "/llm-calls"}, ok: 200},
		"POST /workflow/process": {scope: "write", path: at("/workflow/process"), ok: 202, body: func(f fixture) any {
			return obj{"prompt_instruction": "Say what can be seen.", "video_ids": []string{f.video}, "index_id": f.index, "enable_transcription": false}
		}, wrong: []obj{{"prompt_id": "x"}, {"prompt_id": "x", "prompt_instruction": "0123456789", "index_id": "x"}, {"prompt_instruction": "short", "index_id": "x"}, {"prompt_id": "x", "index_id": "x", "video_segmentation_type": "fixed"}}},
		"GET /workflow/runs/{run_id}/results": {scope: "read", path: func(f fixture) string {
			return "/workflow/runs/" + f.run + "/results?result_level=video&view=unfiltered"
		}, unknown: []string{"/workflow/runs/" + gone + "/results"}, ok: 200},
		"GET /videos/{video_id}": {scope: "read", path: func(f fixture) string { return "/videos/" + f.video }, unknown: []string{"/videos/" + gone, "/videos/vid_00000000000000000000000000_0000000000000000"}, ok: 200},
		"GET /events":            {scope: "read", path: at("/events?type=import_job.*,media.created&index_id=idx_1"), stream: true, ok: 200},
		"GET /explain": {scope: "read", path: func(f fixture) string { return "/explain?path=cams%2Fa%20%26%20b.mp4&connector_id=" + f.connector },
			unknown: []string{"/explain?path=x&connector_id=" + gone, "/explain?path=x&connector_id=*"}, ok: 200},
		"GET /dead": {scope: "read", path: at("/dead?limit=1"), ok: 200, lists: true},
		"POST /dead/{dead_id}/replay": {scope: "write", path: func(f fixture) string { return "/dead/" + f.cutLetter + "/replay" }, unknown: []string{"/dead/" + gone + "/replay", "/dead/dead_zzzzzz_000000000000/replay"}, ok: 409, emptyOK: true, usesUp: true,
			fresh: func(w *world, f fixture) string {
				return "/dead/" + w.bury(event.Dead{Subject: w.bus.Subject("notification", f.connector), Data: []byte(event.NewID("x"))}) + "/replay"
			}, freshOK: 200},
		"DELETE /dead/{dead_id}": {scope: "admin", path: func(f fixture) string { return "/dead/" + f.letter }, unknown: []string{"/dead/" + gone, "/dead/dead_1_000000000000", "/dead/dead_zzzzzz_000000000000"}, ok: 200, emptyOK: true},
		"POST /exports/index/{index_id}": {scope: "write", path: func(f fixture) string { return "/exports/index/" + f.index }, unknown: []string{"/exports/index/" + gone}, ok: 202, emptyOK: true,
			body: func(f fixture) any {
				return obj{"prompt_run_ids": []string{f.run}, "destination_connector_id": f.outbox, "destination_subpath": "a/b", "result_scope": "matches", "format": nil}
			},
			wrong: []obj{{"prompt_run_ids": "x"}, {"prompt_run_ids": []int{1}}, {"result_scope": "some"}, {"format": "xml"}, {"destination_connector_id": 5}, {"destination_subpath": "../x"}, {"destination_subpath": "/x"}, {"destination_subpath": "a/./b"}}},
		"POST /exports/prompt-run/{run_id}": {scope: "write", path: func(f fixture) string { return "/exports/prompt-run/" + f.run }, unknown: []string{"/exports/prompt-run/" + gone}, ok: 202, emptyOK: true,
			body: func(fixture) any { return obj{"result_scope": "all", "format": "csv"} }, wrong: []obj{{"result_scope": 1}, {"format": "JSON"}, {"destination_subpath": ".."}}},
		"POST /exports/import-job/{job_id}": {scope: "write", path: func(f fixture) string { return "/exports/import-job/" + f.job }, unknown: []string{"/exports/import-job/" + gone}, ok: 202, emptyOK: true,
			body: func(fixture) any { return obj{"format": "jsonl"} }, wrong: []obj{{"format": 1}, {"destination_subpath": "a\\b"}}},
		"GET /exports":                               {scope: "read", path: at("/exports?limit=200"), ok: 200, lists: true},
		"GET /exports/{export_id}":                   {scope: "read", path: func(f fixture) string { return "/exports/" + f.export }, unknown: []string{"/exports/" + gone, "/exports/%2A"}, ok: 200},
		"POST /exports/{export_id}/download-url":     {scope: "read", path: func(f fixture) string { return "/exports/" + f.export + "/download-url" }, unknown: []string{"/exports/" + gone + "/download-url"}, ok: 200, emptyOK: true},
		"GET /exports/{export_id}/download":          {scope: "read", path: func(f fixture) string { return "/exports/" + f.export + "/download" }, unknown: []string{"/exports/" + gone + "/download"}, ok: 200},
		"GET /indexes/{index_id}/automations/export": {scope: "read", path: exporting, unknown: []string{"/indexes/" + gone + "/automations/export"}, ok: 200},
		"PUT /indexes/{index_id}/automations/export": {scope: "write", path: exporting, unknown: []string{"/indexes/" + gone + "/automations/export"}, ok: 200,
			body: func(f fixture) any {
				return obj{"destination_connector_id": f.outbox, "destination_subpath": nil, "enabled": true, "format": "jsonl"}
			},
			wrong: []obj{{"destination_connector_id": 5}, {"enabled": true}, {"destination_connector_id": "c", "destination_subpath": "/x"}, {"destination_connector_id": "c", "format": "x"}, {"destination_connector_id": "c", "paused": "no"}}},
		"POST /indexes/{index_id}/automations/export/pause":  {scope: "write", path: func(f fixture) string { return exporting(f) + "/pause" }, unknown: []string{"/indexes/" + gone + "/automations/export/pause"}, ok: 200, emptyOK: true},
		"POST /indexes/{index_id}/automations/export/resume": {scope: "write", path: func(f fixture) string { return exporting(f) + "/resume" }, unknown: []string{"/indexes/" + gone + "/automations/export/resume"}, ok: 200, emptyOK: true},
		"GET /webhooks/events":                               {scope: "public", path: at("/webhooks/events"), ok: 200},
		"POST /webhooks": {scope: "write", repeats: true, path: at("/webhooks"), ok: 201, body: hookBody,
			wrong: []obj{
				{"url": hookURL, "events": hookEvents}, {"name": "n", "events": hookEvents}, {"name": "n", "url": hookURL},
				{"name": "", "url": hookURL, "events": hookEvents}, {"name": strings.Repeat("x", 101), "url": hookURL, "events": hookEvents},
				{"name": "n", "url": "http://hooks.example.org/", "events": hookEvents}, {"name": "n", "url": "https://127.0.0.1/", "events": hookEvents},
				{"name": "n", "url": "https://u:p@hooks.example.org/", "events": hookEvents}, {"name": "n", "url": 7, "events": hookEvents},
				{"name": "n", "url": hookURL, "events": []string{}}, {"name": "n", "url": hookURL, "events": []string{"video.processed"}},
				{"name": "n", "url": hookURL, "events": "export.ready"}, {"name": "n", "url": hookURL, "events": hookEvents, "index_ids": "idx_1"},
				{"name": "n", "url": hookURL, "events": hookEvents, "index_ids": []string{"a.*"}}, {"name": "n", "url": hookURL, "events": hookEvents, "metadata": []int{1}},
				{"name": "n", "url": hookURL, "events": hookEvents, "metadata": obj{"x": strings.Repeat("x", 20000)}},
			}},
		"GET /webhooks":              {scope: "read", path: at("/webhooks"), ok: 200, lists: true},
		"GET /webhooks/{webhook_id}": {scope: "read", path: func(f fixture) string { return "/webhooks/" + f.webhook }, unknown: []string{"/webhooks/" + gone, "/webhooks/%3E"}, ok: 200},
		"PATCH /webhooks/{webhook_id}": {scope: "write", path: func(f fixture) string { return "/webhooks/" + f.webhook }, unknown: []string{"/webhooks/" + gone}, ok: 200,
			body:  func(fixture) any { return obj{"index_ids": nil, "url": nil, "status": "active"} },
			wrong: []obj{{"status": "disabled"}, {"name": ""}, {"url": "http://x/"}, {"events": []string{}}, {"events": []string{"x"}}, {"metadata": 1}, {"index_ids": 1}, {"unknown": 1}, {"name": nil}}},
		"DELETE /webhooks/{webhook_id}":             {scope: "admin", path: func(f fixture) string { return "/webhooks/" + f.otherWebhook }, unknown: []string{"/webhooks/" + gone}, ok: 200},
		"POST /webhooks/{webhook_id}/rotate-secret": {scope: "write", path: func(f fixture) string { return "/webhooks/" + f.webhook + "/rotate-secret" }, unknown: []string{"/webhooks/" + gone + "/rotate-secret"}, ok: 200, emptyOK: true},
		"POST /webhooks/{webhook_id}/test":          {scope: "write", path: func(f fixture) string { return "/webhooks/" + f.webhook + "/test" }, unknown: []string{"/webhooks/" + gone + "/test"}, ok: 200, emptyOK: true},
		"GET /webhooks/{webhook_id}/deliveries":     {scope: "read", path: func(f fixture) string { return "/webhooks/" + f.webhook + "/deliveries?status=delivered&limit=1" }, unknown: []string{"/webhooks/" + gone + "/deliveries"}, ok: 200, lists: true},
		"GET /webhooks/deliveries/{delivery_id}":    {scope: "read", path: func(f fixture) string { return "/webhooks/deliveries/" + f.delivery }, unknown: []string{"/webhooks/deliveries/" + gone, "/webhooks/deliveries/*"}, ok: 200},
		"POST /webhooks/deliveries/{delivery_id}/retry": {scope: "write", path: func(f fixture) string { return "/webhooks/deliveries/" + f.delivery + "/retry" }, unknown: []string{"/webhooks/deliveries/" + gone + "/retry"}, ok: 400, emptyOK: true,
			fresh: func(w *world, f fixture) string {
				id := w.delivery(f.webhook, event.NewID("evt"), func(d *event.Delivery) { d.State, d.Attempts, d.EndedAt = event.DeliveryFailed, 1, d.CreatedAt })
				return "/webhooks/deliveries/" + id + "/retry"
			}, freshOK: 200},
		"POST /notifications/{connector_id}": {scope: "write", path: func(f fixture) string { return "/notifications/" + f.connector }, unknown: []string{"/notifications/" + gone}, ok: 200, body: func(fixture) any { return obj{"message": obj{}} }},
	}
}

// eachOperation walks the OpenAPI document: a route without a probe fails.
func eachOperation(t *testing.T, w *world, f func(t *testing.T, name string, p probe)) {
	t.Helper()
	known := probes()
	doc := w.do("GET", "//openapi.json", nil, request{key: "-"})
	paths, _ := doc.at("paths").(map[string]any)
	if len(paths) == 0 || doc.str("openapi")[:3] != "3.1" {
		t.Fatalf("no OpenAPI 3.1 document: %.100s", doc.raw)
	}
	for path, methods := range paths {
		for method := range methods.(map[string]any) {
			name := strings.ToUpper(method) + " " + path
			p, ok := known[name]
			if !ok {
				t.Errorf("no probe for %s", name)
				continue
			}
			delete(known, name)
			t.Run(name, func(t *testing.T) { f(t, name, p) })
		}
	}
	for name := range known {
		t.Errorf("no such route: %s", name)
	}
}

// repeated holds an operation against the rules of idempotency keys (contract §5).
func (p probe) repeated(w *world, name string, f fixture) {
	t := w.t
	t.Helper()
	method, _, _ := strings.Cut(name, " ")
	path, ok := p.path(f), p.ok
	send := func(path, key, idempotency string, change obj) answer {
		t.Helper()
		with := request{key: key, header: map[string]string{"Idempotency-Key": idempotency}}
		if p.multi {
			raw, ct := gcsForm(t, account(change), gcsParts...)
			with.raw, with.header["Content-Type"] = raw, ct
		}
		if p.body == nil {
			return w.do(method, path, nil, with)
		}
		body := p.body(f).(obj)
		maps.Copy(body, change)
		return w.do(method, path, body, with)
	}
	replayed := func(a answer) bool { return a.header.Get("Idempotent-Replayed") != "" }
	if method == "GET" || method == "DELETE" || p.never { // the key means nothing here, or nothing is kept under it
		for range 2 {
			if replayed(p.send(w, name, path, f, request{header: map[string]string{"Idempotency-Key": "key-1:a"}})) {
				t.Errorf("%s: a kept answer", name)
			}
		}
		return
	}
	if p.fresh != nil {
		path, ok = p.fresh(w, f), p.freshOK
	}
	if ok >= 300 {
		t.Fatalf("%s: the probe never succeeds: give it fresh", name)
	}
	again := func() string { // a path on which it has not succeeded yet
		if p.fresh != nil {
			return p.fresh(w, f)
		}
		return path
	}
	same := func(what string, x, y answer) {
		t.Helper()
		if x.status != y.status || !bytes.Equal(x.raw, y.raw) {
			t.Errorf("%s: %d %s, then %d %s", what, x.status, x.raw, y.status, y.raw)
		}
	}

	// Replay, and conflict.
	first := send(path, "", " key-1:a ", nil).want(ok)
	second := send(path, "", "key-1:a", nil)
	same("replay", first, second)
	if replayed(first) || !replayed(second) || first.header.Get("X-Request-Id") == second.header.Get("X-Request-Id") {
		t.Errorf("replay: %v, then %v", first.header, second.header)
	}
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	send(path+separator+"other=1", "", "key-1:a", nil).refused(409, "idempotency_request_mismatch")
	if p.body != nil || p.multi {
		send(path, "", "key-1:a", obj{"other": 1}).refused(409, "idempotency_request_mismatch")
	}
	send(path, "-", "key-1:a", nil).refused(401, "authentication_invalid_api_key") // before any replay
	if p.scope != "none" {
		send(path, w.keys["none"], "key-1:a", nil).refused(403, "authorization_insufficient_scope")
	}

	// Only success is kept.
	path = again()
	for _, wrong := range p.wrong {
		w.do(method, path, wrong, request{header: map[string]string{"Idempotency-Key": "key-2"}}).want(422)
	}
	if a := send(path, "", "key-2", nil).want(ok); replayed(a) {
		t.Errorf("%s: a refusal was kept", name)
	}

	// Two at once.
	path = again()
	var both [2]answer
	var wg sync.WaitGroup
	for i := range both {
		wg.Go(func() { both[i] = send(path, "", "key-3", nil) })
	}
	wg.Wait()
	both[0].want(ok)
	same("two at once", both[0], both[1])
	if replayed(both[0]) == replayed(both[1]) {
		t.Errorf("%s: two at once: both had an effect", name)
	}

	if p.repeats {
		return
	}
	// The process dies between the effect and the answer.
	path = again()
	before := send(path, "", "key-4", nil).want(ok)
	plain, _, _ := strings.Cut(path, "?")
	w.crash(method, plain, "key-4")
	after := send(path, "", "key-4", nil)
	if p.usesUp {
		if after.status < 400 || after.status >= 500 || replayed(after) {
			t.Errorf("%s: used up, and after a crash %d %s", name, after.status, after.raw)
		}
		return
	}
	after.want(ok)
	made, _ := before.body.(map[string]any)
	for member, value := range made {
		if strings.HasSuffix(member, "_id") && after.at(member) != value {
			t.Errorf("%s: %s was %v, and after a crash %v", name, member, value, after.at(member))
		}
	}
	if replayed(after) {
		t.Errorf("%s: an answer that was never kept", name)
	}
}

func (p probe) send(w *world, name, path string, f fixture, with request) answer {
	method, _, _ := strings.Cut(name, " ")
	if p.multi {
		raw, ct := gcsForm(w.t, account(nil), gcsParts...)
		with.raw, with.header = raw, map[string]string{"Content-Type": ct}
	}
	if p.stream {
		return w.glimpse(path, with)
	}
	var body any
	if p.body != nil {
		body = p.body(f)
	}
	return w.do(method, path, body, with)
}

// TestEveryRoute holds each operation against the rules that all share.
func TestEveryRoute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	levels := []string{"none", "search", "read", "write", "admin"}
	eachOperation(t, w, func(t *testing.T, name string, p probe) {
		method, _, _ := strings.Cut(name, " ")
		path := p.path(f)
		p.repeated(w, name, f)
		if p.scope == "public" {
			p.send(w, name, path, f, request{key: "-"}).want(p.ok)
			return
		}
		p.send(w, name, path, f, request{key: "-"}).refused(401, "authentication_invalid_api_key")
		p.send(w, name, path, f, request{key: "sk_live_wrong"}).refused(401, "authentication_invalid_api_key")
		allowed := false
		for _, level := range levels {
			allowed = allowed || level == p.scope
			if allowed {
				p.send(w, name, path, f, request{key: w.keys[level]}).want(p.ok)
				continue
			}
			for _, path := range append([]string{path}, p.unknown...) { // before any look-up
				p.send(w, name, path, f, request{key: w.keys[level]}).refused(403, "authorization_insufficient_scope")
			}
		}
		for _, path := range p.unknown {
			a := p.send(w, name, path, f, request{})
			if a.status != 404 || !strings.HasPrefix(a.str("error", "code"), "resource_") {
				t.Errorf("%s: %d %s", path, a.status, a.raw)
			}
		}
		if p.lists {
			a := p.send(w, name, path, f, request{}).want(p.ok)
			list, bare := a.body.([]any)
			if !bare {
				list, _ = a.at("data").([]any)
			}
			if len(list) == 0 {
				t.Errorf("%s: want a list with something in it, got %s", name, a.raw)
			}
		}
		if p.emptyOK {
			w.do(method, path, nil).want(p.ok)
			w.do(method, path, obj{}).want(p.ok)
		}
		if p.body == nil || strings.Contains(name, "notifications") {
			return
		}
		if !p.emptyOK {
			w.do(method, path, nil).refused(422, "validation_error", "is required")
		}
		body := p.body(f).(obj)
		body["nobody_knows_this"], body["NAME"] = obj{"x": []int{1}}, strings.Repeat("x", 1000)
		w.do(method, path, body).want(p.ok)
		for _, wrong := range p.wrong {
			a := w.do(method, path, wrong).refused(422, "validation_error")
			if a.at("error", "details", "fields", 0, "field") == nil || a.at("error", "details", "fields", 0, "message") == nil {
				t.Errorf("%v: %s", wrong, a.raw)
			}
			if strings.Contains(string(a.raw), "expected") || strings.Contains(string(a.raw), "invalid") {
				t.Errorf("%v: not reworded: %s", wrong, a.raw)
			}
		}
		send := func(raw, contentType string) answer {
			return w.do(method, path, nil, request{raw: []byte(raw), header: map[string]string{"Content-Type": contentType}})
		}
		send(`{"name":`, "application/json").refused(400, "request_malformed")
		send(`[1]`, "application/json").refused(400, "request_malformed")
		send(`"x"`, "").refused(400, "request_malformed")
		send(`{}`, "text/plain").refused(400, "request_malformed", "application/json")
		send(`{"name":"`+strings.Repeat("x", 2<<20)+`"}`, "application/json").refused(413, "request_too_large", "1048576")
	})
}

func TestNoSuchRoute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, path := range []string{"//nowhere", "/nowhere", "/indexes/", "/connectors//test", "//api/v2/../v2/indexes", "//api//v2/indexes", "/indexes/%2e%2e/x/y"} {
		w.do("GET", path, nil).refused(404, "route_not_found")
	}
	for method, path := range map[string]string{"DELETE": "/indexes", "PATCH": "/indexes", "GET": "/connectors/x/test", "OPTIONS": "/indexes"} {
		a := w.do(method, path, nil).refused(405, "method_not_allowed")
		if a.header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", method, path)
		}
	}
	r, err := http.NewRequest(http.MethodGet, "/healthz", nil)
	must(t, err)
	rec := httptest.NewRecorder()
	w.admin.Handler().ServeHTTP(rec, r)
	if rec.Body.String() != "ops /healthz" {
		t.Errorf("ops: %q", rec.Body)
	}
}
