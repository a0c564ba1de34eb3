package worker

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"millrace/shared/event"
)

type metrics struct {
	media    *prometheus.CounterVec
	duration prometheus.Histogram
	running  prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) metrics {
	f := promauto.With(reg)
	m := metrics{
		media: f.NewCounterVec(prometheus.CounterOpts{
			Name: "worker_media_total", Help: "Media reported, by state.",
		}, []string{"state"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name: "worker_command_duration_seconds", Help: "How long commands took.", Buckets: prometheus.ExponentialBuckets(0.01, 4, 10),
		}),
		running: f.NewGauge(prometheus.GaugeOpts{
			Name: "worker_commands_running", Help: "Media being processed.",
		}),
	}
	for _, s := range []event.ReportState{event.Successful, event.Unsuccessful} {
		m.media.WithLabelValues(string(s))
	}
	return m
}
