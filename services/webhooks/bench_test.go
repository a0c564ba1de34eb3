package webhooks_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"millrace/services/webhooks"
	"millrace/shared/event"
)

// BenchmarkDeliver tells events to a hundred webhooks of one receiver; see `millrace bench --only webhooks` for the
// figure.
func BenchmarkDeliver(b *testing.B) {
	const hooks = 100
	var got atomic.Int64
	done := make(chan struct{})
	rc := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if got.Add(1) == int64(b.N)*hooks {
			close(done)
		}
	}))
	b.Cleanup(rc.Close)
	w := newWorld(b, func(c *webhooks.Config) { c.Schedule = []time.Duration{time.Minute} })
	w.start()
	for i := range hooks {
		w.hook(fmt.Sprint(i), rc.URL)
	}
	for i := range b.N {
		w.happen(event.JobStarted, "idx_1", fmt.Sprint("job_", i), event.JobEvent{Job: "j", Index: "idx_1", Connector: "c"})
	}
	<-done
	b.ReportMetric(float64(got.Load())/b.Elapsed().Seconds(), "deliveries/s")
}
