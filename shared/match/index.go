package match

import (
	"maps"
	"slices"
	"sync/atomic"
)

// Index finds, among many matchers, those that select a path. Lookups are concurrent with changes, which copy: an index
// is asked a million times for each time it changes. The zero Index is empty. Changes must not be concurrent.
type Index[T comparable] struct{ now atomic.Pointer[state[T]] }

// state holds matchers by prefix. There are few different lengths of prefixes, so looking each one up beats walking a
// trie byte by byte.
type state[T comparable] struct {
	byPrefix map[string][]item[T]
	lengths  []int // of the prefixes, ascending
}

type item[T comparable] struct {
	Matcher
	value T
}

// Add adds a matcher with a value.
func (x *Index[T]) Add(m Matcher, v T) {
	x.change(m.prefix, func(items []item[T]) []item[T] { return append(items, item[T]{m, v}) })
}

// Remove removes the value that was added with a matcher of the same prefix.
func (x *Index[T]) Remove(m Matcher, v T) {
	x.change(m.prefix, func(items []item[T]) []item[T] {
		return slices.DeleteFunc(items, func(i item[T]) bool { return i.value == v })
	})
}

func (x *Index[T]) change(prefix string, edit func([]item[T]) []item[T]) {
	next := &state[T]{byPrefix: map[string][]item[T]{}}
	if old := x.now.Load(); old != nil {
		next.byPrefix = maps.Clone(old.byPrefix)
	}
	items := edit(slices.Clone(next.byPrefix[prefix]))
	if len(items) == 0 {
		delete(next.byPrefix, prefix)
	} else {
		next.byPrefix[prefix] = items
	}
	lengths := map[int]struct{}{}
	for p := range next.byPrefix {
		lengths[len(p)] = struct{}{}
	}
	next.lengths = slices.Sorted(maps.Keys(lengths))
	x.now.Store(next)
}

// Lookup returns the values of the matchers that select path.
func (x *Index[T]) Lookup(path string) []T {
	s := x.now.Load()
	if s == nil {
		return nil
	}
	var found []T
	for _, n := range s.lengths {
		if n > len(path) {
			break
		}
		for _, i := range s.byPrefix[path[:n]] {
			if i.rest(path) {
				found = append(found, i.value)
			}
		}
	}
	return found
}
