package presettrigger

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"

	"millrace/shared/bus"
	"millrace/shared/control"
	"millrace/shared/event"
	"millrace/shared/store"
)

// runWanted makes a run that somebody asked for. Whoever asked may have put it on record already, without its media.
func (p *PresetTrigger) runWanted(ctx context.Context, w event.RunWanted, _ *control.Message) error {
	if w.Run == "" || w.Job == "" && w.Index == "" && len(w.Videos) == 0 {
		return bus.Poison(fmt.Errorf("request of run %q: it lacks an id, or names no media", w.Run))
	}
	req := Request{ID: w.Run, Job: w.Job, Index: w.Index, Preset: w.Preset}
	switch {
	case len(w.Videos) > 0:
		req.Media = p.named(ctx, w.Videos)
	case w.Job != "":
		job, _, err := p.jobs.Get(ctx, w.Job)
		if errors.Is(err, store.ErrNotFound) || err == nil && job.Report == "" {
			return p.refuse(ctx, w, fmt.Sprintf("import job %s has no report", w.Job))
		}
		if err != nil {
			return err
		}
		req.Media = p.imported(ctx, job)
	default:
		req.Target, req.Media = store.OfIndex, p.inIndex(ctx, w.Index, w.AsOf)
	}
	run, err := p.runs.Create(ctx, req)
	switch {
	case errors.Is(err, ErrNoMedia):
		return p.refuse(ctx, w, "there are no media to run on")
	case errors.Is(err, ErrDeleted):
		return nil
	case err != nil:
		return err
	}
	return p.runs.Dispatch(ctx, run)
}

// refuse ends a run that cannot be made. It is put on record if whoever asked has not come to that yet, or that record
// would stay pending for ever.
func (p *PresetTrigger) refuse(ctx context.Context, w event.RunWanted, reason string) error {
	_, _, err := p.runs.records.Modify(ctx, w.Run, func(v *store.Run) error {
		if v.ID == "" {
			*v = store.Run{
				ID: w.Run, Job: w.Job, Index: w.Index, Prompt: promptOf(w.Preset), Preset: w.Preset,
				Status: store.RunPending, Tallies: make(map[string]store.Tally), CreatedAt: w.RequestedAt,
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.runs.fail(ctx, w.Run, reason)
}

// named yields the media of these ids, in their order. One that has left the ledger stays in the list: that it cannot be
// read is for the executor to say.
func (p *PresetTrigger) named(ctx context.Context, videos []string) iter.Seq2[event.RunMedium, error] {
	return func(yield func(event.RunMedium, error) bool) {
		for chunk := range slices.Chunk(videos, lookupChunk) {
			ids := make([]event.MediumID, len(chunk))
			for i, v := range chunk {
				id, err := event.ParseMediumID(v)
				if err != nil {
					yield(event.RunMedium{}, bus.Poison(err))
					return
				}
				ids[i] = id
			}
			entries, err := p.ledger.Find(ctx, ids...)
			if err != nil {
				yield(event.RunMedium{}, err)
				return
			}
			byID := make(map[event.MediumID]event.Medium, len(entries))
			for _, e := range entries {
				byID[e.ID] = e.Medium
			}
			for _, id := range ids {
				m := byID[id]
				if !yield(mediumOf(id, m), nil) {
					return
				}
			}
		}
	}
}

// inIndex yields the media that were in an index as of a sequence of the ledger, and still are.
func (p *PresetTrigger) inIndex(ctx context.Context, index string, asOf uint64) iter.Seq2[event.RunMedium, error] {
	return func(yield func(event.RunMedium, error) bool) {
		for e, err := range p.ledger.All(ctx, index, asOf) {
			if err != nil {
				yield(event.RunMedium{}, err)
				return
			}
			if e.State == event.MediumImported && !yield(mediumOf(e.ID, e.Medium), nil) {
				return
			}
		}
	}
}

// mediumOf is what an executor is told about a medium; m is its ledger entry, zero if there is none.
func mediumOf(id event.MediumID, m event.Medium) event.RunMedium {
	title := id.String()
	if m.Path != "" {
		title = path.Base(m.Path)
	}
	return event.RunMedium{
		Video: id.String(), Title: title, URI: m.URI, MediaType: m.MediaType, ContentType: m.ContentType,
		Seconds: m.Seconds, Size: m.Size,
	}
}
