package presettrigger

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// made is a run of n media, handed out.
func (w *world) made(id string, n int) (store.Run, []event.RunMedium) {
	w.Helper()
	var media []event.RunMedium
	for i := range n {
		_, m := imported(id, i)
		media = append(media, event.RunMedium{Video: m.ID.String(), MediaType: m.MediaType, URI: m.URI})
	}
	run, err := w.runs.Create(w.Context(), Request{
		ID: id, Index: index, Preset: json.RawMessage(`{"prompt_id":"` + prompt + `"}`), Media: all(media),
	})
	must(w, err)
	must(w, w.runs.Dispatch(w.Context(), run))
	return run, media
}

func TestTracksReports(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	run, media := w.made("run_1", 8)

	w.report(run.ID, media[0].Video, event.Processing)
	got := w.await(run.ID, func(r store.Run) bool { return r.Status == store.RunProcessing })
	if got.StartedAt.IsZero() || !got.EndedAt.IsZero() || !got.Dispatched {
		t.Errorf("%+v", got)
	}
	for i, m := range media {
		state := event.Successful
		if i == 3 {
			state = event.Unsuccessful
		}
		w.report(run.ID, m.Video, state)
		w.report(run.ID, m.Video, state) // and once more
	}
	got = w.await(run.ID, settled)
	want := map[string]store.Tally{"video": {Total: 6, Completed: 6}, "audio": {Total: 2, Completed: 1, Failed: 1}}
	if got.Status != store.RunCompletedWithFailures || fmt.Sprint(got.Tallies) != fmt.Sprint(want) || got.EndedAt.Before(got.StartedAt) {
		t.Errorf("%+v", got)
	}
	if n := len(w.stored(topology.Events, "event", string(event.RunProgress), index, run.ID)); n == 0 || n > int(got.EndedAt.Sub(got.StartedAt)/tellEvery)+2 {
		t.Errorf("%d events of progress", n)
	}
	// How each medium got on was told before the run was settled, once however often it was reported.
	for typ, about := range map[event.Type]map[string]string{
		event.ProcessingStarted: {media[0].Video: "processing"}, event.ProcessingFailed: {media[3].Video: "failed"},
		event.ProcessingCompleted: {media[0].Video: "processed", media[7].Video: "processed", media[3].Video: ""},
	} {
		for video, status := range about {
			events := w.stored(topology.Events, "event", string(typ), index, video)
			if status == "" || len(events) != 1 {
				if status != "" || len(events) > 0 {
					t.Errorf("%d events %s of %s", len(events), typ, video)
				}
				continue
			}
			var data event.ProcessingEvent
			must(t, json.Unmarshal(events[0].Data, &data))
			if data.Run != run.ID || data.Video != video || data.Status != status || data.MediaType == "" || data.Prompt != prompt || (status == "failed") != (data.Error != "") {
				t.Errorf("%s says %+v", typ, data)
			}
		}
	}
	for _, typ := range []event.Type{event.RunStarted, event.RunPartialCompleted} {
		events := w.stored(topology.Events, "event", string(typ), index, run.ID)
		if len(events) != 1 {
			t.Errorf("%d events %s", len(events), typ)
			continue
		}
		var data event.RunEvent
		must(t, json.Unmarshal(events[0].Data, &data))
		if data.Run != run.ID || data.Prompt != prompt || data.Total != 8 || (typ != event.RunStarted && (data.Completed != 7 || data.Failed != 1)) {
			t.Errorf("%s says %+v", typ, data)
		}
	}
}

// A takeover rebuilds from the stream: reports that nobody tracked, and the end that nobody announced.
func TestTakeover(t *testing.T) {
	w := newWorld(t)
	_, stop := w.start("one")
	old, media := w.made("run_old", 1)
	w.report(old.ID, media[0].Video, event.Successful)
	w.await(old.ID, settled)

	run, media := w.made("run_1", 4)
	w.report(run.ID, media[0].Video, event.Successful)
	w.await(run.ID, func(r store.Run) bool { return done(r.Tallies) == 1 })
	stop()
	w.report(run.ID, media[1].Video, event.Unsuccessful)
	w.report(run.ID, media[2].Video, event.Successful)

	// One that ended but whose end was not announced, as by a crash in between.
	ended, _ := w.made("run_ended", 1)
	_, _, err := w.records.Modify(t.Context(), ended.ID, func(r *store.Run) error {
		r.Status, r.StartedAt, r.EndedAt = store.RunCompleted, time.Now().UTC(), time.Now().UTC()
		return nil
	})
	must(t, err)

	w.start("two")
	w.await(run.ID, func(r store.Run) bool { return done(r.Tallies) == 3 })
	w.report(run.ID, media[3].Video, event.Successful)
	if got := w.await(run.ID, settled); got.Status != store.RunCompletedWithFailures || got.Tallies["video"].Completed != 2 {
		t.Errorf("%+v", got)
	}
	w.await(ended.ID, settled)
	for run, types := range map[string][]event.Type{
		"run_1":     {event.RunStarted, event.RunPartialCompleted},
		"run_ended": {event.RunStarted, event.RunCompleted},
		"run_old":   {event.RunStarted, event.RunCompleted},
	} {
		for _, typ := range types {
			if len(w.stored(topology.Events, "event", string(typ), index, run)) == 0 {
				t.Errorf("no event %s of %s", typ, run)
			}
		}
	}
}

// What cannot be counted is left out and changes nothing; what cannot be read goes to the dead stream, once.
func TestReportsThatDoNotCount(t *testing.T) {
	w := newWorld(t)
	_, stop := w.start("one")
	run, media := w.made("run_1", 2)
	bad := func(video, body string) {
		_, err := w.bus.Publish(t.Context(), bus.Message{Subject: w.bus.Subject("run", "report", run.ID, video), Data: []byte(body)})
		must(t, err)
	}
	w.report("run_unknown", media[0].Video, event.Successful)
	w.report(run.ID, "vid_unknown", event.Successful)
	bad("vid_a", "not json")
	bad("vid_b", `{"state":"done"}`)
	bad("vid_c", `{"state":"successful","video_id":"vid_d"}`)
	bad("vid_e", `{"state":"successful","run_id":"run_2"}`)
	w.report(run.ID, media[0].Video, event.Successful)
	got := w.await(run.ID, func(r store.Run) bool { return done(r.Tallies) > 0 })
	if done(got.Tallies) != 1 || got.Status != store.RunProcessing {
		t.Errorf("%+v", got)
	}
	if n := len(w.stored(topology.DeadLetters, "dead", "preset-trigger", trackerLease)); n != 4 {
		t.Errorf("%d dead letters", n)
	}
	stop()
	w.start("two") // reads it all again
	bad(media[1].Video, `{"state":"successful"}`)
	w.await(run.ID, settled)
	if n := len(w.stored(topology.DeadLetters, "dead", "preset-trigger", trackerLease)); n != 4 {
		t.Errorf("%d dead letters after a takeover", n)
	}
}

// A run that a person cancels is settled as it is, whatever is reported later.
func TestCancelledRun(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	run, media := w.made("run_1", 2)
	w.report(run.ID, media[0].Video, event.Successful)
	w.await(run.ID, func(r store.Run) bool { return done(r.Tallies) == 1 })
	_, _, err := w.records.Modify(t.Context(), run.ID, func(r *store.Run) error {
		r.Status, r.EndedAt = store.RunCancelled, time.Now().UTC()
		return nil
	})
	must(t, err)
	w.await(run.ID, settled)
	w.report(run.ID, media[1].Video, event.Successful)
	other, media := w.made("run_2", 1)
	w.report(other.ID, media[0].Video, event.Successful)
	w.await(other.ID, settled) // by now the late report was seen
	if got := w.await(run.ID, settled); got.Status != store.RunCancelled || done(got.Tallies) != 1 {
		t.Errorf("%+v", got)
	}
	told := len(w.stored(topology.Events, "event", "prompt_run", "*", index, run.ID))
	if n := told - len(w.stored(topology.Events, "event", string(event.RunProgress), index, run.ID)); n != 2 {
		t.Errorf("%d events", n)
	}
	if n := len(w.stored(topology.Events, "event", string(event.RunCancelled), index, run.ID)); n != 1 {
		t.Errorf("%d events of the end", n)
	}
}

// A run without an index is announced as well.
func TestRunWithoutIndex(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	run, err := w.runs.Create(t.Context(), Request{
		ID: "run_1", Preset: json.RawMessage(`{"prompt_id":"` + prompt + `"}`), Media: all([]event.RunMedium{{Video: "vid_1", MediaType: "image"}}),
	})
	must(t, err)
	must(t, w.runs.Dispatch(t.Context(), run))
	w.report(run.ID, "vid_1", event.Successful)
	w.await(run.ID, settled)
	if n := len(w.stored(topology.Events, "event", string(event.RunCompleted), bus.NoIndex, run.ID)); n != 1 {
		t.Errorf("%d events", n)
	}
}

func TestWhereToBegin(t *testing.T) {
	for name, c := range map[string]struct {
		expected      []uint64 // ReportsFrom of the live runs
		before, after uint64
		want          uint64
	}{
		"no runs":         {nil, 10, 10, 11},
		"empty":           {nil, 0, 0, 1},
		"an older run":    {[]uint64{9, 4}, 10, 10, 4},
		"made meanwhile":  {[]uint64{12}, 10, 12, 11},
		"restored stream": {[]uint64{50}, 10, 12, 1},
		"no position":     {[]uint64{0}, 10, 12, 1},
	} {
		s := &session{live: make(map[string]*liveRun)}
		for i, from := range c.expected {
			s.live[fmt.Sprint(i)] = &liveRun{record: store.Run{ReportsFrom: from}}
		}
		if got := s.from(c.before, c.after); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// Many runs end at about the same time, and many reports come for one.
func TestManyReports(t *testing.T) {
	w := newWorld(t)
	w.start("one")
	big, media := w.made("run_big", 2000)
	var msgs []bus.Message
	for _, m := range media {
		msgs = append(msgs, bus.Message{Subject: w.bus.Subject("run", "report", big.ID, m.Video), Data: []byte(`{"state":"successful"}`)})
	}
	for i := range 100 {
		run, media := w.made(fmt.Sprint("run_", i), 1)
		msgs = append(msgs, bus.Message{Subject: w.bus.Subject("run", "report", run.ID, media[0].Video), Data: []byte(`{"state":"successful"}`)})
	}
	begin := time.Now()
	_, errs := w.bus.PublishAll(t.Context(), msgs)
	for _, err := range errs {
		must(t, err)
	}
	w.await(big.ID, settled)
	for i := range 100 {
		w.await(fmt.Sprint("run_", i), settled)
	}
	t.Logf("%d reports after %s", len(msgs), time.Since(begin))
}
