package importer

import (
	"sync"
	"time"
)

// circuits keep tasks from burning their attempts while a storage is down for everybody. After a few failures in a row
// that any other object of the bucket would have met, the circuit of the connector opens: its tasks wait, one at a time
// is let through to see, and its success closes the circuit.
type circuits struct {
	mu          sync.Mutex
	byConnector map[string]*circuit
	now         func() time.Time
}

type circuit struct {
	failures int
	openedAt time.Time
	probing  bool
	wait     time.Duration
}

const (
	circuitThreshold = 5
	circuitFirstWait = 5 * time.Second
	circuitLastWait  = 2 * time.Minute
)

func newCircuits() *circuits {
	return &circuits{byConnector: make(map[string]*circuit), now: time.Now}
}

// enter returns 0 when a task of the connector may begin, else how long it should wait. Whoever may begin calls leave.
func (cs *circuits) enter(connector string) time.Duration {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.byConnector[connector]
	if c == nil || c.failures < circuitThreshold {
		return 0
	}
	if rest := c.wait - cs.now().Sub(c.openedAt); rest > 0 {
		return rest
	}
	if c.probing {
		return circuitFirstWait
	}
	c.probing = true
	return 0
}

// leave reports how a task ended: bucketwide means that it met a failure that any other would have met too.
func (cs *circuits) leave(connector string, bucketwide bool) (opened bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.byConnector[connector]
	if !bucketwide {
		delete(cs.byConnector, connector)
		return false
	}
	if c == nil {
		c = new(circuit)
		cs.byConnector[connector] = c
	}
	c.failures++
	c.probing = false
	if c.failures < circuitThreshold {
		return false
	}
	opened = c.failures == circuitThreshold
	c.openedAt = cs.now()
	c.wait = min(max(2*c.wait, circuitFirstWait), circuitLastWait)
	return opened
}
