package presettrigger

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"millrace/shared/store"
)

// What can become of a report.
const (
	reportFolded        = "folded"
	reportLate          = "late"           // its run has ended
	reportUnknownRun    = "unknown_run"    // there is no such run
	reportUnknownMedium = "unknown_medium" // the run does not have this medium
	reportMalformed     = "malformed"      // moved to the dead stream
)

type metrics struct {
	jobs         *prometheus.CounterVec
	reports      *prometheus.CounterVec
	ended        *prometheus.CounterVec
	redispatched prometheus.Counter
	tracked      prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) metrics {
	f := promauto.With(reg)
	m := metrics{
		jobs: f.NewCounterVec(prometheus.CounterOpts{
			Name: "preset_trigger_jobs_total", Help: "Ended jobs, by what followed: a run, or why none.",
		}, []string{"outcome"}),
		reports: f.NewCounterVec(prometheus.CounterOpts{
			Name: "preset_trigger_reports_total", Help: "Reports of executors, by what became of them; those read again after a takeover included.",
		}, []string{"outcome"}),
		ended: f.NewCounterVec(prometheus.CounterOpts{
			Name: "preset_trigger_runs_ended_total", Help: "Runs settled, by status.",
		}, []string{"status"}),
		redispatched: f.NewCounter(prometheus.CounterOpts{
			Name: "preset_trigger_redispatched_total", Help: "Runs the sweep had to hand to executors. Should stay at zero.",
		}),
		tracked: f.NewGauge(prometheus.GaugeOpts{
			Name: "preset_trigger_runs_tracked", Help: "Runs not settled, as seen by the one that tracks reports.",
		}),
	}
	for _, d := range []decision{create, skipStatus, skipPreset, skipEmpty} {
		m.jobs.WithLabelValues(string(d))
	}
	for _, o := range []string{reportFolded, reportLate, reportUnknownRun, reportUnknownMedium, reportMalformed} {
		m.reports.WithLabelValues(o)
	}
	for _, s := range []store.RunStatus{store.RunCompleted, store.RunCompletedWithFailures, store.RunFailed, store.RunCancelled} {
		m.ended.WithLabelValues(string(s))
	}
	return m
}
