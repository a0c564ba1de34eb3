package control

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/bus"
)

type metrics struct {
	handled        *prometheus.CounterVec
	duration       *prometheus.HistogramVec
	deadFailures   *prometheus.CounterVec
	settleFailures *prometheus.CounterVec
	leasesLost     *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		handled: counter("control_handled_total", "Deliveries, by verdict: ack, nak or dead.", "handler", "verdict"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "control_handler_duration_seconds",
			Help:    "Time from the start of a handler to its verdict.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}, []string{"handler"}),
		deadFailures: counter("control_dead_letter_failures_total",
			"Dead letters that could not be stored; their messages are delivered again.", "handler"),
		settleFailures: counter("control_settle_failures_total",
			"Verdicts the broker did not take; their messages are delivered again.", "handler"),
		leasesLost: counter("control_leases_lost_total",
			"Messages given up while their handler ran: it was overdue, or the broker did not answer.", "handler"),
	}
	if reg == nil {
		return m, nil
	}
	var done []prometheus.Collector
	for _, c := range []prometheus.Collector{m.handled, m.duration, m.deadFailures, m.settleFailures, m.leasesLost} {
		if err := reg.Register(c); err != nil {
			for _, c := range done {
				reg.Unregister(c)
			}
			return nil, err
		}
		done = append(done, c)
	}
	return m, nil
}

// announce makes every series of a handler present from zero.
func (m *metrics) announce(handler string) {
	for _, action := range []bus.Action{bus.Ack, bus.Nak, bus.Dead} {
		m.handled.WithLabelValues(handler, label(action))
	}
	m.duration.WithLabelValues(handler)
	m.deadFailures.WithLabelValues(handler)
	m.settleFailures.WithLabelValues(handler)
	m.leasesLost.WithLabelValues(handler)
}

func (m *metrics) hooks(handler string) hooks {
	return hooks{
		deadFailed:   m.deadFailures.WithLabelValues(handler).Inc,
		settleFailed: m.settleFailures.WithLabelValues(handler).Inc,
		leaseLost:    m.leasesLost.WithLabelValues(handler).Inc,
	}
}

// measure counts the verdict and how long it took.
func (m *metrics) measure(h Handler) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			begin := time.Now()
			produced, err := next(msg)
			m.duration.WithLabelValues(h.Name).Observe(time.Since(begin).Seconds())
			if v, ok := deliveryOf(msg).judgement(); ok {
				m.handled.WithLabelValues(h.Name, label(v.Action)).Inc()
			}
			return produced, err
		}
	}
}

func label(a bus.Action) string {
	switch a {
	case bus.Ack:
		return "ack"
	case bus.Nak:
		return "nak"
	default:
		return "dead"
	}
}
