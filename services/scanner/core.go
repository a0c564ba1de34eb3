package scanner

import (
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// What the scanner decides, for whoever drives it without its effects, as the simulation does (services/sim). Nothing in
// here decides anything itself.

// Known is what is on record about one object for one automation.
type Known struct {
	Pending  *event.Arrival // nil: none
	Files    []event.File   // of unfinished jobs of the automation
	Versions []event.Medium // of the object in the automation's index
}

// News reports whether an object is an arrival at now. live means that this is certainly the version that is there.
// ask says that the storage is to be asked whether it is; see arrivals.decide.
func News(o event.Object, k Known, exact bool, found event.Found, live bool, now time.Time) (is, ask bool) {
	on := known{versions: k.Versions, pending: k.Pending, files: k.Files}
	v := decide(o, on, live, now)
	return v == news, !live && doubtful(v, exact, found == event.ByNotification && on.unordered(o), found)
}

// Covers reports whether a deletion is about o or something newer.
func Covers(deleted event.Notification, o event.Object) bool { return covers(deleted, o) }

// Fold is what notifications about one object say in the end, in the order in which they came.
func Fold(ns []event.Notification) (o event.Object, created bool, deleted *event.Notification) {
	var ch change
	for i := range ns {
		ch.add(&ns[i])
	}
	return ch.object, ch.created, ch.deleted
}

// Phase is how far the planning of a job got.
type Phase = phase

// The phases.
const (
	Unplanned = unplanned
	BeingDone = beingDone
	Planned   = planned
)

// PhaseOf says how far the planning of a job got; nil: it is not on record.
func PhaseOf(j *store.Job) Phase { return phaseOf(j) }

// TakeUp puts a job on record as being planned and returns how far it was.
func TakeUp(j *store.Job, req event.JobRequested, now time.Time) Phase { return takeUp(j, req, now) }

// Release lets the importer have a job of total files, unless it has ended or was let go meanwhile.
func Release(j *store.Job, total int) (ok bool) { return release(j, total) }

// Unsent says which of the entries of an interrupted planning need a task, and which files need an entry first.
func Unsent(left []store.Range, entries []event.File, page []event.Object, connector string) (missing, queued []event.Object) {
	pl := plan{left: left, had: make(map[string]leftover)}
	for _, f := range entries {
		pl.note(f)
	}
	files := make([]file, len(page))
	for i, o := range page {
		files[i] = file{connector: connector, Object: o}
	}
	entry, task := pl.sort(files)
	for _, f := range entry {
		missing = append(missing, f.Object)
	}
	for _, f := range task {
		queued = append(queued, f.Object)
	}
	for _, old := range pl.had { // what was not met
		if old.queued {
			queued = append(queued, old.Object)
		}
	}
	return missing, queued
}
