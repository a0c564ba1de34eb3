package sim

import (
	"iter"
	"slices"
	"strings"
	"time"
)

// proc is one process at one thing. It stops before each of its effects (step), where it can be killed or stand still.
type proc struct {
	name  string
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	until time.Time // stands still until then
	leave []func()  // gives back what it has in hand
}

type killed struct{}

// step is where the scheduler decides who goes on.
func (p *proc) step() {
	if !p.yield(struct{}{}) {
		panic(killed{})
	}
}

// start makes a process that does what f says; it has done nothing yet.
func (w *world) start(name string, f func(*proc)) {
	p := &proc{name: name}
	p.next, p.stop = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(killed); !ok {
					panic(r)
				}
			}
		}()
		p.yield = yield
		f(p)
	})
	w.procs = append(w.procs, p)
}

// run lets a process come to its next effect.
func (w *world) run(p *proc) {
	if _, more := p.next(); !more {
		w.gone(p)
	}
}

func (w *world) gone(p *proc) {
	w.release(p)
	w.procs = slices.DeleteFunc(w.procs, func(q *proc) bool { return q == p })
}

// release gives back what a process has in hand, as an ack wait does that runs out.
func (w *world) release(p *proc) {
	for _, f := range p.leave {
		f()
	}
	p.leave = nil
}

// kill ends a process between two of its effects.
func (w *world) kill(p *proc) {
	w.logf("kill %s", p.name)
	p.stop()
	w.gone(p)
}

// stored is a message as it lies in a stream.
type stored[T any] struct {
	subject string
	seq     uint64
	at      time.Time
	v       T
	gone    bool // replaced or removed
}

// stream keeps the newest message of each subject, like all streams and registers of the product that are not queues.
type stream[T any] struct {
	w     *world
	last  uint64
	m     map[string]*stored[T]
	order []*stored[T] // with some that are gone
	// wrote sees each write: what was there (zero: nothing) and what is.
	wrote func(old, now stored[T])
}

func newStream[T any](w *world) *stream[T] { return &stream[T]{w: w, m: make(map[string]*stored[T])} }

// put stores v if the newest message of the subject is expect; nil: whatever is there.
func (s *stream[T]) put(subject string, v T, expect *uint64) (uint64, bool) {
	old := s.at(subject)
	if expect != nil && *expect != old.seq {
		return 0, false
	}
	s.remove(subject)
	s.last++
	now := &stored[T]{subject: subject, seq: s.last, at: s.w.now, v: v}
	s.m[subject] = now
	s.order = append(s.order, now)
	s.w.effects++
	if s.wrote != nil {
		s.wrote(old, *now)
	}
	return now.seq, true
}

func (s *stream[T]) get(subject string) (stored[T], bool) {
	v, ok := s.m[subject]
	if !ok {
		return stored[T]{}, false
	}
	return *v, true
}

// at returns the newest message of a subject; the zero one when there is none.
func (s *stream[T]) at(subject string) stored[T] {
	v, _ := s.get(subject)
	return v
}

// remove takes out the message of a subject.
func (s *stream[T]) remove(subject string) {
	if v, ok := s.m[subject]; ok {
		v.gone = true
		delete(s.m, subject)
	}
}

// under returns what lies below a prefix, in order.
func (s *stream[T]) under(prefix string) []*stored[T] {
	if len(s.order) > 2*len(s.m) {
		s.order = slices.DeleteFunc(s.order, func(v *stored[T]) bool { return v.gone })
	}
	var all []*stored[T]
	for _, v := range s.order {
		if !v.gone && strings.HasPrefix(v.subject, prefix) {
			all = append(all, v)
		}
	}
	return all
}

// purge removes what lies below a prefix, up to a sequence; 0: all.
func (s *stream[T]) purge(prefix string, upTo uint64) {
	for _, v := range s.under(prefix) {
		if upTo == 0 || v.seq <= upTo {
			s.remove(v.subject)
			s.w.effects++
		}
	}
}

// modify reads, changes and writes until nobody comes between. f returns false to leave it as it is.
func modify[T any](p *proc, s *stream[T], key string, f func(*T) bool) T {
	for {
		p.step()
		old := s.at(key)
		v := old.v
		if !f(&v) {
			return old.v
		}
		p.step()
		if _, ok := s.put(key, v, &old.seq); ok {
			return v
		}
	}
}

// item is a message in a queue.
type item[T any] struct {
	v         T
	key       string // of those with the same key the newest counts; "": all count
	seq       uint64
	stored    time.Time
	from      time.Time // not before
	delivered int
	taken     bool
}

// queue is a durable consumer with explicit acknowledgement.
type queue[T any] struct {
	w      *world
	items  []*item[T]
	recent []*item[T] // acknowledged, and not yet surely so: a crash of the broker brings them back
	loses  bool       // such acknowledgements are lost at all; a work queue's are not
}

func (q *queue[T]) add(it item[T]) {
	if it.key != "" {
		q.drop(func(x *item[T]) bool { return x.key == it.key })
	}
	it.stored = q.w.now
	q.items = append(q.items, &it)
	q.w.effects++
}

func (q *queue[T]) drop(f func(*item[T]) bool) { q.items = slices.DeleteFunc(q.items, f) }

// take takes some message that is there for the taking; nil: none is.
func (q *queue[T]) take(p *proc) *item[T] {
	var free []*item[T]
	for _, it := range q.items {
		if !it.taken && !it.from.After(q.w.now) {
			free = append(free, it)
		}
	}
	if len(free) == 0 {
		return nil
	}
	it := free[q.w.draw(len(free))]
	it.taken = true
	it.delivered++
	p.leave = append(p.leave, func() { it.taken = false })
	return it
}

func (q *queue[T]) ack(it *item[T]) {
	n := len(q.items)
	q.drop(func(x *item[T]) bool { return x == it })
	if q.loses && len(q.items) < n {
		q.recent = append(q.recent[max(0, len(q.recent)-2):], it)
	}
	q.w.effects++
}

// again has a message delivered again after a pause.
func (q *queue[T]) again(it *item[T], pause time.Duration) { it.from = q.w.now.Add(pause) }

// forget brings back what was acknowledged last.
func (q *queue[T]) forget() {
	for _, it := range q.recent {
		it.taken = false
		q.items = append(q.items, it)
	}
	q.recent = nil
}
