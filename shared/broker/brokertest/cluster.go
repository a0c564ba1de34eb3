package brokertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	neturl "net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"millrace/shared/broker"
	"millrace/shared/process/processtest"
)

// readyWithin is how long a cluster may take to elect and catch up. It takes about two seconds on an idle machine.
const readyWithin = 60 * time.Second

// Nodes is a cluster of nats-server processes on loopback, with JetStream and sync_interval: always. Its methods fail
// the test instead of returning an error, and are for one goroutine.
type Nodes struct {
	t     testing.TB
	nodes []*node
	http  http.Client
	nodeOptions
}

// NodeOption changes the nodes of Cluster.
type NodeOption func(*nodeOptions)

type nodeOptions struct {
	conf string
	user *neturl.Userinfo // of Connect and URL
	opts []nats.Option    // of Connect
	dir  string
	link func(from, to int, addr string) string
}

// Accounts puts conf, with accounts and users, behind the configuration of the nodes. Connect and URL are for user; opts
// are what Connect needs as that user.
func Accounts(conf string, user *neturl.Userinfo, opts ...nats.Option) NodeOption {
	return func(o *nodeOptions) { o.conf, o.user, o.opts = conf, user, opts }
}

// In keeps the stores, configurations and logs of the nodes in a folder of the caller: n0, n0.conf, n0.log and so on.
func In(dir string) NodeOption { return func(o *nodeOptions) { o.dir = dir } }

// Between puts something between the nodes, such as a proxy that can be cut: link returns where node from dials instead
// of addr, where node to listens for routes.
func Between(link func(from, to int, addr string) string) NodeOption {
	return func(o *nodeOptions) { o.link = link }
}

type node struct {
	name            string
	dir             string
	client, monitor int // ports

	cmd    *exec.Cmd
	exited <-chan struct{} // closed when cmd is gone
}

// Cluster builds nats-server from its module, starts n nodes (1 is a single server) and waits until they have a leader
// and answer. They are killed when the test ends. Skipped with -short.
func Cluster(t testing.TB, n int, opts ...NodeOption) *Nodes {
	t.Helper()
	var more nodeOptions
	for _, o := range opts {
		o(&more)
	}
	if testing.Short() {
		t.Skip("starts a cluster of processes")
	}
	bin, err := serverBinary()
	if err != nil {
		t.Fatal(err)
	}
	c := &Nodes{t: t, http: http.Client{Timeout: time.Second}, nodeOptions: more}
	if c.dir == "" {
		c.dir = t.TempDir()
	}
	ports := freePorts(t, 3*n)
	for i := range n {
		nd := &node{
			name: fmt.Sprintf("n%d", i), dir: filepath.Join(c.dir, fmt.Sprintf("n%d", i)),
			client: ports[3*i], monitor: ports[3*i+1],
		}
		if err := os.MkdirAll(nd.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		conf := fmt.Sprintf(`
server_name: %s
listen: 127.0.0.1:%d
http: 127.0.0.1:%d
jetstream { store_dir: %q, sync_interval: always, max_file_store: 16GB, max_memory_store: 256MB }
`, nd.name, nd.client, nd.monitor, nd.dir)
		if n > 1 {
			conf += c.routes(i, ports)
		}
		if err := os.WriteFile(nd.conf(), []byte(conf+more.conf), 0o600); err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, nd)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.Kill(i)
		}
		if t.Failed() {
			for _, nd := range c.nodes {
				t.Logf("log of %s, its end:\n%s", nd.name, nd.tail())
			}
		}
	})
	for _, nd := range c.nodes {
		if err := nd.start(bin); err != nil {
			t.Fatal(err)
		}
	}
	c.WaitReady()
	return c
}

// routes is how node i finds the others.
func (c *Nodes) routes(i int, ports []int) string {
	var routes []string
	advertised := ""
	for j := range len(ports) / 3 {
		addr := fmt.Sprintf("127.0.0.1:%d", ports[3*j+2])
		if c.link != nil {
			if j == i {
				continue
			}
			addr = c.link(i, j, addr)
			advertised = "advertise: 127.0.0.1:1, " // what nodes tell each other would lead around the links
		}
		routes = append(routes, "nats-route://"+addr)
	}
	return fmt.Sprintf("cluster { name: test, listen: 127.0.0.1:%d, %sno_advertise: true, routes: [%s] }\n",
		ports[3*i+2], advertised, strings.Join(routes, ", "))
}

// URL lists all nodes, for broker.Dial.
func (c *Nodes) URL() string { return c.URLAs(c.user) }

// URLAs is URL for a user.
func (c *Nodes) URLAs(user *neturl.Userinfo) string {
	var urls []string
	for i := range c.nodes {
		urls = append(urls, c.url(i, user))
	}
	return strings.Join(urls, ",")
}

// NodeURL is the address of one node alone.
func (c *Nodes) NodeURL(i int) string { return c.url(i, c.user) }

func (c *Nodes) url(i int, user *neturl.Userinfo) string {
	return (&neturl.URL{Scheme: "nats", User: user, Host: c.Addr(i)}).String()
}

// Len is how many nodes there are.
func (c *Nodes) Len() int { return len(c.nodes) }

// Addr is where node i listens for clients, without a name or password.
func (c *Nodes) Addr(i int) string { return fmt.Sprintf("127.0.0.1:%d", c.nodes[i].client) }

// Dir is the store of node i.
func (c *Nodes) Dir(i int) string { return c.nodes[i].dir }

// Log is what node i has written.
func (c *Nodes) Log(i int) string {
	c.t.Helper()
	b, err := os.ReadFile(c.nodes[i].log())
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

// Name is the server name of node i, as JetStream reports leaders.
func (c *Nodes) Name(i int) string { return c.nodes[i].name }

// Index is the node with a server name, or -1.
func (c *Nodes) Index(name string) int {
	for i, nd := range c.nodes {
		if nd.name == name {
			return i
		}
	}
	return -1
}

// Connect opens a connection that lasts until the test ends.
func (c *Nodes) Connect() *nats.Conn {
	c.t.Helper()
	nc, err := broker.Dial(c.URL(), c.t.Name(), append(c.opts, broker.LogEvents(testLogger(c.t)))...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// Kill ends node i as kill -9 does, also when it is stopped, and waits until it is gone. Its data stays.
func (c *Nodes) Kill(i int) {
	nd := c.nodes[i]
	if nd.cmd == nil {
		return
	}
	_ = nd.cmd.Process.Kill()
	<-nd.exited
	nd.cmd = nil
}

// Restart starts node i again on its data; a running one is killed first. It does not wait: see WaitReady.
func (c *Nodes) Restart(i int) {
	c.t.Helper()
	c.Kill(i)
	bin, err := serverBinary()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.nodes[i].start(bin); err != nil {
		c.t.Fatal(err)
	}
}

// Stop freezes node i (SIGSTOP): connections stay, nothing answers. Cont ends that.
func (c *Nodes) Stop(i int) { c.signal(i, syscall.SIGSTOP) }

// Cont wakes a node that Stop froze.
func (c *Nodes) Cont(i int) { c.signal(i, syscall.SIGCONT) }

func (c *Nodes) signal(i int, sig syscall.Signal) {
	c.t.Helper()
	if c.nodes[i].cmd == nil {
		c.t.Fatalf("%v to %s: not running", sig, c.nodes[i].name)
	}
	if err := c.nodes[i].cmd.Process.Signal(sig); err != nil {
		c.t.Fatalf("%v to %s: %v", sig, c.nodes[i].name, err)
	}
}

// WaitReady waits until every node that was started and not killed is healthy (its streams current) and all of them
// name the same leader of the JetStream cluster. Frozen nodes must be woken before.
func (c *Nodes) WaitReady() {
	c.t.Helper()
	deadline := time.Now().Add(readyWithin)
	for {
		err := c.Ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("cluster not ready after %s: %v", readyWithin, err)
		}
		time.Sleep(50 * time.Millisecond) // another process: nothing to wait on but asking
	}
}

// MetaLeader is the node that leads the JetStream cluster, or -1.
func (c *Nodes) MetaLeader() int {
	for i, nd := range c.nodes {
		if nd.cmd == nil {
			continue
		}
		if leader, err := c.metaLeader(i); err == nil {
			return c.Index(leader)
		}
	}
	return -1
}

// Ready is nil when what WaitReady waits for is so.
func (c *Nodes) Ready() error {
	leaders := map[string]bool{}
	for i, nd := range c.nodes {
		if nd.cmd == nil {
			continue
		}
		select {
		case <-nd.exited:
			return fmt.Errorf("%s ended: %v\n%s", nd.name, nd.cmd.ProcessState, nd.tail())
		default:
		}
		var health struct{ Status, Error string }
		if err := c.get(i, "/healthz", &health); err != nil {
			return err
		}
		if health.Status != "ok" {
			return fmt.Errorf("%s: %s: %s", nd.name, health.Status, health.Error)
		}
		if len(c.nodes) == 1 {
			continue
		}
		leader, err := c.metaLeader(i)
		if err != nil {
			return err
		}
		leaders[leader] = true
	}
	if len(leaders) > 1 {
		return fmt.Errorf("no agreement on a leader: %v", leaders)
	}
	return nil
}

func (c *Nodes) metaLeader(i int) (string, error) {
	var jsz server.JSInfo
	if err := c.get(i, "/jsz", &jsz); err != nil {
		return "", err
	}
	if jsz.Meta == nil || jsz.Meta.Leader == "" {
		return "", fmt.Errorf("%s knows no leader", c.nodes[i].name)
	}
	return jsz.Meta.Leader, nil
}

func (c *Nodes) get(i int, path string, v any) error {
	url := fmt.Sprintf("http://127.0.0.1:%d%s", c.nodes[i].monitor, path)
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", c.nodes[i].name, err)
	}
	defer func() { _ = res.Body.Close() }()
	if err := json.NewDecoder(res.Body).Decode(v); err != nil {
		return fmt.Errorf("%s%s: %w", c.nodes[i].name, path, err)
	}
	return nil
}

func (n *node) conf() string { return n.dir + ".conf" }
func (n *node) log() string  { return n.dir + ".log" }

func (n *node) start(bin string) error {
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the node has its own descriptor
	cmd := exec.Command(bin, "-c", n.conf())
	cmd.Stdout, cmd.Stderr = log, log
	exited, err := processtest.Start(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	n.cmd, n.exited = cmd, exited
	return nil
}

func (n *node) tail() string {
	b, err := os.ReadFile(n.log())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// serverBinary builds nats-server once and keeps it in the user's cache, by version.
var serverBinary = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		if cache, err = os.MkdirTemp("", "millrace-test-"); err != nil { // stays; there is no end of all tests
			return "", err
		}
	}
	dir := filepath.Join(cache, "millrace-test")
	bin := filepath.Join(dir, "nats-server-"+server.VERSION)
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	out := filepath.Join(tmp, "nats-server")
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, "github.com/nats-io/nats-server/v2")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build nats-server: %w\n%s", err, msg)
	}
	// Packages are tested side by side, and each may be building: the last one wins, all are the same.
	if err := os.Rename(out, bin); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return bin, nil
})

// freePorts finds n ports nobody listens on. They are held together until all are known, so that they differ.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var (
		ports     []int
		listeners []net.Listener
	)
	for range n {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	for _, l := range listeners {
		_ = l.Close()
	}
	return ports
}
