package millrace_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/topology"
)

// What goes wrong in a run of chaos, each with what ends it.

// link is a stretch of network that can go bad: what dials its address comes out at another.
type link struct {
	addr, to string
	listener net.Listener

	mu    sync.Mutex
	sky   weather
	turn  chan struct{} // closed when the weather changes
	conns map[net.Conn]bool
}

// weather is the state of a link.
type weather struct {
	cut   bool          // connections break, and none are made
	still bool          // nothing passes, and nobody is told
	delay time.Duration // of each piece
}

func newLink(t testing.TB, to string) *link {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	must(t, err)
	k := &link{addr: l.Addr().String(), to: to, listener: l, turn: make(chan struct{}), conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		_ = l.Close()
		k.set(weather{cut: true})
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go k.join(conn)
		}
	}()
	return k
}

func (k *link) set(w weather) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sky = w
	close(k.turn)
	k.turn = make(chan struct{})
	if w.cut {
		for c := range k.conns {
			_ = c.Close()
		}
	}
}

func (k *link) weather() (weather, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sky, k.turn
}

// hold keeps a connection for set to break, and reports whether there may be one.
func (k *link) hold(c net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns[c] = true
	return !k.sky.cut
}

func (k *link) drop(c net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
	_ = c.Close()
}

func (k *link) join(near net.Conn) {
	defer k.drop(near)
	if !k.hold(near) {
		return
	}
	far, err := new(net.Dialer).DialContext(context.Background(), "tcp", k.to)
	if err != nil {
		return
	}
	defer k.drop(far)
	if !k.hold(far) {
		return
	}
	done := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		defer func() { done <- struct{}{} }()
		piece := make([]byte, 32<<10)
		for {
			n, err := from.Read(piece)
			for {
				w, turn := k.weather()
				if w.cut {
					return
				}
				if !w.still {
					time.Sleep(w.delay)
					break
				}
				<-turn
			}
			if _, broken := to.Write(piece[:n]); err != nil || broken != nil {
				return
			}
		}
	}
	go pass(far, near)
	go pass(near, far)
	<-done // one end is gone, and so is the other
}

// fault is something that can go wrong.
type fault struct {
	name string
	on   string        // what it is done to, which has one at a time; that of the whole broker begins with "node"
	most time.Duration // how long it lasts at most
	odds int           // how often, beside the others
	do   func(c *chaos) (undo func(), err error)
}

// mood is what a server outside does with requests.
type mood struct{ atomic.Value }

func (m *mood) is() string {
	s, _ := m.Load().(string)
	return s
}

// faults are all that this deployment can suffer. kills is whether its processes may die, which a soak that measures them
// does without.
func (c *chaos) faults(kills bool) (list []fault) {
	add := func(odds int, on, name string, most time.Duration, do func(*chaos) (func(), error)) {
		list = append(list, fault{name, on, most, odds, do})
	}
	for name, p := range c.procs {
		if kills {
			add(3, name, name+" is killed", 3*time.Second, func(*chaos) (func(), error) {
				p.kill()
				return p.start, nil
			})
			add(1, name, name+" stands still", 26*time.Second, func(*chaos) (func(), error) { // leases are of 20 s
				if p.ended() != nil {
					return nil, errors.New("it is gone")
				}
				signal := func(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }
				signal(syscall.SIGSTOP)
				return func() { signal(syscall.SIGCONT) }, nil
			})
		}
		roads := c.roads[name]
		for what, w := range map[string]weather{
			"is cut off": {cut: true}, "hears nothing": {still: true}, "is far away": {delay: 150 * time.Millisecond},
		} {
			add(1, name, name+" "+what, 15*time.Second, func(*chaos) (func(), error) {
				all := func(w weather) {
					for _, k := range roads {
						k.set(w)
					}
				}
				all(w)
				return func() { all(weather{}) }, nil
			})
		}
	}
	for i := range c.nodes.Len() {
		name := "node " + c.nodes.Name(i)
		add(2, "nodes", name+" is killed", 5*time.Second, func(*chaos) (func(), error) {
			c.nodes.Kill(i)
			return func() { c.nodes.Restart(i) }, nil
		})
		add(2, "nodes", name+" stands still", 15*time.Second, func(*chaos) (func(), error) {
			c.nodes.Stop(i)
			return func() { c.nodes.Cont(i) }, nil
		})
		for what, w := range map[string]weather{"cut off from the others": {cut: true}, "out of earshot": {still: true}, "far from the others": {delay: 50 * time.Millisecond}} {
			add(1, "nodes", name+" is "+what, 15*time.Second, func(*chaos) (func(), error) {
				all := func(w weather) {
					for j, k := range c.routes {
						if j[0] == i || j[1] == i {
							k.set(w)
						}
					}
				}
				all(w)
				return func() { all(weather{}) }, nil
			})
		}
	}
	add(1, "nodes", "nodes are killed, two of three", 5*time.Second, func(c *chaos) (func(), error) {
		a := c.rnd.IntN(3)
		b := (a + 1) % 3
		c.nodes.Kill(a)
		c.nodes.Kill(b)
		return func() { c.nodes.Restart(a); c.nodes.Restart(b) }, nil
	})
	add(1, "nodes", "nodes are killed, all of them", 3*time.Second, func(c *chaos) (func(), error) {
		for i := range c.nodes.Len() {
			c.nodes.Kill(i)
		}
		return func() {
			for i := range c.nodes.Len() {
				c.nodes.Restart(i)
			}
		}, nil
	})
	add(1, "nodes", "node n1 loses its disk", 2*time.Second, func(c *chaos) (func(), error) {
		if err := c.nodes.Ready(); err != nil {
			return nil, err // what the others do not have yet would be lost for good
		}
		c.nodes.Kill(1)
		return func() {
			must(c.t, os.RemoveAll(c.nodes.Dir(1)))
			must(c.t, os.Mkdir(c.nodes.Dir(1), 0o700))
			c.nodes.Restart(1)
			c.nodes.WaitReady()
		}, nil
	})
	add(6, "leaders", "leaders step down", 0, func(c *chaos) (func(), error) { return nil, c.stepDown() })

	for what, f := range map[string]struct {
		match gcstest.Match
		do    gcstest.Fault
	}{
		"is away":                     {gcstest.Anything, gcstest.Broken},
		"is busy":                     {gcstest.Anything, gcstest.Busy(http.StatusServiceUnavailable, 2*time.Second)},
		"is asked too much":           {gcstest.Anything, gcstest.Status(http.StatusTooManyRequests, "rateLimitExceeded", "slow down")},
		"breaks off":                  {gcstest.Reads, gcstest.Truncated(5000)},
		"changes bytes":               {gcstest.Reads, gcstest.Corrupted},
		"trickles":                    {gcstest.Reads, gcstest.Trickled(4000, 300*time.Millisecond)},
		"hangs":                       {gcstest.Reads, gcstest.Stalled},
		"does not list":               {gcstest.Listings, gcstest.Status(http.StatusInternalServerError, "backendError", "try again")},
		"gives no tokens any more":    {gcstest.Tokens, gcstest.Broken},
		"takes credentials no longer": {gcstest.Anything, gcstest.Status(http.StatusUnauthorized, "authError", "Invalid Credentials")},
	} {
		add(1, "storage", "the storage "+what, 10*time.Second, func(c *chaos) (func(), error) {
			c.storage.Inject(-1, f.match, f.do)
			return c.storage.Heal, nil
		})
	}
	for _, how := range []string{"fails", "hangs"} {
		add(2, "prompts", "the prompt service "+how, 10*time.Second, func(c *chaos) (func(), error) {
			set := func(mood string) { must(c.t, os.WriteFile(c.promptMood(), []byte(mood), 0o600)) }
			set(how)
			return func() { set("") }, nil
		})
	}
	for _, how := range []string{"500", "410", "hangs"} {
		add(2, "receiver", "the receiver of webhooks answers "+how, 10*time.Second, func(c *chaos) (func(), error) {
			c.receiver.Store(how)
			return func() { c.receiver.Store("") }, nil
		})
	}
	if c.smallDisks {
		full := func(dir string, then func()) func(*chaos) (func(), error) {
			return func(c *chaos) (func(), error) {
				ballast := filepath.Join(dir, "ballast")
				fill(c.t, ballast)
				return func() { must(c.t, os.Remove(ballast)); then() }, nil
			}
		}
		add(2, "library", "the library's disk is full", 8*time.Second, full(c.library, func() {}))
		// A server that met a full disk is mute until it starts again.
		add(1, "nodes", "node n0 has a full disk", 8*time.Second, full(c.nodes.Dir(0), func() { c.nodes.Restart(0) }))
	}
	slices.SortFunc(list, func(x, y fault) int { // maps have no order, a seed needs one
		return cmp.Compare(x.on+x.name, y.on+y.name)
	})
	return list
}

// stepDown has the leaders of some streams and consumers give up.
func (c *chaos) stepDown() error {
	top := topology.Topology{Prefix: c.prefix}
	ask := func(subject string) error {
		msg, err := c.nc.Request(subject, nil, 2*time.Second)
		if err == nil && len(msg.Data) == 0 {
			err = errors.New("no answer")
		}
		return err
	}
	var errs []error
	for _, s := range []string{topology.Arrivals, topology.Tasks, topology.Files, topology.Events, topology.Jobs, topology.Media} {
		if c.rnd.IntN(2) == 0 {
			errs = append(errs, ask("$JS.API.STREAM.LEADER.STEPDOWN."+top.Stream(s)))
		}
	}
	for _, cons := range top.Consumers() {
		if c.rnd.IntN(3) == 0 {
			errs = append(errs, ask(fmt.Sprintf("$JS.API.CONSUMER.LEADER.STEPDOWN.%s.%s", top.Stream(cons.Stream), cons.Config.Durable)))
		}
	}
	return errors.Join(errs...)
}

// fill writes until the disk is full.
func fill(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer func() { _ = f.Close() }()
	for block := 1 << 20; block > 0; {
		if _, err := f.Write(make([]byte, block)); err != nil {
			block /= 2
		}
	}
}
