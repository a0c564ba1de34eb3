package dir

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"millrace/shared/bucket"
)

// Nothing is deleted by a folder that takes the place of the one that is polled.
func TestPollOfAFolderThatIsReplaced(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	root := filepath.Join(base, "share")
	writeFile(t, root, "a", nil)
	writeFile(t, root, "b/c", nil)
	if err := os.Mkdir(filepath.Join(base, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	w := watch(t, root, WatchOptions{Interval: 10 * time.Millisecond, Poll: true})
	w.must(t, os.Rename(root, filepath.Join(base, "away")))
	w.must(t, os.Rename(filepath.Join(base, "empty"), root))
	select {
	case err := <-w.done:
		w.done <- nil
		if !errors.Is(err, bucket.ErrUnavailable) && !errors.Is(err, bucket.ErrNoBucket) {
			t.Errorf("Watch ends with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Watch goes on")
	}
	for len(w.changes) > 0 {
		t.Errorf("heard of %+v", <-w.changes)
	}
}

// Where nothing tells that a file is whole, it is listed only when it has stood still.
func TestPolledFoldersListNothingThatGrows(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	now := time.Now()
	for name, at := range map[string]time.Time{"old": now.Add(-time.Minute), "growing": now, "tomorrow": now.Add(time.Hour)} {
		writeFile(t, root, name, nil)
		if err := os.Chtimes(filepath.Join(root, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	src, err := Open(root, Options{Poll: true})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if got, _ := listed(t, src, ""); !slices.Equal(got, []string{"old", "tomorrow"}) {
		t.Errorf("lists %q", got)
	}
	if _, err := src.Stat(t.Context(), "growing"); err != nil {
		t.Errorf("it is there all the same: %v", err)
	}
}
