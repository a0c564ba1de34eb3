package buckettest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"millrace/shared/bucket"
)

// Suite tests one driver.
type Suite struct {
	// New returns an empty bucket and an empty library for one test, and cleans up after it.
	New func(t *testing.T) Fixture

	Features Features
}

// Fixture is storage to test with. Source is what the driver gives for a bucket that Write and Remove change as its
// owner would; Library may be nil.
type Fixture struct {
	Source  bucket.Source
	Write   func(t testing.TB, path string, data []byte)
	Remove  func(t testing.TB, path string)
	Library bucket.Library
}

// Features is what drivers differ in.
type Features struct {
	Files     bool // paths are file names: no empty or dot segments, none over 255 bytes, nothing below an object
	Newlines  bool // a path may contain a line feed
	Slashes   bool // a backslash is a slash, so no name has one
	Checksums bool // objects of the source carry their CRC32C
	Copies    bool // Library.CopyFrom takes objects of Source; otherwise it refuses them

	BriefListing bool // a listing tells of neither type nor checksum
	PlainNames   bool // the server cannot show names with control characters
	MergesSlash  bool // the server takes several slashes for one, and none for one at the start

	// A driver whose storage is slow in tests may do with less.
	Many  int // how many objects make a long listing: more than two pages, and at least 200; default 2100
	Large int // bytes of the largest object put: more than goes out at once; default 9 MiB
}

func (f Features) many() int  { return cmp.Or(f.Many, 2_100) }
func (f Features) large() int { return cmp.Or(f.Large, 9<<20) }

// Run runs the suite.
func (s Suite) Run(t *testing.T) {
	for name, test := range map[string]func(*testing.T, Fixture, Features){
		"List":        testList,
		"ListMany":    testListMany,
		"Names":       testNames,
		"Escape":      testEscape,
		"Stat":        testStat,
		"Open":        testOpen,
		"Versions":    testVersions,
		"Overwriting": testOverwriting,
		"Cancelled":   testCancelled,
		"Reader":      testReader,

		"Library/Put":       testPut,
		"Library/PutFails":  testPutFails,
		"Library/Replace":   testReplace,
		"Library/Race":      testRace,
		"Library/Delete":    testDelete,
		"Library/List":      testLibraryList,
		"Library/Keys":      testKeys,
		"Library/Sync":      testSync,
		"Library/Cancelled": testLibraryCancelled,
		"Library/CopyFrom":  testCopyFrom,
	} {
		t.Run(name, func(t *testing.T) {
			f := s.New(t)
			if f.Library == nil && name[0] == 'L' && len(name) > 8 && name[:8] == "Library/" {
				t.Skip("the driver has no library")
			}
			test(t, f, s.Features)
		})
	}
}

// data returns n bytes that differ from those of another seed.
func data(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func paths(t testing.TB, src bucket.Source, opts bucket.ListOptions) []string {
	t.Helper()
	got := []string{}
	for obj, err := range src.List(t.Context(), opts) {
		if err != nil {
			t.Fatalf("List %+v: %v", opts, err)
		}
		got = append(got, obj.Path)
	}
	return got
}

func stat(t testing.TB, src bucket.Source, path string) bucket.Object {
	t.Helper()
	obj, err := src.Stat(t.Context(), path)
	if err != nil {
		t.Fatalf("Stat %q: %v", path, err)
	}
	return obj
}

// opener is what a Source's Open and a Library's Open have in common once the version is settled.
type opener func(ctx context.Context, offset, length int64) (io.ReadCloser, error)

func version(src bucket.Source, path, version string) opener {
	return func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
		return src.Open(ctx, path, version, offset, length)
	}
}

func stored(lib bucket.Library, key string) opener {
	return func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
		return lib.Open(ctx, key, offset, length)
	}
}

func (open opener) read(t testing.TB, offset, length int64) ([]byte, error) {
	t.Helper()
	r, err := open(t.Context(), offset, length)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(r)
	if cerr := r.Close(); cerr != nil {
		t.Errorf("Close: %v", cerr)
	}
	return got, err
}

func (open opener) want(t testing.TB, want []byte) {
	t.Helper()
	if got, err := open.read(t, 0, -1); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v; want %d bytes", len(got), err, len(want))
	}
}

func wantErr(t testing.TB, what string, err error, want ...error) {
	t.Helper()
	if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
