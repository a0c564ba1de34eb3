package importer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/bucket"
	"millrace/shared/bucket/dir"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/media"
	"millrace/shared/media/samples"
	"millrace/shared/service"
	"millrace/shared/service/servicetest"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// bench is an importer with a folder as source and another as library.
type rig struct {
	t       testing.TB
	env     service.Env
	root    string // of the source
	source  *faulty
	library *dir.Library
	jobs    *store.Register[store.Job]
	ledger  *store.Ledger
	n       int
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, env: servicetest.Env(t), root: t.TempDir()}
	src, err := dir.NewSource(r.root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	r.source = &faulty{Source: src}
	if r.library, err = dir.NewLibrary(dir.LibraryConfig{Path: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.library.Close() })
	if r.jobs, err = store.Open[store.Job](t.Context(), r.env.Bus, topology.JobRecords); err != nil {
		t.Fatal(err)
	}
	r.ledger = store.NewLedger(r.env.Bus)
	return r
}

// Source implements Sources.
func (r *rig) Source(context.Context, string) (bucket.Source, store.Connector, error) {
	return r.source, store.Connector{ID: "conn", Provider: "dir", Path: r.root}, nil
}

// Report implements Sources.
func (r *rig) Report(context.Context, string, error) error { return nil }

// start runs an importer.
func (r *rig) start(cfg Config, library bucket.Library) (stop func()) {
	r.t.Helper()
	e := r.env
	e.Metrics = prometheus.NewRegistry()
	im, err := New(cfg, e, r, library, media.New(media.Config{}))
	if err != nil {
		r.t.Fatal(err)
	}
	return servicetest.Run(r.t, im)
}

// write puts content at a path of the source.
func (r *rig) write(path string, content []byte) {
	r.t.Helper()
	file := filepath.Join(r.root, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func sample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := samples.FS.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// plan makes a job over paths of the source, as the scanner does: entries, tasks, record.
func (r *rig) plan(automation string, mode event.ImportMode, paths ...string) string {
	r.t.Helper()
	r.n++
	job := fmt.Sprintf("job_%d", r.n)
	var files, tasks []bus.Message
	for _, p := range paths {
		o, err := r.source.Stat(r.t.Context(), p)
		if err != nil {
			r.t.Fatal(err)
		}
		task := event.Task{Job: job, Lane: event.Live, Index: "idx", Connector: "conn", Automation: automation, Mode: mode, Object: object(o)}
		file := event.File{Job: job, Connector: "conn", Index: "idx", Path: p, Version: o.Version, Size: o.Size, State: event.Queued}
		h := event.ObjectHash("conn", p)
		files = append(files, r.message(file, "file", job, h))
		tasks = append(tasks, r.message(task, "task", "live", job, h))
	}
	r.publish(files)
	r.publish(tasks)
	err := r.jobs.Put(r.t.Context(), job, store.Job{
		ID: job, Index: "idx", Connector: "conn", Automation: automation, Lane: event.Live, Mode: mode,
		Status: store.JobImporting, Progress: store.Progress{Total: len(paths)}, CreatedAt: time.Now(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return job
}

func (r *rig) message(v any, tokens ...string) bus.Message {
	data, err := json.Marshal(v)
	if err != nil {
		r.t.Fatal(err)
	}
	return bus.Message{Subject: r.env.Bus.Subject(tokens...), Data: data}
}

func (r *rig) publish(msgs []bus.Message) {
	r.t.Helper()
	if _, errs := r.env.Bus.PublishAll(r.t.Context(), msgs); errors.Join(errs...) != nil {
		r.t.Fatal(errors.Join(errs...))
	}
}

// ended waits for the end of a job and returns it with its report by path.
func (r *rig) ended(job string) (store.Job, map[string]event.File) {
	r.t.Helper()
	var rec store.Job
	servicetest.Eventually(r.t, job+" is settled", func() (err error) {
		rec, _, err = r.jobs.Get(r.t.Context(), job)
		if err == nil && !rec.Settled {
			err = fmt.Errorf("status %s, progress %+v", rec.Status, rec.Progress)
		}
		return err
	})
	docs, err := store.OpenDocuments(r.t.Context(), r.env.Bus)
	if err != nil {
		r.t.Fatal(err)
	}
	report := map[string]event.File{}
	for f, err := range store.ReadLines[event.File](r.t.Context(), docs, rec.Report) {
		if err != nil {
			r.t.Fatal(err)
		}
		report[f.Path] = f
	}
	if p := rec.Progress; p.Imported+p.Skipped+p.Failed != p.Total || len(report) != p.Total {
		r.t.Errorf("%s: %d lines in the report, progress %+v", job, len(report), p)
	}
	return rec, report
}

func (r *rig) media() []event.Medium {
	r.t.Helper()
	page, next, err := r.ledger.Page(r.t.Context(), "idx", 10_000, "")
	if err != nil || next != "" {
		r.t.Fatal(err, next)
	}
	return page
}

// checkLibrary holds the library against the ledger: I5, and no orphan bytes.
func (r *rig) checkLibrary() {
	r.t.Helper()
	known := map[string]event.Medium{}
	for _, m := range r.media() {
		known[m.URI] = m
	}
	n := 0
	for o, err := range r.library.List(r.t.Context()) {
		if err != nil {
			r.t.Fatal(err)
		}
		n++
		m, ok := known[r.library.URI(o.Path)]
		if !ok {
			r.t.Errorf("orphan %s in the library", o.Path)
			continue
		}
		body, err := r.library.Open(r.t.Context(), o.Path, 0, -1)
		if err != nil {
			r.t.Fatal(err)
		}
		sum := sha256.New()
		size, err := io.Copy(sum, body)
		_ = body.Close()
		if err != nil || size != m.Size || hex.EncodeToString(sum.Sum(nil)) != m.SHA256 {
			r.t.Errorf("%s: %d bytes with another hash than its record says (%v)", m.Path, size, err)
		}
	}
	if n != len(known) {
		r.t.Errorf("%d media, %d objects in the library", len(known), n)
	}
}

func (r *rig) events(typ event.Type) (ids []string) {
	r.t.Helper()
	for m, err := range r.env.Bus.Scan(r.t.Context(), topology.Events, r.env.Bus.Subject("event", string(typ), "*", "*"), 0) {
		if err != nil {
			r.t.Fatal(err)
		}
		ids = append(ids, m.Subject[strings.LastIndex(m.Subject, ".")+1:])
	}
	return ids
}

// Every kind of file ends as it should, with its reason, in the library and in the ledger.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var paths []string
	for _, name := range samples.Good {
		r.write(name, sample(t, name))
		paths = append(paths, name)
	}
	for name := range samples.Bad {
		r.write(name, sample(t, name))
		paths = append(paths, name)
	}
	big := append(sample(t, "video.mp4"), make([]byte, 3<<20)...) // a second box of zeros: readable, and larger than memory reads
	copy(big[len(sample(t, "video.mp4")):], []byte{0x00, 0x30, 0x00, 0x00, 'f', 'r', 'e', 'e'})
	r.write("big.mp4", big)
	r.write("too big.mp4", append(slices.Clone(big), 0))
	paths = append(paths, "big.mp4", "too big.mp4")

	r.start(Config{MaxSize: int64(len(big))}, r.library)
	job := r.plan("auto", event.NewOnly, paths...)
	rec, report := r.ended(job)
	if rec.Status != store.JobCompleted || rec.Progress.Imported != len(samples.Good)+1 {
		t.Errorf("job %s: %+v", rec.Status, rec.Progress)
	}
	for _, name := range append(slices.Clone(samples.Good), "big.mp4") {
		if f := report[name]; f.State != event.Imported || f.Video == "" || f.MediaType == "" {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if f := report["too big.mp4"]; f.State != event.Skipped || f.Reason != event.TooLarge || !strings.Contains(f.Error, fmt.Sprintf("the limit is %d", len(big))) {
		t.Errorf("beyond the limit: %+v", f)
	}
	for name, want := range samples.Bad {
		f := report[name]
		got := string(f.State) + ": " + string(f.Reason)
		if f.State == event.Failed {
			got = string(f.State) + ": " + strings.SplitN(f.Error, ":", 2)[0]
		}
		if got != want {
			t.Errorf("%s: %q, want %q (%s)", name, got, want, f.Error)
		}
	}
	r.checkLibrary()
	if n := len(r.events(event.MediaCreated)); n != rec.Progress.Imported {
		t.Errorf("%d media.created events", n)
	}
	if got := r.events(event.JobPartialCompleted); len(got) != 1 || got[0] != job {
		t.Errorf("partial_completed events %v", got)
	}
	left, err := r.env.Bus.State(t.Context(), topology.Files)
	if err != nil || left.Msgs != 0 {
		t.Errorf("%d file entries left (%v)", left.Msgs, err)
	}
}

// I2: whatever is repeated (the task, the job, the bytes under a new time) makes no second medium.
func TestNothingIsImportedTwice(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(Config{}, r.library)
	r.write("a.mp4", sample(t, "video.mp4"))
	first := r.plan("auto", event.NewOnly, "a.mp4")
	r.ended(first)

	_, report := r.ended(r.plan("auto", event.NewOnly, "a.mp4"))
	if f := report["a.mp4"]; f.Reason != event.AlreadyImported {
		t.Errorf("the same version again: %+v", f)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(r.root, "a.mp4"), later, later); err != nil {
		t.Fatal(err)
	}
	_, report = r.ended(r.plan("auto", event.NewOnly, "a.mp4"))
	if f := report["a.mp4"]; f.Reason != event.Unchanged {
		t.Errorf("touched: %+v", f)
	}
	r.write("a.mp4", sample(t, "video.mov"))
	_, report = r.ended(r.plan("auto", event.NewOnly, "a.mp4"))
	if f := report["a.mp4"]; f.State != event.Imported {
		t.Errorf("overwritten: %+v", f)
	}
	if n := len(r.media()); n != 2 {
		t.Errorf("%d media, want both versions", n)
	}
	_, report = r.ended(r.plan("", event.All, "a.mp4"))
	if f := report["a.mp4"]; f.State != event.Imported {
		t.Errorf("mode all: %+v", f)
	}
	if n := len(r.media()); n != 3 {
		t.Errorf("%d media after mode all", n)
	}
	r.checkLibrary()
}

// I2: a crash between the ledger and the file entry: the redelivered task finds that this very job imported it.
func TestCrashBehindTheCommitPoint(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write("a.mp4", sample(t, "video.mp4"))
	job := r.plan("auto", event.NewOnly, "a.mp4")
	o, err := r.source.Stat(t.Context(), "a.mp4")
	if err != nil {
		t.Fatal(err)
	}
	m := event.Medium{ID: event.NewMediumID("idx", "conn", "a.mp4", o.Version, ""), Index: "idx", Connector: "conn", Path: "a.mp4",
		Version: o.Version, State: event.MediumImported, Job: job, MediaType: "video"}
	if errs := r.ledger.Write(t.Context(), []store.Entry{{Medium: m}}); errs[0] != nil {
		t.Fatal(errs[0])
	}
	r.start(Config{}, r.library)
	rec, report := r.ended(job)
	if f := report["a.mp4"]; f.State != event.Imported || f.Video != m.ID.String() || rec.Progress.Imported != 1 {
		t.Errorf("%+v", f)
	}
}

// I1, I2: the version a task is about is replaced before it is read: the live one is announced, never its bytes
// imported under the old name. A one-time job follows.
func TestSuperseded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write("a.mp4", sample(t, "video.mp4"))
	r.write("b.mp4", sample(t, "video.mp4"))
	r.write("gone.mp4", sample(t, "video.mp4"))
	auto := r.plan("auto", event.NewOnly, "a.mp4", "gone.mp4")
	byHand := r.plan("", event.NewOnly, "b.mp4")
	r.write("a.mp4", sample(t, "video.webm"))
	r.write("b.mp4", sample(t, "video.webm"))
	if err := os.Remove(filepath.Join(r.root, "gone.mp4")); err != nil {
		t.Fatal(err)
	}
	r.start(Config{}, r.library)

	_, report := r.ended(auto)
	if f := report["a.mp4"]; f.Reason != event.Superseded {
		t.Errorf("overwritten: %+v", f)
	}
	if f := report["gone.mp4"]; f.Reason != event.ObjectGone {
		t.Errorf("deleted: %+v", f)
	}
	live, err := r.source.Stat(t.Context(), "a.mp4")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for m, err := range r.env.Bus.Last(t.Context(), topology.Arrivals, r.env.Bus.Subject("arrival", "auto", "*")) {
		var a event.Arrival
		if err != nil || json.Unmarshal(m.Data, &a) != nil {
			t.Fatal(err)
		}
		found = a.Path == "a.mp4" && a.Version == live.Version
	}
	if !found {
		t.Error("the live version was not announced")
	}
	_, report = r.ended(byHand)
	if f := report["b.mp4"]; f.State != event.Imported || f.Version == "" {
		t.Errorf("by hand: %+v", f)
	}
	r.checkLibrary()
}

// faulty lets reads fail.
type faulty struct {
	bucket.Source
	fail  atomic.Pointer[error]
	opens atomic.Int64
	hold  atomic.Pointer[chan struct{}]
}

func (f *faulty) Open(ctx context.Context, path, version string, offset, length int64) (io.ReadCloser, error) {
	f.opens.Add(1)
	if c := f.hold.Load(); c != nil {
		select {
		case <-*c:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := f.fail.Load(); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, *err)
	}
	return f.Source.Open(ctx, path, version, offset, length)
}

// What may pass is tried again and counts its attempts; what has run out of them is failed, may be tried by a scan
// later, and is imported by the next job.
func TestRetries(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write("a.mp4", sample(t, "video.mp4"))
	broken := bucket.ErrChecksum
	r.source.fail.Store(&broken)
	r.start(Config{MaxAttempts: 2}, r.library)
	job, report := r.ended(r.plan("auto", event.NewOnly, "a.mp4"))
	f := report["a.mp4"]
	if f.State != event.Failed || f.Attempts != 2 || job.Status != store.JobFailed || job.Error == "" {
		t.Errorf("%+v of job %+v", f, job)
	}
	found, err := r.ledger.Get(t.Context(), "idx", event.NewMediumID("idx", "conn", "a.mp4", f.Version, ""))
	if err != nil || len(found) != 1 {
		t.Fatal(err, found)
	}
	if m := found[0]; m.State != event.MediumFailed || m.RetryAt.Before(time.Now().Add(50*time.Minute)) || m.Settled(time.Now().Add(2*time.Hour)) {
		t.Errorf("ledger %+v", m)
	}
	r.source.fail.Store(nil)
	_, report = r.ended(r.plan("auto", event.NewOnly, "a.mp4"))
	if f := report["a.mp4"]; f.State != event.Imported {
		t.Errorf("afterwards: %+v", f)
	}
}

// A tracker that lost its lease and does not know it yet must not report from entries that its successor has removed.
func TestReportOutlivesALateTracker(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write("a.mp4", sample(t, "video.mp4"))
	stop := r.start(Config{}, r.library)
	job := r.plan("auto", event.NewOnly, "a.mp4")
	rec, _ := r.ended(job)
	stop()
	late := newTracker(r.env, newMetrics(prometheus.NewRegistry()))
	if err := late.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec.Status, rec.Settled, rec.Report = store.JobImporting, false, ""
	if err := late.end(t.Context(), rec, rec.Progress, 1); err == nil {
		t.Error("a job ended twice")
	}
	rec.Status, rec.Progress.Total = store.JobCancelled, 0 // while it was planned
	if err := late.clear(t.Context(), rec); err == nil {
		t.Error("a cancelled job was reported twice")
	}
	if _, report := r.ended(job); len(report) != 1 {
		t.Errorf("%d files are in the report", len(report))
	}
}

// A tracker that dies once the entries of a job are gone leaves a record that names the report made of them, also when
// the job failed while it was planned.
func TestReportIsOnRecordBeforeEntriesGo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write("a.mp4", sample(t, "video.mp4"))
	job := r.plan("auto", event.NewOnly, "a.mp4")
	rec, _, err := r.jobs.Modify(t.Context(), job, func(j *store.Job) error { j.Status = store.JobFailed; return nil })
	if err != nil {
		t.Fatal(err)
	}
	// The work queue is needed after the report, and before the entries go.
	if err := r.env.Bus.JetStream().DeleteStream(t.Context(), r.env.Bus.Stream(topology.Tasks)); err != nil {
		t.Fatal(err)
	}
	first := newTracker(r.env, newMetrics(prometheus.NewRegistry()))
	if err := first.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.settle(t.Context(), rec); err == nil {
		t.Fatal("it came to its end")
	}
	if rec, _, err = r.jobs.Get(t.Context(), job); err != nil || rec.Report == "" || rec.Settled {
		t.Errorf("%+v, %v", rec, err)
	}
}

// A cancelled job ends with what it has: transfers in flight stop, the queue is settled, no event is published.
func TestCancel(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var paths []string
	for i := range 40 {
		p := fmt.Sprintf("%d.mp4", i)
		r.write(p, sample(t, "video.mp4"))
		paths = append(paths, p)
	}
	hold := make(chan struct{})
	r.source.hold.Store(&hold)
	r.start(Config{Workers: 4}, r.library)
	job := r.plan("auto", event.NewOnly, paths...)
	servicetest.Eventually(t, "transfers are under way", func() error {
		if r.source.opens.Load() < 4 {
			return errors.New("not yet")
		}
		return nil
	})
	_, _, err := r.jobs.Modify(t.Context(), job, func(j *store.Job) error { j.Status = store.JobCancelled; return nil })
	if err != nil {
		t.Fatal(err)
	}
	rec, report := r.ended(job)
	for p, f := range report {
		if f.State != event.Skipped || f.Reason != event.Cancelled {
			t.Errorf("%s: %+v", p, f)
		}
	}
	if len(report) != len(paths) || rec.Status != store.JobCancelled {
		t.Errorf("%d files in the report of the %s job", len(report), rec.Status)
	}
	for _, typ := range []event.Type{event.JobCompleted, event.JobPartialCompleted, event.JobFailed} {
		if ids := r.events(typ); len(ids) > 0 {
			t.Errorf("%s of %v", typ, ids)
		}
	}
	close(hold)
	r.checkLibrary()
}

// Storage that is down for everybody burns no attempts: tasks wait until it is back.
func TestCircuitWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var paths []string
	for i := range 30 {
		p := fmt.Sprintf("%d.mp4", i)
		r.write(p, sample(t, "video.mp4"))
		paths = append(paths, p)
	}
	down := bucket.ErrUnavailable
	r.source.fail.Store(&down)
	r.start(Config{Workers: 4, MaxAttempts: 3}, r.library)
	job := r.plan("auto", event.NewOnly, paths...)
	servicetest.Eventually(t, "the circuit has opened", func() error {
		if r.source.opens.Load() < circuitThreshold {
			return errors.New("not yet")
		}
		return nil
	})
	r.source.fail.Store(nil)
	rec, _ := r.ended(job)
	if rec.Progress.Imported != len(paths) {
		t.Errorf("progress %+v", rec.Progress)
	}
}

// Two importers share the work and the tracker's lease; one of them is stopped in the middle.
func TestTwoImporters(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var paths []string
	for i := range 300 {
		p := fmt.Sprintf("%d.jpg", i)
		r.write(p, append(sample(t, "photo.jpg"), byte(i), byte(i>>8)))
		paths = append(paths, p)
	}
	stop := r.start(Config{Workers: 4}, r.library)
	r.start(Config{Workers: 4}, r.library)
	job := r.plan("auto", event.NewOnly, paths...)
	servicetest.Eventually(t, "some are imported", func() error {
		if n := len(r.events(event.MediaCreated)); n < 50 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	stop()
	rec, _ := r.ended(job)
	if rec.Progress.Imported != len(paths) || len(r.media()) != len(paths) {
		t.Errorf("progress %+v, %d media", rec.Progress, len(r.media()))
	}
	// One that was stopped between the event and its record leaves it to be told again, under the same id.
	if ids := r.events(event.JobCompleted); len(slices.Compact(ids)) != 1 {
		t.Errorf("completed events of %v", ids)
	}
	r.checkLibrary()
}

// By reference: nothing is copied, and the record says where the object lies.
func TestNoLibrary(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write("dir/a b.mp4", sample(t, "video.mp4"))
	r.start(Config{}, nil)
	r.ended(r.plan("auto", event.NewOnly, "dir/a b.mp4"))
	m := r.media()
	if len(m) != 1 || m[0].URI != "file://"+strings.ReplaceAll(filepath.Join(r.root, "dir/a b.mp4"), " ", "%20") || m[0].SHA256 == "" {
		t.Errorf("%+v", m)
	}
}

// An empty job and one that failed while it was planned end too.
func TestJobsWithoutFiles(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start(Config{}, r.library)
	rec, _ := r.ended(r.plan("", event.NewOnly))
	if rec.Status != store.JobCompleted {
		t.Errorf("status %s", rec.Status)
	}
	if err := r.jobs.Put(t.Context(), "job_f", store.Job{ID: "job_f", Index: "idx", Status: store.JobFailed, Error: "no such bucket", Lane: event.Bulk}); err != nil {
		t.Fatal(err)
	}
	rec, _ = r.ended("job_f")
	if ids := r.events(event.JobFailed); len(ids) != 1 || rec.Error != "no such bucket" {
		t.Errorf("failed events %v of %+v", ids, rec)
	}
}
