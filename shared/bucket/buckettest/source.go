package buckettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/shared/bucket"
)

// testList holds every combination of options against the definition.
func testList(t *testing.T, f Fixture, has Features) {
	if got := paths(t, f.Source, bucket.ListOptions{}); len(got) != 0 {
		t.Fatalf("an empty bucket lists %q", got)
	}
	// Around "cams" stand names whose place in byte order depends on "/" (0x2f) being compared like any other byte.
	keys := []string{
		"a.mp4", "cams-old/x.mp4", "cams.txt", "cams/2026-03-01/a.mp4", "cams/2026-03-01/b.mp4", "cams/2026-03-01.txt",
		"cams/2026-04-01/a.mp4", "cams/a.mp4", "cams/a.mp4.bak", "cams0", "deep/1/2/3/4/5/6/x", "z",
	}
	for _, key := range keys {
		f.Write(t, key, []byte(key))
	}
	slices.Sort(keys)
	prefixes := []string{
		"", "a", "a.mp4", "c", "cams", "cams/", "cams/2", "cams/2026-03-01", "cams/2026-03-01/", "cams/a.mp4", "cams//",
		"cams0", "cams0/", "d", "deep/1/2/", "deep/1/2/3/4/5/6/x", "nothing", "z", "zz",
	}
	afters := append([]string{"", "cams", "cams/", "cams/2026-03-01/a", "cams/2026-03-01/zzz", "deep/1/2", "zz"}, keys...)
	for _, prefix := range prefixes {
		for _, after := range afters {
			for _, delimiter := range []bool{false, true} {
				opts := bucket.ListOptions{Prefix: prefix, StartAfter: after, Delimiter: delimiter}
				want := []string{}
				for _, key := range keys {
					rest, ok := strings.CutPrefix(key, prefix)
					if ok && key > after && !(delimiter && strings.Contains(rest, "/")) {
						want = append(want, key)
					}
				}
				if got := paths(t, f.Source, opts); !slices.Equal(got, want) {
					t.Errorf("List %+v: %q, want %q", opts, got, want)
				}
			}
		}
	}
	for obj, err := range f.Source.List(t.Context(), bucket.ListOptions{Prefix: "cams/"}) {
		if err != nil {
			t.Fatal(err)
		}
		same := stat(t, f.Source, obj.Path)
		if has.BriefListing {
			same.ContentType, same.CRC32C = "", ""
		}
		if same != obj {
			t.Errorf("List says %+v, Stat says %+v", obj, same)
		}
		break // a loop may end early
	}
}

func testListMany(t *testing.T, f Fixture, has Features) {
	var want []string
	for i := range has.many() {
		key := fmt.Sprintf("many/%02d/%04d", i/300, i)
		f.Write(t, key, nil)
		want = append(want, key)
	}
	if got := paths(t, f.Source, bucket.ListOptions{}); !slices.Equal(got, want) {
		t.Errorf("lists %d objects, want %d in order", len(got), len(want))
	}
	middle := len(want) / 2
	if got := paths(t, f.Source, bucket.ListOptions{StartAfter: want[middle-1]}); !slices.Equal(got, want[middle:]) {
		t.Errorf("lists %d objects after the middle, want %d in order", len(got), len(want)-middle)
	}
}

// hostile holds names that somebody will one day have.
var hostile = []string{
	"with space.mp4", " leading", "trailing ", "a+b.mp4", "a#b.mp4", "a?b.mp4", "100%.mp4", "%2e%2e", "%2F", "a&b=c;d",
	"quote'\".mp4", `back\slash`, "tab\there", "*.mp4", "a>b", "media.>", "[a].mp4", "{a,b}.mp4", "$HOME", "`id`", "-rf",
	"~", ".hidden", "...", "a..b", "..a", "clip.mp4.part", "🎬 movie 🎥.mp4", "日本語/ファイル.mp4", "\u202egpj.exe", "\x1b[31mred",
	"caf\u00e9.mp4", "cafe\u0301.mp4", // the same to the eye, two objects
	"folder with space/#1/50%+.mp4", "CASE.mp4", "case.mp4", "con", "aux.txt", "name:stream", "a|b<c",
}

func testNames(t *testing.T, f Fixture, has Features) {
	names := slices.Clone(hostile)
	names = append(names, strings.Repeat("n", 255), strings.Repeat("ü", 127), strings.Repeat("d/", 100)+"x")
	if has.PlainNames {
		names = slices.DeleteFunc(names, func(n string) bool { return strings.ContainsAny(n, "\x1b") })
	}
	if has.Newlines {
		names = append(names, "line\nfeed", "carriage\rreturn")
	}
	if !has.Files {
		names = append(names, "double//slash", "/leading", "folder/", "key", "key/below", strings.Repeat("k", 1024))
	}
	if has.Slashes {
		for _, name := range names {
			if strings.Contains(name, `\`) {
				_, err := f.Source.Stat(t.Context(), name)
				wantErr(t, fmt.Sprintf("Stat %q", name), err, bucket.ErrNotExist)
			}
		}
		names = slices.DeleteFunc(names, func(name string) bool { return strings.Contains(name, `\`) })
	}
	for _, name := range names {
		f.Write(t, name, []byte(name))
	}
	slices.Sort(names)
	if got := paths(t, f.Source, bucket.ListOptions{}); !slices.Equal(got, names) {
		t.Errorf("lists %q,\nwant %q", got, names)
	}
	for _, name := range names {
		obj := stat(t, f.Source, name)
		if obj.Path != name || obj.Size != int64(len(name)) {
			t.Errorf("Stat %q: %+v", name, obj)
		}
		version(f.Source, name, obj.Version).want(t, []byte(name))
		if got := paths(t, f.Source, bucket.ListOptions{Prefix: name}); !slices.Contains(got, name) {
			t.Errorf("List with prefix %q: %q", name, got)
		}
		if got := paths(t, f.Source, bucket.ListOptions{StartAfter: name}); slices.Contains(got, name) {
			t.Errorf("List after %q contains it", name)
		}
	}
}

// testEscape asks for what lies outside the bucket. The answer is that it does not exist, whatever lies there.
func testEscape(t *testing.T, f Fixture, has Features) {
	f.Write(t, "in/side", []byte("x"))
	for _, path := range []string{
		"..", "../x", "../../../../../../etc/passwd", "in/../../x", "in/../in/side", "in/./side", "./in/side", "/etc/passwd",
		"/in/side", "in//side", "in/side/", "in/side/..", "\x00", "in/side\x00", "", ".", "/", "in/", "in",
	} {
		if has.MergesSlash && (strings.HasPrefix(path, "/") || strings.Contains(path, "//")) {
			continue
		}
		_, err := f.Source.Stat(t.Context(), path)
		wantErr(t, fmt.Sprintf("Stat %q", path), err, bucket.ErrNotExist, bucket.ErrName)
		_, err = f.Source.Open(t.Context(), path, "", 0, -1)
		wantErr(t, fmt.Sprintf("Open %q", path), err, bucket.ErrNotExist, bucket.ErrName)
	}
	for _, prefix := range []string{"..", "../", "/", "/etc/", "in/../", "./", "in//", "in/./"} {
		if got := paths(t, f.Source, bucket.ListOptions{Prefix: prefix}); len(got) != 0 {
			t.Errorf("List with prefix %q: %q", prefix, got)
		}
	}
}

func testStat(t *testing.T, f Fixture, has Features) {
	body := data(1000, 1)
	f.Write(t, "a/b.mp4", body)
	obj := stat(t, f.Source, "a/b.mp4")
	if obj.Path != "a/b.mp4" || obj.Size != 1000 || obj.Version == "" {
		t.Errorf("Stat: %+v", obj)
	}
	if age := time.Since(obj.ModTime); age < -time.Minute || age > time.Hour {
		t.Errorf("written just now, and ModTime is %s", obj.ModTime)
	}
	h := bucket.NewHash()
	h.Write(body)
	if has.Checksums && obj.CRC32C != h.CRC32C() {
		t.Errorf("CRC32C %q, want %q", obj.CRC32C, h.CRC32C())
	}
	if again := stat(t, f.Source, "a/b.mp4"); again != obj {
		t.Errorf("and then %+v", again)
	}
	for _, path := range []string{"a/B.mp4", "a/b.mp", "a/b.mp4x", "b.mp4"} {
		_, err := f.Source.Stat(t.Context(), path)
		wantErr(t, "Stat "+path, err, bucket.ErrNotExist)
		if !bucket.Permanent(err) {
			t.Errorf("Stat %s: %v may pass", path, err)
		}
	}
}

func testOpen(t *testing.T, f Fixture, _ Features) {
	body := data(300_000, 2)
	f.Write(t, "obj", body)
	f.Write(t, "empty", nil)
	obj := stat(t, f.Source, "obj")
	testRanges(t, version(f.Source, "obj", obj.Version), body)
	testRanges(t, version(f.Source, "obj", ""), body)
	testRanges(t, version(f.Source, "empty", ""), nil)
	testRanges(t, version(f.Source, "empty", stat(t, f.Source, "empty").Version), nil)

	_, err := f.Source.Open(t.Context(), "none", "", 0, -1)
	wantErr(t, "Open of nothing", err, bucket.ErrNotExist)
	_, err = f.Source.Open(t.Context(), "none", obj.Version, 0, -1)
	wantErr(t, "Open of a version of nothing", err, bucket.ErrNotExist)
}

func testRanges(t *testing.T, open opener, body []byte) {
	t.Helper()
	size := int64(len(body))
	for _, r := range []struct{ offset, length int64 }{
		{0, -1}, {0, size}, {0, size + 100}, {0, 1}, {0, 0}, {1, 1}, {7, 100_000}, {size / 2, -1}, {max(size-1, 0), 1},
		{max(size-1, 0), 100}, {size, -1}, {size, 10}, {size + 1, 1}, {size + 1000, -1},
	} {
		want := body[min(r.offset, size):]
		if r.length >= 0 {
			want = want[:min(r.length, int64(len(want)))]
		}
		got, err := open.read(t, r.offset, r.length)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %d from %d: got %d, %v; want %d", size, r.length, r.offset, len(got), err, len(want))
		}
	}
	if _, err := open.read(t, -1, 1); err == nil {
		t.Error("a negative offset is fine")
	}
}

func testVersions(t *testing.T, f Fixture, _ Features) {
	seen := map[string]bool{}
	order := ""
	for i := range 5 {
		// The same length each time, so that only time or content can tell.
		body := data(100, byte(i))
		f.Write(t, "obj", body)
		obj := stat(t, f.Source, "obj")
		if seen[obj.Version] {
			t.Fatalf("version %q comes again", obj.Version)
		}
		if obj.Order != "" && obj.Order <= order {
			t.Errorf("order %q after %q", obj.Order, order)
		}
		for old := range seen {
			_, err := version(f.Source, "obj", old).read(t, 0, -1)
			wantErr(t, "Open of an overwritten version", err, bucket.ErrChanged)
		}
		version(f.Source, "obj", obj.Version).want(t, body)
		seen[obj.Version], order = true, obj.Order
	}
	f.Remove(t, "obj")
	for old := range seen {
		_, err := version(f.Source, "obj", old).read(t, 0, -1)
		wantErr(t, "Open of a version of a removed object", err, bucket.ErrNotExist)
	}
	_, err := f.Source.Stat(t.Context(), "obj")
	wantErr(t, "Stat of a removed object", err, bucket.ErrNotExist)
	if got := paths(t, f.Source, bucket.ListOptions{}); len(got) != 0 {
		t.Errorf("List after removal: %q", got)
	}
}

// testOverwriting replaces an object under a reader: it gets all of one version or an error, never some of each.
func testOverwriting(t *testing.T, f Fixture, _ Features) {
	old := data(2<<20, 1)
	f.Write(t, "obj", old)
	for _, v := range []string{stat(t, f.Source, "obj").Version, ""} {
		f.Write(t, "obj", old)
		if v != "" {
			v = stat(t, f.Source, "obj").Version
		}
		r, err := f.Source.Open(t.Context(), "obj", v, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		first := make([]byte, 1000)
		if _, err := io.ReadFull(r, first); err != nil {
			t.Fatal(err)
		}
		f.Write(t, "obj", data(2<<20, 2))
		rest, err := io.ReadAll(r)
		if err == nil && !bytes.Equal(slices.Concat(first, rest), old) {
			t.Errorf("version %q: %d bytes read as whole are not the version's", v, len(first)+len(rest))
		}
		if err != nil && !errors.Is(err, bucket.ErrChanged) {
			t.Errorf("version %q: %v, want %v", v, err, bucket.ErrChanged)
		}
	}
}

func testCancelled(t *testing.T, f Fixture, _ Features) {
	f.Write(t, "obj", data(2<<20, 1))
	ctx, cancel := context.WithCancel(t.Context())
	r, err := f.Source.Open(ctx, "obj", "", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cancel()
	_, err = io.ReadAll(r)
	wantErr(t, "Read", err, context.Canceled)
	_, err = f.Source.Stat(ctx, "obj")
	wantErr(t, "Stat", err, context.Canceled)
	_, err = f.Source.Open(ctx, "obj", "", 0, -1)
	wantErr(t, "Open", err, context.Canceled)
	n := 0
	for _, err := range f.Source.List(ctx, bucket.ListOptions{}) {
		wantErr(t, "List", err, context.Canceled)
		n++
	}
	if n != 1 {
		t.Errorf("List yields %d pairs, want the error", n)
	}
}

// testReader reads through bucket.Reader and bucket.File, which is how an import reads.
func testReader(t *testing.T, f Fixture, _ Features) {
	for _, size := range []int{0, 1, 1_500_000} {
		body := data(size, 3)
		f.Write(t, "obj", body)
		obj := stat(t, f.Source, "obj")
		r := bucket.NewReader(t.Context(), f.Source, obj, bucket.ReaderOptions{})
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) {
			t.Errorf("Reader of %d bytes: %d, %v", size, len(got), err)
		}
		r.Close()
		file := bucket.NewFile(t.Context(), f.Source, obj, bucket.ReaderOptions{})
		if got, err := io.ReadAll(file); err != nil || !bytes.Equal(got, body) {
			t.Errorf("File of %d bytes: %d, %v", size, len(got), err)
		}
	}
	obj := stat(t, f.Source, "obj")
	f.Write(t, "obj", data(1_500_000, 4))
	_, err := bucket.NewFile(t.Context(), f.Source, obj, bucket.ReaderOptions{}).ReadAt(make([]byte, 10), 700_000)
	wantErr(t, "File of an overwritten version", err, bucket.ErrChanged)
}
