package importer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"millrace/shared/event"
)

type metrics struct {
	files   *prometheus.CounterVec
	bytes   prometheus.Counter
	retries prometheus.Counter
	commit  prometheus.Histogram
	task    prometheus.Histogram
	ended   *prometheus.CounterVec
	deleted prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	f := promauto.With(reg)
	m := metrics{
		files: f.NewCounterVec(prometheus.CounterOpts{
			Name: "importer_files_total", Help: "Files by final state.",
		}, []string{"state"}),
		bytes: f.NewCounter(prometheus.CounterOpts{
			Name: "importer_bytes_total", Help: "Bytes read or copied from sources.",
		}),
		retries: f.NewCounter(prometheus.CounterOpts{
			Name: "importer_retries_total", Help: "Attempts that failed and will be repeated.",
		}),
		commit: f.NewHistogram(prometheus.HistogramOpts{
			Name: "importer_commit_duration_seconds", Help: "Duration of one group commit.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
		task: f.NewHistogram(prometheus.HistogramOpts{
			Name: "importer_task_duration_seconds", Help: "Time from the start of the first attempt to the final state.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}),
		ended: f.NewCounterVec(prometheus.CounterOpts{
			Name: "importer_jobs_ended_total", Help: "Jobs by final status.",
		}, []string{"status"}),
		deleted: f.NewCounter(prometheus.CounterOpts{
			Name: "importer_media_deleted_total", Help: "Media whose bytes were removed from the library.",
		}),
	}
	for _, s := range []event.FileState{event.Imported, event.Skipped, event.Failed} {
		m.files.WithLabelValues(string(s))
	}
	for _, s := range []string{"completed", "failed", "cancelled"} {
		m.ended.WithLabelValues(s)
	}
	return m
}

func (m metrics) count(f event.File) {
	m.files.WithLabelValues(string(f.State)).Inc()
	m.task.Observe(f.EndedAt.Sub(f.StartedAt).Seconds())
}
