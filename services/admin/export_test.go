package admin

import (
	"maps"
	"net/http"
	"slices"
	"time"
)

// TakenFor is how long a claim of a command counts.
const TakenFor = takenFor

// StopLimits stops the clock by which requests are counted.
func (a *Admin) StopLimits(at time.Time) { a.limiter.now = func() time.Time { return at } }

// ReachSNS has SNS asked by way of t.
func (a *Admin) ReachSNS(t http.RoundTripper) { a.sns.client.Transport = t }

// Patterns are all routes, "METHOD /path".
func (a *Admin) Patterns() []string {
	var found []string
	var walk func(n *node)
	walk = func(n *node) {
		for e := range maps.Values(n.methods) {
			found = append(found, e.pattern)
		}
		for next := range maps.Values(n.literals) {
			walk(next)
		}
		if n.param != nil {
			walk(n.param)
		}
	}
	walk(&a.router.root)
	slices.Sort(found)
	return found
}
