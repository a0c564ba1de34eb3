// Package brokertest gives tests real brokers: one inside the test process, or a cluster of nats-server processes that
// can be killed, paused and restarted.
package brokertest

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"millrace/shared/broker"
)

// Option changes the broker of Start.
type Option func(*broker.Config)

// Synced makes the broker write through to the disk before it acknowledges, as in production. Without it a test is
// faster by an order of magnitude, and no different: nobody cuts the power of a test process.
func Synced() Option { return func(c *broker.Config) { c.Unsafe = false } }

// Listen makes the broker listen on a free loopback port (Broker.Addr), for tests that reconnect or have processes.
func Listen() Option { return func(c *broker.Config) { c.Listen = "127.0.0.1:0" } }

// Dir makes the broker use a folder of the caller, so that a test can start again on what another broker left.
func Dir(dir string) Option { return func(c *broker.Config) { c.Dir = dir } }

// Start runs a broker in the test process until the test ends. The server's warnings go to the test's log.
func Start(t testing.TB, opts ...Option) *broker.Broker {
	t.Helper()
	logger := testLogger(t)
	cfg := broker.Config{Unsafe: true, MaxStore: 16 << 30, Name: "test", Logger: logger}
	for _, o := range opts {
		o(&cfg)
	}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	b, err := broker.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Shutdown)
	return b
}

// Connect opens a connection to b that lasts until the test ends.
func Connect(t testing.TB, b *broker.Broker) *nats.Conn {
	t.Helper()
	nc, err := b.Connect(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// testLogger logs to the test's output, and to nowhere once the test is over: the callbacks of a connection may come
// later, and a log line after the end of a test is a panic.
func testLogger(t testing.TB) *slog.Logger {
	t.Helper()
	w := &testWriter{t: t}
	t.Cleanup(w.close)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type testWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Logf("%s", bytes.TrimRight(p, "\n"))
	}
	return len(p), nil
}

func (w *testWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t = nil
}
