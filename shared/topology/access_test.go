package topology_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/topology"
)

var update = flag.Bool("update", false, "write deployments/nats/accounts.conf")

const deployment = "../../deployments/nats"

// TestAccountsFile holds the file that is deployed against the tables.
func TestAccountsFile(t *testing.T) {
	var want bytes.Buffer
	must(t, topology.Topology{Prefix: "millrace"}.WriteAccounts(&want, topology.PasswordsFile))
	path := filepath.Join(deployment, "accounts.conf")
	if *update {
		must(t, os.WriteFile(path, want.Bytes(), 0o644))
	}
	got, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%s is not what the tables say: go test ./shared/topology -run TestAccountsFile -update", path)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Each row is about things that there are, and no service may change the consumers of another.
func TestAccesses(t *testing.T) {
	top := topology.Topology{Prefix: "t"}
	rows, subjects := make(map[string]string), []string(nil)
	for _, s := range top.Streams() {
		rows[s.Name] = s.Config.Name
		subjects = append(subjects, s.Config.Subjects...)
	}
	durable := make(map[string]bool) // streams with durable consumers
	consumers := make(map[string]bool)
	for _, c := range top.Consumers() {
		durable[c.Stream], consumers[c.Config.Durable] = true, true
	}
	for _, a := range topology.Accesses() {
		for _, name := range slices.Concat(a.Reads, a.Writes, a.Purges, a.Follows) {
			if rows[name] == "" {
				t.Errorf("%s: no stream or bucket %s", a.Service, name)
			}
		}
		for _, c := range a.Consumes {
			if !consumers[c] {
				t.Errorf("%s: no consumer %s", a.Service, c)
			}
		}
		for _, f := range a.Follows {
			if durable[f] {
				t.Errorf("%s follows %s, which has durable consumers: being allowed to make one is being allowed to change them", a.Service, f)
			}
		}
		for _, s := range a.Publishes {
			if !slices.ContainsFunc(subjects, func(wide string) bool { return server.SubjectsCollide(wide, top.Subject(s)) }) {
				t.Errorf("%s: no stream takes %s", a.Service, s)
			}
		}
	}
}

// TestLeastPrivilege says for itself what must never be, whatever the table says.
func TestLeastPrivilege(t *testing.T) {
	top := topology.Topology{Prefix: "t"}
	readers := map[string][]string{ // of what holds secrets
		topology.Keys:       nil,
		topology.Connectors: {"scanner", "importer", "exporter"},
		topology.Webhooks:   {"webhooks"},
		topology.Answers:    nil,
	}
	for _, u := range top.Users() {
		if u.Name == "admin" || u.Name == topology.AllInOne {
			continue
		}
		may := func(subject string) bool { return matches(u.Publish, subject) && !matches(u.Deny, subject) }
		for _, s := range top.Streams() {
			for _, verb := range []string{"CREATE", "UPDATE", "DELETE", "RESTORE", "SNAPSHOT", "MSG.DELETE"} {
				if may("$JS.API.STREAM." + verb + "." + s.Config.Name) {
					t.Errorf("%s may %s stream %s", u.Name, verb, s.Name)
				}
			}
			for _, r := range []string{"$JS.API.DIRECT.GET.%s", "$JS.API.DIRECT.GET.%s.x", "$JS.API.STREAM.MSG.GET.%s", "$JS.API.CONSUMER.CREATE.%s.x.y"} {
				by, secret := readers[s.Name]
				if secret && may(fmt.Sprintf(r, s.Config.Name)) && !slices.Contains(by, u.Name) {
					t.Errorf("%s may read %s", u.Name, s.Name)
				}
			}
		}
		for _, c := range top.Consumers() {
			s := top.Stream(c.Stream)
			mine := slices.ContainsFunc(topology.Accesses(), func(a topology.Access) bool {
				return a.Service == u.Name && slices.Contains(a.Consumes, c.Config.Durable)
			})
			for _, subject := range []string{"$JS.API.CONSUMER.MSG.NEXT." + s + "." + c.Config.Durable, "$JS.ACK." + s + "." + c.Config.Durable + ".1"} {
				if may(subject) != mine {
					t.Errorf("%s may publish on %s: %v", u.Name, subject, !mine)
				}
			}
			resets := slices.ContainsFunc(topology.Accesses(), func(a topology.Access) bool {
				return a.Service == u.Name && slices.Contains(a.Resets, c.Config.Durable)
			})
			if subject := "$JS.API.CONSUMER.RESET." + s + "." + c.Config.Durable; may(subject) != resets {
				t.Errorf("%s may publish on %s: %v", u.Name, subject, !resets)
			}
			for _, verb := range []string{"CREATE.%s.%s.x", "CREATE.%s.%s", "DURABLE.CREATE.%s.%s", "DELETE.%s.%s", "PAUSE.%s.%s"} {
				if subject := "$JS.API.CONSUMER." + fmt.Sprintf(verb, s, c.Config.Durable); may(subject) {
					t.Errorf("%s may publish on %s", u.Name, subject)
				}
			}
		}
		for _, s := range u.Subscribe {
			if !strings.HasPrefix(s, "_INBOX") && !(u.Name == "client" && s == "t.event.>") {
				t.Errorf("%s may subscribe to %s", u.Name, s)
			}
		}
	}
	for _, refused := range [][2]string{
		{"worker", "t.media.i.o.v"}, {"worker", "t.run.requested.p"}, {"worker", "$KV.t-run.r"}, {"worker", "t.event.prompt_run.completed.i.r"},
		{"debouncer", "t.task.live.j.o"}, {"debouncer", "t.arrival.a.o"}, {"debouncer", "$KV.t-automations.a"},
		{"scanner", "t.event.import_job.completed.i.j"}, {"scanner", "t.timer.window.a.e"}, {"scanner", "$KV.t-connectors.c"}, {"scanner", "t.dead.importer.c"},
		{"importer", "t.task.live.j.o"}, {"importer", "t.job.requested.live.j"}, {"importer", "$JS.API.STREAM.PURGE.t-events"},
		{"preset-trigger", "t.media.i.o.v"}, {"preset-trigger", "$KV.t-job.j"}, {"notifier", "t.arrival.a.o"}, {"client", "$JS.API.INFO"},
	} {
		for _, u := range top.Users() {
			if u.Name == refused[0] && matches(u.Publish, refused[1]) {
				t.Errorf("%s may publish on %s", u.Name, refused[1])
			}
		}
	}
}

// guarded is a server with the accounts of a deployment, whose passwords are the names of the users.
type guarded struct {
	t   *testing.T
	srv *server.Server
	top topology.Topology
}

func guard(t *testing.T) *guarded {
	t.Helper()
	top := topology.Topology{Prefix: "t"}
	passwords := "SYS_PASSWORD: sys\n"
	for _, u := range top.Users() {
		passwords += topology.PasswordVariable(u.Name) + ": " + u.Name + "\n"
	}
	var conf bytes.Buffer
	fmt.Fprintf(&conf, "listen: \"127.0.0.1:-1\"\njetstream { store_dir: %q }\n", t.TempDir())
	must(t, top.WriteAccounts(&conf, passwords))
	path := filepath.Join(t.TempDir(), "nats.conf")
	must(t, os.WriteFile(path, conf.Bytes(), 0o600))
	opts, err := server.ProcessConfigFile(path)
	must(t, err)
	opts.NoSigs, opts.NoLog = true, true
	srv, err := server.NewServer(opts)
	must(t, err)
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server did not start")
	}
	return &guarded{t, srv, top}
}

// caller is a connection that tells what it was refused.
type caller struct {
	t       *testing.T
	nc      *nats.Conn
	refused chan error
}

func (g *guarded) as(user string) *caller {
	g.t.Helper()
	c := &caller{t: g.t, refused: make(chan error, 1000)}
	inbox := topology.Inbox(user)
	if user == "client" {
		inbox = "_INBOX"
	}
	var err error
	c.nc, err = nats.Connect(g.srv.ClientURL(), nats.UserInfo(user, user), nats.CustomInboxPrefix(inbox),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.refused <- err }))
	must(g.t, err)
	g.t.Cleanup(c.nc.Close)
	return c
}

// mayPublish reports whether the user may publish on a subject; it does.
func (c *caller) mayPublish(subject string) bool {
	c.t.Helper()
	must(c.t, c.nc.Publish(subject, nil))
	return c.wasAllowed()
}

// published publishes on all subjects and returns those that were not refused.
func (c *caller) published(subjects []string) []string {
	c.t.Helper()
	left := make(map[string]bool)
	for _, subject := range subjects {
		left[subject] = true
		must(c.t, c.nc.Publish(subject, nil))
	}
	must(c.t, c.nc.Flush())
	for late := time.After(10 * time.Second); len(left) > 0; { // the client hands errors to a goroutine of its own
		select {
		case err := <-c.refused:
			_, after, _ := strings.Cut(err.Error(), `Publish to "`)
			subject, _, _ := strings.Cut(after, `"`)
			if !errors.Is(err, nats.ErrPermissionViolation) || !left[subject] {
				c.t.Fatal(err)
			}
			delete(left, subject)
		case <-late:
			return slices.Sorted(maps.Keys(left))
		}
	}
	return nil
}

func (c *caller) maySubscribe(subject string) bool {
	c.t.Helper()
	sub, err := c.nc.SubscribeSync(subject)
	must(c.t, err)
	defer func() { _ = sub.Unsubscribe() }()
	return c.wasAllowed()
}

// wasAllowed asks the server for an answer: what it refused it has said by then, on the same connection.
func (c *caller) wasAllowed() bool {
	c.t.Helper()
	must(c.t, c.nc.Flush())
	// The client hands errors to a goroutine of its own, in order; LastError is set before.
	err := c.nc.LastError()
	if err == nil {
		return true
	}
	if !errors.Is(err, nats.ErrPermissionViolation) {
		c.t.Fatal(err)
	}
	return false
}

func concrete(subject string) string {
	return strings.NewReplacer("*", "x", ">", "x").Replace(subject)
}

// TestUsersAreRefused publishes, as each user, on all there is to publish on, and wants exactly what the table allows.
func TestUsersAreRefused(t *testing.T) {
	g := guard(t)
	admin := g.as("admin")
	js, err := jetstream.New(admin.nc)
	must(t, err)
	must(t, g.top.Apply(t.Context(), js))

	// Everything that could be done to this deployment.
	var things []string
	for _, s := range g.top.Streams() {
		for _, subject := range s.Config.Subjects {
			things = append(things, concrete(subject))
		}
		name := s.Config.Name
		for _, api := range []string{"STREAM.CREATE.%s", "STREAM.UPDATE.%s", "STREAM.DELETE.%s", "STREAM.PURGE.%s", "STREAM.RESTORE.%s",
			"STREAM.SNAPSHOT.%s", "STREAM.MSG.DELETE.%s", "STREAM.MSG.GET.%s", "DIRECT.GET.%s", "CONSUMER.CREATE.%s.x.y", "CONSUMER.DURABLE.CREATE.%s.x",
			"CONSUMER.DELETE.%s.x", "CONSUMER.MSG.NEXT.%s.x", "CONSUMER.PAUSE.%s.x", "CONSUMER.RESET.%s.x"} {
			things = append(things, "$JS.API."+fmt.Sprintf(api, name))
		}
	}
	for _, c := range g.top.Consumers() {
		s := g.top.Stream(c.Stream)
		things = append(things, "$JS.API.CONSUMER.MSG.NEXT."+s+"."+c.Config.Durable, "$JS.ACK."+s+"."+c.Config.Durable+".1.1.1.1.1",
			"$JS.API.CONSUMER.CREATE."+s+"."+c.Config.Durable+".x", "$JS.API.CONSUMER.DELETE."+s+"."+c.Config.Durable)
	}
	things = append(things, "t.api.indexes.list", "t.command.indexes.create", "$SRV.PING", "other.subject", "$SYS.REQ.SERVER.PING", "_INBOX_importer.x", "_INBOX.x")

	for _, u := range g.top.Users() {
		t.Run(u.Name, func(t *testing.T) {
			// What would take effect is only asked of those who must be refused.
			forbidden := slices.DeleteFunc(slices.Clone(things), func(thing string) bool {
				return matches(u.Publish, thing) && !matches(u.Deny, thing)
			})
			if len(forbidden) == 0 || len(forbidden) == len(things) {
				t.Errorf("%s is refused %d of %d", u.Name, len(forbidden), len(things))
			}
			c := g.as(u.Name)
			c.t = t
			for _, thing := range c.published(forbidden) {
				t.Errorf("%s may publish on %s", u.Name, thing)
			}
			c.nc.Close()
			for _, other := range g.top.Users() {
				inbox := topology.Inbox(other.Name) + ".>"
				if other.Name == u.Name {
					continue
				}
				c := g.as(u.Name)
				c.t = t
				if c.maySubscribe(inbox) {
					t.Errorf("%s may read the inbox of %s", u.Name, other.Name)
				}
				c.nc.Close()
			}
			if u.Name == "client" || u.Name == "admin" || u.Name == topology.AllInOne {
				return
			}
			for _, subject := range []string{"t.>", "t.event.>", "t.api.>", ">", "_INBOX.>", "$JS.>", "$KV.>"} {
				c := g.as(u.Name)
				c.t = t
				if c.maySubscribe(subject) {
					t.Errorf("%s may subscribe to %s", u.Name, subject)
				}
				c.nc.Close()
			}
		})
	}
}

// TestClientUser does what a client does: it asks, and hears; and is refused the rest.
func TestClientUser(t *testing.T) {
	g := guard(t)
	admin, client := g.as("admin"), g.as("client")
	_, err := admin.nc.QueueSubscribe("t.api.indexes.list", "q", func(m *nats.Msg) { _ = m.Respond([]byte("[]")) })
	must(t, err)
	must(t, admin.nc.Flush())
	m, err := client.nc.Request("t.api.indexes.list", nil, 10*time.Second)
	if err != nil || string(m.Data) != "[]" {
		t.Errorf("%v %v", m, err)
	}
	if !client.maySubscribe("t.event.>") {
		t.Error("a client cannot hear of events")
	}
	for _, subject := range []string{"t.event.import_job.completed.i.j", "t.notification.c", "t.task.live.j.o", "$JS.API.INFO", "$KV.t-keys.x"} {
		c := g.as("client")
		if c.mayPublish(subject) {
			t.Errorf("a client may publish on %s", subject)
		}
	}
	for _, subject := range []string{"t.api.>", "t.>", "_INBOX_admin.>", "$KV.>"} {
		c := g.as("client")
		if c.maySubscribe(subject) {
			t.Errorf("a client may subscribe to %s", subject)
		}
	}
	// Nobody without a user.
	if nc, err := nats.Connect(g.srv.ClientURL()); err == nil {
		nc.Close()
		t.Error("anybody may connect")
	}
	_, _, err = net.SplitHostPort(g.srv.Addr().String())
	must(t, err)
}

func matches(patterns []string, subject string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		pt, st := strings.Split(p, "."), strings.Split(subject, ".")
		for i, token := range pt {
			switch {
			case token == ">":
				return len(st) > i
			case i >= len(st) || token != "*" && token != st[i]:
				return false
			}
		}
		return len(pt) == len(st)
	})
}
