package bucket

import (
	"context"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what storage is asked for. One set serves all the buckets of a process; a label says which side was
// asked, another for what.
type Metrics struct {
	operations *prometheus.CounterVec   // side, operation
	failures   *prometheus.CounterVec   // side, operation
	duration   *prometheus.HistogramVec // side, operation; seconds, until the call returned, or the reader was closed
	bytes      *prometheus.CounterVec   // side, operation
}

// The sides and what can be asked of each.
var metricOperations = map[string][]string{
	"source":  {"list", "stat", "open", "read"},
	"library": {"list", "stat", "open", "read", "put", "copy", "sync", "delete"},
}

// NewMetrics registers the metrics, every series present from zero. reg may be nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	labels := []string{"side", "operation"}
	m := &Metrics{
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bucket_operations_total",
			Help: "Calls to storage, by side (source, library) and operation.",
		}, labels),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bucket_operation_failures_total",
			Help: "Calls to storage that failed for a reason that is not part of normal work.",
		}, labels),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "bucket_operation_duration_seconds",
			Help:    "How long calls to storage took; a read and a listing until their end.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60, 300, 1800},
		}, labels),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bucket_bytes_total",
			Help: "Bytes read from storage, put there, and copied inside it.",
		}, labels),
	}
	for side, operations := range metricOperations {
		for _, op := range operations {
			m.operations.WithLabelValues(side, op)
			m.failures.WithLabelValues(side, op)
			m.duration.WithLabelValues(side, op)
			if op == "read" || op == "put" || op == "copy" {
				m.bytes.WithLabelValues(side, op)
			}
		}
	}
	if reg != nil {
		reg.MustRegister(m.operations, m.failures, m.duration, m.bytes)
	}
	return m
}

// Source returns src, counted.
func (m *Metrics) Source(src Source) Source { return &meteredSource{src, m} }

// Library returns lib, counted.
func (m *Metrics) Library(lib Library) Library { return &meteredLibrary{lib, m} }

// expected reports whether an error is an ordinary answer: objects come and go, callers give up, and not all storages
// can do everything.
func expected(err error) bool {
	switch ClassOf(err) {
	case ClassNone, ClassNotExist, ClassChanged, ClassCancelled, ClassUnsupported:
		return true
	}
	return atEnd(err)
}

func (m *Metrics) observe(side, op string, start time.Time, err error) {
	m.operations.WithLabelValues(side, op).Inc()
	m.duration.WithLabelValues(side, op).Observe(time.Since(start).Seconds())
	if !expected(err) {
		m.failures.WithLabelValues(side, op).Inc()
	}
}

func (m *Metrics) list(side string, seq iter.Seq2[Object, error]) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		start := time.Now()
		var failure error
		defer func() { m.observe(side, "list", start, failure) }()
		for obj, err := range seq {
			if err != nil {
				failure = err
			}
			if !yield(obj, err) {
				return
			}
		}
	}
}

func (m *Metrics) open(side string, open func() (io.ReadCloser, error)) (io.ReadCloser, error) {
	start := time.Now()
	r, err := open()
	m.observe(side, "open", start, err)
	if err != nil {
		return nil, err
	}
	return &meteredReader{ReadCloser: r, m: m, side: side, start: time.Now()}, nil
}

type meteredReader struct {
	io.ReadCloser
	m     *Metrics
	side  string
	start time.Time
	n     int
	err   error
	once  sync.Once
}

func (r *meteredReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.n += n
	if err != nil {
		r.err = err
	}
	return n, err
}

// TakeSum implements Summing.
func (r *meteredReader) TakeSum() Sum {
	if s, ok := r.ReadCloser.(Summing); ok {
		return s.TakeSum()
	}
	return nil
}

func (r *meteredReader) Close() error {
	r.once.Do(func() {
		r.m.observe(r.side, "read", r.start, r.err)
		r.m.bytes.WithLabelValues(r.side, "read").Add(float64(r.n))
	})
	return r.ReadCloser.Close()
}

type meteredSource struct {
	Source
	m *Metrics
}

func (s *meteredSource) Unwrap() Source { return s.Source }

func (s *meteredSource) List(ctx context.Context, opts ListOptions) iter.Seq2[Object, error] {
	return s.m.list("source", s.Source.List(ctx, opts))
}

func (s *meteredSource) Stat(ctx context.Context, path string) (Object, error) {
	start := time.Now()
	obj, err := s.Source.Stat(ctx, path)
	s.m.observe("source", "stat", start, err)
	return obj, err
}

func (s *meteredSource) Open(ctx context.Context, path, version string, offset, length int64) (io.ReadCloser, error) {
	return s.m.open("source", func() (io.ReadCloser, error) { return s.Source.Open(ctx, path, version, offset, length) })
}

type meteredLibrary struct {
	Library
	m *Metrics
}

func (l *meteredLibrary) Unwrap() Library { return l.Library }

func (l *meteredLibrary) Put(ctx context.Context, key string, r io.Reader, want Want) (Stored, error) {
	start := time.Now()
	stored, err := l.Library.Put(ctx, key, r, want)
	l.m.observe("library", "put", start, err)
	l.m.bytes.WithLabelValues("library", "put").Add(float64(stored.Size))
	return stored, err
}

func (l *meteredLibrary) CopyFrom(
	ctx context.Context, key string, src Source, obj Object, progress *Copying,
) (Stored, error) {
	start := time.Now()
	stored, err := l.Library.CopyFrom(ctx, key, src, obj, progress)
	l.m.observe("library", "copy", start, err)
	l.m.bytes.WithLabelValues("library", "copy").Add(float64(stored.Size))
	return stored, err
}

func (l *meteredLibrary) Sync(ctx context.Context, keys ...string) error {
	start := time.Now()
	err := l.Library.Sync(ctx, keys...)
	l.m.observe("library", "sync", start, err)
	return err
}

func (l *meteredLibrary) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	return l.m.open("library", func() (io.ReadCloser, error) { return l.Library.Open(ctx, key, offset, length) })
}

func (l *meteredLibrary) Stat(ctx context.Context, key string) (Object, error) {
	start := time.Now()
	obj, err := l.Library.Stat(ctx, key)
	l.m.observe("library", "stat", start, err)
	return obj, err
}

func (l *meteredLibrary) Delete(ctx context.Context, key string) error {
	start := time.Now()
	err := l.Library.Delete(ctx, key)
	l.m.observe("library", "delete", start, err)
	return err
}

func (l *meteredLibrary) List(ctx context.Context) iter.Seq2[Object, error] {
	return l.m.list("library", l.Library.List(ctx))
}
