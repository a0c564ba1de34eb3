package dir

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"millrace/shared/bucket"
)

// Op is what happened to a file.
type Op string

// The operations.
const (
	Created Op = "created" // written and closed, moved into place, or linked

	// Deleted: removed or moved away. Object has only a Path; one that ends in "/" stands for everything below it.
	Deleted Op = "deleted"

	// Overflow: changes were missed. List the folder; what happens from now on is reported.
	Overflow Op = "overflow"
)

// Change is something that happened in a watched folder. It is a hint: by the time it is heard of, more may have
// happened.
type Change struct {
	Op     Op
	Object bucket.Object
}

// WatchOptions is how to watch. The zero value is fine.
type WatchOptions struct {
	// Interval is how often a folder is walked that the kernel cannot watch for us: one on a network or FUSE mount,
	// or one with more sub-folders than fs.inotify.max_user_watches allows. Default 30 s.
	Interval time.Duration

	// Poll walks in any case.
	Poll bool

	// Mount is as in Options.
	Mount bool

	// Ready is called once, when every change from now on will be reported.
	Ready func()

	Log *slog.Logger // default: discard
}

func (o WatchOptions) withDefaults() WatchOptions {
	if o.Interval <= 0 {
		o.Interval = 30 * time.Second
	}
	if o.Ready == nil {
		o.Ready = func() {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Watch reports what happens to the files below path, at any depth, until ctx ends; it then returns the context's
// error. What was there before is not reported. report runs in one goroutine; while it runs, changes queue up in the
// kernel, and an Overflow says when they were too many.
//
// A file that is opened and closed several times is reported several times, and one that lay in a folder which was
// created or moved in may be reported before it is complete and then again. When polling, a file counts as complete
// when it stood still for one interval.
//
// Watch returns any other error when it can no longer watch, for instance because the folder itself was removed
// (ErrNoBucket). Start it again, and list.
func Watch(ctx context.Context, path string, opts WatchOptions, report func(Change)) error {
	opts = opts.withDefaults()
	src, err := Open(path, Options{Poll: opts.Poll, Mount: opts.Mount})
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	defer src.Close()
	log := opts.Log.With("folder", src.path)

	poll := opts.Poll
	if !poll {
		if kind, err := src.remoteName(); err != nil {
			return fmt.Errorf("watch: %w", err)
		} else if kind != "" {
			log.Info("folder is on a file system that other machines change unheard: walking it instead of watching",
				"filesystem", kind, "interval", opts.Interval)
			poll = true
		}
	}
	if !poll {
		watching := false
		err := notify(ctx, src, opts.Interval, func() { watching = true; opts.Ready() }, log, report)
		if !errors.Is(err, errNoWatches) {
			return fmt.Errorf("watch: %w", err)
		}
		log.Warn("the kernel has no more watches for us: walking the folder instead; raise fs.inotify.max_user_watches "+
			"and fs.inotify.max_user_instances to hear of files at once", "error", err, "interval", opts.Interval)
		if watching { // something happened that could not be followed
			opts.Ready = func() { report(Change{Op: Overflow}) }
		}
	}
	return fmt.Errorf("watch: %w", pollFolder(ctx, src, opts, report))
}

// errNoWatches: inotify is not to be had, or not for so many folders.
var errNoWatches = errors.New("no inotify watches left")

func (s *Source) remoteName() (string, error) {
	f, err := s.root.Load().Open(".")
	if err != nil {
		return "", wrap("open", s.path, err)
	}
	defer f.Close()
	return remoteName(f), nil
}

// moved returns an error if the path no longer names the folder that root is.
func (s *Source) moved(root *os.Root) error {
	now, err := os.Stat(s.path)
	if err != nil {
		return rootError(s.path, err)
	}
	held, err := root.Stat(".")
	if err != nil {
		return rootError(s.path, err)
	}
	if !os.SameFile(now, held) {
		return fmt.Errorf("folder %q: %w", s.path, errMoved)
	}
	if s.mount && !isMount(s.path) {
		return fmt.Errorf("folder %q: nothing is mounted there: %w", s.path, bucket.ErrNoBucket)
	}
	return nil
}

// errMoved: the path names another folder than the one we hold.
var errMoved = fmt.Errorf("it was replaced, or something was mounted over it or unmounted: %w", bucket.ErrUnavailable)
