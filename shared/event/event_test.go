package event_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/shared/event"
)

var fileStates = []event.FileState{event.Queued, event.Importing, event.Imported, event.Skipped, event.Failed}

var skipReasons = []event.SkipReason{
	event.AlreadyImported, event.Unchanged, event.Empty, event.HiddenOrTemporary, event.UnsupportedType, event.TooLarge,
	event.ObjectGone, event.Superseded, event.Cancelled, event.Baseline,
}

func TestFinalStates(t *testing.T) {
	t.Parallel()
	final := map[event.FileState]bool{event.Imported: true, event.Skipped: true, event.Failed: true}
	for _, s := range fileStates {
		if s.Final() != final[s] {
			t.Errorf("%s: final is %v", s, s.Final())
		}
	}
}

func TestEverySkipReasonHasAPhrase(t *testing.T) {
	t.Parallel()
	seen := make(map[string]event.SkipReason)
	for _, r := range skipReasons {
		p := r.Phrase()
		if other, twice := seen[p]; twice {
			t.Errorf("%s and %s are both %q", r, other, p)
		}
		seen[p] = r
		if p == "" || strings.Contains(p, "_") || r != "unchanged" && p == string(r) {
			t.Errorf("%s has no phrase: %q", r, p)
		}
	}
	if got := event.SkipReason("of_tomorrow").Phrase(); got != "of_tomorrow" {
		t.Errorf("a reason we do not know is %q", got)
	}
}

func TestSettled(t *testing.T) {
	t.Parallel()
	now := time.Date(2025, 12, 24, 10, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name   string
		medium event.Medium
		want   bool
	}{
		{"imported", event.Medium{State: event.MediumImported}, true},
		{"deleted", event.Medium{State: event.MediumDeleted}, true},
		{"failed for good", event.Medium{State: event.MediumFailed}, true},
		{"failed, to be tried later", event.Medium{State: event.MediumFailed, RetryAt: now.Add(time.Second)}, true},
		{"failed, to be tried now", event.Medium{State: event.MediumFailed, RetryAt: now}, false},
		{"failed, to be tried before", event.Medium{State: event.MediumFailed, RetryAt: now.Add(-time.Hour)}, false},
		{"skipped whatever the time", event.Medium{State: event.MediumSkipped, RetryAt: now.Add(-time.Hour)}, true},
	} {
		if got := c.medium.Settled(now); got != c.want {
			t.Errorf("%s: settled is %v", c.name, got)
		}
	}
}

var token = regexp.MustCompile(`^[a-z]+_[0-9a-v_]+$`)

func TestIDs(t *testing.T) {
	t.Parallel()
	text := rapid.String()
	rapid.Check(t, func(t *rapid.T) {
		index, connector, path := text.Draw(t, "index"), text.Draw(t, "connector"), text.Draw(t, "path")
		version, job := text.Draw(t, "version"), text.Draw(t, "job")
		id := event.NewMediumID(index, connector, path, version, job)

		back, err := event.ParseMediumID(id.String())
		if err != nil || back != id {
			t.Fatalf("%s is read back as %v, %v", id, back, err)
		}
		var decoded event.MediumID
		if data, err := json.Marshal(id); err != nil || json.Unmarshal(data, &decoded) != nil || decoded != id {
			t.Fatalf("%s comes back from JSON as %s", id, decoded)
		}
		if again := event.NewMediumID(index, connector, path, version, job); again != id {
			t.Fatalf("asked twice, it is %s and %s", id, again)
		}
		if other := event.NewMediumID(index, connector, path, version+"'", job); other.Object != id.Object || other.Version == id.Version {
			t.Fatalf("versions of one object are %s and %s", id, other)
		}
		for _, s := range []string{
			id.String(), event.JobOfWindow(index, job), event.RunOfJob(job), event.AutomationOfIndex(index),
			event.IDOf(event.MediaCreated, index, path), event.NewID("con"), event.DerivedID("con", connector, path),
		} {
			if !token.MatchString(s) {
				t.Fatalf("%q cannot be a subject token, a key and a file name", s)
			}
		}
	})
}

// Where one part ends and the next begins is part of what is hashed.
func TestIDsDoNotCollideByConcatenation(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		whole := rapid.StringN(1, 24, -1).Draw(t, "whole")
		cuts := len([]rune(whole))
		split := func(label string) [2]string {
			n := rapid.IntRange(0, cuts).Draw(t, label)
			r := []rune(whole)
			return [2]string{string(r[:n]), string(r[n:])}
		}
		a, b := split("a"), split("b")
		same := a == b
		for name, id := range map[string]func([2]string) string{
			"object":       func(p [2]string) string { return event.ObjectHash(p[0], p[1]) },
			"window":       func(p [2]string) string { return event.JobOfWindow(p[0], p[1]) },
			"event":        func(p [2]string) string { return event.IDOf(event.MediaCreated, p[0], p[1]) },
			"derived":      func(p [2]string) string { return event.DerivedID("con", p[0], p[1]) },
			"index":        func(p [2]string) string { return event.NewMediumID(p[0], p[1], "p", "v", "").Object },
			"connector":    func(p [2]string) string { return event.NewMediumID("i", p[0], p[1], "v", "").Object },
			"version, job": func(p [2]string) string { return event.NewMediumID("i", "c", "p", p[0], p[1]).Version },
		} {
			if (id(a) == id(b)) != same {
				t.Fatalf("%s: %q and %q give %s and %s", name, a, b, id(a), id(b))
			}
		}
	})
}

func TestParseMediumIDRefusesEverythingElse(t *testing.T) {
	t.Parallel()
	good := event.NewMediumID("i", "c", "p", "v", "").String()
	for _, s := range []string{
		"", "vid_", strings.ToUpper(good), good + "0", good[:len(good)-1], " " + good, good + "\n",
		strings.Replace(good, "vid_", "job_", 1), strings.ReplaceAll(good, "_", "-"),
	} {
		if id, err := event.ParseMediumID(s); err == nil {
			t.Errorf("%q was read as %v", s, id)
		}
	}
	var m event.Medium
	if err := json.Unmarshal([]byte(`{"video_id":"vid_../../etc"}`), &m); err == nil {
		t.Error("a path was read as an id")
	}
}

func TestRandomIDsDiffer(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 10_000 {
		id := event.NewID("con")
		if len(id) != len("con_")+16 || seen[id] {
			t.Fatalf("%s", id)
		}
		seen[id] = true
	}
}
