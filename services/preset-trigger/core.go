package presettrigger

import (
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// What the preset trigger decides, for whoever drives it without its effects, as the simulation does (services/sim).
// Nothing in here decides anything itself.

// Follows says whether a run follows from a job, or that this cannot be decided yet.
func Follows(job store.Job) (run, later bool) {
	d := decide(job)
	return d == create, d == wait
}

// Made says whether a run that is on record has been made, so that it is returned as it is.
func Made(run store.Run) bool { return made(run) }

// Fold is what the reports of one run amount to.
type Fold struct{ f *fold }

// NewFold returns the fold of no reports about the given media.
func NewFold(media []event.RunMedium) Fold {
	f := newFold()
	for _, m := range media {
		f.add(m)
	}
	return Fold{f}
}

// Apply takes a report that lies at seq in the stream and was stored at at.
func (f Fold) Apply(r event.Report, seq uint64, at time.Time) { f.f.apply(r.Video, r.State, seq, at) }

// Into returns the record as it is after these reports.
func (f Fold) Into(run store.Run) store.Run { return f.f.into(run) }
