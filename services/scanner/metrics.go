package scanner

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"millrace/shared/event"
)

// outcome is what a notification led to.
type outcome string

// The outcomes.
const (
	handled   outcome = "handled"   // arrivals or deletions, which may still be known ones
	unmatched outcome = "unmatched" // no automation wants the object
	ignored   outcome = "ignored"   // about something else: metadata, another bucket, an object that is gone
	poison    outcome = "poison"    // not what the provider sends
	retried   outcome = "retried"   // storage or broker could not be asked
)

// Outcomes of scans and plans.
const (
	done      = "done"
	failed    = "failed"
	empty     = "empty"     // a window whose arrivals another job has planned: nothing was done
	stopped   = "stopped"   // cancelled, or finished by another planner
	postponed = "postponed" // will be tried again
)

type metrics struct {
	notifications *prometheus.CounterVec
	arrivals      *prometheus.CounterVec
	dropped       *prometheus.CounterVec
	withdrawn     prometheus.Counter
	baselined     prometheus.Counter
	drift         prometheus.Counter
	scans         *prometheus.CounterVec
	scanned       prometheus.Counter
	scanTime      prometheus.Histogram
	refused       prometheus.Counter
	swept         prometheus.Counter
	planned       *prometheus.CounterVec
	files         *prometheus.CounterVec
	planTime      *prometheus.HistogramVec
	following     *prometheus.GaugeVec
	overflows     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	counters := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		for _, s := range values {
			v.WithLabelValues(s)
		}
		return v
	}
	m := metrics{
		notifications: counters("scanner_notifications_total", "Notifications handled, by outcome.", "outcome",
			string(handled), string(unmatched), string(ignored), string(poison), string(retried)),
		arrivals: counters("scanner_arrivals_total", "Arrivals stored, by how the object was found.", "found",
			string(event.ByNotification), string(event.ByScan)),
		dropped: counters("scanner_dropped_total", "Objects that matched an automation and were no news to it, by reason.", "reason",
			string(settled), string(pending), string(stale), string(inFlight), string(repeated)),
		withdrawn: counter("scanner_arrivals_withdrawn_total", "Arrivals removed because their object was deleted."),
		baselined: counter("scanner_baseline_total", "Objects settled as present before their automation."),
		drift:     counter("scanner_drift_total", "Objects that a scan found and no notification had announced."),
		scans:     counters("scanner_scans_total", "Listings of automations, by outcome.", "outcome", done, failed),
		scanned:   counter("scanner_scanned_objects_total", "Objects listed by scans that matched."),
		scanTime: f.NewHistogram(prometheus.HistogramOpts{
			Name: "scanner_scan_duration_seconds", Help: "Duration of scans.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}),
		refused: counter("scanner_refused_total", "Listed names and folders that cannot be imported: unreadable, or not valid UTF-8."),
		swept:   counter("scanner_sweep_acted_total", "Scans that nothing rang for in time. Should stay at zero."),
		planned: f.NewCounterVec(prometheus.CounterOpts{
			Name: "scanner_jobs_planned_total", Help: "Planned jobs, by lane and outcome.",
		}, []string{"lane", "outcome"}),
		files: counters("scanner_planned_files_total", "File entries created.", "lane", string(event.Live), string(event.Bulk)),
		planTime: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "scanner_plan_duration_seconds", Help: "Duration of planning one job.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}, []string{"lane"}),
		following: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "scanner_sources", Help: "Connectors whose changes this process follows.",
		}, []string{"provider"}),
		overflows: counter("scanner_source_overflows_total", "Times a source lost track of changes, so that its automations were scanned."),
	}
	for _, lane := range []event.Lane{event.Live, event.Bulk} {
		m.planTime.WithLabelValues(string(lane))
		for _, o := range []string{done, failed, empty, stopped, postponed} {
			m.planned.WithLabelValues(string(lane), o)
		}
	}
	for _, p := range []string{"dir", "gcs"} {
		m.following.WithLabelValues(p)
	}
	return m
}
