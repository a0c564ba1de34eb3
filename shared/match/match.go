// Package match decides which objects a prefix and a pattern mean. Browsing, import jobs and automations all ask here,
// so that what a person sees in a preview is what is imported.
//
//   - any run of characters without "/"
//     **       any run of characters; as a segment of its own, "a/**/b", also no folder at all
//     ?        one character that is not "/"
//     [a-z]    one of a class; [!a-z] and [^a-z] one that is not
//     {a,b}    one of several, nesting allowed
//     \        takes the next character as it is
//
// A pattern without "/" is held against the last segment of the key. One with "/" is held against the key from the last
// "/" of the prefix on, and failing that against the whole key. Everything is case-sensitive and compares bytes: names
// in different Unicode normal forms are different names. Keys that end in "/" are folder markers and never match.
package match

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

const (
	maxPattern      = 1024 // bytes
	maxAlternatives = 1000 // that braces may multiply to: matching tries them one by one
)

// ErrPattern is what every error of Compile wraps.
var ErrPattern = errors.New("malformed pattern")

// PatternError says what is wrong with a pattern, for the person who wrote it.
type PatternError struct {
	Pattern string
	Offset  int // byte at which the problem begins
	Problem string
}

func (e *PatternError) Error() string {
	return fmt.Sprintf("pattern %q: %s at byte %d", e.Pattern, e.Problem, e.Offset)
}

// Unwrap returns ErrPattern.
func (e *PatternError) Unwrap() error { return ErrPattern }

// Matcher holds keys against one prefix and pattern. It is immutable and safe for concurrent use.
type Matcher struct {
	prefix    string
	pattern   string
	recursive bool

	glob     string // what doublestar gets
	whole    bool   // the pattern has a "/"
	any      bool   // the pattern is "*"
	suffix   string // "*.mp4" and the like: what to look for instead
	literal  string // a name that matches by being the same; see Compile
	relative int    // length of the prefix up to its last "/"
}

// Compile returns the Matcher of a prefix, which is the raw beginning of a key, and a pattern; the empty pattern is "*".
// Unless recursive, nothing below the next "/" after the prefix matches. The error is a *PatternError.
//
// When the prefix is a whole key and the pattern its last segment, that segment also stands for itself, whatever it
// contains: somebody picked one file, and "clip [final].mp4" is a name.
func Compile(prefix, pattern string, recursive bool) (*Matcher, error) {
	if pattern == "" {
		pattern = "*"
	}
	m := &Matcher{prefix: prefix, pattern: pattern, recursive: recursive}
	m.relative = strings.LastIndexByte(prefix, '/') + 1
	if base := prefix[m.relative:]; base != "" && base == pattern {
		m.literal = base
	}
	glob, err := parse(pattern)
	if err != nil {
		if m.literal == "" {
			return nil, err
		}
		glob = "" // matches no key: there is none without a name
	}
	m.glob = glob
	m.whole = strings.Contains(pattern, "/")
	m.any = pattern == "*"
	if rest, ok := strings.CutPrefix(pattern, "*"); ok && !strings.ContainsAny(rest, `*?[]{}\/`) {
		m.suffix = rest
	}
	return m, nil
}

// Prefix returns the prefix, for listing no more than is needed.
func (m *Matcher) Prefix() string { return m.prefix }

// Pattern returns the pattern; never empty.
func (m *Matcher) Pattern() string { return m.pattern }

// Recursive reports whether keys below the next "/" after the prefix can match.
func (m *Matcher) Recursive() bool { return m.recursive }

// Match reports whether the object at path is meant.
func (m *Matcher) Match(path string) bool {
	return strings.HasPrefix(path, m.prefix) && m.rest(path)
}

// rest is Match of a path that is known to have the prefix.
func (m *Matcher) rest(path string) bool {
	if path == "" || path[len(path)-1] == '/' {
		return false
	}
	if !m.recursive && strings.IndexByte(path[len(m.prefix):], '/') >= 0 {
		return false
	}
	if m.whole {
		return doublestar.MatchUnvalidated(m.glob, path[m.relative:]) || doublestar.MatchUnvalidated(m.glob, path)
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	switch {
	case m.any:
		return true
	case m.literal != "" && name == m.literal:
		return true
	case m.suffix != "":
		return strings.HasSuffix(name, m.suffix)
	}
	return doublestar.MatchUnvalidated(m.glob, name)
}

// parse checks a pattern and returns it in doublestar's terms, whose "**" means any run only when it is a segment of
// its own: elsewhere, "**" becomes "{*,*/**/*}".
func parse(pattern string) (string, error) {
	bad := func(offset int, problem string) (string, error) {
		return "", &PatternError{Pattern: pattern, Offset: offset, Problem: problem}
	}
	if len(pattern) > maxPattern {
		return bad(maxPattern, fmt.Sprintf("longer than %d bytes", maxPattern))
	}
	var (
		glob strings.Builder
		open = []brace{{product: 1}} // the braces we are in, and the pattern itself
	)
	// multiply reports whether n alternatives at this place are too many.
	multiply := func(n int) bool {
		b := &open[len(open)-1]
		b.product *= n
		return b.sum+b.product > maxAlternatives
	}
	tooMany := fmt.Sprintf(`braces and "**" multiply to more than %d alternatives`, maxAlternatives)
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; c {
		case '\\':
			if i++; i == len(pattern) {
				return bad(i-1, `nothing after "\"`)
			}
			glob.WriteString(pattern[i-1 : i+1])
		case '[':
			end, problem := class(pattern[i:])
			if problem != "" {
				return bad(i, problem)
			}
			glob.WriteString(noSlash(pattern[i : i+end]))
			i += end - 1
		case '{':
			open = append(open, brace{offset: i, product: 1})
			glob.WriteByte(c)
		case ',':
			if len(open) > 1 {
				open[len(open)-1].next()
			}
			glob.WriteByte(c)
		case '}':
			if len(open) == 1 {
				return bad(i, `"}" without "{"`)
			}
			b := open[len(open)-1]
			b.next()
			open = open[:len(open)-1]
			if multiply(b.sum) {
				return bad(b.offset, tooMany)
			}
			glob.WriteByte(c)
		case '*':
			end := i + 1
			for end < len(pattern) && pattern[end] == '*' {
				end++
			}
			switch {
			case end-i == 1:
				glob.WriteString("*")
			case (i == 0 || pattern[i-1] == '/') && (end == len(pattern) || pattern[end] == '/'):
				glob.WriteString("**")
			case multiply(2):
				return bad(i, tooMany)
			default:
				glob.WriteString("{*,*/**/*}")
			}
			i = end - 1
		default:
			glob.WriteByte(c)
		}
	}
	if len(open) > 1 {
		return bad(open[len(open)-1].offset, `"{" without "}"`)
	}
	if !doublestar.ValidatePattern(glob.String()) {
		return bad(0, "not understood")
	}
	return glob.String(), nil
}

// brace counts the alternatives of a pair of braces: the sum over its parts of the product within each.
type brace struct{ offset, sum, product int }

func (b *brace) next() { b.sum, b.product = b.sum+b.product, 1 }

// noSlash keeps a class that says what is not wanted from taking "/", which would lead it into another folder.
func noSlash(class string) string {
	if class[1] != '!' && class[1] != '^' {
		return class
	}
	rest := class[2:]
	if rest[0] == '-' { // not the middle of a range that begins with our "/"
		rest = `\` + rest
	}
	return class[:2] + "/" + rest
}

// class returns the length of the character class that s begins with, or what is wrong with it.
func class(s string) (length int, problem string) {
	i := 1
	if i < len(s) && (s[i] == '!' || s[i] == '^') {
		i++
	}
	if i < len(s) && s[i] == ']' {
		return 0, "empty character class"
	}
	for ; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ']':
			return i + 1, ""
		}
	}
	return 0, `"[" without "]"`
}
