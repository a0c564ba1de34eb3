package importer

import (
	"math/rand/v2"
	"sync"
	"time"
)

// circuits keep tasks from burning their attempts while a storage is down for everybody, and a storage that is
// overloaded from hearing of it again and again. One connector's goes round like this:
//
//	closed ──► open ──► probing ──► ramping ──► closed
//	             ▲          │           │
//	             └──────────┴───────────┘ a failure that everybody would meet
//
// It opens after a few failures in a row that any other object of the bucket would have met, or with the first that says
// so beyond doubt: credentials that are refused, or a time to come back at. While it is open tasks wait; then one is let
// through to see, and with each success twice as many.
type circuits struct {
	mu          sync.Mutex
	byConnector map[string]*circuit
	now         func() time.Time
	first, last time.Duration // the shortest and the longest wait
}

type circuit struct {
	access   string // what it was met with; other credentials are another connector
	failures int    // in a row, up to circuitThreshold
	openedAt time.Time
	wait     time.Duration
	times    int // it opened
	limit    int // how many tasks may be under way since it last did; 0: any number
	inHand   int // of these
}

func (c *circuit) open() bool { return c.failures >= circuitThreshold }

const (
	circuitThreshold = 5
	circuitFirstWait = 5 * time.Second
	circuitLastWait  = 2 * time.Minute
	// rampWait is how long those wait who come too early while the circuit closes; rampEnd is where it has.
	rampWait = 250 * time.Millisecond
	rampEnd  = 32
)

func newCircuits() *circuits {
	return &circuits{byConnector: make(map[string]*circuit), now: time.Now, first: circuitFirstWait, last: circuitLastWait}
}

// pass is the right to begin a task. Whoever has one calls leave.
type pass struct {
	connector, access string
	of                *circuit // that counts it; nil: none
	times             int      // that it had opened by then
}

// stale reports whether the circuit opened after the task had begun, so that its end tells nothing new.
func (p pass) stale(c *circuit) bool { return p.of != c || p.times != c.times }

// enter returns a pass when a task of the connector may begin, else how long it should wait. access is what the storage
// is opened with: a circuit that opened under other credentials does not count.
func (cs *circuits) enter(connector, access string) (pass, time.Duration) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	p := pass{connector: connector, access: access}
	c := cs.byConnector[connector]
	if c != nil && c.access != access {
		delete(cs.byConnector, connector)
		c = nil
	}
	switch {
	case c == nil || !c.open() && c.limit == 0:
		return p, 0
	case c.open():
		if rest := c.wait - cs.now().Sub(c.openedAt); rest > 0 {
			return p, spread(rest)
		}
		if c.inHand > 0 {
			return p, spread(cs.first)
		}
	case c.inHand >= c.limit:
		return p, spread(rampWait)
	}
	c.inHand++
	p.of, p.times = c, c.times
	return p, 0
}

// spread adds up to a quarter, so that what waited together does not come back together.
func spread(d time.Duration) time.Duration { return d + rand.N(d/4+1) }

// verdict is how a task ended, as far as others are concerned.
type verdict struct {
	bucketwide bool          // it met a failure that any other would have met too,
	certain    bool          // which one is enough to know
	after      time.Duration // and the storage said when to come back
}

// left is what a circuit makes of a verdict.
type left struct {
	opened bool          // it was closed before
	held   bool          // the storage was known to fail for everybody: that is no attempt of the task
	wait   time.Duration // until it makes sense to come back
}

// leave gives a pass back.
func (cs *circuits) leave(p pass, v verdict) left {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.byConnector[p.connector]
	if c != nil && !p.stale(c) {
		c.inHand--
	}
	if c != nil && c.access != p.access {
		return left{} // what others make of it, with other credentials, is theirs to find out
	}
	if !v.bucketwide {
		if c != nil {
			c.failures = 0
			if c.limit *= 2; c.limit == 0 || c.limit > rampEnd {
				delete(cs.byConnector, p.connector)
			}
		}
		return left{}
	}
	if c == nil {
		c = &circuit{access: p.access}
		cs.byConnector[p.connector] = c
	}
	was := c.open()
	switch {
	case was && p.stale(c):
		c.wait = max(c.wait, v.after)
	case was && v.after > 0: // a storage that says when to come back is asked then, not ever later
		c.openedAt, c.wait = cs.now(), max(cs.first, v.after)
	case was:
		c.openedAt, c.wait = cs.now(), min(2*c.wait, cs.last)
	case c.limit > 0 || v.certain || v.after > 0:
		c.failures = circuitThreshold
	default:
		c.failures++
	}
	if !was && c.open() {
		c.openedAt, c.wait, c.limit, c.inHand = cs.now(), max(cs.first, v.after), max(1, c.limit/2), 0
		c.times++
	}
	return left{opened: !was && c.open(), held: was || v.certain, wait: spread(max(c.wait, v.after))}
}
