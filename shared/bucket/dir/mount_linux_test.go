package dir

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/shared/bucket"
)

// mount mounts a file system of its own at path, or skips the test where that is not allowed.
func mount(t *testing.T, path string) (unmount func()) {
	t.Helper()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	off := func() { _ = unix.Unmount(path, unix.MNT_DETACH) }
	t.Cleanup(off)
	return off
}

// A share that is unmounted is gone, and not empty: for a source that held it, for a new one that knows what it was, and
// for whoever watches.
func TestUnmounted(t *testing.T) {
	root := filepath.Join(t.TempDir(), "share")
	writeFile(t, root, "below", nil)
	unmount := mount(t, root)
	writeFile(t, root, "a.mp4", []byte("x"))
	if !IsMount(root) {
		t.Fatal("it is no mount point")
	}
	src := newSource(t, root)
	w := watch(t, root, WatchOptions{Interval: 20 * time.Millisecond, Poll: true})
	unmount()
	gone := func(src *Source) (err error) {
		for _, err = range src.List(t.Context(), bucket.ListOptions{}) {
		}
		return err
	}
	if err := gone(src); !errors.Is(err, bucket.ErrNoBucket) {
		t.Errorf("List: %v", err)
	}
	if _, err := Open(root, Options{Mount: true}); !errors.Is(err, bucket.ErrNoBucket) {
		t.Errorf("Open: %v", err)
	}
	select {
	case err := <-w.done:
		w.done <- nil
		if c := bucket.ClassOf(err); !c.Bucketwide() {
			t.Errorf("Watch ends with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Watch goes on")
	}
	for len(w.changes) > 0 {
		if c := <-w.changes; c.Op == Deleted {
			t.Errorf("%s counts as deleted", c.Object.Path)
		}
	}
	mount(t, root)
	writeFile(t, root, "b.mp4", []byte("x"))
	if err := gone(src); err != nil {
		t.Errorf("mounted again: %v", err)
	}
}
