package sim

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/window"
)

// oracle is what is seen from outside, and what must hold of it. It sees every write.
type oracle struct {
	came      map[string][]touch                 // arrivals of each automation, as they were stored
	intervals map[string][]time.Duration         // that an automation ever had
	flushed   map[string]bool                    // the open window of an automation was to close at once
	epochs    map[string]string                  // windows that have closed, and of which automation
	before    map[string][]stored[window.Record] // records as they were
	rotten    map[string]bool                    // the broker has lost what it had acknowledged of this automation
	paused    map[string]bool                    // a pause of the automation was answered, and no resume has begun since
	imported  map[event.MediumID]string          // by which job
	byJob     map[string][]string                // media that a job has imported
	accepted  map[string][]string                // the runs that the prompt service has taken
	newest    map[string]string                  // order of the newest version that a path ever had, by connector and path
	told      map[string]string                  // event of each delivery
}

type touch struct {
	seq uint64
	at  time.Time
}

func newOracle() oracle {
	return oracle{
		came: map[string][]touch{}, intervals: map[string][]time.Duration{}, flushed: map[string]bool{}, epochs: map[string]string{},
		before: map[string][]stored[window.Record]{}, rotten: map[string]bool{}, paused: map[string]bool{},
		imported: map[event.MediumID]string{}, byJob: map[string][]string{}, accepted: map[string][]string{}, told: map[string]string{}, newest: map[string]string{},
	}
}

func (o *oracle) interval(a string, d time.Duration) { o.intervals[a] = append(o.intervals[a], d) }

// arrived sees an arrival. What is pending already must not arrive again: it would keep its window open (I6).
func (w *world) arrived(old, now stored[event.Arrival]) {
	a := now.v
	w.came[a.Automation] = append(w.came[a.Automation], touch{now.seq, now.at})
	if old.seq > 0 && old.v.Version == a.Version && a.Found != event.ByImporter {
		w.violated("I6: %s %s arrives again although it is pending", a.Path, a.Version)
	}
	w.arriving.add(item[event.Arrival]{v: a, key: now.subject, seq: now.seq})
}

// windowed sees a window's record change (I6, I7, I11).
func (w *world) windowed(old, now stored[window.Record]) {
	o, n := old.v, now.v
	a := cmp.Or(n.Automation, o.Automation)
	w.before[a] = append(w.before[a], old)
	if len(w.before[a]) > 4 {
		w.before[a] = w.before[a][1:]
	}
	if w.verbose && n.Open != nil {
		w.logf("window %s of %s: up to %d, opened %s, until %s, held %v", n.Open.Epoch, a, n.Open.LastSeq, n.Open.OpenedAt.Format(time.TimeOnly),
			n.Open.Deadline.Format(time.TimeOnly), n.Held)
	}
	closes := n.Closing != nil && (o.Closing == nil || o.Closing.Epoch != n.Closing.Epoch)
	if w.rotten[a] {
		return
	}
	switch {
	case closes && (o.Open == nil || o.Open.Epoch != n.Closing.Epoch):
		w.violated("I7: window %s of %s closes that was not open", n.Closing.Epoch, a)
	case closes && o.Closing != nil:
		w.violated("I7: a window of %s closes before the job of the one before is requested", a)
	case n.Open != nil && w.epochs[n.Open.Epoch] != "":
		w.violated("I7: window %s of %s opens again", n.Open.Epoch, a)
	case n.Open != nil && o.Open != nil && o.Open.Epoch != n.Open.Epoch:
		w.violated("I7: window %s of %s is replaced by %s", o.Open.Epoch, a, n.Open.Epoch)
	}
	if n.Open != nil {
		w.flushed[a] = w.flushed[a] || !n.Open.FlushedAt.IsZero()
		_, last := w.span(a, n.ClosedSeq, n.Open.LastSeq)
		if latest := last.Add(slices.Max(w.intervals[a])); n.Open.Deadline.After(latest) && n.Open.Deadline.After(w.now) {
			w.violated("I6: the window of %s stays open until %s, although nothing came after %s", a, n.Open.Deadline, last)
		}
	}
	if !closes {
		return
	}
	w.epochs[n.Closing.Epoch] = a
	w.logf("window %s of %s closes", n.Closing.Epoch, a)
	if w.paused[a] {
		w.violated("I11: a window of %s closes although it is paused", a)
	}
	first, last := w.span(a, o.ClosedSeq, o.Open.LastSeq)
	d := slices.Min(w.intervals[a])
	if !w.flushed[a] && w.now.Before(last.Add(d)) && w.now.Before(first.Add(6*d)) {
		w.violated("I6: the window of %s closes at %s, although something came at %s", a, w.now, last)
	}
	delete(w.flushed, a)
}

// span is when the first and the last arrival came of those behind after and up to upTo.
func (w *world) span(a string, after, upTo uint64) (first, last time.Time) {
	for _, t := range w.came[a] {
		if t.seq <= after || t.seq > upTo {
			continue
		}
		if first.IsZero() || t.at.Before(first) {
			first = t.at
		}
		if t.at.After(last) {
			last = t.at
		}
	}
	return first, last
}

// filed sees the state of a file in a job (I2).
func (w *world) filed(old, now stored[event.File]) {
	if f := now.v; f.State == event.Imported && old.v.State != event.Imported {
		w.byJob[f.Job] = append(w.byJob[f.Job], f.Video)
	}
	if old.v.State.Final() {
		w.violated("I7: %s of job %s is %s and becomes %s", now.v.Path, now.v.Job, old.v.State, now.v.State)
	}
}

// settled sees the ledger (I2, I5).
func (w *world) settled(old, now stored[event.Medium]) {
	m := now.v
	if old.v.State == event.MediumImported {
		w.violated("I2: %s %s is imported by %s, and again by %s", m.Path, m.Version, old.v.Job, m.Job)
	}
	if m.State != event.MediumImported {
		return
	}
	w.imported[m.ID] = m.Job
	want := w.bytes[m.Connector+m.Path+m.Version]
	if got, there := w.library[m.ID.String()]; !there || got != want || m.Size != int64(len(want)) || m.CRC32C != want {
		w.violated("I5: %s %s is %q, the library has %q and the record %q", m.Path, m.Version, want, got, m.CRC32C)
	}
}

var ranks = map[store.JobStatus]int{
	"": 0, store.JobPending: 1, store.JobScanning: 2, store.JobImporting: 3, store.JobCompleted: 4, store.JobFailed: 4, store.JobCancelled: 4,
}

// jobbed sees a job's record (I7).
func (w *world) jobbed(old, now stored[store.Job]) {
	o, n := old.v, now.v
	w.logf("job %s of %s: %s %+v", n.ID, n.Automation, n.Status, n.Progress)
	did, done := o.Progress, n.Progress
	switch {
	case ranks[n.Status] < ranks[o.Status] || o.Status.Terminal() && n.Status != o.Status:
		w.violated("I7: job %s is %s and becomes %s", n.ID, o.Status, n.Status)
	case done.Imported < did.Imported || done.Skipped < did.Skipped || done.Failed < did.Failed || done.Total < did.Total:
		w.violated("I7: the progress of job %s goes from %+v to %+v", n.ID, did, done)
	case n.Settled && done.Total != done.Imported+done.Skipped+done.Failed:
		w.violated("I7: job %s ends with %+v", n.ID, done)
	}
}

// ran sees a run's record (I7).
func (w *world) ran(old, now stored[store.Run]) {
	o, n := old.v, now.v
	did, done := tally(o), tally(n)
	if o.ID == "" {
		return
	}
	if o.Status.Terminal() && n.Status != o.Status || done.Completed < did.Completed || done.Failed < did.Failed || o.Dispatched && !n.Dispatched {
		w.violated("I7: run %s goes from %s %+v to %s %+v", n.ID, o.Status, did, n.Status, done)
	}
}

func tally(r store.Run) (sum store.Tally) {
	for _, t := range r.Tallies {
		sum.Total, sum.Completed, sum.Failed = sum.Total+t.Total, sum.Completed+t.Completed, sum.Failed+t.Failed
	}
	return sum
}

// delivered sees a delivery (I10).
func (w *world) delivered(old, now stored[event.Delivery]) {
	if old.v.State.Final() || now.v.Attempts < old.v.Attempts {
		w.violated("I10: delivery %s goes from %+v to %+v", now.v.ID, old.v, now.v)
	}
}

// accept is the prompt service taking a run (I3, I4): all runs that ever were asked for.
func (w *world) accept(run string, media []string) {
	slices.Sort(media)
	if had, twice := w.accepted[run]; twice && !slices.Equal(had, media) {
		w.violated("I4: run %s is asked for with %v and then with %v", run, had, media)
	}
	w.accepted[run] = media
	job := w.runRecords.at(run).v.Job
	if j := w.jobs.at(job).v; j.Status != store.JobCompleted || len(media) == 0 {
		w.violated("I3: a run of %d media is made of job %s, which is %s", len(media), job, j.Status)
	}
	for other := range w.accepted {
		if other != run && w.runRecords.at(other).v.Job == job {
			w.violated("I3: job %s has the runs %s and %s", job, run, other)
		}
	}
	got := slices.Sorted(slices.Values(w.byJob[job]))
	if !slices.Equal(got, media) {
		w.violated("I4: run %s is on %v, its job imported %v", run, media, got)
	}
}

// acknowledged sees that the scanner is done with a notification: what it was about must be kept somewhere (I8).
func (w *world) acknowledged(n notification) {
	o, there := w.buckets[n.connector][n.Path]
	if n.Op != event.Created || !there || o.Version != n.Version || o.Order < w.newest[n.connector+n.Path] {
		return // of an older file over a newer one the notification is no proof; the next listing is
	}
	for _, a := range wiring {
		if id := event.AutomationOfIndex(a.index); a.connector == n.connector && !w.rotten[id] && !w.kept(a, o) {
			w.violated("I8: the notification about %s %s is acknowledged, and %s knows nothing of it", n.Path, n.Version, id)
		}
	}
}

// kept reports whether an automation has an object: pending, in a job, or in the ledger. Where times are versions, a version
// that seems newer may stand for it: the importer settles that against what is there.
func (w *world) kept(a wired, o object) bool {
	id := event.AutomationOfIndex(a.index)
	hash := event.ObjectHash(a.connector, o.Path)
	if m, ok := w.arrivals.m[subjectOf(id, hash)]; ok && (m.v.Version == o.Version || a.connector == folder) {
		return true
	}
	if _, ok := w.media.m[mediumSubject(a.index, event.NewMediumID(a.index, a.connector, o.Path, o.Version, ""))]; ok {
		return true
	}
	for _, j := range w.jobs.m {
		if j.v.Automation != id {
			continue
		}
		if f, ok := w.files.m[subjectOf(j.v.ID, hash)]; ok && (f.v.Version == o.Version || a.connector == folder) {
			return true
		}
	}
	return false
}

// purged sees the planner remove arrivals: there must be an entry for each, or its job was cancelled (I2).
func (w *world) purged(req event.JobRequested, gone []*stored[event.Arrival]) {
	if w.rotten[req.Automation] || w.jobs.at(req.Job).v.Status == store.JobCancelled {
		return
	}
	for _, m := range gone {
		known := false
		for _, j := range w.jobs.m {
			f, ok := w.files.m[subjectOf(j.v.ID, event.ObjectHash(m.v.Connector, m.v.Path))]
			known = known || ok && f.v.Version == m.v.Version
		}
		_, settled := w.media.m[mediumSubject(m.v.Index, event.NewMediumID(m.v.Index, m.v.Connector, m.v.Path, m.v.Version, ""))]
		for _, files := range w.jobReports {
			known = known || slices.ContainsFunc(files, func(f event.File) bool {
				return f.Index == m.v.Index && f.Path == m.v.Path && f.Version == m.v.Version
			})
		}
		if !known && !settled {
			w.violated("I2: the arrival of %s %s is removed before it has an entry", m.v.Path, m.v.Version)
		}
	}
}

// atRest checks what must hold in the end.
func (w *world) atRest() {
	for _, a := range wiring {
		id := event.AutomationOfIndex(a.index)
		for _, at := range slices.Sorted(maps.Keys(w.buckets[a.connector])) {
			o := w.buckets[a.connector][at]
			m, ok := w.media.m[mediumSubject(a.index, event.NewMediumID(a.index, a.connector, at, o.Version, ""))]
			if !ok || !m.v.Settled(w.now) {
				w.violated("I1: %s %s has never come in at %s", at, o.Version, id)
			}
		}
		if r := w.windows.at(id).v; r.Open != nil || r.Closing != nil {
			w.violated("I9: the window of %s is still there", id)
		}
	}
	for what, n := range map[string]int{
		"arrivals": len(w.arrivals.m), "unread arrivals": len(w.arriving.items), "notifications": len(w.notified.items),
		"requests": len(w.requested.items), "tasks": len(w.tasks.items), "file entries": len(w.files.m), "ends of jobs": len(w.ended.items),
		"events": len(w.toTell.items), "requests of runs": len(w.runs.items),
	} {
		if n > 0 {
			w.violated("I9: %d %s are left", n, what)
		}
	}
	for _, j := range w.jobs.under("") {
		w.jobAtRest(j.v)
	}
	for _, d := range w.deliveries.under("") {
		if !d.v.State.Final() {
			w.violated("I10: delivery %s is %s", d.v.ID, d.v.State)
		}
	}
	for id := range w.events {
		if d := event.DeliveryOf(hook, id); w.deliveries.at(d).seq == 0 {
			w.violated("I10: nobody was told of %s", id)
		}
	}
}

func (w *world) jobAtRest(j store.Job) {
	if !j.Settled {
		w.violated("I9: job %s is %s, %+v", j.ID, j.Status, j.Progress)
	}
	if n := len(w.byJob[j.ID]); n != j.Progress.Imported && j.Status != store.JobCancelled {
		w.violated("I7: job %s says that it imported %d, and it was %d", j.ID, j.Progress.Imported, n)
	}
	_, ran := w.accepted[event.RunOfJob(j.ID)]
	due := j.Status == store.JobCompleted && j.Progress.Imported > 0 && len(j.Preset) > 0
	if ran != due {
		w.violated("I3: job %s is %s with %d media, and run: %v", j.ID, j.Status, j.Progress.Imported, ran)
	}
	if r, ok := w.runRecords.m[event.RunOfJob(j.ID)]; ok && !r.v.Settled {
		w.violated("I9: run %s is %s", r.v.ID, r.v.Status)
	}
}

func mediumSubject(index string, id event.MediumID) string {
	return fmt.Sprintf("%s/%s/%s", index, id.Object, id.Version)
}
