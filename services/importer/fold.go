package importer

import (
	"fmt"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// fold is the progress of one job as the sum of its file entries. It keeps the last known state of each file, so an
// entry that is seen twice, or whose earlier states were replaced before they could be seen, counts right.
type fold struct {
	files   map[string]seen // by object hash
	counts  map[event.FileState]int
	bytes   int64
	current string // path of a file in transfer
}

type seen struct {
	state event.FileState
	bytes int64
}

func newFold() *fold {
	return &fold{files: make(map[string]seen), counts: make(map[event.FileState]int)}
}

// add takes the entry of an object. A file that is imported stays imported: entries come in the order in which they
// were written, but a process that lost its lease may write late.
func (f *fold) add(object string, file event.File) {
	old, known := f.files[object]
	if known && old.state == event.Imported {
		return
	}
	if known {
		f.counts[old.state]--
		f.bytes -= old.bytes
	}
	now := seen{state: file.State, bytes: file.Bytes}
	f.files[object] = now
	f.counts[now.state]++
	f.bytes += now.bytes
	switch {
	case file.State == event.Importing:
		f.current = file.Path
	case f.current == file.Path:
		f.current = ""
	}
}

// final is the number of files on which no more work follows.
func (f *fold) final() int {
	return f.counts[event.Imported] + f.counts[event.Skipped] + f.counts[event.Failed]
}

// progress is the job's progress, total being what its plan says.
func (f *fold) progress(total int) store.Progress {
	return store.Progress{
		Total:    total,
		Imported: f.counts[event.Imported],
		Skipped:  f.counts[event.Skipped],
		Failed:   f.counts[event.Failed],
		Bytes:    f.bytes,
		Current:  f.current,
	}
}

// outcomeOf is how a job ends whose files are all final: a job with some failures is completed (contract §12.3), one in
// which nothing but failures happened has failed.
func outcomeOf(p store.Progress) store.JobStatus {
	if p.Failed > 0 && p.Imported == 0 && p.Skipped == 0 {
		return store.JobFailed
	}
	return store.JobCompleted
}

// advanced puts progress as of a sequence on record, unless the record is as far, or at its end.
func advanced(j *store.Job, p store.Progress, asOf uint64) bool {
	if j.Status.Terminal() || j.AsOf >= asOf {
		return false
	}
	p.Total = j.Progress.Total
	j.Progress, j.AsOf = p, asOf
	return true
}

// ended makes j a job that has ended with p, unless it is not importing any more.
func ended(j *store.Job, p store.Progress, asOf uint64, now time.Time) bool {
	if j.Status != store.JobImporting {
		return false
	}
	p.Total = j.Progress.Total
	p.Current = ""
	j.Progress, j.AsOf = p, asOf
	j.Status = outcomeOf(p)
	if j.Status == store.JobFailed {
		j.Error = fmt.Sprintf("all %d files failed; see failed_files", p.Failed)
	}
	j.Report = ReportName(j.ID)
	j.EndedAt = now
	j.Left = nil
	return true
}

// step is what the tracker has to do for a job.
type step int

const (
	nothing     step = iota
	show             // write progress
	end              // all files are final: write the report, end the job
	clearQueue       // cancelled: settle what nobody will work on
	settleEnded      // ended, and not yet announced and compacted
	sweepUp          // entries of a job that is settled: remove them
)

// next decides what to do for a job. rec is nil while its record is not known.
func next(rec *store.Job, f *fold) step {
	switch {
	case rec == nil:
		return nothing
	case rec.Settled:
		if len(f.files) > 0 {
			return sweepUp
		}
		return nothing
	case rec.Status == store.JobCancelled && rec.Report == "":
		return clearQueue
	case rec.Status.Terminal():
		return settleEnded
	case rec.Status == store.JobImporting && f.final() >= rec.Progress.Total:
		return end
	case rec.Status == store.JobImporting || rec.Status == store.JobScanning:
		return show
	}
	return nothing
}
