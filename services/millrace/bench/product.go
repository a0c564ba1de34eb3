package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"millrace/services/millrace/client"
	"millrace/shared/broker"
	"millrace/shared/bus"
	"millrace/shared/topology"
)

// names is the deployment that is measured: the default one.
var names = topology.Topology{Prefix: "millrace", Replicas: 1}

// product is a running `millrace up`.
type product struct {
	*client.Client
	bus   *bus.Bus // nil unless asked for
	ready time.Duration
	addr  string // of its API
	key   string

	cmd   *exec.Cmd
	conn  *nats.Conn
	log   string
	ended chan error
}

// settings are what figures ask of `millrace up` beside the defaults.
type settings struct {
	data    string
	allow   string // a folder that connectors may name
	library string // default: a folder
	bus     bool   // the broker can be looked into
	hooks   string // where webhooks and storage may be although it is not public
	flags   []string
	environ []string
}

// interval is the debounce interval of the figures.
const interval = "2s"

// readyTime bounds a start.
const readyTime = 2 * time.Minute

// up starts the product and returns when /readyz says so.
func (l *lab) up(ctx context.Context, s settings) (_ *product, err error) {
	httpAddr, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	key := rand.Text()
	args := []string{"up", "--data", s.data, "--http", httpAddr, "--api-key", key, "--log-level", "warn", "--extra-debounce-intervals", interval}
	if s.allow != "" {
		args = append(args, "--allow-dir", s.allow)
	}
	if s.library != "" {
		args = append(args, "--library", s.library)
	}
	if s.hooks != "" {
		args = append(args, "--allow-endpoint", s.hooks)
	}
	args = append(args, s.flags...)
	natsAddr := ""
	if s.bus {
		if natsAddr, err = freeAddr(ctx); err != nil {
			return nil, err
		}
		args = append(args, "--nats-listen", natsAddr)
	}
	out, err := os.CreateTemp(l.dir, "up-*.log")
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	p := &product{
		Client: client.New("http://"+httpAddr, key), addr: httpAddr, key: key, log: out.Name(), ended: make(chan error, 1),
		cmd: exec.CommandContext(ctx, l.program, args...),
	}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = append(environ(), s.environ...), out, out, l.dir
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = stopTime / 2
	start := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the product: %w", err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	defer func() {
		if err != nil {
			err = errors.Join(p.explain(err), p.stop())
		}
	}()
	if err := p.waitReady(ctx, "http://"+httpAddr+"/readyz"); err != nil {
		return nil, err
	}
	p.ready = time.Since(start)
	if s.bus {
		if p.conn, err = broker.Dial("nats://"+natsAddr, "bench"); err != nil {
			return nil, err
		}
		if p.bus, err = bus.New(p.conn, names, "bench", slog.New(slog.DiscardHandler)); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// freeAddr returns a port of this machine that nobody listens on.
func freeAddr(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// askEvery is how often the product is asked whether it is ready: often, against what is measured, and rarely, against
// what asking costs.
const askEvery = 2 * time.Millisecond

func (p *product) waitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-p.ended:
			p.ended <- err
			return fmt.Errorf("the product ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("the product is not ready: %w", ctx.Err())
		case <-tick.C:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return nil
		}
	}
}

// explain adds the last words of the product to an error.
func (p *product) explain(err error) error {
	words, rerr := os.ReadFile(filepath.Clean(p.log))
	if words = bytes.TrimSpace(words); rerr != nil || len(words) == 0 {
		return err
	}
	return fmt.Errorf("%w\nthe product said:\n%s", err, words[max(0, len(words)-2000):])
}

// memory is the product's resident memory in MB: now, and at its peak.
func (p *product) memory() (now, peak float64, err error) { return resident(p.cmd.Process.Pid) }

func (p *product) cpu() (time.Duration, error) { return cpuTime(p.cmd.Process.Pid) }

// stop ends the product in order and waits for that.
func (p *product) stop() error {
	if p.conn != nil {
		p.conn.Close()
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails when it has ended
	select {
	case err := <-p.ended:
		if err != nil {
			return p.explain(fmt.Errorf("the product ended: %w", err))
		}
		return nil
	case <-time.After(stopTime / 2):
		_ = p.cmd.Process.Kill()
		return p.explain(fmt.Errorf("the product did not stop within %s: %w", stopTime/2, <-p.ended))
	}
}

// kill ends the product at once, as kill -9 does, and waits for that.
func (p *product) kill() error {
	if p.conn != nil {
		p.conn.Close()
	}
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	err := <-p.ended
	if _, killed := errors.AsType[*exec.ExitError](err); killed {
		return nil
	}
	return fmt.Errorf("the product was killed, and ended: %w", err)
}
