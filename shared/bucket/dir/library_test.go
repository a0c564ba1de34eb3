package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"millrace/shared/bucket"
)

func filesBelow(t testing.TB, root string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestPutLeavesNothingBehind(t *testing.T) {
	root := t.TempDir()
	lib, err := NewLibrary(LibraryConfig{Path: root})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		lib.Put(t.Context(), fmt.Sprintf("aa/%d", i), strings.NewReader("xyz"), bucket.Want{Size: int64(i)})
	}
	if err := lib.Close(); err != nil {
		t.Fatal(err)
	}
	if got := filesBelow(t, root); len(got) != 1 || got[0] != filepath.Join(root, "aa/3") {
		t.Errorf("left %q", got)
	}
}

func TestPutSurvivesTidyPeople(t *testing.T) {
	root := t.TempDir()
	lib := newLibrary(t, root)
	for range 3 {
		if _, err := lib.Put(t.Context(), "aa/bb/cc", strings.NewReader("x"), bucket.Want{Size: 1}); err != nil {
			t.Fatal(err)
		}
		if err := lib.Sync(t.Context(), "aa/bb/cc"); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(root, "aa")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCrash has another process die in the middle of a Put, beside a living one.
func TestCrash(t *testing.T) {
	if root := os.Getenv("MILLRACE_CRASH_IN"); root != "" {
		crash(root) // before it makes a folder that nobody would remove
	}
	root := t.TempDir()
	alive := newLibrary(t, root)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrash$")
	cmd.Env = append(os.Environ(), "MILLRACE_CRASH_IN="+root)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil { // it is in the middle of writing
		t.Fatal(err)
	}
	writing := readerFunc(func([]byte) (int, error) { // and so are we
		before := len(filesBelow(t, filepath.Join(root, tempDir)))
		newLibrary(t, root).Close()
		if now := len(filesBelow(t, filepath.Join(root, tempDir))); now != before || before < 4 {
			t.Errorf("a new process removed files of living ones: %d, then %d", before, now)
		}
		cmd.Process.Kill()
		cmd.Wait()
		newLibrary(t, root).Close()
		if now := len(filesBelow(t, filepath.Join(root, tempDir))); now != before-2 {
			t.Errorf("of %d files %d are left, want two less", before, now)
		}
		return 0, io.EOF
	})
	if _, err := alive.Put(t.Context(), "aa/alive", writing, bucket.Want{}); err != nil {
		t.Fatal(err)
	}
	if got, _ := listed(t, newSource(t, root), ""); len(got) != 1 || got[0] != "aa/alive" {
		t.Errorf("the library holds %q", got)
	}
}

func crash(root string) {
	lib, err := NewLibrary(LibraryConfig{Path: root})
	if err != nil {
		panic(err)
	}
	first := true
	lib.Put(context.Background(), "aa/dead", readerFunc(func(p []byte) (int, error) {
		if first {
			first = false
			return len(p), nil
		}
		os.Stdout.WriteString("x")
		select {}
	}), bucket.Want{Size: -1})
}

// failingDisk replaces the disk below a library by one that fails when told.
type failingDisk struct {
	mu    sync.Mutex
	file  map[string]error
	whole error
	log   []string
}

func (d *failingDisk) below(lib *Library) {
	lib.sync.syncFile = func(name string) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.log = append(d.log, name)
		return d.file[name]
	}
	lib.sync.syncWhole = func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.log = append(d.log, "*")
		return d.whole
	}
}

func (d *failingDisk) set(file map[string]error, whole error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.file, d.whole, d.log = file, whole, nil
}

func put(t testing.TB, lib *Library, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if _, err := lib.Put(t.Context(), key, strings.NewReader("x"), bucket.Want{Size: 1}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSyncOfAFewNamesFilesThenFolders(t *testing.T) {
	lib := newLibrary(t, t.TempDir())
	disk := &failingDisk{}
	disk.below(lib)
	put(t, lib, "aa/bb/cc")
	if err := lib.Sync(t.Context(), "aa/bb/cc"); err != nil {
		t.Fatal(err)
	}
	if len(disk.log) != 4 || disk.log[0] != "aa/bb/cc" {
		t.Errorf("synced %q, want the file, and three folders", disk.log)
	}
	disk.set(nil, nil)
	put(t, lib, "aa/bb/dd")
	if err := lib.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(disk.log) != 2 {
		t.Errorf("synced %q, want the file and its folder, now that the others are known", disk.log)
	}
}

func TestSyncOfManyIsOneCall(t *testing.T) {
	lib := newLibrary(t, t.TempDir())
	disk := &failingDisk{}
	disk.below(lib)
	var keys []string
	for i := range manyFiles + 1 {
		keys = append(keys, fmt.Sprintf("aa/%d", i))
	}
	put(t, lib, keys...)
	if err := lib.Sync(t.Context(), keys...); err != nil {
		t.Fatal(err)
	}
	if len(disk.log) != 1 || disk.log[0] != "*" {
		t.Errorf("synced %q", disk.log)
	}
	if len(lib.sync.pending) != 0 {
		t.Errorf("%d still pending", len(lib.sync.pending))
	}
}

// TestSyncSharesRounds has callers come while a round runs: they need one more round, not one each.
func TestSyncSharesRounds(t *testing.T) {
	lib := newLibrary(t, t.TempDir())
	entered, release := make(chan struct{}, 100), make(chan struct{})
	rounds := 0
	lib.sync.syncFile = func(string) error { return nil }
	lib.sync.syncWhole = func() error {
		rounds++ // rounds do not overlap
		entered <- struct{}{}
		<-release
		return nil
	}
	var wg sync.WaitGroup
	sync := func() {
		if err := lib.Sync(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wg.Go(sync)
	<-entered
	for range 20 {
		wg.Go(sync)
	}
	for joined := false; !joined; {
		lib.sync.mu.Lock()
		joined = lib.sync.next != nil
		lib.sync.mu.Unlock()
	}
	close(release)
	wg.Wait()
	if rounds < 2 || rounds > 21 {
		t.Errorf("%d rounds", rounds)
	}
}

func TestLostWritesAreRememberedUntilPutAgain(t *testing.T) {
	lib := newLibrary(t, t.TempDir())
	disk := &failingDisk{}
	disk.below(lib)

	t.Run("one file", func(t *testing.T) {
		put(t, lib, "aa/bad", "aa/good")
		disk.set(map[string]error{"aa/bad": syscall.EIO}, nil)
		wantLost(t, lib, "aa/bad", "aa/good")
		disk.set(nil, nil) // the kernel tells once
		wantLost(t, lib, "aa/bad", "aa/good")
		if err := lib.Sync(t.Context()); !errors.Is(err, bucket.ErrLost) {
			t.Errorf("Sync of everything: %v", err)
		}
		put(t, lib, "aa/bad")
		wantLost(t, lib, "", "aa/bad", "aa/good")
	})
	t.Run("the file system", func(t *testing.T) {
		put(t, lib, "aa/durable")
		wantLost(t, lib, "", "aa/durable")
		put(t, lib, "aa/one", "aa/two")
		half := readerFunc(func([]byte) (int, error) { // it fails while another file is being written
			disk.set(map[string]error{"aa": syscall.EIO}, nil)
			if err := lib.Sync(t.Context(), "aa/one"); !errors.Is(err, bucket.ErrLost) || bucket.Permanent(err) {
				t.Errorf("Sync: %v", err)
			}
			disk.set(nil, nil)
			return 0, io.EOF
		})
		if _, err := lib.Put(t.Context(), "aa/three", half, bucket.Want{}); !errors.Is(err, bucket.ErrLost) {
			t.Errorf("Put under way when the disk failed: %v", err)
		}
		wantLost(t, lib, "aa/one", "aa/durable")
		wantLost(t, lib, "aa/two", "aa/durable")
		wantLost(t, lib, "aa/three", "aa/durable")
		put(t, lib, "aa/one", "aa/two")
		if err := lib.Delete(t.Context(), "aa/three"); err != nil {
			t.Fatal(err)
		}
		if err := lib.Sync(t.Context()); err != nil {
			t.Errorf("Sync after all were put again: %v", err)
		}
	})
}

// wantLost checks that syncing one key fails (unless it is empty) and syncing the others does not.
func wantLost(t *testing.T, lib *Library, bad string, good ...string) {
	t.Helper()
	if bad != "" {
		if err := lib.Sync(t.Context(), bad); !errors.Is(err, bucket.ErrLost) {
			t.Errorf("Sync of %s: %v, want %v", bad, err, bucket.ErrLost)
		}
	}
	if err := lib.Sync(t.Context(), good...); err != nil {
		t.Errorf("Sync of %s: %v", good, err)
	}
}

func TestCopyFromRemembersWhatCannotBe(t *testing.T) {
	if sharesBlocks(t) {
		t.Skip("this file system shares blocks")
	}
	from := t.TempDir()
	writeFile(t, from, "a", []byte("x"))
	src, lib := newSource(t, from), newLibrary(t, t.TempDir())
	for range 2 {
		_, err := lib.CopyFrom(t.Context(), "aa/bb", src, bucket.Object{Path: "a", Size: 1}, nil)
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	}
	if n := lib.temp.last.Load(); n != 1 {
		t.Errorf("tried %d times", n)
	}
}
