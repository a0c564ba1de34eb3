package importer

import (
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// What the importer decides, for whoever drives it without its effects, as the simulation does (services/sim). Nothing in
// here decides anything itself.

// Answer is what the ledger says about a task before any byte moves.
type Answer struct {
	Skip     event.SkipReason // not empty: nothing to do
	Record   bool             // the skip is news to the ledger
	Imported *store.Entry     // this very job has imported it already
	Revision store.Revision   // of the entry that an outcome replaces
	Rounds   int              // times it was given up before
	Newest   *event.Medium    // the newest imported version of the path
	ID       event.MediumID
}

// Ask decides from the task and what the ledger knows of the object's versions.
func Ask(t event.Task, versions []store.Entry) Answer {
	a := ask(t, versions)
	return Answer{
		Skip: a.skip, Record: a.record, Imported: a.imported, Revision: a.revision, Rounds: a.rounds, Newest: a.newest, ID: a.id,
	}
}

// Unchanged reports whether content of this size and checksum is what the newest imported version has.
func Unchanged(newest *event.Medium, size int64, crc32c, sha256 string) bool {
	return unchanged(newest, size, crc32c, sha256)
}

// Failure is what becomes of a task that could not be done.
type Failure struct {
	Final  bool
	Reason string
	Again  time.Duration // not final: pause before the next attempt
	Comes  bool          // final, but a scan may try again later
}

// Judge decides after attempt number n (from 1) of at most most failed with err.
func Judge(err error, n, most int) Failure {
	f := judge(err, n, most)
	return Failure{Final: f.final, Reason: f.reason, Again: f.again, Comes: f.comes}
}

// RetryAt is when a scan may try again what was given up for the n-th time (from 1) at now.
func RetryAt(n int, now time.Time) time.Time { return retryAt(n, now) }

// Says reports whether the ledger says what m says, whoever wrote it.
func Says(found []store.Entry, m event.Medium) bool { return says(found, m) }

// Fold is the progress of one job as the sum of its file entries.
type Fold struct{ f *fold }

// NewFold returns the fold of no entries.
func NewFold() Fold { return Fold{newFold()} }

// Add takes the entry of an object.
func (f Fold) Add(object string, file event.File) { f.f.add(object, file) }

// Progress is the job's progress, total being what its plan says.
func (f Fold) Progress(total int) store.Progress { return f.f.progress(total) }

// Step is what the tracker has to do for a job.
type Step = step

// The steps.
const (
	Nothing     = nothing
	Show        = show
	End         = end
	ClearQueue  = clearQueue
	SettleEnded = settleEnded
	SweepUp     = sweepUp
)

// Next decides what to do for a job. rec is nil while its record is not known.
func Next(rec *store.Job, f Fold) Step { return next(rec, f.f) }

// Advance puts progress as of a sequence of file entries on record.
func Advance(j *store.Job, p store.Progress, asOf uint64) (ok bool) { return advanced(j, p, asOf) }

// Finish ends a job all of whose files are final.
func Finish(j *store.Job, p store.Progress, asOf uint64, now time.Time) (ok bool) {
	return ended(j, p, asOf, now)
}

// EndEvent is the public event of an ended job.
func EndEvent(rec store.Job) (event.Type, bool) { return endEvent(rec) }
