package match

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Index finds, among many matchers, those that match a path, without trying them all: it is a radix tree over their
// prefixes, and those with the same prefix and pattern are tried together. The zero value is empty.
//
// Lookup takes no lock. Changes make a new tree that shares what they did not touch, one at a time; a Lookup sees all of
// a change or nothing.
type Index[T any] struct {
	root atomic.Pointer[node[T]]

	mu   sync.Mutex
	byID map[string]*Matcher
}

// node is immutable once it is in a tree. A child is found by the first byte of its label, and no two share it.
type node[T any] struct {
	label    string
	children []*node[T] // by label
	groups   []group[T] // whose prefix ends here
}

// group is all entries with one prefix, pattern and depth.
type group[T any] struct {
	matcher *Matcher
	ids     []string
	values  []T
}

// Add adds an entry, or replaces the one with the same id.
func (x *Index[T]) Add(id string, m *Matcher, value T) {
	x.mu.Lock()
	defer x.mu.Unlock()
	root := x.root.Load()
	if root == nil {
		root = &node[T]{}
	}
	if old, ok := x.byID[id]; ok {
		root = root.remove(old.prefix, old, id)
	}
	if root == nil {
		root = &node[T]{}
	}
	if x.byID == nil {
		x.byID = map[string]*Matcher{}
	}
	x.byID[id] = m
	x.root.Store(root.add(m.prefix, m, id, value))
}

// Remove removes an entry. An unknown id is no error.
func (x *Index[T]) Remove(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	m, ok := x.byID[id]
	if !ok {
		return
	}
	delete(x.byID, id)
	x.root.Store(x.root.Load().remove(m.prefix, m, id))
}

// Len returns the number of entries.
func (x *Index[T]) Len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.byID)
}

// Lookup returns the values of all matchers that match path, in no order one may rely on.
func (x *Index[T]) Lookup(path string) []T {
	var found []T
	rest := path
	for n := x.root.Load(); n != nil; {
		for i := range n.groups {
			if g := &n.groups[i]; g.matcher.rest(path) {
				found = append(found, g.values...)
			}
		}
		if rest == "" {
			break
		}
		i, ok := n.child(rest[0])
		if !ok || !strings.HasPrefix(rest, n.children[i].label) {
			break
		}
		n = n.children[i]
		rest = rest[len(n.label):]
	}
	return found
}

func (n *node[T]) child(first byte) (int, bool) {
	return slices.BinarySearchFunc(n.children, first, func(c *node[T], first byte) int {
		return int(c.label[0]) - int(first)
	})
}

// add returns n with an entry below it, at the end of prefix.
func (n *node[T]) add(prefix string, m *Matcher, id string, value T) *node[T] {
	n = &node[T]{label: n.label, children: n.children, groups: n.groups}
	if prefix == "" {
		n.groups = addTo(n.groups, m, id, value)
		return n
	}
	n.children = slices.Clone(n.children)
	i, ok := n.child(prefix[0])
	if !ok {
		leaf := &node[T]{label: prefix, groups: addTo(nil, m, id, value)}
		n.children = slices.Insert(n.children, i, leaf)
		return n
	}
	child := n.children[i]
	common := 0
	for common < len(child.label) && common < len(prefix) && child.label[common] == prefix[common] {
		common++
	}
	if common < len(child.label) { // split it
		lower := &node[T]{label: child.label[common:], children: child.children, groups: child.groups}
		child = &node[T]{label: child.label[:common], children: []*node[T]{lower}}
	}
	n.children[i] = child.add(prefix[common:], m, id, value)
	return n
}

// remove returns n without an entry that is below it, or nil if nothing is left. A node with one child and nothing of
// its own is joined with it, so that a tree that grew and shrank is none the deeper for it.
func (n *node[T]) remove(prefix string, m *Matcher, id string) *node[T] {
	n = &node[T]{label: n.label, children: n.children, groups: n.groups}
	if prefix == "" {
		n.groups = removeFrom(n.groups, m, id)
	} else {
		i, _ := n.child(prefix[0])
		child := n.children[i]
		n.children = slices.Clone(n.children)
		if child = child.remove(prefix[len(child.label):], m, id); child != nil {
			n.children[i] = child
		} else {
			n.children = slices.Delete(n.children, i, i+1)
		}
	}
	switch {
	case len(n.groups) > 0 || len(n.children) > 1:
		return n
	case len(n.children) == 1 && n.label != "": // the root has no label and stays
		only := n.children[0]
		return &node[T]{label: n.label + only.label, children: only.children, groups: only.groups}
	case len(n.children) == 0:
		return nil
	}
	return n
}

func same(a, b *Matcher) bool { return a.pattern == b.pattern && a.recursive == b.recursive }

func addTo[T any](groups []group[T], m *Matcher, id string, value T) []group[T] {
	groups = slices.Clone(groups)
	i := slices.IndexFunc(groups, func(g group[T]) bool { return same(g.matcher, m) })
	if i < 0 {
		return append(groups, group[T]{m, []string{id}, []T{value}})
	}
	// Entries are only ever added to the newest tree, so what older ones see of these arrays stays as it is. A copy per
	// entry would make it quadratic where a hundred thousand share a prefix.
	g := groups[i]
	groups[i] = group[T]{g.matcher, append(g.ids, id), append(g.values, value)}
	return groups
}

func removeFrom[T any](groups []group[T], m *Matcher, id string) []group[T] {
	groups = slices.Clone(groups)
	i := slices.IndexFunc(groups, func(g group[T]) bool { return same(g.matcher, m) })
	g := groups[i]
	if len(g.ids) == 1 {
		return slices.Delete(groups, i, i+1)
	}
	j := slices.Index(g.ids, id)
	groups[i] = group[T]{g.matcher, slices.Delete(slices.Clone(g.ids), j, j+1), slices.Delete(slices.Clone(g.values), j, j+1)}
	return groups
}
