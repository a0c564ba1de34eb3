package dir

import (
	"context"
	"errors"
	"os"
	"time"

	"millrace/shared/bucket"
)

// seen is what a poller remembers of a file.
type seen struct {
	path     string
	version  string
	reported bool // false: it was still changing
}

// pollFolder walks the folder again and again. Both the memory of the last walk and the walk itself are in byte order
// of the path, so comparing them is one pass over both.
func pollFolder(ctx context.Context, src *Source, opts WatchOptions, report func(Change)) error {
	// Whatever is there when we begin is known to whoever listed the folder after Ready. All walks are of one folder: what
	// is not in another that took its place, as when a share is unmounted, was not deleted.
	root := src.root.Load()
	known, err := pollOnce(ctx, src, root, nil, 0, func(Change) {})
	if err != nil {
		return err
	}
	for i := range known {
		known[i].reported = true
	}
	opts.Ready()
	tick := time.NewTicker(opts.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		// A walk that failed part-way says nothing about what it did not reach: it is dropped whole. Changes it already
		// reported are reported again.
		now, err := pollOnce(ctx, src, root, known, opts.Interval, report)
		switch {
		case err == nil:
			known = now
		case ctx.Err() != nil:
			return ctx.Err()
		case bucket.ClassOf(err) == bucket.ClassNoBucket, errors.Is(err, errMoved):
			return err
		default:
			opts.Log.Warn("walking the folder failed; trying again", "error", err, "interval", opts.Interval)
		}
	}
}

// pollOnce walks once and reports how what it finds differs from what was known. A changed file is reported when it is
// the same as in the last walk, or was last written more than quiet ago.
func pollOnce(
	ctx context.Context, src *Source, root *os.Root, known []seen, quiet time.Duration, report func(Change),
) ([]seen, error) {
	now := make([]seen, 0, len(known))
	var lost []string
	gone := func(s seen) { lost = append(lost, s.path) }
	walk := func(yield func(bucket.Object, error) bool) { list(ctx, root, bucket.ListOptions{}, yield) }
	for obj, err := range walk {
		if errors.Is(err, bucket.ErrUnreadable) {
			for len(known) > 0 && known[0].path < obj.Path {
				gone(known[0])
				known = known[1:]
			}
			for len(known) > 0 && len(known[0].path) > len(obj.Path) && known[0].path[:len(obj.Path)] == obj.Path {
				now, known = append(now, known[0]), known[1:] // closed to us, which is not gone
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		for len(known) > 0 && known[0].path < obj.Path {
			gone(known[0])
			known = known[1:]
		}
		s := seen{path: obj.Path, version: obj.Version}
		if len(known) > 0 && known[0].path == obj.Path {
			s.reported = known[0].version == obj.Version && known[0].reported
			if !s.reported && (known[0].version == obj.Version || time.Since(obj.ModTime) > quiet) {
				s.reported = true
				report(Change{Op: Created, Object: obj})
			}
			known = known[1:]
		} else if time.Since(obj.ModTime) > quiet {
			s.reported = true
			report(Change{Op: Created, Object: obj})
		}
		now = append(now, s)
	}
	for _, s := range known {
		gone(s)
	}
	// Told only when the walk is known to have been of the folder that the path names.
	if err := src.moved(root); err != nil {
		return nil, err
	}
	for _, path := range lost {
		report(Change{Op: Deleted, Object: bucket.Object{Path: path}})
	}
	return now, nil
}
