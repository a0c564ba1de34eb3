package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/shared/bucket"
	"millrace/shared/event"
	"millrace/shared/media"
	"millrace/shared/store"
)

func TestAsk(t *testing.T) {
	task := event.Task{Job: "job_1", Index: "idx", Connector: "conn", Automation: "auto", Mode: event.NewOnly,
		Object: event.Object{Path: "a/b.mp4", Version: "2"}}
	entry := func(version string, state event.MediumState, job string) store.Entry {
		return store.Entry{Revision: 9, Medium: event.Medium{
			ID: event.NewMediumID("idx", "conn", "a/b.mp4", version, ""), State: state, Job: job, Version: version,
			Size: 10, CreatedAt: time.Unix(int64(len(version)), 0), Attempts: 1,
		}}
	}
	skipped := entry("2", event.MediumSkipped, "job_0")
	skipped.Reason = string(event.UnsupportedType)
	manual, all, hiddenTask, again := task, task, task, task
	again.Again, again.Automation = true, ""
	manual.Automation = ""
	all.Mode = event.All
	hiddenTask.Path = "a/.b.mp4"

	for name, c := range map[string]struct {
		task     event.Task
		entries  []store.Entry
		skip     event.SkipReason
		again    bool
		newest   string
		revision store.Revision
	}{
		"unknown":                       {task: task},
		"this version by another job":   {task: task, entries: []store.Entry{entry("2", event.MediumImported, "job_0")}, skip: event.AlreadyImported, revision: 9},
		"this version by this very job": {task: task, entries: []store.Entry{entry("2", event.MediumImported, "job_1")}, again: true, revision: 9},
		"this version deleted":          {task: task, entries: []store.Entry{entry("2", event.MediumDeleted, "job_0")}, skip: event.AlreadyImported, revision: 9},
		"this version skipped":          {task: task, entries: []store.Entry{skipped}, skip: event.UnsupportedType, revision: 9},
		"this version skipped, again":   {task: again, entries: []store.Entry{skipped}, revision: 9},
		"this version deleted, again":   {task: again, entries: []store.Entry{entry("2", event.MediumDeleted, "job_0")}, skip: event.AlreadyImported, revision: 9},
		"this version imported, again":  {task: again, entries: []store.Entry{entry("2", event.MediumImported, "job_0")}, skip: event.AlreadyImported, revision: 9},
		"this version failed":           {task: task, entries: []store.Entry{entry("2", event.MediumFailed, "job_0")}, revision: 9},
		"baseline, automation":          {task: task, entries: []store.Entry{entry("2", event.MediumBaseline, "")}, skip: event.Baseline, revision: 9},
		"baseline, by hand":             {task: manual, entries: []store.Entry{entry("2", event.MediumBaseline, "")}, revision: 9},
		"older version imported":        {task: task, entries: []store.Entry{entry("1", event.MediumImported, "job_0")}, newest: "1"},
		"older versions, newest counts": {task: task, entries: []store.Entry{entry("333", event.MediumImported, "j"), entry("1", event.MediumImported, "j")}, newest: "333"},
		"older version failed":          {task: task, entries: []store.Entry{entry("1", event.MediumFailed, "job_0")}},
		"mode all imports again":        {task: all, entries: []store.Entry{entry("2", event.MediumImported, "job_0")}, newest: "2"},
		"hidden":                        {task: hiddenTask, skip: event.HiddenOrTemporary},
	} {
		t.Run(name, func(t *testing.T) {
			a := ask(c.task, c.entries)
			if a.skip != c.skip || (a.imported != nil) != c.again || a.revision != c.revision {
				t.Errorf("skip %q, imported %v, revision %d", a.skip, a.imported, a.revision)
			}
			newest := ""
			if a.newest != nil {
				newest = a.newest.Version
			}
			if newest != c.newest {
				t.Errorf("newest %q, want %q", newest, c.newest)
			}
		})
	}
}

func TestHidden(t *testing.T) {
	for path, want := range map[string]bool{
		"a.mp4": false, "dir/a.mp4": false, ".a.mp4": true, ".git/a.mp4": true, "x/.cache/a.mp4": true, "a.mp4.part": true,
		"a.PART": true, "a.tmp": true, "a.mp4.crdownload": true, "a.mp4~": true, "a.part.mp4": false, "part": false, "..mp4": true,
	} {
		if hidden(path) != want {
			t.Errorf("hidden(%q) = %v", path, !want)
		}
	}
}

func TestUnchanged(t *testing.T) {
	m := &event.Medium{Size: 3, CRC32C: "aaa", SHA256: "bbb"}
	for name, c := range map[string]struct {
		newest   *event.Medium
		size     int64
		crc, sha string
		want     bool
	}{
		"nothing imported":                {nil, 3, "aaa", "bbb", false},
		"other size":                      {m, 4, "aaa", "bbb", false},
		"same by checksum of the listing": {m, 3, "aaa", "", true},
		"other checksum":                  {m, 3, "xxx", "", false},
		"no checksum at all":              {m, 3, "", "", false},
		"the stronger hash decides":       {m, 3, "aaa", "xxx", false},
		"same by hash":                    {m, 3, "", "bbb", true},
		"imported without a hash":         {&event.Medium{Size: 3}, 3, "", "bbb", false},
	} {
		if got := unchanged(c.newest, c.size, c.crc, c.sha); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		n      int
		final  bool
		comes  bool
		reason string
	}{
		"broken file":         {fmt.Errorf("x: %w", &media.UnreadableError{Reason: "no moov"}), 1, true, false, reasonUnreadable},
		"connection broke":    {io.ErrUnexpectedEOF, 1, false, true, "broken"},
		"time-out":            {context.DeadlineExceeded, 5, false, true, "timeout"},
		"the last attempt":    {context.DeadlineExceeded, 6, true, true, "timeout"},
		"permission":          {bucket.ErrPermission, 1, true, true, "permission"},
		"permission for all":  {&closedError{bucket.ErrPermission}, 1, false, true, "permission"},
		"name not allowed":    {bucket.ErrName, 1, true, false, "name"},
		"checksum mismatch":   {bucket.ErrChecksum, 1, false, true, "checksum"},
		"something not known": {errors.New("?"), 1, false, true, "other"},
	} {
		f := judge(c.err, c.n, 6)
		if f.final != c.final || f.reason != c.reason || (f.final && f.comes != c.comes) || (!f.final && f.again <= 0) {
			t.Errorf("%s: %+v", name, f)
		}
	}
	throttled := &bucket.ThrottledError{RetryAfter: time.Hour, Err: bucket.ErrThrottled}
	if f := judge(throttled, 1, 6); f.again < time.Hour {
		t.Errorf("again in %s although the storage asked for an hour", f.again)
	}
}

func TestPause(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 100).Draw(t, "n")
		base := min(time.Minute, time.Second<<min(n-1, 6))
		if d := pause(n); d < base/2 || d >= base/2+base {
			t.Fatalf("pause(%d) = %s", n, d)
		}
	})
}

func TestRetryAt(t *testing.T) {
	now := time.Unix(0, 0)
	for n, want := range map[int]time.Duration{1: time.Hour, 2: 6 * time.Hour, 3: 24 * time.Hour, 50: 24 * time.Hour} {
		if got := retryAt(n, now).Sub(now); got != want {
			t.Errorf("after %d: %s", n, got)
		}
	}
}

// A circuit opens after a few failures that everybody would meet, or with one that says so; it lets one through at a time
// after its wait, and then twice as many with each success.
func TestCircuit(t *testing.T) {
	now := time.Unix(0, 0)
	cs := newCircuits()
	cs.now = func() time.Time { return now }
	enter := func(connector, access string) (pass, bool) {
		p, wait := cs.enter(connector, access)
		return p, wait == 0
	}
	for i := range circuitThreshold {
		p, ok := enter("c", "key")
		if !ok {
			t.Fatalf("open after %d failures", i)
		}
		if l := cs.leave(p, verdict{bucketwide: true}); l.opened != (i == circuitThreshold-1) || l.held {
			t.Fatalf("failure %d: %+v", i+1, l)
		}
	}
	if _, ok := enter("c", "key"); ok {
		t.Fatal("open circuit lets tasks through")
	}
	if _, ok := enter("other", "key"); !ok {
		t.Fatal("the circuit of another connector is open")
	}
	now = now.Add(circuitFirstWait)
	probe, ok := enter("c", "key")
	if _, two := enter("c", "key"); !ok || two {
		t.Fatalf("a probe after the wait: %v, another: %v", ok, two)
	}
	if l := cs.leave(probe, verdict{bucketwide: true}); !l.held || l.opened {
		t.Fatalf("a failed probe counts: %+v", l)
	}
	if _, w := cs.enter("c", "key"); w < 2*circuitFirstWait {
		t.Fatalf("wait %s after a failed probe", w)
	}
	now = now.Add(2 * circuitFirstWait)
	probe, _ = enter("c", "key")
	cs.leave(probe, verdict{})
	var passes []pass
	for {
		p, ok := enter("c", "key")
		if !ok {
			break
		}
		passes = append(passes, p)
	}
	if len(passes) != 2 {
		t.Fatalf("%d at a time after the first success", len(passes))
	}
	if l := cs.leave(passes[0], verdict{bucketwide: true, after: time.Minute}); !l.opened || l.held {
		t.Fatalf("a failure while it closes: %+v", l)
	}
	if _, w := cs.enter("c", "key"); w < time.Minute {
		t.Fatalf("wait %s although the storage asked for a minute", w)
	}
	for range 5 { // a storage that names a time is asked then, however often it has said so
		now = now.Add(time.Minute)
		probe, ok = enter("c", "key")
		if !ok {
			t.Fatal("no probe after the minute the storage asked for")
		}
		cs.leave(probe, verdict{bucketwide: true, after: time.Minute})
	}
	now = now.Add(time.Minute)
	for range 100 {
		p, ok := enter("c", "key")
		if !ok {
			t.Fatal("what began before it opened stands in the way")
		}
		cs.leave(p, verdict{})
	}
	if len(cs.byConnector) != 0 {
		t.Fatal("still open after many successes")
	}
}

// Credentials that are refused open it at once, cost nothing, and other credentials close it.
func TestCircuitOfCredentials(t *testing.T) {
	cs := newCircuits()
	old, _ := cs.enter("c", "old")
	late, _ := cs.enter("c", "old")
	if l := cs.leave(old, verdict{bucketwide: true, certain: true}); !l.opened || !l.held {
		t.Fatalf("%+v", l)
	}
	if _, w := cs.enter("c", "old"); w == 0 {
		t.Fatal("open circuit lets tasks through")
	}
	if _, w := cs.enter("c", "new"); w != 0 {
		t.Fatal("it is open for new credentials")
	}
	cs.leave(late, verdict{bucketwide: true, certain: true})
	if _, w := cs.enter("c", "new"); w != 0 {
		t.Fatal("a task with the old ones opened it")
	}
}

// I7: whatever subset of the entries the tracker sees, in whatever repetition, the sums are those of the last ones.
func TestFold(t *testing.T) {
	states := []event.FileState{event.Queued, event.Importing, event.Imported, event.Skipped, event.Failed}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "files")
		f := newFold()
		last := map[string]event.File{}
		imported := 0
		for range rapid.IntRange(0, 100).Draw(t, "entries") {
			object := fmt.Sprint(rapid.IntRange(0, n-1).Draw(t, "object"))
			file := event.File{Path: object, State: rapid.SampledFrom(states).Draw(t, "state"), Bytes: rapid.Int64Range(0, 9).Draw(t, "bytes")}
			for range rapid.IntRange(1, 3).Draw(t, "times") {
				f.add(object, file)
			}
			if last[object].State != event.Imported {
				last[object] = file
			}
			if p := f.progress(n); p.Imported < imported {
				t.Fatalf("imported went from %d to %d", imported, p.Imported)
			} else {
				imported = p.Imported
			}
		}
		want := store.Progress{Total: n}
		for _, file := range last {
			switch file.State {
			case event.Imported:
				want.Imported++
			case event.Skipped:
				want.Skipped++
			case event.Failed:
				want.Failed++
			}
			want.Bytes += file.Bytes
		}
		got := f.progress(n)
		got.Current = ""
		if got != want {
			t.Fatalf("progress %+v, want %+v", got, want)
		}
		if got.Imported+got.Skipped+got.Failed > n {
			t.Fatal("more than there are")
		}
	})
}

// Progress on record follows entries in their order, and stands still once the job has ended.
func TestAdvanced(t *testing.T) {
	importing := store.Job{Status: store.JobImporting, AsOf: 7, Progress: store.Progress{Total: 9, Imported: 5}}
	ended := importing
	ended.Status = store.JobCancelled
	for _, c := range []struct {
		name string
		job  store.Job
		asOf uint64
		want bool
	}{
		{"further", importing, 8, true},
		{"as far", importing, 7, false},
		{"behind, as of a tracker that begins anew", importing, 3, false},
		{"ended", ended, 8, false},
	} {
		was, j := c.job, c.job
		got := advanced(&j, store.Progress{Imported: 6}, c.asOf)
		if c.want {
			was.AsOf, was.Progress.Imported = c.asOf, 6
		}
		if got != c.want || !reflect.DeepEqual(j, was) {
			t.Errorf("%s: %v, %+v, want %+v", c.name, got, j, was)
		}
	}
}

func TestNext(t *testing.T) {
	full := newFold()
	full.add("a", event.File{State: event.Imported})
	full.add("b", event.File{State: event.Failed})
	open := newFold()
	open.add("a", event.File{State: event.Queued})
	job := func(s store.JobStatus, total int) *store.Job {
		return &store.Job{Status: s, Progress: store.Progress{Total: total}}
	}
	settledJob := job(store.JobCompleted, 2)
	settledJob.Settled = true
	cleared := job(store.JobCancelled, 2)
	cleared.Report = "jobs/x.jsonl"
	for name, c := range map[string]struct {
		rec  *store.Job
		fold *fold
		want step
	}{
		"record not seen":         {nil, full, nothing},
		"pending":                 {job(store.JobPending, 0), newFold(), nothing},
		"scanning":                {job(store.JobScanning, 0), full, show},
		"some left":               {job(store.JobImporting, 3), full, show},
		"all final":               {job(store.JobImporting, 2), full, end},
		"nothing matched":         {job(store.JobImporting, 0), newFold(), end},
		"cancelled":               {job(store.JobCancelled, 2), open, clearQueue},
		"cancelled and reported":  {cleared, newFold(), settleEnded}, // its entries may be gone: no second report
		"ended, not announced":    {job(store.JobCompleted, 2), full, settleEnded},
		"failed while planned":    {job(store.JobFailed, 0), newFold(), settleEnded},
		"settled":                 {settledJob, newFold(), nothing},
		"settled, entries remain": {settledJob, full, sweepUp},
	} {
		if got := next(c.rec, c.fold); got != c.want {
			t.Errorf("%s: step %d, want %d", name, got, c.want)
		}
	}
}

func TestOutcomeOf(t *testing.T) {
	for p, want := range map[store.Progress]store.JobStatus{
		{}:                                 store.JobCompleted,
		{Total: 2, Imported: 1, Failed: 1}: store.JobCompleted,
		{Total: 2, Skipped: 1, Failed: 1}:  store.JobCompleted,
		{Total: 2, Failed: 2}:              store.JobFailed,
	} {
		if got := outcomeOf(p); got != want {
			t.Errorf("%+v: %s", p, got)
		}
	}
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Bandwidth{
		"0": 0, "500": 500, "500kB/s": 500_000, "100MB/s": 100_000_000, "100 MB/s": 100_000_000, "1GiB/s": 1 << 30, "2M": 2_000_000,
	} {
		var b Bandwidth
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%s: %d, %v", text, b, err)
		}
	}
	for _, text := range []string{"", "-1", "fast", "1TB/s", "1.5MB/s", "100MB/m"} {
		var b Bandwidth
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %d", text, b)
		}
	}
}
