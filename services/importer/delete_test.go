package importer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/media"
	"millrace/shared/service/servicetest"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// remove asks for a deletion as admin does; "" for video: of the whole index.
func (r *rig) remove(index, video string) {
	r.t.Helper()
	thing := index
	if video != "" {
		thing = video
	}
	data, err := json.Marshal(event.DeletionRequested{Deletion: event.DeletionOf(thing), Index: index, Video: video, RequestedAt: time.Now()})
	if err == nil {
		_, err = r.env.Bus.Publish(r.t.Context(), bus.Message{Subject: r.env.Bus.Subject("delete", thing), Data: data})
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// startDeleting runs an importer that looks again soon, yet not before a test has gone behind its back.
func (r *rig) startDeleting(library bucket.Library) (stop func()) {
	r.t.Helper()
	e := r.env
	e.Metrics = prometheus.NewRegistry()
	im, err := New(Config{}, e, r, library, media.New(media.Config{}))
	if err != nil {
		r.t.Fatal(err)
	}
	im.deleter.lookAgain = 2 * time.Second
	return servicetest.Run(r.t, im)
}

func (r *rig) entry(m event.Medium) (store.Entry, error) {
	r.t.Helper()
	found, err := r.ledger.Get(r.t.Context(), m.Index, m.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	if len(found) == 0 {
		return store.Entry{}, errors.New("no entry")
	}
	return found[0], nil
}

// tombstone waits until a medium and its bytes are gone.
func (r *rig) tombstone(m event.Medium) {
	r.t.Helper()
	servicetest.Eventually(r.t, "the medium is gone", func() error {
		e, err := r.entry(m)
		if err == nil && (e.State != event.MediumDeleted || e.URI != "") {
			err = fmt.Errorf("%s, %s", e.State, e.URI)
		}
		return err
	})
}

func (r *rig) idle() {
	r.t.Helper()
	servicetest.Eventually(r.t, "no deletion is left", func() error {
		s, err := r.env.Bus.State(r.t.Context(), topology.Deletions)
		if err == nil && s.Msgs > 0 {
			err = fmt.Errorf("%d requests", s.Msgs)
		}
		return err
	})
}

// A deleted medium is gone with its bytes, wherever whoever deleted it was interrupted, and does not come back.
func TestDeleteMedium(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, p := range []string{"a.mp4", "b.mp4", "c.mp4", "d.mp4"} {
		r.write(p, sample(t, "video.mp4"))
	}
	r.startDeleting(r.library)
	r.ended(r.plan("auto", event.NewOnly, "a.mp4", "b.mp4", "c.mp4", "d.mp4"))
	byPath := map[string]event.Medium{}
	for _, m := range r.media() {
		byPath[m.Path] = m
	}
	a, b, c := byPath["a.mp4"], byPath["b.mp4"], byPath["c.mp4"]

	// Nobody but the request says so; the tombstone is there; the bytes are gone as well.
	for i, m := range []event.Medium{b, c} {
		e, err := r.entry(m)
		if err == nil {
			e.State = event.MediumDeleted
			err = errors.Join(r.ledger.Write(t.Context(), []store.Entry{e})...)
		}
		if err == nil && i == 1 {
			err = r.library.Delete(t.Context(), libraryKey(m.Index, m.ID, m.Path))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []event.Medium{a, b, c} {
		r.remove("idx", m.ID.String())
		r.tombstone(m)
	}
	r.remove("idx", a.ID.String()) // once more
	r.remove("idx", event.NewMediumID("idx", "conn", "nothing", "v", "").String())
	r.idle()
	if n := len(r.media()); n != 1 {
		t.Errorf("%d media are left", n)
	}
	r.checkLibrary()

	job, report := r.ended(r.plan("auto", event.NewOnly, "a.mp4", "b.mp4"))
	if job.Progress.Skipped != 2 || report["a.mp4"].Reason != event.AlreadyImported {
		t.Errorf("it came back: %+v", job.Progress)
	}
	r.remove("id*", "")
	r.remove("idx", "vid_x")
	servicetest.Eventually(t, "nonsense is dead", func() error {
		n := 0
		for _, err := range r.env.Bus.Scan(t.Context(), topology.DeadLetters, ">", 0) {
			if err != nil {
				return err
			}
			n++
		}
		if n != 2 {
			return fmt.Errorf("%d dead letters", n)
		}
		return nil
	})
}

// What is registered by reference is the customer's own, and so is what lies elsewhere.
func TestDeleteLeavesOthersBytes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write("a.mp4", sample(t, "video.mp4"))
	stop := r.startDeleting(nil)
	r.ended(r.plan("auto", event.NewOnly, "a.mp4"))
	m := r.media()[0]
	r.remove("idx", m.ID.String())
	r.tombstone(m)
	stop()

	// Now with a library, in which it never was.
	e, err := r.entry(m)
	if err == nil {
		e.State, e.URI = event.MediumImported, m.URI
		err = errors.Join(r.ledger.Write(t.Context(), []store.Entry{e})...)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.startDeleting(r.library)
	r.remove("idx", m.ID.String())
	r.tombstone(m)
	if _, err := r.source.Stat(t.Context(), "a.mp4"); err != nil {
		t.Errorf("the source: %v", err)
	}
}

// An index goes with everything: its jobs end, its automation and runs as well, and what is written behind the back of
// the deletion is found when it looks again. Other indexes stay as they are.
func TestDeleteIndex(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	indexes, err := store.Open[store.Index](ctx, r.env.Bus, topology.Indexes)
	must(err)
	automations, err := store.Open[store.Automation](ctx, r.env.Bus, topology.Automations)
	must(err)
	runs, err := store.Open[store.Run](ctx, r.env.Bus, topology.RunRecords)
	must(err)
	deletions, err := store.Open[store.Deletion](ctx, r.env.Bus, topology.DeletionRecords)
	must(err)
	automation := event.AutomationOfIndex("idx")
	must(indexes.Put(ctx, "idx", store.Index{ID: "idx"}))
	must(indexes.Put(ctx, "other", store.Index{ID: "other"}))
	must(automations.Put(ctx, automation, store.Automation{ID: automation, Index: "idx", Enabled: true}))
	must(runs.Put(ctx, "run_1", store.Run{ID: "run_1", Index: "idx", Status: store.RunProcessing}))
	must(runs.Put(ctx, "run_2", store.Run{ID: "run_2", Index: "other", Status: store.RunProcessing}))
	r.publish([]bus.Message{r.message(event.Arrival{Automation: automation, Index: "idx"}, "arrival", automation, "h")})
	var others []store.Entry
	for i := range 3 {
		p := fmt.Sprint("other-", i)
		others = append(others, store.Entry{Medium: event.Medium{ID: event.NewMediumID("other", "conn", p, "v", ""), Index: "other", Path: p, State: event.MediumImported}})
	}
	must(errors.Join(r.ledger.Write(ctx, others)...))

	var first, second []string
	for i := range 30 {
		p := fmt.Sprintf("%d.mp4", i)
		r.write(p, sample(t, "video.mp4"))
		if i < 20 {
			first = append(first, p)
		} else {
			second = append(second, p)
		}
	}
	stop := r.startDeleting(r.library)
	r.ended(r.plan("", event.All, first...))
	hold := make(chan struct{})
	r.source.hold.Store(&hold)
	running := r.plan("", event.All, second...)
	r.remove("idx", "")
	gone := func() error {
		d, _, err := deletions.Get(ctx, "idx")
		if err == nil && d.Status != store.Gone {
			err = errors.New(string(d.Status))
		}
		return err
	}
	servicetest.Eventually(t, "the index is deleted", gone)
	job, _, err := r.jobs.Get(ctx, running)
	must(err)
	if job.Status != store.JobCancelled || !job.Settled {
		t.Errorf("the job: %+v", job)
	}
	// A worker that was just committing.
	late := event.Medium{ID: event.NewMediumID("idx", "conn", "late.mp4", "v", ""), Index: "idx", Path: "late.mp4", State: event.MediumImported}
	key := libraryKey("idx", late.ID, late.Path)
	late.URI = r.library.URI(key)
	_, err = r.library.Put(ctx, key, strings.NewReader("x"), bucket.Want{Size: -1})
	must(err)
	must(errors.Join(r.ledger.Write(ctx, []store.Entry{{Medium: late}})...))
	close(hold)
	r.idle()

	if n := len(r.media()); n != 0 {
		t.Errorf("%d media", n)
	}
	for o, err := range r.library.List(ctx) {
		t.Errorf("%s is in the library (%v)", o.Path, err)
	}
	for e, err := range r.ledger.All(ctx, "idx", 0) {
		t.Errorf("%+v is in the ledger (%v)", e, err)
	}
	if page, _, err := r.ledger.Page(ctx, "other", 10, ""); err != nil || len(page) != 3 {
		t.Errorf("the other index has %d media (%v)", len(page), err)
	}
	if _, _, err := indexes.Get(ctx, "idx"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the index: %v", err)
	}
	if _, _, err := automations.Get(ctx, automation); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("its automation: %v", err)
	}
	if s, err := r.env.Bus.State(ctx, topology.Arrivals); err != nil || s.Msgs != 0 {
		t.Errorf("%d arrivals (%v)", s.Msgs, err)
	}
	for id, want := range map[string]store.RunStatus{"run_1": store.RunCancelled, "run_2": store.RunProcessing} {
		if run, _, err := runs.Get(ctx, id); err != nil || run.Status != want {
			t.Errorf("%s is %s (%v)", id, run.Status, err)
		}
	}
	// Asked again, it is the same deletion; a process that ends while it waits gives the request back.
	before, _, err := deletions.Get(ctx, "idx")
	must(err)
	r.remove("idx", "")
	stop()
	r.startDeleting(r.library)
	r.idle()
	if after, _, err := deletions.Get(ctx, "idx"); err != nil || after != before {
		t.Errorf("%+v became %+v (%v)", before, after, err)
	}
}
