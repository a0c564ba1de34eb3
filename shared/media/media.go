// Package media tells what a file is and whether it can be read: kind, codecs, duration, dimensions. Only content
// counts; a name is never looked at.
//
// Parsers written in Go answer for nearly all files, in microseconds and from a few kilobytes. ffprobe, where it is
// installed, fills in what they leave open and is heard before a file is called unreadable. Every byte is taken for
// hostile: see MaxRead and the other bounds.
package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"time"
)

// Bounds of one Probe, whatever the file claims about itself.
const (
	// MaxRead is how many bytes the Go parsers read of one file, at most.
	MaxRead = 8 << 20

	// MaxPiped is how many bytes ffprobe is given of a file that has no path, at most.
	MaxPiped = 64 << 20

	// MaxDuration and MaxDimension (in pixels) are the largest figures passed on. What lies above is taken for
	// nonsense and reported as 0, unknown.
	MaxDuration  = 31 * 24 * time.Hour
	MaxDimension = 1 << 20
)

// ErrUnsupported says that the file is no type we import ("skipped: unsupported_type"). What Sniff and Probe return
// wraps it and names the type that was found.
var ErrUnsupported = errors.New("unsupported type")

// UnreadableError says that the file is of a type we import and damaged ("failed: unreadable_media"). It is about the
// bytes alone: no repetition helps.
type UnreadableError struct {
	Container string // as in Type
	Reason    string // the parser's
	// Truncated: the file ends before what it announces. That is certain knowledge; a second parser, which may be
	// content with an intact beginning, is not asked.
	Truncated bool
}

func (e *UnreadableError) Error() string {
	if e.Truncated {
		return fmt.Sprintf("truncated %s file: %s", e.Container, e.Reason)
	}
	return fmt.Sprintf("unreadable %s file: %s", e.Container, e.Reason)
}

// Kind is what a person would call a file.
type Kind string

// The kinds.
const (
	Video Kind = "video"
	Audio Kind = "audio"
	Image Kind = "image"
)

// Type is what the first bytes tell.
type Type struct {
	Kind        Kind
	ContentType string // without parameters: "video/mp4"
	// Container is the file format: mp4, mov, 3gp, heif, matroska, webm, avi, mp3, aac, wav, flac, ogg, jpeg, png,
	// gif, webp, bmp, tiff.
	Container string
}

// info is all that is known as long as only the type is.
func (t Type) info() Info {
	return Info{Kind: t.Kind, ContentType: t.ContentType, Container: t.Container, Prober: "go"}
}

// Info is what is known about a readable file. A zero field is unknown or does not apply.
type Info struct {
	Kind        Kind
	ContentType string
	Container   string // as in Type
	VideoCodec  string // ffprobe's names: h264, hevc, vp9, av1, …; the first video track's
	AudioCodec  string // aac, mp3, opus, pcm_s16le, …; the first audio track's
	Duration    time.Duration
	Width       int // in pixels as stored, before any rotation
	Height      int
	Prober      string // who found out: "go" or "ffprobe"
}

// complete reports whether nothing is left that ffprobe could add.
func (i Info) complete() bool {
	switch i.Kind {
	case Image:
		return i.Width > 0
	case Video:
		return i.Width > 0 && i.Duration > 0
	default:
		return i.Duration > 0
	}
}

// Config says how to probe. The zero value uses the Go parsers alone.
type Config struct {
	// FFprobe is the ffprobe program. When empty there is none: a file whose details the Go parsers cannot tell
	// (AVI, AAC, some variants of the others) is then reported with its kind alone. See FindFFprobe.
	FFprobe string

	// Timeout bounds one run of FFprobe; 10 s when not positive.
	Timeout time.Duration
}

// Prober reads what files say about themselves. It is safe for concurrent use and holds nothing to close.
type Prober struct {
	ffprobe *ffprobe // nil: none
}

// New returns a Prober. It starts nothing.
func New(cfg Config) *Prober {
	if cfg.FFprobe == "" {
		return &Prober{}
	}
	timeout := cfg.Timeout
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	return &Prober{ffprobe: &ffprobe{
		program: cfg.FFprobe,
		timeout: timeout,
		slots:   make(chan struct{}, runtime.GOMAXPROCS(0)),
	}}
}

// Probe reads what it needs of the size bytes in r and tells what they are. It asks for single kilobytes at many
// offsets, so r should be near: a file, not a remote object. path is the local file with the same content, or "" when
// there is none; it is only handed to ffprobe, which without it gets r through a pipe.
//
// The kind is decided by the tracks: an MP4 file without pictures is audio, whatever its brand says.
//
// Errors are ErrUnsupported (wrapped, with the type found), *UnreadableError, the context's error, or what r
// returned, as r returned it: a broken connection is not a broken file. An r that ends before size gives
// io.ErrUnexpectedEOF, wrapped. A failure of ffprobe itself is never an error; the Go parsers' word stands then.
func (p *Prober) Probe(ctx context.Context, r io.ReaderAt, size int64, path string) (Info, error) {
	src := newSource(ctx, r, size)
	defer src.release()

	head, err := src.peekUpTo(0, SniffLen)
	if err != nil {
		return Info{}, err
	}
	typ, err := Sniff(head)
	if err != nil {
		return Info{}, err
	}
	info, err := parse(src, typ)
	if src.err != nil {
		return Info{}, src.err
	}

	var unreadable *UnreadableError
	switch {
	case err == nil && info.complete(),
		errors.As(err, &unreadable) && unreadable.Truncated,
		p.ffprobe == nil:
		return info, err
	}
	second, opinion, ioErr := p.ffprobe.run(ctx, typ, r, size, path)
	switch {
	case ioErr != nil:
		return Info{}, ioErr
	case opinion == readable && err != nil:
		return typ.info().refined(second), nil
	case opinion == readable:
		return info.refined(second), nil
	case opinion == damaged && err == nil:
		return Info{}, &UnreadableError{Container: typ.Container, Reason: "ffprobe finds no valid data"}
	default:
		return info, err
	}
}

// refined lays ffprobe's findings over ours. Where ffprobe is silent, ours stay.
func (i Info) refined(by Info) Info {
	by.ContentType, by.Container = i.ContentType, i.Container
	if by.Kind == "" || i.Kind == Image {
		by.Kind = i.Kind
	}
	if by.Kind != i.Kind {
		by.ContentType = contentType(by.Container, by.Kind)
	}
	if by.VideoCodec == "" {
		by.VideoCodec = i.VideoCodec
	}
	if by.AudioCodec == "" {
		by.AudioCodec = i.AudioCodec
	}
	if by.Duration == 0 {
		by.Duration = i.Duration
	}
	if by.Width == 0 {
		by.Width, by.Height = i.Width, i.Height
	}
	by.Prober = "ffprobe"
	return by.bounded()
}

// bounded replaces absurd figures by 0.
func (i Info) bounded() Info {
	if i.Duration < 0 || i.Duration > MaxDuration {
		i.Duration = 0
	}
	if i.Width <= 0 || i.Height <= 0 || i.Width > MaxDimension || i.Height > MaxDimension {
		i.Width, i.Height = 0, 0
	}
	if i.Kind == Image {
		i.Duration = 0
	}
	return i
}

// tracks sets what follows from the tracks found: kind, content type, codecs.
func (i *Info) tracks(video, audio string) {
	i.VideoCodec, i.AudioCodec = video, audio
	kind := Audio
	if video != "" {
		kind = Video
	}
	if kind != i.Kind {
		i.Kind, i.ContentType = kind, contentType(i.Container, kind)
	}
}

// errNoDetails ends a parser that can tell no more, and has nothing against the file either.
var errNoDetails = errors.New("details unknown")

// parse runs the container's parser. Its errors are *UnreadableError; when src.err is set they mean nothing.
func parse(src *source, typ Type) (info Info, err error) {
	info = typ.info()
	defer func() {
		// A parser that meets an input its author did not foresee costs one file, not the process.
		if p := recover(); p != nil {
			info, err = Info{}, &UnreadableError{Container: typ.Container, Reason: fmt.Sprintf("parser failed: %v", p)}
		}
	}()

	switch typ.Container {
	case "mp4", "mov", "3gp":
		err = parseMP4(src, &info)
	case "heif":
		err = parseHEIF(src, &info)
	case "matroska", "webm":
		err = parseMatroska(src, &info)
	case "mp3":
		err = parseMP3(src, &info)
	case "wav":
		err = parseWAV(src, &info)
	case "flac":
		err = parseFLAC(src, 0, &info)
	case "ogg":
		err = parseOgg(src, &info)
	case "jpeg", "png", "gif", "webp", "bmp", "tiff":
		err = parseImage(src, &info)
	default:
		err = errNoDetails
	}

	var unreadable *UnreadableError
	switch {
	case err == nil:
		return info.bounded(), nil
	case errors.Is(err, errNoDetails), src.exhausted:
		return typ.info(), nil
	case errors.As(err, &unreadable):
		unreadable.Container = info.Container
		return Info{}, err
	default:
		return Info{}, &UnreadableError{
			Container: info.Container,
			Reason:    err.Error(),
			Truncated: errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF),
		}
	}
}

func damagedf(format string, args ...any) error {
	return &UnreadableError{Reason: fmt.Sprintf(format, args...)}
}

func truncatedf(format string, args ...any) error {
	return &UnreadableError{Reason: fmt.Sprintf(format, args...), Truncated: true}
}

// seconds turns a float that nobody vouches for into a duration, and nonsense into 0.
func seconds(s float64) time.Duration {
	if math.IsNaN(s) || s <= 0 || s > MaxDuration.Seconds() {
		return 0
	}
	return time.Duration(math.Round(s * float64(time.Second)))
}

// ticks is n units of 1/perSecond; 0 when that is nonsense.
func ticks(n uint64, perSecond uint32) time.Duration {
	if perSecond == 0 {
		return 0
	}
	return seconds(float64(n) / float64(perSecond))
}
