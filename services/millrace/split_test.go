package millrace_test

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"millrace/services/millrace/client"
	"millrace/shared/broker/brokertest"
	"millrace/shared/topology"
)

// TestStorySplit tells the same story on eight separate processes and a worker, each under a user of its own, over a
// cluster of three brokers with three copies of everything. On the way each process is killed once, some for as long as others need them.
func TestStorySplit(t *testing.T) {
	t.Parallel()
	bin := program(t)
	const prefix, interval = "split", "4s" // three copies on one disk take their time
	nodes := brokertest.Cluster(t, 3, accounts(t, prefix))
	dir := t.TempDir()
	inbox, library := filepath.Join(dir, "inbox"), filepath.Join(dir, "library")
	must(t, os.Mkdir(inbox, 0o755))

	ops, procs := map[string]string{}, map[string]*process{}
	add := func(name string, args ...string) {
		addr := freeAddr(t)
		args = append([]string{name}, args...)
		args = append(args, "--nats-url", nodes.URLAs(as(name)), "--prefix", prefix, "--replicas", "3", "--ops", addr)
		ops[name], procs[name] = "http://"+addr, prepareFile(t, name, bin, args...)
	}
	shared := []string{"--secrets-key", filepath.Join(dir, "secrets.key"), "--allow-dir", inbox}
	http := freeAddr(t)
	add("admin", append(shared, "--http", http, "--api-key", apiKey, "--extra-debounce-intervals", interval)...)
	add("scanner", shared...)
	add("debouncer")
	add("importer", append(shared, "--library", library)...)
	add("preset-trigger")
	add("exporter", shared...)
	add("webhooks", "--secrets-key", filepath.Join(dir, "secrets.key"))
	add("worker", "--exec", countBytes, "--media-dir", library)

	restart := func(name string) {
		t.Helper()
		procs[name].restart()
		procs[name].waitReady(ops[name])
	}
	down := func() {
		for _, p := range procs {
			p.kill()
		}
	}
	up := func() {
		t.Helper()
		for _, p := range procs { // in any order
			p.start()
		}
		for name, p := range procs {
			p.waitReady(ops[name])
		}
	}
	up()

	s := &site{
		pipeline: wire(t, client.New("http://"+http, apiKey), inbox), interval: interval, library: library, down: down, up: up,
	}
	// What happens at the first time of each scene.
	events := map[scene]func(){
		windowOpen: func() { restart("debouncer") },
		jobBegun: func() {
			restart("importer") // with files in hand
			procs["preset-trigger"].kill()
			procs["worker"].kill()
		},
		jobDone:  func() { restart("preset-trigger") },
		runBegun: func() { restart("worker") },
		paused:   func() { restart("scanner") },
		resuming: func() { restart("admin") },
	}
	s.at = func(sc scene) {
		if do := events[sc]; do != nil {
			delete(events, sc)
			do()
		}
	}
	s.automate(s.index, interval, nil)
	s.tell()
	for sc := range events {
		t.Errorf("the story did not come to where %s", sc)
	}
	atRest(t, nodes.Connect(), prefix)
	media := s.everything()
	procs["importer"].stop()
	nothingHalfDone(t, library, media)
	// Each service had all permissions it needs.
	for i := range 3 {
		for line := range strings.Lines(nodes.Log(i)) {
			if strings.Contains(line, "Violation") {
				t.Error(line)
			}
		}
	}
}

// accounts is a broker with the accounts and users of deployments/nats, each user with its name as password.
func accounts(t testing.TB, prefix string) brokertest.NodeOption {
	t.Helper()
	top := topology.Topology{Prefix: prefix}
	passwords := "SYS_PASSWORD: sys\n"
	for _, u := range top.Users() {
		passwords += topology.PasswordVariable(u.Name) + ": " + u.Name + "\n"
	}
	var conf strings.Builder
	must(t, top.WriteAccounts(&conf, passwords))
	return brokertest.Accounts(conf.String(), as(topology.AllInOne), nats.CustomInboxPrefix(topology.Inbox(topology.AllInOne)))
}

func as(user string) *url.Userinfo { return url.UserPassword(user, user) }
