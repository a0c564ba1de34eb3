package presettrigger

import (
	"fmt"
	"maps"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// fold is what the reports of one run amount to. It depends on which reports were applied, each with its place in the
// stream, and not on the order or the number of times they were: of the final reports about a medium the newest
// counts, and a final one outweighs one that is not.
//
// The stream keeps the newest report per medium, so a fold made anew from the stream can lag behind the record until
// it has caught up; into sees to it that the record does not go back.
type fold struct {
	media   map[string]standing // by video
	tallies map[string]store.Tally
	done    int // media with a final report
	seen    int // media with a report
	first   time.Time
	last    time.Time // of the final reports
}

// standing is where one medium stands.
type standing struct {
	kind  string // media type
	title string
	state event.ReportState // "": not reported
	seq   uint64            // of the report that counts
}

func newFold() *fold {
	return &fold{media: make(map[string]standing), tallies: make(map[string]store.Tally)}
}

// add makes a medium part of the run.
func (f *fold) add(m event.RunMedium) {
	if _, twice := f.media[m.Video]; twice {
		return
	}
	f.media[m.Video] = standing{kind: m.MediaType, title: m.Title}
	f.count(m.MediaType, 1, "", 0)
}

func (f *fold) count(kind string, total int, state event.ReportState, n int) {
	t := f.tallies[kind]
	t.Total += total
	switch state {
	case event.Successful:
		t.Completed += n
		f.done += n
	case event.Unsuccessful:
		t.Failed += n
		f.done += n
	}
	f.tallies[kind] = t
}

func final(s event.ReportState) bool { return s == event.Successful || s == event.Unsuccessful }

// apply takes a report that lies at seq in the stream and was stored at at. It returns false if the run has no such
// medium.
func (f *fold) apply(video string, state event.ReportState, seq uint64, at time.Time) bool {
	now, ok := f.media[video]
	if !ok {
		return false
	}
	f.first = earliest(f.first, at)
	if final(state) && at.After(f.last) {
		f.last = at
	}
	newer := seq > now.seq
	if final(state) != final(now.state) {
		newer = final(state)
	}
	if !newer {
		return true
	}
	if now.state == "" {
		f.seen++
	}
	f.count(now.kind, 0, now.state, -1)
	f.count(now.kind, 0, state, 1)
	f.media[video] = standing{kind: now.kind, title: now.title, state: state, seq: seq}
	return true
}

// complete reports whether every medium has a final report.
func (f *fold) complete() bool { return f.done == len(f.media) }

// into returns the record as it is after these reports. What has ended stays as it is, counts never go back, and at
// the end total = completed + failed.
func (f *fold) into(run store.Run) store.Run {
	if run.Status.Terminal() || f.seen == 0 {
		return run
	}
	run.Status = store.RunProcessing
	run.StartedAt = earliest(run.StartedAt, f.first)
	if f.done < done(run.Tallies) {
		return run
	}
	run.Tallies = maps.Clone(f.tallies)
	if !f.complete() {
		return run
	}
	run.EndedAt = f.last
	completed, failed := 0, 0
	for _, t := range run.Tallies {
		completed += t.Completed
		failed += t.Failed
	}
	switch {
	case failed == 0:
		run.Status = store.RunCompleted
	case completed == 0:
		run.Status, run.Error = store.RunFailed, fmt.Sprintf("all %d media failed", failed)
	default:
		run.Status = store.RunCompletedWithFailures
	}
	return run
}

func done(tallies map[string]store.Tally) (n int) {
	for _, t := range tallies {
		n += t.Completed + t.Failed
	}
	return n
}

// earliest is the earlier of two times of which a may be zero.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
