// Package broker runs the NATS JetStream server inside this process, and dials one that runs elsewhere.
//
// Everything Millrace knows lives in the broker, so the embedded one is durable by default: a write is acknowledged
// after it is on stable storage (see Config.Unsafe). Connections to it behave the same whether it is in this process
// (Broker.Connect) or on another machine (Dial); no other package can tell the difference.
package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Errors of Start, to be held with errors.Is. A port that is taken is a syscall.EADDRINUSE.
var (
	// ErrInUse: another process, or another Broker of this one, works on Config.Dir.
	ErrInUse = errors.New("data folder in use")
	// ErrNoAuth: Config.Listen can be reached from other machines and Config.AuthToken is empty.
	ErrNoAuth = errors.New("listening beyond this machine without an authentication token")
)

// memoryLimit bounds streams kept in memory. Millrace has none; what the client library makes for itself (the
// ephemeral consumers behind watches) is small. Without a limit the server would allow three quarters of the machine.
const memoryLimit = 256 << 20

// Config is what an embedded broker needs to start.
type Config struct {
	// Dir is where the broker keeps its data, and nothing else should. Required; created (0700) when missing.
	Dir string

	// Listen is the HOST:PORT on which other processes may connect; port 0 picks a free one, see Broker.Addr.
	// Empty: no port at all, only Broker.Connect reaches the broker.
	Listen string

	// AuthToken is the token that clients of Listen must present (nats://TOKEN@HOST:PORT). Required when Listen is not
	// a loopback address. Broker.Connect presents it by itself.
	AuthToken string

	// Unsafe acknowledges writes before they are on stable storage and flushes them every two minutes. A power cut
	// then loses what was acknowledged, which breaks every promise Millrace makes: Start logs a warning each time.
	Unsafe bool

	// MaxStore is the most the broker may store, in bytes; at the limit publishers get a clean refusal. 0: 80 % of
	// what the volume of Dir has for it, which is its free space and what the broker stores already. A full volume,
	// unlike a full store, is not reported to publishers at all, hence the distance.
	MaxStore int64

	// Name is the server's name, as monitoring shows it. Default: "millrace".
	Name string

	// Logger receives the server's own lines, its notices at debug level. Default: slog.Default().
	Logger *slog.Logger
}

// Validate reports every mistake in c, joined.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: required"))
	}
	if c.MaxStore < 0 {
		errs = append(errs, fmt.Errorf("max store: %d bytes: must not be negative", c.MaxStore))
	}
	if c.Listen != "" {
		if host, _, err := splitListen(c.Listen); err != nil {
			errs = append(errs, err)
		} else if c.AuthToken == "" && !isLoopback(host) {
			errs = append(errs, fmt.Errorf("listen %s: %w: set a token, or listen on 127.0.0.1", c.Listen, ErrNoAuth))
		}
	}
	return errors.Join(errs...)
}

// Broker is a running embedded server. Its methods may be called concurrently.
type Broker struct {
	srv   *server.Server
	log   *slog.Logger
	token string
	lock  io.Closer

	shutdown sync.Once
}

// Start locks cfg.Dir and starts a broker on it. It returns when the broker has recovered its data and answers. ctx is
// looked at between the steps of starting and has no part in the broker's life: that ends with Shutdown.
//
// It fails with ErrInUse when the folder is taken, with ErrNoAuth, with syscall.EADDRINUSE when the port is, and
// with what the server said when the data cannot be recovered; nothing is left behind then.
func Start(ctx context.Context, cfg Config) (_ *Broker, err error) {
	if cfg.Name == "" {
		cfg.Name = "millrace"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	began := time.Now()
	logger := cfg.Logger.With("component", "broker")

	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("broker: create data folder: %w", err)
	}
	// The lock comes before anything that could change the folder: two servers on one store destroy it.
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()

	opts, err := serverOptions(cfg)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	// The server would notice a taken port only after recovering its data, which may take seconds.
	if err := probeListen(ctx, cfg.Listen); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	if cfg.Unsafe {
		logger.Warn("the broker acknowledges writes before they are on disk: a power cut loses acknowledged data",
			"dir", cfg.Dir)
	}

	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("broker: configure server: %w", err)
	}
	sl := &serverLog{log: logger}
	srv.SetLoggerV2(sl, false, false, false)
	srv.Start() // returns when started, or after a fatal line
	b := &Broker{srv: srv, log: logger, token: cfg.AuthToken, lock: lock}
	defer func() {
		if err != nil {
			b.Shutdown()
		}
	}()
	if msg := sl.fatal(); msg != "" {
		return nil, fmt.Errorf("broker: start server on %s: %s", cfg.Dir, msg)
	}
	if !srv.ReadyForConnections(10 * time.Second) {
		return nil, fmt.Errorf("broker: server on %s is not ready after 10 s", cfg.Dir)
	}
	if err := b.recovered(ctx); err != nil {
		return nil, fmt.Errorf("broker: recover %s: %w", cfg.Dir, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("broker: start: %w", context.Cause(ctx))
	}
	logger.Info("broker started", "version", server.VERSION, "dir", cfg.Dir, "listen", b.Addr(),
		"durable", !cfg.Unsafe, "max_store_bytes", opts.JetStreamMaxStore, "took", time.Since(began))
	return b, nil
}

func serverOptions(cfg Config) (*server.Options, error) {
	opts := &server.Options{
		ServerName:             cfg.Name,
		DontListen:             cfg.Listen == "",
		Authorization:          cfg.AuthToken,
		JetStream:              true,
		StoreDir:               cfg.Dir,
		SyncAlways:             !cfg.Unsafe,
		JetStreamMaxMemory:     memoryLimit,
		JetStreamMaxStore:      cfg.MaxStore,
		NoSigs:                 true, // signals belong to the process, not to a part of it
		DisableJetStreamBanner: true,
	}
	if cfg.Listen != "" {
		host, port, err := splitListen(cfg.Listen)
		if err != nil {
			return nil, err
		}
		if port == 0 {
			port = server.RANDOM_PORT
		}
		opts.Host, opts.Port = host, port
	}
	if opts.JetStreamMaxStore == 0 {
		limit, err := storeLimit(cfg.Dir)
		if err != nil {
			return nil, fmt.Errorf("size of the volume of %s: %w", cfg.Dir, err)
		}
		opts.JetStreamMaxStore = limit
	}
	return opts, nil
}

// Connect opens a connection inside this process, under a name that monitoring shows. The caller closes it, before
// Shutdown. Options given override the defaults, which are those of Dial.
func (b *Broker) Connect(name string, opts ...nats.Option) (*nats.Conn, error) {
	base := append(clientOptions(name), LogEvents(b.log), nats.InProcessServer(b.srv))
	if b.token != "" {
		base = append(base, nats.Token(b.token))
	}
	nc, err := nats.Connect("", append(base, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("broker: connect %s: %w", name, err)
	}
	return nc, nil
}

// Addr is the HOST:PORT the broker listens on, empty when it does not.
func (b *Broker) Addr() string {
	if a, ok := b.srv.Addr().(*net.TCPAddr); ok && a != nil {
		return a.String()
	}
	return ""
}

// recovered waits for health: the server gives itself a millisecond to tell, in which a busy machine may not get to it.
func (b *Broker) recovered(ctx context.Context) error {
	for end := time.Now().Add(time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := b.Healthy()
		if err == nil || !b.srv.JetStreamEnabled() || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
	}
}

// Healthy returns nil when the broker answers, all its data was recovered, and no stream has failed to write. It reads
// memory and a few folders, and is meant for a readiness check.
func (b *Broker) Healthy() error {
	if !b.srv.JetStreamEnabled() {
		// The server turns JetStream off, and itself not, when its store fails.
		return errors.New("broker: JetStream is off")
	}
	if h := b.srv.Healthz(nil); h.Error != "" {
		return fmt.Errorf("broker: %s", h.Error)
	}
	return nil
}

// Shutdown stops the broker and returns when its files are closed and the folder is free again. Connections still open
// are cut. It may be called more than once.
func (b *Broker) Shutdown() {
	b.shutdown.Do(func() {
		b.srv.Shutdown()
		b.srv.WaitForShutdown()
		if err := b.lock.Close(); err != nil {
			b.log.Warn("release the lock of the data folder", "err", err)
		}
	})
}

func splitListen(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("listen %q: want HOST:PORT: %w", addr, err)
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("listen %q: want HOST:PORT with a port of 0 to 65535", addr)
	}
	return host, port, nil
}

// isLoopback reports whether host names this machine only. Names other than localhost are not resolved: what they mean
// may change, and a wrong yes leaves the broker open.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func probeListen(ctx context.Context, addr string) error {
	if addr == "" {
		return nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("NATS port: %w (is another broker running? choose another address with --nats-listen)", err)
	}
	return l.Close()
}

// storeLimit is 80 % of the space on dir's volume that is free or already the broker's, and no less than the latter.
// Counting both keeps the limit where it is from one start to the next, however full the store is.
func storeLimit(dir string) (int64, error) {
	free, err := freeBytes(dir)
	if err != nil {
		return 0, err
	}
	used, err := usedBytes(filepath.Join(dir, server.JetStreamStoreDir))
	if err != nil {
		return 0, err
	}
	return max((free+used)/5*4, used, 1), nil
}

func usedBytes(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		sum += info.Size()
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return sum, err
}
