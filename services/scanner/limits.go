package scanner

import (
	"context"
	"sync"

	"golang.org/x/time/rate"
)

// limits bound what listing asks of one connector, for all its automations and jobs together: in how many places at a
// time, and how often. Storage that is listed too hard answers less to those who read from it.
type limits struct {
	places chan struct{} // one in it per place that is taken
	spare  int           // places that are left to those who have none
	pace   *rate.Limiter
}

func newLimits(atOnce int, perSecond float64) *limits {
	return &limits{places: make(chan struct{}, atOnce), spare: atOnce / 4, pace: rate.NewLimiter(rate.Limit(perSecond), atOnce)}
}

// enter takes a place, and waits for it.
func (l *limits) enter(ctx context.Context) error {
	select {
	case l.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enterIfFree takes one more place, but for those that are spared.
func (l *limits) enterIfFree() bool {
	if len(l.places) >= cap(l.places)-l.spare {
		return false
	}
	select {
	case l.places <- struct{}{}:
		return true
	default:
		return false
	}
}

func (l *limits) leave() { <-l.places }

// request waits until the next request may be made.
func (l *limits) request(ctx context.Context) error { return l.pace.Wait(ctx) }

// limiters are the limits of all connectors.
type limiters struct {
	atOnce    int
	perSecond float64

	mu          sync.Mutex
	byConnector map[string]*limits
}

func newLimiters(cfg Config) *limiters {
	return &limiters{atOnce: cfg.ListRequests, perSecond: cfg.ListRate, byConnector: make(map[string]*limits)}
}

func (l *limiters) of(connector string) *limits {
	l.mu.Lock()
	defer l.mu.Unlock()
	have := l.byConnector[connector]
	if have == nil {
		have = newLimits(l.atOnce, l.perSecond)
		l.byConnector[connector] = have
	}
	return have
}
