//go:build unix

package media

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/shared/media/samples"
)

// realFFprobe skips the test where there is none.
func realFFprobe(t testing.TB) *Prober {
	path := FindFFprobe()
	if path == "" {
		t.Skip("ffprobe is not installed")
	}
	return New(Config{FFprobe: path})
}

// fakeFFprobe is a Prober whose ffprobe is a shell script.
func fakeFFprobe(t *testing.T, timeout time.Duration, script string) *Prober {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ffprobe")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return New(Config{FFprobe: path, Timeout: timeout})
}

func TestFFprobeFillsIn(t *testing.T) {
	p := realFFprobe(t)
	for name, want := range map[string]Info{
		"clip.avi": {Video, "video/x-msvideo", "avi", "mpeg4", "mp3", 2 * time.Second, 88, 72, "ffprobe"},
		"tone.aac": {Audio, "audio/aac", "aac", "", "aac", 2 * time.Second, 0, 0, "ffprobe"},
	} {
		b := read(t, name)
		// A name that would be an option, a protocol and a pattern, were it not taken for a name.
		odd := filepath.Join(t.TempDir(), "-i concat:%03d|"+name)
		if err := os.WriteFile(odd, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"", filepath.Join("testdata", name), odd} {
			got, err := p.Probe(t.Context(), bytes.NewReader(b), int64(len(b)), path)
			if err != nil {
				t.Errorf("%s as %q: %v", name, path, err)
				continue
			}
			off := (got.Duration - want.Duration).Abs()
			if off < 200*time.Millisecond || name == "tone.aac" && path == "" { // a stream of unknown length
				got.Duration = want.Duration
			}
			if got != want {
				t.Errorf("%s as %q:\ngot  %+v\nwant %+v", name, path, got, want)
			}
		}
	}
}

func TestFFprobeChangesNoVerdict(t *testing.T) {
	p := realFFprobe(t)
	for name, want := range samples.Bad {
		b := read(t, name)
		_, err := probe(p, b)
		var unreadable *UnreadableError
		if strings.HasPrefix(want, "failed") != errors.As(err, &unreadable) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	for _, name := range samples.Good { // the fast path answers
		if info, err := probe(p, read(t, name)); err != nil || info.Prober != "go" {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}

func TestFFprobeFindsDamage(t *testing.T) {
	p := realFFprobe(t)
	avi := slices.Concat(read(t, "clip.avi")[:16], make([]byte, 4096))
	var unreadable *UnreadableError
	if _, err := probe(p, avi); !errors.As(err, &unreadable) || unreadable.Container != "avi" {
		t.Errorf("got %v, want an unreadable avi", err)
	}
	noise := append([]byte{0xFF, 0xF1}, make([]byte, 4096)...)
	if _, err := probe(p, noise); !errors.As(err, &unreadable) || unreadable.Container != "aac" {
		t.Errorf("got %v, want an unreadable aac", err)
	}
	// Not being able to open the file says nothing about it.
	b := read(t, "clip.avi")
	info, err := p.Probe(t.Context(), bytes.NewReader(b), int64(len(b)), filepath.Join(t.TempDir(), "gone"))
	if err != nil || info.Kind != Video || info.Prober != "go" {
		t.Errorf("a file that is gone: %+v, %v", info, err)
	}
}

// oddMP4 is a whole file whose index the Go parser does not understand.
func oddMP4(t *testing.T) []byte {
	b := read(t, "video.mp4")
	for {
		i := bytes.Index(b, []byte("hdlr"))
		if i < 0 {
			return b
		}
		copy(b[i:], "free")
	}
}

const goodReport = `{"streams":[{"codec_type":"video","codec_name":"h264","width":160,"height":120}],` +
	`"format":{"duration":"2.5"}}`

func TestSecondOpinion(t *testing.T) {
	odd := oddMP4(t)
	if _, err := probe(New(Config{}), odd); err == nil {
		t.Fatal("the Go parser has no doubts")
	}
	whole := Info{Video, "video/mp4", "mp4", "h264", "", 2500 * time.Millisecond, 160, 120, "ffprobe"}
	for name, c := range map[string]struct {
		script string
		want   Info // none: the Go parser's verdict stands
	}{
		"readable":         {"echo '" + goodReport + "'", whole},
		"and then it dies": {"echo '" + goodReport + "'; kill -9 $$", Info{}},
		"invalid data":     {`echo '{"error":{"code":-1094995529}}'; exit 1`, Info{}},
		"no permission":    {`echo '{"error":{"code":-13}}'; exit 1`, Info{}},
		"no streams":       {`echo '{"format":{"duration":"2.5"}}'`, Info{}},
		"not JSON":         {"echo moov atom not found; exit 1", Info{}},
		"nothing":          {"", Info{}},
		"too much":         {"echo '" + goodReport + "'; head -c 5000000 /dev/zero", Info{}},
		"nonsense": {
			`echo '{"streams":[{"codec_type":"video","codec_name":"H\u0000\u001b[31m264","width":7,"height":99999999}],` +
				`"format":{"duration":"nan"}}'`,
			Info{Video, "video/mp4", "mp4", "h31m264", "", 0, 0, 0, "ffprobe"},
		},
		"no end":       {`echo '{"streams":[{"codec_type":"audio","codec_name":"aac","sample_rate":"8000"}],"format":{"duration":"1e300"}}'`, Info{Audio, "audio/mp4", "mp4", "", "aac", 0, 0, 0, "ffprobe"}},
		"out of range": {`echo '{"streams":[{"codec_type":"video","width":99999999999999999999}]}'`, Info{}},
		"noise":        {`echo '{"streams":[{"codec_type":"audio","codec_name":"aac","sample_rate":"0"}]}'`, Info{}},
		"only a cover": {`echo '{"streams":[{"codec_type":"video","disposition":{"attached_pic":1}}]}'`, Info{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := probe(fakeFFprobe(t, time.Minute, c.script), odd)
			var unreadable *UnreadableError
			switch {
			case got != c.want:
				t.Errorf("got %+v, want %+v", got, c.want)
			case c.want == Info{} && !errors.As(err, &unreadable), c.want != Info{} && err != nil:
				t.Error(err)
			}
		})
	}
}

func TestTruncatedIsFinal(t *testing.T) {
	p := fakeFFprobe(t, time.Minute, "echo '"+goodReport+"'")
	for _, name := range []string{"truncated.mp4", "cut.mp4"} {
		if info, err := probe(p, read(t, name)); err == nil {
			t.Errorf("%s: %+v", name, info)
		}
	}
}

func TestFFprobeFailing(t *testing.T) {
	// Whatever happens to it, an AVI file stays one.
	avi := read(t, "clip.avi")
	for name, p := range map[string]*Prober{
		"missing":      New(Config{FFprobe: filepath.Join(t.TempDir(), "missing")}),
		"no program":   New(Config{FFprobe: t.TempDir()}),
		"crashing":     fakeFFprobe(t, time.Minute, "kill -SEGV $$"),
		"gone at once": fakeFFprobe(t, time.Minute, "exec <&-; exit 1"),
	} {
		if info, err := probe(p, avi); err != nil || info.Kind != Video || info.Prober != "go" {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}

func TestFFprobeIsKilledWithItsChildren(t *testing.T) {
	dir := t.TempDir()
	var pids []os.DirEntry
	for limit := 500 * time.Millisecond; len(pids) == 0; limit *= 2 { // until it is enough to start a script on this machine
		// The number is a file's name: content it may not write.
		p := fakeFFprobe(t, limit, "sleep 600 & mkdir "+dir+"/$!; wait")
		info, err := probe(p, read(t, "clip.avi"))
		if err != nil || info.Prober != "go" {
			t.Errorf("%+v, %v", info, err)
		}
		if pids, err = os.ReadDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	pid, err := strconv.Atoi(pids[0].Name())
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); alive(pid); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("its child %d lives on", pid)
		}
	}
}

// alive reports whether a process runs; a dead one whose parent has not noticed does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || !strings.Contains(string(stat), ") Z ")
}

func TestFFprobeSeesLittle(t *testing.T) {
	t.Setenv("MILLRACE_TEST_SECRET", "hush")
	p := fakeFFprobe(t, time.Minute, `
[ -z "$MILLRACE_TEST_SECRET" ] || exit 1
printf '{"streams":[{"codec_type":"video","codec_name":"x","width":%d,"height":1}]}' $(wc -l </proc/net/dev)
`)
	info, err := probe(p, read(t, "clip.avi"))
	if err != nil || info.Prober != "ffprobe" && runtime.GOOS == "linux" {
		t.Fatalf("%+v, %v; it sees our environment", info, err)
	}
	if runtime.GOOS != "linux" || p.ffprobe.noNamespace.Load() {
		t.Skip("this system gives no network namespace")
	}
	if info.Width != 3 { // two lines of heading, and lo
		t.Errorf("%d lines of network devices, want 3", info.Width)
	}
}

func TestReaderErrorsWhileFeeding(t *testing.T) {
	p := fakeFFprobe(t, time.Minute, "cat >/dev/null; echo '"+goodReport+"'")
	b := read(t, "clip.avi")
	_, err := p.Probe(t.Context(), &flaky{bytes.NewReader(b), 30_000, errBroken}, int64(len(b)), "")
	if err != errBroken { //nolint:errorlint // as it is, not wrapped
		t.Errorf("got %v, want %v", err, errBroken)
	}
	_, err = p.Probe(t.Context(), &flaky{bytes.NewReader(b), 30_000, io.EOF}, int64(len(b)), "")
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a short one: %v, want %v", err, io.ErrUnexpectedEOF)
	}
	info, err := probe(p, b)
	if err != nil || info.Prober != "ffprobe" {
		t.Errorf("%+v, %v", info, err)
	}
}

func BenchmarkFFprobe(b *testing.B) {
	p := realFFprobe(b)
	content := read(b, "clip.avi")
	for b.Loop() {
		info, err := p.Probe(b.Context(), bytes.NewReader(content), int64(len(content)), filepath.Join("testdata", "clip.avi"))
		if err != nil || info.Prober != "ffprobe" {
			b.Fatal(info, err)
		}
	}
}
