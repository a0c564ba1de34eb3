package media

import (
	"bytes"
	"testing"

	"github.com/abema/go-mp4"
)

// What mp4.go reads must be what a library that knows the whole standard reads.
func TestAgreesWithGoMP4(t *testing.T) {
	for _, name := range []string{"video.mp4", "video.mov", "audio.m4a", "clip.3gp", "fragmented.mp4"} {
		b := read(t, name)
		want, err := mp4.Probe(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		src := newSource(t.Context(), bytes.NewReader(b), int64(len(b)))
		t.Cleanup(src.release)
		f := &mp4File{src: src}
		if err := f.walk(); err != nil {
			t.Fatal(err)
		}

		if f.timescale != want.Timescale || f.duration != want.Duration || len(f.tracks) != len(want.Tracks) {
			t.Fatalf("%s: got %d/%d and %d tracks, want %d/%d and %d", name,
				f.duration, f.timescale, len(f.tracks), want.Duration, want.Timescale, len(want.Tracks))
		}
		for i, got := range f.tracks {
			want := want.Tracks[i]
			codec := map[mp4.Codec]string{mp4.CodecAVC1: "h264", mp4.CodecMP4A: "aac"}[want.Codec]
			if got.id != want.TrackID || got.timescale != want.Timescale || got.duration != want.Duration || got.codec != codec {
				t.Errorf("%s: track %+v, want %+v", name, got, *want)
			}
			if want.AVC != nil && (got.width != int(want.AVC.Width) || got.height != int(want.AVC.Height)) {
				t.Errorf("%s: %d×%d, want %d×%d", name, got.width, got.height, want.AVC.Width, want.AVC.Height)
			}
		}

		var end uint64 // of the fragments of the first track, in its timescale
		for _, s := range want.Segments {
			if s.TrackID == f.tracks[0].id {
				end = s.BaseMediaDecodeTime + uint64(s.Duration)
			}
		}
		if f.fragmented && f.fragmentsEnd() < ticks(end, f.tracks[0].timescale) {
			t.Errorf("%s: fragments end at %s, want at least %s", name, f.fragmentsEnd(), ticks(end, f.tracks[0].timescale))
		}
	}
}
