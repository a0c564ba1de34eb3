package buckettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"millrace/shared/bucket"
)

func hashOf(body []byte) *bucket.Hash {
	h := bucket.NewHash()
	h.Write(body)
	return h
}

func put(t testing.TB, lib bucket.Library, key string, body []byte) bucket.Stored {
	t.Helper()
	s, err := lib.Put(t.Context(), key, bytes.NewReader(body), bucket.Want{Size: int64(len(body)), CRC32C: hashOf(body).CRC32C()})
	if err != nil {
		t.Fatalf("Put %q: %v", key, err)
	}
	return s
}

func keys(t testing.TB, lib bucket.Library) []string {
	t.Helper()
	got := []string{}
	for obj, err := range lib.List(t.Context()) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		got = append(got, obj.Path)
	}
	return got
}

func wantKeys(t testing.TB, lib bucket.Library, want ...string) {
	t.Helper()
	if got := keys(t, lib); !slices.Equal(got, want) {
		t.Errorf("the library holds %q, want %q", got, want)
	}
}

func testPut(t *testing.T, f Fixture, has Features) {
	lib := f.Library
	for i, size := range []int{0, 1, 64 << 10, 1 << 20, 1<<20 + 1, has.large()} {
		body, key := data(size, byte(i)), fmt.Sprintf("%02x/%032x", i, i)
		h := hashOf(body)
		wants := []bucket.Want{
			{Size: int64(size), CRC32C: h.CRC32C(), ContentType: "video/mp4"}, {Size: -1}, {Size: int64(size)},
			{Size: -1, CRC32C: h.CRC32C()},
		}
		if size == has.large() {
			wants = wants[:2] // which takes long enough
		}
		for _, want := range wants {
			got, err := lib.Put(t.Context(), key, bytes.NewReader(body), want)
			if err != nil {
				t.Fatalf("Put of %d bytes, want %+v: %v", size, want, err)
			}
			expect := bucket.Stored{
				Key: key, URI: lib.URI(key), Size: int64(size), CRC32C: h.CRC32C(), SHA256: h.SHA256(),
			}
			if got != expect {
				t.Errorf("Put of %d bytes: %+v, want %+v", size, got, expect)
			}
		}
		if err := lib.Sync(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		stored(lib, key).want(t, body)
		obj, err := lib.Stat(t.Context(), key)
		if err != nil || obj.Path != key || obj.Size != int64(size) {
			t.Errorf("Stat: %+v, %v", obj, err)
		}
		testRanges(t, stored(lib, key), body)
	}
	u, err := url.Parse(lib.URI("ab/cdef"))
	if err != nil || u.Scheme == "" || !strings.HasSuffix(u.Path, "/ab/cdef") {
		t.Errorf("URI %q: %v", lib.URI("ab/cdef"), err)
	}
	_, err = lib.Stat(t.Context(), "ff/none")
	wantErr(t, "Stat of nothing", err, bucket.ErrNotExist)
	_, err = stored(lib, "ff/none").read(t, 0, -1)
	wantErr(t, "Open of nothing", err, bucket.ErrNotExist)
}

// failures holds what must end in an error and leave things as they were.
var failures = []struct {
	name string
	r    func(body []byte) io.Reader
	want func(w *bucket.Want)
	err  error
}{
	{"too short", func(b []byte) io.Reader { return bytes.NewReader(b[:len(b)-1]) }, nil, bucket.ErrChecksum},
	{"empty", func([]byte) io.Reader { return strings.NewReader("") }, nil, bucket.ErrChecksum},
	{"too long", func(b []byte) io.Reader { return io.MultiReader(bytes.NewReader(b), strings.NewReader("x")) }, nil, bucket.ErrChecksum},
	{"other bytes", func(b []byte) io.Reader { return bytes.NewReader(data(len(b), 99)) }, nil, bucket.ErrChecksum},
	{"other bytes of unknown size", func(b []byte) io.Reader { return bytes.NewReader(data(len(b), 99)) }, func(w *bucket.Want) { w.Size = -1 }, bucket.ErrChecksum},
	{"source changed", func(b []byte) io.Reader {
		return io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(bucket.ErrChanged))
	}, nil, bucket.ErrChanged},
	{"source changed at its end", func(b []byte) io.Reader {
		return io.MultiReader(bytes.NewReader(b), iotest.ErrReader(bucket.ErrChanged))
	}, nil, bucket.ErrChanged},
	{"source broke", func(b []byte) io.Reader {
		return io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(io.ErrUnexpectedEOF))
	}, nil, io.ErrUnexpectedEOF},
}

func testPutFails(t *testing.T, f Fixture, has Features) {
	for _, size := range []int{1000, min(9<<20, has.large())} {
		body := data(size, 1)
		for _, tt := range failures {
			want := bucket.Want{Size: int64(size), CRC32C: hashOf(body).CRC32C()}
			if tt.want != nil {
				tt.want(&want)
			}
			_, err := f.Library.Put(t.Context(), "aa/bb", tt.r(body), want)
			wantErr(t, tt.name, err, tt.err)
			_, err = f.Library.Stat(t.Context(), "aa/bb")
			wantErr(t, tt.name+": Stat", err, bucket.ErrNotExist)
		}
	}
	wantKeys(t, f.Library)
}

func testReplace(t *testing.T, f Fixture, _ Features) {
	old, new := data(200_000, 1), data(100_000, 2)
	put(t, f.Library, "aa/bb", old)
	r, err := f.Library.Open(t.Context(), "aa/bb", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, tt := range failures {
		want := bucket.Want{Size: int64(len(new)), CRC32C: hashOf(new).CRC32C()}
		if tt.want != nil {
			tt.want(&want)
		}
		_, err := f.Library.Put(t.Context(), "aa/bb", tt.r(new), want)
		wantErr(t, tt.name, err, tt.err)
		stored(f.Library, "aa/bb").want(t, old)
	}
	put(t, f.Library, "aa/bb", new)
	stored(f.Library, "aa/bb").want(t, new)
	if got, err := io.ReadAll(r); err == nil && !bytes.Equal(got, old) {
		t.Errorf("a reader of the old object got %d other bytes", len(got))
	}
	put(t, f.Library, "aa/bb", new) // the same once more
	stored(f.Library, "aa/bb").want(t, new)
	wantKeys(t, f.Library, "aa/bb")
}

// testRace puts many contents under one key at a time, while others look.
func testRace(t *testing.T, f Fixture, _ Features) {
	const writers, rounds = 8, 4
	whole := map[string]bool{}
	bodies := make([][]byte, writers)
	for i := range bodies {
		bodies[i] = data(100_000+i, byte(i))
		whole[hashOf(bodies[i]).SHA256()] = true
	}
	put(t, f.Library, "aa/bb", bodies[0])
	var wg sync.WaitGroup
	for _, body := range bodies {
		wg.Go(func() {
			for range rounds {
				_, err := f.Library.Put(t.Context(), "aa/bb", bytes.NewReader(body), bucket.Want{Size: int64(len(body))})
				if err != nil && bucket.Permanent(err) {
					t.Errorf("Put: %v", err)
				}
				r, err := f.Library.Open(t.Context(), "aa/bb", 0, -1)
				if err != nil {
					t.Errorf("Open: %v", err)
					return
				}
				got, err := io.ReadAll(r)
				r.Close()
				if err == nil && !whole[hashOf(got).SHA256()] {
					t.Errorf("read %d bytes that nobody put", len(got))
				}
			}
		})
	}
	wg.Wait()
	got, err := stored(f.Library, "aa/bb").read(t, 0, -1)
	if err != nil || !whole[hashOf(got).SHA256()] {
		t.Errorf("in the end %d bytes, %v", len(got), err)
	}
	wantKeys(t, f.Library, "aa/bb")
}

func testDelete(t *testing.T, f Fixture, _ Features) {
	put(t, f.Library, "aa/bb", []byte("x"))
	put(t, f.Library, "aa/cc", []byte("y"))
	for range 2 {
		if err := f.Library.Delete(t.Context(), "aa/bb"); err != nil {
			t.Errorf("Delete: %v", err)
		}
		wantKeys(t, f.Library, "aa/cc")
	}
	for _, key := range []string{"aa", "zz/none"} {
		if err := f.Library.Delete(t.Context(), key); err != nil {
			t.Errorf("Delete of %s, which is no object: %v", key, err)
		}
	}
	if err := f.Library.Sync(t.Context(), "aa/bb"); err != nil {
		t.Errorf("Sync of a deletion: %v", err)
	}
	put(t, f.Library, "aa/bb", []byte("again"))
	stored(f.Library, "aa/bb").want(t, []byte("again"))
}

func testLibraryList(t *testing.T, f Fixture, has Features) {
	var want []string
	for i := range 30 {
		key := fmt.Sprintf("%02x/%04x", i*7%32, i)
		put(t, f.Library, key, data(i, 1))
		want = append(want, key)
	}
	slices.Sort(want)
	wantKeys(t, f.Library, want...)
	for obj, err := range f.Library.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		same, err := f.Library.Stat(t.Context(), obj.Path)
		if has.BriefListing {
			same.ContentType, same.CRC32C = "", ""
		}
		if err != nil || same != obj {
			t.Errorf("List says %+v, Stat says %+v, %v", obj, same, err)
		}
	}
}

func testKeys(t *testing.T, f Fixture, _ Features) {
	for _, key := range []string{"", "/", "../x", "aa/../../x", "/etc/x", "aa//x", "aa/", ".millrace-tmp/x", "a b", "a\x00b"} {
		_, err := f.Library.Put(t.Context(), key, strings.NewReader("x"), bucket.Want{Size: 1})
		wantErr(t, fmt.Sprintf("Put %q", key), err, bucket.ErrName)
		err = f.Library.Delete(t.Context(), key)
		wantErr(t, fmt.Sprintf("Delete %q", key), err, bucket.ErrName)
		_, err = f.Library.Stat(t.Context(), key)
		wantErr(t, fmt.Sprintf("Stat %q", key), err, bucket.ErrName, bucket.ErrNotExist)
		_, err = f.Library.Open(t.Context(), key, 0, -1)
		wantErr(t, fmt.Sprintf("Open %q", key), err, bucket.ErrName, bucket.ErrNotExist)
	}
	wantKeys(t, f.Library)
}

func testSync(t *testing.T, f Fixture, has Features) {
	if err := f.Library.Sync(t.Context()); err != nil {
		t.Errorf("Sync of nothing: %v", err)
	}
	// Everybody puts and syncs at once, by key, by many keys, and by none.
	more := min(4, has.many()/200) // than the one before
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			var mine []string
			for i := range 1 + w*more {
				key := fmt.Sprintf("%02x/%02x", w, i)
				if _, err := f.Library.Put(t.Context(), key, strings.NewReader(key), bucket.Want{Size: 5}); err != nil {
					t.Errorf("Put: %v", err)
				}
				mine = append(mine, key)
			}
			if w%5 == 0 {
				mine = nil
			}
			if err := f.Library.Sync(t.Context(), mine...); err != nil {
				t.Errorf("Sync of %d keys: %v", len(mine), err)
			}
		})
	}
	wg.Wait()
	if n := len(keys(t, f.Library)); n != 16+more*120 {
		t.Errorf("the library holds %d objects", n)
	}
}

func testLibraryCancelled(t *testing.T, f Fixture, _ Features) {
	lib := f.Library
	put(t, lib, "aa/bb", []byte("x"))

	ctx, cancel := context.WithCancel(t.Context())
	body := data(9<<20, 1)
	half := &afterHalf{r: bytes.NewReader(body), left: len(body) / 2, do: cancel}
	_, err := lib.Put(ctx, "cc/dd", half, bucket.Want{Size: int64(len(body))})
	wantErr(t, "Put cancelled half-way", err, context.Canceled)

	_, err = lib.Put(ctx, "cc/dd", strings.NewReader("x"), bucket.Want{Size: 1})
	wantErr(t, "Put", err, context.Canceled)
	_, err = lib.Stat(ctx, "aa/bb")
	wantErr(t, "Stat", err, context.Canceled)
	_, err = lib.Open(ctx, "aa/bb", 0, -1)
	wantErr(t, "Open", err, context.Canceled)
	wantErr(t, "Delete", lib.Delete(ctx, "aa/bb"), context.Canceled)
	for _, err := range lib.List(ctx) {
		wantErr(t, "List", err, context.Canceled)
	}
	wantKeys(t, lib, "aa/bb")
}

// afterHalf does something once it has given half of what it has.
type afterHalf struct {
	r    io.Reader
	left int
	do   func()
}

func (r *afterHalf) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if r.left -= n; r.left <= 0 {
		r.do()
	}
	return n, err
}

func testCopyFrom(t *testing.T, f Fixture, has Features) {
	lib := f.Library
	for _, size := range []int{0, 1, 3 << 20} {
		body := data(size, byte(size))
		f.Write(t, "obj", body)
		obj := stat(t, f.Source, "obj")
		var total int64
		got, err := lib.CopyFrom(t.Context(), "aa/bb", f.Source, obj, &bucket.Copying{Moved: func(n int64) { total += n }})
		if !has.Copies {
			wantErr(t, "CopyFrom", err, errors.ErrUnsupported)
			wantKeys(t, lib)
			return
		}
		if err != nil {
			t.Fatalf("CopyFrom: %v", err)
		}
		h := hashOf(body)
		if got.SHA256 == "" { // where the bytes never came by
			got.SHA256 = h.SHA256()
		}
		if got.CRC32C == "" && !has.Checksums { // nor is one known to the storage
			got.CRC32C = h.CRC32C()
		}
		want := bucket.Stored{Key: "aa/bb", URI: lib.URI("aa/bb"), Size: int64(size), CRC32C: h.CRC32C(), SHA256: h.SHA256()}
		if got != want {
			t.Errorf("CopyFrom of %d bytes: %+v, want %+v", size, got, want)
		}
		if total != int64(size) {
			t.Errorf("CopyFrom of %d bytes reports %d", size, total)
		}
		if err := lib.Sync(t.Context(), "aa/bb"); err != nil {
			t.Fatal(err)
		}
		stored(lib, "aa/bb").want(t, body)
	}

	obj := stat(t, f.Source, "obj")
	metered := bucket.NewMetrics(nil)
	if _, err := metered.Library(lib).CopyFrom(t.Context(), "aa/bb", metered.Source(f.Source), obj, nil); err != nil {
		t.Errorf("CopyFrom through wrappers: %v", err)
	}
	if err := lib.Delete(t.Context(), "aa/bb"); err != nil {
		t.Fatal(err)
	}

	wrong := obj
	wrong.CRC32C = hashOf([]byte("something else")).CRC32C()
	_, err := lib.CopyFrom(t.Context(), "aa/bb", f.Source, wrong, nil)
	wantErr(t, "CopyFrom with a wrong checksum", err, bucket.ErrChecksum, errors.ErrUnsupported) // the caller counts, then
	wrong = obj
	wrong.Size++
	_, err = lib.CopyFrom(t.Context(), "aa/bb", f.Source, wrong, nil)
	wantErr(t, "CopyFrom with a wrong size", err, bucket.ErrChecksum)
	_, err = lib.CopyFrom(t.Context(), "../bb", f.Source, obj, nil)
	wantErr(t, "CopyFrom to a bad key", err, bucket.ErrName)
	_, err = lib.CopyFrom(t.Context(), "aa/bb", stranger{f.Source}, obj, nil)
	wantErr(t, "CopyFrom of another kind of source", err, errors.ErrUnsupported)
	f.Write(t, "obj", []byte("new"))
	_, err = lib.CopyFrom(t.Context(), "aa/bb", f.Source, obj, nil)
	wantErr(t, "CopyFrom of an overwritten version", err, bucket.ErrChanged)
	f.Remove(t, "obj")
	_, err = lib.CopyFrom(t.Context(), "aa/bb", f.Source, obj, nil)
	wantErr(t, "CopyFrom of a removed object", err, bucket.ErrNotExist)
	wantKeys(t, lib)
}

// stranger hides what kind of source it is.
type stranger struct{ bucket.Source }
