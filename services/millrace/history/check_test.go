package history

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestCheck: a history in which all holds passes, and each way to break it is found under the invariant it breaks.
func TestCheck(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	good := func() []Entry {
		return []Entry{
			{At: at(0), What: Wired, Index: "i", Connector: "c", Path: "a/", Interval: 5 * time.Second, State: "runs"},
			{What: Hook, Hook: "h", State: "steady"},
			{At: at(1), What: Wrote, Connector: "c", Path: "a/x", Version: "1", SHA256: "s1", Size: 1},
			{At: at(2), What: Wrote, Connector: "c", Path: "a/x", Version: "2", SHA256: "s2", Size: 2},
			{At: at(2), What: Wrote, Connector: "c", Path: "b/y", Version: "1", SHA256: "s3", Size: 2},
			{At: at(3), What: Acked, Index: "canary"},
			{At: at(3), What: Acked, Job: "j"},
			{At: at(8), What: Seen, Job: "j", State: "importing", N: 0},
			{At: at(9), What: Fault, Detail: "node n1 is cut off"},
			{At: at(9), What: Seen, Job: "j", State: "completed", N: 9},
			{At: at(9), What: Healed, Detail: "node n1 is cut off"},
			{At: at(50), What: Seen, Job: "j", State: "completed", N: 2},
			{At: at(51), What: Paused, Index: "i"},
			{At: at(60), What: Resuming, Index: "i"},
			{What: Prompted, Run: "r", Video: "v2"},
			{What: Prompted, Run: "r", Video: "v2"},
			{What: Told, Hook: "h", Event: "e1", Delivery: "d1", State: "signed", N: 500, Job: "j"},
			{What: Told, Hook: "h", Event: "e1", Delivery: "d1", State: "signed", N: 200, Job: "j"},
			{What: Told, Hook: "h", Event: "e2", Delivery: "d2", State: "signed", N: 410, Run: "r"},
			{What: There, Connector: "c", Path: "a/x", Version: "2", SHA256: "s2"},
			{What: There, Connector: "c", Path: "b/y", Version: "1", SHA256: "s3"},
			{What: Index, Index: "i"},
			{What: Index, Index: "canary"},
			{At: at(7), What: Job, Job: "j", Index: "i", State: "completed", Detail: "automation", N: 2, Total: 2, Videos: []string{"v2"}},
			{What: File, Job: "j", Index: "i", Connector: "c", Path: "a/x", Version: "1", State: "skipped", Detail: "superseded by a newer version"},
			{What: File, Job: "j", Index: "i", Connector: "c", Path: "a/x", Version: "2", State: "imported", Video: "v2"},
			{What: Medium, Video: "v2", Index: "i", Connector: "c", Path: "a/x", Version: "2", Job: "j", SHA256: "s2", Size: 2},
			{What: Kept, Video: "v2", SHA256: "s2"},
			{What: Kept, Video: "v1", SHA256: "s1"}, // of the version that was superseded
			{What: Run, Run: "r", Job: "j", State: "completed_with_failures", Videos: []string{"v2"}},
			{What: Delivery, Delivery: "d1", Hook: "h", State: "delivered"},
			{What: Delivery, Delivery: "d2", Hook: "h", State: "failed", Detail: "receiver answered 410"},
			{What: Dead, Detail: "not JSON", State: Poison + " 1"},
		}
	}
	if wrong := Check(good()); len(wrong) > 0 {
		t.Fatalf("a good history: %q", wrong)
	}
	change := func(what string, do func(*Entry)) func([]Entry) []Entry {
		return func(h []Entry) []Entry {
			for i := range h {
				if h[i].What == what {
					do(&h[i])
				}
			}
			return h
		}
	}
	without := func(what string) func([]Entry) []Entry {
		return func(h []Entry) []Entry { return slices.DeleteFunc(h, func(e Entry) bool { return e.What == what }) }
	}
	with := func(e Entry) func([]Entry) []Entry { return func(h []Entry) []Entry { return append(h, e) } }
	for name, c := range map[string]struct {
		broken string
		how    func([]Entry) []Entry
	}{
		"an object nobody took":         {"I1", with(Entry{What: There, Connector: "c", Path: "a/z", Version: "1"})},
		"a live object called old":      {"I1", change(File, func(e *Entry) { e.State, e.Detail = "skipped", "superseded by a newer version" })},
		"a second medium":               {"I2", with(Entry{What: Medium, Video: "v3", Index: "i", Connector: "c", Path: "a/x", Version: "2", SHA256: "s2", Size: 2})},
		"a second import":               {"I2", with(Entry{What: File, Job: "j2", Index: "i", Connector: "c", Path: "a/x", Version: "2", State: "imported"})},
		"a second run":                  {"I3", with(Entry{What: Run, Run: "r2", Job: "j", State: "completed", Videos: []string{"v2"}})},
		"no run":                        {"I3", without(Run)},
		"a run of an empty job":         {"I3", change(Job, func(e *Entry) { e.Videos = nil })},
		"a run on too much":             {"I4", change(Run, func(e *Entry) { e.Videos = append(e.Videos, "v9") })},
		"a prompt about something else": {"I4", with(Entry{What: Prompted, Run: "r", Video: "v9"})},
		"a prompt that never came":      {"I4", without(Prompted)},
		"other bytes in the record":     {"I5", change(Medium, func(e *Entry) { e.SHA256 = "s1" })},
		"other bytes in the library":    {"I5", change(Kept, func(e *Entry) { e.SHA256 = "s1" })},
		"a file nobody knows":           {"I5", with(Entry{What: Kept, Video: "v9", SHA256: "s9"})},
		"a window that closed early":    {"I6", change(Job, func(e *Entry) { e.At = at(6) })},
		"progress that went back":       {"I7", with(Entry{At: at(55), What: Seen, Job: "j", State: "completed", N: 1})},
		"an end that was none":          {"I7", with(Entry{At: at(55), What: Seen, Job: "j", State: "importing", N: 2})},
		"a sum that is none":            {"I7", change(Job, func(e *Entry) { e.N = 1 })},
		"a lost acknowledgement":        {"I8", without(Index)},
		"a job that was acknowledged":   {"I8", with(Entry{What: Acked, Job: "j9"})},
		"a job without an end":          {"I9", change(Job, func(e *Entry) { e.State = "importing" })},
		"a run without an end":          {"I9", change(Run, func(e *Entry) { e.State = "processing" })},
		"a window left open":            {"I9", with(Entry{What: Window, Index: "i"})},
		"a message among the dead":      {"I9", with(Entry{What: Dead, Detail: "handler failed", State: `{"job_id":"j"}`})},
		"a queue that does not empty":   {"I9", with(Entry{What: Unrest, Detail: "1 message in tasks"})},
		"a panic":                       {"I9", with(Entry{What: Died, Detail: "importer: panic", State: "panic"})},
		"two ids of one event":          {"I10", with(Entry{What: Told, Hook: "h", Event: "e1", Delivery: "d3", State: "signed", N: 200, Job: "j"})},
		"no signature":                  {"I10", change(Told, func(e *Entry) { e.State = "sha256=00" })},
		"a delivery that still waits":   {"I10", change(Delivery, func(e *Entry) { e.State = "retrying" })},
		"an event nobody told":          {"I10", without(Told)},
		"a window closed in a pause":    {"I11", with(Entry{At: at(55), What: Job, Job: "j", Index: "i", State: "completed", Detail: "automation"})},
		"a key in a log":                {"I12", with(Entry{What: Leaked, Detail: "the API key is in admin.log"})},
	} {
		wrong := Check(c.how(good()))
		if !slices.ContainsFunc(wrong, func(w string) bool { return strings.HasPrefix(w, c.broken+":") }) {
			t.Errorf("%s: want %s, got %q", name, c.broken, wrong)
		}
	}
}
