package scanner

import (
	"time"

	"millrace/shared/event"
)

// verdict is what becomes of an object that matched an automation.
type verdict string

// The verdicts. All but news are reasons to drop it.
const (
	news     verdict = "news"      // an arrival
	settled  verdict = "settled"   // the ledger has this version
	pending  verdict = "pending"   // this version waits in the backlog
	stale    verdict = "stale"     // a newer version is settled or waits, or this one is not there any more
	inFlight verdict = "in_flight" // a job has it in hand
	repeated verdict = "repeated"  // the same object stands in the same batch again
)

// known is what is on record about one object for one automation.
type known struct {
	versions []event.Medium // of the object in the automation's index
	pending  *event.Arrival // nil: none
	files    []event.File   // of unfinished jobs of the automation
}

// decide says whether o is news at now. live means that o is certainly the version that is there, so that an order
// cannot make it stale.
//
// When order cannot be told the object goes out: the importer settles it against what is there.
func decide(o event.Object, k known, live bool, now time.Time) verdict {
	for _, m := range k.versions {
		if m.Version == o.Version && m.Settled(now) {
			return settled
		}
	}
	if k.pending != nil && k.pending.Version == o.Version {
		return pending
	}
	for _, f := range k.files {
		if f.Version == o.Version && !f.State.Final() {
			return inFlight
		}
	}
	if live {
		return news
	}
	if k.pending != nil && newer(k.pending.Order, o.Order) {
		return stale
	}
	for _, m := range k.versions {
		if newer(m.Order, o.Order) && m.Settled(now) {
			return stale
		}
	}
	return news
}

// unordered reports whether another version is on record of which nobody can say whether it is newer than o.
func (k known) unordered(o event.Object) bool {
	other := func(version, order string) bool { return version != o.Version && (order == "" || o.Order == "") }
	if k.pending != nil && other(k.pending.Version, k.pending.Order) {
		return true
	}
	for _, m := range k.versions {
		if other(m.Version, m.Order) {
			return true
		}
	}
	return false
}

// doubtful reports whether the storage is to be asked before a verdict counts. A file can be replaced by an older one, and
// a listing can see one that is just being written, whose version is no more by the time its page is dealt with. The
// folder knows. And where versions have no order, as on most servers like S3, a notification that comes late must not
// replace what a newer one said: what it led us to counts, and not what it says.
func doubtful(v verdict, exact, unordered bool, found event.Found) bool {
	return !exact && (v == stale || v == news && (found == event.ByScan || unordered))
}

// newer reports whether a certainly is after b.
func newer(a, b string) bool { return a != "" && b != "" && a > b }

// seen reports whether the ledger has met this version, even if it is worth another try.
func (k known) seen(version string) bool {
	for _, m := range k.versions {
		if m.Version == version {
			return true
		}
	}
	return false
}

// covers reports whether a deletion of version and order is about o or something newer. A deletion that says neither
// was confirmed by the storage: nothing is there.
func covers(deleted event.Notification, o event.Object) bool {
	switch {
	case deleted.Order != "" && o.Order != "":
		return o.Order <= deleted.Order
	case deleted.Version != "":
		return o.Version == deleted.Version
	}
	return true
}
