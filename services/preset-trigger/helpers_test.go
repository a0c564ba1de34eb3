package presettrigger

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/broker/brokertest"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// world is a broker with the topology, and what the rest of the pipeline would have written to it.
type world struct {
	testing.TB
	bus     *bus.Bus
	env     service.Env
	jobs    *store.Register[store.Job]
	records *store.Register[store.Run]
	prompts *store.Register[store.Prompt]
	docs    *store.Documents
	ledger  *store.Ledger
	runs    *Runs
}

const (
	index  = "idx_1"
	prompt = "prm_1"
)

func newWorld(t testing.TB) *world {
	t.Helper()
	broker := brokertest.Start(t)
	log := slog.New(slog.DiscardHandler)
	b, err := bus.New(brokertest.Connect(t, broker), topology.Topology{Prefix: "t", Replicas: 1}, "preset-trigger", log)
	must(t, err)
	must(t, b.Apply(t.Context(), b.JetStream()))
	w := &world{TB: t, bus: b, env: service.Env{
		Bus: b, Log: log, Metrics: prometheus.NewRegistry(), Instance: "one",
		Connect: func(name string) (*nats.Conn, error) { return broker.Connect(name) },
	}}
	w.jobs = open[store.Job](t, b, topology.JobRecords)
	w.records = open[store.Run](t, b, topology.RunRecords)
	w.prompts = open[store.Prompt](t, b, topology.Prompts)
	w.docs, err = store.OpenDocuments(t.Context(), b)
	must(t, err)
	w.runs, err = OpenRuns(t.Context(), b)
	must(t, err)
	w.ledger = store.NewLedger(b)
	must(t, w.prompts.Put(t.Context(), prompt, store.Prompt{ID: prompt, Name: "Log", Text: "What happens?"}))
	return w
}

func open[T any](t testing.TB, b *bus.Bus, name string) *store.Register[T] {
	t.Helper()
	r, err := store.Open[T](t.Context(), b, name)
	must(t, err)
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start runs a preset trigger until the test ends, or stop is called.
func (w *world) start(instance string) (p *PresetTrigger, stop func()) {
	w.Helper()
	env := w.env
	env.Instance, env.Metrics = instance, prometheus.NewRegistry()
	p, err := New(Config{SweepInterval: time.Second}, env)
	must(w, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
	}
	w.Cleanup(stop)
	return p, stop
}

// settled stores a job that ended with n imported files among others, with its ledger entries and its report.
func (w *world) settled(id string, n int, change ...func(*store.Job)) store.Job {
	w.Helper()
	var files []event.File
	var entries []store.Entry
	for i := range n {
		f, m := imported(id, i)
		files = append(files, f)
		entries = append(entries, store.Entry{Medium: m})
		if i%10 == 0 {
			files = append(files, event.File{Job: id, Path: fmt.Sprintf("cams/skipped-%d.txt", i), State: event.Skipped},
				event.File{Job: id, Path: fmt.Sprintf("cams/failed-%d.mp4", i), State: event.Failed})
		}
	}
	for _, err := range w.ledger.Write(w.Context(), entries) {
		must(w, err)
	}
	job := store.Job{
		ID: id, Index: index, Connector: "conn_1", Preset: json.RawMessage(`{"prompt_id":"` + prompt + `"}`),
		Status: store.JobCompleted, Settled: true, Report: "jobs/" + id + ".files.jsonl",
		Progress: store.Progress{Total: len(files), Imported: n}, EndedAt: time.Now().UTC(),
	}
	must(w, store.WriteLines(w.Context(), w.docs, job.Report, all(files)))
	for _, c := range change {
		c(&job)
	}
	must(w, w.jobs.Put(w.Context(), id, job))
	return job
}

func imported(job string, i int) (event.File, event.Medium) {
	path := fmt.Sprintf("cams/%s/clip %05d.mp4", job, i)
	kind := "video"
	if i%4 == 3 {
		kind = "audio"
	}
	id := event.NewMediumID(index, "conn_1", path, "v1", "")
	return event.File{Job: job, Path: path, Version: "v1", State: event.Imported, Video: id.String(), MediaType: kind, Size: 7},
		event.Medium{
			ID: id, Index: index, Connector: "conn_1", Path: path, Version: "v1", State: event.MediumImported, Size: 7,
			URI: "file:///lib/" + id.String(), MediaType: kind, ContentType: kind + "/mp4", Seconds: 2, Job: job,
		}
}

func all[T any](values []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range values {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// announce publishes the end of a job.
func (w *world) announce(job store.Job) {
	w.Helper()
	e, err := bus.NewEvent(event.JobCompleted, index, job.ID, time.Now(), event.JobEvent{Job: job.ID, Index: index, Status: string(job.Status)})
	must(w, err)
	must(w, w.bus.PublishEvent(w.Context(), e))
}

// report says what became of a medium.
func (w *world) report(run, video string, state event.ReportState) {
	w.Helper()
	r := event.Report{Run: run, Video: video, State: state, ReportedAt: time.Now()}
	if state == event.Unsuccessful {
		r.Error = "the command ended with status 1"
	}
	data, err := json.Marshal(r)
	must(w, err)
	_, err = w.bus.Publish(w.Context(), bus.Message{Subject: w.bus.Subject("run", "report", run, video), Data: data})
	must(w, err)
}

// await waits until the record of a run is as wanted.
func (w *world) await(run string, wanted func(store.Run) bool) store.Run {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	var last store.Run
	found := false
	must(w, w.records.Watch(ctx, func() {}, func(c store.Change[store.Run]) {
		if c.Key != run || c.Value == nil || found {
			return
		}
		last = *c.Value
		if found = wanted(last); found {
			cancel()
		}
	}))
	if !found {
		w.Fatalf("run %s did not become as wanted; it is %+v", run, last)
	}
	return last
}

// handled waits until the consumer of job events has nothing more to do.
func (w *world) handled() {
	w.Helper()
	c, err := w.bus.Bind(w.Context(), w.bus.JetStream(), topology.PresetTriggerJobs)
	must(w, err)
	w.eventually(func() bool {
		info, err := c.Info(w.Context())
		must(w, err)
		// A consumer hears of a message some time after its publisher: what lies in the stream counts.
		for m, err := range w.bus.Last(w.Context(), topology.Events, info.Config.FilterSubjects...) {
			must(w, err)
			if m.Sequence > info.AckFloor.Stream {
				return false
			}
		}
		return info.NumPending == 0 && info.NumAckPending == 0
	})
}

// eventually asks again and again.
func (w *world) eventually(fact func() bool) {
	w.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for !fact() {
		select {
		case <-tick.C:
		case <-late:
			w.Fatal("it did not happen")
		}
	}
}

// stored is what lies under a subject of a stream.
func (w *world) stored(stream string, tokens ...string) (found []bus.Stored) {
	w.Helper()
	for m, err := range w.bus.Scan(w.Context(), stream, w.bus.Subject(tokens...), 0) {
		must(w, err)
		found = append(found, m)
	}
	return found
}

func (w *world) mediaOf(run store.Run) (media []event.RunMedium) {
	w.Helper()
	for m, err := range store.ReadLines[event.RunMedium](w.Context(), w.docs, run.Media) {
		must(w, err)
		media = append(media, m)
	}
	return media
}
