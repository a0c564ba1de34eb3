package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/shared/bucket"
)

// patience is how long a test waits for something that has to happen.
const patience = 20 * time.Second

// watched is a folder under watch.
type watched struct {
	root    string
	changes chan Change
	done    chan error
	stop    context.CancelFunc
}

func watch(t *testing.T, root string, opts WatchOptions) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watched{root: root, changes: make(chan Change, 100_000), done: make(chan error, 1), stop: cancel}
	ready := make(chan struct{})
	opts.Ready = func() { close(ready) }
	go func() { w.done <- Watch(ctx, root, opts, func(c Change) { w.changes <- c }) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-w.done:
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("Watch: %v", err)
			}
		case <-time.After(patience):
			t.Error("Watch does not stop")
		}
	})
	select {
	case <-ready:
	case err := <-w.done:
		t.Fatalf("Watch: %v", err)
	case <-time.After(patience):
		t.Fatal("Watch does not get ready")
	}
	return w
}

// wait waits for a change of each of these, in any order and among others: "+path" and "-path", "!" for an overflow. It
// returns the last change of each.
func (w *watched) wait(t *testing.T, want ...string) map[string]Change {
	t.Helper()
	missing, got := map[string]bool{}, map[string]Change{}
	for _, s := range want {
		missing[s] = true
	}
	deadline := time.After(patience)
	for len(missing) > 0 {
		select {
		case c := <-w.changes:
			s := map[Op]string{Created: "+", Deleted: "-", Overflow: "!"}[c.Op] + c.Object.Path
			delete(missing, s)
			got[s] = c
		case err := <-w.done:
			w.done <- nil
			t.Fatalf("Watch ended: %v", err)
		case <-deadline:
			t.Fatalf("nothing heard of %v; heard %v", missing, got)
		}
	}
	return got
}

func (w *watched) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *watched) path(p string) string { return filepath.Join(w.root, p) }

func TestWatch(t *testing.T) {
	for name, opts := range map[string]WatchOptions{
		"inotify": {},
		"polling": {Poll: true, Interval: 10 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			writeFile(t, root, "old/file", []byte("x"))
			writeFile(t, root, "old/other", []byte("x"))
			w := watch(t, root, opts)

			writeFile(t, root, "a.mp4", []byte("abc"))
			c := w.wait(t, "+a.mp4")["+a.mp4"]
			for c.Object.Size != 3 { // polling may meet it half written, and then once more
				c = w.wait(t, "+a.mp4")["+a.mp4"]
			}
			if obj, err := newSource(t, root).Stat(t.Context(), "a.mp4"); err != nil || obj != c.Object {
				t.Errorf("reported %+v, is %+v, %v", c.Object, obj, err)
			}

			writeFile(t, root, "old/sub/1/2/3/deep.mp4", []byte("x"))
			w.wait(t, "+old/sub/1/2/3/deep.mp4")
			writeFile(t, root, "old/sub/1/2/3/later.mp4", []byte("x"))
			w.wait(t, "+old/sub/1/2/3/later.mp4")

			w.must(t, os.Rename(w.path("a.mp4"), w.path("b.mp4")))
			w.wait(t, "-a.mp4", "+b.mp4")
			w.must(t, os.Remove(w.path("b.mp4")))
			w.wait(t, "-b.mp4")

			w.must(t, os.Link(w.path("old/file"), w.path("linked")))
			w.wait(t, "+linked")

			// Overwritten in place and by a move, and an archiver that sets the time after it closed.
			writeFile(t, root, "old/file", []byte("xy"))
			w.wait(t, "+old/file")
			moveFile(t, root, "old/file", []byte("xyz"))
			w.wait(t, "+old/file")
			past := time.Now().Add(-time.Hour)
			w.must(t, os.Chtimes(w.path("old/file"), past, past))
			for c := (Change{}); !c.Object.ModTime.Equal(past); {
				c = w.wait(t, "+old/file")["+old/file"]
			}

			// A tree that comes in whole, and moves about.
			outside := t.TempDir()
			writeFile(t, outside, "tree/x/1", nil)
			writeFile(t, outside, "tree/y/2", nil)
			w.must(t, os.Rename(filepath.Join(outside, "tree"), w.path("tree")))
			w.wait(t, "+tree/x/1", "+tree/y/2")
			w.must(t, os.Rename(w.path("tree"), w.path("moved")))
			w.wait(t, "+moved/x/1", "+moved/y/2")
			writeFile(t, root, "moved/x/3", nil)
			w.wait(t, "+moved/x/3")

			// Gone and made again under the same name.
			w.must(t, os.RemoveAll(w.path("moved")))
			w.wait(t, "-moved/x/1", "-moved/x/3", "-moved/y/2")
			writeFile(t, root, "moved/x/4", nil)
			w.wait(t, "+moved/x/4")

			for _, name := range []string{"line\nfeed", "tab\t", "caf\u00e9", "cafe\u0301", strings.Repeat("n", 255)} {
				writeFile(t, root, name, nil)
				w.wait(t, "+"+name)
			}

			// What is no object is not reported: were it, it would come before the last file.
			w.must(t, os.Symlink("old/file", w.path("symlink")))
			w.must(t, unix.Mkfifo(w.path("fifo"), 0o644))
			w.must(t, os.Symlink(outside, w.path("outside")))
			writeFile(t, outside, "secret", nil)
			writeFile(t, root, tempDir+"/x/1", nil)
			writeFile(t, root, "zzz", nil)
			for s := range w.wait(t, "+zzz") {
				for _, no := range []string{"+symlink", "+fifo", "+outside", "secret", tempDir} {
					if strings.Contains(s, no) {
						t.Errorf("reports %s", s)
					}
				}
			}
		})
	}
}

// TestWatchMissesNothingInNewFolders makes folders and files in them as fast as it can.
func TestWatchMissesNothingInNewFolders(t *testing.T) {
	root := t.TempDir()
	w := watch(t, root, WatchOptions{})
	var want []string
	for i := range 300 {
		path := fmt.Sprintf("%d/%d/%d/file", i%7, i%31, i)
		want = append(want, "+"+path)
		writeFile(t, root, path, nil)
	}
	w.wait(t, want...)
}

func TestWatchMovedFolderSaysSo(t *testing.T) {
	root := t.TempDir()
	writeFile(t, root, "tree/x/1", nil)
	w := watch(t, root, WatchOptions{})
	w.must(t, os.Rename(w.path("tree"), filepath.Join(t.TempDir(), "tree")))
	w.wait(t, "-tree/")
}

func TestWatchOverflow(t *testing.T) {
	root := t.TempDir()
	limit := 16384
	if b, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events"); err == nil {
		fmt.Sscan(string(b), &limit)
	}
	if limit > 20_000 {
		t.Skipf("the queue holds %d events", limit)
	}
	busy := make(chan struct{})
	changes := make(chan Change, 10)
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	overflowed := false
	go func() {
		done <- Watch(ctx, root, WatchOptions{Ready: func() { close(ready) }}, func(c Change) {
			<-busy
			if c.Op == Overflow || overflowed {
				overflowed = true
				changes <- c
			}
		})
	}()
	<-ready
	writeFile(t, root, "first", nil)
	writeFile(t, root, "second", nil)
	for i := 0; i < 2*limit; i++ { // attributes make events and no files
		// Identical events in a row are merged, so there are two files.
		if err := os.Chmod(filepath.Join(root, []string{"first", "second"}[i%2]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, root, "new/folder/unheard", nil)
	close(busy)
	w := &watched{root: root, changes: changes, done: done}
	w.wait(t, "!")
	writeFile(t, root, "new/folder/heard", nil)
	w.wait(t, "+new/folder/heard")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestWatchWithoutWatches(t *testing.T) {
	left := 3
	addWatch = func(fd int, path string, mask uint32) (int, error) {
		if left--; left < 0 {
			return -1, unix.ENOSPC
		}
		return unix.InotifyAddWatch(fd, path, mask)
	}
	t.Cleanup(func() { addWatch = unix.InotifyAddWatch })

	t.Run("from the start", func(t *testing.T) {
		left = 3
		root := t.TempDir()
		writeFile(t, root, "1/2/3/4/old", nil)
		var log bytes.Buffer
		w := watch(t, root, WatchOptions{
			Interval: 10 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if !strings.Contains(log.String(), "max_user_watches") {
			t.Errorf("log: %s", &log)
		}
		writeFile(t, root, "1/2/3/4/5/new", nil)
		w.wait(t, "+1/2/3/4/5/new")
	})
	t.Run("on the way", func(t *testing.T) {
		left = 3
		root := t.TempDir()
		writeFile(t, root, "1/2/old", nil)
		w := watch(t, root, WatchOptions{Interval: 10 * time.Millisecond})
		writeFile(t, root, "1/2/3/4/5/unheard", nil)
		w.wait(t, "!")
		writeFile(t, root, "1/2/3/4/5/heard", nil)
		w.wait(t, "+1/2/3/4/5/heard")
	})
}

func TestWatchEndsWithItsFolder(t *testing.T) {
	tests := map[string]struct {
		opts WatchOptions
		do   func(root string) error
	}{
		"removed":          {WatchOptions{Interval: 10 * time.Millisecond}, os.RemoveAll},
		"moved":            {WatchOptions{}, func(root string) error { return os.Rename(root, root+"2") }},
		"removed, polling": {WatchOptions{Poll: true, Interval: 10 * time.Millisecond}, os.RemoveAll},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			writeFile(t, root, "a/b", nil)
			w := watch(t, root, tt.opts)
			w.must(t, tt.do(root))
			select {
			case err := <-w.done:
				w.done <- nil
				if bucket.ClassOf(err) != bucket.ClassNoBucket {
					t.Errorf("Watch ends with %v", err)
				}
			case <-time.After(patience):
				t.Fatal("Watch goes on")
			}
		})
	}
	if err := Watch(t.Context(), filepath.Join(t.TempDir(), "none"), WatchOptions{}, nil); !errors.Is(err, bucket.ErrNoBucket) {
		t.Errorf("Watch of nothing: %v", err)
	}
}

func TestWatchNoticesAFolderOverItsFolder(t *testing.T) {
	base := t.TempDir()
	root := filepath.Join(base, "current")
	for _, name := range []string{"one", "two"} {
		writeFile(t, base, name+"/x", nil)
	}
	if err := os.Symlink("one", root); err != nil {
		t.Fatal(err)
	}
	w := watch(t, root, WatchOptions{Interval: 10 * time.Millisecond})
	// What is watched stays as it is; the path leads elsewhere, as after a mount.
	w.must(t, os.Symlink("two", root+".new"))
	w.must(t, os.Rename(root+".new", root))
	select {
	case err := <-w.done:
		w.done <- nil
		if !errors.Is(err, bucket.ErrUnavailable) {
			t.Errorf("Watch ends with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Watch goes on")
	}
}

func TestWatchClosesWhatItOpened(t *testing.T) {
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(entries)
	}
	root := t.TempDir()
	for i := range 50 {
		writeFile(t, root, fmt.Sprintf("%d/x", i), nil)
	}
	newSource(t, root).Close()
	before := open()
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		if err := Watch(ctx, root, WatchOptions{Ready: cancel}, nil); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	if after := open(); after > before {
		t.Errorf("%d files open, %d before", after, before)
	}
}
