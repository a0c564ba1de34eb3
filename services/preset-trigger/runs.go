package presettrigger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// ErrNoMedia says that a run was asked for without any media. Nothing was made.
var ErrNoMedia = errors.New("a run needs at least one medium")

// ErrDeleted says that the run was there and somebody has deleted it.
var ErrDeleted = errors.New("the run was deleted")

// Runs makes runs and hands them to executors, for whoever starts them: the end of a job, or a person. It is safe for
// concurrent use.
type Runs struct {
	bus       *bus.Bus
	records   *store.Register[store.Run]
	prompts   *store.Register[store.Prompt]
	documents *store.Documents
}

// OpenRuns binds what runs are kept in. It fails with topology.ErrMissing when nobody has made it.
func OpenRuns(ctx context.Context, b *bus.Bus) (*Runs, error) {
	r := &Runs{bus: b}
	var err error
	if r.records, err = store.Open[store.Run](ctx, b, topology.RunRecords); err != nil {
		return nil, err
	}
	if r.prompts, err = store.Open[store.Prompt](ctx, b, topology.Prompts); err != nil {
		return nil, err
	}
	if r.documents, err = store.OpenDocuments(ctx, b); err != nil {
		return nil, err
	}
	return r, nil
}

// Request is a run to be made.
type Request struct {
	ID     string          // of the run; the same for every repetition of the same request
	Job    string          // whose media these are, "" if none
	Index  string          // "" if the media are of several
	Target string          // as in store.Run
	Preset json.RawMessage // names the prompt
	// Media is read at most once, from another goroutine, while it is stored. Each video once.
	Media iter.Seq2[event.RunMedium, error]
}

// Create stores the media list and then the record of a run, and returns the record. A run that has its list is
// returned as it is, and so is one that has ended; the record of one that somebody asked for gets its list now. It fails
// with ErrNoMedia or ErrDeleted.
//
// A crash between list and record leaves a list that no record names, which the repetition replaces.
func (r *Runs) Create(ctx context.Context, req Request) (store.Run, error) {
	asked, _, err := r.records.Get(ctx, req.ID)
	switch {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return asked, err
	case err == nil && made(asked):
		return asked, nil
	}
	// Read before the run can be known to anybody, hence before anything can be reported about it.
	reports, err := r.bus.State(ctx, topology.Reports)
	if err != nil {
		return store.Run{}, err
	}
	run := store.Run{
		ID: req.ID, Job: req.Job, Index: req.Index, Target: req.Target, Prompt: promptOf(req.Preset), Preset: req.Preset,
		Status: store.RunPending, Tallies: make(map[string]store.Tally), Media: mediaDocument(req.ID),
		ReportsFrom: reports.LastSeq + 1, CreatedAt: time.Now().UTC(),
	}
	if err := store.WriteLines(ctx, r.documents, run.Media, counting(&run, req.Media)); err != nil {
		return store.Run{}, fmt.Errorf("media of %s: %w", run.ID, err)
	}
	if err := failpoint.Here("runs.listed"); err != nil {
		return store.Run{}, err
	}
	if run.PromptName, err = r.promptName(ctx, run.Prompt); err != nil {
		return store.Run{}, err
	}
	if asked.ID == "" {
		err = r.records.Create(ctx, run.ID, run)
		if !errors.Is(err, bus.ErrConflict) {
			return run, err
		}
		// Somebody else was faster, or it was us and the answer got lost.
	}
	stored, _, err := r.records.Modify(ctx, run.ID, func(v *store.Run) error {
		switch {
		case v.ID == "":
			return fmt.Errorf("run %s: %w", run.ID, ErrDeleted)
		case made(*v):
			return store.ErrUnchanged
		}
		listed := run
		listed.CreatedAt, listed.ReportsFrom = v.CreatedAt, min(v.ReportsFrom, run.ReportsFrom)
		*v = listed
		return nil
	})
	return stored, err
}

// made reports whether a run on record has its list of media, or has ended without.
func made(run store.Run) bool { return run.Media != "" || run.Status.Terminal() }

func mediaDocument(run string) string { return "runs/" + run + ".media.jsonl" }

// counting passes media on and counts them into run. No media at all is an error, so that no empty list is stored.
func counting(run *store.Run, media iter.Seq2[event.RunMedium, error]) iter.Seq2[event.RunMedium, error] {
	return func(yield func(event.RunMedium, error) bool) {
		for m, err := range media {
			if err == nil {
				t := run.Tallies[m.MediaType]
				t.Total++
				run.Tallies[m.MediaType] = t
				run.Count++
				run.Seconds += m.Seconds
			}
			if !yield(m, err) {
				return
			}
		}
		if run.Count == 0 {
			yield(event.RunMedium{}, ErrNoMedia)
		}
	}
}

func (r *Runs) promptName(ctx context.Context, id string) (string, error) {
	p, _, err := r.prompts.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return "", nil // Dispatch says so, in the record
	}
	return p.Name, err
}

// Dispatch asks executors to carry out a run that was created, and notes that in its record. A run that was dispatched
// or has ended is left alone. The prompt is read now; if it is gone, the run ends as failed.
//
// A crash between asking and noting makes the sweep ask again, under the same message id and the same run: executors
// leave out what was reported.
func (r *Runs) Dispatch(ctx context.Context, run store.Run) error {
	if run.Dispatched || run.Status.Terminal() {
		return nil
	}
	prompt, _, err := r.prompts.Get(ctx, run.Prompt)
	if errors.Is(err, store.ErrNotFound) {
		return r.fail(ctx, run.ID, missingPrompt(run.Prompt))
	}
	if err != nil {
		return err
	}
	msg, err := r.request(ctx, run, prompt)
	if err != nil {
		return err
	}
	if err := failpoint.Here("runs.created"); err != nil {
		return err
	}
	if _, err := r.bus.Publish(ctx, msg); err != nil {
		return err
	}
	if err := failpoint.Here("runs.asked"); err != nil {
		return err
	}
	_, _, err = r.records.Modify(ctx, run.ID, func(v *store.Run) error {
		if v.ID == "" {
			return store.ErrUnchanged // deleted meanwhile
		}
		v.Dispatched = true
		return nil
	})
	return err
}

func missingPrompt(id string) string {
	if id == "" {
		return "the preset names no prompt"
	}
	return fmt.Sprintf("prompt %s does not exist any more", id)
}

// fail ends a run that cannot be carried out. The tracker announces it.
func (r *Runs) fail(ctx context.Context, id, reason string) error {
	now := time.Now().UTC()
	_, _, err := r.records.Modify(ctx, id, func(v *store.Run) error {
		if v.ID == "" || v.Status.Terminal() {
			return store.ErrUnchanged
		}
		v.Status, v.Error, v.EndedAt = store.RunFailed, reason, now
		return nil
	})
	return err
}

// maxInlineBytes bounds the media listed in a request, whose URIs may be long: the broker takes no message above its
// payload limit, a megabyte unless somebody changed it. Longer lists are read from the document.
const maxInlineBytes = 512 << 10

// request is the message that asks for a run: the same bytes at each repetition, unless the prompt was changed.
func (r *Runs) request(ctx context.Context, run store.Run, p store.Prompt) (bus.Message, error) {
	req := event.RunRequested{
		Run: run.ID, Job: run.Job, Index: run.Index, Preset: run.Preset,
		Prompt:     event.Prompt{ID: p.ID, Name: p.Name, Text: p.Text, JSONSchema: p.JSONSchema},
		MediaCount: run.Count, MediaObject: run.Media, RequestedAt: run.CreatedAt,
	}
	if run.Count <= event.MaxInlineMedia {
		size := 0
		for m, err := range store.ReadLines[event.RunMedium](ctx, r.documents, run.Media) {
			if err != nil {
				return bus.Message{}, err
			}
			req.Media = append(req.Media, m)
			size += 256 + len(m.Title) + len(m.URI)
		}
		if size > maxInlineBytes {
			req.Media = nil
		}
	}
	data, err := json.Marshal(req)
	if err != nil {
		return bus.Message{}, fmt.Errorf("encode request of %s: %w", run.ID, err)
	}
	return bus.Message{Subject: r.bus.Subject("run", "requested", run.Prompt), ID: run.ID, Data: data}, nil
}
