package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// checkTimeout is how long a readiness check may take; probes commonly give up after a second or a few.
const checkTimeout = time.Second

// ErrStopping is what /readyz reports once the process has begun to stop.
var ErrStopping = errors.New("shutting down")

// Ops is what those who operate a process look at, as an http.Handler to be mounted at the root of a server, or to be
// served alone by Serve:
//
//	/healthz  200 as long as the process answers: a reason to restart it, when it does not
//	/readyz   200 when every check returns nil, else 503; the body lists each check
//	/metrics  Prometheus
//
// None of them needs a key: what the checks return must not contain secrets.
type Ops struct {
	log *slog.Logger
	mux *http.ServeMux

	mu       sync.Mutex
	checks   []*check // in the order of AddCheck
	stopping bool
}

// NewOps returns an Ops without checks that exposes what metrics gathers.
func NewOps(logger *slog.Logger, metrics prometheus.Gatherer) *Ops {
	o := &Ops{log: logger, mux: http.NewServeMux()}
	o.mux.HandleFunc("GET /healthz", o.healthz)
	o.mux.HandleFunc("GET /readyz", o.readyz)
	o.mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(logger.Handler(), slog.LevelError),
		ErrorHandling: promhttp.ContinueOnError, // one broken collector must not hide the others
	}))
	return o
}

// AddCheck registers a readiness check under a name of its own. It is asked on each request for /readyz, not more than
// once at a time, and counts as failed when it takes longer than a second.
func (o *Ops) AddCheck(name string, ready func(context.Context) error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.checks = append(o.checks, &check{name: name, ready: ready})
}

// Stopping makes /readyz answer 503 from now on, so that nothing new is sent here while the process finishes what it
// has in hand. It is the first step of a shutdown.
func (o *Ops) Stopping() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stopping = true
}

// Ready returns nil when the process is ready, else what each failing check said, by name.
func (o *Ops) Ready(ctx context.Context) error {
	var errs []error
	for _, r := range o.ask(ctx) {
		if r.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.name, r.err))
		}
	}
	return errors.Join(errs...)
}

// ServeHTTP answers the three paths and 404 to any other.
func (o *Ops) ServeHTTP(w http.ResponseWriter, r *http.Request) { o.mux.ServeHTTP(w, r) }

// Serve serves o on addr (HOST:PORT) until ctx ends, then returns nil. A port in use is a syscall.EADDRINUSE.
func (o *Ops) Serve(ctx context.Context, addr string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("ops port: %w (choose another with --ops)", err)
	}
	o.log.Info("ops port open", "addr", l.Addr().String())
	return o.serve(ctx, l)
}

func (o *Ops) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           o,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(o.log.Handler(), slog.LevelDebug),
	}
	// Answers take milliseconds; there is nothing in hand worth waiting for.
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serve ops: %w", err)
	}
	return nil
}

func (o *Ops) healthz(w http.ResponseWriter, _ *http.Request) {
	o.answer(w, http.StatusOK, map[string]string{"status": "ok", "version": Version()})
}

func (o *Ops) readyz(w http.ResponseWriter, r *http.Request) {
	body := struct {
		Status string            `json:"status"`
		Checks map[string]string `json:"checks"`
	}{"ready", map[string]string{}}
	code := http.StatusOK
	for _, c := range o.ask(r.Context()) {
		body.Checks[c.name] = "ok"
		if c.err != nil {
			body.Checks[c.name] = c.err.Error()
			body.Status, code = "not ready", http.StatusServiceUnavailable
		}
	}
	o.answer(w, code, body)
}

func (o *Ops) answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		o.log.Debug("answer a probe", "err", err)
	}
}

type result struct {
	name string
	err  error
}

// ask runs all checks side by side.
func (o *Ops) ask(ctx context.Context) []result {
	o.mu.Lock()
	checks, stopping := o.checks[:len(o.checks):len(o.checks)], o.stopping
	o.mu.Unlock()
	if stopping {
		return []result{{"process", ErrStopping}}
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	results := make([]result, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { results[i] = result{c.name, c.run(ctx)} })
	}
	wg.Wait()
	return results
}

// check shares one call among those who ask at the same time, so that a check that hangs costs one goroutine and not
// one per probe.
type check struct {
	name  string
	ready func(context.Context) error

	mu   sync.Mutex
	call *call // the one under way, or nil
}

type call struct {
	done chan struct{}
	err  error // set before done is closed
}

func (c *check) run(ctx context.Context) error {
	c.mu.Lock()
	cl := c.call
	if cl == nil {
		cl = &call{done: make(chan struct{})}
		c.call = cl
		// Not the context of the one who asked first: others wait for the same answer.
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		go func() {
			defer cancel()
			cl.err = c.ready(own)
			c.mu.Lock()
			c.call = nil
			c.mu.Unlock()
			close(cl.done)
		}()
	}
	c.mu.Unlock()
	select {
	case <-cl.done:
		return cl.err
	case <-ctx.Done():
		return fmt.Errorf("no answer within %s", checkTimeout)
	}
}
