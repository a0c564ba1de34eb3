package scanner

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/shared/event"
	"millrace/shared/store"
)

func TestDecide(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	medium := func(n int, state event.MediumState) event.Medium {
		o := version("in/a.mp4", n)
		return event.Medium{Path: o.Path, Version: o.Version, Order: o.Order, State: state}
	}
	mayPass := func(n int, retry time.Time) event.Medium {
		m := medium(n, event.MediumFailed)
		m.RetryAt = retry
		return m
	}
	unordered := func(o event.Object) event.Object { o.Order = ""; return o }
	two := version("in/a.mp4", 2)
	waiting := func(o event.Object) *event.Arrival { return &event.Arrival{Object: o} }

	for _, c := range []struct {
		name   string
		object event.Object
		known  known
		live   bool
		want   verdict
	}{
		{"nothing known", two, known{}, false, news},
		{"imported", two, known{versions: []event.Medium{medium(2, event.MediumImported)}}, false, settled},
		{"imported, listed again", two, known{versions: []event.Medium{medium(2, event.MediumImported)}}, true, settled},
		{"deleted by a person", two, known{versions: []event.Medium{medium(2, event.MediumDeleted)}}, true, settled},
		{"there before the automation", two, known{versions: []event.Medium{medium(2, event.MediumBaseline)}}, true, settled},
		{"failed for good", two, known{versions: []event.Medium{medium(2, event.MediumFailed)}}, true, settled},
		{"failed, not yet time", two, known{versions: []event.Medium{mayPass(2, now.Add(1))}}, true, settled},
		{"failed, time has come", two, known{versions: []event.Medium{mayPass(2, now)}}, true, news},
		{"an older one imported", two, known{versions: []event.Medium{medium(1, event.MediumImported)}}, false, news},
		{"a newer one imported", two, known{versions: []event.Medium{medium(3, event.MediumImported)}}, false, stale},
		{"a newer one imported, but this is there", two, known{versions: []event.Medium{medium(3, event.MediumImported)}}, true, news},
		{"a newer one to be tried again", two, known{versions: []event.Medium{mayPass(3, now)}}, false, news},
		{"a newer one imported, order unknown", unordered(two), known{versions: []event.Medium{medium(3, event.MediumImported)}}, false, news},
		{"waiting", two, known{pending: waiting(two)}, false, pending},
		{"waiting, order unknown", unordered(two), known{pending: waiting(unordered(two))}, false, pending},
		{"an older one waiting", two, known{pending: waiting(version("in/a.mp4", 1))}, false, news},
		{"a newer one waiting", two, known{pending: waiting(version("in/a.mp4", 3))}, false, stale},
		{"another one waiting, order unknown", two, known{pending: waiting(unordered(version("in/a.mp4", 3)))}, false, news},
		{"in a job", two, known{files: []event.File{{Version: "2", State: event.Importing}}}, false, inFlight},
		{"done in a job", two, known{files: []event.File{{Version: "2", State: event.Skipped}}}, false, news},
		{"another version in a job", two, known{files: []event.File{{Version: "1", State: event.Queued}}}, false, news},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := decide(c.object, c.known, c.live, now); got != c.want {
				t.Errorf("decide: %s, want %s", got, c.want)
			}
		})
	}
}

// However notifications of ordered versions are repeated and shuffled, each step lets through only what is newer than
// all before it, and what waits in the end is the newest.
func TestDecideIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seen := rapid.SliceOfN(rapid.IntRange(1, 6), 1, 30).Draw(t, "versions")
		ends := rapid.SliceOfN(rapid.IntRange(0, 3), len(seen), len(seen)).Draw(t, "what happens between")
		var k known
		highest := 0
		for i, n := range seen {
			switch o := version("in/a.mp4", n); decide(o, k, false, time.Now()) {
			case news:
				if n <= highest {
					t.Fatalf("version %d was let through after %d", n, highest)
				}
				k.pending, highest = &event.Arrival{Object: o}, n
			default:
				if n > highest {
					t.Fatalf("version %d was dropped although only %d was known", n, highest)
				}
			}
			if ends[i] == 0 && k.pending != nil { // a job takes it and is done
				k.versions = append(k.versions, event.Medium{
					Version: k.pending.Version, Order: k.pending.Order, State: event.MediumImported,
				})
				k.pending = nil
			}
		}
	})
}

// A batch folds into what handling its notifications one by one would leave.
func TestFoldKeepsTheNewest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ch change
		newest, gone := 0, 0
		for i, n := range rapid.SliceOfN(rapid.IntRange(1, 8), 1, 20).Draw(t, "versions") {
			o := version("in/a.mp4", n)
			if rapid.Bool().Draw(t, fmt.Sprintf("deleted %d", i)) {
				d := deleted(o)
				ch.add(&d)
				gone = n // the last deletion counts; see covers for what it takes along
				if newest <= n {
					newest = 0
				}
				continue
			}
			c := created(o)
			ch.add(&c)
			if n > gone && n > newest {
				newest = n
			}
		}
		if ch.created != (newest > 0) || ch.created && ch.object.Version != fmt.Sprint(newest) {
			t.Fatalf("folded to %v %q, want version %d", ch.created, ch.object.Version, newest)
		}
	})
}

func TestCovers(t *testing.T) {
	two := version("in/a.mp4", 2)
	for _, c := range []struct {
		name    string
		deleted event.Notification
		want    bool
	}{
		{"this version", deleted(two), true},
		{"a later one", deleted(version("in/a.mp4", 3)), true},
		{"an earlier one", deleted(version("in/a.mp4", 1)), false},
		{"this version, order unknown", event.Notification{Op: event.Deleted, Version: "2"}, true},
		{"another version, order unknown", event.Notification{Op: event.Deleted, Version: "3"}, false},
		{"confirmed by the storage", event.Notification{Op: event.Deleted}, true},
	} {
		if got := covers(c.deleted, two); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// tallyRecord is what a pause depends on.
type tallyRecord struct {
	scans  int
	err    string
	waited time.Duration
}

func (r tallyRecord) scan(at time.Time) store.Scan {
	return store.Scan{Scans: r.scans, Error: r.err, LastAt: at, NextAt: at.Add(r.waited)}
}

func TestPause(t *testing.T) {
	var cfg Config
	cfg.setDefaults()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	failing := func(waited time.Duration) tallyRecord {
		return tallyRecord{scans: 3, err: "down", waited: waited}
	}
	for _, c := range []struct {
		name             string
		rec              tallyRecord
		notified, failed bool
		least, most      time.Duration
	}{
		{"first", tallyRecord{}, true, false, 6 * time.Minute, time.Hour},
		{"later", tallyRecord{scans: 1}, true, false, 54 * time.Minute, time.Hour},
		{"nothing notifies", tallyRecord{scans: 1}, false, false, 54 * time.Second, time.Minute},
		{"failed", tallyRecord{scans: 1}, true, true, time.Minute, time.Minute},
		{"failed again", failing(time.Minute), true, true, 2 * time.Minute, 2 * time.Minute},
		{"failed for long", failing(50 * time.Minute), true, true, time.Hour, time.Hour},
		{"failed for long, nothing notifies", failing(50 * time.Minute), false, true, time.Hour, time.Hour},
	} {
		for _, spread := range []float64{0, 0.5, 0.999} {
			got := cfg.pause(c.rec.scan(at), c.notified, c.failed, spread)
			if got < c.least || got > c.most {
				t.Errorf("%s: %s, want %s to %s", c.name, got, c.least, c.most)
			}
		}
	}
}
