package admin

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	refused  *prometheus.CounterVec
	repeated *prometheus.CounterVec
}

// Why a credential was refused.
const (
	refusedKey   = "key"   // none, or an unknown one
	refusedScope = "scope" // a good one that does not allow this
	refusedPush  = "push"  // a push token that does not verify
	refusedRate  = "rate"  // a good one that was used too often
)

// What became of a request whose idempotency key was known.
const (
	repeatReplayed   = "replayed"
	repeatMismatch   = "mismatch"
	repeatInProgress = "in_progress"
)

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "admin_http_requests_total", Help: "Requests by route and status.",
		}, []string{"route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "admin_http_request_duration_seconds", Help: "Time to answer, by route.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "admin_refused_credentials_total", Help: "Requests refused for their credential.",
		}, []string{"reason"}),
		repeated: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "admin_repeated_requests_total", Help: "Requests whose idempotency key was known.",
		}, []string{"outcome"}),
	}
	for _, r := range []string{refusedKey, refusedScope, refusedPush, refusedRate} {
		m.refused.WithLabelValues(r)
	}
	for _, o := range []string{repeatReplayed, repeatMismatch, repeatInProgress} {
		m.repeated.WithLabelValues(o)
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.refused, m.repeated)
	}
	return m
}

// request counts one answer. Requests for no route share a label, so that paths somebody makes up cost no series.
func (m *metrics) request(r *http.Request, status int, took time.Duration) {
	route := r.Pattern
	if route == "" {
		route = "none"
	}
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(route).Observe(took.Seconds())
}
