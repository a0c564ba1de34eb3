package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/broker"
	"millrace/shared/broker/brokertest"
)

func TestRestartKeepsData(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	ctx := t.Context()

	b := brokertest.Start(t, brokertest.Dir(dir), brokertest.Synced())
	js := jetStream(t, brokertest.Connect(t, b))
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "s", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := js.Publish(ctx, fmt.Sprintf("s.%d", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	b.Shutdown()
	b.Shutdown() // harmless
	if err := b.Healthy(); err == nil {
		t.Error("a stopped broker calls itself healthy")
	}

	b = brokertest.Start(t, brokertest.Dir(dir))
	js = jetStream(t, brokertest.Connect(t, b))
	s, err := js.Stream(ctx, "s")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.CachedInfo().State.Msgs; got != 20 {
		t.Errorf("%d messages after a restart, want 20", got)
	}
	if err := b.Healthy(); err != nil {
		t.Errorf("healthy: %v", err)
	}
	if got := b.Addr(); got != "" {
		t.Errorf("listens on %s without being told to", got)
	}
}

func TestDurableByDefault(t *testing.T) {
	for _, unsafe := range []bool{false, true} {
		var out bytes.Buffer
		b, err := broker.Start(t.Context(), broker.Config{
			Dir: t.TempDir(), Unsafe: unsafe, Logger: slog.New(slog.NewTextHandler(&out, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		b.Shutdown()
		if got := strings.Contains(out.String(), "level=WARN") && strings.Contains(out.String(), "power cut"); got != unsafe {
			t.Errorf("unsafe=%v: warned=%v:\n%s", unsafe, got, &out)
		}
		if want := fmt.Sprintf("durable=%v", !unsafe); !strings.Contains(out.String(), want) {
			t.Errorf("log has no %s:\n%s", want, &out)
		}
	}
}

func TestDataFolderInUse(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.Start(t, brokertest.Dir(dir))

	_, err := broker.Start(t.Context(), broker.Config{Dir: dir})
	if !errors.Is(err, broker.ErrInUse) {
		t.Fatalf("second broker on one folder: %v", err)
	}
	for _, want := range []string{dir, fmt.Sprintf("process %d", os.Getpid())} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %q", err, want)
		}
	}

	b.Shutdown()
	brokertest.Start(t, brokertest.Dir(dir)) // free again
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir, addr := t.TempDir(), l.Addr().String()

	_, err = broker.Start(t.Context(), broker.Config{Dir: dir, Listen: addr})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("start on a taken port: %v", err)
	}
	if !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "--nats-listen") {
		t.Errorf("error %q does not say which port or how to change it", err)
	}
	brokertest.Start(t, brokertest.Dir(dir)) // a failed start has let go of the folder
}

// What the server itself finds wrong after the folder was locked comes back as an error, not as an exit.
func TestServerRefusesToStart(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "jetstream"), []byte("in the way"), 0o600); err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	_, err := broker.Start(t.Context(), broker.Config{Dir: dir, Logger: quiet, MaxStore: 1 << 20})
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Fatalf("start with a file for a store: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "jetstream")); err != nil {
		t.Fatal(err)
	}
	brokertest.Start(t, brokertest.Dir(dir))
}

func TestConfigValidate(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  broker.Config
		want []string // all in the error; none: valid
	}{
		{"least", broker.Config{Dir: "d"}, nil},
		{"loopback", broker.Config{Dir: "d", Listen: "127.0.0.1:4222"}, nil},
		{"loopback v6", broker.Config{Dir: "d", Listen: "[::1]:4222"}, nil},
		{"localhost", broker.Config{Dir: "d", Listen: "localhost:0"}, nil},
		{"open with token", broker.Config{Dir: "d", Listen: "0.0.0.0:4222", AuthToken: "t"}, nil},
		{"open", broker.Config{Dir: "d", Listen: "0.0.0.0:4222"}, []string{"0.0.0.0:4222", "token"}},
		{"all interfaces", broker.Config{Dir: "d", Listen: ":4222"}, []string{"token"}},
		{"named host", broker.Config{Dir: "d", Listen: "box:4222"}, []string{"token"}},
		{"no port", broker.Config{Dir: "d", Listen: "127.0.0.1"}, []string{"HOST:PORT"}},
		{"bad port", broker.Config{Dir: "d", Listen: "127.0.0.1:nats"}, []string{"HOST:PORT"}},
		{"big port", broker.Config{Dir: "d", Listen: "127.0.0.1:65536"}, []string{"65535"}},
		{"everything", broker.Config{Listen: ":1", MaxStore: -1}, []string{"dir", "max store", "token"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.cfg.Validate()
			if (err != nil) != (len(c.want) > 0) {
				t.Fatalf("validate: %v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
	if _, err := broker.Start(t.Context(), broker.Config{Dir: t.TempDir(), Listen: ":0"}); !errors.Is(err, broker.ErrNoAuth) {
		t.Errorf("start without a token: %v", err)
	}
}

func TestToken(t *testing.T) {
	b, err := broker.Start(t.Context(), broker.Config{
		Dir: t.TempDir(), Listen: "127.0.0.1:0", AuthToken: "s3cret", Unsafe: true, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Shutdown)
	brokertest.Connect(t, b) // in process: presents it by itself

	nc, err := broker.Dial("nats://s3cret@"+b.Addr(), "right")
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	for _, url := range []string{"nats://" + b.Addr(), "nats://wr0ng@" + b.Addr(), "nats://wr0ng:%zz@" + b.Addr()} {
		nc, err := broker.Dial(url, "wrong")
		if err == nil {
			nc.Close()
			t.Errorf("%s: let in", url)
		} else if strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("the error repeats the credentials: %v", err)
		}
	}
}

func TestStartCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := broker.Start(ctx, broker.Config{Dir: dir}); !errors.Is(err, context.Canceled) {
		t.Fatalf("start: %v", err)
	}
	brokertest.Start(t, brokertest.Dir(dir))
}

func TestDialNeedsJetStream(t *testing.T) {
	s := plainServer(t, &server.Options{})
	if _, err := broker.Dial(s.ClientURL(), "x"); !errors.Is(err, broker.ErrNoJetStream) {
		t.Fatalf("dial a server without JetStream: %v", err)
	}
	if _, err := broker.Dial("nats://127.0.0.1:1", "x"); !errors.Is(err, nats.ErrNoServers) {
		t.Fatalf("dial nobody: %v", err)
	}
}

// A worker that may bind its consumer and nothing else cannot ask whether JetStream is there, and is let in.
func TestDialWithLeastPrivilege(t *testing.T) {
	s := plainServer(t, &server.Options{
		JetStream: true, StoreDir: t.TempDir(),
		Users: []*server.User{{Username: "w", Password: "w", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.INFO"}},
		}}},
	})
	nc, err := broker.Dial("nats://w:w@"+s.Addr().String(), "x", nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

func TestReconnect(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.Start(t, brokertest.Dir(dir), brokertest.Listen())
	addr := b.Addr()
	back := make(chan struct{})
	nc, err := broker.Dial("nats://"+addr, "x", nats.ReconnectHandler(func(*nats.Conn) { close(back) }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	b.Shutdown()

	b, err = broker.Start(t.Context(), broker.Config{Dir: dir, Listen: addr, Unsafe: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Shutdown)
	select {
	case <-back:
	case <-time.After(20 * time.Second):
		t.Fatal("did not reconnect")
	}
}

func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		br, err := broker.Start(b.Context(), broker.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		br.Shutdown()
		b.StartTimer()
	}
}

func jetStream(t *testing.T, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func plainServer(t *testing.T, opts *server.Options) *server.Server {
	t.Helper()
	opts.Host, opts.Port, opts.NoLog, opts.NoSigs = "127.0.0.1", server.RANDOM_PORT, true, true
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("server not ready")
	}
	return s
}
