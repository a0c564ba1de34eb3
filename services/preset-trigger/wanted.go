package presettrigger

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"time"

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
// would stay pending for ever. One that was deleted stays so.
func (p *PresetTrigger) refuse(ctx context.Context, w event.RunWanted, reason string) error {
	err := p.runs.records.Create(ctx, w.Run, store.Run{
		ID: w.Run, Job: w.Job, Index: w.Index, Prompt: promptOf(w.Preset), Preset: w.Preset, Status: store.RunFailed, Error: reason,
		Tallies: make(map[string]store.Tally), CreatedAt: w.RequestedAt, EndedAt: time.Now().UTC(),
	})
	if errors.Is(err, bus.ErrConflict) {
		return p.runs.fail(ctx, w.Run, reason)
	}
	return err
}

// named yields the media of these ids, in their order. One that has left the ledger stays in the list: that it cannot
// be read is for the executor to say.
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
			known := byID(entries)
			for i, id := range ids {
				if !yield(mediumOf(chunk[i], known[id]), nil) {
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
			if e.State == event.MediumImported && !yield(mediumOf(e.ID.String(), e.Medium), nil) {
				return
			}
		}
	}
}

func byID(entries []store.Entry) map[event.MediumID]event.Medium {
	media := make(map[event.MediumID]event.Medium, len(entries))
	for _, e := range entries {
		media[e.ID] = e.Medium
	}
	return media
}

// mediumOf is what an executor is told about a medium; m is its ledger entry, zero if there is none.
func mediumOf(video string, m event.Medium) event.RunMedium {
	title := video
	if m.Path != "" {
		title = path.Base(m.Path)
	}
	return event.RunMedium{
		Video: video, Title: title, URI: m.URI, MediaType: m.MediaType, ContentType: m.ContentType,
		Seconds: m.Seconds, Size: m.Size,
	}
}
