package scanner

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"millrace/shared/event"
	"millrace/shared/store"
)

// again plans files of a job that has ended once more. Which ones stands in that job's report, which does not change
// any more, so a planner that starts over sees the same; what it planned before it meets at the entries, as in a listing.
func (p *planner) again(ctx context.Context, req event.JobRequested) (string, error) {
	pl, err := p.begin(ctx, req)
	if err != nil {
		return "", err
	}
	if err := p.checkIndex(ctx, req.Index); err != nil {
		return "", err
	}
	for page, err := range paged(p.reported(ctx, req)) {
		if errors.Is(err, store.ErrNotFound) {
			return "", &lastingError{fmt.Sprintf("what became of the files of job %s is no longer on record", req.RetryOf)}
		}
		if err == nil {
			err = p.recall(ctx, req.Index, page.files)
		}
		if err == nil {
			err = pl.add(ctx, page)
		}
		if err != nil {
			return "", err
		}
	}
	return done, pl.finish(ctx)
}

// reported yields the files that a retry is about. It fails with store.ErrNotFound when nobody knows them any more.
func (p *planner) reported(ctx context.Context, req event.JobRequested) iter.Seq2[file, error] {
	return func(yield func(file, error) bool) {
		job, _, err := p.jobs.Get(ctx, req.RetryOf)
		if err == nil && job.Report == "" {
			err = fmt.Errorf("job %s has no report: %w", req.RetryOf, store.ErrNotFound)
		}
		if err != nil {
			yield(file{}, err)
			return
		}
		for f, err := range store.ReadLines[event.File](ctx, p.docs, job.Report) {
			if err != nil {
				yield(file{}, err)
				return
			}
			if wantsAgain(req, f) && !yield(fileOf(job, f), nil) {
				return
			}
		}
	}
}

// wantsAgain reports whether a retry is about a file of the job before.
func wantsAgain(req event.JobRequested, f event.File) bool {
	if req.RetryPath != "" {
		return f.Path == req.RetryPath
	}
	return f.State == event.Failed
}

func fileOf(job store.Job, f event.File) file {
	out := file{connector: f.Connector, Object: event.Object{Path: f.Path, Version: f.Version, Size: f.Size}}
	if out.connector == "" {
		out.connector = job.Connector
	}
	if f.Version == "" { // it could not even be listed, and there is nothing that a retry could ask for
		out.refused = f.Error
		if out.refused == "" {
			out.refused = "it has no version"
		}
	}
	return out
}

// recall adds what a report leaves out and the ledger has kept of the same version. Without it nothing is lost: the
// importer then goes by the version alone.
func (p *planner) recall(ctx context.Context, index string, files []file) error {
	objects := make([]string, len(files))
	for i, f := range files {
		objects[i] = event.NewMediumID(index, f.connector, f.Path, "", "").Object
	}
	entries, err := p.ledger.Versions(ctx, index, objects...)
	type key struct{ object, version string }
	known := make(map[key]event.Medium, len(entries))
	for _, e := range entries {
		known[key{e.ID.Object, e.Version}] = e.Medium
	}
	for i := range files {
		if m, ok := known[key{objects[i], files[i].Version}]; ok {
			files[i].Order, files[i].CRC32C = m.Order, m.CRC32C
		}
	}
	return err
}
