package admin

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"millrace/shared/event"
	"millrace/shared/match"
	"millrace/shared/store"
)

// What an explanation makes of what it has gathered, and its words.

// outcome says what became of the object for one automation.
func (s *story) outcome(at explainedInterest) string {
	text := s.standing(at.Index)
	if w := s.pending[at.Automation]; w != nil {
		text = strings.TrimSpace(text + " Version " + w.Version + ": " + w.text())
	}
	if text != "" {
		return text
	}
	if !at.Matches {
		return "Nothing: " + at.Reason + "."
	}
	if s.Object == nil && s.StorageError == nil {
		return "Nothing: the storage has no such object."
	}
	if next := s.scans[at.Automation].NextAt; next.After(time.Now()) {
		return "Nothing yet: it was not noticed. The next listing is at " + stamp(next) + "."
	}
	return "Nothing yet: it was not noticed. A listing will find it."
}

// standing is where the object stands in an index, "" for nowhere: in a job, or settled. Of several versions the one
// that the storage holds now counts, else the one that was settled last.
func (s *story) standing(index string) string {
	for _, f := range s.files {
		if f.Index == index && !f.State.Final() {
			return fmt.Sprintf("It is %s in job %s.", f.State, f.Job)
		}
	}
	var last *store.Entry
	for i, e := range s.entries[index] {
		if s.Object != nil && e.Version == s.Object.Version {
			last = &s.entries[index][i]
			break
		}
		if last == nil || e.CreatedAt.After(last.CreatedAt) {
			last = &s.entries[index][i]
		}
	}
	if last == nil {
		return ""
	}
	text := settledText(last.Medium)
	if s.Object != nil && last.Version != s.Object.Version {
		text = "An older version, " + last.Version + ": " + text
	}
	if r, ok := s.runs[last.Job]; ok && last.State == event.MediumImported {
		text += fmt.Sprintf(" Its run %s is %s.", r.ID, r.Status)
	}
	return text
}

// verdict is the answer in short.
func (s *story) verdict() string {
	var said []string
	told := make(map[string]bool)
	for _, at := range s.Automations {
		if at.Matches || s.standing(at.Index) != "" {
			told[at.Index] = true
			said = append(said, fmt.Sprintf("Index %s: %s", at.Index, at.Outcome))
		}
	}
	indexes := slices.Collect(maps.Keys(s.entries))
	for _, f := range s.files {
		indexes = append(indexes, f.Index)
	}
	slices.Sort(indexes)
	for _, index := range slices.Compact(indexes) {
		if !told[index] {
			said = append(said, fmt.Sprintf("Index %s: %s", index, s.standing(index)))
		}
	}
	switch {
	case len(said) > 0:
		return strings.Join(said, " ")
	case len(s.Automations) == 0:
		return "No automation is about this connector, and no job has imported the object."
	}
	why := make([]string, len(s.Automations))
	for i, at := range s.Automations {
		why[i] = at.Reason
	}
	return "No automation wants the object: " + strings.Join(slices.Compact(why), "; ") + "."
}

// interest says whether an automation wants a path, and why or why not.
func interest(at store.Automation, path string) (bool, string) {
	m, err := match.Compile(at.Prefix, at.Pattern, at.Recursive)
	switch {
	case err != nil:
		return false, "its file_pattern cannot be read: " + err.Error()
	case !strings.HasPrefix(path, at.Prefix):
		return false, fmt.Sprintf("the path does not begin with its source_prefix %q", at.Prefix)
	case strings.HasSuffix(path, "/"):
		return false, "the path ends in /, which marks a folder"
	case !m.Match(path):
		if deep, err := match.Compile(at.Prefix, at.Pattern, true); err == nil && deep.Match(path) {
			return false, "the object lies in a folder below the source_prefix, and recursive is false"
		}
		return false, fmt.Sprintf("the path does not match its file_pattern %q", at.Pattern)
	case !at.Enabled:
		return false, "prefix and pattern match, but the automation is disabled"
	case at.Paused:
		return true, "prefix and pattern match; the automation is paused, so what arrives waits"
	}
	return true, "prefix and pattern match"
}

func (w *waiting) text() string {
	switch {
	case w.open && w.window.Held:
		return "It waits in the open window, which is held while the automation is paused."
	case w.open && !w.window.Open.Deadline.After(time.Now()):
		return "It waits in the open window, which is due and closes now."
	case w.open:
		return fmt.Sprintf("It waits in the open window, which closes at %s unless more arrives.", stamp(w.window.Open.Deadline))
	}
	return "Its window has closed, and the job is being planned."
}

// settledText says how a version was settled.
func settledText(m event.Medium) string {
	because := func(text string) string {
		if m.Error != "" {
			text += " (" + m.Error + ")"
		}
		return text + "."
	}
	switch m.State {
	case event.MediumImported:
		return fmt.Sprintf("Imported as %s.", m.ID)
	case event.MediumDeleted:
		return "Imported, and then deleted by a person; it does not come back by itself."
	case event.MediumBaseline:
		if m.Reason == string(event.Cancelled) {
			return "Left alone: a person dropped the window it was in. An import job would still import it."
		}
		return "Left alone: it was there before the automation. An import job would still import it."
	case event.MediumSkipped:
		return because("Skipped: " + event.SkipReason(m.Reason).Phrase())
	}
	text := because("Failed: " + m.Reason)
	if !m.RetryAt.IsZero() {
		text += " A listing tries it again from " + stamp(m.RetryAt) + " on."
	}
	return text
}

func foundText(f event.Found) string {
	switch f {
	case event.ByScan:
		return "found by a listing"
	case event.ByImporter:
		return "found when an older version was to be imported"
	case event.ByNotification:
		return "announced by a notification"
	}
	return "found"
}

func versionText(v string) string {
	if v == "" {
		return ""
	}
	return ", version " + v
}
