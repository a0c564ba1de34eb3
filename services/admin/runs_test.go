package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// stored is what lies under a subject of a stream, decoded.
func stored[T any](w *world, stream string, tokens ...string) (found []T) {
	w.t.Helper()
	for m, err := range w.bus.Scan(w.t.Context(), stream, w.bus.Subject(tokens...), 0) {
		must(w.t, err)
		var v T
		must(w.t, json.Unmarshal(m.Data, &v))
		found = append(found, v)
	}
	return found
}

// media puts n media into an index and returns their ids, oldest first.
func (w *world) media(index string, n int) []string {
	w.t.Helper()
	ids := make([]string, n)
	entries := make([]store.Entry, n)
	for i := range n {
		id := event.NewMediumID(index, "conn", fmt.Sprintf("%d.mp4", i), "v", "")
		ids[i] = id.String()
		entries[i].Medium = event.Medium{ID: id, Index: index, Connector: "conn", Path: fmt.Sprintf("%d.mp4", i), Version: "v", State: event.MediumImported,
			MediaType: []string{"video", "audio", "image"}[i%3], Seconds: 2, URI: "gs://b/k", CreatedAt: time.Now().UTC()}
	}
	must(w.t, errors.Join(w.ledger.Write(w.t.Context(), entries)...))
	return ids
}

func (w *world) report(run, video string, state event.ReportState, result string) {
	w.t.Helper()
	data, err := json.Marshal(event.Report{Run: run, Video: video, State: state, Result: json.RawMessage(result), ReportedAt: time.Now()})
	must(w.t, err)
	_, err = w.bus.Publish(w.t.Context(), bus.Message{Subject: w.bus.Subject("run", "report", run, video), Data: data})
	must(w.t, err)
}

func (w *world) index(name string) string {
	w.t.Helper()
	return w.do("POST", "/indexes", obj{"name": name}).want(201).str("index_id")
}

func (w *world) prompt(name string) string {
	w.t.Helper()
	return w.do("POST", "/prompts", obj{"name": name, "prompt_text": "Say what is there.", "json_schema": json.RawMessage(schema)}).want(201).str("prompt_id")
}

// A run is asked for durably, with exactly the media that are meant, and on record when it is answered.
func TestExecute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	index, other, prompt := w.index("a"), w.index("b"), w.prompt("Log")
	mine, theirs := w.media(index, 4), w.media(other, 1)
	execute := func(target obj, change ...obj) answer {
		body := obj{"prompt_id": prompt, "target": target}
		for _, c := range change {
			body = merged(body, c)
		}
		return w.do("POST", "/prompt-runs/execute", body)
	}
	wanted := func(run string) event.RunWanted {
		t.Helper()
		found := stored[event.RunWanted](w, topology.Runs, "run", "wanted", run)
		if len(found) != 1 {
			t.Fatalf("%d requests of %s", len(found), run)
		}
		return found[0]
	}

	a := execute(obj{"type": "videos", "video_ids": []string{mine[2], mine[0], mine[2]}, "index_id": index},
		obj{"video_segmentation_type": "fixed", "video_segment_duration": 30, "audio_segment_duration": 999, "processing_model": "m<1>", "enable_transcription": false}).want(202)
	if a.str("status") != "pending" || a.at("total_videos") != 1.0 || a.at("total_images") != 1.0 || a.at("total_video_seconds") != 4.0 ||
		a.str("run_context", "type") != "videos" || a.str("run_context", "index_id") != index || a.str("run_context", "video_ids", 1) != mine[0] ||
		a.str("prompt_name") != "Log" || a.at("video_segment_duration") != 30.0 || a.at("audio_segment_duration") != nil || a.str("processing_model") != "m<1>" || a.at("enable_transcription") != false {
		t.Errorf("answer: %s", a.raw)
	}
	if got := w.do("GET", "/prompt-runs/"+a.str("run_id"), nil).want(200); got.str("status") != "pending" || got.at("total_images") != 1.0 {
		t.Errorf("at once afterwards: %s", got.raw)
	}
	req := wanted(a.str("run_id"))
	if !slices.Equal(req.Videos, []string{mine[2], mine[0]}) || req.Index != index || !strings.Contains(string(req.Preset), `"prompt_id":"`+prompt+`"`) {
		t.Errorf("request: %+v", req)
	}

	a = execute(obj{"type": "index", "index_id": index, "video_ids": []string{"ignored"}}).want(202)
	state, err := w.bus.State(t.Context(), topology.Media)
	must(t, err)
	if req := wanted(a.str("run_id")); req.Videos != nil || req.Index != index || req.AsOf != state.LastSeq || a.str("run_context", "type") != "index" {
		t.Errorf("on an index: %+v\n%s", req, a.raw)
	}
	a = execute(obj{"type": "videos", "video_ids": []string{mine[0], theirs[0]}}).want(202)
	if req := wanted(a.str("run_id")); req.Index != "" || a.at("run_context", "index_id") != nil {
		t.Errorf("of several indexes: %+v\n%s", req, a.raw)
	}

	before := len(stored[event.RunWanted](w, topology.Runs, "run", "wanted", "*"))
	execute(obj{"type": "videos", "video_ids": []string{mine[0], theirs[0]}, "index_id": index}).refused(422, "validation_error", "target.video_ids", theirs[0])
	execute(obj{"type": "videos", "video_ids": []string{mine[0], strings.TrimPrefix(noVideo, "/videos/")}}).refused(404, "resource_video_not_found")
	execute(obj{"type": "videos", "video_ids": []string{"*"}}).refused(404, "resource_video_not_found")
	execute(obj{"type": "index", "index_id": gone}).refused(404, "resource_index_not_found")
	execute(obj{"type": "index", "index_id": w.index("empty")}).refused(422, "validation_error", "target.index_id", "none")
	execute(obj{"type": "index", "index_id": index}, obj{"prompt_id": gone}).refused(404, "resource_prompt_not_found")
	e := w.do("POST", "/prompt-runs/estimate", obj{"prompt_id": prompt, "target": obj{"type": "videos", "video_ids": mine}}, request{key: w.keys["read"]}).want(200)
	if e.at("estimated_mt") != 0.0 || e.at("available") != false || e.at("media_count") != 4.0 || e.at("sufficient_balance") != true {
		t.Errorf("estimate: %s", e.raw)
	}
	w.do("POST", "/prompt-runs/estimate", obj{"prompt_id": gone, "target": obj{"type": "videos", "video_ids": mine}}).refused(404, "resource_prompt_not_found")
	if n := len(stored[event.RunWanted](w, topology.Runs, "run", "wanted", "*")); n != before {
		t.Errorf("%d runs were asked for in vain", n-before)
	}
}

// The run of a job can be had again, with its own settings or others, and for a job that had none.
func TestRunOfAJobAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/import-jobs/" + f.job + "/prompt-run"
	a := w.do("POST", path, obj{"prompt_preset": obj{"prompt_id": f.prompt, "enable_transcription": false}}).want(202)
	b := w.do("POST", path, obj{"prompt_preset": obj{"prompt_id": f.prompt}}).want(202)
	if a.str("run_id") == b.str("run_id") || a.str("run_id") == f.run || a.str("job_id") != f.job || a.at("enable_transcription") != false {
		t.Errorf("%s", a.raw)
	}
	req := stored[event.RunWanted](w, topology.Runs, "run", "wanted", a.str("run_id"))
	if len(req) != 1 || req[0].Job != f.job || req[0].Index != f.index {
		t.Errorf("%+v", req)
	}
	w.do("POST", path, obj{"prompt_preset": obj{"prompt_id": gone}}).refused(404, "resource_prompt_not_found")
	change := func(c func(*store.Job)) {
		_, _, err := w.jobs.Modify(t.Context(), f.job, func(j *store.Job) error { c(j); return nil })
		must(t, err)
	}
	change(func(j *store.Job) {
		j.Preset = json.RawMessage(`{"prompt_id":"` + f.prompt + `","processing_model":"m"}`)
	})
	if a := w.do("POST", path, nil).want(202); a.str("processing_model") != "m" {
		t.Errorf("its own preset: %s", a.raw)
	}
	change(func(j *store.Job) { j.Report = "" })
	w.do("POST", path, nil).refused(400, "import_job_not_runnable", "moment")
	change(func(j *store.Job) { j.Status = store.JobImporting })
	w.do("POST", path, nil).refused(400, "import_job_not_runnable", "importing")
	change(func(j *store.Job) { j.Status, j.Report, j.Progress.Imported = store.JobCompleted, "report", 0 })
	w.do("POST", path, nil).refused(400, "import_job_not_runnable", "nothing")
}

func TestCancelRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, status := range []store.RunStatus{store.RunPending, store.RunProcessing, store.RunCompleted, store.RunCompletedWithFailures, store.RunFailed} {
		id := "run_" + string(status)
		must(t, w.runs.Put(t.Context(), id, store.Run{ID: id, Prompt: "prm_1", Status: status, CreatedAt: time.Now(), Tallies: map[string]store.Tally{"video": {Total: 5, Completed: 2, Failed: 1}}}))
		a := w.do("POST", "/prompt-runs/"+id+"/cancel", obj{})
		if status.Terminal() {
			a.refused(400, "prompt_run_not_cancellable", string(status))
			continue
		}
		a.want(200)
		if a.str("status") != "cancelled" || a.at("cancelled_videos") != 2.0 || a.str("stop_state", "requested_at") == "" || a.str("stop_state", "requested_by") == "" {
			t.Errorf("%s: %s", status, a.raw)
		}
		again := w.do("POST", "/prompt-runs/"+id+"/cancel", nil).want(200)
		if string(again.raw) != string(a.raw) {
			t.Errorf("again: %s", again.raw)
		}
	}
	var both sync.WaitGroup
	must(t, w.runs.Put(t.Context(), "run_x", store.Run{ID: "run_x", Prompt: "prm_1", Status: store.RunProcessing}))
	for range 8 {
		both.Go(func() { w.do("POST", "/prompt-runs/run_x/cancel", nil).want(200) })
	}
	both.Wait()
}

// Two shapes of one list: a bare array with filters, and pages by index that meet each run once.
func TestRunLists(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	index, other := w.index("a"), w.index("b")
	at := time.Now().UTC().Truncate(time.Millisecond)
	var mine []string
	for i := range 7 {
		r := store.Run{ID: fmt.Sprint("run_", i), Index: index, Prompt: "prm_1", Status: store.RunCompleted, CreatedAt: at.Add(time.Duration(i/3) * time.Second)} // some at one instant
		if i == 5 {
			r.Index, r.Status = other, store.RunFailed
		} else {
			mine = append(mine, r.ID)
		}
		must(t, w.runs.Put(t.Context(), r.ID, r))
	}
	slices.Reverse(mine)
	path := "/indexes/" + index + "/prompt-runs"
	for _, limit := range []int{1, 2, 3, 6, 50} {
		var seen []string
		for cursor, done := "", false; !done; {
			p := w.do("GET", fmt.Sprintf("%s?limit=%d&cursor=%s", path, limit, cursor), nil).want(200)
			for _, d := range p.at("data").([]any) {
				seen = append(seen, d.(map[string]any)["run_id"].(string))
			}
			next := p.str("pagination", "next_cursor")
			if more, _ := p.at("pagination", "has_more").(bool); more != (next != "") || more && next == cursor {
				t.Fatalf("page: %s", p.raw)
			}
			cursor, done = next, next == ""
		}
		if !slices.Equal(seen, mine) {
			t.Errorf("by %d: %v, want %v", limit, seen, mine)
		}
	}
	first := w.do("GET", path+"?limit=1", nil).want(200)
	must(t, w.runs.Put(t.Context(), "run_new", store.Run{ID: "run_new", Index: index, Prompt: "prm_1", Status: store.RunPending, CreatedAt: at.Add(time.Hour)}))
	if p := w.do("GET", path+"?limit=1&cursor="+first.str("pagination", "next_cursor"), nil).want(200); p.str("data", 0, "run_id") != mine[1] {
		t.Errorf("a new run moved the pages: %s", p.raw)
	}
	w.do("GET", "/indexes/"+other+"/prompt-runs?cursor="+first.str("pagination", "next_cursor"), nil).refused(422, "validation_error", "cursor")
	for _, query := range []string{"limit=0", "limit=101", "limit=x", "cursor=%00", "cursor=" + strings.Repeat("a", 600)} {
		w.do("GET", path+"?"+query, nil).refused(422, "validation_error")
	}
	for query, want := range map[string]int{"": 8, "?limit=3": 3, "?index_id=" + other: 1, "?status=FAILED": 1, "?status=completed&index_id=" + other: 0, "?index_id=" + gone: 0} {
		if a := w.do("GET", "/prompt-runs"+query, nil).want(200); len(a.body.([]any)) != want {
			t.Errorf("%s: %s", query, a.raw)
		}
	}
	w.do("GET", "/prompt-runs?status=queued", nil).refused(422, "validation_error", "status", "completed_with_failures")
	w.do("GET", "/prompt-runs?limit=201", nil).refused(422, "validation_error", "limit")
}

// Results of a run, medium by medium and page by page, and what failed in it.
func TestResultsOfARun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	index, prompt := w.index("a"), w.prompt("Log")
	ids := w.media(index, 7)
	var media []event.RunMedium
	for _, id := range ids[:6] {
		media = append(media, event.RunMedium{Video: id})
	}
	must(t, store.WriteLines(t.Context(), w.documents, "list", seq(media)))
	run := store.Run{ID: "run_1", Index: index, Prompt: prompt, Media: "list", Count: 6, Status: store.RunProcessing, CreatedAt: time.Now()}
	must(t, w.runs.Put(t.Context(), run.ID, run))
	for i, id := range ids[:4] {
		w.report(run.ID, id, event.Successful, fmt.Sprintf(`{"n":%d}`, i))
	}
	w.report(run.ID, ids[3], event.Unsuccessful, "")
	w.report(run.ID, ids[4], event.Processing, "")
	w.report("run_2", ids[5], event.Unsuccessful, "")

	for i, want := range []string{"completed", "completed", "completed", "failed", "processing", "pending"} {
		a := w.do("GET", "/prompt-runs/run_1/videos/"+ids[i]+"/video-result", nil).want(200)
		if a.str("status") != want || a.str("result_type") != "video" || a.str("video_id") != ids[i] || (want == "completed") != (a.str("metadata_text") == fmt.Sprintf(`{"n":%d}`, i)) {
			t.Errorf("medium %d: %s", i, a.raw)
		}
	}
	w.do("GET", "/prompt-runs/run_1/videos/"+ids[6]+"/video-result", nil).refused(404, "resource_video_not_found", "run_1")
	w.do("GET", "/prompt-runs/run_1/videos/*/video-result", nil).refused(404, "resource_video_not_found")

	m := w.do("GET", "/prompt-runs/run_1/failed-segments", nil).want(200)
	if m.at("videos_with_failures") != 1.0 || m.at("operation_counts", "field_extraction") != 1.0 || m.str("videos", 0, "video_id") != ids[3] ||
		m.str("videos", 0, "segments", 0, "error_message") != "failed" || m.at("truncated") != false {
		t.Errorf("manifest: %s", m.raw)
	}
	if m := w.do("GET", "/prompt-runs/run_1/llm-calls", nil).want(200); string(m.raw) != "[]\n" {
		t.Errorf("calls: %s", m.raw)
	}

	path := "/workflow/runs/run_1/results"
	for _, level := range []string{"segment", "video"} {
		var seen []string
		for cursor, done := "", false; !done; {
			p := w.do("GET", path+"?limit=3&result_level="+level+"&unfiltered_cursor="+cursor, nil).want(200)
			for _, d := range p.at("unfiltered", "data").([]any) {
				item := d.(map[string]any)
				seen = append(seen, item["video_id"].(string))
				if item["result_type"] != level {
					t.Errorf("%s: %v", level, item)
				}
			}
			cursor = p.str("unfiltered", "pagination", "next_cursor")
			done = cursor == ""
		}
		if !slices.Equal(seen, ids[:4]) {
			t.Errorf("%s: %v, want %v", level, seen, ids[:4])
		}
	}
	page := w.do("GET", path+"?limit=1", nil).want(200)
	w.do("GET", path+"?limit=1&result_level=video&unfiltered_cursor="+page.str("unfiltered", "pagination", "next_cursor"), nil).refused(422, "validation_error", "cursor")
	if one := w.do("GET", path+"?video_id="+ids[1], nil).want(200); one.str("unfiltered", "data", 0, "metadata_text") != `{"n":1}` || one.at("unfiltered", "data", 1) != nil || one.at("filtered") != nil {
		t.Errorf("one: %s", one.raw)
	}
	w.do("GET", path+"?video_id=%3E", nil).refused(422, "validation_error", "video_id")
	w.do("GET", path+"?limit=51", nil).refused(422, "validation_error", "limit")
	w.do("GET", path+"?filtered_cursor=x", nil).refused(422, "validation_error", "cursor")
}

// A report that nobody can read, from a worker in whatever language, was buried by whoever counts them: media and runs are
// shown as if it had not been sent.
func TestMalformedReport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	index, prompt := w.index("a"), w.prompt("Log")
	ids := w.media(index, 3)
	must(t, store.WriteLines(t.Context(), w.documents, "list", seq([]event.RunMedium{{Video: ids[0]}, {Video: ids[1]}, {Video: ids[2]}})))
	must(t, w.runs.Put(t.Context(), "run_1", store.Run{
		ID: "run_1", Index: index, Prompt: prompt, Media: "list", Count: 3, Status: store.RunProcessing, CreatedAt: time.Now(),
	}))
	for i, said := range []string{"rubbish", `{"state":"failed","video_id":"` + ids[0] + `"}`, `{"state":"failed"}`} {
		_, err := w.bus.Publish(t.Context(), bus.Message{Subject: w.bus.Subject("run", "report", "run_1", ids[i]), Data: []byte(said)})
		must(t, err)
	}
	for i, want := range []string{"pending", "pending", "failed"} {
		if a := w.do("GET", "/prompt-runs/run_1/videos/"+ids[i]+"/video-result", nil).want(200); a.str("status") != want {
			t.Errorf("medium %d: %s", i, a.raw)
		}
		results := w.do("GET", "/prompt-runs/run_1/results?video_id="+ids[i], nil).want(200)
		if said := len(results.at("data").([]any)) > 0; said != (want == "failed") {
			t.Errorf("medium %d: %s", i, results.raw)
		}
	}
	if l := w.do("GET", "/indexes/"+index+"/videos", nil).want(200); len(l.at("data").([]any)) != 3 {
		t.Errorf("media: %s", l.raw)
	}
	if m := w.do("GET", "/prompt-runs/run_1/failed-segments", nil).want(200); m.at("failed_segments") != 1.0 || m.str("videos", 0, "video_id") != ids[2] ||
		m.str("videos", 0, "segments", 0, "failure_message") == "" || m.str("videos", 0, "segments", 0, "failed_operations", 0) != "field_extraction" {
		t.Errorf("manifest: %s", m.raw)
	}
	if p := w.do("GET", "/workflow/runs/run_1/results", nil).want(200); p.str("unfiltered", "data", 0, "video_id") != ids[2] || p.at("unfiltered", "data", 1) != nil {
		t.Errorf("results: %s", p.raw)
	}
}

// A medium is shown with the run that followed its import and with those that somebody asked for; its list has also those
// that have not come to it yet.
func TestMediaAndTheirRuns(t *testing.T) {
	t.Parallel()
	for _, following := range []bool{false, true} {
		t.Run(fmt.Sprint("following ", following), func(t *testing.T) {
			w := newWorld(t)
			if following {
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- w.admin.Run(ctx) }()
				defer func() { stop(); must(t, <-ended) }()
				eventually(t, "ready", func() bool { return w.admin.Ready() == nil })
			}
			f := w.fixture()
			index := w.index("other")
			ids := w.media(index, 2)
			must(t, store.WriteLines(t.Context(), w.documents, "both", seq([]event.RunMedium{{Video: f.video}, {Video: ids[0]}})))
			now := time.Now().UTC()
			for i, r := range []store.Run{
				{ID: "run_asked", Index: f.index, Media: "both", Status: store.RunProcessing},
				{ID: "run_of_several", Media: "both", Status: store.RunCancelled},
				{ID: "run_other", Index: index, Media: "both", Status: store.RunProcessing}, // claims an index that is not its own
				{ID: "run_unmade", Index: f.index, Status: store.RunPending},
			} {
				r.Prompt, r.CreatedAt = f.prompt, now.Add(time.Duration(i+1)*time.Second)
				must(t, w.runs.Put(t.Context(), r.ID, r))
			}
			runs := func(video string) (list []string) {
				a := w.do("GET", "/videos/"+video+"/prompt-runs", nil).want(200)
				for _, r := range a.body.([]any) {
					list = append(list, r.(map[string]any)["run_id"].(string))
				}
				return list
			}
			eventually(t, "listed", func() bool { return slices.Equal(runs(f.video), []string{"run_of_several", "run_asked", f.run}) })
			eventually(t, "listed", func() bool { return slices.Equal(runs(ids[0]), []string{"run_other", "run_of_several"}) })
			if got := runs(ids[1]); len(got) != 0 {
				t.Errorf("of no run: %v", got)
			}
			if a := w.do("GET", "/videos/"+f.video+"/prompt-runs?limit=1", nil).want(200); len(a.body.([]any)) != 1 || a.str(0, "run_id") != "run_of_several" {
				t.Errorf("limit: %s", a.raw)
			}
			w.report("run_asked", f.video, event.Processing, "")
			v := w.do("GET", "/videos/"+f.video, nil).want(200)
			if v.str("status") != "processing" || v.str("processing_status", 0, "run_id") != f.run || v.str("processing_status", 1, "run_id") != "run_asked" || v.at("processing_status", 2) != nil {
				t.Errorf("%s", v.raw)
			}
			w.report("run_asked", f.video, event.Unsuccessful, "")
			page := w.do("GET", "/indexes/"+f.index+"/videos", nil).want(200)
			if page.str("data", 0, "status") != "failed" || page.at("data", 0, "processing_status", 1, "failed_segments") != 1.0 {
				t.Errorf("%s", page.raw)
			}
			s := w.do("POST", "/videos/batch/status", obj{"video_ids": []string{ids[1], "nonsense", f.video, f.goneVideo, f.video}}).want(200)
			if s.str(0, "video_id") != ids[1] || s.str(0, "status") != "not_processed" || s.str(1, "video_id") != f.video || s.str(1, "status") != "failed" || s.at(2) != nil {
				t.Errorf("%s", s.raw)
			}
			must(t, w.runs.Delete(t.Context(), "run_asked"))
			eventually(t, "forgotten", func() bool { return w.do("GET", "/videos/"+f.video, nil).str("status") == "processed" })
		})
	}
}

// The workflow façade starts a run with a prompt that is there or with words of the moment, in either client's spelling.
func TestWorkflow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	index, prompt := w.index("a"), w.prompt("Log")
	ids := w.media(index, 2)
	a := w.do("POST", "/workflow/process", obj{"prompt_instruction": "Say what <can> be seen here, and by whom, and when, and why it matters.", "video_ids": ids,
		"segmentation_mode": "fixed", "fixed_segment_duration_seconds": 20, "advanced_transcription": false, "create_image_embeddings": nil}).want(202)
	if a.at("prompt_created_inline") != true || a.str("run", "prompt_id") != a.str("prompt", "prompt_id") || a.at("run", "video_segment_duration") != 20.0 ||
		a.str("run", "audio_segmentation_type") != "fixed" || a.at("run", "enable_transcription") != false || a.at("run", "enable_image_embedding") != true {
		t.Errorf("%s", a.raw)
	}
	p := w.do("GET", "/prompts/"+a.str("prompt", "prompt_id"), nil).want(200)
	if !strings.HasPrefix(p.str("name"), "Inline: Say what <can>") || p.str("json_schema", "type") != "object" {
		t.Errorf("%s", p.raw)
	}
	for _, path := range []string{a.str("status_url"), a.str("results_url")} {
		w.do("GET", "/"+path, nil).want(200)
	}
	a = w.do("POST", "/workflow/process", obj{"prompt_id": prompt, "index_id": index, "segmentation_mode": "smart"}).want(202)
	if a.at("prompt_created_inline") != false || a.str("run", "run_context", "type") != "index" || a.str("run", "audio_segmentation_type") != "content_aware" {
		t.Errorf("%s", a.raw)
	}
	a = w.do("POST", "/workflow/process", obj{"prompt_id": prompt, "video_ids": ids[0], "segmentation_mode": "fixed"}).want(202) // as the Python client does
	if a.at("run", "total_videos") != 1.0 || a.at("run", "video_segment_duration") != 10.0 || a.at("run", "audio_segment_duration") != 10.0 {
		t.Errorf("%s", a.raw)
	}
	if a = w.do("POST", "/workflow/process", obj{"prompt_id": prompt, "index_name": "a"}).want(202); a.str("run", "run_context", "index_id") != index {
		t.Errorf("%s", a.raw)
	}
	w.do("POST", "/workflow/process", obj{"prompt_id": prompt, "index_name": "nobody's"}).refused(404, "resource_index_not_found", "nobody's")
	w.do("POST", "/workflow/process", obj{"prompt_id": prompt, "index_name": "a", "index_id": index}).refused(422, "validation_error", "index_name")
	w.index("a")
	w.do("POST", "/workflow/process", obj{"prompt_id": prompt, "index_name": "a"}).refused(422, "validation_error", "index_name", "index_id")
	before := len(w.do("GET", "/prompts", nil).at("prompts").([]any))
	w.do("POST", "/workflow/process", obj{"prompt_instruction": "0123456789", "index_id": gone}).refused(404, "resource_index_not_found")
	w.do("POST", "/workflow/process", obj{"prompt_id": gone, "index_id": index}).refused(404, "resource_prompt_not_found")
	w.do("POST", "/workflow/process", obj{"prompt_instruction": "0123456789"}).refused(422, "validation_error", "playground")
	if n := len(w.do("GET", "/prompts", nil).at("prompts").([]any)); n != before {
		t.Errorf("%d prompts were left behind", n-before)
	}
}

// What is no part of this product is not found, whatever else has the path.
func TestOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, path := range []string{"/videos", "/videos/upload", "/videos/vid_1/process", "/prompts/generate"} {
		w.do("POST", path, obj{}).refused(404, "feature_not_available")
		w.do("POST", path, obj{}, request{key: "-"}).refused(401, "authentication_invalid_api_key")
	}
	for _, path := range []string{"/workflow/upload", "/workflow/attachments", "/search", "/billing/balance"} {
		w.do("POST", path, obj{}).refused(404, "route_not_found")
	}
}
