package debouncer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// What the sweep can find.
const (
	sweptOverdue = "overdue" // an open window whose alarm did not ring
	sweptClosing = "closing" // a closing that nobody finished
	sweptConfig  = "config"  // a window under an old configuration
	sweptOrphan  = "orphan"  // arrivals that no window knew
)

type metrics struct {
	arrivals prometheus.Counter
	closed   prometheus.Counter
	swept    *prometheus.CounterVec
	sweep    prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) metrics {
	f := promauto.With(reg)
	m := metrics{
		arrivals: f.NewCounter(prometheus.CounterOpts{
			Name: "debouncer_arrivals_total", Help: "Arrivals merged into windows, redeliveries included.",
		}),
		closed: f.NewCounter(prometheus.CounterOpts{
			Name: "debouncer_windows_closed_total", Help: "Windows closed by their alarm.",
		}),
		swept: f.NewCounterVec(prometheus.CounterOpts{
			Name: "debouncer_sweep_acted_total", Help: "What the sweep had to do because no alarm rang. Should stay at zero.",
		}, []string{"kind"}),
		sweep: f.NewHistogram(prometheus.HistogramOpts{
			Name: "debouncer_sweep_duration_seconds", Help: "Duration of one sweep.", Buckets: prometheus.ExponentialBuckets(0.0001, 10, 6),
		}),
	}
	for _, kind := range []string{sweptOverdue, sweptClosing, sweptConfig, sweptOrphan} {
		m.swept.WithLabelValues(kind)
	}
	return m
}
