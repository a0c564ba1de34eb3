package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"millrace/services/scanner"
	"millrace/shared/bucket"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// explanation is the story of one object.
type explanation struct {
	Connector     string              `json:"connector_id"`
	Path          string              `json:"path"`
	Verdict       string              `json:"verdict" doc:"the answer in a sentence or two"`
	Object        *explainedObject    `json:"object" doc:"what the storage holds now; null when there is none, or it could not be asked"`
	StorageError  *string             `json:"storage_error" doc:"why the storage could not be asked"`
	Automations   []explainedInterest `json:"automations" nullable:"false" doc:"of this connector: whether each wants the object, and why or why not"`
	Steps         []explainedStep     `json:"steps" nullable:"false" doc:"what happened, the oldest first"`
	SearchedSince *string             `json:"notifications_searched_since" format:"date-time" doc:"null: all that are kept, 7 days; else older ones were not looked at, as there are too many"`
}

type explainedObject struct {
	Version    string  `json:"version"`
	SizeBytes  int64   `json:"size_bytes"`
	ModifiedAt *string `json:"modified_at" format:"date-time"`
}

type explainedInterest struct {
	Automation string `json:"automation_id"`
	Index      string `json:"index_id"`
	Matches    bool   `json:"matches"`
	Reason     string `json:"reason"`
	Outcome    string `json:"outcome" doc:"what became of the object here"`
}

type explainedStep struct {
	At         string  `json:"at" format:"date-time"`
	Step       string  `json:"step" enum:"notification,scan,arrival,job,file,media,run,dead"`
	Text       string  `json:"text"`
	Version    *string `json:"version"`
	Automation *string `json:"automation_id"`
	Index      *string `json:"index_id"`
	Job        *string `json:"job_id"`
	Video      *string `json:"video_id"`
	Run        *string `json:"run_id"`
	Dead       *string `json:"dead_id"`
}

type explainObject struct {
	Connector string `query:"connector_id" required:"true" minLength:"1"`
	Path      string `query:"path" required:"true" minLength:"1" maxLength:"4096" doc:"the whole key"`
}

// How long the parts of an explanation may take that depend on how much there is. What was not looked at is said.
const (
	storageTime       = 5 * time.Second
	notificationsTime = 4 * time.Second
	lettersTime       = 2 * time.Second
	reportsTime       = 15 * time.Second
	mostNotifications = 20
	mostLetters       = 10
)

func (a *Admin) explainRoutes() {
	register(a, route{
		method: "GET", path: "/explain", scope: read, tag: "Explain", timeout: browseTimeout, summary: "Tell the whole story of one object",
		about: "What the storage holds, which notifications were seen, which automations want it or why not, where it waits, the " +
			"jobs and attempts, the media and runs that came of it, and what could not be handled.",
	}, a.explainObject)
}

// story is an explanation in the making.
type story struct {
	*Admin
	explanation
	connector store.Connector
	hash      string // of the object, on subjects
	steps     []timedStep
	scans     map[string]store.Scan    // by automation
	pending   map[string]*waiting      // by automation
	entries   map[string][]store.Entry // by index: all versions in its ledger
	files     []event.File             // entries in jobs that have not ended
	jobs      map[string]store.Job
	runs      map[string]store.Run // by job
}

type timedStep struct {
	at time.Time
	explainedStep
}

// waiting is an arrival that no job has taken up yet.
type waiting struct {
	event.Arrival
	window window.Record
	open   bool // in the open window
}

func (a *Admin) explainObject(ctx context.Context, in *explainObject) (*body[explanation], error) {
	c, err := lookUp(ctx, a.connectors, "connector", in.Connector)
	if err != nil {
		return nil, err
	}
	s := &story{
		Admin: a, connector: c, hash: event.ObjectHash(c.ID, in.Path),
		explanation: explanation{Connector: c.ID, Path: in.Path, Automations: make([]explainedInterest, 0), Steps: make([]explainedStep, 0)},
		scans:       make(map[string]store.Scan), pending: make(map[string]*waiting), entries: make(map[string][]store.Entry),
		jobs: make(map[string]store.Job), runs: make(map[string]store.Run),
	}
	s.askStorage(ctx)
	for _, part := range []func(context.Context) error{
		s.tellNotifications, s.readAutomations, s.readLedger, s.readFiles, s.tellJobs, s.tellRuns, s.tellDead,
	} {
		if err := part(ctx); err != nil {
			return nil, err
		}
	}
	for i := range s.Automations {
		s.Automations[i].Outcome = s.outcome(s.Automations[i])
	}
	s.Verdict = s.verdict()
	slices.SortStableFunc(s.steps, func(x, y timedStep) int { return x.at.Compare(y.at) })
	for _, step := range s.steps {
		s.Steps = append(s.Steps, step.explainedStep)
	}
	return &body[explanation]{s.explanation}, nil
}

func (s *story) tell(at time.Time, kind string, step explainedStep, format string, args ...any) {
	if at.IsZero() {
		return
	}
	step.At, step.Step, step.Text = stamp(at), kind, fmt.Sprintf(format, args...)
	s.steps = append(s.steps, timedStep{at, step})
}

// askStorage asks what there is now. A storage that does not answer leaves the rest of the story true.
func (s *story) askStorage(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, storageTime)
	defer cancel()
	var o bucket.Object
	src, _, err := s.deps.Sources.Source(ctx, s.Connector)
	if err == nil {
		o, err = src.Stat(ctx, s.Path)
	}
	switch {
	case errors.Is(err, bucket.ErrNotExist):
	case err != nil:
		s.StorageError = orNull(remedy(s.connector, err))
	default:
		s.Object = &explainedObject{Version: o.Version, SizeBytes: o.Size, ModifiedAt: stampOrNull(o.ModTime)}
	}
}

// needle is the longest part of a path that looks the same in every encoding of it.
func needle(path string) []byte {
	plain := func(r rune) bool {
		return r < '0' && r != '-' && r != '.' || r > '9' && r < 'A' || r > 'Z' && r < 'a' && r != '_' || r > 'z'
	}
	longest := ""
	for _, part := range strings.FieldsFunc(path, plain) {
		if len(part) > len(longest) {
			longest = part
		}
	}
	return []byte(longest)
}

// tellNotifications looks through what the storage has said, the newest first, for as long as that may take.
func (s *story) tellNotifications(ctx context.Context) error {
	look, cancel := context.WithTimeout(ctx, notificationsTime)
	defer cancel()
	part := needle(s.Path)
	found := 0
	oldest := time.Now()
	for m, err := range s.bus.Back(look, topology.Notifications, s.bus.Subject("notification", s.Connector), 0) {
		if err != nil && look.Err() != nil && ctx.Err() == nil || found == mostNotifications {
			s.SearchedSince = stampOrNull(oldest)
			return nil
		}
		if err != nil {
			return err
		}
		oldest = m.Time
		if !bytes.Contains(m.Data, part) {
			continue
		}
		changes, err := scanner.ReadNotification(s.connector, m.Data)
		if err != nil {
			continue // what cannot be read is told with the dead
		}
		for _, n := range changes {
			if n.Path != s.Path {
				continue
			}
			found++
			s.tell(m.Time, "notification", explainedStep{Version: orNull(n.Version)}, "The storage said that the object was %s%s.", n.Op, versionText(n.Version))
		}
	}
	return nil
}

// readAutomations finds who wants the object, and what waits for whom.
func (s *story) readAutomations(ctx context.Context) error {
	found, err := all(ctx, s.automations)
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(x, y store.Automation) int { return cmp.Compare(x.ID, y.ID) })
	for _, at := range found {
		if at.Connector != s.Connector {
			continue
		}
		matches, reason := interest(at, s.Path)
		s.Automations = append(s.Automations, explainedInterest{Automation: at.ID, Index: at.Index, Matches: matches, Reason: reason})
		if err := s.readPending(ctx, at); err != nil {
			return err
		}
		scan, _, err := s.Admin.scans.Get(ctx, at.ID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		s.scans[at.ID] = scan
		if matches && !scan.LastAt.IsZero() {
			text := fmt.Sprintf("The automation was last listed: %d objects matched, %d of them news.", scan.Listed, scan.Found)
			if scan.Error != "" {
				text = "The automation could not be listed whole: " + scan.Error
			}
			s.tell(scan.LastAt, "scan", explainedStep{Automation: orNull(at.ID), Index: orNull(at.Index)}, "%s", text)
		}
	}
	return nil
}

func (s *story) readPending(ctx context.Context, at store.Automation) error {
	for m, err := range s.bus.Last(ctx, topology.Arrivals, s.bus.Subject("arrival", at.ID, s.hash)) {
		if err != nil {
			return err
		}
		w := &waiting{}
		if json.Unmarshal(m.Data, &w.Arrival) != nil {
			continue
		}
		if w.window, err = s.windows.Get(ctx, at.ID); err != nil {
			return err
		}
		w.open = w.window.Open != nil && m.Sequence > w.window.ClosedSeq
		s.pending[at.ID] = w
		s.tell(m.Time, "arrival", explainedStep{Version: orNull(w.Version), Automation: orNull(at.ID), Index: orNull(at.Index)},
			"It arrived as new, %s%s. %s", foundText(w.Found), versionText(w.Version), w.text())
	}
	return nil
}

// readLedger reads what is on record about all versions of the object, in every index.
func (s *story) readLedger(ctx context.Context) error {
	for x, err := range s.indexes.All(ctx) {
		if err != nil {
			return err
		}
		entries, err := s.ledger.Versions(ctx, x.ID, event.NewMediumID(x.ID, s.Connector, s.Path, "", "").Object)
		if err != nil {
			return err
		}
		for _, e := range entries {
			s.entries[x.ID] = append(s.entries[x.ID], e)
			s.jobs[e.Job] = store.Job{}
			step := explainedStep{Version: orNull(e.Version), Index: orNull(x.ID), Job: orNull(e.Job)}
			if e.State == event.MediumImported || e.State == event.MediumDeleted {
				step.Video = orNull(e.ID.String())
			}
			s.tell(e.CreatedAt, "media", step, "%s", settledText(e.Medium))
		}
	}
	return nil
}

// readFiles finds the object in jobs that have not ended.
func (s *story) readFiles(ctx context.Context) error {
	for m, err := range s.bus.Last(ctx, topology.Files, s.bus.Subject("file", "*", s.hash)) {
		if err != nil {
			return err
		}
		var f event.File
		if err := json.Unmarshal(m.Data, &f); err != nil {
			return fmt.Errorf("decode %s: %w", m.Subject, err)
		}
		s.files = append(s.files, f)
		s.jobs[f.Job] = store.Job{}
		s.tellFile(f, m.Time)
	}
	return nil
}

func (s *story) tellFile(f event.File, at time.Time) {
	text := string(f.State)
	switch {
	case f.State == event.Skipped:
		text = "skipped: " + f.Reason.Phrase()
	case f.Error != "" && f.State == event.Failed:
		text = "failed: " + f.Error
	case f.Error != "":
		text += ", the last attempt said: " + f.Error
	}
	s.tell(at, "file", explainedStep{Version: orNull(f.Version), Index: orNull(f.Index), Job: orNull(f.Job), Video: orNull(f.Video)},
		"In its job it is %s. Attempts: %d.", text, f.Attempts)
}

// tellJobs tells of the jobs that had the object in hand, and what their reports say of it as far as there is time to
// read them all.
func (s *story) tellJobs(ctx context.Context) error {
	delete(s.jobs, "")
	look, cancel := context.WithTimeout(ctx, reportsTime)
	defer cancel()
	for _, id := range slices.Sorted(maps.Keys(s.jobs)) {
		j, _, err := s.Admin.jobs.Get(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			delete(s.jobs, id)
			continue
		}
		if err != nil {
			return err
		}
		s.jobs[id] = j
		step := explainedStep{Job: orNull(id), Index: orNull(j.Index), Automation: orNull(j.Automation)}
		switch {
		case j.RetryOf != "":
			s.tell(j.CreatedAt, "job", step, "A person had files of %s tried again, as %s.", j.RetryOf, id)
		case j.Automation != "":
			s.tell(j.CreatedAt, "job", step, "The window closed and became %s.", id)
		default:
			s.tell(j.CreatedAt, "job", step, "A person asked for %s.", id)
		}
		s.tell(j.EndedAt, "job", step, "%s ended %s: %d imported, %d skipped, %d failed.", id, j.Status, j.Progress.Imported, j.Progress.Skipped, j.Progress.Failed)
		if err := s.tellReported(look, j); err != nil && (look.Err() == nil || ctx.Err() != nil) {
			return err
		}
	}
	return nil
}

// tellReported finds the object in the report of a job.
func (s *story) tellReported(ctx context.Context, j store.Job) error {
	if j.Report == "" {
		return nil
	}
	for f, err := range store.ReadLines[event.File](ctx, s.documents, j.Report) {
		switch {
		case errors.Is(err, store.ErrNotFound):
			return nil
		case err != nil:
			return err
		case f.Path == s.Path && (f.Connector == s.Connector || f.Connector == ""):
			s.tellFile(f, cmp.Or(f.EndedAt, j.EndedAt))
			return nil
		}
	}
	return nil
}

// tellRuns tells of the runs over what was imported.
func (s *story) tellRuns(ctx context.Context) error {
	var subjects []string
	for _, entries := range s.entries {
		for _, e := range entries {
			if e.State != event.MediumImported || e.Job == "" {
				continue
			}
			r, _, err := s.Admin.runs.Get(ctx, event.RunOfJob(e.Job))
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			subjects = append(subjects, s.bus.Subject("run", "report", r.ID, e.ID.String()))
			if _, told := s.runs[e.Job]; told {
				continue
			}
			s.runs[e.Job] = r
			step := explainedStep{Run: orNull(r.ID), Job: orNull(r.Job), Index: orNull(r.Index)}
			s.tell(r.CreatedAt, "run", step, "The prompt %q is run on the %d media of the job.", r.PromptName, r.Count)
			s.tell(r.EndedAt, "run", step, "The run ended %s.", r.Status)
		}
	}
	for m, err := range s.bus.Last(ctx, topology.Reports, subjects...) {
		if err != nil {
			return err
		}
		var r event.Report
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return fmt.Errorf("decode %s: %w", m.Subject, err)
		}
		text := string(r.State)
		if r.Error != "" {
			text += ": " + r.Error
		}
		s.tell(m.Time, "run", explainedStep{Run: orNull(r.Run), Video: orNull(r.Video)}, "The executor reports this medium as %s.", text)
	}
	return nil
}

// tellDead tells what could not be handled, for as long as looking for it may take.
func (s *story) tellDead(ctx context.Context) error {
	look, cancel := context.WithTimeout(ctx, lettersTime)
	defer cancel()
	part, found := needle(s.Path), 0
	said := s.bus.Subject("notification", s.Connector)
	for m, err := range s.bus.Back(look, topology.DeadLetters, s.bus.Subject("dead", "*", "*"), 0) {
		if err != nil && look.Err() != nil && ctx.Err() == nil || found == mostLetters {
			return nil
		}
		if err != nil {
			return err
		}
		d := readDead(m.Data, m.Subject)
		about := strings.HasSuffix(d.Subject, "."+s.hash) || d.Subject == said && len(part) > 0 && bytes.Contains(d.Data, part)
		if !about {
			continue
		}
		found++
		s.tell(d.At, "dead", explainedStep{Dead: orNull(deadID(m.Sequence, m.Data))},
			"A message about it could not be handled by %s, deliveries: %d. %s.", d.Service, d.Delivered, d.Reason)
	}
	return nil
}
