package exporter

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"millrace/shared/store"
)

type metrics struct {
	ended   *prometheus.CounterVec
	runs    *prometheus.CounterVec
	retried prometheus.Counter
	took    prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) metrics {
	f := promauto.With(reg)
	m := metrics{
		ended: f.NewCounterVec(prometheus.CounterOpts{
			Name: "exporter_exports_ended_total", Help: "Exports settled, by status.",
		}, []string{"status"}),
		runs: f.NewCounterVec(prometheus.CounterOpts{
			Name: "exporter_runs_total", Help: "Runs that completed, by what the automation of their index made of it.",
		}, []string{"outcome"}),
		retried: f.NewCounter(prometheus.CounterOpts{
			Name: "exporter_attempts_failed_total", Help: "Attempts that failed and are repeated.",
		}),
		took: f.NewHistogram(prometheus.HistogramOpts{
			Name: "exporter_attempt_duration_seconds", Help: "How long it took to make an export.", Buckets: prometheus.ExponentialBuckets(0.01, 4, 10),
		}),
	}
	for _, s := range []store.ExportStatus{store.ExportCompleted, store.ExportFailed} {
		m.ended.WithLabelValues(string(s))
	}
	for _, o := range []string{exported, held, unwanted} {
		m.runs.WithLabelValues(o)
	}
	return m
}
