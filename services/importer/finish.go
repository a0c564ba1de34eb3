package importer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// A job ends in these steps; whoever is interrupted, the next tracker goes on from what the record says:
//
//	report written ─▶ record: status, report ─▶ event ─▶ file entries purged ─▶ record: settled

// ReportName is the document with a line (event.File) per file of a job that has ended.
func ReportName(job string) string { return "jobs/" + job + ".jsonl" }

// end ends a job all of whose files are final.
func (t *tracker) end(ctx context.Context, rec store.Job, p store.Progress, asOf uint64) error {
	if err := t.report(ctx, rec.ID); err != nil {
		return err
	}
	if err := failpoint.Here("tracker.reported"); err != nil {
		return err
	}
	rec, _, err := t.reg.Modify(ctx, rec.ID, func(j *store.Job) error {
		if !ended(j, p, asOf, time.Now().UTC()) {
			return store.ErrUnchanged // cancelled at the last moment
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("end job %s: %w", rec.ID, err)
	}
	if rec.Status == store.JobCancelled {
		return nil // the change of the record brings the next step
	}
	return t.settle(ctx, rec)
}

// settle announces the end of a job and compacts its entries.
func (t *tracker) settle(ctx context.Context, rec store.Job) error {
	if rec.Report == "" { // it failed while it was planned
		if err := t.report(ctx, rec.ID); err != nil {
			return err
		}
		_, _, err := t.reg.Modify(ctx, rec.ID, func(j *store.Job) error { j.Report = ReportName(j.ID); return nil })
		if err != nil {
			return fmt.Errorf("report of job %s: %w", rec.ID, err)
		}
	}
	if err := failpoint.Here("tracker.ended"); err != nil {
		return err
	}
	if typ, ok := endEvent(rec); ok {
		e, err := bus.NewEvent(typ, rec.Index, rec.ID, rec.EndedAt, jobEvent(rec))
		if err != nil {
			return err
		}
		if err := t.env.Bus.PublishEvent(ctx, e); err != nil {
			return err
		}
	}
	if err := failpoint.Here("tracker.announced"); err != nil {
		return err
	}
	if err := t.purge(ctx, rec); err != nil {
		return err
	}
	if err := failpoint.Here("tracker.compacted"); err != nil {
		return err
	}
	_, _, err := t.reg.Modify(ctx, rec.ID, func(j *store.Job) error { j.Settled = true; return nil })
	if err != nil {
		return fmt.Errorf("settle job %s: %w", rec.ID, err)
	}
	t.mu.Lock()
	t.job(rec.ID).settled = true
	t.mu.Unlock()
	t.metrics.ended.WithLabelValues(string(rec.Status)).Inc()
	t.env.Log.Info("job ended", "job_id", rec.ID, "status", rec.Status, "total", rec.Progress.Total,
		"imported", rec.Progress.Imported, "skipped", rec.Progress.Skipped, "failed", rec.Progress.Failed)
	return nil
}

// jobEvent is what events say of a job.
func jobEvent(rec store.Job) event.JobEvent {
	return event.JobEvent{
		Job: rec.ID, Index: rec.Index, Connector: rec.Connector, Automation: rec.Automation, Status: string(rec.Status),
		Total: rec.Progress.Total, Imported: rec.Progress.Imported, Skipped: rec.Progress.Skipped,
		Failed: rec.Progress.Failed, Error: rec.Error,
	}
}

// endEvent is the public event of an ended job. The cancelled one has none (contract §16.4).
func endEvent(rec store.Job) (event.Type, bool) {
	switch {
	case rec.Status == store.JobFailed:
		return event.JobFailed, true
	case rec.Status == store.JobCompleted && rec.Progress.Failed > 0:
		return event.JobPartialCompleted, true
	case rec.Status == store.JobCompleted:
		return event.JobCompleted, true
	}
	return "", false
}

// clear ends a cancelled job: what is queued is settled here, what is in transfer settles itself as soon as its worker
// hears of the cancellation, and what is imported stays.
func (t *tracker) clear(ctx context.Context, rec store.Job) error {
	b := t.env.Bus
	if err := b.Purge(ctx, topology.Tasks, b.Subject("task", string(rec.Lane), rec.ID, "*"), 0); err != nil {
		return err
	}
	f := newFold()
	var open []bus.Message
	for m, err := range b.Scan(ctx, topology.Files, b.Subject("file", rec.ID, "*"), 0) {
		if err != nil {
			return err
		}
		var file event.File
		if err := json.Unmarshal(m.Data, &file); err != nil {
			return fmt.Errorf("decode file entry %s: %w", m.Subject, err)
		}
		if !file.State.Final() {
			file.State, file.Reason, file.EndedAt = event.Skipped, event.Cancelled, time.Now().UTC()
			data, err := json.Marshal(file)
			if err != nil {
				return err
			}
			open = append(open, bus.Message{Subject: m.Subject, Data: data, Expect: &m.Sequence})
		}
		f.add(m.Subject, file)
	}
	if _, errs := b.PublishAll(ctx, open); errors.Join(errs...) != nil {
		return fmt.Errorf("settle the queue of cancelled job %s: %w", rec.ID, errors.Join(errs...))
	}
	if err := t.report(ctx, rec.ID); err != nil {
		return err
	}
	rec, _, err := t.reg.Modify(ctx, rec.ID, func(j *store.Job) error {
		if j.Report != "" {
			return store.ErrUnchanged // by another tracker, meanwhile
		}
		j.Progress = f.progress(len(f.files))
		j.Report = ReportName(j.ID)
		return nil
	})
	if err != nil {
		return err
	}
	return t.settle(ctx, rec)
}

// report compacts the file entries of a job into a document, unless the record names one by the time all of them are read:
// another tracker was faster and may have removed some, and its report must stay.
func (t *tracker) report(ctx context.Context, job string) error {
	return store.WritePacked(ctx, t.docs, ReportName(job), func(yield func(event.File, error) bool) {
		for f, err := range files(ctx, t.env.Bus, job) {
			if !yield(f, err) || err != nil {
				return
			}
		}
		rec, _, err := t.reg.Get(ctx, job)
		if err == nil && rec.Report != "" {
			err = fmt.Errorf("job %s has its report already", job)
		}
		if err != nil {
			yield(event.File{}, err)
		}
	})
}

// files yields the file entries of a job.
func files(ctx context.Context, b *bus.Bus, job string) iter.Seq2[event.File, error] {
	return func(yield func(event.File, error) bool) {
		for m, err := range b.Scan(ctx, topology.Files, b.Subject("file", job, "*"), 0) {
			var f event.File
			if err == nil {
				err = json.Unmarshal(m.Data, &f)
			}
			if !yield(f, err) || err != nil {
				return
			}
		}
	}
}

// purge removes what is left of a job in the streams.
func (t *tracker) purge(ctx context.Context, rec store.Job) error {
	b := t.env.Bus
	if err := b.Purge(ctx, topology.Tasks, b.Subject("task", string(rec.Lane), rec.ID, "*"), 0); err != nil {
		return err
	}
	if err := b.Purge(ctx, topology.Files, b.Subject("file", rec.ID, "*"), 0); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.job(rec.ID).fold = newFold()
	return nil
}
