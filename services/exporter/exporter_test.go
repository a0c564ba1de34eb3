package exporter

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/bus"
	"millrace/shared/connector"
	"millrace/shared/event"
	"millrace/shared/service"
	"millrace/shared/service/servicetest"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// world is a broker with the topology, and what the rest of the pipeline would have written to it.
type world struct {
	testing.TB
	env     service.Env
	bus     *bus.Bus
	opener  *connector.Opener
	outbox  string // the folder of connector "outbox"
	exports *Exports

	connectors  *store.Register[store.Connector]
	automations *store.Register[store.ExportAutomation]
	runs        *store.Register[store.Run]
	jobs        *store.Register[store.Job]
	docs        *store.Documents
}

const index = "idx_1"

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, env: servicetest.Env(t), outbox: t.TempDir()}
	w.bus = w.env.Bus
	w.connectors = open[store.Connector](w, topology.Connectors)
	w.automations = open[store.ExportAutomation](w, topology.ExportAutomations)
	w.runs, w.jobs = open[store.Run](w, topology.RunRecords), open[store.Job](w, topology.JobRecords)
	var err error
	w.docs, err = store.OpenDocuments(t.Context(), w.bus)
	must(t, err)
	w.exports, err = Open(t.Context(), w.bus)
	must(t, err)
	w.opener, err = connector.New(connector.Config{AllowDirs: []string{w.outbox}, AllowEndpoints: []string{"127.0.0.1"}}, w.connectors)
	must(t, err)
	must(t, w.connectors.Put(t.Context(), "outbox", store.Connector{
		ID: "outbox", Provider: "dir", Status: "active", Scopes: []string{"export"}, Path: w.outbox, ExportBasePath: "exports",
	}))
	return w
}

func open[T any](w *world, name string) *store.Register[T] {
	w.Helper()
	r, err := store.Open[T](w.Context(), w.bus, name)
	must(w, err)
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// exporter returns one that does not run.
func (w *world) exporter(change ...func(*Config)) *Exporter {
	w.Helper()
	cfg := Config{Backoff: time.Millisecond, SweepInterval: time.Hour}
	for _, c := range change {
		c(&cfg)
	}
	env := w.env
	env.Metrics = prometheus.NewRegistry()
	e, err := New(cfg, env, w.opener)
	must(w, err)
	return e
}

func (w *world) start(change ...func(*Config)) (stop func()) {
	w.Helper()
	return servicetest.Run(w, w.exporter(change...))
}

func seq[T any](values []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range values {
			if !yield(v, nil) {
				return
			}
		}
	}
}

func medium(run string, i int) (event.MediumID, string) {
	path := fmt.Sprintf("cams/%s/a & b, %d.mp4", run, i)
	return event.NewMediumID(index, "conn_1", path, "v1", ""), path
}

// run stores a run of n media: of three in a row the first succeeded, the second failed and the third is not reported.
func (w *world) run(id string, n int, change ...func(*store.Run)) store.Run {
	w.Helper()
	now := time.Now().UTC()
	run := store.Run{
		ID: id, Index: index, Job: "job_" + id, Prompt: "prm_1", PromptName: "Log", Status: store.RunCompleted, Media: "runs/" + id,
		Count: n, CreatedAt: now, StartedAt: now, EndedAt: now, Settled: true,
	}
	media := make([]event.RunMedium, n)
	entries := make([]store.Entry, n)
	var reports []bus.Message
	for i := range n {
		vid, path := medium(id, i)
		media[i] = event.RunMedium{
			Video: vid.String(), Title: filepath.Base(path), URI: "file:///PLANTED/library", MediaType: "video", ContentType: "video/mp4",
			Seconds: 1.5, Size: 7,
		}
		entries[i] = store.Entry{Medium: event.Medium{
			ID: vid, Index: index, Connector: "conn_1", Path: path, Version: "v1", State: event.MediumImported, URI: "file:///PLANTED/library", CreatedAt: now,
		}}
		r := event.Report{Run: id, Video: vid.String(), State: event.Successful, Result: json.RawMessage(`{ "seen": "<car>, \"bus\"" }`), ReportedAt: now}
		switch i % 3 {
		case 1:
			r.State, r.Result, r.Error = event.Unsuccessful, nil, "it is dark"
		case 2:
			continue
		}
		data, err := json.Marshal(r)
		must(w, err)
		reports = append(reports, bus.Message{Subject: w.bus.Subject("run", "report", id, vid.String()), Data: data})
	}
	_, errs := w.bus.PublishAll(w.Context(), reports)
	must(w, errors.Join(errs...))
	must(w, errors.Join(store.NewLedger(w.bus).Write(w.Context(), entries)...))
	must(w, store.WriteLines(w.Context(), w.docs, run.Media, seq(media)))
	for _, c := range change {
		c(&run)
	}
	must(w, w.runs.Put(w.Context(), id, run))
	return run
}

// announce publishes that a run ended.
func (w *world) announce(run store.Run) {
	w.Helper()
	typ := event.RunCompleted
	if run.Status == store.RunCompletedWithFailures {
		typ = event.RunPartialCompleted
	}
	e, err := bus.NewEvent(typ, run.Index, run.ID, run.EndedAt, event.RunEvent{Run: run.ID, Index: run.Index, Status: string(run.Status)})
	must(w, err)
	must(w, w.bus.PublishEvent(w.Context(), e))
}

// handled waits until the consumer of run events has nothing more to do.
func (w *world) handled() {
	w.Helper()
	c, err := w.bus.Bind(w.Context(), w.bus.JetStream(), topology.ExporterRuns)
	must(w, err)
	servicetest.Eventually(w, "run events are handled", func() error {
		info, err := c.Info(w.Context())
		must(w, err)
		for m, err := range w.bus.Last(w.Context(), topology.Events, info.Config.FilterSubjects...) {
			must(w, err)
			if m.Sequence > info.AckFloor.Stream {
				return fmt.Errorf("%s is not", m.Subject)
			}
		}
		return nil
	})
}

func (w *world) ask(req event.ExportRequested) store.Export {
	w.Helper()
	if req.Export == "" {
		req.Export = event.NewID("exp")
	}
	if req.Scope == "" {
		req.Scope = event.AllResults
	}
	if req.Format == "" {
		req.Format = event.FormatJSON
	}
	req.Index, req.RequestedAt = index, time.Now().UTC()
	x, err := w.exports.Create(w.Context(), req)
	must(w, err)
	return x
}

// ended waits for the end of an export.
func (w *world) ended(id string) store.Export {
	w.Helper()
	var x store.Export
	servicetest.Eventually(w, "export "+id+" has ended", func() (err error) {
		x, _, err = w.exports.Records().Get(w.Context(), id)
		if err == nil && !x.Settled {
			err = fmt.Errorf("it is %+v", x)
		}
		return err
	})
	return x
}

func (w *world) completed(id string) store.Export {
	w.Helper()
	x := w.ended(id)
	if x.Status != store.ExportCompleted || x.EndedAt.IsZero() || x.URI == "" {
		w.Fatalf("export %+v", x)
	}
	return x
}

func (w *world) content(x store.Export) []byte {
	w.Helper()
	d, err := w.docs.Find(w.Context(), x.Document)
	must(w, err)
	data, err := io.ReadAll(d.Reader(w.Context()))
	must(w, err)
	if int64(len(data)) != x.Size || d.Size != x.Size {
		w.Errorf("%d bytes of %d, on record %d", len(data), d.Size, x.Size)
	}
	return data
}

// events are the types of the export events about an export.
func (w *world) events(id string) (types []string) {
	w.Helper()
	for m, err := range w.bus.Scan(w.Context(), topology.Events, w.bus.Subject("event", "export", "*", "*", id), 0) {
		must(w, err)
		types = append(types, strings.Join(strings.Split(m.Subject, ".")[2:4], "."))
	}
	return types
}

// files are the names of all files in the outbox.
func (w *world) files() (names []string) {
	w.Helper()
	must(w, filepath.WalkDir(w.outbox, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && !strings.Contains(p, ".millrace-tmp") {
			rel, _ := filepath.Rel(w.outbox, p)
			names = append(names, rel)
		}
		return err
	}))
	return names
}

// What an export has in each format: the same rows, in the order of the runs and their media.
func TestContent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("run_b", 205, func(r *store.Run) { r.CreatedAt = r.CreatedAt.Add(-time.Hour) })
	w.run("run_a", 2)
	w.run("run_elsewhere", 2, func(r *store.Run) { r.Index = "idx_2" })
	w.start()

	var lines []map[string]any
	x := w.completed(w.ask(event.ExportRequested{Type: event.ExportOfIndex, Target: index, Format: event.FormatLines}).ID)
	text := w.content(x)
	for line := range bytes.Lines(text) {
		var row map[string]any
		must(t, json.Unmarshal(line, &row))
		lines = append(lines, row)
	}
	if len(lines) != 207 {
		t.Fatalf("%d lines", len(lines))
	}
	if bytes.Contains(text, []byte("PLANTED")) {
		t.Error("where the library is can be seen")
	}
	for i, row := range lines {
		run, n := "run_b", i
		if i >= 205 {
			run, n = "run_a", i-205
		}
		id, path := medium(run, n)
		want := map[string]any{"run_id": run, "video_id": id.String(), "source_path": path, "title": filepath.Base(path), "status": "pending", "error_message": nil, "metadata": map[string]any{}}
		switch n % 3 {
		case 0:
			want["status"], want["metadata"] = "completed", map[string]any{"seen": `<car>, "bus"`}
		case 1:
			want["status"], want["error_message"] = "failed", "it is dark"
		}
		for k, v := range want {
			if !reflect.DeepEqual(row[k], v) {
				t.Fatalf("line %d: %s is %v, want %v", i, k, row[k], v)
			}
		}
	}

	x = w.completed(w.ask(event.ExportRequested{Type: event.ExportOfIndex, Target: index}).ID)
	var doc struct {
		Export string `json:"export_id"`
		Type   string `json:"export_type"`
		Target string `json:"target_id"`
		Runs   []struct {
			Run     string           `json:"run_id"`
			Media   int              `json:"media_count"`
			Results []map[string]any `json:"results"`
		} `json:"runs"`
	}
	must(t, json.Unmarshal(w.content(x), &doc))
	if doc.Export != x.ID || doc.Type != "index" || doc.Target != index || len(doc.Runs) != 2 || doc.Runs[0].Media != 205 {
		t.Errorf("document %+v", doc)
	}
	if got := slices.Concat(doc.Runs[0].Results, doc.Runs[1].Results); !reflect.DeepEqual(got, lines) {
		t.Error("the document has other results than the lines")
	}

	x = w.completed(w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_a", Format: event.FormatCSV}).ID)
	table, err := csv.NewReader(bytes.NewReader(w.content(x))).ReadAll()
	must(t, err)
	if len(table) != 3 || !slices.Equal(table[0], resultColumns) {
		t.Fatalf("table %v", table)
	}
	for i, row := range table[1:] {
		for c, name := range resultColumns {
			want := lines[205+i][name]
			if want == nil {
				want = ""
			}
			if m, ok := want.(map[string]any); ok {
				var got map[string]any
				if json.Unmarshal([]byte(row[c]), &got) != nil || !reflect.DeepEqual(got, m) {
					t.Errorf("row %d: %s is %s", i, name, row[c])
				}
				continue
			}
			if row[c] != fmt.Sprint(want) {
				t.Errorf("row %d: %s is %q, want %q", i, name, row[c], want)
			}
		}
	}

	x = w.completed(w.ask(event.ExportRequested{Type: event.ExportOfIndex, Target: index, Runs: []string{"run_a"}, Scope: event.OnlyMatches, Format: event.FormatLines}).ID)
	if n := bytes.Count(w.content(x), []byte("\n")); n != 1 {
		t.Errorf("%d matches in one run, want 1", n)
	}
	x = w.completed(w.ask(event.ExportRequested{Type: event.ExportOfIndex, Target: "idx_empty"}).ID)
	if err := json.Unmarshal(w.content(x), &doc); err != nil || doc.Target != "idx_empty" || len(doc.Runs) != 0 {
		t.Errorf("an index without runs: %v, %+v", err, doc)
	}
	x = w.ended(w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_gone"}).ID)
	if x.Status != store.ExportFailed || x.Attempts != 1 || !strings.Contains(x.LastError, "run_gone") || !slices.Equal(w.events(x.ID), []string{"export.failed"}) {
		t.Errorf("a run that is not there: %+v, %v", x, w.events(x.ID))
	}
}

// A run that was cancelled before its media were listed has no results, and does not stand in the way of the others on its
// index. One whose list is being made is waited for.
func TestRunWithoutList(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("run_1", 2)
	unlisted := func(status store.RunStatus) func(*store.Run) {
		return func(r *store.Run) { r.Media, r.Status = "", status }
	}
	w.run("run_cancelled", 0, unlisted(store.RunCancelled))
	w.start()
	x := w.completed(w.ask(event.ExportRequested{Type: event.ExportOfIndex, Target: index, Format: event.FormatLines}).ID)
	if n := bytes.Count(w.content(x), []byte("\n")); n != 2 || x.Attempts != 1 {
		t.Errorf("%d results after %d attempts", n, x.Attempts)
	}
	w.run("run_new", 0, unlisted(store.RunPending))
	x = w.ended(w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_new"}).ID)
	if x.Status != store.ExportFailed || x.Attempts != MaxAttempts || !strings.Contains(x.LastError, "run_new are not listed yet") {
		t.Errorf("%+v", x)
	}
}

// The subject of a report decides what it is about, so its body may leave that out; a report that nobody can read was buried
// by whoever counts them, and does not stand in the way of what the others say.
func TestReports(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("run_1", 3)
	for i, said := range []string{"rubbish", `{"state":"successful","result":["car"]}`} {
		id, _ := medium("run_1", i)
		_, err := w.bus.Publish(t.Context(), bus.Message{Subject: w.bus.Subject("run", "report", "run_1", id.String()), Data: []byte(said)})
		must(t, err)
	}
	w.start()
	x := w.completed(w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_1", Format: event.FormatLines}).ID)
	var statuses []string
	for line := range bytes.Lines(w.content(x)) {
		var r result
		must(t, json.Unmarshal(line, &r))
		statuses = append(statuses, r.Status+" "+string(r.Metadata))
		if (r.ExecutedAt != nil) != (r.Status == completed) {
			t.Errorf("%s", line)
		}
	}
	if want := []string{"pending {}", `completed {"result":["car"]}`, "pending {}"}; !slices.Equal(statuses, want) {
		t.Errorf("%q, want %q", statuses, want)
	}
}

// The columns of a table are the members of the rows, in their order.
func TestColumns(t *testing.T) {
	t.Parallel()
	for columns, r := range map[*[]string]row{&resultColumns: result{}, &fileColumns: jobFile{}} {
		var members []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(r)) {
			members = append(members, f.Tag.Get("json"))
		}
		if !slices.Equal(members, *columns) || len(r.cells()) != len(*columns) {
			t.Errorf("%T: columns %v, members %v, %d cells", r, *columns, members, len(r.cells()))
		}
	}
}

func TestJob(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	must(t, store.WriteLines(t.Context(), w.docs, "report", seq([]event.File{
		{Job: "job_1", Path: "a.mp4", State: event.Imported, Video: "vid_1", Seconds: 2.5},
		{Job: "job_1", Path: "b.txt", State: event.Skipped, Reason: event.UnsupportedType},
		{Job: "job_1", Path: "c.mp4", State: event.Failed, Error: "corrupt"},
	})))
	must(t, w.jobs.Put(t.Context(), "job_1", store.Job{ID: "job_1", Index: index, Connector: "conn_1", Status: store.JobCompleted, Report: "report", Progress: store.Progress{Total: 3}}))
	w.start()
	x := w.completed(w.ask(event.ExportRequested{Type: event.ExportOfJob, Target: "job_1"}).ID)
	var doc struct {
		Jobs []struct {
			Job   string    `json:"job_id"`
			Files []jobFile `json:"files"`
		} `json:"jobs"`
	}
	must(t, json.Unmarshal(w.content(x), &doc))
	if len(doc.Jobs) != 1 || doc.Jobs[0].Job != "job_1" || len(doc.Jobs[0].Files) != 3 {
		t.Fatalf("document %+v", doc)
	}
	f := doc.Jobs[0].Files
	if f[0].Status != "imported" || *f[0].Video != "vid_1" || *f[1].Reason != "unsupported file type" || *f[2].Error != "corrupt" || f[2].Reason != nil {
		t.Errorf("files %+v", f)
	}
	for _, format := range []event.ExportFormat{event.FormatLines, event.FormatCSV} {
		x := w.completed(w.ask(event.ExportRequested{Type: event.ExportOfJob, Target: "job_1", Format: format}).ID)
		if n := bytes.Count(w.content(x), []byte("\n")); n != 3+map[event.ExportFormat]int{event.FormatCSV: 1}[format] {
			t.Errorf("%s: %d lines", format, n)
		}
	}
}

// A folder gets the file below the base path, whole, and again in the same place when the attempt before died between
// the file and the record.
func TestFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("run_1", 3)
	x := w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_1", Connector: "outbox", BasePath: "exports", Subpath: "cams/daily"})
	dead := w.exporter()
	must(t, dead.open(t.Context()))
	x, err := dead.begin(t.Context(), event.ExportRequested{Export: x.ID})
	must(t, err)
	made, err := dead.make(t.Context(), x)
	must(t, err)
	want := []string{"exports/cams/daily/run_1-" + x.ID + ".json"}
	before, err := os.ReadFile(filepath.Join(w.outbox, want[0]))
	must(t, err)
	if x.Attempts != 1 || int64(len(before)) != made.size || !slices.Equal(w.files(), want) {
		t.Fatalf("%+v wrote %v", x, w.files())
	}

	w.start()
	x = w.completed(x.ID)
	after, err := os.ReadFile(filepath.Join(w.outbox, want[0]))
	must(t, err)
	if x.Attempts != 2 || x.URI != "file://"+filepath.Join(w.outbox, want[0]) || !slices.Equal(w.files(), want) || !bytes.Equal(before, after) {
		t.Errorf("%+v wrote %v", x, w.files())
	}
	if got := w.events(x.ID); !slices.Equal(got, []string{"export.ready"}) {
		t.Errorf("events %v", got)
	}
	servicetest.Eventually(t, "the queue is empty", func() error {
		s, err := w.bus.State(t.Context(), topology.Exports)
		if err == nil && s.Msgs > 0 {
			err = fmt.Errorf("%d requests", s.Msgs)
		}
		return err
	})
}

// What a connector does not allow fails at once, and writes nothing.
func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("run_1", 1)
	outside := t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(w.outbox, "way-out")))
	for name, change := range map[string]func(*store.Connector){
		"scope":    func(c *store.Connector) { c.Scopes = []string{"import"} },
		"disabled": func(c *store.Connector) { c.Status = "disabled" },
		"moved":    func(c *store.Connector) { c.ExportBasePath = "elsewhere" },
		"up":       func(c *store.Connector) { c.ExportBasePath = "../.." },
		"rooted":   func(c *store.Connector) { c.ExportBasePath = "/etc" },
		"foreign":  func(c *store.Connector) { c.Path = outside },
		"gone":     func(c *store.Connector) { c.Path += "/gone" },
		"unknown":  func(c *store.Connector) { c.Provider = "ftp" },
	} {
		c, _, err := w.connectors.Get(t.Context(), "outbox")
		must(t, err)
		c.ID = name
		change(&c)
		must(t, w.connectors.Put(t.Context(), name, c))
	}
	w.start()
	check := func(connector, base, sub string, attempts int) {
		t.Helper()
		x := w.ended(w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_1", Connector: connector, BasePath: base, Subpath: sub}).ID)
		if x.Status != store.ExportFailed || x.Attempts != attempts || x.LastError == "" || x.URI != "" {
			t.Errorf("%s: %+v", connector, x)
		}
	}
	for _, name := range []string{"scope", "disabled", "moved", "foreign", "gone", "unknown", "nobody"} {
		check(name, "exports", "", 1)
	}
	check("up", "../..", "", 1)
	check("rooted", "/etc", "", 1)
	for _, sub := range []string{"../x", "/x", "a/../../x", ".hidden", "a//b", "a\\b"} {
		check("outbox", "exports", sub, 1)
	}
	c, _, err := w.connectors.Get(t.Context(), "outbox")
	must(t, err)
	c.ID, c.ExportBasePath = "leak", "way-out"
	must(t, w.connectors.Put(t.Context(), "leak", c))
	check("leak", "way-out", "", MaxAttempts)
	left, err := os.ReadDir(outside)
	must(t, err)
	if len(left) > 0 || len(w.files()) > 0 {
		t.Errorf("something was written: %v, %v", left, w.files())
	}
}

// A bucket that is busy is tried again, one that stays away is given up on, and the file is whole or not there.
func TestBucket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("run_1", 3)
	storage := gcstest.Start(t, "bucket")
	must(t, w.connectors.Put(t.Context(), "cloud", store.Connector{
		ID: "cloud", Provider: "gcs", Status: "active", Scopes: []string{"export", "import"}, Bucket: "bucket", EndpointURL: storage.URL, ExportBasePath: "out/",
	}))
	ask := func(format event.ExportFormat) store.Export {
		return w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_1", Connector: "cloud", BasePath: "out", Format: format})
	}
	w.start()
	x := w.completed(ask(event.FormatCSV).ID)
	data, _, ok := storage.Get("bucket", "out/run_1-"+x.ID+".csv")
	if !ok || int64(len(data)) != x.Size || x.URI != "gs://bucket/out/run_1-"+x.ID+".csv" {
		t.Errorf("%+v, %d bytes", x, len(data))
	}

	storage.Inject(-1, gcstest.Uploads, gcstest.Status(http.StatusServiceUnavailable, "backendError", "try later"))
	x = w.ended(ask(event.FormatJSON).ID)
	if x.Status != store.ExportFailed || x.Attempts != MaxAttempts || x.LastError == "" {
		t.Errorf("the storage is away: %+v", x)
	}
	if got := w.events(x.ID); !slices.Equal(got, []string{"export.failed"}) {
		t.Errorf("events %v", got)
	}
	storage.Heal()
	storage.Inject(1, gcstest.Uploads, gcstest.Status(http.StatusForbidden, "forbidden", "not you"))
	if x = w.ended(ask(event.FormatJSON).ID); x.Status != store.ExportFailed || x.Attempts != 1 {
		t.Errorf("not allowed: %+v", x)
	}
}

// An attempt that kills its process counts, and nothing of it stays; one that is ended by a shutdown does not count.
func TestAttempts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("run_1", 1)
	x := w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_1"})
	dying := w.exporter()
	must(t, dying.open(t.Context()))
	for range MaxAttempts {
		_, err := dying.begin(t.Context(), event.ExportRequested{Export: x.ID})
		must(t, err)
	}
	left, err := dying.make(t.Context(), x) // and died before it was on record
	must(t, err)
	y := w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_1"})
	begun, err := dying.begin(t.Context(), event.ExportRequested{Export: y.ID})
	must(t, err)
	must(t, dying.giveBack(t.Context(), begun))
	w.start()
	if x = w.ended(x.ID); x.Status != store.ExportFailed || x.Attempts != MaxAttempts || x.LastError == "" {
		t.Errorf("it killed each of its processes: %+v", x)
	}
	if y = w.completed(y.ID); y.Attempts != 1 {
		t.Errorf("given back: %+v", y)
	}
	if _, err := w.docs.Find(t.Context(), left.document); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("what the last attempt left: %v", err)
	}
}

// interrupted is storage that ends the process, as it were, once the file is whole.
type interrupted struct {
	connector.Writer
	end context.CancelFunc
}

func (w interrupted) Sync(ctx context.Context, keys ...string) error {
	err := w.Writer.Sync(ctx, keys...)
	w.end()
	return err
}

type interruptedDestinations struct {
	*connector.Opener
	end context.CancelFunc
}

func (d interruptedDestinations) Writer(ctx context.Context, c store.Connector) (connector.Writer, error) {
	w, err := d.Opener.Writer(ctx, c)
	return interrupted{w, d.end}, err
}

// A shutdown that comes between file and record does not cost an attempt, nor another file.
func TestShutdownBehindTheFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("run_1", 1)
	x := w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_1", Connector: "outbox", BasePath: "exports"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e := w.exporter()
	e.destinations = interruptedDestinations{w.opener, cancel}
	must(t, e.open(ctx))
	data, err := json.Marshal(event.ExportRequested{Export: x.ID, Target: x.Target})
	must(t, err)
	must(t, e.carryOut(ctx, &bus.Delivery{Data: data}))
	if x = w.completed(x.ID); ctx.Err() == nil || x.Attempts != 1 || !slices.Equal(w.events(x.ID), []string{"export.ready"}) {
		t.Errorf("%+v, events %v", x, w.events(x.ID))
	}
}

// A request that comes again after the end, even as another message, changes nothing.
func TestAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("run_1", 1)
	w.start()
	req := event.ExportRequested{Export: "exp_1", Type: event.ExportOfRun, Target: "run_1", Index: index, Scope: event.AllResults, Format: event.FormatJSON}
	data, err := json.Marshal(req)
	must(t, err)
	publish := func() {
		_, err := w.bus.Publish(t.Context(), bus.Message{Subject: w.bus.Subject("export", "requested", "exp_1"), Data: data})
		must(t, err)
	}
	publish() // without a record: whoever asked died
	x := w.completed("exp_1")
	publish()
	if y := w.ask(req); !reflect.DeepEqual(x, y) {
		t.Errorf("asked again: %+v", y)
	}
	servicetest.Eventually(t, "the queue is empty", func() error {
		s, err := w.bus.State(t.Context(), topology.Exports)
		if err == nil && s.Msgs > 0 {
			err = fmt.Errorf("%d requests", s.Msgs)
		}
		return err
	})
	if y, _, err := w.exports.Records().Get(t.Context(), "exp_1"); err != nil || !reflect.DeepEqual(x, y) {
		t.Errorf("%+v became %+v (%v)", x, y, err)
	}
	if got := w.events("exp_1"); len(got) != 1 {
		t.Errorf("events %v", got)
	}
	_, err = w.bus.Publish(t.Context(), bus.Message{Subject: w.bus.Subject("export", "requested", "exp_2"), Data: []byte("rubbish")})
	must(t, err)
	servicetest.Eventually(t, "rubbish is dead", func() error {
		s, err := w.bus.State(t.Context(), topology.DeadLetters)
		if err == nil && s.Msgs == 0 {
			err = errors.New("no letters")
		}
		return err
	})
}

// Files for download are removed when their time is over; the export stays.
func TestExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("run_1", 1)
	stop := w.start()
	x := w.completed(w.ask(event.ExportRequested{Type: event.ExportOfRun, Target: "run_1"}).ID)
	w.content(x)
	stop()
	w.start(func(c *Config) { c.Keep = time.Nanosecond })
	servicetest.Eventually(t, "it has no file", func() error {
		now, _, err := w.exports.Records().Get(t.Context(), x.ID)
		if err == nil && (now.Document != "" || now.URI != "" || now.Status != store.ExportCompleted) {
			err = fmt.Errorf("%+v", now)
		}
		return err
	})
	if _, err := w.docs.Find(t.Context(), x.Document); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the file: %v", err)
	}
}

func (w *world) automate(change func(*store.ExportAutomation)) store.ExportAutomation {
	w.Helper()
	id := event.ExportAutomationOfIndex(index)
	at, _, err := w.automations.Modify(w.Context(), id, func(at *store.ExportAutomation) error {
		if at.ID == "" {
			*at = store.ExportAutomation{
				ID: id, Index: index, Enabled: true, Connector: "outbox", Subpath: "auto", Format: event.FormatLines,
				EnabledAt: time.Now().UTC(),
			}
		}
		at.UpdatedAt = time.Now().UTC()
		if change != nil {
			change(at)
		}
		return nil
	})
	must(w, err)
	return at
}

func (w *world) all() (found []store.Export) {
	w.Helper()
	for x, err := range w.exports.Records().All(w.Context()) {
		must(w, err)
		found = append(found, x)
	}
	return found
}

// Each run that completes is exported once, however often that is told and by however many exporters; runs that did not
// complete, that are of another index, or that ended before there was an automation are not.
func TestAutomation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	early := w.run("run_early", 1)
	w.announce(early)
	at := w.automate(nil)
	stop := w.start()
	w.start()
	w.announce(w.run("run_other", 1, func(r *store.Run) { r.Index = "idx_2" }))
	w.announce(w.run("run_failed", 1, func(r *store.Run) { r.Status = store.RunFailed }))
	ok := w.run("run_ok", 3)
	w.announce(ok)
	partly := w.run("run_partly", 3, func(r *store.Run) { r.Status = store.RunCompletedWithFailures })
	w.announce(partly)
	w.announce(ok)
	id := event.ExportOfRunBy(at.ID, ok.ID)
	x := w.completed(id)
	if x.Automation != at.ID || x.Target != ok.ID || x.Type != event.ExportOfRun || !strings.HasPrefix(x.URI, "file://"+w.outbox+"/exports/auto/") {
		t.Errorf("%+v", x)
	}
	w.completed(event.ExportOfRunBy(at.ID, partly.ID))
	stop()
	w.announce(ok) // a redelivery after the end
	w.handled()
	if n := len(w.all()); n != 2 || len(w.files()) != 2 {
		t.Errorf("%d exports, files %v", n, w.files())
	}
	if x, _, _ := w.exports.Records().Get(t.Context(), id); x.Attempts != 1 || len(w.events(id)) != 1 {
		t.Errorf("%+v, events %v", x, w.events(id))
	}
	now, _, err := w.automations.Get(t.Context(), at.ID)
	must(t, err)
	if now.LastExport == "" || now.LastAt.IsZero() || !now.HeldFrom.IsZero() {
		t.Errorf("%+v", now)
	}
}

// What completes during a pause is exported when it is over; while an automation is off, nothing is, then or later.
func TestPause(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	at := w.automate(func(at *store.ExportAutomation) { at.Paused = true })
	w.start()
	first, second := w.run("run_1", 1), w.run("run_2", 1)
	w.announce(second) // in another order than they ended
	w.announce(first)
	w.handled()
	if at, _, err := w.automations.Get(t.Context(), at.ID); err != nil || !at.HeldFrom.Equal(first.EndedAt) || len(w.all()) > 0 {
		t.Fatalf("paused: %+v, %v, exports %v", at, err, w.all())
	}
	w.automate(func(at *store.ExportAutomation) { at.Paused = false })
	w.completed(event.ExportOfRunBy(at.ID, first.ID))
	w.completed(event.ExportOfRunBy(at.ID, second.ID))
	servicetest.Eventually(t, "nothing is held", func() error {
		at, _, err := w.automations.Get(t.Context(), at.ID)
		if err == nil && !at.HeldFrom.IsZero() {
			err = fmt.Errorf("%+v", at)
		}
		return err
	})

	w.automate(func(at *store.ExportAutomation) { at.Enabled = false })
	w.announce(w.run("run_3", 1))
	w.handled()
	w.automate(func(at *store.ExportAutomation) { at.Enabled, at.EnabledAt = true, time.Now().UTC() })
	last := w.run("run_4", 1)
	w.announce(last)
	w.completed(event.ExportOfRunBy(at.ID, last.ID))
	if n := len(w.all()); n != 3 {
		t.Errorf("%d exports, want 3", n)
	}
}

// An automation whose connector is gone does not keep quiet about it.
func TestAutomationWithoutConnector(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	at := w.automate(func(at *store.ExportAutomation) { at.Connector = "conn_gone" })
	w.start()
	run := w.run("run_1", 1)
	w.announce(run)
	x := w.ended(event.ExportOfRunBy(at.ID, run.ID))
	if x.Status != store.ExportFailed || !strings.Contains(x.LastError, "conn_gone") {
		t.Errorf("%+v", x)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	err := Config{Workers: -1, Backoff: -1, Timeout: -1, Keep: -1, SweepInterval: -1}.Validate()
	for _, word := range []string{"workers", "backoff", "timeout", "keep", "sweep interval"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v says nothing of %s", err, word)
		}
	}
}
