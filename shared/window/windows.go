package window

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Windows are the window records of a deployment and their alarms. All methods may run at the same time in any number
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

func newEpoch() string { return event.NewID("w") }

// Merge adds stored arrivals to the automation's window and arms its alarm if that opened one.
func (w *Windows) Merge(ctx context.Context, automation string, arrivals []Arrival, cfg Config) error {
	var opened bool
	epoch := newEpoch()
	r, _, err := w.reg.Modify(ctx, automation, func(r *Record) error {
		r.Automation = automation
		*r, opened = Merge(*r, arrivals, cfg, epoch)
		return nil
	})
	if err != nil {
		return fmt.Errorf("merge arrivals into the window of %s: %w", automation, err)
	}
	if opened {
		return w.arm(ctx, r)
	}
	return nil
}

// arm sets the alarm of the open window. Timers have a resolution of a second, so the deadline is rounded up: an alarm
// that rings early would only have to be set again.
func (w *Windows) arm(ctx context.Context, r Record) error {
	body, err := json.Marshal(event.Timer{Automation: r.Automation, Epoch: r.Open.Epoch})
	if err != nil {
		return err
	}
	return Arm(ctx, w.bus, "window", r.Automation, r.Open.Epoch, r.Open.Deadline, body)
}

// Arm has the broker publish body on due.<kind>.<automation> at the given time, to the second, rounded up. The epoch
// keeps alarms apart: an alarm must never be set twice under one epoch except by the handler of its ring.
func Arm(ctx context.Context, b *bus.Bus, kind, automation, epoch string, at time.Time, body []byte) error {
	at = at.Add(time.Second - 1).Truncate(time.Second).UTC()
	_, err := b.Publish(ctx, bus.Message{
		Subject: b.Subject("timer", kind, automation, epoch),
		Header: nats.Header{
			jetstream.ScheduleHeader:       {"@at " + at.Format(time.RFC3339)},
			jetstream.ScheduleTargetHeader: {b.Subject("due", kind, automation)},
		},
		Data: body,
	})
	if err != nil {
		return fmt.Errorf("arm the %s timer of %s: %w", kind, automation, err)
	}
	return nil
}

// Ring handles the alarm of epoch: it closes the window if it is due, and asks for its job. request makes the job's
// configuration part. It returns what was decided.
//
// A crash between any two steps leaves a record from which Ring or Finish goes on: closing holds the whole request, and
// the id of a job is a function of its window.
func (w *Windows) Ring(ctx context.Context, automation, epoch string, request func() (event.JobRequested, error)) (Action, error) {
	var did Action
	r, rev, err := w.reg.Modify(ctx, automation, func(r *Record) error {
		if did = Due(*r, epoch, time.Now()); did != Close {
			return store.ErrUnchanged
		}
		if r.Closing != nil { // its request is still to be made, by whoever was interrupted
			if err := w.publish(ctx, r.Closing.Request); err != nil {
				return err
			}
			*r = EndClosing(*r, r.Closing.Epoch)
		}
		req, err := request()
		if err != nil {
			return err
		}
		*r = StartClosing(*r, req, time.Now())
		return nil
	})
	if err != nil {
		return did, fmt.Errorf("close the window of %s: %w", automation, err)
	}
	switch did {
	case Wait:
		return did, w.arm(ctx, r)
	case Close:
		return did, w.finish(ctx, r, rev)
	}
	return did, nil
}

// Finish requests the job of a closing window and ends the closing.
func (w *Windows) Finish(ctx context.Context, automation string) error {
	r, rev, err := w.reg.Get(ctx, automation)
	if err != nil || r.Closing == nil {
		return err
	}
	return w.finish(ctx, r, rev)
}

func (w *Windows) finish(ctx context.Context, r Record, rev store.Revision) error {
	if err := w.publish(ctx, r.Closing.Request); err != nil {
		return err
	}
	epoch := r.Closing.Epoch
	if w.reg.Update(ctx, r.Automation, EndClosing(r, epoch), rev) == nil {
		return nil
	}
	_, _, err := w.reg.Modify(ctx, r.Automation, func(r *Record) error {
		*r = EndClosing(*r, epoch)
		return nil
	})
	return err
}

func (w *Windows) publish(ctx context.Context, req event.JobRequested) error {
	data, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request of job %s: %w", req.Job, err)
	}
	_, err = w.bus.Publish(ctx, bus.Message{Subject: w.bus.Subject("job", "requested", string(req.Lane), req.Job), Data: data})
	return err
}

// Hold keeps the automation's windows from closing. When it returned nil, none will close before Release.
func (w *Windows) Hold(ctx context.Context, automation string) error {
	_, _, err := w.reg.Modify(ctx, automation, func(r *Record) error {
		r.Automation = automation
		*r = Hold(*r)
		return nil
	})
	return err
}

// Release lets windows close again.
func (w *Windows) Release(ctx context.Context, automation string, cfg Config) error {
	return w.rearmed(ctx, automation, func(r Record, epoch string) Record {
		return Release(r, cfg, time.Now(), epoch)
	})
}

// Reconfigure applies a changed configuration to an open window.
func (w *Windows) Reconfigure(ctx context.Context, automation string, cfg Config) error {
	return w.rearmed(ctx, automation, func(r Record, epoch string) Record { return Reconfigure(r, cfg, epoch) })
}

// rearmed applies change, and arms the alarm if it gave the open window the new epoch.
func (w *Windows) rearmed(ctx context.Context, automation string, change func(Record, string) Record) error {
	epoch := newEpoch()
	r, _, err := w.reg.Modify(ctx, automation, func(r *Record) error {
		r.Automation = automation
		*r = change(*r, epoch)
		return nil
	})
	if err != nil {
		return err
	}
	if r.Open != nil && r.Open.Epoch == epoch {
		return w.arm(ctx, r)
	}
	return nil
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
