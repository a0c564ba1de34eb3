package scanner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/match"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// planner turns requests into jobs: a record, an entry per file and a task per entry.
//
// The order is what makes it safe to stop anywhere. A page's entries come before its tasks, all tasks before the record
// says importing, and that before the arrivals are purged. Whoever gets the request again reads how far it went: the
// record's ranges, and in those the entries. Two planners of one job meet at the entries, each of which is created
// once.
type planner struct {
	bus     *bus.Bus
	jobs    *store.Register[store.Job]
	indexes *store.Register[store.Index]
	ledger  *store.Ledger
	docs    *store.Documents
	limits  *limiters
	sources Sources
	metrics metrics
	log     *slog.Logger
}

// errStopped says that there is nothing more to plan: the job was cancelled, or another planner has finished it.
var errStopped = errors.New("the job is no longer being planned")

// lastingError is a reason for which the job can never be planned.
type lastingError struct{ reason string }

func (e *lastingError) Error() string { return e.reason }

// handle is the handler of both jobs consumers.
func (p *planner) handle(ctx context.Context, d *bus.Delivery) error {
	var req event.JobRequested
	if err := d.Decode(&req); err != nil {
		return err
	}
	if req.Job == "" || req.Index == "" || req.Lane != event.Live && req.Lane != event.Bulk || req.Connector == "" && req.Automation == "" {
		return bus.Poison(fmt.Errorf("request of job %q: it lacks a job, an index, a lane or a connector", req.Job))
	}
	start := time.Now()
	outcome, err := p.plan(ctx, req)
	p.metrics.planned.WithLabelValues(string(req.Lane), outcome).Inc()
	p.metrics.planTime.WithLabelValues(string(req.Lane)).Observe(time.Since(start).Seconds())
	if err != nil && bucket.ClassOf(err) != bucket.ClassOther {
		return bus.RetryAfter(max(bucket.RetryAfter(err), bus.Backoff(d.Delivered)), err)
	}
	return err
}

// plan does what is missing and says how that ended.
func (p *planner) plan(ctx context.Context, req event.JobRequested) (outcome string, err error) {
	switch {
	case req.RetryOf != "":
		outcome, err = p.again(ctx, req)
	case req.Automation != "":
		outcome, err = p.window(ctx, req)
	default:
		outcome, err = p.oneTime(ctx, req)
	}
	var lasting *lastingError
	switch {
	case errors.Is(err, errStopped):
		return stopped, nil
	case errors.As(err, &lasting):
		p.log.Warn("job cannot be planned", "job", req.Job, "error", lasting.reason)
		return failed, p.fail(ctx, req, lasting.reason)
	case err != nil:
		return postponed, err
	}
	return outcome, nil
}

// window plans the backlog of a window. Arrivals go only when their job is on record with all its tasks, or was
// cancelled.
func (p *planner) window(ctx context.Context, req event.JobRequested) (string, error) {
	backlog := p.bus.Subject("arrival", req.Automation, "*")
	job, _, err := p.jobs.Get(ctx, req.Job)
	switch {
	case err == nil && phaseOf(&job) == planned:
		return stopped, p.bus.Purge(ctx, topology.Arrivals, backlog, req.LastSeq)
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return "", err
	}
	begun := err == nil

	var pl *plan
	for page, err := range paged(p.backlog(ctx, backlog, req.LastSeq)) {
		if err == nil && pl == nil {
			pl, err = p.begin(ctx, req)
		}
		if err == nil {
			err = pl.add(ctx, page)
		}
		if err != nil {
			return p.endWindow(ctx, req, backlog, err)
		}
	}
	if pl == nil && !begun {
		return empty, nil // another job had all of it: no record, no trace
	}
	if pl == nil {
		if pl, err = p.begin(ctx, req); err != nil {
			return p.endWindow(ctx, req, backlog, err)
		}
	}
	return p.endWindow(ctx, req, backlog, pl.finish(ctx))
}

// endWindow purges what a job that has left planning was made of.
func (p *planner) endWindow(ctx context.Context, req event.JobRequested, backlog string, err error) (string, error) {
	if err != nil && !errors.Is(err, errStopped) {
		return "", err
	}
	if err := failpoint.Here("planner.released"); err != nil {
		return "", err
	}
	if perr := p.bus.Purge(ctx, topology.Arrivals, backlog, req.LastSeq); perr != nil {
		return "", perr
	}
	if err := failpoint.Here("planner.purged"); err != nil {
		return "", err
	}
	return done, err
}

// backlog yields the arrivals of a window. There is one message per subject, so the last ones are all of them, and are
// found by subject: what other automations have waiting costs nothing.
func (p *planner) backlog(ctx context.Context, filter string, lastSeq uint64) iter.Seq2[file, error] {
	return func(yield func(file, error) bool) {
		for m, err := range p.bus.Last(ctx, topology.Arrivals, filter) {
			if err != nil {
				yield(file{}, err)
				return
			}
			if m.Sequence > lastSeq {
				continue // of the next window
			}
			var a event.Arrival
			if err := json.Unmarshal(m.Data, &a); err != nil || a.Path == "" {
				if err := p.bury(ctx, m, "it is not an arrival"); err != nil {
					yield(file{}, err)
					return
				}
				continue
			}
			if !yield(file{connector: a.Connector, Object: a.Object}, nil) {
				return
			}
		}
	}
}

// bury keeps what lies in the backlog and is no arrival, as it will be purged with the others.
func (p *planner) bury(ctx context.Context, m bus.Stored, reason string) error {
	return p.bus.Bury(ctx, event.Dead{
		Consumer: topology.ScannerJobsLive, Stream: p.bus.Stream(topology.Arrivals), Subject: m.Subject,
		Reason: reason, Stage: "decode", Delivered: 1, Data: m.Data,
	})
}

// oneTime plans a listing. It goes on where an interrupted one stopped.
func (p *planner) oneTime(ctx context.Context, req event.JobRequested) (string, error) {
	pl, err := p.begin(ctx, req)
	if err != nil {
		return "", err
	}
	if err := p.checkIndex(ctx, req.Index); err != nil {
		return "", err
	}
	selects, err := match.Compile(req.Prefix, req.Pattern, req.Recursive)
	if err != nil {
		return "", &lastingError{fmt.Sprintf("file pattern %q: %v", req.Pattern, err)}
	}
	src, conn, err := p.sources.Source(ctx, req.Connector)
	if err != nil {
		return "", lasting(req.Connector, err)
	}
	pl.listing = newListing(src, conn, selects, p.limits.of(req.Connector), pl.left)
	for page, err := range pl.listing.pages(ctx) {
		if err != nil {
			return "", lasting(req.Connector, err)
		}
		if err := pl.add(ctx, page); err != nil {
			return "", err
		}
	}
	return done, pl.finish(ctx)
}

func (p *planner) checkIndex(ctx context.Context, id string) error {
	_, _, err := p.indexes.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return &lastingError{fmt.Sprintf("index %s no longer exists", id)}
	}
	return err
}

// lasting turns what a storage will always say into the reason of a failed job.
func lasting(connector string, err error) error {
	switch class := bucket.ClassOf(err); {
	case errors.Is(err, store.ErrNotFound):
		return &lastingError{fmt.Sprintf("connector %s no longer exists", connector)}
	case class == bucket.ClassNoBucket:
		return &lastingError{fmt.Sprintf("the bucket of connector %s does not exist: %v", connector, err)}
	case class == bucket.ClassCredentials, class == bucket.ClassPermission:
		return &lastingError{fmt.Sprintf("the storage refuses connector %s: %v", connector, err)}
	case class.Permanent():
		return &lastingError{fmt.Sprintf("connector %s cannot be listed: %v", connector, err)}
	}
	return err
}

// phase is how far the planning of a job got.
type phase int

const (
	unplanned phase = iota
	beingDone       // entries may be there, and tasks
	planned         // all entries have their tasks, or the job has ended
)

// phaseOf says how far the planning of a job got; nil: it is not on record.
func phaseOf(j *store.Job) phase {
	switch {
	case j == nil || j.ID == "" || j.Status == store.JobPending:
		return unplanned
	case j.Status == store.JobScanning:
		return beingDone
	}
	return planned
}

// takeUp makes j a job that is being planned, unless it is or was already, and returns how far it had got.
func takeUp(j *store.Job, req event.JobRequested, now time.Time) phase {
	was := phaseOf(j)
	if was != unplanned {
		return was
	}
	if j.ID == "" {
		*j = newJob(req, now)
	}
	j.Status, j.StartedAt = store.JobScanning, now
	return was
}

// begin puts the job on record as being planned, or finds where it stands.
func (p *planner) begin(ctx context.Context, req event.JobRequested) (*plan, error) {
	var was phase
	job, _, err := p.jobs.Modify(ctx, req.Job, func(j *store.Job) error {
		if was = takeUp(j, req, time.Now().UTC()); was != unplanned {
			return store.ErrUnchanged
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case was == planned:
		return nil, errStopped
	}
	resumed := was == beingDone
	pl := &plan{planner: p, req: req, left: job.Left, total: job.Progress.Total, shared: resumed}
	if resumed {
		if err := pl.resume(ctx); err != nil {
			return nil, err
		}
	}
	started, err := bus.NewEvent(event.JobStarted, req.Index, req.Job, job.StartedAt, event.JobEvent{
		Job: job.ID, Index: job.Index, Connector: job.Connector, Automation: job.Automation, Status: string(job.Status),
	})
	if err != nil {
		return nil, err
	}
	if err := failpoint.Here("planner.begun"); err != nil {
		return nil, err
	}
	return pl, p.bus.PublishEvent(ctx, started)
}

// newJob is the record of a request that came without one.
func newJob(req event.JobRequested, now time.Time) store.Job {
	j := store.Job{
		ID:         req.Job,
		Index:      req.Index,
		Connector:  req.Connector,
		Automation: req.Automation,
		Origin:     store.Manual,
		Lane:       req.Lane,
		Prefix:     req.Prefix,
		Pattern:    req.Pattern,
		Recursive:  req.Recursive,
		Mode:       req.Mode,
		Preset:     req.Preset,
		RetryOf:    req.RetryOf,
		RetryPath:  req.RetryPath,
		CreatedAt:  req.RequestedAt,
	}
	if req.Automation != "" {
		j.Origin = store.ByAutomation
	}
	if j.CreatedAt.IsZero() {
		j.CreatedAt = now
	}
	return j
}

// fail ends a job that cannot be planned. The end is announced by whoever tracks jobs.
func (p *planner) fail(ctx context.Context, req event.JobRequested, reason string) error {
	_, _, err := p.jobs.Modify(ctx, req.Job, func(j *store.Job) error {
		if j.Status.Terminal() {
			return store.ErrUnchanged
		}
		now := time.Now().UTC()
		if j.ID == "" {
			*j = newJob(req, now)
		}
		j.Status, j.Error, j.EndedAt = store.JobFailed, reason, now
		return nil
	})
	return err
}

// plan is one job while its files are written down.
type plan struct {
	*planner
	req     event.JobRequested
	left    []store.Range       // of the listing, as it was on record; none: all of it
	listing *listing            // nil: it is not made of one
	total   int                 // entries as far as this planner knows
	shared  bool                // others have written entries too
	had     map[string]leftover // entries of an interrupted planning in what was left, by object hash
	pages   int
}

// leftover is an entry that an interrupted planning wrote, maybe without its task.
type leftover struct {
	file
	queued bool
}

// resume reads what an interrupted planning left behind.
func (pl *plan) resume(ctx context.Context) error {
	pl.had = make(map[string]leftover)
	for m, err := range pl.bus.Scan(ctx, topology.Files, pl.bus.Subject("file", pl.req.Job, "*"), 0) {
		if err != nil {
			return err
		}
		var f event.File
		if err := json.Unmarshal(m.Data, &f); err != nil {
			return fmt.Errorf("decode file entry %s: %w", m.Subject, err)
		}
		pl.note(f)
	}
	return nil
}

// note takes note of an entry that was there.
func (pl *plan) note(f event.File) {
	if within(pl.left, f.Path) { // the tasks of the others are written
		o := event.Object{Path: f.Path, Version: f.Version, Size: f.Size}
		pl.had[event.ObjectHash(f.Connector, f.Path)] = leftover{file{connector: f.Connector, Object: o}, f.State == event.Queued}
	}
}

// sort parts files into those that need an entry, and a task behind it, and those whose entry may be without its task.
func (pl *plan) sort(files []file) (entry, queued []file) {
	for _, f := range files {
		hash := event.ObjectHash(f.connector, f.Path)
		if old, ok := pl.had[hash]; !ok {
			entry = append(entry, f)
		} else if old.queued {
			queued = append(queued, f)
			delete(pl.had, hash)
		}
	}
	return entry, queued
}

// add plans a page: first the entries that are missing, then the tasks.
func (pl *plan) add(ctx context.Context, pg page) error {
	if pl.pages++; pl.pages > 1 {
		if err := pl.checkpoint(ctx); err != nil {
			return err
		}
	}
	tasks := make(map[string]task, len(pg.files))
	entry, queued := pl.sort(pg.files)
	for _, f := range queued {
		tasks[event.ObjectHash(f.connector, f.Path)] = task{file: f}
	}
	var missing []string
	byHash := make(map[string]file, len(entry))
	for _, f := range entry {
		hash := event.ObjectHash(f.connector, f.Path)
		byHash[hash] = f
		missing = append(missing, hash)
	}
	if err := pl.create(ctx, missing, byHash, tasks); err != nil {
		return err
	}
	if err := failpoint.Here("planner.entered"); err != nil {
		return err
	}
	if err := pl.markFresh(ctx, tasks); err != nil {
		return err
	}
	if err := pl.send(ctx, tasks); err != nil {
		return err
	}
	if err := failpoint.Here("planner.tasked"); err != nil {
		return err
	}
	pl.total += len(missing)
	return nil
}

// task is a file that needs one, with what its importer need not read again.
type task struct {
	file
	seq   uint64 // of the entry; 0: unknown
	fresh bool   // the ledger knows no version of the object
}

// markFresh asks the ledger about all objects at once, which is what spares importers to ask about each.
func (pl *plan) markFresh(ctx context.Context, tasks map[string]task) error {
	hashes := make(map[string]string, len(tasks)) // by the object's hash in the ledger
	objects := make([]string, 0, len(tasks))
	for h, t := range tasks {
		o := event.NewMediumID(pl.req.Index, t.connector, t.Path, "", "").Object
		hashes[o] = h
		objects = append(objects, o)
		t.fresh = true
		tasks[h] = t
	}
	known, err := pl.ledger.Versions(ctx, pl.req.Index, objects...)
	for _, e := range known {
		h := hashes[e.ID.Object]
		t := tasks[h]
		t.fresh = false
		tasks[h] = t
	}
	return err
}

// create writes the entries of the given objects and adds those to tasks that need one.
func (pl *plan) create(ctx context.Context, hashes []string, files map[string]file, tasks map[string]task) error {
	msgs := make([]bus.Message, len(hashes))
	now := time.Now().UTC()
	for i, h := range hashes {
		f := files[h]
		entry := event.File{
			Job: pl.req.Job, Connector: f.connector, Index: pl.req.Index,
			Path: f.Path, Version: f.Version, Size: f.Size, State: event.Queued,
		}
		if f.refused != "" {
			entry.State, entry.Error, entry.EndedAt = event.Failed, f.refused, now
		}
		data, err := json.Marshal(entry)
		if err != nil {
			return fmt.Errorf("encode file entry: %w", err)
		}
		msgs[i] = bus.Message{Subject: pl.bus.Subject("file", pl.req.Job, h), Data: data, Expect: bus.Absent()}
	}
	var met []string // written by another planner since we looked
	seqs, errs := pl.write(ctx, msgs)
	for i, err := range errs {
		switch h := hashes[i]; {
		case errors.Is(err, bus.ErrConflict):
			met = append(met, msgs[i].Subject)
		case err != nil:
			return err
		case files[h].refused == "":
			tasks[h] = task{file: files[h], seq: seqs[i]}
		}
	}
	pl.metrics.files.WithLabelValues(string(pl.req.Lane)).Add(float64(len(msgs) - len(met)))
	pl.shared = pl.shared || len(met) > 0
	for m, err := range pl.bus.Last(ctx, topology.Files, met...) {
		if err != nil {
			return err
		}
		var f event.File
		if err := json.Unmarshal(m.Data, &f); err != nil {
			return fmt.Errorf("decode file entry %s: %w", m.Subject, err)
		}
		if f.State == event.Queued {
			h := event.ObjectHash(f.Connector, f.Path)
			tasks[h] = task{file: files[h]}
		}
	}
	return nil
}

// send publishes tasks. One that is there already is replaced, and doing one twice does no harm.
func (pl *plan) send(ctx context.Context, tasks map[string]task) error {
	msgs := make([]bus.Message, 0, len(tasks))
	for h, t := range tasks {
		data, err := json.Marshal(event.Task{
			Job: pl.req.Job, Lane: pl.req.Lane, Index: pl.req.Index, Connector: t.connector,
			Automation: pl.req.Automation, Mode: pl.req.Mode, Object: t.Object, FileSeq: t.seq, Fresh: t.fresh,
			Again: pl.req.RetryOf != "",
		})
		if err != nil {
			return fmt.Errorf("encode task: %w", err)
		}
		msgs = append(msgs, bus.Message{Subject: pl.bus.Subject("task", string(pl.req.Lane), pl.req.Job, h), Data: data})
	}
	_, errs := pl.write(ctx, msgs)
	return errors.Join(errs...)
}

// fewMessages is up to how many messages travel one by one, so that they share their batch with those of other jobs.
const fewMessages = 16

// write publishes messages of one stream and returns the sequence and the error of each.
func (pl *plan) write(ctx context.Context, msgs []bus.Message) ([]uint64, []error) {
	if len(msgs) > fewMessages {
		return pl.bus.PublishAll(ctx, msgs)
	}
	seqs, errs := make([]uint64, len(msgs)), make([]error, len(msgs))
	var g errgroup.Group
	for i, m := range msgs {
		g.Go(func() error {
			seqs[i], errs[i] = pl.bus.Publish(ctx, m)
			return nil
		})
	}
	_ = g.Wait()
	return seqs, errs
}

// checkpoint puts on record what is written, unless the job has ended meanwhile.
func (pl *plan) checkpoint(ctx context.Context) error {
	return pl.record(ctx, func(j *store.Job) bool {
		if j.Status != store.JobScanning {
			return false
		}
		j.Progress.Total = max(j.Progress.Total, pl.total)
		if pl.listing != nil {
			j.Left = pl.listing.left()
		}
		return true
	})
}

// finish sends the tasks that an interrupted planning left out and that this one did not meet, and lets the importer
// have the job.
func (pl *plan) finish(ctx context.Context) error {
	tasks := make(map[string]task)
	for h, old := range pl.had {
		if old.queued {
			tasks[h] = task{file: old.file}
		}
	}
	if err := pl.send(ctx, tasks); err != nil {
		return err
	}
	if pl.shared {
		seen := make(map[string]struct{}) // an entry that an importer changes meanwhile comes twice
		for m, err := range pl.bus.Scan(ctx, topology.Files, pl.bus.Subject("file", pl.req.Job, "*"), 0) {
			if err != nil {
				return err
			}
			seen[m.Subject] = struct{}{}
		}
		pl.total = len(seen)
	}
	return pl.record(ctx, func(j *store.Job) bool { return release(j, pl.total) })
}

// release lets the importer have a job of total files. It returns false when the job has left planning already.
func release(j *store.Job, total int) bool {
	if j.Status != store.JobScanning {
		return false
	}
	j.Status, j.Left, j.Progress.Total = store.JobImporting, nil, total
	return true
}

// record changes the record of the job. It fails with errStopped when change finds that the job is not planned any more.
func (pl *plan) record(ctx context.Context, change func(*store.Job) bool) error {
	var ok bool
	_, _, err := pl.jobs.Modify(ctx, pl.req.Job, func(j *store.Job) error {
		if ok = change(j); !ok {
			return store.ErrUnchanged
		}
		return nil
	})
	if err == nil && !ok {
		return errStopped
	}
	return err
}
