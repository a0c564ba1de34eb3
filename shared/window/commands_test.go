package window_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

func TestFlushAndExtend(t *testing.T) {
	t.Parallel()
	cfg := window.Config{Interval: 10 * time.Second, MaxWait: 30 * time.Second, Rev: 1}
	open := window.Merge(window.Record{}, []window.Arrival{{1, at(0), 0}}, cfg, "w")
	later := func(r window.Record, second int) window.Record {
		r = window.Merge(r, []window.Arrival{{2, at(second), 0}}, cfg, "no")
		return r
	}
	flushed := window.Flush(open, at(4))
	extended := window.Extend(open, at(60))
	shorter := window.Config{Interval: 2 * time.Second, Rev: 2}
	for _, c := range []struct {
		name     string
		r        window.Record
		deadline int // -1: nothing is open
	}{
		{"flush", flushed, 4},
		{"flush, and an arrival", later(flushed, 5), 4},
		{"flush twice", window.Flush(flushed, at(6)), 4},
		{"flush of nothing", window.Flush(window.Record{}, at(4)), -1},
		{"flush of what is due", window.Flush(open, at(20)), 10},
		{"flush, then extend", window.Extend(flushed, at(60)), 60},
		{"flush, and another configuration", window.Reconfigure(flushed, window.Config{Interval: time.Hour, Rev: 2}), 4},
		{"flush while held, at the release", window.Release(window.Flush(window.Hold(open), at(4)), cfg, at(5)), 5},
		{"extend beyond the longest wait", extended, 60},
		{"extend, and an arrival", later(extended, 5), 60},
		{"extend, and a late arrival", later(window.Extend(open, at(12)), 9), 19},
		{"extend twice", window.Extend(extended, at(60)), 60},
		{"extend to what is sooner", window.Extend(open, at(5)), 10},
		{"extend of nothing", window.Extend(window.Record{}, at(60)), -1},
		{"extend, then flush", window.Flush(extended, at(4)), 4},
		{"extend, and another configuration", window.Reconfigure(extended, shorter), 60},
		{"extend while held, at the release", window.Release(window.Extend(window.Hold(open), at(60)), cfg, at(50)), 60},
	} {
		if c.deadline < 0 {
			if c.r.Open != nil {
				t.Errorf("%s: %+v", c.name, c.r.Open)
			}
			continue
		}
		if c.r.Open.Epoch != "w" || !c.r.Open.Deadline.Equal(at(c.deadline)) {
			t.Errorf("%s: epoch %s, deadline %s", c.name, c.r.Open.Epoch, c.r.Open.Deadline)
		}
	}
	if !open.Open.Deadline.Equal(at(10)) {
		t.Error("a command changed its argument")
	}
	if window.Due(window.Flush(window.Hold(open), at(4)), at(99)) {
		t.Error("a flush closes what is held")
	}
}

// A command and arrivals commute: whichever is first, the window is due at the same time.
func TestCommandsCommuteWithArrivals(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		cfg := window.Config{Interval: time.Duration(rapid.IntRange(1, 90).Draw(t, "interval")) * time.Second}
		start := window.Merge(window.Record{}, []window.Arrival{{1, at(0), 0}}, cfg, "w")
		as := arrivals(t)
		moment := at(rapid.IntRange(0, 400).Draw(t, "at"))
		flush := rapid.Bool().Draw(t, "flush")
		command := func(r window.Record) window.Record {
			if flush {
				return window.Flush(r, moment)
			}
			return window.Extend(r, moment)
		}
		before := window.Merge(command(start), as, cfg, "w")
		after := window.Merge(start, as, cfg, "w")
		after = command(after)
		if !before.Open.Deadline.Equal(after.Open.Deadline) {
			t.Fatalf("command first %s, arrivals first %s", before.Open.Deadline, after.Open.Deadline)
		}
	})
}

// in is a time for Extend: so long from now.
func in(d time.Duration) func(time.Time) (time.Time, error) {
	return func(time.Time) (time.Time, error) { return time.Now().Add(d), nil }
}

func TestFlushCloses(t *testing.T) {
	t.Parallel()
	h := open(t)
	ctx := t.Context()
	must(t, h.Flush(ctx, auto, "")) // nothing is open
	must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: 1, Stored: time.Now()}}, hour))
	must(t, h.Extend(ctx, auto, "", in(48*time.Hour)))
	must(t, h.Flush(ctx, auto, ""))
	must(t, h.Merge(ctx, auto, []window.Arrival{{Seq: 2, Stored: time.Now()}}, hour)) // too late to keep it open, in time to be in it
	r := h.record(t)
	if r.Open.Deadline.After(time.Now()) || r.Open.LastSeq != 2 {
		t.Errorf("%+v", r.Open)
	}
	must(t, h.close(t))
	if jobs := h.jobs(t); len(jobs) != 1 || jobs[0].LastSeq != 2 {
		t.Errorf("flushed: %+v", jobs)
	}
	if err := h.Extend(ctx, auto, "", in(time.Hour)); !errors.Is(err, window.ErrNotOpen) {
		t.Errorf("extend of nothing: %v", err)
	}
}

func TestDiscard(t *testing.T) {
	t.Parallel()
	h := open(t)
	ctx := t.Context()
	ledger := store.NewLedger(h.bus)
	arrival := func(i int) event.Arrival {
		return event.Arrival{Automation: auto, Index: "idx", Connector: "c", Object: event.Object{Path: fmt.Sprint("in/", i), Version: "1", Order: "01", Size: 5}}
	}
	arrive := func(i int) window.Arrival {
		data, err := json.Marshal(arrival(i))
		must(t, err)
		seq, err := h.bus.Publish(ctx, bus.Message{Subject: h.bus.Subject("arrival", auto, event.ObjectHash("c", arrival(i).Path)), Data: data})
		must(t, err)
		return window.Arrival{Seq: seq, Stored: time.Now().Add(-2 * time.Hour)}
	}
	entry := func(i int, state event.MediumState) store.Entry {
		a := arrival(i)
		return store.Entry{Medium: event.Medium{ID: event.NewMediumID("idx", "c", a.Path, "1", ""), Index: "idx", Path: a.Path, Version: "1", State: state}}
	}
	if n, err := h.Discard(ctx, auto, "", ledger); n != 0 || err != nil {
		t.Errorf("nothing is open: %d, %v", n, err)
	}

	// One alone.
	must(t, h.Merge(ctx, auto, []window.Arrival{arrive(9)}, hour))
	if n, err := h.Discard(ctx, auto, "", ledger); n != 1 || err != nil {
		t.Errorf("one alone: %d, %v", n, err)
	}
	if s, err := h.bus.State(ctx, topology.Arrivals); err != nil || s.Msgs != 0 {
		t.Errorf("one alone: %d are left, %v", s.Msgs, err)
	}

	// A window that has closed, whose job is not planned yet, and an open one beside it.
	must(t, h.Merge(ctx, auto, []window.Arrival{arrive(0)}, hour))
	must(t, h.close(t))
	must(t, errors.Join(ledger.Write(ctx, []store.Entry{entry(1, event.MediumFailed), entry(2, event.MediumImported)})...))
	var in []window.Arrival
	for i := 1; i <= 3; i++ {
		in = append(in, arrive(i))
	}
	must(t, h.Merge(ctx, auto, in, hour))
	arrive(4) // not yet in a window
	n, err := h.Discard(ctx, auto, "", ledger)
	if r := h.record(t); n != 3 || err != nil || r.Open != nil {
		t.Errorf("%d dropped, %v, %+v", n, err, r.Open)
	}
	var left []string
	for m, err := range h.bus.Scan(ctx, topology.Arrivals, h.bus.Subject("arrival", ">"), 0) {
		must(t, err)
		var a event.Arrival
		must(t, json.Unmarshal(m.Data, &a))
		left = append(left, a.Path)
	}
	if want := []string{"in/0", "in/4"}; !reflect.DeepEqual(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	for i, want := range []event.MediumState{"", event.MediumBaseline, event.MediumImported, event.MediumBaseline, ""} {
		got, err := ledger.Get(ctx, "idx", entry(i, "").ID)
		must(t, err)
		if want == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || got[0].State != want || want == event.MediumBaseline && got[0].Order != "01" {
			t.Errorf("%d: %+v, want %s", i, got, want)
		}
	}
}
