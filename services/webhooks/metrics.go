package webhooks

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	events   prometheus.Counter
	queued   prometheus.Counter
	attempts *prometheus.CounterVec
	attempt  prometheus.Histogram
	open     prometheus.Gauge
	webhooks prometheus.Gauge
	disabled prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	f := promauto.With(reg)
	m := metrics{
		events:   f.NewCounter(prometheus.CounterOpts{Name: "webhooks_events_total", Help: "Events looked at, redeliveries included."}),
		queued:   f.NewCounter(prometheus.CounterOpts{Name: "webhooks_deliveries_queued_total", Help: "Deliveries made of events."}),
		attempts: f.NewCounterVec(prometheus.CounterOpts{Name: "webhooks_attempts_total", Help: "Attempts by what came of them."}, []string{"outcome"}),
		attempt: f.NewHistogram(prometheus.HistogramOpts{
			Name: "webhooks_attempt_duration_seconds", Help: "Duration of one attempt.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
		open:     f.NewGauge(prometheus.GaugeOpts{Name: "webhooks_deliveries_open", Help: "Deliveries that are neither delivered nor given up, in the process that sends."}),
		webhooks: f.NewGauge(prometheus.GaugeOpts{Name: "webhooks_webhooks", Help: "Webhooks there are."}),
		disabled: f.NewCounter(prometheus.CounterOpts{Name: "webhooks_disabled_total", Help: "Webhooks disabled because their receiver is gone or never took anything."}),
	}
	for _, o := range []outcome{delivered, failed, exhausted, gone} {
		m.attempts.WithLabelValues(string(o))
	}
	return m
}
