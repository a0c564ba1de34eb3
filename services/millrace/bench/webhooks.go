package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/topology"
)

// webhooks measures how fast events are told to many webhooks that one receiver of this machine serves.
func webhooks(ctx context.Context, l *lab) (_ []Row, err error) {
	w := &webhookBench{lab: l}
	stop, err := w.receive(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	up, err := l.up(ctx, settings{data: filepath.Join(l.dir, "data"), library: "none", bus: true, hooks: "127.0.0.1"})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, up.stop()) }()
	l.say("making %d webhooks", l.size.webhooks)
	if err := w.subscribe(ctx, up); err != nil {
		return nil, up.explain(err)
	}
	p, err := l.alternate(
		func(round int) (float64, error) { return w.tell(ctx, up, round) },
		func(int) (float64, error) { return w.raw(ctx) })
	if err != nil {
		return nil, up.explain(err)
	}
	_, peak, err := up.memory()
	if err != nil {
		return nil, err
	}
	row := Row{
		What:   fmt.Sprintf("%s events to %s webhooks each", digits(float64(l.size.events)), digits(float64(l.size.webhooks))),
		Beside: "bare POSTs of one body, 64 at a time",
		Target: Target{AtLeast: true, N: 2_000, Unit: "/s"},
		How: fmt.Sprintf("%s webhooks at one receiver of this machine, over plain HTTP. From the first of %s `import_job.started` events until the receiver, a process beside `millrace up` on the same cores, has had each delivery at least once; it counts them by `X-Delivery-ID`, and none may be missing or come twice. "+
			"The yardstick posts as often to the same receiver and does nothing else: no record, no signature. Median of %d rounds in turns.",
			digits(float64(l.size.webhooks)), digits(float64(l.size.events)), len(p.ours)),
		Also: []string{"peak resident memory of the product: " + digits(peak) + " MB"},
	}
	p.into(&row, "/s")
	return []Row{row}, nil
}

type webhookBench struct {
	*lab
	url string

	mu   sync.Mutex
	seen map[string]int // by delivery
	last time.Time      // when the newest of them came
}

// receive starts the receiver.
func (w *webhookBench) receive(ctx context.Context) (stop func(), err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if id := r.Header.Get("X-Delivery-ID"); id != "" {
			w.mu.Lock()
			w.seen[id]++
			w.last = time.Now()
			w.mu.Unlock()
		}
	})}
	go func() { _ = srv.Serve(listener) }()
	w.url = "http://" + listener.Addr().String() + "/hook"
	return func() { _ = srv.Close() }, nil
}

func (w *webhookBench) subscribe(ctx context.Context, up *product) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range w.size.webhooks {
		g.Go(func() error {
			return up.Do(ctx, http.MethodPost, "/webhooks", map[string]any{
				"name": fmt.Sprint("hook ", i), "url": w.url, "events": []event.Type{event.JobStarted}, "metadata": map[string]int{"n": i},
			}, nil)
		})
	}
	return g.Wait()
}

// tell publishes the events of one round and returns how many deliveries a second came of them.
func (w *webhookBench) tell(ctx context.Context, up *product, round int) (float64, error) {
	w.mu.Lock()
	w.seen = make(map[string]int)
	w.mu.Unlock()
	msgs := make([]bus.Message, w.size.events)
	for i := range msgs {
		job := fmt.Sprintf("job_%d_%d", round, i)
		e, err := bus.NewEvent(event.JobStarted, "idx_bench", job, time.Now(), event.JobEvent{
			Job: job, Index: "idx_bench", Connector: "con_bench", Status: "scanning",
		})
		if err != nil {
			return 0, err
		}
		msgs[i] = up.bus.EventMessage(e)
	}
	start, want := time.Now(), w.size.events*w.size.webhooks
	if _, errs := up.bus.PublishAll(ctx, msgs); errors.Join(errs...) != nil {
		return 0, errors.Join(errs...)
	}
	err := until(ctx, 20*time.Millisecond, func() (bool, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.seen) >= want, nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("%d of %d deliveries: %w", len(w.seen), want, err)
	}
	twice := 0
	for _, n := range w.seen {
		if n > 1 {
			twice++
		}
	}
	if twice > 0 || len(w.seen) != want {
		return 0, fmt.Errorf("%d deliveries instead of %d, %d of them more than once", len(w.seen), want, twice)
	}
	took := w.last.Sub(start).Seconds()
	return float64(want) / took, w.settled(ctx, up)
}

// settled waits until the product has written down that everything was delivered.
func (w *webhookBench) settled(ctx context.Context, up *product) error {
	var last uint64
	return until(ctx, 500*time.Millisecond, func() (bool, error) {
		state, err := up.bus.State(ctx, topology.Deliveries)
		quiet := state.LastSeq == last
		last = state.LastSeq
		return quiet, err
	})
}

// raw is the yardstick.
func (w *webhookBench) raw(ctx context.Context) (float64, error) {
	const atATime = 64
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: atATime}}
	defer client.CloseIdleConnections()
	body := bytes.Repeat([]byte("x"), 400)
	n := w.size.events * w.size.webhooks
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atATime)
	start := time.Now()
	for range n {
		g.Go(func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
			if err != nil {
				return err
			}
			res, err := client.Do(req)
			if err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, res.Body)
			return res.Body.Close()
		})
	}
	err := g.Wait()
	return float64(n) / time.Since(start).Seconds(), err
}
