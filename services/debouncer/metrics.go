package debouncer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// What the sweep can find.
const (
	sweptClosing = "closing" // a closing that nobody finished
	sweptConfig  = "config"  // a window under an old configuration
	sweptOrphan  = "orphan"  // arrivals that no window knew
)

type metrics struct {
	arrivals prometheus.Counter
	closed   prometheus.Counter
	late     prometheus.Histogram
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
			Name: "debouncer_windows_closed_total", Help: "Windows that became jobs.",
		}),
		late: f.NewHistogram(prometheus.HistogramOpts{
			Name: "debouncer_window_lateness_seconds", Help: "From the deadline of a window until its job was requested.",
			Buckets: []float64{0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60},
		}),
		swept: f.NewCounterVec(prometheus.CounterOpts{
			Name: "debouncer_sweep_acted_total", Help: "What the sweep found half done. Should stay at zero while nothing crashes.",
		}, []string{"kind"}),
		sweep: f.NewHistogram(prometheus.HistogramOpts{
			Name: "debouncer_sweep_duration_seconds", Help: "Duration of one sweep.", Buckets: prometheus.ExponentialBuckets(0.0001, 10, 6),
		}),
	}
	for _, kind := range []string{sweptClosing, sweptConfig, sweptOrphan} {
		m.swept.WithLabelValues(kind)
	}
	return m
}
