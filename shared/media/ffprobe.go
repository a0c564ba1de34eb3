package media

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	maxReport = 1 << 20     // bytes of ffprobe's output that are read; a file can carry megabytes of tags
	waitDelay = time.Second // for its pipes to close once it is killed
)

// FindFFprobe returns the path of the ffprobe in PATH, or "" when there is none: what Config.FFprobe wants.
func FindFFprobe() string {
	path, err := exec.LookPath("ffprobe")
	if err != nil {
		return ""
	}
	return path
}

// ffprobe runs that program on one file at a time and for a bounded time, in a process group of its own, without the
// parent's environment (which may hold secrets), and, where the system lets us, without a network and within limits
// on memory and CPU.
type ffprobe struct {
	program string
	timeout time.Duration
	slots   chan struct{} // one per running child

	noNamespace atomic.Bool // the system refuses to make one
}

// demuxers are ffprobe's names of our containers. One is always given: left to guess, ffprobe takes a text for a
// playlist and opens what it lists. Containers that are missing here are not shown to ffprobe at all.
var demuxers = map[string]string{
	"mp4": "mov", "mov": "mov", "3gp": "mov", "heif": "mov",
	"matroska": "matroska", "webm": "matroska",
	"avi": "avi", "mp3": "mp3", "aac": "aac", "wav": "wav", "flac": "flac", "ogg": "ogg",
}

// opinion is what ffprobe thinks of a file.
type opinion int

const (
	none     opinion = iota // it could not be asked, or did not answer in time
	readable                // at least one stream
	damaged                 // invalid data
)

// run asks ffprobe about r, or about the file at path when there is one. err is the context's or r's; what goes wrong
// with ffprobe is no opinion.
func (f *ffprobe) run(ctx context.Context, typ Type, r io.ReaderAt, size int64, path string) (Info, opinion, error) {
	demuxer, ok := demuxers[typ.Container]
	if !ok {
		return Info{}, none, nil
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return Info{}, none, ctx.Err()
	}
	timed, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()

	input, whole := "pipe:0", true
	var feed *feeder
	if path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return Info{}, none, nil
		}
		input = "file:" + abs // whatever is in the name, it is a name
	} else {
		n := min(size, MaxPiped)
		feed = &feeder{r: io.NewSectionReader(r, 0, n), left: n}
		whole = size <= MaxPiped
	}

	// -show_error tells invalid data from a file that ffprobe may not open.
	args := []string{
		"-v", "error", "-of", "json", "-show_error", "-show_format", "-show_streams",
		"-protocol_whitelist", "file,pipe", "-f", demuxer, "-i", input,
	}
	out, err := f.start(timed, args, feed)
	if ctx.Err() != nil {
		return Info{}, none, ctx.Err()
	}
	if feed != nil && feed.err != nil {
		return Info{}, none, feed.err
	}
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.Exited()) {
		return Info{}, none, nil // killed, or never started
	}
	info, op := readReport(out)
	if op == damaged && !whole {
		op = none // perhaps what it misses lies in what it did not get
	}
	return info, op, nil
}

// start runs the program to its end and returns what it printed.
func (f *ffprobe) start(ctx context.Context, args []string, feed *feeder) ([]byte, error) {
	for {
		out := &capped{}
		cmd := exec.CommandContext(ctx, f.program, args...)
		cmd.Env = []string{"LC_ALL=C"}
		cmd.Stdout = out
		cmd.WaitDelay = waitDelay
		if feed != nil {
			cmd.Stdin = feed
		}
		confined := confine(cmd, !f.noNamespace.Load())
		err := cmd.Start()
		if err != nil && confined && ctx.Err() == nil && noNamespace(err) {
			f.noNamespace.Store(true)
			continue
		}
		if err != nil {
			return nil, err
		}
		limit(cmd.Process.Pid, f.timeout)
		err = cmd.Wait()
		if out.full {
			return nil, errors.New("ffprobe prints too much")
		}
		return out.buf.Bytes(), err
	}
}

// report is the part of ffprobe's JSON that we read.
type report struct {
	Streams []struct {
		Type        string `json:"codec_type"`
		Codec       string `json:"codec_name"`
		SampleRate  string `json:"sample_rate"`
		Width       int    `json:"width"`
		Height      int    `json:"height"`
		Duration    string `json:"duration"`
		Disposition struct {
			AttachedPicture int `json:"attached_pic"`
		} `json:"disposition"`
	} `json:"streams"`
	Format struct {
		Duration string `json:"duration"`
	} `json:"format"`
	Error *struct {
		Code int `json:"code"`
	} `json:"error"`
}

// The error codes by which ffprobe means the content.
const (
	invalidData = -1094995529
	endOfFile   = -541478725
)

// readReport judges ffprobe's output, which is as hostile as the file it is about.
func readReport(out []byte) (Info, opinion) {
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		return Info{}, none
	}
	if r.Error != nil {
		if r.Error.Code == invalidData || r.Error.Code == endOfFile {
			return Info{}, damaged
		}
		return Info{}, none
	}
	info := Info{Duration: duration(r.Format.Duration)}
	for _, s := range r.Streams {
		// Told what it must be, ffprobe finds a stream in noise too: one of no size or rate.
		switch {
		case s.Type == "video" && info.VideoCodec == "" && s.Width > 0 && s.Disposition.AttachedPicture == 0:
			info.Kind = Video
			info.VideoCodec = printable(s.Codec)
			info.Width, info.Height = s.Width, s.Height
		case s.Type == "audio" && info.AudioCodec == "" && s.SampleRate != "" && s.SampleRate != "0":
			if info.Kind == "" {
				info.Kind = Audio
			}
			info.AudioCodec = printable(s.Codec)
		default:
			continue
		}
		if info.Duration == 0 {
			info.Duration = duration(s.Duration)
		}
	}
	if info.Kind == "" {
		return Info{}, damaged // opened, and nothing to see or hear in it
	}
	return info.bounded(), readable
}

// duration reads ffprobe's decimal seconds; 0 when they are none.
func duration(s string) time.Duration {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0
	}
	return seconds(f)
}

// feeder is ffprobe's standard input. It remembers the reader's own failure, which the copy into the pipe would mix
// with that of a child that has seen enough and left.
type feeder struct {
	r    io.Reader
	left int64
	err  error
}

func (f *feeder) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	f.left -= int64(n)
	if err == io.EOF && f.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// capped keeps up to maxReport bytes. More breaks the pipe, and with it the child.
type capped struct {
	buf  bytes.Buffer
	full bool
}

func (c *capped) Write(p []byte) (int, error) {
	if c.full = c.full || c.buf.Len()+len(p) > maxReport; c.full {
		return 0, io.ErrShortBuffer
	}
	return c.buf.Write(p)
}
