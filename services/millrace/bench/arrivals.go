package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"millrace/services/run"
	"millrace/services/scanner"
	"millrace/services/storage"
	"millrace/shared/broker"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// batch is how many messages are written at a time, on both sides.
const batch = 500

// arrivals measures how fast notifications become stored arrivals.
func arrivals(ctx context.Context, l *lab) ([]Row, error) {
	var row Row
	err := onBroker(ctx, l.dir, func(br *broker.Broker, b *bus.Bus) error {
		a := &arrivalBench{lab: l, broker: br, bus: b, inbox: filepath.Join(l.dir, "inbox")}
		if err := a.prepare(ctx); err != nil {
			return err
		}
		p, err := l.alternate(
			func(round int) (float64, error) { return a.whole(ctx, round) },
			func(round int) (float64, error) { return a.raw(ctx, round) })
		if err != nil {
			return err
		}
		drain, err := a.drain(ctx)
		if err != nil {
			return err
		}
		row = Row{
			What:   "notifications → stored arrivals",
			Beside: "raw atomic batches",
			Target: Target{Ratio: true, AtLeast: true, N: 0.25},
			How: fmt.Sprintf("%s notifications of distinct files, written in atomic batches of %d to `notification.<connector>` while a scanner runs: from the first publish until the arrivals stream holds all of them. "+
				"The yardstick writes the same bytes, in the same batches, to a stream that nobody reads. Median of %d rounds in turns.",
				digits(float64(l.size.notifications)), batch, len(p.ours)),
		}
		p.into(&row, "/s")
		row.Also = append(row.Also, "with all notifications stored before the scanner starts, it works them off at "+digits(drain)+" /s")
		return nil
	})
	return []Row{row}, err
}

// arrivalBench is a broker with a connector and its automation, and now and then a scanner.
type arrivalBench struct {
	*lab
	broker    *broker.Broker
	bus       *bus.Bus
	inbox     string
	connector string
	made      int // notifications so far
}

func (a *arrivalBench) prepare(ctx context.Context) error {
	if err := os.MkdirAll(a.inbox, 0o755); err != nil {
		return err
	}
	f := fill{a.bus}
	ids, err := f.connectors(ctx, []string{a.inbox})
	if err != nil {
		return err
	}
	a.connector = ids[0]
	_, err = f.automations(ctx, 1, func(_ int, at *store.Automation) { at.Connector = a.connector })
	return err
}

// notifications returns the bodies of a round. No two are about the same file.
func (a *arrivalBench) notifications() ([][]byte, error) {
	bodies := make([][]byte, a.size.notifications)
	mod := time.Now().UTC()
	for i := range bodies {
		a.made++
		n := event.Notification{
			Op: event.Created, Path: fmt.Sprintf("2026/rushes/camera-%d/clip-%07d.mp4", a.made%8, a.made),
			Version: fmt.Sprintf("%d-%d", mod.UnixNano(), 1<<20+a.made), Order: fmt.Sprintf("%020d", mod.UnixNano()),
			Size: int64(1<<20 + a.made), ModTime: mod,
		}
		var err error
		if bodies[i], err = json.Marshal(n); err != nil {
			return nil, err
		}
	}
	return bodies, nil
}

// publish writes messages to one subject, in atomic batches.
func (a *arrivalBench) publish(ctx context.Context, subject string, bodies [][]byte) error {
	for len(bodies) > 0 {
		n := min(batch, len(bodies))
		msgs := make([]*nats.Msg, n)
		for i := range msgs {
			msgs[i] = nats.NewMsg(subject)
			msgs[i].Data = bodies[i]
		}
		if _, err := jetstreamext.PublishMsgBatch(ctx, a.bus.JetStream(), msgs); err != nil {
			return fmt.Errorf("publish to %s: %w", subject, err)
		}
		bodies = bodies[n:]
	}
	return nil
}

// raw is the yardstick.
func (a *arrivalBench) raw(ctx context.Context, round int) (rate float64, err error) {
	bodies, err := a.notifications()
	if err != nil {
		return 0, err
	}
	name := fmt.Sprintf("raw-%d", round)
	js := a.bus.JetStream()
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{name + ".*"}, AllowAtomicPublish: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, js.DeleteStream(ctx, name)) }()
	start := time.Now()
	if err := a.publish(ctx, name+"."+a.connector, bodies); err != nil {
		return 0, err
	}
	return perSecond(len(bodies), start), nil
}

func perSecond(n int, since time.Time) float64 { return float64(n) / time.Since(since).Seconds() }

// whole measures with the scanner running.
func (a *arrivalBench) whole(ctx context.Context, _ int) (rate float64, err error) {
	bodies, err := a.notifications()
	if err != nil {
		return 0, err
	}
	if err := a.bus.Purge(ctx, topology.Arrivals, ">", 0); err != nil {
		return 0, err
	}
	stop, err := a.scanner(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	start := time.Now()
	if err := a.publish(ctx, names.Subject("notification", a.connector), bodies); err != nil {
		return 0, err
	}
	if err := a.stored(ctx, len(bodies)); err != nil {
		return 0, err
	}
	return perSecond(len(bodies), start), nil
}

// drain measures a scanner that finds everything there.
func (a *arrivalBench) drain(ctx context.Context) (rate float64, err error) {
	bodies, err := a.notifications()
	if err != nil {
		return 0, err
	}
	if err := a.bus.Purge(ctx, topology.Arrivals, ">", 0); err != nil {
		return 0, err
	}
	if err := a.publish(ctx, names.Subject("notification", a.connector), bodies); err != nil {
		return 0, err
	}
	start := time.Now()
	stop, err := a.scanner(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := a.stored(ctx, len(bodies)); err != nil {
		return 0, err
	}
	return perSecond(len(bodies), start), nil
}

// patience is how long something may take that is waited for.
const patience = 10 * time.Minute

// stored waits until n arrivals are there.
func (a *arrivalBench) stored(ctx context.Context, n int) error {
	return until(ctx, 5*time.Millisecond, func() (bool, error) {
		state, err := a.bus.State(ctx, topology.Arrivals)
		return state.Msgs >= uint64(n), err
	})
}

// until asks again and again until the answer is yes.
func until(ctx context.Context, every time.Duration, yes func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ok, err := yes(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("what was waited for did not come: %w", ctx.Err())
		}
	}
}

// scanner runs one until stop is called, and returns when it is ready.
func (a *arrivalBench) scanner(ctx context.Context) (stop func() error, err error) {
	connect := func(name string) (*nats.Conn, error) { return a.broker.Connect(name) }
	h := run.NewHost(connect, names, "bench", slog.New(slog.DiscardHandler))
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	env, err := h.Env("scanner")
	if err != nil {
		return nil, err
	}
	sources := storage.Sources{AllowDir: []string{a.inbox}, SecretsKey: filepath.Join(a.dir, "secrets.key")}
	sources.AllowEndpoint = []string{"127.0.0.1"} // where the bench serves storage
	opener, _, err := sources.Opener(ctx, env)
	if err != nil {
		return nil, err
	}
	s, err := scanner.New(scanner.Config{}, env, opener)
	if err != nil {
		return nil, err
	}
	h.Add("scanner", s)
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- h.Run(running) }()
	stop = func() error {
		cancel()
		return <-ended
	}
	if err := h.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}
