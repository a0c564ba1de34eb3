package media

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/shared/media/samples"
)

// read returns a file of samples or testdata.
func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := samples.FS.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = os.ReadFile(filepath.Join("testdata", name))
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// everything names all files of samples and testdata that hold media.
func everything(t testing.TB) []string {
	t.Helper()
	names := slices.Clone(samples.Good)
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func probe(p *Prober, b []byte) (Info, error) {
	return p.Probe(context.Background(), bytes.NewReader(b), int64(len(b)), "")
}

func TestProbe(t *testing.T) {
	const s = time.Second
	for name, want := range map[string]Info{
		"video.mp4":  {Video, "video/mp4", "mp4", "h264", "aac", 2 * s, 160, 120, "go"},
		"video.mov":  {Video, "video/quicktime", "mov", "h264", "aac", 2 * s, 128, 96, "go"},
		"video.webm": {Video, "video/webm", "webm", "vp9", "opus", 2008 * time.Millisecond, 144, 96, "go"},
		"video.mkv":  {Video, "video/x-matroska", "matroska", "h264", "vorbis", 2006 * time.Millisecond, 112, 80, "go"},
		"audio.mp3":  {Audio, "audio/mpeg", "mp3", "", "mp3", 2037 * time.Millisecond, 0, 0, "go"},
		"audio.wav":  {Audio, "audio/wav", "wav", "", "pcm_s16le", s, 0, 0, "go"},
		"audio.flac": {Audio, "audio/flac", "flac", "", "flac", s, 0, 0, "go"},
		"audio.ogg":  {Audio, "audio/ogg", "ogg", "", "vorbis", s, 0, 0, "go"},
		"audio.m4a":  {Audio, "audio/mp4", "mp4", "", "aac", 2 * s, 0, 0, "go"},
		"photo.jpg":  {Image, "image/jpeg", "jpeg", "", "", 0, 120, 80, "go"},
		"photo.png":  {Image, "image/png", "png", "", "", 0, 96, 64, "go"},

		"fragmented.mp4": {Video, "video/mp4", "mp4", "h264", "aac", 2 * s, 96, 72, "go"},
		"clip.3gp":       {Video, "video/3gpp", "3gp", "h264", "aac", 2 * s, 80, 64, "go"},
		"live.webm":      {Video, "video/webm", "webm", "vp8", "opus", 2 * s, 96, 80, "go"},
		"audio.webm":     {Audio, "audio/webm", "webm", "", "opus", 2 * s, 0, 0, "go"},
		"tagged.mp3":     {Audio, "audio/mpeg", "mp3", "", "mp3", 2 * s, 0, 0, "go"},
		"vbr.mp3":        {Audio, "audio/mpeg", "mp3", "", "mp3", 2037 * time.Millisecond, 0, 0, "go"},
		"tone.opus":      {Audio, "audio/ogg", "ogg", "", "opus", 2 * s, 0, 0, "go"},
		"photo.bmp":      {Image, "image/bmp", "bmp", "", "", 0, 40, 24, "go"},
		"photo.gif":      {Image, "image/gif", "gif", "", "", 0, 40, 24, "go"},
		"photo.tiff":     {Image, "image/tiff", "tiff", "", "", 0, 40, 24, "go"},
		"photo.webp":     {Image, "image/webp", "webp", "", "", 0, 40, 24, "go"},

		// Without ffprobe their kind is all that is known.
		"clip.avi": {Video, "video/x-msvideo", "avi", "", "", 0, 0, 0, "go"},
		"tone.aac": {Audio, "audio/aac", "aac", "", "", 0, 0, 0, "go"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := probe(New(Config{}), read(t, name))
			if err != nil {
				t.Fatal(err)
			}
			if off := (got.Duration - want.Duration).Abs(); off > want.Duration/10 {
				t.Errorf("duration %s, want about %s", got.Duration, want.Duration)
			}
			got.Duration = want.Duration
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestBadSamples(t *testing.T) {
	for name, want := range samples.Bad {
		b := read(t, name)
		_, err := probe(New(Config{}), b)
		var unreadable *UnreadableError
		switch want {
		case "failed: unreadable_media":
			if !errors.As(err, &unreadable) || !unreadable.Truncated || unreadable.Container != "mp4" {
				t.Errorf("%s: %v, want a truncated mp4", name, err)
			}
		case "skipped: unsupported_type":
			if !errors.Is(err, ErrUnsupported) {
				t.Errorf("%s: %v, want %v", name, err, ErrUnsupported)
			}
		case "skipped: empty":
			if len(b) != 0 || !errors.Is(err, ErrUnsupported) {
				t.Errorf("%s: %d bytes, %v", name, len(b), err)
			}
		case "skipped: hidden_or_temporary": // by its name; the content is good
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		default:
			t.Errorf("%s: unknown outcome %q", name, want)
		}
	}
}

func TestSamplesDiffer(t *testing.T) {
	seen := map[string]string{}
	for _, name := range append(slices.Sorted(maps.Keys(samples.Bad)), samples.Good...) {
		b := string(read(t, name))
		if other, ok := seen[b]; ok {
			t.Errorf("%s and %s are the same", name, other)
		}
		seen[b] = name
	}
}

func TestSniffNamesWhatItFound(t *testing.T) {
	for content, want := range map[string]string{
		"just text\n":           "unsupported type: text/plain",
		"#EXTM3U\nfile.ts\n":    "unsupported type: application/vnd.apple.mpegurl",
		"%PDF-1.7\n":            "unsupported type: application/pdf",
		"\x00\x01\x02\x03\x04z": "unsupported type: application/octet-stream",
		"":                      "unsupported type: empty file",
	} {
		_, err := Sniff([]byte(content))
		if !errors.Is(err, ErrUnsupported) || err.Error() != want {
			t.Errorf("Sniff(%q): %v, want %s", content, err, want)
		}
	}
	// Brands that are relatives of ours and not ours.
	for _, brand := range []string{"avif", "mjp2", "msf1"} {
		if typ, err := Sniff([]byte("\x00\x00\x00\x14ftyp" + brand + "\x00\x00\x00\x00" + brand)); err == nil {
			t.Errorf("brand %s is taken for %+v", brand, typ)
		}
	}
}

// sane fails the test unless a probe ended in one of the ways it may.
func sane(t *testing.T, what string, info Info, err error) {
	t.Helper()
	var unreadable *UnreadableError
	switch {
	case err == nil:
		if info.Kind != Video && info.Kind != Audio && info.Kind != Image || info.ContentType == "" ||
			info.Container == "" || info.Prober == "" {
			t.Errorf("%s: incomplete: %+v", what, info)
		}
		if info.Duration < 0 || info.Duration > MaxDuration ||
			info.Width < 0 || info.Width > MaxDimension || info.Height < 0 || info.Height > MaxDimension {
			t.Errorf("%s: absurd: %+v", what, info)
		}
		for _, s := range []string{info.VideoCodec, info.AudioCodec} {
			if len(s) > 32 || strings.ContainsFunc(s, func(r rune) bool { return r < '-' || r > 'z' }) {
				t.Errorf("%s: codec %q", what, s)
			}
		}
	case errors.As(err, &unreadable):
		if unreadable.Container == "" || unreadable.Reason == "" || strings.Contains(unreadable.Reason, "panic") {
			t.Errorf("%s: %+v", what, unreadable)
		}
		if strings.HasPrefix(unreadable.Reason, "parser failed") {
			t.Errorf("%s: a parser panicked: %v", what, err)
		}
	case errors.Is(err, ErrUnsupported):
	default:
		t.Errorf("%s: %v", what, err)
	}
}

// A file that breaks off anywhere is one outcome among the known, and for formats that announce their length it is
// never a good file.
func TestTruncatedAnywhere(t *testing.T) {
	announced := map[string]bool{
		"video.mp4": true, "video.mov": true, "audio.m4a": true, "clip.3gp": true, "video.webm": true, "video.mkv": true,
		"photo.jpg": true, "photo.png": true, "photo.webp": true,
	}
	p := New(Config{})
	for _, name := range everything(t) {
		whole := read(t, name)
		for n := 0; n < len(whole); n += 1 + n/1024 { // headers stand at the beginning
			info, err := probe(p, whole[:n])
			sane(t, fmt.Sprintf("%s[:%d]", name, n), info, err)
			if err == nil && announced[name] {
				t.Fatalf("%s[:%d] of %d passes for whole: %+v", name, n, len(whole), info)
			}
		}
	}
}

func TestMutated(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := New(Config{})
	for _, name := range everything(t) {
		whole := read(t, name)
		for range 500 {
			b := slices.Clone(whole)
			for range 1 + rng.IntN(8) {
				at := rng.IntN(len(b))
				if rng.IntN(2) == 0 { // headers stand at the beginning
					at = rng.IntN(min(len(b), 2048))
				}
				b[at] = [...]byte{0, 0xFF, 0x7F, 0x80, byte(rng.UintN(256))}[rng.IntN(5)]
			}
			info, err := probe(p, b)
			sane(t, name, info, err)
		}
	}
}

var errBroken = errors.New("connection reset")

// flaky fails where it is read at or after from.
type flaky struct {
	*bytes.Reader
	from int64
	err  error
}

func (f *flaky) ReadAt(p []byte, off int64) (int, error) {
	if n := f.from - off; n < int64(len(p)) {
		m, _ := f.Reader.ReadAt(p[:max(n, 0)], off)
		return m, f.err
	}
	return f.Reader.ReadAt(p, off)
}

func TestReaderErrorsAreNotTheFiles(t *testing.T) {
	p := New(Config{})
	for _, name := range everything(t) {
		b := read(t, name)
		for from := 0; from < len(b); from += 1 + len(b)/50 {
			// It fails, unless it was not read that far.
			info, err := p.Probe(t.Context(), &flaky{bytes.NewReader(b), int64(from), errBroken}, int64(len(b)), "")
			if err != nil && err != errBroken { //nolint:errorlint // as it is, not wrapped
				t.Errorf("%s, broken at %d: %v, want %v", name, from, err, errBroken)
			}
			if err == nil && from < SniffLen {
				t.Errorf("%s, broken at %d: %+v", name, from, info)
			}
			_, err = p.Probe(t.Context(), &flaky{bytes.NewReader(b), int64(from), io.EOF}, int64(len(b)), "")
			if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s, short at %d: %v, want %v", name, from, err, io.ErrUnexpectedEOF)
			}
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := read(t, "video.mp4")
	if _, err := New(Config{}).Probe(ctx, bytes.NewReader(b), int64(len(b)), ""); err != context.Canceled { //nolint:errorlint // as it is, not wrapped
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// counting counts what is read of it. Beyond the end of its content it is zeros up to size.
type counting struct {
	content []byte
	size    int64
	total   int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), c.size-off))
	clear(p[:n])
	if off < int64(len(c.content)) {
		copy(p[:n], c.content[off:])
	}
	c.total += int64(n)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// mp4Box builds one.
func mp4Box(kind string, payload ...[]byte) []byte {
	body := bytes.Join(payload, nil)
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(append(b, kind...), body...)
}

func TestReadsAreBounded(t *testing.T) {
	ftyp := mp4Box("ftyp", []byte("isom\x00\x00\x02\x00isom"))
	open := []byte{0x01, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}
	ebml := slices.Concat([]byte{0x1A, 0x45, 0xDF, 0xA3, 0x87, 0x42, 0x82, 0x84}, []byte("webm"), // EBML, DocType
		[]byte{0x18, 0x53, 0x80, 0x67}, open)
	jpg := read(t, "photo.jpg")

	for name, f := range map[string]*counting{
		"a million boxes":         {content: slices.Concat(ftyp, bytes.Repeat(mp4Box("free"), 1<<20)), size: 8 << 20},
		"boxes far apart":         {content: slices.Concat(ftyp, bytes.Repeat(mp4Box("free", make([]byte, 8000)), 4000)), size: 40 << 20},
		"a large index":           {content: slices.Concat(ftyp, mp4Box("moov", mp4Box("trak", mp4Box("mdia", bytes.Repeat(mp4Box("hdlr"), 1<<18))))), size: 1 << 40},
		"a million elements":      {content: slices.Concat(ebml, bytes.Repeat([]byte{0xEC, 0x80}, 1<<20)), size: 1 << 40},
		"a picture without end":   {content: jpg[:len(jpg)-2], size: 1 << 40},
		"a sound without frames":  {content: []byte("ID3\x04\x00\x00\x00\x00\x01\x00"), size: 1 << 40},
		"a terabyte of ogg":       {content: read(t, "audio.ogg"), size: 1 << 40},
		"a terabyte of live webm": {content: read(t, "live.webm"), size: 1 << 40},
	} {
		info, err := New(Config{}).Probe(t.Context(), f, f.size, "")
		sane(t, name, info, err)
		if f.total > MaxRead {
			t.Errorf("%s: read %d bytes", name, f.total)
		}
	}
}

func TestTrackRunIsNotBelieved(t *testing.T) {
	// Four thousand million samples that take no bytes.
	b := read(t, "fragmented.mp4")
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte("trun"))
		if i < 0 {
			break
		}
		at += i + 4
		copy(b[at:], []byte{0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF})
	}
	info, err := probe(New(Config{}), b)
	sane(t, "trun", info, err)
}

func TestTrailingBytes(t *testing.T) {
	p := New(Config{})
	for _, name := range []string{"video.mp4", "video.mov", "photo.jpg", "photo.png"} {
		want, err := probe(p, read(t, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, tail := range []string{"\x00\x00\x00", "\xDE\xAD\xBE\xEF\xDE\xAD\xBE\xEF\xDE\xAD\xBE\xEF", strings.Repeat("left behind ", 9000)} {
			got, err := probe(p, append(read(t, name), tail...))
			if err != nil || got != want {
				t.Errorf("%s with %d bytes more: %+v, %v", name, len(tail), got, err)
			}
		}
	}
}

func TestPreviewDoesNotEndAPicture(t *testing.T) {
	// An embedded preview has an end marker; the picture around it is cut.
	var preview, picture bytes.Buffer
	if err := jpeg.Encode(&preview, image.NewGray(image.Rect(0, 0, 8, 8)), nil); err != nil {
		t.Fatal(err)
	}
	if err := jpeg.Encode(&picture, image.NewGray(image.Rect(0, 0, 64, 64)), nil); err != nil {
		t.Fatal(err)
	}
	app1 := binary.BigEndian.AppendUint16([]byte{0xFF, 0xE1}, uint16(2+preview.Len()))
	b := slices.Concat([]byte{0xFF, 0xD8}, app1, preview.Bytes(), picture.Bytes()[2:])
	if info, err := probe(New(Config{}), b); err != nil || info.Width != 64 {
		t.Fatalf("%+v, %v", info, err)
	}
	var unreadable *UnreadableError
	if _, err := probe(New(Config{}), b[:len(b)-2]); !errors.As(err, &unreadable) || !unreadable.Truncated {
		t.Errorf("got %v, want truncated", err)
	}
}

func TestHEIF(t *testing.T) {
	ispe := func(w, h uint32) []byte {
		return mp4Box("ispe", binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(make([]byte, 4), w), h))
	}
	b := slices.Concat(
		mp4Box("ftyp", []byte("heic\x00\x00\x00\x00mif1heic")),
		mp4Box("meta", make([]byte, 4), mp4Box("iprp", mp4Box("ipco", ispe(512, 512), ispe(4032, 3024), ispe(320, 240)))),
		mp4Box("mdat", make([]byte, 100)))
	want := Info{Kind: Image, ContentType: "image/heic", Container: "heif", Width: 4032, Height: 3024, Prober: "go"}
	if got, err := probe(New(Config{}), b); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := probe(New(Config{}), b[:len(b)-1]); err == nil {
		t.Error("a cut one passes")
	}
}

func TestAbsurdFiguresAreUnknown(t *testing.T) {
	b := read(t, "video.mkv")
	i := bytes.Index(b, []byte{0x44, 0x89, 0x88}) // Duration, eight bytes
	if i < 0 {
		t.Fatal("no duration in the sample")
	}
	for _, bits := range []uint64{0x7FF8000000000001, 0x7FF0000000000000, 0xC000000000000000, 0x7E37E43C8800759C} {
		binary.BigEndian.PutUint64(b[i+3:], bits) // NaN, infinite, negative, 1e300
		info, err := probe(New(Config{}), b)
		if err != nil || info.Duration < 1900*time.Millisecond || info.Duration > 2100*time.Millisecond {
			t.Errorf("%#x: %+v, %v; want the last block's time", bits, info, err)
		}
	}
}

func TestStreamedWAV(t *testing.T) {
	for _, size := range []uint32{0, 0xFFFFFFFF, 0x7FFFFFFF} {
		b := read(t, "audio.wav")
		binary.LittleEndian.PutUint32(b[bytes.Index(b, []byte("data"))+4:], size)
		if info, err := probe(New(Config{}), b); err != nil || info.Duration != time.Second {
			t.Errorf("data size %#x: %+v, %v", size, info, err)
		}
	}
}

func FuzzProbe(f *testing.F) {
	for _, name := range everything(f) {
		f.Add(read(f, name))
	}
	for name := range samples.Bad {
		f.Add(read(f, name))
	}
	p := New(Config{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &counting{content: b, size: int64(len(b))}
		info, err := p.Probe(t.Context(), r, r.size, "")
		sane(t, "fuzzed", info, err)
		if r.total > MaxRead {
			t.Errorf("read %d bytes", r.total)
		}
	})
}

func BenchmarkProbe(b *testing.B) {
	p := New(Config{})
	for _, name := range samples.Good {
		content := read(b, name)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := probe(p, content); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
		})
	}
}
