package importer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/connector"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/media"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// outcome is how a task ended, on its way to the committer.
type outcome struct {
	d        *bus.Delivery
	file     event.File     // the final state of the job's file entry,
	fileRev  store.Revision // which replaces this one
	medium   *event.Medium  // the ledger entry; nil: the ledger has nothing to learn
	revision store.Revision // which replaces this one
	key      string         // of the library object that must be durable first; "" none
}

// handle works off one task. It returns bus.ErrLater when the outcome is in the committer's hands.
func (im *Importer) handle(ctx context.Context, d *bus.Delivery) error {
	im.inWork.Add(1)
	o, err := im.workOff(ctx, d)
	im.inWork.Add(-1) // before the committer has it: what is alone is not to wait for itself
	if o == nil {
		return err
	}
	im.commits <- o
	return bus.ErrLater
}

// workOff returns the outcome of a task, or how it ended without one.
func (im *Importer) workOff(ctx context.Context, d *bus.Delivery) (*outcome, error) {
	var t event.Task
	if err := d.Decode(&t); err != nil {
		return nil, err
	}
	if d.Delivered > 1 {
		t.FileSeq, t.Fresh = 0, false // somebody worked on it since it was planned
	}
	if t.Size > smallObject {
		t.FileSeq = 0 // the same, if the broker was killed as well and has forgotten it: that may have got far
	}
	file, rev, err := im.fileEntry(ctx, t)
	if err != nil {
		return nil, err
	}
	if file.State.Final() || rev == 0 {
		return nil, nil //nolint:nilnil // settled before, or the job has ended and its entries are gone
	}
	ctx, done := im.jobs.begin(ctx, t.Job)
	defer done()
	if file.StartedAt.IsZero() {
		file.StartedAt = time.Now().UTC()
	}
	if err := failpoint.Here("importer.taken"); err != nil {
		return nil, err
	}
	w := &work{im: im, d: d, task: t, file: file, fileRev: rev}
	o, err := w.do(ctx)
	switch {
	case errors.Is(context.Cause(ctx), errCancelled):
		return w.skip(event.Cancelled, ""), nil
	case ctx.Err() != nil:
		return nil, ctx.Err() // the process stops; the task comes again, here or elsewhere
	case err != nil:
		return w.failed(ctx, err)
	}
	return o, nil
}

// fileEntry returns the state of the task's file and its revision, 0 when there is none. What the planner wrote is not
// read again.
func (im *Importer) fileEntry(ctx context.Context, t event.Task) (event.File, store.Revision, error) {
	if t.FileSeq != 0 {
		return event.File{
			Job: t.Job, Connector: t.Connector, Index: t.Index, Path: t.Path, Version: t.Version, Size: t.Size, State: event.Queued,
		}, t.FileSeq, nil
	}
	for m, err := range im.env.Bus.Last(ctx, topology.Files, im.fileSubject(t.Job, t.Connector, t.Path)) {
		if err != nil {
			return event.File{}, 0, err
		}
		var f event.File
		if err := json.Unmarshal(m.Data, &f); err != nil {
			return f, 0, bus.Poison(fmt.Errorf("decode file entry %s: %w", m.Subject, err))
		}
		return f, m.Sequence, nil
	}
	return event.File{}, 0, nil
}

func (im *Importer) fileSubject(job, connector, path string) string {
	return im.env.Bus.Subject("file", job, event.ObjectHash(connector, path))
}

// work is one attempt at one task.
type work struct {
	im      *Importer
	d       *bus.Delivery
	task    event.Task
	file    event.File
	fileRev store.Revision
	ans     answer
	source  bucket.Source
	conn    store.Connector
	putting bool // what fails is the library's
}

// retargets bounds how often a one-time task follows its object to a newer version.
const retargets = 5

func (w *work) do(ctx context.Context) (*outcome, error) {
	for range retargets {
		o, err := w.attempt(ctx)
		switch class := bucket.ClassOf(err); {
		case class != bucket.ClassChanged && class != bucket.ClassNotExist:
			return o, err
		}
		// The version is no longer there. What is?
		live, err := w.source.Stat(ctx, w.task.Path)
		if errors.Is(err, bucket.ErrNotExist) {
			return w.skip(event.ObjectGone, ""), nil
		}
		if err != nil {
			return nil, err
		}
		if w.task.Automation != "" {
			if err := w.announce(ctx, live); err != nil {
				return nil, err
			}
			return w.skip(event.Superseded, "version "+live.Version+" took its place"), nil
		}
		w.task.Object, w.task.Fresh = object(live), false // nobody waits for the newer version but this job
		w.file.Version, w.file.Size, w.file.Copying = live.Version, live.Size, ""
	}
	return nil, fmt.Errorf("%s keeps changing: %w", w.task.Path, bucket.ErrChanged)
}

func object(o bucket.Object) event.Object {
	return event.Object{Path: o.Path, Version: o.Version, Order: o.Order, Size: o.Size, ModTime: o.ModTime, CRC32C: o.CRC32C}
}

// announce makes sure that the version which took the place of the task's will be imported: its own notification may
// have been lost.
func (w *work) announce(ctx context.Context, live bucket.Object) error {
	settled, err := w.im.ledger.Get(ctx, w.task.Index, event.NewMediumID(w.task.Index, w.task.Connector, live.Path, live.Version, ""))
	if err != nil {
		return err
	}
	if len(settled) > 0 && settled[0].Settled(time.Now()) {
		return nil
	}
	data, err := json.Marshal(event.Arrival{
		Automation: w.task.Automation, Index: w.task.Index, Connector: w.task.Connector,
		Object: object(live), Found: event.ByImporter,
	})
	if err != nil {
		return fmt.Errorf("encode arrival of %s: %w", live.Path, err)
	}
	b := w.im.env.Bus
	_, err = b.Publish(ctx, bus.Message{
		Subject: b.Subject("arrival", w.task.Automation, event.ObjectHash(w.task.Connector, live.Path)),
		Data:    data,
	})
	return err
}

// attempt asks, reads, probes and stores. ErrChanged or ErrNotExist of the storage mean that the version is gone.
func (w *work) attempt(ctx context.Context) (*outcome, error) {
	var versions []store.Entry
	if !w.task.Fresh {
		var err error
		if versions, err = w.im.ledger.Versions(ctx, w.task.Index, mediumID(w.task).Object); err != nil {
			return nil, err
		}
	}
	w.ans = ask(w.task, versions)
	switch {
	case w.ans.imported != nil:
		return w.again(), nil
	case w.ans.record:
		return w.settle(w.ans.skip, w.ans.detail), nil
	case w.ans.skip != "":
		return w.skip(w.ans.skip, w.ans.detail), nil
	case w.task.Size == 0:
		return w.settle(event.Empty, ""), nil
	case w.im.cfg.MaxSize > 0 && w.task.Size > w.im.cfg.MaxSize:
		return w.settle(event.TooLarge, fmt.Sprintf("%d bytes; the limit is %d", w.task.Size, w.im.cfg.MaxSize)), nil
	}
	var err error
	w.source, w.conn, err = w.im.sources.Source(ctx, w.task.Connector)
	pass, wait := w.im.circuits.enter(w.task.Connector, w.conn.Credentials)
	if wait > 0 {
		return nil, bus.RetryAfter(wait, fmt.Errorf("connector %s: %w", w.task.Connector, bucket.ErrUnavailable))
	}
	var o *outcome
	if w.putting = false; err == nil {
		o, err = w.bring(ctx)
	}
	return o, w.left(ctx, pass, err)
}

// left tells the circuit and the connector's record how an attempt ended, and returns the error that is left of it.
func (w *work) left(ctx context.Context, p pass, err error) error {
	class := bucket.ClassOf(err)
	if class == bucket.ClassCancelled {
		w.im.circuits.leave(p, verdict{})
		return err
	}
	v := verdict{bucketwide: class.Bucketwide(), after: bucket.RetryAfter(err)}
	v.certain = v.bucketwide && class.Permanent()
	if class == bucket.ClassPermission {
		v.certain = w.putting // a library has no objects of its own
		v.bucketwide = w.putting || w.closed(ctx, err)
	}
	l := w.im.circuits.leave(p, v)
	switch {
	case l.opened:
		w.im.env.Log.Warn("storage fails for everybody, its tasks wait", "connector_id", w.task.Connector, "library", w.putting, "error", err)
		if class.Permanent() && !w.putting {
			w.report(ctx, err)
		}
	case err == nil && w.conn.Status == store.ConnectorFailed:
		w.report(ctx, nil)
	}
	switch {
	case l.held:
		return &heldError{after: l.wait, err: err}
	case v.bucketwide && class == bucket.ClassPermission:
		return &closedError{err}
	}
	return err
}

// closed reports whether a permission that is missing for one object is missing for all: those beside it cannot be
// listed either.
func (w *work) closed(ctx context.Context, err error) bool {
	if w.source == nil {
		return !errors.Is(err, connector.ErrDisabled) && !errors.Is(err, connector.ErrNotAllowed)
	}
	for _, err := range w.source.List(ctx, bucket.ListOptions{Prefix: w.task.Path}) {
		return bucket.ClassOf(err) == bucket.ClassPermission
	}
	return false
}

// report puts on the connector's record that it failed or works again. That is for people: the circuit does without.
func (w *work) report(ctx context.Context, failure error) {
	if err := w.im.sources.Report(ctx, w.task.Connector, failure); err != nil {
		w.im.env.Log.Warn("the state of the connector is not on record", "connector_id", w.task.Connector, "error", err)
	}
}

// heldError is a failure that was known to meet everybody, and so no attempt of the task's own.
type heldError struct {
	after time.Duration
	err   error
}

func (e *heldError) Error() string { return e.err.Error() }
func (e *heldError) Unwrap() error { return e.err }

// closedError is a missing permission that is not about the object alone: it may come back.
type closedError struct{ error }

func (e *closedError) Unwrap() error { return e.error }

// bring moves the object into the library, or decides that it does not belong there.
func (w *work) bring(ctx context.Context) (*outcome, error) {
	obj := bucket.Object{
		Path: w.task.Path, Version: w.task.Version, Size: w.task.Size, ModTime: w.task.ModTime, CRC32C: w.task.CRC32C,
		Order: w.task.Order,
	}
	if unchanged(w.newest(), obj.Size, obj.CRC32C, "") {
		return w.settle(event.Unchanged, ""), nil
	}
	if obj.Size <= smallObject {
		return w.bringSmall(ctx, obj)
	}
	return w.bringLarge(ctx, obj)
}

// newest is the version that "unchanged" compares with; under mode all every import counts.
func (w *work) newest() *event.Medium {
	if w.task.Mode == event.All {
		return nil
	}
	return w.ans.newest
}

// smallObject is the size up to which an object is read once, in one request, and probed in memory.
const smallObject = 1 << 20

// smallBuffers are what they are read to. Nobody holds on to one: a library's Put has read all when it returns.
var smallBuffers = sync.Pool{New: func() any { return new([]byte) }}

func (w *work) bringSmall(ctx context.Context, obj bucket.Object) (*outcome, error) {
	whole := smallBuffers.Get().(*[]byte)
	defer smallBuffers.Put(whole)
	*whole = slices.Grow((*whole)[:0], int(obj.Size))
	buf := (*whole)[:obj.Size]
	r := w.open(ctx, obj)
	_, err := io.ReadFull(r, buf)
	if err == nil { // the last read may say that the version changed
		_, err = io.Copy(io.Discard, r)
	}
	err = errors.Join(err, r.Close())
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", obj.Path, err)
	}
	// A library hashes what it is given, so that only what is compared before, or never given to one, needs all of it here.
	sum := bucket.NewChecksum()
	if n := w.newest(); w.im.library == nil || n != nil && n.Size == obj.Size {
		sum = bucket.NewHash()
	}
	_, _ = sum.Write(buf)
	if err := sum.Check(obj.Want()); err != nil {
		return nil, fmt.Errorf("read %q: %w", obj.Path, err)
	}
	if unchanged(w.newest(), obj.Size, sum.CRC32C(), sum.SHA256()) {
		return w.settle(event.Unchanged, ""), nil
	}
	info, o, err := w.probe(ctx, bytes.NewReader(buf), obj)
	if o != nil || err != nil {
		return o, err
	}
	stored := bucket.Stored{URI: w.conn.URI(obj.Path), Size: obj.Size, CRC32C: sum.CRC32C(), SHA256: sum.SHA256()}
	if w.im.library != nil {
		want := bucket.Want{Size: obj.Size, CRC32C: sum.CRC32C(), ContentType: info.ContentType}
		w.putting = true
		if stored, err = w.im.library.Put(ctx, w.key(), bytes.NewReader(buf), want); err != nil {
			return nil, err
		}
	}
	if err := failpoint.Here("importer.copied"); err != nil {
		return nil, err
	}
	return w.imported(obj, info, stored), nil
}

func (w *work) bringLarge(ctx context.Context, obj bucket.Object) (*outcome, error) {
	near := bucket.NewFile(ctx, w.source, obj, bucket.ReaderOptions{Stall: w.im.cfg.StallTimeout, Hasty: true, Limit: w.im.limit})
	info, o, err := w.probe(ctx, near, obj)
	if o != nil || err != nil {
		return o, err
	}
	// The same size as the newest version: worth a look at the bytes before they are stored a second time.
	if n := w.newest(); n != nil && n.Size == obj.Size && n.SHA256 != "" {
		sum := bucket.NewHash()
		r := w.open(ctx, obj)
		_, err := io.Copy(sum, r)
		if err := errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
		if unchanged(n, obj.Size, sum.CRC32C(), sum.SHA256()) {
			return w.settle(event.Unchanged, ""), nil
		}
	}
	stored := bucket.Stored{URI: w.conn.URI(obj.Path), Size: obj.Size, CRC32C: obj.CRC32C}
	if w.im.library != nil {
		if stored, err = w.transfer(ctx, obj, info); err != nil {
			return nil, err
		}
	}
	return w.imported(obj, info, stored), nil
}

// transfer copies an object into the library, inside the storage where that is possible.
func (w *work) transfer(ctx context.Context, obj bucket.Object, info media.Info) (bucket.Stored, error) {
	copying := &bucket.Copying{Mark: w.file.Copying}
	moved := w.moved(ctx)
	copying.Moved = func(n int64) {
		w.file.Copying = copying.Mark
		moved(n)
	}
	stored, err := w.im.library.CopyFrom(ctx, w.key(), w.source, obj, copying)
	if !errors.Is(err, errors.ErrUnsupported) {
		return stored, err
	}
	r := w.open(ctx, obj)
	defer func() { _ = r.Close() }()
	want := obj.Want()
	want.ContentType = info.ContentType
	stored, err = w.im.library.Put(ctx, w.key(), r, want)
	w.putting = r.Err() == nil
	return stored, err
}

// open reads the task's version to its end, over broken connections, for as long as bytes come.
func (w *work) open(ctx context.Context, obj bucket.Object) bucket.Reading {
	return bucket.NewReading(ctx, w.source, obj, bucket.ReaderOptions{
		Stall: w.im.cfg.StallTimeout, Hasty: true, Limit: w.im.limit, OnProgress: w.moved(ctx),
	}, w.im.ahead)
}

// showEvery is how often a transfer shows how far it is.
const showEvery = time.Second

// moved returns a function that counts bytes and shows progress of a transfer that takes long. Where a copy inside the storage
// is, is shown each time, for the next attempt to go on from there.
func (w *work) moved(ctx context.Context) func(n int64) {
	var total int64
	last, shown := time.Now(), w.file.Copying
	return func(n int64) {
		total += n
		w.im.metrics.bytes.Add(float64(n))
		if w.file.Copying == shown && time.Since(last) < showEvery {
			return
		}
		last, shown = time.Now(), w.file.Copying
		f := w.file
		f.State, f.Bytes = event.Importing, total
		w.show(ctx, f)
	}
}

// show writes a state that is not final. It is only for people, so a failure costs nothing.
func (w *work) show(ctx context.Context, f event.File) {
	m, err := w.im.fileMessage(f, w.fileRev)
	if err != nil {
		return
	}
	if rev, err := w.im.env.Bus.Publish(ctx, m); err == nil {
		w.fileRev = rev
	}
}

func (im *Importer) fileMessage(f event.File, rev store.Revision) (bus.Message, error) {
	data, err := json.Marshal(f)
	if err != nil {
		return bus.Message{}, fmt.Errorf("encode file entry of %q: %w", f.Path, err)
	}
	return bus.Message{Subject: im.fileSubject(f.Job, f.Connector, f.Path), Data: data, Expect: &rev}, nil
}

// probe tells what the object is, or ends the task: what is no medium is skipped.
func (w *work) probe(ctx context.Context, r io.ReaderAt, obj bucket.Object) (media.Info, *outcome, error) {
	info, err := w.im.prober.Probe(ctx, r, obj.Size, w.conn.LocalPath(obj.Path))
	if errors.Is(err, media.ErrUnsupported) {
		return info, w.settle(event.UnsupportedType, err.Error()), nil
	}
	return info, nil, err
}

var extension = regexp.MustCompile(`^\.[a-z0-9]{1,8}$`)

func (w *work) key() string { return libraryKey(w.task.Index, w.ans.id, w.task.Path) }

// libraryKey is where a medium goes in the library: a function of the medium, so that a second attempt writes to the
// same place and a deletion finds it, with the extension kept for tools that go by it.
func libraryKey(index string, id event.MediumID, objectPath string) string {
	ext := strings.ToLower(path.Ext(objectPath))
	if !extension.MatchString(ext) {
		ext = ""
	}
	return index + "/" + id.Object[:2] + "/" + id.String() + ext
}

// imported is the outcome of an object that is in the library.
func (w *work) imported(obj bucket.Object, info media.Info, stored bucket.Stored) *outcome {
	now := time.Now().UTC()
	m := event.Medium{
		ID: w.ans.id, Index: w.task.Index, Connector: w.task.Connector, Path: obj.Path, Version: obj.Version, Order: obj.Order,
		State: event.MediumImported, Size: stored.Size, CRC32C: stored.CRC32C, SHA256: stored.SHA256, URI: stored.URI,
		MediaType: string(info.Kind), ContentType: info.ContentType, Container: info.Container,
		VideoCodec: info.VideoCodec, AudioCodec: info.AudioCodec, Seconds: info.Duration.Seconds(),
		Width: info.Width, Height: info.Height, Job: w.task.Job, CreatedAt: now,
	}
	o := w.outcome(&m)
	if w.im.library != nil {
		o.key = stored.Key
		o.file.Bytes = stored.Size
	}
	fillImported(&o.file, m)
	return o
}

func fillImported(f *event.File, m event.Medium) {
	f.State, f.Reason, f.Error = event.Imported, "", ""
	f.Video, f.MediaType, f.Seconds = m.ID.String(), m.MediaType, m.Seconds
	f.Version, f.Size = m.Version, m.Size
}

// again is the outcome of a task that a crash kept from telling that it was done.
func (w *work) again() *outcome {
	o := w.outcome(nil)
	fillImported(&o.file, w.ans.imported.Medium)
	return o
}

// skip is the outcome of an object that needs no import; the ledger has nothing to learn.
func (w *work) skip(reason event.SkipReason, detail string) *outcome {
	o := w.outcome(nil)
	o.file.State, o.file.Reason, o.file.Error = event.Skipped, reason, detail
	return o
}

// settle is skip for a reason that lies in this version of the object: it stays so until the version changes.
func (w *work) settle(reason event.SkipReason, detail string) *outcome {
	o := w.skip(reason, detail)
	o.medium = w.ledgerEntry(event.MediumSkipped, string(reason), detail)
	return o
}

func (w *work) ledgerEntry(state event.MediumState, reason, detail string) *event.Medium {
	return &event.Medium{
		ID: w.ans.id, Index: w.task.Index, Connector: w.task.Connector, Path: w.task.Path, Version: w.task.Version,
		Order: w.task.Order, State: state, Reason: reason, Error: detail, Size: w.task.Size, CRC32C: w.task.CRC32C,
		Job: w.task.Job, CreatedAt: time.Now().UTC(),
	}
}

func (w *work) outcome(m *event.Medium) *outcome {
	f := w.file
	f.EndedAt, f.Copying = time.Now().UTC(), ""
	f.Attempts++
	return &outcome{d: w.d, file: f, fileRev: w.fileRev, medium: m, revision: w.ans.revision}
}

// failed decides what becomes of a failed attempt: another one later, or a final state.
func (w *work) failed(ctx context.Context, err error) (*outcome, error) {
	var wait *bus.RetryError
	if errors.As(err, &wait) {
		return nil, err // a circuit: no attempt was made
	}
	if isOurs(err) {
		return nil, err // the broker's trouble, not the object's
	}
	if held := (*heldError)(nil); errors.As(err, &held) {
		show := w.file
		show.State, show.Error = event.Queued, err.Error()
		w.show(ctx, show)
		return nil, bus.RetryAfter(held.after, err)
	}
	f := judge(err, w.file.Attempts+1, w.im.cfg.MaxAttempts)
	if !f.final {
		show := w.file
		show.State, show.Error = event.Queued, f.message
		show.Attempts++
		w.show(ctx, show)
		w.im.metrics.retries.Inc()
		return nil, bus.RetryAfter(f.again, err)
	}
	o := w.outcome(w.ledgerEntry(event.MediumFailed, f.reason, f.message))
	o.file.State, o.file.Error = event.Failed, f.message
	switch f.reason {
	case reasonUnreadable, string(bucket.ClassUnreadable), string(bucket.ClassArchived): // a person can do something about these
		o.file.Error = f.reason + ": " + f.message
	}
	o.medium.Attempts = w.ans.rounds + 1
	if f.comes {
		o.medium.RetryAt = retryAt(o.medium.Attempts, time.Now().UTC())
	}
	return o, nil
}

// isOurs reports whether err came from the broker: such a task is neither good nor bad yet.
func isOurs(err error) bool {
	return errors.Is(err, bus.ErrUnknown) || errors.Is(err, bus.ErrFull) || errors.Is(err, bus.ErrConflict) || isBroker(err)
}
