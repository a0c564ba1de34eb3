package millrace_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/services/millrace/client"
	"millrace/shared/media/samples"
	"millrace/shared/process/processtest"
	"millrace/shared/topology"
)

// What the tests of this package stand on: the real programs, built once, as processes that can be killed; folders with
// real media; and a client.

// apiKey is the key of every deployment here.
const apiKey = "a-key-for-the-tests-of-millrace"

// patience is how long a fact may take on a machine that is busy with other tests. No test waits for time itself.
const patience = 60 * time.Second

// builds is where programs are built.
var builds string

// build builds a millrace as `make build` does, with tags.
func build(tags string) (string, error) {
	path := filepath.Join(builds, "millrace"+tags)
	cmd := exec.Command("go", "build", "-tags", tags, "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, "millrace/services/millrace/cmd/millrace")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build millrace: %w\n%s", err, out)
	}
	return path, nil
}

// binary is the program, which has every service as a subcommand.
var binary = sync.OnceValues(func() (string, error) { return build("") })

func TestMain(m *testing.M) {
	var err error
	if builds, err = os.MkdirTemp("", "millrace-programs-"); err == nil {
		err = os.Chmod(builds, 0o755) // some are run by other users
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(builds)
	os.Exit(code)
}

func program(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	path, err := binary()
	must(t, err)
	return path
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until fact returns nil, and fails the test with its last error if that takes too long.
func eventually(t testing.TB, what string, fact func() error) {
	t.Helper()
	within(t, patience, what, fact)
}

func within(t testing.TB, limit time.Duration, what string, fact func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fact()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s: %v", limit, what, err)
		}
		<-tick.C
	}
}

// given are the addresses that freeAddr has returned.
var given sync.Map

// freeAddr is an address on loopback that is for the caller alone, also while what listens there is down: it is given
// once, and its port is below those that systems give to connections they open (32768 and up on Linux, 49152 elsewhere).
func freeAddr(t testing.TB) string {
	t.Helper()
	var taken error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20_000+rand.IntN(12_000))
		if _, twice := given.LoadOrStore(addr, true); twice {
			continue
		}
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", addr)
		if err == nil {
			_ = l.Close()
			return addr
		}
		taken = err
	}
	t.Fatal("no free port:", taken)
	return ""
}

// process is a program that was started. Its methods are for one goroutine.
type process struct {
	t    testing.TB
	name string
	path string
	args []string
	env  []string
	user *syscall.Credential // nil: as ourselves
	out  string              // file of all it wrote, over all its lives

	cmd    *exec.Cmd
	exited <-chan struct{}
}

// start starts millrace, to be killed when the test ends.
func start(t testing.TB, args ...string) *process {
	t.Helper()
	p := prepareFile(t, "millrace", program(t), args...)
	p.start()
	return p
}

func prepareFile(t testing.TB, name, path string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, path: path, args: args, out: filepath.Join(t.TempDir(), name+".log")}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			out := p.output()
			t.Logf("%s wrote, in the end:\n%s", name, out[max(0, len(out)-6000):])
		}
	})
	return p
}

func (p *process) start() {
	p.t.Helper()
	out, err := os.OpenFile(p.out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(p.t, err)
	defer func() { _ = out.Close() }() // the process has its own descriptor
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), p.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.user}
	exited, err := processtest.Start(cmd)
	must(p.t, err)
	p.cmd, p.exited = cmd, exited
}

// kill is kill -9. It returns when the process is gone.
func (p *process) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		<-p.exited
		p.cmd = nil
	}
}

// restart is kill -9 and another start.
func (p *process) restart() {
	p.t.Helper()
	p.kill()
	p.start()
}

// stop asks the process to end, and fails the test when it does not end well.
func (p *process) stop() {
	p.t.Helper()
	must(p.t, p.cmd.Process.Signal(os.Interrupt))
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.t.Fatalf("%s does not stop", p.name)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("%s ended with %d", p.name, code)
	}
	p.cmd = nil
}

// ended returns an error when the process has ended by itself.
func (p *process) ended() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%s ended: %v", p.name, p.cmd.ProcessState)
	default:
		return nil
	}
}

func (p *process) output() string {
	data, err := os.ReadFile(p.out)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// waitReady waits until /readyz at url says yes.
func (p *process) waitReady(url string) {
	p.t.Helper()
	eventually(p.t, p.name+" is ready", func() error {
		if err := p.ended(); err != nil {
			p.t.Fatal(err)
		}
		return ready(p.t.Context(), url)
	})
}

func ready(ctx context.Context, url string) error {
	res, err := send(ctx, http.MethodGet, url+"/readyz", nil, nil)
	if err == nil && res.status != http.StatusOK {
		err = fmt.Errorf("not ready: %s", res.body)
	}
	return err
}

// probe has connections of its own: what a killed process leaves behind in the pool of another client is not met again.
var probe = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// response is an answer read to its end.
type response struct {
	status int
	header http.Header
	body   []byte
}

func send(ctx context.Context, method, url string, header http.Header, body []byte) (response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return response{}, err
	}
	maps.Copy(req.Header, header)
	res, err := probe.Do(req)
	if err != nil {
		return response{}, err
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	return response{res.StatusCode, res.Header, data}, err
}

// allInOne is `millrace up` as a process, on one data folder over all its lives.
type allInOne struct {
	*process
	url, data, inbox, library string
	api                       *client.Client
}

// newUp prepares an all-in-one, not started yet. Flags given here come last.
func newUp(t testing.TB, flags ...string) *allInOne {
	t.Helper()
	return newUpOf(t, program(t), flags...)
}

// newUpOf is newUp of another binary.
func newUpOf(t testing.TB, path string, flags ...string) *allInOne {
	t.Helper()
	dir := t.TempDir()
	addr := freeAddr(t)
	up := &allInOne{
		url: "http://" + addr, data: filepath.Join(dir, "data"), inbox: filepath.Join(dir, "inbox"), library: filepath.Join(dir, "library"),
	}
	must(t, os.Mkdir(up.inbox, 0o755))
	up.process = prepareFile(t, "millrace", path, append([]string{
		"up", "--data", up.data, "--http", addr, "--api-key", apiKey, "--allow-dir", up.inbox, "--allow-endpoint", "127.0.0.1", "--library", up.library,
		"--extra-debounce-intervals", "1s,2s",
	}, flags...)...)
	up.api = client.New(up.url, apiKey)
	return up
}

func startUp(t testing.TB, flags ...string) *allInOne {
	t.Helper()
	up := newUp(t, flags...)
	up.start()
	up.waitReady(up.url)
	return up
}

// pipeline is a watched folder, wired to an index and a prompt.
type pipeline struct {
	t      testing.TB
	api    *client.Client
	inbox  string
	exists map[string][]byte // what lies in the inbox

	connector, index, prompt string
}

// wire makes a connector for the inbox, an index and a prompt. An automation joins them; see automate.
func wire(t testing.TB, api *client.Client, inbox string) *pipeline {
	t.Helper()
	p := &pipeline{t: t, api: api, inbox: inbox, exists: map[string][]byte{}}
	p.connector = p.create("/connectors/dir", "connector_id", obj{"name": "Inbox", "path": inbox, "import_mode": "new_only"})
	p.index = p.create("/indexes", "index_id", obj{"name": "Main"})
	p.prompt = p.create("/prompts", "prompt_id", obj{"name": "Count", "prompt_text": "Count the bytes.", "json_schema": obj{"type": "object"}})
	return p
}

type obj map[string]any

func (p *pipeline) create(path, id string, body obj) string {
	p.t.Helper()
	var out map[string]any
	must(p.t, p.api.Do(p.t.Context(), http.MethodPost, path, body, &out))
	return out[id].(string)
}

// automate puts the import automation of an index; what change says wins over the usual.
func (p *pipeline) automate(index, interval string, change obj) {
	p.t.Helper()
	body := obj{"connector_id": p.connector, "debounce_interval": interval, "prompt_preset": obj{"prompt_id": p.prompt}}
	maps.Copy(body, change)
	must(p.t, p.api.Do(p.t.Context(), http.MethodPut, "/indexes/"+index+"/automations/import", body, nil))
}

func (p *pipeline) pause()  { p.t.Helper(); p.steer("pause") }
func (p *pipeline) resume() { p.t.Helper(); p.steer("resume") }

func (p *pipeline) steer(verb string) {
	p.t.Helper()
	must(p.t, p.api.Do(p.t.Context(), http.MethodPost, "/indexes/"+p.index+"/automations/import/"+verb, nil, nil))
}

// drop writes a file as an uploader does.
func (p *pipeline) drop(name string, data []byte) {
	p.t.Helper()
	must(p.t, os.WriteFile(filepath.Join(p.inbox, name), data, 0o644))
	p.exists[name] = data
}

func (p *pipeline) remove(name string) {
	p.t.Helper()
	must(p.t, os.Remove(filepath.Join(p.inbox, name)))
}

func sample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := samples.FS.ReadFile(name)
	must(t, err)
	return data
}

// automation is what tests look at beyond what the client shows.
type automation struct {
	client.Automation
	PendingFiles int `json:"pending_files"`
}

func (p *pipeline) automation() (a automation, err error) {
	err = p.api.Get(p.t.Context(), "/indexes/"+p.index+"/automations/import", &a)
	return a, err
}

// pending waits until n files wait in the open window.
func (p *pipeline) pending(n int) (a automation) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%d files in the window", n), func() (err error) {
		if a, err = p.automation(); err == nil && a.PendingFiles < n {
			err = fmt.Errorf("%d files", a.PendingFiles)
		}
		return err
	})
	return a
}

// jobs lists the jobs of an index, newest first.
func (p *pipeline) jobs(index string) (list []client.Job, err error) {
	err = p.api.Get(p.t.Context(), "/import-jobs?index_id="+index, &list)
	return list, err
}

// nthJob waits for the n-th job of the index. There must not be more.
func (p *pipeline) nthJob(n int) client.Job {
	p.t.Helper()
	var list []client.Job
	eventually(p.t, fmt.Sprintf("job %d", n), func() (err error) {
		if list, err = p.jobs(p.index); err == nil && len(list) < n {
			err = fmt.Errorf("%d jobs", len(list))
		}
		return err
	})
	if len(list) > n {
		p.t.Fatalf("%d jobs, want %d: %+v", len(list), n, list)
	}
	return list[0]
}

// follow waits for the end of a job. On the way its progress must not go backwards, and in the end it must add up (I7).
func (p *pipeline) follow(id string, limit time.Duration) (j client.Job) {
	p.t.Helper()
	done := 0
	within(p.t, limit, "job "+id+" ends", func() error {
		var now client.Job
		if err := p.api.Get(p.t.Context(), "/import-jobs/"+id, &now); err != nil {
			return err
		}
		if n := settled(now); n < done {
			p.t.Errorf("progress went back from %d to %d", done, n)
		}
		j, done = now, settled(now)
		if !j.Done() {
			return fmt.Errorf("%s: %+v", j.Status, j.Progress)
		}
		return nil
	})
	if j.Status != "completed" || settled(j) != j.Progress.Total || len(j.Videos) != j.Progress.Imported ||
		len(j.Failed) != j.Progress.Failed || len(j.Skipped) != j.Progress.Skipped {
		p.t.Errorf("job %s: %s, %+v, %d videos, %d failed, %d skipped", j.ID, j.Status, j.Progress, len(j.Videos), len(j.Failed), len(j.Skipped))
	}
	return j
}

func settled(j client.Job) int { return j.Progress.Imported + j.Progress.Skipped + j.Progress.Failed }

// medium is what tests look at beyond what the client shows.
type medium struct {
	client.Video
	Connector string `json:"source_connector_id"`
	Path      string `json:"source_path"`
	Version   string `json:"source_version"`
	Job       string `json:"job_id"`
	Size      int64  `json:"size_bytes"`
	SHA256    string `json:"sha256"`
}

// media lists an index, by id.
func (p *pipeline) media(index string) map[string]medium {
	p.t.Helper()
	all := map[string]medium{}
	for m, err := range client.All[medium](p.t.Context(), p.api, "/indexes/"+index+"/videos", url.Values{"limit": {"100"}}) {
		must(p.t, err)
		all[m.ID] = m
	}
	return all
}

// outcomes says what became of each file of a job: imported, skipped: REASON, or failed: REASON.
func (p *pipeline) outcomes(j client.Job) map[string]string {
	p.t.Helper()
	out := map[string]string{}
	note := func(path, what string) {
		if had, twice := out[path]; twice {
			p.t.Errorf("%q is %s and %s", path, had, what)
		}
		out[path] = what
	}
	media := p.media(p.index)
	for _, v := range j.Videos {
		m, ok := media[v]
		if !ok || m.Job != j.ID {
			p.t.Errorf("%s is not in the index as a medium of job %s: %+v", v, j.ID, m)
		}
		note(m.Path, "imported")
	}
	for _, f := range j.Skipped {
		note(f["path"], "skipped: "+f["reason"])
	}
	for _, f := range j.Failed {
		reason, _, _ := strings.Cut(f["error"], ":")
		note(f["path"], "failed: "+reason)
	}
	return out
}

// genuine holds media against the files they came from: what the record says, and what lies in the library (I5).
func (p *pipeline) genuine(library string, ids []string) {
	p.t.Helper()
	media := p.media(p.index)
	kept := files(p.t, library)
	for _, id := range ids {
		m := media[id]
		want := hash(p.exists[m.Path])
		if m.SHA256 != want || m.Size != int64(len(p.exists[m.Path])) {
			p.t.Errorf("%q: recorded %s of %d bytes, is %s of %d", m.Path, m.SHA256, m.Size, want, len(p.exists[m.Path]))
		}
		if library == "" {
			continue
		}
		if got := kept[id]; got != want {
			p.t.Errorf("%q: the library has %q, want %s", m.Path, got, want)
		}
	}
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// files hashes every file of a library, by the medium it is named after. What a process has in hand is left out.
func files(t testing.TB, library string) map[string]string {
	t.Helper()
	found := map[string]string{}
	if library == "" {
		return found
	}
	must(t, filepath.WalkDir(library, func(path string, e os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.Name() == ".millrace-tmp":
			return filepath.SkipDir
		case !e.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(path)
		found[strings.TrimSuffix(e.Name(), filepath.Ext(path))] = hash(data)
		return err
	}))
	return found
}

// runs lists all runs, newest first.
func (p *pipeline) runs() (list []client.Run, err error) {
	err = p.api.Get(p.t.Context(), "/prompt-runs", &list)
	return list, err
}

// nthRun waits for the n-th run and returns it. There must not be more.
func (p *pipeline) nthRun(n int) string {
	p.t.Helper()
	var list []client.Run
	eventually(p.t, fmt.Sprintf("run %d", n), func() (err error) {
		if list, err = p.runs(); err == nil && len(list) < n {
			err = fmt.Errorf("%d runs", len(list))
		}
		return err
	})
	if len(list) > n {
		p.t.Fatalf("%d runs, want %d", len(list), n)
	}
	return list[0].ID
}

// followRun waits for the end of a run and holds it against its job: exactly the media that came in (I4), each with the
// result that the command printed about exactly its bytes.
func (p *pipeline) followRun(id string, j client.Job, limit time.Duration) {
	p.t.Helper()
	var r client.Run
	within(p.t, limit, "run "+id+" ends", func() error {
		r = client.Run{}
		if err := p.api.Get(p.t.Context(), "/prompt-runs/"+id, &r); err != nil {
			return err
		}
		if !r.Done() {
			return errors.New(r.Status)
		}
		return nil
	})
	if r.Status != "completed" {
		p.t.Errorf("run %s: %s", id, r.Status)
	}
	if got, want := slices.Sorted(slices.Values(r.Context.Videos)), slices.Sorted(slices.Values(j.Videos)); !slices.Equal(got, want) {
		p.t.Errorf("run %s has\n%v, its job\n%v", id, got, want)
	}
	media := p.media(p.index)
	for _, v := range j.Videos {
		var page client.Page[struct {
			Metadata struct{ Bytes int }
		}]
		must(p.t, p.api.Get(p.t.Context(), "/prompt-runs/"+id+"/results?video_id="+v, &page))
		if want := len(p.exists[media[v].Path]); len(page.Data) != 1 || page.Data[0].Metadata.Bytes != want {
			p.t.Errorf("results of %q: %+v, want one of %d bytes", media[v].Path, page.Data, want)
		}
	}
}

// countBytes is the command of the executor here: it prints how many bytes the medium has.
const countBytes = `printf '{"bytes":%d}' "$(wc -c <"$1")"`

// atRest waits until nothing is under way, and fails when something is left that will never be (I9).
func atRest(t testing.TB, nc *nats.Conn, prefix string) {
	t.Helper()
	js, err := jetstream.New(nc)
	must(t, err)
	eventually(t, "everything comes to rest", func() error { return resting(t.Context(), js, topology.Topology{Prefix: prefix}) })
	for _, d := range deadLetters(t, nc, prefix) {
		t.Errorf("dead: %s", d)
	}
}

// resting is nil when nothing is under way.
func resting(ctx context.Context, js jetstream.JetStream, top topology.Topology) error {
	for _, name := range []string{topology.Arrivals, topology.Jobs, topology.Tasks, topology.Files, topology.Runs} {
		s, err := js.Stream(ctx, top.Stream(name))
		if err != nil {
			return err
		}
		if n := s.CachedInfo().State.Msgs; n > 0 {
			return fmt.Errorf("%d messages in %s", n, name)
		}
	}
	for _, c := range top.Consumers() {
		cons, err := js.Consumer(ctx, top.Stream(c.Stream), c.Config.Durable)
		if err != nil {
			return err
		}
		if i := cons.CachedInfo(); i.NumPending > 0 || i.NumAckPending > 0 {
			return fmt.Errorf("%s has %d pending, %d unacknowledged", c.Config.Durable, i.NumPending, i.NumAckPending)
		}
	}
	return nil
}

// deadLetters returns what is in the dead stream.
func deadLetters(t testing.TB, nc *nats.Conn, prefix string) []json.RawMessage {
	t.Helper()
	var all []json.RawMessage
	for _, m := range stored(t, nc, topology.Topology{Prefix: prefix}.Stream(topology.DeadLetters)) {
		all = append(all, m.Data)
	}
	return all
}

// stored reads a whole stream.
func stored(t testing.TB, nc *nats.Conn, name string) (msgs []*jetstream.RawStreamMsg) {
	t.Helper()
	js, err := jetstream.New(nc)
	must(t, err)
	s, err := js.Stream(t.Context(), name)
	must(t, err)
	st := s.CachedInfo().State
	for seq := st.FirstSeq; seq <= st.LastSeq && st.Msgs > 0; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		must(t, err)
		msgs = append(msgs, m)
	}
	return msgs
}

// dial connects to a broker that listens.
func dial(t testing.TB, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	must(t, err)
	t.Cleanup(nc.Close)
	return nc
}
