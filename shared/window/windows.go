package window

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Windows are the window records of a deployment. All methods may run at the same time in any number
// of processes.
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

// Watch follows all records; see store.Register.Watch.
func (w *Windows) Watch(ctx context.Context, ready func(), each func(store.Change[Record])) error {
	return w.reg.Watch(ctx, ready, each)
}

// Merge adds stored arrivals to the automation's window, opening one if need be. Those that belong to windows that have
// closed are delivered again when their acknowledgement got lost; they open no other.
func (w *Windows) Merge(ctx context.Context, automation string, arrivals []Arrival, cfg Config) error {
	return w.merge(ctx, automation, arrivals, cfg, func(r Record, a Arrival) bool { return a.Seq > r.ClosedSeq })
}

// Adopt is Merge of arrivals that no window has, whatever their sequence says: after a restore it can be handed out again.
func (w *Windows) Adopt(ctx context.Context, automation string, arrivals []Arrival, cfg Config) error {
	return w.merge(ctx, automation, arrivals, cfg, func(Record, Arrival) bool { return true })
}

func (w *Windows) merge(ctx context.Context, automation string, arrivals []Arrival, cfg Config, mine func(Record, Arrival) bool) error {
	epoch := event.NewID("w")
	err := w.change(ctx, automation, func(r Record) Record {
		var wanted []Arrival
		for _, a := range arrivals {
			if mine(r, a) {
				wanted = append(wanted, a)
			}
		}
		r, _ = Merge(r, wanted, cfg, epoch)
		return r
	})
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
	now := time.Now()
	var open []int // places in due
	var closing []store.Write[Record]
	for i, d := range due {
		if d.Record.Closing != nil { // its request is still to be made, by whoever was interrupted
			if errs[i] = w.Finish(ctx, d.Record.Automation); errs[i] == nil {
				errs[i] = bus.ErrConflict
			}
			continue
		}
		open = append(open, i)
		closing = append(closing, store.Write[Record]{
			Key: d.Record.Automation, Value: StartClosing(d.Record, d.Request, now), Revision: d.Revision,
		})
	}
	revs, failed := w.reg.UpdateAll(ctx, closing)
	var requests []bus.Message
	var ends []store.Write[Record]
	var asked []int
	for k, i := range open {
		c := closing[k].Value
		msg, err := w.request(c.Closing.Request)
		if errs[i] = errors.Join(failed[k], err); errs[i] != nil {
			continue
		}
		requests = append(requests, msg)
		ends = append(ends, store.Write[Record]{Key: closing[k].Key, Value: EndClosing(c, c.Closing.Epoch), Revision: revs[k]})
		asked = append(asked, i)
	}
	_, failed = w.bus.PublishAll(ctx, requests)
	done := ends[:0]
	var closed []int
	for k, i := range asked {
		if errs[i] = failed[k]; errs[i] == nil {
			done, closed = append(done, ends[k]), append(closed, i)
		}
	}
	_, failed = w.reg.UpdateAll(ctx, done)
	for k, i := range closed {
		if errors.Is(failed[k], bus.ErrConflict) { // the next window has opened beside it
			failed[k] = w.change(ctx, done[k].Key, func(r Record) Record { return EndClosing(r, due[i].Record.Open.Epoch) })
		}
		errs[i] = failed[k]
	}
	for i, err := range errs {
		if err != nil {
			errs[i] = fmt.Errorf("close the window of %s: %w", due[i].Record.Automation, err)
		}
	}
	return errs
}

// Finish requests the job of a closing window and ends the closing. None there is no error.
func (w *Windows) Finish(ctx context.Context, automation string) error {
	r, err := w.Get(ctx, automation)
	if err != nil || r.Closing == nil {
		return err
	}
	msg, err := w.request(r.Closing.Request)
	if err == nil {
		_, err = w.bus.Publish(ctx, msg)
	}
	if err == nil {
		err = w.change(ctx, automation, func(now Record) Record { return EndClosing(now, r.Closing.Epoch) })
	}
	if err != nil {
		return fmt.Errorf("finish the closing window of %s: %w", automation, err)
	}
	return nil
}

func (w *Windows) request(req event.JobRequested) (bus.Message, error) {
	data, err := json.Marshal(req)
	if err != nil {
		return bus.Message{}, fmt.Errorf("encode request of job %s: %w", req.Job, err)
	}
	return bus.Message{Subject: w.bus.Subject("job", "requested", string(req.Lane), req.Job), Data: data}, nil
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

// Hold keeps the automation's windows from closing. When it returned nil, none will close before Release.
func (w *Windows) Hold(ctx context.Context, automation string) error {
	return w.change(ctx, automation, Hold)
}

// Release lets windows close again.
func (w *Windows) Release(ctx context.Context, automation string, cfg Config) error {
	return w.change(ctx, automation, func(r Record) Record { return Release(r, cfg, time.Now()) })
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
