package dir

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/shared/bucket"
)

func listed(t testing.TB, src bucket.Source, prefix string) (paths []string, unreadable []string) {
	t.Helper()
	for obj, err := range src.List(t.Context(), bucket.ListOptions{Prefix: prefix}) {
		switch {
		case errors.Is(err, bucket.ErrUnreadable):
			unreadable = append(unreadable, obj.Path)
		case err != nil:
			t.Fatal(err)
		default:
			paths = append(paths, obj.Path)
		}
	}
	return paths, unreadable
}

func TestOnlyRegularFilesAreObjects(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	writeFile(t, outside, "secret", []byte("secret"))
	writeFile(t, root, "real/file", []byte("x"))
	for link, target := range map[string]string{
		"link":          "real/file",
		"dangling":      "nowhere",
		"self":          "self",
		"out":           filepath.Join(outside, "secret"),
		"outdir":        outside,
		"indir":         "real",
		"real/up":       "..",
		"real/outwards": "../../" + filepath.Base(outside),
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	src := newSource(t, root)
	if got, _ := listed(t, src, ""); !slices.Equal(got, []string{"real/file"}) {
		t.Errorf("lists %q", got)
	}
	for _, path := range []string{
		"link", "dangling", "self", "out", "outdir/secret", "indir/file", "real/up/real/file", "real/outwards/secret", "fifo",
		"real",
	} {
		if _, err := src.Stat(t.Context(), path); !errors.Is(err, bucket.ErrNotExist) {
			t.Errorf("Stat %s: %v", path, err)
		}
		if _, err := src.Open(t.Context(), path, "", 0, -1); !errors.Is(err, bucket.ErrNotExist) {
			t.Errorf("Open %s: %v", path, err)
		}
	}
	for _, prefix := range []string{"outdir/", "indir/", "real/up/", "real/outwards/s"} {
		if got, _ := listed(t, src, prefix); len(got) != 0 {
			t.Errorf("below the link %s: %q", prefix, got)
		}
	}
}

func TestNamesThatAreNoText(t *testing.T) {
	root := t.TempDir()
	const name = "latin1-\xe9.mp4"
	writeFile(t, root, name, []byte("x"))
	src := newSource(t, root)
	if got, _ := listed(t, src, ""); !slices.Equal(got, []string{name}) {
		t.Fatalf("lists %q", got)
	}
	if _, err := src.Stat(t.Context(), name); err != nil {
		t.Error(err)
	}
}

func TestLibraryInsideASourceIsNotListedHalfWritten(t *testing.T) {
	root := t.TempDir()
	lib := newLibrary(t, root)
	src := newSource(t, root)
	r := readerFunc(func([]byte) (int, error) {
		if got, _ := listed(t, src, ""); len(got) != 0 {
			t.Errorf("while it is written: %q", got)
		}
		return 0, io.EOF
	})
	if _, err := lib.Put(t.Context(), "aa/bb", r, bucket.Want{}); err != nil {
		t.Fatal(err)
	}
	if got, _ := listed(t, src, ""); !slices.Equal(got, []string{"aa/bb"}) {
		t.Errorf("afterwards: %q", got)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestUnreadableFolderIsSaidAndPassed(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read everything")
	}
	root := t.TempDir()
	writeFile(t, root, "a", nil)
	writeFile(t, root, "locked/b", nil)
	writeFile(t, root, "z", nil)
	if err := os.Chmod(filepath.Join(root, "locked"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(root, "locked"), 0o755) })
	got, unreadable := listed(t, newSource(t, root), "")
	if !slices.Equal(got, []string{"a", "z"}) || !slices.Equal(unreadable, []string{"locked/"}) {
		t.Errorf("lists %q, unreadable %q", got, unreadable)
	}
}

// TestRewrittenWhileRead rewrites a file in place, to the same length, between two reads.
func TestRewrittenWhileRead(t *testing.T) {
	root := t.TempDir()
	writeFile(t, root, "a", []byte(strings.Repeat("a", 1000)))
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(root, "a"), past, past); err != nil {
		t.Fatal(err)
	}
	src := newSource(t, root)
	obj, err := src.Stat(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	for _, length := range []int64{-1, 800} { // the rest, and a part of it: both notice
		r, err := src.Open(t.Context(), "a", obj.Version, 0, length)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		if _, err := io.ReadFull(r, make([]byte, 500)); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filepath.Join(root, "a"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(strings.Repeat("b", 1000)); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if _, err := io.ReadAll(r); !errors.Is(err, bucket.ErrChanged) {
			t.Errorf("read on with %v, want %v", err, bucket.ErrChanged)
		}
		if err := os.Chtimes(filepath.Join(root, "a"), past, past); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRootThatIsReplaced(t *testing.T) {
	base := t.TempDir()
	root := filepath.Join(base, "mnt")
	if _, err := NewSource(root); bucket.ClassOf(err) != bucket.ClassNoBucket {
		t.Errorf("a folder that is not there: %v", err)
	}
	writeFile(t, base, "mnt", nil)
	if _, err := NewSource(root); bucket.ClassOf(err) != bucket.ClassNoBucket {
		t.Errorf("a file: %v", err)
	}
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	writeFile(t, base, "mnt/before", nil)
	src := newSource(t, root)
	if err := os.Rename(root, filepath.Join(base, "below")); err != nil {
		t.Fatal(err)
	}
	for _, err := range src.List(t.Context(), bucket.ListOptions{}) {
		if bucket.ClassOf(err) != bucket.ClassNoBucket {
			t.Errorf("List while it is gone: %v", err)
		}
	}
	writeFile(t, base, "mnt/after", []byte("x")) // as a mount would, over the folder we hold
	if _, err := src.Stat(t.Context(), "after"); err != nil {
		t.Error(err)
	}
	if got, _ := listed(t, src, ""); !slices.Equal(got, []string{"after"}) {
		t.Errorf("lists %q", got)
	}
}

func TestWrap(t *testing.T) {
	for errno, class := range map[syscall.Errno]bucket.Class{
		syscall.ENOENT:       bucket.ClassNotExist,
		syscall.ENOTDIR:      bucket.ClassNotExist,
		syscall.ENAMETOOLONG: bucket.ClassNotExist,
		syscall.ELOOP:        bucket.ClassNotExist,
		syscall.EACCES:       bucket.ClassPermission,
		syscall.EPERM:        bucket.ClassPermission,
		syscall.EROFS:        bucket.ClassPermission,
		syscall.ENOSPC:       bucket.ClassFull,
		syscall.EDQUOT:       bucket.ClassFull,
		syscall.EIO:          bucket.ClassOther,
		syscall.ESTALE:       bucket.ClassOther,
		syscall.EMFILE:       bucket.ClassOther,
		syscall.ENOTCONN:     bucket.ClassUnavailable,
	} {
		err := wrap("open", "a\nb", &os.PathError{Op: "openat", Path: "/root/a\nb", Err: errno})
		if got := bucket.ClassOf(err); got != class {
			t.Errorf("%v: %q, want %q", errno, got, class)
		}
		if !errors.Is(err, errno) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "/root") {
			t.Errorf("%v becomes %q", errno, err)
		}
	}
	if err := wrapWrite(&os.PathError{Op: "openat", Err: syscall.ENOENT}); bucket.Permanent(err) {
		t.Errorf("a library folder that vanished: %v", err)
	}
	if err := wrapWrite(&os.PathError{Op: "write", Err: syscall.ENOSPC}); !errors.Is(err, bucket.ErrFull) {
		t.Errorf("a full disk: %v", err)
	}
}

func TestListStopsWhenCancelled(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		writeFile(t, root, name, nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	for obj, err := range newSource(t, root).List(ctx, bucket.ListOptions{}) {
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			break
		}
		got = append(got, obj.Path)
		cancel()
	}
	if !slices.Equal(got, []string{"a"}) {
		t.Errorf("lists %q after the end", got)
	}
}

// TestVersionsAreToldWhenTheirTimeIsOver: a version that is told earlier may be that of the next write as well, as kernels
// stamp files by a clock that stands still for up to 10 ms. It was seen as five writes with fewer than five versions.
func TestVersionsAreToldWhenTheirTimeIsOver(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	src := newSource(t, root)
	for op, version := range map[string]func() error{
		"Stat": func() error { _, err := src.Stat(t.Context(), "a.mp4"); return err },
		"List": func() error {
			for _, err := range src.List(t.Context(), bucket.ListOptions{}) {
				return err
			}
			return errors.New("nothing there")
		},
		"Open": func() error {
			r, err := src.Open(t.Context(), "a.mp4", "", 0, -1)
			if err == nil {
				err = r.Close()
			}
			return err
		},
	} {
		moveFile(t, root, "a.mp4", []byte(op))
		info, err := os.Stat(filepath.Join(root, "a.mp4"))
		if err == nil {
			err = version()
		}
		if age := time.Since(info.ModTime()); err != nil || age < tick {
			t.Errorf("%s told the version of a file that was %s old: %v", op, age, err)
		}
	}
}
