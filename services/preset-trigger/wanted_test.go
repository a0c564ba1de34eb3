package presettrigger

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// want asks for a run as admin does; record: it is put on record as well.
func (w *world) want(req event.RunWanted, record bool) {
	w.Helper()
	if req.Preset == nil {
		req.Preset = json.RawMessage(`{"prompt_id":"` + prompt + `"}`)
	}
	req.RequestedAt = time.Now().UTC()
	data, err := json.Marshal(req)
	must(w, err)
	_, err = w.bus.Publish(w.Context(), bus.Message{Subject: w.bus.Subject("run", "wanted", req.Run), Data: data})
	must(w, err)
	if record {
		_, _, err := w.records.Modify(w.Context(), req.Run, func(r *store.Run) error {
			if r.ID != "" {
				return store.ErrUnchanged
			}
			*r = store.Run{ID: req.Run, Index: req.Index, Prompt: prompt, Preset: req.Preset, Status: store.RunPending, CreatedAt: req.RequestedAt, ReportsFrom: 1}
			return nil
		})
		must(w, err)
	}
}

// Whatever is asked for, by job, by media or by index, is made once, with exactly the media that are meant.
func TestWantedRuns(t *testing.T) {
	w := newWorld(t)
	job := w.settled("job_1", 1200) // more than the ledger reads with a filter
	w.settled("job_2", 30)
	_, one := imported("job_1", 1)
	_, two := imported("job_2", 2)
	_, removed := imported("job_2", 3)
	entries, err := w.ledger.Get(t.Context(), index, removed.ID)
	must(t, err)
	entries[0].State = event.MediumDeleted
	for _, err := range w.ledger.Write(t.Context(), entries) {
		must(t, err)
	}
	elsewhere := one
	elsewhere.Index = "idx_2"
	for _, err := range w.ledger.Write(t.Context(), []store.Entry{{Medium: elsewhere}}) {
		must(t, err)
	}
	state, err := w.bus.State(t.Context(), topology.Media)
	must(t, err)
	w.settled("job_later", 5) // not there yet when the run on the index was asked for
	w.start("one")
	w.start("two")
	for name, c := range map[string]struct {
		ask    event.RunWanted
		want   int
		target string
	}{
		"by job":    {event.RunWanted{Run: "run_job", Job: job.ID, Index: index}, 1200, ""},
		"by media":  {event.RunWanted{Run: "run_media", Index: index, Videos: []string{two.ID.String(), one.ID.String(), removed.ID.String()}}, 3, ""},
		"by index":  {event.RunWanted{Run: "run_index", Index: index, AsOf: state.LastSeq}, 1229, store.OfIndex},
		"small one": {event.RunWanted{Run: "run_small", Index: "idx_2"}, 1, store.OfIndex},
	} {
		for _, record := range []bool{true, false} {
			ask := c.ask
			if record {
				ask.Run += "_recorded"
			}
			for range 3 {
				w.want(ask, record)
			}
			run := w.await(ask.Run, dispatched)
			media := w.mediaOf(run)
			if run.Count != c.want || len(media) != c.want || run.Target != c.target || run.PromptName != "Log" || run.Tallies["video"].Total == 0 {
				t.Errorf("%s: %d media in a list of %d, %+v", name, run.Count, len(media), run)
			}
			if name == "by media" && (media[0].Video != two.ID.String() || media[0].URI != two.URI || media[1].Title != "clip 00001.mp4") {
				t.Errorf("%s: %+v", name, media)
			}
			if n := w.requests(run.ID); n != 1 {
				t.Errorf("%s: %d requests", name, n)
			}
		}
	}
}

// requests counts how often executors were asked for a run.
func (w *world) requests(run string) (n int) {
	for _, m := range w.stored(topology.Runs, "run", "requested", "*") {
		var req event.RunRequested
		must(w, json.Unmarshal(m.Data, &req))
		if req.Run == run {
			n++
		}
	}
	return n
}

// A run that cannot be made ends as failed, also when nobody has put it on record; nonsense is dead.
func TestWantedInVain(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	for name, ask := range map[string]event.RunWanted{
		"empty index":    {Run: "run_1", Index: "idx_nothing"},
		"no such job":    {Run: "run_2", Job: "job_nothing"},
		"no such prompt": {Run: "run_3", Videos: []string{"vid_0123456789abcdefghijklmnop_qrstuv0123456789"}, Preset: json.RawMessage(`{"prompt_id":"prm_x"}`)},
	} {
		for _, record := range []bool{true, false} {
			if record {
				ask.Run += "_recorded"
			}
			w.want(ask, record)
			if run := w.await(ask.Run, settled); run.Status != store.RunFailed || run.Error == "" {
				t.Errorf("%s: %+v", name, run)
			}
		}
	}
	w.want(event.RunWanted{Run: "run_4"}, false)
	w.want(event.RunWanted{Run: "run_5", Videos: []string{"x"}}, false)
	w.eventually(func() bool {
		return len(w.stored(topology.DeadLetters, "dead", "*", topology.PresetTriggerWanted)) == 2
	})
}

// A run that somebody deleted does not come back because there is nothing to run on.
func TestWantedInVainAndDeleted(t *testing.T) {
	w := newWorld(t)
	must(t, w.records.Put(t.Context(), "run_1", store.Run{ID: "run_1", Prompt: prompt, Status: store.RunPending}))
	must(t, w.records.Delete(t.Context(), "run_1"))
	w.start("one")
	w.want(event.RunWanted{Run: "run_1", Index: "idx_nothing"}, false)
	w.eventually(func() bool { return len(w.stored(topology.Runs, "run", "wanted", "*")) == 0 })
	if run, _, err := w.records.Get(t.Context(), "run_1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%+v, %v", run, err)
	}
}

// A run that is cancelled before it was made is never handed out, and one that is being made is not swept.
func TestCancelledBeforeItWasMade(t *testing.T) {
	w := newWorld(t)
	job := w.settled("job_1", 3)
	must(t, w.records.Put(t.Context(), "run_1", store.Run{ID: "run_1", Prompt: prompt, Status: store.RunCancelled, EndedAt: time.Now()}))
	must(t, w.records.Put(t.Context(), "run_2", store.Run{ID: "run_2", Prompt: prompt, Status: store.RunPending}))
	w.start("one")
	w.report("run_2", "vid_1", event.Successful) // of a run that nobody was asked to carry out
	w.want(event.RunWanted{Run: "run_1", Job: job.ID}, false)
	w.want(event.RunWanted{Run: "run_3", Job: job.ID}, false)
	w.await("run_1", settled)
	w.await("run_3", dispatched)
	if n := w.requests("run_1") + w.requests("run_2"); n != 0 {
		t.Errorf("%d requests", n)
	}
	if r := w.await("run_2", func(store.Run) bool { return true }); r.Status != store.RunPending {
		t.Errorf("%+v", r)
	}
}
