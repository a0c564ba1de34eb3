package process

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"unicode/utf8"
)

// NewLogger returns a logger that writes one line per record to w. format is "json" or "text"; level is "debug",
// "info", "warn" or "error", and both may be empty for the default, which is text at info. Whatever a name from
// outside contains, no control character, escape sequence or text direction mark reaches w.
func NewLogger(format, level string, w io.Writer) (*slog.Logger, error) {
	var opts slog.HandlerOptions
	switch level {
	case "debug":
		opts.Level = slog.LevelDebug
	case "info", "":
		opts.Level = slog.LevelInfo
	case "warn":
		opts.Level = slog.LevelWarn
	case "error":
		opts.Level = slog.LevelError
	default:
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", level)
	}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(escaper{w}, &opts)), nil
	case "text", "":
		return slog.New(slog.NewTextHandler(w, &opts)), nil // quotes, with Go's escapes, what is not printable
	default:
		return nil, fmt.Errorf("log format %q: want json or text", format)
	}
}

// escaper spells out what JSON allows inside strings and terminals obey. Handlers write whole records, and outside of
// strings JSON is plain ASCII, so replacing runes with \u escapes keeps the meaning.
type escaper struct{ w io.Writer }

func (e escaper) Write(p []byte) (int, error) {
	if !bytes.ContainsFunc(p, unsafeRune) {
		return e.w.Write(p)
	}
	out := make([]byte, 0, len(p)+32)
	for rest := p; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		if unsafeRune(r) {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = append(out, rest[:n]...)
		}
		rest = rest[n:]
	}
	if _, err := e.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// unsafeRune: DEL and the C1 controls, which some terminals take for escape sequences, and the marks that reorder
// text. The C0 controls are escaped by encoding already; the line feed that ends the record is not to be.
func unsafeRune(r rune) bool {
	switch {
	case r >= 0x7f && r <= 0x9f,
		r == 0x061c, r == 0x200e, r == 0x200f,
		r >= 0x202a && r <= 0x202e,
		r >= 0x2066 && r <= 0x2069:
		return true
	}
	return false
}
