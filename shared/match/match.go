// Package match decides which objects a prefix and a pattern select. Browsing, import jobs and automations all use this
// one matcher, so what a person sees when browsing is what is imported.
package match

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"millrace/shared/bucket"
)

// ErrPattern says that a pattern cannot be read.
var ErrPattern = errors.New("is not a valid pattern: * is any run without /, ** any run, ? one character, [a-z] one of a class, {a,b} one of several")

// Matcher selects objects. It is a value; the zero one selects nothing.
type Matcher struct {
	prefix    string
	base      string // what of the prefix is a folder: up to and with its last "/"
	pattern   string
	whole     bool // the pattern has a "/": it is held against paths, not base names
	recursive bool
}

// Compile makes a matcher (contract §8.5). prefix is the beginning of a key, not a folder, and may be a whole key. A
// pattern without "/" is held against base names; one with "/" against the path behind the last "/" of the prefix, and
// failing that against the whole path. An empty pattern means "*". Not recursive: nothing below the next "/" behind the
// prefix. It fails with ErrPattern.
func Compile(prefix, pattern string, recursive bool) (Matcher, error) {
	if pattern == "" {
		pattern = "*"
	}
	if !doublestar.ValidatePattern(pattern) {
		return Matcher{}, fmt.Errorf("%q %w", pattern, ErrPattern)
	}
	return Matcher{
		prefix:    prefix,
		base:      prefix[:strings.LastIndexByte(prefix, '/')+1],
		pattern:   pattern,
		whole:     strings.Contains(pattern, "/"),
		recursive: recursive,
	}, nil
}

// Match reports whether path is selected. Case matters, and a path that ends in "/", a folder marker, never is.
func (m Matcher) Match(path string) bool {
	return m.pattern != "" && strings.HasPrefix(path, m.prefix) && m.matchPattern(path)
}

// matchPattern is Match for a path that is known to have the prefix.
func (m Matcher) matchPattern(path string) bool {
	if path == "" || path[len(path)-1] == '/' {
		return false
	}
	if !m.recursive && strings.Contains(path[len(m.prefix):], "/") {
		return false
	}
	if !m.whole {
		return m.pattern == "*" || m.pattern == "**" || doublestar.MatchUnvalidated(m.pattern, path[strings.LastIndexByte(path, '/')+1:])
	}
	return doublestar.MatchUnvalidated(m.pattern, path[len(m.base):]) || doublestar.MatchUnvalidated(m.pattern, path)
}

// ListOptions is the narrowest listing that holds everything the matcher selects, behind the path after.
func (m Matcher) ListOptions(after string) bucket.ListOptions {
	return bucket.ListOptions{Prefix: m.prefix, StartAfter: after, Delimiter: !m.recursive}
}
