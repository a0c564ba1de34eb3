package exporter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"millrace/shared/bus"
	"millrace/shared/connector"
	"millrace/shared/control"
	"millrace/shared/event"
	"millrace/shared/store"
)

// runEnded handles the end of a run. The event only says that there is something to look at; the record decides.
func (e *Exporter) runEnded(ctx context.Context, ev event.RunEvent, _ *control.Message) error {
	run, _, err := e.runs.Get(ctx, ev.Run)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil // deleted
	case err != nil:
		return err
	case !run.Status.Terminal(): // the event comes after the record
		return bus.RetryAfter(time.Second, fmt.Errorf("run %s is announced as ended and on record as %s", run.ID, run.Status))
	}
	return e.follow(ctx, run)
}

// follow exports a run that ended if the automation of its index wants that, or notes that it waits for the end of a
// pause. Whether it is paused is decided by the record at the moment of writing, so a run is held or exported, not
// neither.
func (e *Exporter) follow(ctx context.Context, run store.Run) error {
	if run.Index == "" || (run.Status != store.RunCompleted && run.Status != store.RunCompletedWithFailures) {
		return nil
	}
	var outcome string
	at, _, err := e.automations.Modify(ctx, event.ExportAutomationOfIndex(run.Index), func(at *store.ExportAutomation) error {
		outcome = decide(*at, run)
		if outcome != held || (!at.HeldFrom.IsZero() && !run.EndedAt.Before(at.HeldFrom)) {
			return store.ErrUnchanged
		}
		at.HeldFrom = run.EndedAt
		return nil
	})
	if err != nil {
		return err
	}
	if outcome == exported {
		err = e.fire(ctx, at, run)
	}
	if err == nil {
		e.metrics.runs.WithLabelValues(outcome).Inc()
	}
	return err
}

// What follows from the end of a run.
const (
	exported = "exported"
	held     = "held" // until the pause is over
	unwanted = "unwanted"
)

func decide(at store.ExportAutomation, run store.Run) string {
	switch {
	case at.ID == "" || !at.Enabled || run.EndedAt.Before(at.EnabledAt):
		return unwanted
	case at.Paused:
		return held
	}
	return exported
}

// fire asks for the export of a run, and notes that in the automation. An export that cannot be made, because the
// connector is gone or must not be written to, is asked for all the same: it fails for everybody to see.
func (e *Exporter) fire(ctx context.Context, at store.ExportAutomation, run store.Run) error {
	c, _, err := e.connectors.Get(ctx, at.Connector)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	base, _ := connector.CheckExportPath(c.ExportBasePath) // what is wrong with it is said by the attempt
	x, err := e.exports.Create(ctx, event.ExportRequested{
		Export: event.ExportOfRunBy(at.ID, run.ID), Type: event.ExportOfRun, Target: run.ID, Index: run.Index,
		Scope: event.AllResults, Format: at.Format, Connector: at.Connector, BasePath: base, Subpath: at.Subpath,
		Automation: at.ID, RequestedAt: time.Now().UTC(),
	})
	if err != nil {
		return err
	}
	_, _, err = e.automations.Modify(ctx, at.ID, func(at *store.ExportAutomation) error {
		if at.ID == "" || !at.LastAt.Before(x.CreatedAt) {
			return store.ErrUnchanged
		}
		at.LastExport, at.LastAt = x.ID, x.CreatedAt
		return nil
	})
	return err
}

// watch wakes the sweep when a pause is over, until ctx ends.
func (e *Exporter) watch(ctx context.Context) {
	for ctx.Err() == nil {
		err := e.automations.Watch(ctx, func() {}, func(c store.Change[store.ExportAutomation]) {
			if c.Value == nil || !waiting(*c.Value) {
				return
			}
			select {
			case e.released <- struct{}{}:
			default:
			}
		})
		if err == nil {
			return
		}
		e.env.Log.Warn("watching export automations, will try again", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// waiting reports whether there are runs to be exported that a pause has held back.
func waiting(at store.ExportAutomation) bool {
	return at.Enabled && !at.Paused && !at.HeldFrom.IsZero()
}

// catchUp exports what was held back by pauses that are over. The mark is taken away only then, so another exporter,
// or this one when it is started again, goes on where this one stopped. It stays when somebody paused or resumed
// meanwhile: a run held back by that pause may have ended behind the back of this listing.
func (e *Exporter) catchUp(ctx context.Context) error {
	due := make(map[string]store.ExportAutomation) // by index
	for at, err := range e.automations.All(ctx) {
		if err != nil {
			return err
		}
		if waiting(at) {
			due[at.Index] = at
		}
	}
	if len(due) == 0 {
		return nil
	}
	for run, err := range e.runs.All(ctx) {
		if err != nil {
			return err
		}
		at, ok := due[run.Index]
		if !ok || run.EndedAt.Before(at.HeldFrom) {
			continue
		}
		if err := e.follow(ctx, run); err != nil {
			return err
		}
	}
	for _, was := range due {
		_, _, err := e.automations.Modify(ctx, was.ID, func(at *store.ExportAutomation) error {
			if !waiting(*at) || !at.UpdatedAt.Equal(was.UpdatedAt) {
				return store.ErrUnchanged
			}
			at.HeldFrom = time.Time{}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
