package dir

import (
	"os"
	"path/filepath"
	"testing"

	"millrace/shared/bucket/buckettest"
)

// writeFile writes in place, the way most programs do.
func writeFile(t testing.TB, root, path string, data []byte) {
	t.Helper()
	name := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// moveFile writes elsewhere and moves into place, the way careful programs do.
func moveFile(t testing.TB, root, path string, data []byte) {
	t.Helper()
	part := filepath.Join(t.TempDir(), "part")
	if err := os.WriteFile(part, data, 0o644); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(part, name); err != nil {
		t.Fatal(err)
	}
}

func newSource(t testing.TB, root string) *Source {
	t.Helper()
	src, err := NewSource(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func newLibrary(t testing.TB, root string) *Library {
	t.Helper()
	lib, err := NewLibrary(LibraryConfig{Path: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lib.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return lib
}

// sharesBlocks reports whether the file system under test can; run with TMPDIR on XFS or Btrfs to see it do so.
func sharesBlocks(t testing.TB) bool {
	t.Helper()
	var files [2]*os.File
	for i := range files {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files[i] = f
	}
	return shareBlocks(files[0], files[1]) == nil
}

func TestSuite(t *testing.T) {
	for name, write := range map[string]func(testing.TB, string, string, []byte){
		"written in place": writeFile,
		"moved into place": moveFile,
	} {
		t.Run(name, func(t *testing.T) {
			buckettest.Suite{
				New: func(t *testing.T) buckettest.Fixture {
					from, to := t.TempDir(), filepath.Join(t.TempDir(), "made", "by", "us")
					return buckettest.Fixture{
						Source: newSource(t, from),
						Write:  func(t testing.TB, path string, data []byte) { write(t, from, path, data) },
						Remove: func(t testing.TB, path string) {
							if err := os.Remove(filepath.Join(from, path)); err != nil {
								t.Fatal(err)
							}
						},
						Library: newLibrary(t, to),
					}
				},
				Features: buckettest.Features{Files: true, Newlines: true, Copies: sharesBlocks(t)},
			}.Run(t)
		})
	}
}
