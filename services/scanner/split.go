package scanner

import (
	"millrace/shared/store"
)

// middle guesses a key between at, up to where a range is listed, and until, its end ("": none), so that what is left of
// the range can be listed from both at a time. origin is the first key that the listing saw anywhere. It returns "" when
// it has no guess.
//
// A wrong guess costs one request: of the two ranges, one turns out to hold nothing, and the bound it gives makes the
// next guess a better one. What the two ranges hold together never depends on the guess.
//
// Where origin and at differ first is where names vary, as far as was seen: the coarsest digit of a counter that has
// moved yet, or a folder. Without an end to go by, the guess is one place before that, where the names would vary that
// nobody has come to yet; each right guess moves at there, and so the next one goes further. With an end, the guess is
// half-way in the first place that leaves room.
func middle(prefix, origin, at, until string) string {
	first := len(prefix) // place in which names may vary
	if until != "" {
		first = common(at, until)
	}
	vary := max(common(origin, at), first)
	// Places in the order in which they are tried: with an end to go by, from where names vary.
	start := vary - 1
	if until != "" {
		start = vary
	}
	for i := start; i >= first; i-- {
		if m := bump(at, until, i); m != "" {
			return m
		}
	}
	for i := start + 1; i <= len(at); i++ {
		if m := bump(at, until, i); m != "" {
			return m
		}
	}
	return ""
}

// bump returns at cut before place i, with a byte there half-way to the end of the range or of the kind of byte that is
// there: digits vary among digits. It is "" when that is no key behind at and before until.
func bump(at, until string, i int) string {
	low, high := byte('0'-1), byte('9')
	if i < len(at) {
		low = at[i]
		high = lastOfKind(low)
	}
	if until != "" && i == common(at, until) {
		if i == len(until) { // it begins with the end
			return ""
		}
		// The end may be of another kind, then it takes what is in between.
		high = until[i]
		if int(high)-int(low) < 2 && i+1 < len(until) && until[i] < 0x80 {
			return until[:i+1] // between what begins as at does, and what begins as the end does
		}
		high--
	}
	if high <= low || low >= 0x80 || high >= 0x80 {
		return ""
	}
	m := at[:min(i, len(at))] + string(rune(low+(high-low+1)/2))
	if m <= at || until != "" && m >= until {
		return ""
	}
	return m
}

// lastOfKind returns the last byte of the kind of b: of digits and letters; anything else varies with nothing.
func lastOfKind(b byte) byte {
	switch {
	case '0' <= b && b <= '9':
		return '9'
	case 'A' <= b && b <= 'Z':
		return 'Z'
	case 'a' <= b && b <= 'z':
		return 'z'
	}
	return b
}

// common returns how many bytes a and b begin with that are the same.
func common(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// within reports whether one of the ranges holds path. No ranges at all stand for everything.
func within(ranges []store.Range, path string) bool {
	for _, r := range ranges {
		if r.Holds(path) {
			return true
		}
	}
	return len(ranges) == 0
}
