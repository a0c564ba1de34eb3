package scanner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// candidate is an object that an automation wants, if it is new.
type candidate struct {
	automation *automation
	connector  string
	object     event.Object
	subject    string // of its arrival
	exact      bool   // the order of versions is the storage's own count, and not a time that people can set
	unsure     bool   // another version was told of beside this one, and nobody said which is the newer
}

// answer is what became of a candidate.
type answer struct {
	verdict verdict
	unseen  bool // the ledger had never met this version
	err     error
}

// arrivals lets through what is new.
type arrivals struct {
	bus     *bus.Bus
	config  *config
	sources Sources
	metrics metrics
}

// rounds is how often a candidate is decided anew because another scanner wrote meanwhile.
const rounds = 8

// asked is one candidate on its way.
type asked struct {
	candidate
	place  int    // in the list that arrive was given
	medium string // the object's hash in the ledger
	known  known
	seq    uint64 // of the arrival in the backlog, 0: none
}

// arrive publishes the arrivals of the candidates that are news and says for each what became of it. An answer with an
// error is to be asked again; nothing is lost or doubled by that.
//
// Each arrival is a compare-and-set on what the decision saw: of several scanners with versions of one object the
// newest wins, whatever the order in which they come. A planner that purges meanwhile makes it a conflict too, and the
// next round sees the backlog without it.
func (a *arrivals) arrive(ctx context.Context, candidates []candidate, found event.Found) []answer {
	answers := make([]answer, len(candidates))
	open := a.unique(candidates, answers)
	for range rounds {
		if len(open) == 0 {
			return answers
		}
		out, err := a.sift(ctx, open, found, answers)
		if err != nil {
			return fail(answers, open, err)
		}
		open = a.publish(ctx, out, found, answers)
	}
	return fail(answers, open, fmt.Errorf("after %d rounds: %w", rounds, bus.ErrConflict))
}

// sift answers the candidates that are no news and returns those that are.
func (a *arrivals) sift(ctx context.Context, open []*asked, found event.Found, answers []answer) ([]*asked, error) {
	if err := a.lookUp(ctx, open); err != nil {
		return nil, err
	}
	return a.decide(ctx, open, found, answers), nil
}

// baseline settles what is news as present before its automation, instead of letting it arrive.
func (a *arrivals) baseline(ctx context.Context, ledger *store.Ledger, candidates []candidate) error {
	answers := make([]answer, len(candidates))
	out, err := a.sift(ctx, a.unique(candidates, answers), event.ByScan, answers)
	if err != nil {
		return err
	}
	for _, answer := range answers {
		if answer.err != nil {
			return answer.err
		}
	}
	now := time.Now().UTC()
	entries := make([]store.Entry, len(out))
	for i, q := range out {
		o := q.object
		entries[i].Medium = event.Medium{
			ID:    event.NewMediumID(q.automation.Index, q.connector, o.Path, o.Version, ""),
			Index: q.automation.Index, Connector: q.connector, Path: o.Path, Version: o.Version, Order: o.Order,
			State: event.MediumBaseline, Reason: string(event.Baseline), Size: o.Size, CRC32C: o.CRC32C, CreatedAt: now,
		}
	}
	for _, err := range ledger.Write(ctx, entries) {
		if err != nil && !errors.Is(err, bus.ErrConflict) { // a conflict: it was settled meanwhile
			return err
		}
	}
	a.metrics.baselined.Add(float64(len(out)))
	return nil
}

func fail(answers []answer, open []*asked, err error) []answer {
	for _, q := range open {
		answers[q.place] = answer{err: err}
	}
	return answers
}

// unique keeps one candidate per arrival: the newest.
func (a *arrivals) unique(candidates []candidate, answers []answer) []*asked {
	open := make([]*asked, 0, len(candidates))
	bySubject := make(map[string]int, len(candidates))
	for i, c := range candidates {
		q := &asked{
			candidate: c,
			place:     i,
			medium:    event.NewMediumID(c.automation.Index, c.connector, c.object.Path, "", "").Object,
		}
		j, twice := bySubject[q.subject]
		if !twice {
			bySubject[q.subject] = len(open)
			open = append(open, q)
			continue
		}
		if !newer(open[j].object.Order, c.object.Order) {
			q, open[j] = open[j], q
		}
		answers[q.place] = answer{verdict: repeated}
		a.metrics.dropped.WithLabelValues(string(repeated)).Inc()
	}
	return open
}

// lookUp asks where each object stands, in the order in which it travels: the backlog, unfinished jobs, the ledger. What
// moves on while we ask is met again further on, because each place is written before the one behind it is cleared.
func (a *arrivals) lookUp(ctx context.Context, open []*asked) error {
	if err := a.lookUpPending(ctx, open); err != nil {
		return err
	}
	if err := a.lookUpWork(ctx, open); err != nil {
		return err
	}
	return a.lookUpSettled(ctx, open)
}

func (a *arrivals) lookUpPending(ctx context.Context, open []*asked) error {
	subjects := make([]string, len(open))
	bySubject := make(map[string]*asked, len(open))
	for i, q := range open {
		q.known.pending, q.seq = nil, 0
		subjects[i], bySubject[q.subject] = q.subject, q
	}
	for m, err := range a.bus.Last(ctx, topology.Arrivals, subjects...) {
		if err != nil {
			return err
		}
		q := bySubject[m.Subject]
		q.seq = m.Sequence
		var arrival event.Arrival
		if json.Unmarshal(m.Data, &arrival) == nil { // what is not an arrival gives way to one
			q.known.pending = &arrival
		}
	}
	return nil
}

// lookUpWork asks for the entries of unfinished jobs. A job can take longer than the time between two scans, and a
// notification can come twice; until the job is done the ledger knows nothing of its objects. Mostly there is no such
// job and nothing to ask.
func (a *arrivals) lookUpWork(ctx context.Context, open []*asked) error {
	var subjects []string
	bySubject := make(map[string][]*asked)
	jobs := make(map[string][]string)
	for _, q := range open {
		q.known.files = nil
		id := q.automation.ID
		if _, asked := jobs[id]; !asked {
			jobs[id] = a.config.jobsOf(id)
		}
		for _, job := range jobs[id] {
			s := a.bus.Subject("file", job, event.ObjectHash(q.connector, q.object.Path))
			subjects = append(subjects, s)
			bySubject[s] = append(bySubject[s], q)
		}
	}
	for m, err := range a.bus.Last(ctx, topology.Files, subjects...) {
		if err != nil {
			return err
		}
		var f event.File
		if err := json.Unmarshal(m.Data, &f); err != nil {
			return fmt.Errorf("decode file entry %s: %w", m.Subject, err)
		}
		for _, q := range bySubject[m.Subject] {
			q.known.files = append(q.known.files, f)
		}
	}
	return nil
}

// lookUpSettled asks the ledger for all versions of an object in the index: an item that was imported under mode "all"
// counts as well, and so does a newer version.
func (a *arrivals) lookUpSettled(ctx context.Context, open []*asked) error {
	byMedium := make(map[string][]*asked, len(open))
	subjects := make([]string, 0, len(open))
	for _, q := range open {
		q.known.versions = nil
		if byMedium[q.medium] == nil {
			subjects = append(subjects, a.bus.Subject("media", q.automation.Index, q.medium, "*"))
		}
		byMedium[q.medium] = append(byMedium[q.medium], q)
	}
	for m, err := range a.bus.Last(ctx, topology.Media, subjects...) {
		if err != nil {
			return err
		}
		var medium event.Medium
		if err := json.Unmarshal(m.Data, &medium); err != nil {
			return fmt.Errorf("decode ledger entry %s: %w", m.Subject, err)
		}
		for _, q := range byMedium[medium.ID.Object] {
			q.known.versions = append(q.known.versions, medium)
		}
	}
	return nil
}

// confirmers is how many objects the storage is asked about at a time.
const confirmers = 16

// decide answers what is no news and returns the rest.
func (a *arrivals) decide(ctx context.Context, open []*asked, found event.Found, answers []answer) []*asked {
	now := time.Now()
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	var doubts errgroup.Group
	doubts.SetLimit(confirmers)
	verdicts := make([]verdict, len(open))
	for i, q := range open {
		verdicts[i] = decide(q.object, q.known, false, now)
		unordered := found == event.ByNotification && (q.unsure || q.known.unordered(q.object))
		if !doubtful(verdicts[i], q.exact, unordered, found) {
			continue
		}
		doubts.Go(func() error {
			live, err := a.live(ctx, q)
			switch {
			case err != nil:
				answers[q.place].err = err
			case live.Version == q.object.Version:
				verdicts[i] = decide(q.object, q.known, true, now)
			case unordered && live.Version != "":
				q.object = live
				verdicts[i] = decide(q.object, q.known, true, now)
			default:
				verdicts[i] = stale
			}
			return nil
		})
	}
	_ = doubts.Wait()

	var out []*asked
	for i, q := range open {
		switch {
		case answers[q.place].err != nil:
		case verdicts[i] == news:
			out = append(out, q)
		default:
			a.drop(q, verdicts[i], answers)
		}
	}
	return out
}

func (a *arrivals) drop(q *asked, v verdict, answers []answer) {
	answers[q.place] = answer{verdict: v}
	a.metrics.dropped.WithLabelValues(string(v)).Inc()
}

// live returns what is there now, without a version if that is nothing.
func (a *arrivals) live(ctx context.Context, q *asked) (event.Object, error) {
	src, _, err := a.sources.Source(ctx, q.connector)
	if err != nil {
		return event.Object{}, err
	}
	o, err := src.Stat(ctx, q.object.Path)
	if class := bucket.ClassOf(err); class.Permanent() && !class.Bucketwide() {
		return event.Object{}, nil // gone, or not to be read by us
	}
	return objectOf(o), err
}

// publish writes the arrivals and returns those to be decided anew.
func (a *arrivals) publish(ctx context.Context, out []*asked, found event.Found, answers []answer) (again []*asked) {
	msgs := make([]bus.Message, len(out))
	for i, q := range out {
		data, err := json.Marshal(event.Arrival{
			Automation: q.automation.ID,
			Index:      q.automation.Index,
			Connector:  q.connector,
			Object:     q.object,
			Found:      found,
		})
		if err != nil {
			fail(answers, out, err)
			return nil
		}
		msgs[i] = bus.Message{Subject: q.subject, Data: data, Expect: &q.seq}
	}
	_, errs := a.bus.PublishAll(ctx, msgs)
	stored := 0
	for i, q := range out {
		switch {
		case errs[i] == nil:
			answers[q.place] = answer{verdict: news, unseen: !q.known.seen(q.object.Version)}
			stored++
		case errors.Is(errs[i], bus.ErrConflict):
			again = append(again, q)
		default:
			answers[q.place] = answer{err: errs[i]}
		}
	}
	a.metrics.arrivals.WithLabelValues(string(found)).Add(float64(stored))
	return again
}

// withdraw removes the arrivals of deleted objects from the backlog, by subject. An arrival that replaces one of them
// meanwhile stays.
func (a *arrivals) withdraw(ctx context.Context, deleted map[string]event.Notification) map[string]error {
	if len(deleted) == 0 {
		return nil
	}
	subjects := make([]string, 0, len(deleted))
	for s := range deleted {
		subjects = append(subjects, s)
	}
	errs := make(map[string]error)
	var mu sync.Mutex
	var purges errgroup.Group
	purges.SetLimit(confirmers)
	for m, err := range a.bus.Last(ctx, topology.Arrivals, subjects...) {
		if err != nil {
			_ = purges.Wait()
			for _, s := range subjects {
				errs[s] = err
			}
			return errs
		}
		var arrival event.Arrival
		if json.Unmarshal(m.Data, &arrival) != nil || !covers(deleted[m.Subject], arrival.Object) {
			continue
		}
		purges.Go(func() error {
			err := a.bus.Purge(ctx, topology.Arrivals, m.Subject, m.Sequence)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs[m.Subject] = err
				return nil
			}
			a.metrics.withdrawn.Inc()
			return nil
		})
	}
	_ = purges.Wait()
	return errs
}
