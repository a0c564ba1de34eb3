package window_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"millrace/shared/event"
	"millrace/shared/window"
)

var noon = time.Date(2025, 12, 24, 12, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return noon.Add(time.Duration(seconds) * time.Second) }

func TestMerge(t *testing.T) {
	t.Parallel()
	cfg := window.Config{Interval: 10 * time.Second, MaxWait: 30 * time.Second, Rev: 3}
	for _, c := range []struct {
		name     string
		arrivals []window.Arrival
		deadline int
		lastSeq  uint64
		count    int
		bytes    int64
	}{
		{"one", []window.Arrival{{1, at(0), 5}}, 10, 1, 1, 5},
		{"a later one moves the deadline", []window.Arrival{{1, at(0), 5}, {2, at(7), 5}}, 17, 2, 2, 10},
		{"reordered", []window.Arrival{{2, at(7), 5}, {1, at(0), 5}}, 17, 2, 2, 10},
		{"at most to max wait", []window.Arrival{{1, at(0), 1}, {2, at(9), 1}, {3, at(18), 1}, {4, at(27), 1}}, 30, 4, 4, 4},
		{"a size nobody knows", []window.Arrival{{1, at(0), -1}}, 10, 1, 1, 0},
	} {
		r := window.Merge(window.Record{Automation: "a"}, c.arrivals, cfg, "w1")
		o := r.Open
		if o.Epoch != "w1" || o.ConfigRev != 3 || !o.OpenedAt.Equal(at(0)) || !o.Deadline.Equal(at(c.deadline)) ||
			o.LastSeq != c.lastSeq || o.Count != c.count || o.Bytes != c.bytes {
			t.Errorf("%s: %+v", c.name, o)
		}
		again := window.Merge(r, c.arrivals, cfg, "w2")
		if !reflect.DeepEqual(again, r) {
			t.Errorf("%s, once more: %+v", c.name, again.Open)
		}
	}
	if r := window.Merge(window.Record{}, nil, cfg, "w1"); r.Open != nil {
		t.Error("nothing opened a window")
	}
	r := window.Merge(window.Record{}, []window.Arrival{{1, at(0), 0}, {2, at(100), 0}}, window.Config{Interval: 10 * time.Second}, "w")
	if !r.Open.Deadline.Equal(at(60)) {
		t.Errorf("the default of max wait is six intervals, not %s", r.Open.Deadline)
	}
}

// After a restore the broker hands out sequences again: what lies there then is new although it does not look like it.
func TestAdopt(t *testing.T) {
	t.Parallel()
	cfg := window.Config{Interval: 10 * time.Second}
	closed := window.Record{ClosedSeq: 90}
	as := []window.Arrival{{8, at(3), 5}, {7, at(0), 5}}
	if r := window.Merge(closed, as, cfg, "w1"); !reflect.DeepEqual(r, closed) {
		t.Errorf("merged: %+v", r)
	}
	r := window.Adopt(closed, as, cfg, "w1")
	if r.Open == nil || r.Open.LastSeq != 8 || r.Open.Count != 2 || r.ClosedSeq != 6 {
		t.Errorf("adopted: %+v, %+v", r, r.Open)
	}
	if r := window.Adopt(window.Record{ClosedSeq: 3}, as, cfg, "w1"); r.Open == nil || r.ClosedSeq != 3 {
		t.Errorf("in order: %+v", r)
	}
}

func TestDue(t *testing.T) {
	t.Parallel()
	open := window.Record{Open: &window.Open{Epoch: "w1", Deadline: at(10)}}
	for _, c := range []struct {
		name string
		r    window.Record
		now  time.Time
		want bool
	}{
		{"nothing open", window.Record{}, at(99), false},
		{"too early", open, at(10).Add(-1), false},
		{"on time", open, at(10), true},
		{"late", open, at(99), true},
		{"held", window.Hold(open), at(99), false},
	} {
		if got := window.Due(c.r, c.now); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestNewDeadlines(t *testing.T) {
	t.Parallel()
	cfg := window.Config{Interval: 10 * time.Second, Rev: 1}
	open := window.Merge(window.Record{}, []window.Arrival{{1, at(0), 0}}, cfg, "w")
	changed := window.Config{Interval: 2 * time.Second, Rev: 2}
	met := window.Merge(open, []window.Arrival{{2, at(1), 0}}, changed, "no") // an arrival came before the change did
	for _, c := range []struct {
		name     string
		r        window.Record
		deadline int // -1: nothing is open
		rev      int
	}{
		{"release of what is not held", window.Release(open, cfg, at(50)), 10, 1},
		{"release", window.Release(window.Hold(open), cfg, at(5)), 10, 1},
		{"release after the deadline", window.Release(window.Hold(open), cfg, at(50)), 50, 1},
		{"release under another configuration", window.Release(window.Hold(open), changed, at(1)), 2, 2},
		{"release of nothing", window.Release(window.Hold(window.Record{}), cfg, at(5)), -1, 0},
		{"the same configuration", window.Reconfigure(open, cfg), 10, 1},
		{"a changed one", window.Reconfigure(open, changed), 2, 2},
		{"a changed one after its first arrival", window.Reconfigure(met, changed), 3, 2},
		{"a changed one, twice", window.Reconfigure(window.Reconfigure(open, changed), changed), 2, 2},
		{"a changed one of nothing", window.Reconfigure(window.Record{}, changed), -1, 0},
	} {
		if c.r.Held {
			t.Errorf("%s: held", c.name)
		}
		if c.deadline < 0 {
			if c.r.Open != nil {
				t.Errorf("%s: %+v", c.name, c.r.Open)
			}
			continue
		}
		if o := c.r.Open; o.Epoch != "w" || !o.Deadline.Equal(at(c.deadline)) || o.ConfigRev != c.rev {
			t.Errorf("%s: %+v", c.name, o)
		}
	}
}

func arrivals(t *rapid.T) []window.Arrival {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) window.Arrival {
		return window.Arrival{
			Seq: rapid.Uint64Range(1, 50).Draw(t, "seq"), Stored: at(rapid.IntRange(0, 200).Draw(t, "stored")),
			Size: rapid.Int64Range(-1, 1000).Draw(t, "size"),
		}
	}), 1, 20).Draw(t, "arrivals")
}

// deciding is what of a window decides about its end.
func deciding(o *window.Open) [4]any {
	return [4]any{o.OpenedAt, o.LastArrivalAt, o.LastSeq, o.Deadline}
}

func TestMergeIsCommutativeAndIdempotent(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		cfg := window.Config{Interval: time.Duration(rapid.IntRange(1, 90).Draw(t, "interval")) * time.Second, MaxWait: time.Duration(rapid.IntRange(0, 200).Draw(t, "max")) * time.Second}
		as := arrivals(t)
		whole := window.Merge(window.Record{}, as, cfg, "w")

		shuffled := rapid.Permutation(as).Draw(t, "order")
		var r window.Record
		for len(shuffled) > 0 {
			n := rapid.IntRange(1, len(shuffled)).Draw(t, "batch")
			before := r
			r = window.Merge(r, shuffled[:n], cfg, "w")
			if before.Open != nil && before.Open == r.Open {
				t.Fatal("merging changed its argument")
			}
			if rapid.Bool().Draw(t, "redelivered") {
				r = window.Merge(r, as[:rapid.IntRange(0, len(as)).Draw(t, "again")], cfg, "w")
			}
			shuffled = shuffled[n:]
		}
		if deciding(r.Open) != deciding(whole.Open) {
			t.Fatalf("one by one %v, at once %v", deciding(r.Open), deciding(whole.Open))
		}
	})
}

// A life of a record: whatever happens in whatever order, the rules hold.
func TestLifeOfARecord(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var (
			r      = window.Record{Automation: "a"}
			cfg    = window.Config{Interval: 10 * time.Second, MaxWait: 40 * time.Second, Rev: 1}
			now    = noon
			seq    uint64
			epochs int
			moved  bool // the deadline of the open window was set by a release or another configuration
		)
		epoch := func() string { epochs++; return fmt.Sprint("w", epochs) }
		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(0, 15).Draw(t, "seconds")) * time.Second) },
			"arrive": func(t *rapid.T) {
				before := r
				seq++
				r = window.Merge(r, []window.Arrival{{Seq: seq, Stored: now}}, cfg, epoch())
				if r.Open == nil || before.Open != nil && r.Open.Epoch != before.Open.Epoch {
					t.Fatalf("%+v after %+v", r.Open, before.Open)
				}
				moved = moved && before.Open != nil
			},
			"arrive again": func(t *rapid.T) { // the acknowledgement of one in a closed window got lost
				if r.ClosedSeq == 0 {
					return
				}
				before := r
				old := rapid.Uint64Range(1, r.ClosedSeq).Draw(t, "seq")
				r = window.Merge(r, []window.Arrival{{Seq: old, Stored: now}}, cfg, epoch())
				if !reflect.DeepEqual(r, before) {
					t.Fatalf("arrival %d of a window that has closed: %+v", old, r.Open)
				}
			},
			"look": func(t *rapid.T) {
				if !window.Due(r, now) {
					if r.Open != nil && !r.Held && !now.Before(r.Open.Deadline) {
						t.Fatal("overdue, and nobody closes it")
					}
					return
				}
				if r.Held {
					t.Fatal("a held window closes")
				}
				before := r
				if r.Closing != nil { // its job is requested first
					r = window.EndClosing(r, r.Closing.Epoch)
				}
				quiet, full := now.Sub(before.Open.LastArrivalAt) >= cfg.Interval, now.Sub(before.Open.OpenedAt) >= cfg.MaxWait
				if !quiet && !full && !moved {
					t.Fatalf("closed at %s, after %s of quiet", now, now.Sub(before.Open.LastArrivalAt))
				}
				r = window.StartClosing(r, event.JobRequested{Lane: event.Live}, now)
				req := r.Closing.Request
				if r.Open != nil || req.LastSeq != before.Open.LastSeq || req.Epoch != before.Open.Epoch ||
					req.Job != event.JobOfWindow("a", req.Epoch) || r.LastJob != req.Job {
					t.Fatalf("closing %+v", r.Closing)
				}
			},
			"requested": func(t *rapid.T) {
				if r.Closing != nil {
					open := r.Open
					if other := window.EndClosing(r, "another"); other.Closing == nil {
						t.Fatal("the end of another window ended this one")
					}
					r = window.EndClosing(r, r.Closing.Epoch)
					if r.Closing != nil || r.Open != open {
						t.Fatal("the end of the closing touched the open window")
					}
				}
			},
			"hold": func(t *rapid.T) { r = window.Hold(r) },
			"release": func(t *rapid.T) {
				before := r
				r = window.Release(r, cfg, now)
				if r.Open != nil && before.Held {
					moved = true
					if r.Open.Epoch != before.Open.Epoch || r.Open.Deadline.Before(now) {
						t.Fatalf("released to %+v", r.Open)
					}
				}
			},
			"reconfigure": func(t *rapid.T) {
				cfg.Rev++
				cfg.Interval = time.Duration(rapid.IntRange(1, 20).Draw(t, "interval")) * time.Second
				cfg.MaxWait = 4 * cfg.Interval
				r = window.Reconfigure(r, cfg)
			},
			"drop": func(t *rapid.T) { r = window.Drop(r) },
			"": func(t *rapid.T) {
				if r.Open == nil {
					return
				}
				if !moved && r.Open.Deadline.After(r.Open.OpenedAt.Add(cfg.MaxWait)) {
					t.Fatalf("deadline %s, opened %s", r.Open.Deadline, r.Open.OpenedAt)
				}
				if r.Held && window.Due(r, now.Add(1000*time.Hour)) {
					t.Fatal("held and due")
				}
			},
		})
	})
}

// Days of one-day windows on a fake clock: arrivals every hour or so with gaps, and somebody who looks when the window is
// said to end, as it was when it opened or when he looked last.
func TestDayLongWindows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := window.Config{Interval: 24 * time.Hour, MaxWait: 6 * 24 * time.Hour}
		random := rand.New(rand.NewPCG(1, 2))
		var (
			r      window.Record
			alarm  <-chan time.Time
			closed []uint64
			seq    uint64
			last   time.Time
		)
		drops := time.NewTimer(time.Hour)
		for len(closed) < 50 {
			select {
			case now := <-drops.C:
				seq++
				last = now
				opens := r.Open == nil
				if r = window.Merge(r, []window.Arrival{{Seq: seq, Stored: now}}, cfg, fmt.Sprint("w", seq)); opens {
					alarm = time.After(time.Until(r.Open.Deadline))
				}
				pause := time.Duration(random.IntN(120)) * time.Minute
				if random.IntN(20) == 0 {
					pause = 30 * time.Hour
				}
				drops.Reset(pause)
			case now := <-alarm:
				if !window.Due(r, now) {
					alarm = time.After(time.Until(r.Open.Deadline))
					continue
				}
				quiet, life := now.Sub(last), now.Sub(r.Open.OpenedAt)
				if quiet != cfg.Interval && life != cfg.MaxWait {
					t.Errorf("closed after %s of quiet, open for %s", quiet, life)
				}
				r = window.EndClosing(window.StartClosing(r, event.JobRequested{}, now), r.Open.Epoch)
				closed = append(closed, seq)
				alarm = nil
			}
		}
		for i := 1; i < len(closed); i++ {
			if closed[i] <= closed[i-1] {
				t.Errorf("window %d has no arrival", i)
			}
		}
	})
}
