package dir

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"sync"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bucket"
)

// syncer makes files durable, for many at once.
//
// Callers join a round and wait for it. At most one round runs at a time; whoever comes while it runs joins the next,
// which has to begin after they came. A round of few files syncs each file and its folder; a round of many syncs the
// whole file system.
//
// What failed to reach the disk may look fine from then on: the kernel reports a lost write once, and a second sync
// says yes. So failures are remembered by key until the key is put again, and a write that was under way while the file
// system failed does not count.
type syncer struct {
	dir       *os.File                // the root, held open from the start: syncfs reports what went wrong since
	syncFile  func(name string) error // one file or folder
	syncWhole func() error            // everything; nil where the file system cannot be trusted with that

	mu      sync.Mutex
	epoch   uint64            // grows when the file system failed
	changes uint64            // counts stored
	pending map[string]uint64 // key → its change: stored or deleted, and not durable for all we know
	lost    map[string]error  // key → why
	next    *round            // being joined
	running bool

	// durable holds folders whose own names are known to be on disk. Only the running round uses it.
	durable map[string]bool
}

type round struct {
	keys map[string]bool
	all  bool
	done chan struct{}
}

// manyFiles is where a round turns to syncing the whole file system. On ext4, syncing files one by one costs about 0.25 ms
// each, 16 at a time, and syncing the file system about 1 ms and what there is to write: it is cheaper from two files on
// (BenchmarkSync). But it also waits for everything other programs have written, so a few files are synced by
// themselves, which costs no more than that.
const manyFiles = 8

// maxPending bounds what is remembered about keys that nobody ever syncs.
const maxPending = 10_000

func newSyncer(root *os.Root) (*syncer, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	s := &syncer{
		dir:     dir,
		pending: map[string]uint64{}, lost: map[string]error{}, durable: map[string]bool{".": true},
	}
	s.syncFile = func(name string) error {
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	}
	if syncsWhole(dir) {
		s.syncWhole = func() error { return syncWhole(dir) }
	}
	return s, nil
}

func (s *syncer) close() error { return s.dir.Close() }

// start is called before a file is written, stored after it is in place.
func (s *syncer) start() (epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

func (s *syncer) stored(key string, epoch uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	s.pending[key] = s.changes
	if epoch != s.epoch {
		s.lost[key] = fmt.Errorf("the file system failed while it was written: %w", bucket.ErrLost)
		return s.lost[key]
	}
	delete(s.lost, key)
	return nil
}

// wait returns when everything stored before under these keys, or under any, is durable.
func (s *syncer) wait(ctx context.Context, keys []string) error {
	for _, key := range keys {
		if err := bucket.CheckKey(key); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	s.mu.Lock()
	r := s.next
	if r == nil {
		r = &round{keys: map[string]bool{}, done: make(chan struct{})}
		s.next = r
	}
	for _, key := range keys {
		r.keys[key] = true
	}
	r.all = r.all || len(keys) == 0
	if !s.running {
		s.running = true
		go s.run()
	}
	s.mu.Unlock()

	select {
	case <-r.done:
	case <-ctx.Done():
		return fmt.Errorf("sync: %w", ctx.Err())
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if len(keys) == 0 {
		for key, err := range s.lost {
			return fmt.Errorf("sync: %d objects to put again, among them %q: %w", len(s.lost), key, err)
		}
	}
	for _, key := range keys {
		if err := s.lost[key]; err != nil {
			return fmt.Errorf("sync %q: %w", key, err)
		}
	}
	return nil
}

// run runs rounds until nobody waits for one.
func (s *syncer) run() {
	for {
		s.mu.Lock()
		r := s.next
		s.next = nil
		if r == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		before := maps.Clone(s.pending)
		s.mu.Unlock()

		if r.all {
			for key := range before {
				r.keys[key] = true
			}
		}
		var (
			failed map[string]error // files
			err    error            // everything
		)
		if s.syncWhole != nil && (len(r.keys) > manyFiles || len(before) > maxPending || r.all && len(before) == 0) {
			err = s.syncWhole()
		} else {
			before = maps.Collect(func(yield func(string, uint64) bool) {
				for key := range r.keys {
					if !yield(key, before[key]) {
						return
					}
				}
			})
			failed, err = s.syncEach(r.keys)
		}
		s.settle(before, failed, err)
		close(r.done)
	}
}

// settle records what a round did about the changes it had seen before it began.
func (s *syncer) settle(before map[string]uint64, failed map[string]error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		// Nothing that was on its way can be trusted, whether this round was about it or not.
		s.epoch++
		for key := range s.pending {
			s.lost[key] = lost(err)
		}
		for key := range before {
			s.lost[key] = lost(err)
		}
		clear(s.pending)
		return
	}
	for key, change := range before {
		if err, ok := failed[key]; ok {
			s.lost[key] = lost(err)
		}
		if s.pending[key] == change {
			delete(s.pending, key)
		}
	}
}

func lost(err error) error { return fmt.Errorf("%w: %w", bucket.ErrLost, err) }

// syncEach syncs each file, then the folders that name them. An error is about the file system, not about a file.
func (s *syncer) syncEach(keys map[string]bool) (failed map[string]error, err error) {
	var (
		mu      sync.Mutex
		workers errgroup.Group
	)
	failed = map[string]error{}
	folders := map[string]bool{}
	workers.SetLimit(16) // enough for the journal to commit many at once
	for key := range keys {
		s.foldersOf(key, folders)
		workers.Go(func() error {
			err := s.syncFile(key)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // deleted: its folder says so
				mu.Lock()
				defer mu.Unlock()
				failed[key] = err
			}
			return nil
		})
	}
	_ = workers.Wait()
	for folder := range folders {
		if err := s.syncFile(folder); err != nil && !errors.Is(err, os.ErrNotExist) {
			return failed, err
		}
	}
	for folder := range folders {
		s.durable[folder] = true
	}
	return failed, nil
}

// foldersOf adds the folder of key, and the folders above it up to the first that is known to be named on disk.
func (s *syncer) foldersOf(key string, folders map[string]bool) {
	for folder := path.Dir(key); ; folder = path.Dir(folder) {
		folders[folder] = true
		if s.durable[folder] {
			return
		}
	}
}
