package millrace_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/services/millrace/client"
	"millrace/services/millrace/history"
	"millrace/shared/broker/brokertest"
	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/secret"
	"millrace/shared/topology"
	"millrace/shared/webhook"
)

// TestChaos drives the split deployment on three brokers for a while, with faults that a seed chooses, heals everything,
// waits until all is quiet, and holds what was seen from outside against the invariants (services/millrace/history).
//
//	make chaos                     one minute, any seed
//	make chaos SEED=17 FOR=2m      the same faults again, as far as clocks can
//	make chaos SEED=1 SEEDS=20     seeds 1 to 20, one after another
//
// A run that fails leaves its history and the logs in a folder.
func TestChaos(t *testing.T) {
	lasts, seeds := chaosFor(t, "MILLRACE_CHAOS")
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Logf("again: make chaos SEED=%d FOR=%s", seed, lasts)
			c := newChaos(t, seed, true)
			c.rage(lasts, c.faults(true), 700*time.Millisecond)
			c.judge()
		})
	}
}

// chaosFor reads how long to run, and which seeds.
func chaosFor(t *testing.T, variable string) (lasts time.Duration, seeds []uint64) {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		t.Skip("make chaos and make soak run it")
	}
	lasts, err := time.ParseDuration(text)
	must(t, err)
	number := func(variable string, otherwise uint64) uint64 {
		if os.Getenv(variable) == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(os.Getenv(variable), 10, 64)
		must(t, err)
		return n
	}
	first := number("MILLRACE_SEED", rand.Uint64N(1_000_000))
	for i := range number("MILLRACE_SEEDS", 1) {
		seeds = append(seeds, first+i)
	}
	return lasts, seeds
}

// chaos is a deployment under fire, with all around it.
type chaos struct {
	t      testing.TB
	seed   uint64
	rnd    *rand.Rand // of the faults
	prefix string
	dir    string
	log    *history.Log

	nodes      *brokertest.Nodes
	nc         *nats.Conn
	procs      map[string]*process
	ops        map[string]string
	roads      map[string][]*link // of a process to the nodes
	routes     map[[2]int]*link   // between nodes
	storage    *gcstest.Server
	receiver   mood
	library    string
	inbox      string
	smallDisks bool
	written    atomic.Int64      // versions of objects
	secrets    map[string]string // what must not be seen, by what it is

	base          string
	api           *client.Client
	cloud, folder string // connectors
	indexes       []string
	hooks         []string
	listed        map[string]time.Time // when the first scan of an automation ended once everything was repaired
}

// What an automation waits for quiet.
const chaosInterval = 2 * time.Second

// newChaos starts it. smallDisks says whether some disks are to be small enough to be filled, where that can be had.
func newChaos(t *testing.T, seed uint64, smallDisks bool) *chaos {
	t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("millrace-chaos-%d-", seed))
	must(t, err)
	c := &chaos{
		t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), prefix: "chaos", dir: dir,
		procs: map[string]*process{}, ops: map[string]string{}, roads: map[string][]*link{}, routes: map[[2]int]*link{},
		library: filepath.Join(dir, "library"), inbox: filepath.Join(dir, "inbox"), secrets: map[string]string{"the API key": apiKey},
	}
	c.smallDisks = smallDisks && canMount(t, dir)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("history and logs are in %s; again: make chaos SEED=%d", dir, seed)
		} else {
			_ = os.RemoveAll(dir)
		}
	})
	c.log, err = history.Create(filepath.Join(dir, "history.jsonl"))
	must(t, err)
	t.Cleanup(func() { _ = c.log.Close() })
	must(t, os.Mkdir(c.inbox, 0o755))
	must(t, os.Mkdir(c.library, 0o755))
	if c.smallDisks {
		c.smallDisk(c.library)
		must(t, os.MkdirAll(filepath.Join(dir, "broker", "n0"), 0o700))
		c.smallDisk(filepath.Join(dir, "broker", "n0"))
	}
	c.storage = gcstest.Start(t, "drops")
	c.deploy()
	c.wire()
	return c
}

// canMount reports whether this process may mount a small disk.
func canMount(t *testing.T, dir string) bool {
	t.Helper()
	at := filepath.Join(dir, "may")
	must(t, os.Mkdir(at, 0o700))
	defer func() { _ = os.Remove(at) }()
	if err := mountSmall(at); err != nil {
		t.Logf("no full disks: %v", err)
		return false
	}
	unmount(at)
	return true
}

func (c *chaos) smallDisk(dir string) {
	c.t.Helper()
	must(c.t, mountSmall(dir))
	c.t.Cleanup(func() {
		if c.t.Failed() { // the logs lie beside it, what is in it goes
			c.t.Logf("%s was a disk in memory", dir)
		}
		unmount(dir)
	})
}

// promptMood is the file that tells the prompt service what to do with requests.
func (c *chaos) promptMood() string { return filepath.Join(c.dir, "mood") }

// deploy starts everything.
func (c *chaos) deploy() {
	t := c.t
	t.Helper()
	bin := program(t)
	c.nodes = brokertest.Cluster(t, 3, brokertest.In(filepath.Join(c.dir, "broker")), brokertest.Between(func(from, to int, addr string) string {
		k := newLink(t, addr)
		c.routes[[2]int{from, to}] = k
		return k.addr
	}))
	c.nc = c.nodes.Connect()

	add := func(name, command string, args ...string) {
		var urls []string
		for i := range c.nodes.Len() {
			k := newLink(t, c.nodes.Addr(i))
			c.roads[name] = append(c.roads[name], k)
			urls = append(urls, "nats://"+k.addr)
		}
		addr := freeAddr(c.t)
		args = append(args, "--nats-url", strings.Join(urls, ","), "--prefix", c.prefix, "--replicas", "3", "--ops", addr)
		p := &process{t: t, name: name, path: bin, args: append([]string{command}, args...), out: filepath.Join(c.dir, name+".log")}
		t.Cleanup(p.kill)
		c.ops[name], c.procs[name] = "http://"+addr, p
	}
	key, http := filepath.Join(c.dir, "secrets.key"), freeAddr(c.t)
	shared := []string{"--secrets-key", key, "--allow-dir", c.inbox, "--allow-endpoint", "127.0.0.0/8"}
	add("admin", "admin", append(shared, "--http", http, "--api-key", apiKey, "--extra-debounce-intervals", chaosInterval.String())...)
	add("scanner", "scanner", append(shared, "--scan-interval", "10s")...)
	add("debouncer", "debouncer")
	add("debouncer-2", "debouncer")
	add("importer", "importer", append(shared, "--library", c.library, "--workers", "4")...)
	add("importer-2", "importer", append(shared, "--library", c.library, "--workers", "4")...)
	add("preset-trigger", "preset-trigger")
	add("exporter", "exporter", shared...)
	add("webhooks", "webhooks", "--secrets-key", key, "--allow-endpoint", "127.0.0.0/8")
	// Each request is noted before it is answered, or not.
	must(t, os.WriteFile(c.promptMood(), nil, 0o600))
	prompt := fmt.Sprintf(`printf '{"what":"%s","run":"%%s","video":"%%s"}\n' "$MILLRACE_RUN_ID" "$MILLRACE_VIDEO_ID" >>%s
case $(cat %s) in fails) exit 1;; hangs) exec sleep 600;; esac
%s`, history.Prompted, c.log.Path, c.promptMood(), countBytes)
	add("worker", "worker", "--exec", prompt, "--media-dir", c.library, "--timeout", "4s", "--parallel", "2")
	for _, p := range c.procs {
		p.start()
	}
	for name, p := range c.procs {
		p.waitReady(c.ops[name])
	}
	c.base = "http://" + http
	c.api = client.New(c.base, apiKey)
}

// wire makes two connectors and three automations: two indexes watch the bucket, one of them without a prompt, and one
// the folder.
func (c *chaos) wire() {
	t := c.t
	t.Helper()
	p := &pipeline{t: t, api: c.api}
	key := c.storage.Credentials(t)
	var made struct {
		ID string `json:"connector_id"`
	}
	must(t, c.api.PostForm(t.Context(), "/connectors/gcs", map[string][]string{
		"name": {"Bucket"}, "bucket": {"drops"}, "gcp_project_id": {"test"}, "endpoint_url": {c.storage.URL}, "import_mode": {"new_only"},
	}, "credentials_file", key, &made))
	c.cloud = made.ID
	var sealed struct {
		Key string `json:"private_key"`
	}
	must(t, json.Unmarshal(key, &sealed))
	c.secrets["the key of the bucket"] = strings.Split(sealed.Key, "\n")[3]
	c.folder = p.create("/connectors/dir", "connector_id", obj{"name": "Folder", "path": c.inbox, "import_mode": "new_only"})
	prompt := p.create("/prompts", "prompt_id", obj{"name": "Count", "prompt_text": "Count the bytes.", "json_schema": obj{"type": "object"}})

	receiver := httptest.NewServer(http.HandlerFunc(c.receive))
	t.Cleanup(receiver.Close)
	for _, kind := range []string{"steady", "fickle"} {
		var hook struct {
			ID     string `json:"webhook_id"`
			Secret string `json:"secret"`
		}
		must(t, c.api.Do(t.Context(), http.MethodPost, "/webhooks", obj{"name": kind, "url": receiver.URL + "/" + kind, "events": []string{
			"import_job.completed", "import_job.partial_completed", "import_job.failed",
			"prompt_run.completed", "prompt_run.partial_completed", "prompt_run.failed",
		}}, &hook))
		c.secrets["the secret of webhook "+kind] = hook.Secret
		c.hooks = append(c.hooks, hook.ID)
		c.log.Add(history.Entry{What: history.Hook, Hook: kind, State: kind})
	}
	for _, a := range []struct{ connector, prefix, state string }{{c.cloud, "", "runs"}, {c.cloud, "b/", ""}, {c.folder, "", "runs"}} {
		index := p.create("/indexes", "index_id", obj{"name": "Index"})
		c.indexes = append(c.indexes, index)
		body := obj{"connector_id": a.connector, "source_prefix": a.prefix, "debounce_interval": chaosInterval.String(), "prompt_preset": nil}
		if a.state == "runs" {
			body["prompt_preset"] = obj{"prompt_id": prompt}
		}
		must(t, c.api.Do(t.Context(), http.MethodPut, "/indexes/"+index+"/automations/import", body, nil))
		c.log.Add(history.Entry{What: history.Wired, Index: index, Connector: a.connector, Path: a.prefix, State: a.state, Interval: chaosInterval})
	}
}

// receive takes webhooks, in the mood of the moment. Only the fickle one is ever told to go.
func (c *chaos) receive(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var envelope struct {
		ID   string
		Data struct {
			Job string `json:"job_id"`
			Run string `json:"run_id"`
		}
	}
	kind := strings.TrimPrefix(r.URL.Path, "/")
	if err != nil || json.Unmarshal(body, &envelope) != nil {
		return // it broke off
	}
	e := history.Entry{What: history.Told, Hook: kind, Event: envelope.ID, Delivery: r.Header.Get("X-Delivery-ID"), N: http.StatusOK,
		Job: envelope.Data.Job, Run: envelope.Data.Run, State: "signed"}
	if e.Run != "" {
		e.Job = "" // a run's event names its job as well
	}
	if is := r.Header.Get("X-Webhook-Signature"); is != webhook.Signature(secret.NewString(c.secrets["the secret of webhook "+kind]), body) {
		e.State = is
	}
	switch mood := c.receiver.is(); {
	case mood == "500", mood == "410" && kind == "steady":
		e.N = http.StatusInternalServerError
	case mood == "410":
		e.N = http.StatusGone
	case mood == "hangs":
		e.N = 0
	}
	c.log.Add(e)
	if e.N == 0 {
		<-r.Context().Done()
		return
	}
	w.WriteHeader(e.N)
}

// rage lets the load run for a while with faults in between, several at a time, and ends all of them.
func (c *chaos) rage(lasts time.Duration, faults []fault, between time.Duration) {
	c.t.Helper()
	ctx, stop := context.WithCancel(c.t.Context())
	var load sync.WaitGroup
	load.Go(func() { c.load(ctx) })
	load.Go(func() { c.watch(ctx) })
	type under struct {
		fault
		undo func()
		end  time.Time
	}
	now := map[string]under{} // by what it is done to
	end := func(u under) {
		u.undo()
		c.log.Add(history.Entry{What: history.Healed, Detail: u.name})
		delete(now, u.on)
	}
	odds := 0
	for _, f := range faults {
		odds += f.odds
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	next, over := time.Now(), time.Now().Add(lasts)
	for time.Now().Before(over) {
		<-tick.C
		for _, u := range now {
			if time.Now().After(u.end) {
				end(u)
			}
		}
		c.revive(func(name string) bool { _, hurt := now[name]; return hurt })
		if time.Now().Before(next) {
			continue
		}
		next = time.Now().Add(time.Duration(c.rnd.Int64N(int64(2 * between))))
		n, f := c.rnd.IntN(odds), fault{}
		for _, f = range faults {
			if n -= f.odds; n < 0 {
				break
			}
		}
		length := time.Duration(c.rnd.Int64N(int64(f.most) + 1))
		if _, hurt := now[f.on]; hurt || len(now) >= 3 {
			continue
		}
		c.log.Add(history.Entry{What: history.Fault, Detail: f.name})
		undo, err := f.do(c)
		if err != nil || undo == nil {
			c.log.Add(history.Entry{What: history.Healed, Detail: f.name})
			continue
		}
		now[f.on] = under{f, undo, time.Now().Add(length)}
	}
	for _, u := range now {
		end(u)
	}
	stop()
	load.Wait()
}

// revive starts processes again that ended by themselves, as whatever runs services does.
func (c *chaos) revive(hurt func(string) bool) {
	for name, p := range c.procs {
		if p.cmd == nil || hurt(name) {
			continue
		}
		if err := p.ended(); err != nil {
			e := history.Entry{What: history.Died, Detail: err.Error()}
			if out := p.output(); strings.Contains(out, "\npanic: ") || strings.Contains(out, "\nfatal error: ") {
				e.State = "panic"
			}
			c.log.Add(e)
			p.cmd = nil
			p.start()
		}
	}
}

// load is what people and storage systems do: files come, change and go, and are told of once, twice, late or never.
func (c *chaos) load(ctx context.Context) {
	rnd := rand.New(rand.NewPCG(c.seed, 2))
	png := sample(c.t, "photo.png")
	type note struct {
		body []byte
		at   time.Time
	}
	var late []note
	generations := map[string]int64{}
	pausedUntil := map[string]time.Time{}
	n := 0
	content := func() []byte {
		n++
		if rnd.IntN(12) == 0 {
			return fmt.Appendf(slices.Clip(png), "the same") // as some other file
		}
		return fmt.Appendf(slices.Clip(png), "%d %s", n, make([]byte, rnd.IntN(40_000)))
	}
	tell := func(kind, name string, generation int64, more string) {
		body := fmt.Appendf(nil, `{"message":{"attributes":{"eventType":%q,"bucketId":"drops","objectId":%q,"objectGeneration":"%d"%s}}}`,
			kind, name, generation, more)
		for times := []int{0, 1, 1, 1, 1, 1, 2, 2, 4}[rnd.IntN(9)]; times > 0; times-- {
			late = append(late, note{body, time.Now().Add(time.Duration(rnd.ExpFloat64() * float64(time.Second)))})
		}
	}
	// do asks the API, which may be away, and reports whether it said yes.
	do := func(method, path string, in, out any) bool {
		asked, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return c.api.Do(asked, method, path, in, out) == nil
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		name := fmt.Sprintf("%c/%02d.png", 'a'+rune(rnd.IntN(2)), rnd.IntN(60))
		switch action := rnd.IntN(100); {
		case action < 45:
			data, before := content(), generations[name]
			at := time.Now()
			generation := c.storage.Put("drops", name, data)
			c.log.Add(history.Entry{At: at, What: history.Wrote, Connector: c.cloud, Path: name, Version: fmt.Sprint(generation), SHA256: hash(data), Size: int64(len(data))})
			c.written.Add(1)
			generations[name] = generation
			more := ""
			if before > 0 {
				more = fmt.Sprintf(`,"overwroteGeneration":"%d"`, before)
				tell("OBJECT_DELETE", name, before, fmt.Sprintf(`,"overwrittenByGeneration":"%d"`, generation))
			}
			tell("OBJECT_FINALIZE", name, generation, more)
		case action < 52:
			if g := generations[name]; g > 0 {
				c.storage.Delete("drops", name)
				delete(generations, name)
				c.log.Add(history.Entry{What: history.Removed, Connector: c.cloud, Path: name})
				tell("OBJECT_DELETE", name, g, "")
			}
		case action < 78:
			c.drop(name, content())
		case action < 83:
			if os.Remove(filepath.Join(c.inbox, filepath.Base(name))) == nil {
				c.log.Add(history.Entry{What: history.Removed, Connector: c.folder, Path: filepath.Base(name)})
			}
		case action < 85:
			late = append(late, note{[]byte(`{"message":"` + history.Poison + `"`), time.Now()})
		case action < 87:
			tell("OBJECT_FINALIZE", "never/was.png", 7, "")
		case action < 90:
			index := c.indexes[rnd.IntN(len(c.indexes))]
			if pausedUntil[index].IsZero() && do(http.MethodPost, "/indexes/"+index+"/automations/import/pause", nil, nil) {
				c.log.Add(history.Entry{What: history.Paused, Index: index})
				pausedUntil[index] = time.Now().Add(time.Duration(rnd.Int64N(int64(8 * time.Second))))
			}
		case action < 93:
			var made struct {
				ID string `json:"index_id"`
			}
			if do(http.MethodPost, "/indexes", obj{"name": "Canary"}, &made) {
				c.log.Add(history.Entry{What: history.Acked, Index: made.ID})
			}
		case action < 94:
			var made client.Job
			if do(http.MethodPost, "/import-jobs", obj{"connector_id": c.folder, "index_id": c.indexes[2]}, &made) {
				c.log.Add(history.Entry{What: history.Acked, Job: made.ID})
			}
		}
		for index, until := range pausedUntil {
			if !until.IsZero() && time.Now().After(until) {
				c.log.Add(history.Entry{What: history.Resuming, Index: index})
				if do(http.MethodPost, "/indexes/"+index+"/automations/import/resume", nil, nil) {
					delete(pausedUntil, index)
				}
			}
		}
		late = slices.DeleteFunc(late, func(m note) bool {
			if time.Now().Before(m.at) || ctx.Err() != nil {
				return false
			}
			asked, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			res, err := send(asked, http.MethodPost, c.url("/notifications/"+c.cloud), http.Header{"X-Api-Key": {apiKey}}, m.body)
			if err == nil && res.status == http.StatusOK {
				c.log.Add(history.Entry{What: history.Notified})
			}
			return true // what was refused never arrives
		})
	}
}

// drop puts a file into the folder, whole from the first moment.
func (c *chaos) drop(name string, data []byte) {
	name = filepath.Base(name)
	part := filepath.Join(c.inbox, "."+name+".part")
	at := time.Now()
	must(c.t, os.WriteFile(part, data, 0o600))
	info, err := os.Stat(part)
	must(c.t, err)
	c.log.Add(history.Entry{At: at, What: history.Wrote, Connector: c.folder, Path: name, Version: folderVersion(info), SHA256: hash(data), Size: info.Size()})
	c.written.Add(1)
	must(c.t, os.Rename(part, filepath.Join(c.inbox, name)))
}

func folderVersion(info os.FileInfo) string {
	return fmt.Sprintf("%d-%d", info.ModTime().UnixNano(), info.Size())
}

func (c *chaos) url(path string) string { return c.base + "/api/v2" + path }

// watch notes what the API says of jobs.
func (c *chaos) watch(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	said := map[string]string{}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		asked, cancel := context.WithTimeout(ctx, 5*time.Second)
		var jobs []client.Job
		err := c.api.Get(asked, "/import-jobs", &jobs)
		cancel()
		if err != nil {
			continue
		}
		for _, j := range jobs {
			if now := fmt.Sprint(j.Status, settled(j)); said[j.ID] != now {
				said[j.ID] = now
				c.log.Add(history.Entry{What: history.Seen, Job: j.ID, State: j.Status, N: settled(j)})
			}
		}
	}
}

// judge waits until all is quiet, writes down how things are, and has that and what was seen before checked.
func (c *chaos) judge() {
	t := c.t
	t.Helper()
	c.nodes.WaitReady()
	within(t, 3*patience, "all services are ready", func() error {
		c.revive(func(string) bool { return false })
		for name := range c.procs {
			if err := ready(t.Context(), c.ops[name]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
	repaired := time.Now()
	c.listed = map[string]time.Time{}
	for _, index := range c.indexes {
		c.log.Add(history.Entry{What: history.Resuming, Index: index})
		c.insist(http.MethodPost, "/indexes/"+index+"/automations/import/resume", nil)
	}
	for _, hook := range c.hooks { // one that was told 410 is disabled
		c.insist(http.MethodPatch, "/webhooks/"+hook, obj{"status": "active"})
	}
	js, err := jetstream.New(c.nc)
	must(t, err)
	var waits error
	for deadline := time.Now().Add(6 * time.Minute); ; time.Sleep(500 * time.Millisecond) { // other processes: nothing to wait on but asking
		c.revive(func(string) bool { return false })
		if waits = cmp.Or(c.quiet(repaired), resting(t.Context(), js, topology.Topology{Prefix: c.prefix})); waits == nil {
			break
		}
		if time.Now().After(deadline) {
			c.log.Add(history.Entry{What: history.Unrest, Detail: waits.Error()})
			break
		}
	}
	t.Logf("quiet after %s (%v)", time.Since(repaired).Round(time.Second), waits)
	c.takeStock()
	entries, err := history.Read(c.log.Path)
	must(t, err)
	count := map[string]int{}
	for _, e := range entries {
		count[e.What]++
	}
	t.Logf("seen: %v", count)
	wrong := history.Check(entries)
	for _, w := range wrong[:min(len(wrong), 20)] {
		t.Error(w)
	}
	if len(wrong) > 20 {
		t.Errorf("and %d more", len(wrong)-20)
	}
}

// insist asks the API until it says yes.
func (c *chaos) insist(method, path string, in any) {
	c.t.Helper()
	eventually(c.t, method+" "+path, func() error { return c.api.Do(c.t.Context(), method, path, in, nil) })
}

// quiet is nil when nothing waits, by what the API says, and every source was listed since.
func (c *chaos) quiet(since time.Time) error {
	ctx := c.t.Context()
	var automations client.Page[struct {
		Automation struct {
			Index string `json:"index_id"`
			Scan  struct {
				LastAt time.Time `json:"last_at"`
			} `json:"scan"`
		} `json:"automation"`
		Window *struct{ Files int } `json:"window"`
	}]
	if err := c.api.Get(ctx, "/automations", &automations); err != nil {
		return err
	}
	for _, a := range automations.Data {
		// The first scan that ends may have begun before, or gone on where one before was broken off. The second has not.
		index, last := a.Automation.Index, a.Automation.Scan.LastAt
		first, ok := c.listed[index]
		if !ok && last.After(since) {
			c.listed[index] = last
		}
		if !ok || !last.After(first) {
			return fmt.Errorf("the source of %s was listed last at %s", index, last)
		}
		if a.Window != nil {
			return fmt.Errorf("the window of %s is open, with %d files", a.Automation.Index, a.Window.Files)
		}
	}
	var jobs []client.Job
	var runs []client.Run
	if err := errors.Join(c.api.Get(ctx, "/import-jobs", &jobs), c.api.Get(ctx, "/prompt-runs", &runs)); err != nil {
		return err
	}
	for _, j := range jobs {
		if !j.Done() {
			return fmt.Errorf("job %s is %s: %+v", j.ID, j.Status, j.Progress)
		}
	}
	for _, r := range runs {
		if !r.Done() {
			return fmt.Errorf("run %s is %s", r.ID, r.Status)
		}
	}
	for _, hook := range c.hooks {
		for _, status := range []string{"retrying", "pending", "processing"} {
			list, err := c.deliveries(hook, status)
			if err != nil {
				return err
			}
			for _, d := range list {
				if status == "retrying" { // as a person does who has mended the receiver and does not want to wait for hours
					_ = c.api.Do(ctx, http.MethodPost, "/webhooks/deliveries/"+d.Delivery+"/retry", nil, nil)
				}
			}
			if len(list) > 0 {
				return fmt.Errorf("%d deliveries are %s", len(list), status)
			}
		}
	}
	return nil
}

func (c *chaos) deliveries(hook, status string) (list []history.Entry, err error) {
	var found []struct {
		ID    string  `json:"delivery_id"`
		Error *string `json:"error_message"`
	}
	err = c.api.Get(c.t.Context(), "/webhooks/"+hook+"/deliveries?limit=100&status="+status, &found)
	for _, d := range found {
		e := history.Entry{What: history.Delivery, Hook: hook, Delivery: d.ID, State: status}
		if d.Error != nil {
			e.Detail = *d.Error
		}
		list = append(list, e)
	}
	return list, err
}

// takeStock writes down how things are in the end: the sources, the library, and what the API says.
func (c *chaos) takeStock() {
	t, ctx := c.t, c.t.Context()
	t.Helper()
	entries, err := history.Read(c.log.Path)
	must(t, err)
	newest, jobs := map[string]history.Entry{}, map[string]bool{}
	for _, e := range entries {
		switch at := e.Connector + " " + e.Path; e.What {
		case history.Wrote:
			newest[at] = e
		case history.Removed:
			delete(newest, at)
		case history.Seen, history.Acked:
			if e.Job != "" {
				jobs[e.Job] = true
			}
		}
	}
	for _, e := range newest {
		var data []byte
		if e.Connector == c.cloud {
			data, _, _ = c.storage.Get("drops", e.Path)
		} else {
			data, err = os.ReadFile(filepath.Join(c.inbox, e.Path))
			must(t, err)
		}
		if hash(data) != e.SHA256 {
			t.Fatalf("the source itself has lost %+v", e)
		}
		c.log.Add(history.Entry{What: history.There, Connector: e.Connector, Path: e.Path, Version: e.Version, SHA256: e.SHA256})
	}
	for id, sum := range files(t, c.library) {
		c.log.Add(history.Entry{What: history.Kept, Video: id, SHA256: sum})
	}

	p := &pipeline{t: t, api: c.api}
	var indexes []struct {
		ID string `json:"index_id"`
	}
	must(t, c.api.Get(ctx, "/indexes", &indexes))
	for _, i := range indexes {
		c.log.Add(history.Entry{What: history.Index, Index: i.ID})
	}
	for _, index := range c.indexes {
		for id, m := range p.media(index) {
			c.log.Add(history.Entry{What: history.Medium, Video: id, Index: index, Connector: m.Connector, Path: m.Path, Version: m.Version, Job: m.Job,
				SHA256: m.SHA256, Size: m.Size})
		}
		list, err := p.jobs(index)
		must(t, err)
		for _, j := range list {
			jobs[j.ID] = true
		}
		type run struct {
			client.Run
			Job string `json:"job_id"`
		}
		for r, err := range client.All[run](ctx, c.api, "/indexes/"+index+"/prompt-runs", url.Values{"limit": {"100"}}) {
			must(t, err)
			var full client.Run
			must(t, c.api.Get(ctx, "/prompt-runs/"+r.ID, &full))
			c.log.Add(history.Entry{What: history.Run, Run: r.ID, Job: r.Job, State: full.Status, Videos: full.Context.Videos})
		}
	}
	for id := range jobs {
		c.stockJob(id)
	}
	for i, hook := range c.hooks {
		for _, status := range []string{"failed", "retrying", "pending"} {
			list, err := c.deliveries(hook, status)
			must(t, err)
			for _, d := range list {
				d.Hook = []string{"steady", "fickle"}[i]
				c.log.Add(d)
			}
		}
	}
	type dead struct {
		Reason string  `json:"reason"`
		Data   *string `json:"data"`
	}
	for d, err := range client.All[dead](ctx, c.api, "/dead", url.Values{"limit": {"100"}}) {
		must(t, err)
		e := history.Entry{What: history.Dead, Detail: d.Reason}
		if d.Data != nil {
			e.State = *d.Data
		}
		c.log.Add(e)
	}
	logs, err := filepath.Glob(filepath.Join(c.dir, "*.log"))
	must(t, err)
	for _, path := range logs {
		data, err := os.ReadFile(path)
		must(t, err)
		for what, secret := range c.secrets {
			if bytes.Contains(data, []byte(secret)) {
				c.log.Add(history.Entry{What: history.Leaked, Detail: what + " is in " + filepath.Base(path)})
			}
		}
	}
}

// stockJob writes down a job and its files. One that nobody knows is not written down.
func (c *chaos) stockJob(id string) {
	t, ctx := c.t, c.t.Context()
	t.Helper()
	var j struct {
		client.Job
		Origin string `json:"origin"`
	}
	err := c.api.Get(ctx, "/import-jobs/"+id, &j)
	var gone *client.Problem
	if errors.As(err, &gone) && gone.Status == http.StatusNotFound {
		return
	}
	must(t, err)
	c.log.Add(history.Entry{At: j.Created, What: history.Job, Job: j.ID, Index: j.Index, State: j.Status, Detail: j.Origin, N: settled(j.Job),
		Total: j.Progress.Total, Videos: j.Videos})
	type file struct {
		Path      string  `json:"path"`
		Version   string  `json:"version"`
		Connector string  `json:"connector_id"`
		State     string  `json:"state"`
		Reason    *string `json:"reason"`
		Error     *string `json:"error"`
		Video     *string `json:"video_id"`
	}
	for f, err := range client.All[file](ctx, c.api, "/import-jobs/"+id+"/files", url.Values{"limit": {"1000"}}) {
		must(t, err)
		e := history.Entry{What: history.File, Job: id, Index: j.Index, Connector: f.Connector, Path: f.Path, Version: f.Version, State: f.State}
		for _, s := range []*string{f.Error, f.Reason} {
			if s != nil {
				e.Detail = *s
			}
		}
		if f.Video != nil {
			e.Video = *f.Video
		}
		c.log.Add(e)
	}
}
