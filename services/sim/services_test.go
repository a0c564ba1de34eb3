package sim

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"millrace/services/debouncer"
	"millrace/services/importer"
	presettrigger "millrace/services/preset-trigger"
	"millrace/services/scanner"
	"millrace/services/webhooks"
	"millrace/shared/bucket"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/webhook"
	"millrace/shared/window"
)

// What follows are the services with their effects in the order in which the real ones have them; what they decide, the
// real ones decide.

var services = []struct {
	name string
	do   func(*world, *proc)
}{
	{"notify", (*world).notice},
	{"arrive", (*world).merge},
	{"close", (*world).close},
	{"plan", (*world).plan},
	{"import", (*world).task},
	{"import", (*world).task},
	{"track", (*world).track},
	{"job ended", (*world).jobEnded},
	{"execute", (*world).execute},
	{"track runs", (*world).trackRuns},
	{"tell", (*world).tell},
	{"send", (*world).send},
	{"scan", (*world).scan},
	{"sweep", (*world).sweep},
}

// of returns the automations of a connector.
func of(connector string) (all []wired) {
	for _, a := range wiring {
		if a.connector == connector {
			all = append(all, a)
		}
	}
	return all
}

// ids are the automations' by index.
var ids = func() map[string]string {
	m := make(map[string]string)
	for _, a := range wiring {
		m[a.index] = event.AutomationOfIndex(a.index)
	}
	return m
}()

func id(a wired) string { return ids[a.index] }

var errTaken = errors.New("others write as well")

// notice works off some notifications about one object.
func (w *world) notice(p *proc) {
	first := w.notified.take(p)
	if first == nil {
		return
	}
	batch := []*item[notification]{first}
	for range w.draw(3) {
		if it := w.notified.take(p); it != nil && it.v.connector == first.v.connector && it.v.Path == first.v.Path {
			batch = append(batch, it)
		} else if it != nil {
			it.taken = false
		}
	}
	var ns []event.Notification
	for _, it := range batch {
		ns = append(ns, it.v.Notification)
	}
	o, created, deleted := scanner.Fold(ns)
	for _, a := range of(first.v.connector) {
		subject := subjectOf(id(a), event.ObjectHash(a.connector, first.v.Path))
		if deleted != nil {
			p.step()
			if m, ok := w.arrivals.get(subject); ok && scanner.Covers(*deleted, m.v.Object) {
				p.step()
				w.arrivals.purge(subject, m.seq)
			}
		}
		if !created {
			continue
		}
		if err := w.arrive(p, a, o, event.ByNotification); err != nil {
			for _, it := range batch {
				w.notified.again(it, time.Second)
			}
			return
		}
	}
	p.step()
	for _, it := range batch {
		w.acknowledged(it.v)
		w.notified.ack(it)
	}
}

// arrive publishes an arrival if it is news.
func (w *world) arrive(p *proc, a wired, o event.Object, found event.Found) error {
	subject := subjectOf(id(a), event.ObjectHash(a.connector, o.Path))
	object := event.NewMediumID(a.index, a.connector, o.Path, "", "").Object
	for range 8 {
		p.step()
		var k scanner.Known
		pending, ok := w.arrivals.get(subject)
		if ok {
			k.Pending = &pending.v
		}
		p.step()
		for _, j := range w.jobs.under("") {
			if j.v.Automation != id(a) || j.v.Status != store.JobScanning && j.v.Status != store.JobImporting {
				continue
			}
			if f, ok := w.files.get(subjectOf(j.v.ID, event.ObjectHash(a.connector, o.Path))); ok {
				k.Files = append(k.Files, f.v)
			}
		}
		p.step()
		for _, m := range w.media.under(subjectOf(a.index, object) + "/") {
			k.Versions = append(k.Versions, m.v)
		}
		news, ask := scanner.News(o, k, a.connector == exactly, found, false, w.now)
		if ask {
			p.step()
			if w.down {
				return bucket.ErrUnavailable
			}
			if live, there := w.buckets[a.connector][o.Path]; !there || live.Version != o.Version {
				return nil
			}
			news, _ = scanner.News(o, k, false, found, true, w.now)
		}
		if !news {
			return nil
		}
		p.step()
		arrival := event.Arrival{Automation: id(a), Index: a.index, Connector: a.connector, Object: o, Found: found}
		if _, ok := w.arrivals.put(subject, arrival, &pending.seq); ok {
			w.logf("%s %s arrives at %s", o.Path, o.Version, id(a))
			return nil
		}
	}
	return errTaken
}

// scan lists the objects of an automation, in pages.
func (w *world) scan(p *proc) {
	a := wiring[w.draw(len(wiring))]
	for i := 0; i < len(paths); i += 2 {
		p.step()
		if w.down {
			return
		}
		var page []event.Object
		for _, at := range paths[i:min(i+2, len(paths))] {
			if o, there := w.buckets[a.connector][at]; there {
				page = append(page, o.Object)
			}
		}
		for _, o := range page {
			if w.arrive(p, a, o, event.ByScan) != nil {
				return
			}
		}
	}
}

func windowConfig(a store.Automation) window.Config {
	return window.Config{Interval: a.Interval(), MaxWait: 6 * a.Interval(), Rev: a.Rev}
}

// merge is a debouncer with some arrivals.
func (w *world) merge(p *proc) {
	batch := map[string][]*item[event.Arrival]{}
	for range 1 + w.draw(4) {
		if it := w.arriving.take(p); it != nil {
			batch[it.v.Automation] = append(batch[it.v.Automation], it)
		}
	}
	for _, a := range slices.Sorted(maps.Keys(batch)) {
		p.step()
		cfg := windowConfig(w.automations.at(a).v)
		var arrivals []window.Arrival
		for _, it := range batch[a] {
			arrivals = append(arrivals, window.Arrival{Seq: it.seq, Stored: it.stored, Size: it.v.Size})
		}
		epoch := w.epoch()
		modify(p, w.windows, a, func(r *window.Record) bool {
			r.Automation = a
			*r = window.Merge(*r, arrivals, cfg, epoch)
			return true
		})
		p.step()
		for _, it := range batch[a] {
			w.arriving.ack(it)
		}
	}
}

func (w *world) epoch() string {
	w.clock++
	return fmt.Sprintf("w%d", w.clock)
}

// close is a debouncer whose clock has rung for one of the windows.
func (w *world) close(p *proc) {
	a := id(wiring[w.draw(len(wiring))])
	seen, ok := w.windows.get(a)
	if !ok || !window.Due(seen.v, w.now) {
		return
	}
	p.step()
	at := w.automations.at(a).v
	if seen.v.Closing != nil {
		w.finish(p, a)
		return
	}
	p.step()
	r := window.StartClosing(seen.v, debouncer.Request(&at), w.now)
	rev, ok := w.windows.put(a, r, &seen.seq)
	if !ok {
		return
	}
	p.step()
	w.request(r.Closing.Request)
	p.step()
	if _, ok := w.windows.put(a, window.EndClosing(r, r.Closing.Epoch), &rev); !ok {
		w.endClosing(p, a, r.Closing.Epoch)
	}
}

func (w *world) request(r event.JobRequested) {
	w.requested.add(item[event.JobRequested]{v: r})
}

func (w *world) endClosing(p *proc, a, epoch string) {
	modify(p, w.windows, a, func(r *window.Record) bool {
		*r = window.EndClosing(*r, epoch)
		return true
	})
}

func (w *world) finish(p *proc, a string) {
	p.step()
	r := w.windows.at(a).v
	if r.Closing == nil {
		return
	}
	p.step()
	w.request(r.Closing.Request)
	w.endClosing(p, a, r.Closing.Epoch)
}

// sweep looks for what was left half done.
func (w *world) sweep(p *proc) {
	for _, a := range wiring {
		p.step()
		r, at := w.windows.at(id(a)).v, w.automations.at(id(a)).v
		if r.Closing != nil {
			w.finish(p, id(a))
		}
		if r.Open != nil && r.Open.ConfigRev != at.Rev {
			w.reconfigured(p, at)
		}
		if r.Open != nil || r.Closing != nil {
			delete(w.orphans, id(a))
			continue
		}
		p.step()
		all := w.arrivals.under(id(a) + "/")
		if len(all) == 0 {
			delete(w.orphans, id(a))
			continue
		}
		if w.orphans[id(a)] != all[0].seq {
			w.orphans[id(a)] = all[0].seq
			continue
		}
		var arrivals []window.Arrival
		for _, m := range all {
			arrivals = append(arrivals, window.Arrival{Seq: m.seq, Stored: m.at})
		}
		epoch := w.epoch()
		modify(p, w.windows, id(a), func(r *window.Record) bool {
			r.Automation = id(a)
			*r = window.Adopt(*r, arrivals, windowConfig(at), epoch)
			return true
		})
	}
	for _, r := range w.runRecords.under("") {
		if !r.v.Dispatched {
			w.dispatch(p, r.v)
		}
	}
}

// plan is a planner with the request of a window's job.
func (w *world) plan(p *proc) {
	it := w.requested.take(p)
	if it == nil {
		return
	}
	req := it.v
	backlog := func() (all []*stored[event.Arrival]) {
		for _, m := range w.arrivals.under(req.Automation + "/") {
			if m.seq <= req.LastSeq {
				all = append(all, m)
			}
		}
		return all
	}
	done := func() {
		p.step()
		w.purged(req, backlog())
		w.arrivals.purge(req.Automation+"/", req.LastSeq)
		p.step()
		w.requested.ack(it)
	}
	p.step()
	job, begun := w.jobs.get(req.Job)
	if begun && scanner.PhaseOf(&job.v) == scanner.Planned {
		done()
		return
	}
	p.step()
	arrivals := backlog()
	if len(arrivals) == 0 && !begun {
		w.requested.ack(it)
		return
	}
	var was scanner.Phase
	job.v = modify(p, w.jobs, req.Job, func(j *store.Job) bool {
		was = scanner.TakeUp(j, req, w.now)
		return was == scanner.Unplanned
	})
	if was == scanner.Planned {
		done()
		return
	}
	var entries []event.File
	if was == scanner.BeingDone {
		p.step()
		for _, f := range w.files.under(req.Job + "/") {
			entries = append(entries, f.v)
		}
	}
	page := make([]event.Object, len(arrivals))
	for i, m := range arrivals {
		page[i] = m.v.Object
	}
	missing, queued := scanner.Unsent(job.v.Left, entries, page, req.Connector)
	seqs, shared := map[string]uint64{}, was == scanner.BeingDone
	for _, o := range missing {
		p.step()
		subject := subjectOf(req.Job, event.ObjectHash(req.Connector, o.Path))
		entry := event.File{
			Job: req.Job, Connector: req.Connector, Index: req.Index, Path: o.Path, Version: o.Version, Size: o.Size, State: event.Queued,
		}
		seq, ok := w.files.put(subject, entry, new(uint64))
		if ok {
			seqs[o.Path] = seq
		}
		if met, there := w.files.get(subject); !ok {
			shared = true
			if !there || met.v.State != event.Queued {
				continue
			}
		}
		queued = append(queued, o)
	}
	for _, o := range queued {
		p.step()
		object := event.NewMediumID(req.Index, req.Connector, o.Path, "", "").Object
		fresh := len(w.media.under(subjectOf(req.Index, object)+"/")) == 0
		p.step()
		w.tasks.add(item[event.Task]{key: subjectOf(req.Job, event.ObjectHash(req.Connector, o.Path)), v: event.Task{
			Job: req.Job, Lane: req.Lane, Index: req.Index, Connector: req.Connector, Automation: req.Automation, Mode: req.Mode,
			Object: o, FileSeq: seqs[o.Path], Fresh: fresh,
		}})
	}
	total := len(missing)
	if shared {
		p.step()
		total = len(w.files.under(req.Job + "/"))
	}
	modify(p, w.jobs, req.Job, func(j *store.Job) bool { return scanner.Release(j, total) })
	done()
}

// task is an importer with a task.
func (w *world) task(p *proc) {
	it := w.tasks.take(p)
	if it == nil {
		return
	}
	t := it.v
	if it.delivered > 1 {
		t.FileSeq, t.Fresh = 0, false
	}
	subject := subjectOf(t.Job, event.ObjectHash(t.Connector, t.Path))
	file := stored[event.File]{seq: t.FileSeq, v: event.File{
		Job: t.Job, Connector: t.Connector, Index: t.Index, Path: t.Path, Version: t.Version, Size: t.Size, State: event.Queued,
	}}
	if t.FileSeq == 0 {
		p.step()
		var ok bool
		if file, ok = w.files.get(subject); !ok || file.v.State.Final() {
			w.tasks.ack(it)
			return
		}
	}
	ans, medium, f, err := w.bring(p, t, file.v)
	switch {
	case w.jobs.at(t.Job).v.Status == store.JobCancelled:
		medium, f = nil, file.v
		f.State, f.Reason = event.Skipped, event.Cancelled
	case errors.Is(err, errTaken):
		w.tasks.again(it, 0)
		return
	case err != nil:
		bad := importer.Judge(err, file.v.Attempts+1, 6)
		if !bad.Final {
			p.step()
			show := file.v
			show.Attempts++
			w.files.put(subject, show, &file.seq)
			w.tasks.again(it, bad.Again)
			return
		}
		f = file.v
		f.State, f.Error = event.Failed, bad.Reason
		m := ledgerEntry(t, ans, event.MediumFailed, bad.Reason)
		m.Attempts = ans.Rounds + 1
		if bad.Comes {
			m.RetryAt = importer.RetryAt(m.Attempts, w.now)
		}
		medium = &m
	}
	if medium != nil {
		p.step()
		medium.CreatedAt = w.now
		at := mediumSubject(t.Index, medium.ID)
		if _, ok := w.media.put(at, *medium, &ans.Revision); !ok {
			p.step()
			var found []store.Entry
			if m, there := w.media.get(at); there {
				found = append(found, store.Entry{Medium: m.v, Revision: m.seq})
			}
			if !importer.Says(found, *medium) {
				w.tasks.again(it, 0)
				return
			}
		}
	}
	p.step()
	if _, ok := w.files.put(subject, f, &file.seq); !ok {
		w.tasks.again(it, 0)
		return
	}
	w.logf("%s %s of %s is %s %s", f.Path, f.Version, f.Job, f.State, f.Reason)
	p.step()
	w.tasks.ack(it)
}

func ledgerEntry(t event.Task, ans importer.Answer, state event.MediumState, reason string) event.Medium {
	return event.Medium{
		ID: ans.ID, Index: t.Index, Connector: t.Connector, Path: t.Path, Version: t.Version, Order: t.Order, State: state,
		Reason: reason, Size: t.Size, CRC32C: t.CRC32C, Job: t.Job,
	}
}

// bring decides about a task and moves its bytes: what the ledger learns (nil: nothing) and how the file ends.
func (w *world) bring(p *proc, t event.Task, f event.File) (ans importer.Answer, m *event.Medium, _ event.File, err error) {
	var versions []store.Entry
	if !t.Fresh {
		p.step()
		object := event.NewMediumID(t.Index, t.Connector, t.Path, "", "").Object
		for _, m := range w.media.under(subjectOf(t.Index, object) + "/") {
			versions = append(versions, store.Entry{Medium: m.v, Revision: m.seq})
		}
	}
	ans = importer.Ask(t, versions)
	skip := func(reason event.SkipReason) event.File {
		f.State, f.Reason = event.Skipped, reason
		return f
	}
	settle := func(reason event.SkipReason) (importer.Answer, *event.Medium, event.File, error) {
		m := ledgerEntry(t, ans, event.MediumSkipped, string(reason))
		return ans, &m, skip(reason), nil
	}
	switch {
	case ans.Imported != nil:
		f.State, f.Video = event.Imported, ans.ID.String()
		return ans, nil, f, nil
	case ans.Record:
		return settle(ans.Skip)
	case ans.Skip != "":
		return ans, nil, skip(ans.Skip), nil
	case t.Size == 0:
		return settle(event.Empty)
	case importer.Unchanged(ans.Newest, t.Size, t.CRC32C, ""):
		return settle(event.Unchanged)
	}
	content := ""
	for range 2 { // the first bytes, and the last
		p.step()
		live, there := w.buckets[t.Connector][t.Path]
		switch {
		case w.down:
			return ans, nil, f, bucket.ErrUnavailable
		case !there:
			return ans, nil, skip(event.ObjectGone), nil
		case live.Version != t.Version:
			return ans, nil, skip(event.Superseded), w.announce(p, t, live.Object)
		}
		content = live.content
	}
	p.step()
	w.library[ans.ID.String()] = content
	entry := ledgerEntry(t, ans, event.MediumImported, "")
	f.State, f.Video, f.MediaType = event.Imported, ans.ID.String(), "video"
	return ans, &entry, f, nil
}

// announce has the version arrive that took the place of a task's.
func (w *world) announce(p *proc, t event.Task, live event.Object) error {
	p.step()
	m, ok := w.media.get(mediumSubject(t.Index, event.NewMediumID(t.Index, t.Connector, live.Path, live.Version, "")))
	if ok && m.v.Settled(w.now) {
		return nil
	}
	p.step()
	w.arrivals.put(subjectOf(t.Automation, event.ObjectHash(t.Connector, t.Path)), event.Arrival{
		Automation: t.Automation, Index: t.Index, Connector: t.Connector, Object: live, Found: event.ByImporter,
	}, nil)
	return nil
}

// tracker follows jobs; what it knows is gone when it dies.
type tracker struct {
	next uint64 // sequence of file entries
	jobs map[string]*tracked
}

type tracked struct {
	fold  importer.Fold
	files map[string]bool
	asOf  uint64
}

func newTracker() *tracker { return &tracker{next: 1, jobs: map[string]*tracked{}} }

func (t *tracker) job(id string) *tracked {
	if t.jobs[id] == nil {
		t.jobs[id] = &tracked{fold: importer.NewFold(), files: map[string]bool{}}
	}
	return t.jobs[id]
}

// track is the next step of a tracker for one of the jobs. Mostly it is the first one; the other is for when the lease got
// lost. Now and then one begins anew.
func (w *world) track(p *proc) {
	k := w.draw(12)
	n := 0
	if k > 8 {
		n = 1
	}
	if k == 8 || k == 11 {
		w.trackers[n] = newTracker()
	}
	t := w.trackers[n]
	for _, f := range w.files.under("") {
		if f.seq >= t.next {
			j := t.job(f.v.Job)
			object := event.ObjectHash(f.v.Connector, f.v.Path)
			j.fold.Add(object, f.v)
			j.files[object] = true
			j.asOf, t.next = f.seq, f.seq+1
		}
	}
	var open []string
	for _, j := range w.jobs.under("") {
		if importer.Next(&j.v, t.job(j.v.ID).fold) != importer.Nothing {
			open = append(open, j.v.ID)
		}
	}
	if len(open) == 0 {
		return
	}
	id := open[w.draw(len(open))]
	rec, j := w.jobs.at(id).v, t.job(id)
	progress, asOf := j.fold.Progress(rec.Progress.Total), j.asOf
	switch importer.Next(&rec, j.fold) {
	case importer.Show:
		modify(p, w.jobs, id, func(j *store.Job) bool { return importer.Advance(j, progress, asOf) })
	case importer.End:
		if !w.report(p, id) {
			return
		}
		rec = modify(p, w.jobs, id, func(j *store.Job) bool { return importer.Finish(j, progress, asOf, w.now) })
		if rec.Status != store.JobCancelled {
			w.settle(p, t, rec)
		}
	case importer.ClearQueue:
		w.clearQueue(p, t, rec)
	case importer.SettleEnded:
		w.settle(p, t, rec)
	case importer.SweepUp:
		w.compact(p, t, rec)
	}
}

func (w *world) report(p *proc, job string) bool {
	p.step()
	var files []event.File
	for _, f := range w.files.under(job + "/") {
		files = append(files, f.v)
	}
	p.step()
	if w.jobs.at(job).v.Report != "" {
		return false
	}
	p.step()
	w.jobReports[job] = files
	return true
}

const hook = "wh_0123456789abcdef"

func (w *world) publish(event string, job string) {
	if w.dedupe[event] {
		return
	}
	w.dedupe[event] = true
	w.events[event] = true
	if job != "" {
		w.ended.add(item[string]{v: job})
	}
	w.toTell.add(item[string]{v: event})
}

func (w *world) settle(p *proc, t *tracker, rec store.Job) {
	if rec.Report == "" {
		if !w.report(p, rec.ID) {
			return
		}
		rec = modify(p, w.jobs, rec.ID, func(j *store.Job) bool { j.Report = j.ID; return true })
	}
	if typ, ok := importer.EndEvent(rec); ok {
		p.step()
		w.publish(event.IDOf(typ, rec.Index, rec.ID), rec.ID)
	}
	w.compact(p, t, rec)
	modify(p, w.jobs, rec.ID, func(j *store.Job) bool { j.Settled = true; return true })
}

func (w *world) compact(p *proc, t *tracker, rec store.Job) {
	p.step()
	w.tasks.drop(func(it *item[event.Task]) bool { return it.v.Job == rec.ID })
	p.step()
	w.files.purge(rec.ID+"/", 0)
	delete(t.jobs, rec.ID)
}

func (w *world) clearQueue(p *proc, t *tracker, rec store.Job) {
	p.step()
	w.tasks.drop(func(it *item[event.Task]) bool { return it.v.Job == rec.ID })
	fold := importer.NewFold()
	p.step()
	all := w.files.under(rec.ID + "/")
	for _, f := range all {
		file := f.v
		if !file.State.Final() {
			file.State, file.Reason = event.Skipped, event.Cancelled
			p.step()
			if _, ok := w.files.put(f.subject, file, &f.seq); !ok {
				return
			}
		}
		fold.Add(f.subject, file)
	}
	if !w.report(p, rec.ID) {
		return
	}
	rec = modify(p, w.jobs, rec.ID, func(j *store.Job) bool {
		if j.Report != "" {
			return false
		}
		j.Progress, j.Report = fold.Progress(len(all)), j.ID
		return true
	})
	w.settle(p, t, rec)
}

// jobEnded is a preset trigger that hears of the end of a job.
func (w *world) jobEnded(p *proc) {
	it := w.ended.take(p)
	if it == nil {
		return
	}
	p.step()
	job := w.jobs.at(it.v).v
	follows, later := presettrigger.Follows(job)
	if later {
		w.ended.again(it, 5*time.Second)
		return
	}
	if !follows {
		w.ended.ack(it)
		return
	}
	id := event.RunOfJob(job.ID)
	p.step()
	rec, there := w.runRecords.get(id)
	run := rec.v
	if !there || !presettrigger.Made(run) {
		var list []event.RunMedium
		for _, f := range w.jobReports[job.ID] {
			if f.State == event.Imported {
				list = append(list, event.RunMedium{Video: f.Video, MediaType: f.MediaType})
			}
		}
		run = store.Run{
			ID: id, Job: job.ID, Index: job.Index, Preset: job.Preset, Status: store.RunPending, Media: id, Count: len(list), CreatedAt: w.now,
			Tallies: map[string]store.Tally{"video": {Total: len(list)}},
		}
		p.step()
		w.runMedia[id] = list
		p.step()
		if _, ok := w.runRecords.put(id, run, new(uint64)); !ok {
			run = w.runRecords.at(id).v
		}
	}
	w.dispatch(p, run)
	p.step()
	w.ended.ack(it)
}

// dispatch asks executors for a run, and notes that.
func (w *world) dispatch(p *proc, run store.Run) {
	if run.Dispatched || run.Status.Terminal() {
		return
	}
	p.step()
	if !w.dedupe[run.ID] {
		w.dedupe[run.ID] = true
		w.runs.add(item[string]{v: run.ID})
	}
	modify(p, w.runRecords, run.ID, func(r *store.Run) bool { r.Dispatched = true; return true })
}

// execute is a worker with the request of a run, and the prompt service behind it.
func (w *world) execute(p *proc) {
	it := w.runs.take(p)
	if it == nil {
		return
	}
	p.step()
	var videos []string
	for _, m := range w.runMedia[it.v] {
		videos = append(videos, m.Video)
	}
	if w.mood != refusing {
		w.logf("run %s is taken", it.v)
		w.accept(it.v, slices.Clone(videos))
	}
	if w.mood != well {
		w.runs.again(it, 5*time.Second)
		return
	}
	for _, v := range videos {
		p.step()
		w.reports.put(subjectOf(it.v, v), event.Report{Run: it.v, Video: v, State: event.Successful}, nil)
	}
	p.step()
	w.runs.ack(it)
}

// trackRuns folds reports into the record of a run.
func (w *world) trackRuns(p *proc) {
	var open []string
	for _, r := range w.runRecords.under("") {
		if !r.v.Settled {
			open = append(open, r.v.ID)
		}
	}
	if len(open) == 0 {
		return
	}
	id := open[w.draw(len(open))]
	p.step()
	fold := presettrigger.NewFold(w.runMedia[id])
	for _, r := range w.reports.under(id + "/") {
		fold.Apply(r.v, r.seq, r.at)
	}
	run := modify(p, w.runRecords, id, func(r *store.Run) bool {
		was := *r
		*r = fold.Into(*r)
		return r.Status != was.Status || tally(*r) != tally(was)
	})
	if !run.Status.Terminal() {
		return
	}
	p.step()
	w.publish(event.IDOf(event.RunCompleted, run.Index, run.ID), "")
	modify(p, w.runRecords, id, func(r *store.Run) bool { r.Settled = true; return true })
}

// tell makes a delivery of an event.
func (w *world) tell(p *proc) {
	it := w.toTell.take(p)
	if it == nil {
		return
	}
	p.step()
	d := event.DeliveryOf(hook, it.v)
	w.deliveries.put(d, event.Delivery{ID: d, Webhook: hook, Event: it.v, State: event.DeliveryPending, CreatedAt: w.now}, new(uint64))
	p.step()
	w.toTell.ack(it)
}

// send makes an attempt at a delivery.
func (w *world) send(p *proc) {
	var due []*stored[event.Delivery]
	for _, d := range w.deliveries.under("") {
		if !d.v.State.Final() && !d.v.DueAt.After(w.now) {
			due = append(due, d)
		}
	}
	if len(due) == 0 {
		return
	}
	d := due[w.draw(len(due))]
	p.step()
	if had := w.told[d.v.ID]; cmp.Or(had, d.v.Event) != d.v.Event {
		w.violated("I10: delivery %s is about %s and about %s", d.v.ID, had, d.v.Event)
	}
	w.told[d.v.ID] = d.v.Event
	a := webhook.Answer{Code: w.receiver, At: w.now}
	p.step()
	w.deliveries.put(d.v.ID, webhooks.After(d.v, a, w.now), &d.seq)
}

// steer pauses or resumes an automation, as an admin does.
func (w *world) steer(p *proc, a string, pause bool) {
	at := modify(p, w.automations, a, func(v *store.Automation) bool {
		if v.Paused != pause {
			w.now = w.now.Add(1) // a clock that goes
			v.Steer(pause, w.now)
		}
		return true
	})
	if at = w.enforce(p, at); pause && at.Paused {
		w.logf("%s is paused", a)
		w.paused[a] = true
	}
}

func (w *world) enforce(p *proc, at store.Automation) store.Automation {
	for {
		if at.Paused {
			modify(p, w.windows, at.ID, func(r *window.Record) bool {
				r.Automation = at.ID
				*r = window.Steer(*r, at.Turn, window.Hold)
				return true
			})
		}
		w.reconfigured(p, at)
		if !at.Paused {
			modify(p, w.windows, at.ID, func(r *window.Record) bool {
				r.Automation = at.ID
				*r = window.Steer(*r, at.Turn, func(r window.Record) window.Record { return window.Release(r, windowConfig(at), w.now) })
				return true
			})
		}
		p.step()
		now := w.automations.at(at.ID).v
		if now.Rev == at.Rev && now.Turn == at.Turn {
			return now
		}
		at = now
	}
}

func (w *world) reconfigured(p *proc, at store.Automation) {
	modify(p, w.windows, at.ID, func(r *window.Record) bool {
		r.Automation = at.ID
		*r = window.Reconfigure(*r, windowConfig(at))
		return true
	})
}

func (w *world) reconfigure(p *proc, a string) {
	d := w.draw(len(intervals))
	at := modify(p, w.automations, a, func(v *store.Automation) bool {
		v.Debounce = intervals[d]
		v.Rev++
		return true
	})
	w.interval(a, at.Interval())
	w.enforce(p, at)
}

func (w *world) flush(p *proc, a string) {
	modify(p, w.windows, a, func(r *window.Record) bool {
		*r = window.Flush(*r, w.now)
		return r.Open != nil
	})
}

func (w *world) cancel(p *proc, job string) {
	modify(p, w.jobs, job, func(j *store.Job) bool {
		if j.ID == "" || j.Status.Terminal() {
			return false
		}
		j.Status, j.EndedAt = store.JobCancelled, w.now
		return true
	})
}
