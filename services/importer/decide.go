package importer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/event"
	"millrace/shared/media"
	"millrace/shared/store"
)

// answer is what the ledger says about a task before any byte moves.
type answer struct {
	skip     event.SkipReason // not empty: nothing to do
	detail   string
	record   bool           // the skip is news to the ledger
	imported *store.Entry   // this very job has imported it already: only the rest of the commit is left
	revision store.Revision // of the entry that an outcome replaces
	rounds   int            // times it was given up before
	newest   *event.Medium  // the newest imported version of the path, for "unchanged"
	id       event.MediumID
}

// ask decides from the task and what the ledger knows of the object's versions.
func ask(t event.Task, versions []store.Entry) answer {
	a := answer{id: mediumID(t)}
	for _, e := range versions {
		if e.State == event.MediumImported && e.ID != a.id && (a.newest == nil || e.CreatedAt.After(a.newest.CreatedAt)) {
			m := e.Medium
			a.newest = &m
		}
		if e.ID != a.id {
			continue
		}
		a.revision, a.rounds = e.Revision, e.Attempts
		switch {
		case e.State == event.MediumImported && e.Job == t.Job:
			a.imported = &e
		case e.State == event.MediumSkipped && !t.Again:
			a.skip, a.detail = event.SkipReason(e.Reason), e.Error
		case e.State == event.MediumBaseline:
			a.skip = event.Baseline
		case e.State != event.MediumFailed && e.State != event.MediumSkipped:
			a.skip = event.AlreadyImported // also what a person deleted: it does not come back by itself
		}
	}
	if a.skip == "" && a.imported == nil && hidden(t.Path) {
		a.skip, a.record = event.HiddenOrTemporary, true
	}
	if a.skip == event.Baseline && t.Automation == "" {
		a.skip = "" // a one-time job is how one gets at what an automation leaves alone
	}
	return a
}

func mediumID(t event.Task) event.MediumID {
	job := ""
	if t.Mode == event.All {
		job = t.Job
	}
	return event.NewMediumID(t.Index, t.Connector, t.Path, t.Version, job)
}

// hidden reports whether a name is one that people and programs give to what is not meant to be seen, or not yet.
func hidden(p string) bool {
	for _, seg := range strings.Split(p, "/") {
		if strings.HasPrefix(seg, ".") {
			return true
		}
	}
	switch strings.ToLower(path.Ext(p)) {
	case ".part", ".partial", ".tmp", ".temp", ".crdownload", ".download", ".filepart", ".swp":
		return true
	}
	return strings.HasSuffix(p, "~")
}

// unchanged reports whether content of this size and checksum is what the newest imported version has.
func unchanged(newest *event.Medium, size int64, crc32c, sha256 string) bool {
	if newest == nil || newest.Size != size {
		return false
	}
	if sha256 != "" && newest.SHA256 != "" {
		return sha256 == newest.SHA256
	}
	return crc32c != "" && crc32c == newest.CRC32C
}

// reasonUnreadable is the word for a file of a type we import that no parser can read.
const reasonUnreadable = "unreadable_media"

// failure is what becomes of a task that could not be done.
type failure struct {
	final   bool
	reason  string        // a word for the ledger: unreadable_media or the class of a storage error
	message string        // for people
	again   time.Duration // not final: pause before the next attempt
	comes   bool          // final, but a scan may try again later
}

// judge decides after attempt number n (from 1) of at most most failed with err.
func judge(err error, n, most int) failure {
	var unreadable *media.UnreadableError
	if errors.As(err, &unreadable) {
		return failure{final: true, reason: reasonUnreadable, message: err.Error()}
	}
	class := bucket.ClassOf(err)
	f := failure{reason: string(class), message: err.Error(), comes: true}
	switch {
	case class == bucket.ClassName:
		f.final, f.comes = true, false
	case class.Permanent() && !errors.As(err, new(*closedError)):
		f.final = true
	case n >= most:
		f.final = true
		f.message = fmt.Sprintf("gave up after %d attempts: %v", n, err)
	default:
		f.again = max(pause(n), bucket.RetryAfter(err))
	}
	return f
}

// pause is the back-off after attempt n: 1 s doubling up to a minute, spread by half so that what failed together does
// not come back together.
func pause(n int) time.Duration {
	d := min(time.Minute, time.Second<<min(n-1, 6))
	return d/2 + rand.N(d)
}

// retryAt is when a scan may try again what was given up for the n-th time (from 1) at now.
func retryAt(n int, now time.Time) time.Time {
	switch n {
	case 1:
		return now.Add(time.Hour)
	case 2:
		return now.Add(6 * time.Hour)
	}
	return now.Add(24 * time.Hour)
}
