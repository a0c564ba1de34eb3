package window

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Windows are the window records of a deployment. All methods may run at the same time in any number of processes.
type Windows struct {
	bus *bus.Bus
	reg *store.Register[Record]
}

// Bind opens the register.
func Bind(ctx context.Context, b *bus.Bus) (*Windows, error) {
	reg, err := store.Open[Record](ctx, b, topology.Windows)
	if err != nil {
		return nil, err
	}
	return &Windows{bus: b, reg: reg}, nil
}

// Get returns the record of an automation; the zero record when it never had one.
func (w *Windows) Get(ctx context.Context, automation string) (Record, error) {
	r, _, err := w.reg.Modify(ctx, automation, func(*Record) error { return store.ErrUnchanged })
	r.Automation = automation
	return r, err
}

// mostCounted is up to how many arrivals Pending looks at; beyond, the record is near enough.
const mostCounted = 1000

// Pending is how many files wait in the open window of a record, and their bytes. The record itself counts what has come,
// also what was replaced or withdrawn since.
func (w *Windows) Pending(ctx context.Context, r Record) (files int, bytes int64, err error) {
	if r.Open == nil {
		return 0, 0, nil
	}
	for m, err := range w.bus.Scan(ctx, topology.Arrivals, w.bus.Subject("arrival", r.Automation, "*"), r.ClosedSeq+1) {
		if err != nil {
			return 0, 0, err
		}
		if m.Sequence > r.Open.LastSeq {
			break
		}
		if files++; files > mostCounted {
			return r.Open.Count, r.Open.Bytes, nil
		}
		var a event.Arrival
		if json.Unmarshal(m.Data, &a) == nil {
			bytes += max(a.Size, 0)
		}
	}
	return files, bytes, nil
}

// Watch follows all records; see store.Register.Watch.
func (w *Windows) Watch(ctx context.Context, ready func(), each func(store.Change[Record])) error {
	return w.reg.Watch(ctx, ready, each)
}

// Merge adds stored arrivals to the automation's window, opening one if need be; see the function Merge.
func (w *Windows) Merge(ctx context.Context, automation string, arrivals []Arrival, cfg Config) error {
	return w.take(ctx, automation, arrivals, cfg, Merge)
}

// Adopt gives stored arrivals that nobody else takes to the automation's window; see the function Adopt.
func (w *Windows) Adopt(ctx context.Context, automation string, arrivals []Arrival, cfg Config) error {
	return w.take(ctx, automation, arrivals, cfg, Adopt)
}

func (w *Windows) take(
	ctx context.Context, automation string, arrivals []Arrival, cfg Config, how func(Record, []Arrival, Config, string) Record,
) error {
	epoch := event.NewID("w")
	err := w.change(ctx, automation, func(r Record) Record { return how(r, arrivals, cfg, epoch) })
	if err != nil {
		return fmt.Errorf("merge arrivals into the window of %s: %w", automation, err)
	}
	return nil
}

// DueWindow is a window to be closed: the record as somebody last saw it, which must be Due, and the job it becomes.
type DueWindow struct {
	Record   Record
	Revision store.Revision
	Request  event.JobRequested
}

// Close closes windows and requests their jobs, as atomic batches. Each has its own error: bus.ErrConflict says that the
// record is not as it was seen, and who watches it will see it again.
//
// A crash between any two steps leaves a record from which Finish goes on: closing holds the whole request, and the id of
// a job is a function of its window.
func (w *Windows) Close(ctx context.Context, due []DueWindow) []error {
	errs := make([]error, len(due))
	records, revs := make([]Record, len(due)), make([]store.Revision, len(due))
	for i, d := range due {
		records[i], revs[i] = d.Record, d.Revision
		if d.Record.Closing != nil { // its request is still to be made, by whoever was interrupted
			errs[i] = cmp.Or(w.Finish(ctx, d.Record.Automation), bus.ErrConflict)
		}
	}
	now := time.Now()

	// Each step is taken for the windows that have no error so far.
	update := func(step func(Record, event.JobRequested) Record) {
		var writes []store.Write[Record]
		at := standing(errs)
		for _, i := range at {
			records[i] = step(records[i], due[i].Request)
			writes = append(writes, store.Write[Record]{Key: records[i].Automation, Value: records[i], Revision: revs[i]})
		}
		written, failed := w.reg.UpdateAll(ctx, writes)
		for k, i := range at {
			revs[i], errs[i] = written[k], failed[k]
		}
	}
	update(func(r Record, req event.JobRequested) Record { return StartClosing(r, req, now) })
	crash(errs, "window.closing")
	w.request(ctx, records, errs)
	crash(errs, "window.requested")
	requested := standing(errs)
	update(func(r Record, _ event.JobRequested) Record { return EndClosing(r, r.Closing.Epoch) })
	for _, i := range requested {
		if errors.Is(errs[i], bus.ErrConflict) { // the next window has opened beside it
			errs[i] = w.change(ctx, records[i].Automation, func(r Record) Record { return EndClosing(r, due[i].Record.Open.Epoch) })
		}
	}
	for i, err := range errs {
		if err != nil {
			errs[i] = fmt.Errorf("close the window of %s: %w", records[i].Automation, err)
		}
	}
	return errs
}

// crash is where a crash has to be harmless.
func crash(errs []error, name string) {
	for _, i := range standing(errs) {
		errs[i] = failpoint.Here(name)
	}
}

// standing is the places that have no error.
func standing(errs []error) (places []int) {
	for i, err := range errs {
		if err == nil {
			places = append(places, i)
		}
	}
	return places
}

// request asks for the jobs of closing windows, but of those that have an error already.
func (w *Windows) request(ctx context.Context, records []Record, errs []error) {
	var msgs []bus.Message
	at := standing(errs)
	for _, i := range at {
		req := records[i].Closing.Request
		data, err := json.Marshal(req)
		if err != nil {
			panic(err) // it was stored
		}
		msgs = append(msgs, bus.Message{Subject: w.bus.Subject("job", "requested", string(req.Lane), req.Job), Data: data})
	}
	_, failed := w.bus.PublishAll(ctx, msgs)
	for k, i := range at {
		errs[i] = failed[k]
	}
}

// Finish requests the job of a closing window and ends the closing. None there is no error.
func (w *Windows) Finish(ctx context.Context, automation string) error {
	r, err := w.Get(ctx, automation)
	if err != nil || r.Closing == nil {
		return err
	}
	errs := []error{nil}
	if w.request(ctx, []Record{r}, errs); errs[0] == nil {
		errs[0] = w.change(ctx, automation, func(now Record) Record { return EndClosing(now, r.Closing.Epoch) })
	}
	if errs[0] != nil {
		return fmt.Errorf("finish the closing window of %s: %w", automation, errs[0])
	}
	return nil
}

// change applies a pure function to the record of an automation.
func (w *Windows) change(ctx context.Context, automation string, f func(Record) Record) error {
	_, _, err := w.reg.Modify(ctx, automation, func(r *Record) error {
		r.Automation = automation
		*r = f(*r)
		return nil
	})
	return err
}

// Hold keeps the automation's windows from closing. When it returned nil, none will close before a Release with a later
// turn (store.Automation).
func (w *Windows) Hold(ctx context.Context, automation string, turn int64) error {
	return w.change(ctx, automation, func(r Record) Record { return Steer(r, turn, Hold) })
}

// Release lets windows close again.
func (w *Windows) Release(ctx context.Context, automation string, cfg Config, turn int64) error {
	return w.change(ctx, automation, func(r Record) Record {
		return Steer(r, turn, func(r Record) Record { return Release(r, cfg, time.Now()) })
	})
}

// Reconfigure applies a changed configuration to an open window.
func (w *Windows) Reconfigure(ctx context.Context, automation string, cfg Config) error {
	return w.change(ctx, automation, func(r Record) Record { return Reconfigure(r, cfg) })
}

// Drop forgets the open window and the arrivals in it. Those of a window that has closed are left to its job, which may
// not have been planned yet.
func (w *Windows) Drop(ctx context.Context, automation string) error {
	r, _, err := w.reg.Modify(ctx, automation, func(r *Record) error {
		r.Automation = automation
		*r = Drop(*r)
		return nil
	})
	if err != nil {
		return err
	}
	filter := w.bus.Subject("arrival", automation, "*")
	var mixed []bus.Stored // arrivals behind those of a job
	planned := false
	for m, err := range w.bus.Scan(ctx, topology.Arrivals, filter, 0) {
		switch {
		case err != nil:
			return err
		case m.Sequence <= r.ClosedSeq:
			planned = true
		case planned:
			mixed = append(mixed, m)
		default: // the first one is ours, and so are all that follow
			return w.bus.Purge(ctx, topology.Arrivals, filter, 0)
		}
	}
	for _, m := range mixed {
		if err := w.bus.Purge(ctx, topology.Arrivals, m.Subject, m.Sequence); err != nil {
			return err
		}
	}
	return nil
}
