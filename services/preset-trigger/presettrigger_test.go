package presettrigger

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/control"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

func dispatched(r store.Run) bool { return r.Dispatched }
func settled(r store.Run) bool    { return r.Settled }

func TestDecide(t *testing.T) {
	done := store.Job{
		Status: store.JobCompleted, Settled: true, Report: "r", Preset: json.RawMessage(`{"prompt_id":"p"}`),
		Progress: store.Progress{Imported: 1},
	}
	for name, c := range map[string]struct {
		change func(*store.Job)
		want   decision
	}{
		"completed":        {func(*store.Job) {}, create},
		"cancelled":        {func(j *store.Job) { j.Status = store.JobCancelled }, skipStatus},
		"failed":           {func(j *store.Job) { j.Status = store.JobFailed }, skipStatus},
		"no preset":        {func(j *store.Job) { j.Preset = nil }, skipPreset},
		"null preset":      {func(j *store.Job) { j.Preset = json.RawMessage(" null ") }, skipPreset},
		"nothing imported": {func(j *store.Job) { j.Progress.Imported = 0 }, skipEmpty},
		"not ended":        {func(j *store.Job) { j.Status = store.JobImporting }, wait},
		"not settled yet":  {func(j *store.Job) { j.Settled = false }, create},
		"no report":        {func(j *store.Job) { j.Report = "" }, wait},
	} {
		j := done
		c.change(&j)
		if got := decide(j); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// The run has exactly the media the job imported, in the order of its report, and is published soon.
func TestRunOfJob(t *testing.T) {
	w := newWorld(t)
	const n = 2000
	job := w.settled("job_1", n)
	w.start("one")
	begin := time.Now()
	w.announce(job)
	run := w.await(event.RunOfJob(job.ID), dispatched)
	t.Logf("a run of %d media after %s", n, time.Since(begin))

	if run.Job != job.ID || run.Index != index || run.Prompt != prompt || run.PromptName != "Log" || run.Status != store.RunPending {
		t.Errorf("record: %+v", run)
	}
	if run.Count != n || run.Seconds != 2*n || run.Tallies["video"].Total != n-n/4 || run.Tallies["audio"].Total != n/4 {
		t.Errorf("counts: %d, %v, %v", run.Count, run.Seconds, run.Tallies)
	}
	media := w.mediaOf(run)
	if len(media) != n {
		t.Fatalf("%d media", len(media))
	}
	for i, m := range media {
		_, want := imported(job.ID, i)
		if m.Video != want.ID.String() || m.URI != want.URI || m.MediaType != want.MediaType || m.Seconds != 2 {
			t.Fatalf("medium %d is %+v", i, m)
		}
	}
	if media[1].Title != "clip 00001.mp4" {
		t.Errorf("title %q", media[1].Title)
	}
	asked := w.stored(topology.Runs, "run", "requested", prompt)
	if len(asked) != 1 {
		t.Fatalf("%d requests", len(asked))
	}
	var req event.RunRequested
	must(t, json.Unmarshal(asked[0].Data, &req))
	if req.Run != run.ID || req.MediaCount != n || len(req.Media) != 0 || req.MediaObject != run.Media || req.Prompt.Text != "What happens?" {
		t.Errorf("request: %+v", req)
	}
}

func TestSmallRunsListTheirMedia(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	w.announce(w.settled("job_1", 3))
	w.await(event.RunOfJob("job_1"), dispatched)
	var req event.RunRequested
	must(t, json.Unmarshal(w.stored(topology.Runs, "run", "requested", prompt)[0].Data, &req))
	if len(req.Media) != 3 {
		t.Errorf("request: %+v", req)
	}
}

// Events that come again, on two instances, make one run and one request.
func TestOneRunPerJob(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	w.start("two")
	job := w.settled("job_1", 20)
	for range 10 {
		w.announce(job)
	}
	w.await(event.RunOfJob(job.ID), dispatched)
	w.handled()
	if n := len(w.stored(topology.Runs, "run", "requested", "*")); n != 1 {
		t.Errorf("%d requests", n)
	}
	if media := w.mediaOf(w.await(event.RunOfJob(job.ID), dispatched)); len(media) != 20 {
		t.Errorf("%d media", len(media))
	}
}

// The broker forgets in time that it had an event. One that comes again changes nothing about a run that has ended.
func TestEventAgainAfterTheRun(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	job := w.settled("job_1", 2)
	w.announce(job)
	run := w.await(event.RunOfJob(job.ID), dispatched)
	for _, m := range w.mediaOf(run) {
		w.report(run.ID, m.Video, event.Successful)
	}
	ended := w.await(run.ID, settled)
	p, err := New(Config{}, w.env)
	must(t, err)
	must(t, p.open(t.Context()))
	must(t, p.jobEnded(t.Context(), event.JobEvent{Job: job.ID}, &control.Message{Stored: time.Now()}))
	now, _, err := w.records.Get(t.Context(), run.ID)
	must(t, err)
	if !reflect.DeepEqual(now, ended) {
		t.Errorf("the run is now %+v, was %+v", now, ended)
	}
}

func TestNoRun(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	for _, job := range []store.Job{
		w.settled("job_cancelled", 2, func(j *store.Job) { j.Status = store.JobCancelled }),
		w.settled("job_failed", 2, func(j *store.Job) { j.Status = store.JobFailed }),
		w.settled("job_empty", 0),
		w.settled("job_import_only", 2, func(j *store.Job) { j.Preset = json.RawMessage("null") }),
		w.settled("job_lied", 0, func(j *store.Job) { j.Progress.Imported = 5 }), // its report lists none
	} {
		w.announce(job)
	}
	w.handled()
	for r, err := range w.records.All(t.Context()) {
		t.Errorf("a run of %s: %+v, %v", r.Job, r, err)
	}
	if n := len(w.stored(topology.DeadLetters, "dead", "*", "*")); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestWaitsForTheReport(t *testing.T) {
	w := newWorld(t)
	p, _ := w.start("one")
	report := ""
	job := w.settled("job_1", 3, func(j *store.Job) { report, j.Report = j.Report, "" })
	w.announce(job)
	c, err := w.bus.Bind(t.Context(), w.bus.JetStream(), topology.PresetTriggerJobs)
	must(t, err)
	w.eventually(func() bool {
		info, err := c.Info(t.Context())
		must(t, err)
		return info.NumAckPending == 1
	})
	var later *bus.RetryError
	if _, _, err := p.lookAt(t.Context(), job.ID, 0); !errors.As(err, &later) {
		t.Errorf("a job without a report: %v", err)
	}
	if _, _, err := w.records.Get(t.Context(), event.RunOfJob(job.ID)); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("a run before the report: %v", err)
	}
	job.Report = report
	must(t, w.jobs.Put(t.Context(), job.ID, job))
	w.await(event.RunOfJob(job.ID), dispatched)
}

func TestEventWithoutJobIsDead(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	w.announce(store.Job{ID: "job_none"})
	w.handled()
	if n := len(w.stored(topology.DeadLetters, "dead", "preset-trigger", topology.PresetTriggerJobs)); n != 1 {
		t.Errorf("%d dead letters", n)
	}
}

// A crash between any two steps is repaired by the same event or by the sweep.
func TestCrashBetweenSteps(t *testing.T) {
	request := func(p *PresetTrigger, w *world, job store.Job) Request {
		return Request{ID: event.RunOfJob(job.ID), Job: job.ID, Index: job.Index, Preset: job.Preset, Media: p.imported(w.Context(), job)}
	}
	for name, before := range map[string]func(p *PresetTrigger, w *world, job store.Job){
		"half a media list": func(_ *PresetTrigger, w *world, job store.Job) {
			must(w, store.WriteLines(w.Context(), w.docs, mediaDocument(event.RunOfJob(job.ID)), all([]event.RunMedium{{Video: "vid_wrong"}})))
		},
		"record written": func(p *PresetTrigger, w *world, job store.Job) {
			_, err := p.runs.Create(w.Context(), request(p, w, job))
			must(w, err)
		},
		"request published": func(p *PresetTrigger, w *world, job store.Job) {
			run, err := p.runs.Create(w.Context(), request(p, w, job))
			must(w, err)
			msg, err := p.runs.request(w.Context(), run, store.Prompt{ID: prompt})
			must(w, err)
			_, err = w.bus.Publish(w.Context(), msg)
			must(w, err)
		},
	} {
		for repair, redeliver := range map[string]bool{"redelivery": true, "sweep": false} {
			if name == "half a media list" && !redeliver {
				continue // there is no run yet that a sweep could find
			}
			t.Run(name+"/"+repair, func(t *testing.T) {
				w := newWorld(t)
				p, err := New(Config{}, w.env)
				must(t, err)
				must(t, p.open(t.Context()))
				job := w.settled("job_1", 5)
				before(p, w, job)
				if redeliver {
					must(t, p.jobEnded(t.Context(), event.JobEvent{Job: job.ID}, &control.Message{Stored: time.Now()}))
				} else {
					w.start("one")
				}
				run := w.await(event.RunOfJob(job.ID), dispatched)
				if media := w.mediaOf(run); len(media) != 5 || media[0].Video == "vid_wrong" {
					t.Errorf("media: %+v", media)
				}
				if n := len(w.stored(topology.Runs, "run", "requested", prompt)); n != 1 {
					t.Errorf("%d requests", n)
				}
			})
		}
	}
}

// A run whose prompt is gone ends as failed, and says so.
func TestPromptGone(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	must(t, w.prompts.Delete(t.Context(), prompt))
	w.announce(w.settled("job_1", 2))
	run := w.await(event.RunOfJob("job_1"), settled)
	if run.Status != store.RunFailed || run.Error == "" || run.EndedAt.IsZero() || run.Dispatched {
		t.Errorf("%+v", run)
	}
	if n := len(w.stored(topology.Events, "event", string(event.RunFailed), index, run.ID)); n != 1 {
		t.Errorf("%d events of the failure", n)
	}
	if n := len(w.stored(topology.Runs, "run", "requested", "*")); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// A medium that has left the ledger is still part of the run.
func TestMediumWithoutEntry(t *testing.T) {
	f, m := imported("job_1", 1)
	if got := runMedium(f, m); got.URI != m.URI || got.Seconds != 2 {
		t.Errorf("%+v", got)
	}
	if got := runMedium(f, event.Medium{}); got.Video != f.Video || got.Title != "clip 00001.mp4" || got.MediaType != f.MediaType || got.Size != 7 {
		t.Errorf("%+v", got)
	}
}

func TestDeletedRunStaysDeleted(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	job := w.settled("job_1", 2)
	id := event.RunOfJob(job.ID)
	must(t, w.records.Create(t.Context(), id, store.Run{ID: id, Settled: true, Status: store.RunCompleted}))
	must(t, w.records.Delete(t.Context(), id))
	w.announce(job)
	w.handled()
	if _, _, err := w.records.Get(t.Context(), id); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("it is back: %v", err)
	}
}

func BenchmarkRunOf10000(b *testing.B) {
	w := newWorld(b)
	p, err := New(Config{}, w.env)
	must(b, err)
	must(b, p.open(b.Context()))
	job := w.settled("job_1", 10_000)
	for i := 0; b.Loop(); i++ {
		run, err := p.runs.Create(b.Context(), Request{
			ID: event.NewID("run"), Index: index, Preset: job.Preset, Media: p.imported(b.Context(), job),
		})
		must(b, err)
		must(b, p.runs.Dispatch(b.Context(), run))
	}
}
