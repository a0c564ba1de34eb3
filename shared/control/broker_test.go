package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// patience is how long a test waits for a fact.
const patience = 20 * time.Second

// broker is a real server in this process that can be stopped and started again on its store.
type broker struct {
	t   testing.TB
	dir string
	nc  *nats.Conn // the test's own
	js  jetstream.JetStream

	mu     sync.Mutex
	server *server.Server
	conns  []*nats.Conn // those handed out
}

func startBroker(t testing.TB) *broker {
	t.Helper()
	b := &broker{t: t, dir: t.TempDir()}
	b.start()
	t.Cleanup(b.stop)
	nc, err := b.dial("test")
	must(t, err)
	t.Cleanup(nc.Close)
	b.nc = nc
	b.js, err = jetstream.New(nc)
	must(t, err)
	return b
}

func (b *broker) start() {
	b.t.Helper()
	s, err := server.NewServer(&server.Options{
		JetStream: true, StoreDir: b.dir, DontListen: true, NoSigs: true, NoLog: true,
	})
	must(b.t, err)
	s.Start()
	if !s.ReadyForConnections(patience) {
		b.t.Fatal("broker does not start")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.server = s
}

func (b *broker) stop() {
	b.mu.Lock()
	s := b.server
	b.mu.Unlock()
	s.Shutdown()
	s.WaitForShutdown()
}

// InProcessConn makes every reconnect go to the server of the day.
func (b *broker) InProcessConn() (net.Conn, error) {
	b.mu.Lock()
	s := b.server
	b.mu.Unlock()
	if !s.Running() {
		return nil, errors.New("broker is down")
	}
	return s.InProcessConn()
}

func (b *broker) dial(name string) (*nats.Conn, error) {
	return nats.Connect("", nats.InProcessServer(b), nats.Name(name), nats.MaxReconnects(-1),
		nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0))
}

// connect is Config.Connect.
func (b *broker) connect(name string) (*nats.Conn, error) {
	nc, err := b.dial(name)
	if err == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.conns = append(b.conns, nc)
	}
	return nc, err
}

func (b *broker) stream(cfg jetstream.StreamConfig) jetstream.Stream {
	b.t.Helper()
	s, err := b.js.CreateStream(b.t.Context(), cfg)
	must(b.t, err)
	return s
}

// queue makes a work queue "jobs" on "job.>" with one consumer "worker".
func (b *broker) queue(ackWait time.Duration) jetstream.Consumer {
	b.t.Helper()
	b.stream(jetstream.StreamConfig{Name: "jobs", Subjects: []string{"job.>"}, Retention: jetstream.WorkQueuePolicy})
	return b.consumer("jobs", jetstream.ConsumerConfig{Durable: "worker", AckWait: ackWait})
}

func (b *broker) consumer(stream string, cfg jetstream.ConsumerConfig) jetstream.Consumer {
	b.t.Helper()
	cfg.AckPolicy = jetstream.AckExplicitPolicy
	c, err := b.js.CreateConsumer(b.t.Context(), stream, cfg)
	must(b.t, err)
	return c
}

func (b *broker) publish(subject, data string, header ...string) {
	b.t.Helper()
	m := nats.NewMsg(subject)
	m.Data = []byte(data)
	for i := 0; i < len(header); i += 2 {
		m.Header.Add(header[i], header[i+1])
	}
	_, err := b.js.PublishMsg(b.t.Context(), m)
	must(b.t, err)
}

// stored is how many messages a stream holds.
func (b *broker) stored(stream string) uint64 {
	b.t.Helper()
	s, err := b.js.Stream(b.t.Context(), stream)
	must(b.t, err)
	return s.CachedInfo().State.Msgs
}

func (b *broker) info(c jetstream.Consumer) *jetstream.ConsumerInfo {
	b.t.Helper()
	info, err := c.Info(b.t.Context())
	must(b.t, err)
	return info
}

// morgue keeps dead letters.
type morgue struct {
	mu      sync.Mutex
	letters []Letter
	fail    int // so many calls first
	calls   int
}

func (m *morgue) store(_ context.Context, l Letter) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.calls <= m.fail {
		return errors.New("dead stream is full")
	}
	m.letters = append(m.letters, l)
	return nil
}

func (m *morgue) all() []Letter {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.letters)
}

// running is a router at work.
type running struct {
	*Router
	morgue *morgue
	cancel context.CancelFunc
	result chan error
}

// stop stops the router and returns what Run did.
func (r *running) stop(t testing.TB) error {
	t.Helper()
	r.cancel()
	err := receive(t, r.result)
	r.result <- err // stop may be asked again
	return err
}

func newRouter(t testing.TB, b *broker, change func(*Config), handlers ...Handler) *running {
	t.Helper()
	r := &running{morgue: &morgue{}, result: make(chan error, 1)}
	cfg := Config{Connect: b.connect, Dead: r.morgue.store, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	var err error
	r.Router, err = New(cfg)
	must(t, err)
	for _, h := range handlers {
		must(t, r.Add(h))
	}
	return r
}

func run(t testing.TB, b *broker, change func(*Config), handlers ...Handler) *running {
	t.Helper()
	r := newRouter(t, b, change, handlers...)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.result <- r.Run(ctx) }()
	select {
	case <-r.Running():
	case err := <-r.result:
		t.Fatalf("router does not run: %v", err)
	case <-time.After(patience):
		t.Fatal("router does not start")
	}
	t.Cleanup(func() { _ = r.stop(t) })
	return r
}

func worker(handle func(context.Context, *Message) error) Handler {
	return Handler{Name: "work", Stream: "jobs", Consumer: "worker", Handle: handle}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

func receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatal("nothing received")
		panic("unreachable")
	}
}

// eventually waits for a fact that can only be asked for.
func eventually(t testing.TB, what string, fact func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !fact() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not so: " + what)
		}
	}
}

// settled waits until a consumer has acknowledged everything that was published before. A consumer hears of a message
// some time after its publisher, so having nothing pending does not say that there is nothing to come.
func (b *broker) settled(c jetstream.Consumer) {
	b.t.Helper()
	stream, err := b.js.Stream(b.t.Context(), c.CachedInfo().Stream)
	must(b.t, err)
	last := stream.CachedInfo().State.LastSeq
	eventually(b.t, fmt.Sprintf("consumer %s has nothing left", c.CachedInfo().Name), func() bool {
		info := b.info(c)
		return info.NumPending == 0 && info.NumAckPending == 0 && info.AckFloor.Stream >= last
	})
}
