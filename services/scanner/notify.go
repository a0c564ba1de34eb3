package scanner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/store"
)

// notifications turns batches of notifications into arrivals. A notification is acknowledged once all that follows from
// it is stored.
type notifications struct {
	bus      *bus.Bus
	config   *config
	arrivals *arrivals
	sources  Sources
	metrics  metrics
}

// notice is one change that a notification of a batch tells of, understood.
type notice struct {
	event.Notification
	delivery  int // its place in the batch
	connector store.Connector
	wanted    []*automation
	outcome   outcome
	err       error
}

// handle is the handler of the notifications consumer.
func (n *notifications) handle(ctx context.Context, batch []*bus.Delivery) []error {
	notices := n.read(ctx, batch)
	n.complete(ctx, notices)
	n.apply(ctx, n.fold(notices), notices)

	errs := make([]error, len(batch))
	counts := make(map[outcome]int, 4)
	for i := range notices {
		to := &notices[i]
		if to.err != nil {
			to.outcome = retried
			var p *bus.PoisonError
			if errors.As(to.err, &p) {
				to.outcome = poison
			}
			if errs[to.delivery] == nil || to.outcome == retried { // what may pass is tried again first
				errs[to.delivery] = to.err
			}
		}
		counts[to.outcome]++
	}
	for o, c := range counts {
		n.metrics.notifications.WithLabelValues(string(o)).Add(float64(c))
	}
	return errs
}

// read decodes a batch and finds out who wants what.
func (n *notifications) read(ctx context.Context, batch []*bus.Delivery) []notice {
	notices := make([]notice, 0, len(batch))
	type lookup struct {
		record store.Connector
		err    error
	}
	connectors := make(map[string]lookup, 1)
	for i, d := range batch {
		id := d.Tokens()[1]
		c, ok := connectors[id]
		if !ok {
			c.record, c.err = n.config.connector(ctx, id)
			if errors.Is(c.err, store.ErrNotFound) {
				c.err = bus.Poison(fmt.Errorf("notification for an unknown connector: %w", c.err))
			}
			connectors[id] = c
		}
		notices = n.readOne(notices, i, c.record, c.err, d.Data)
	}
	return notices
}

// readOne adds what one delivery tells of.
func (n *notifications) readOne(to []notice, delivery int, c store.Connector, err error, data []byte) []notice {
	of := notice{delivery: delivery, connector: c, err: err}
	if err != nil {
		return append(to, of)
	}
	changes, err := decode(c, data)
	if errors.Is(err, errIgnored) {
		of.outcome = ignored
		return append(to, of)
	}
	if err != nil {
		of.err = bus.Poison(err)
		return append(to, of)
	}
	for _, change := range changes {
		of.Notification = change
		of.wanted = n.config.wanting(c.ID, change.Path)
		of.outcome = handled
		if len(of.wanted) == 0 {
			of.outcome = unmatched
		}
		to = append(to, of)
	}
	return to
}

// completers is how many objects the storage is asked about at a time, and completeTime how long a batch may take for
// it: a storage that does not answer must not hold up the notifications of all others.
const (
	completers   = 32
	completeTime = 15 * time.Second
)

// complete asks the storage about what a notification left out. A deletion that does not say of what is believed when
// the storage confirms it.
func (n *notifications) complete(ctx context.Context, notices []notice) {
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(completers)
	for i := range notices {
		to := &notices[i]
		incomplete := to.Op == event.Created && (to.Version == "" || to.Size == 0) ||
			to.Op == event.Deleted && to.Version == ""
		if to.err != nil || to.outcome != handled || !incomplete {
			continue
		}
		g.Go(func() error {
			n.ask(ctx, to)
			return nil
		})
	}
	_ = g.Wait()
}

func (n *notifications) ask(ctx context.Context, to *notice) {
	src, _, err := n.sources.Source(ctx, to.connector.ID)
	var o bucket.Object
	if err == nil {
		o, err = src.Stat(ctx, to.Path)
	}
	gone := errors.Is(err, bucket.ErrNotExist)
	class := bucket.ClassOf(err)
	switch {
	case gone && to.Op == event.Created, err == nil && to.Op == event.Deleted:
		to.outcome = ignored // it is not as the notification says, and whatever made it so is announced as well
	case gone:
	case err == nil:
		to.Version, to.Order, to.Size, to.ModTime, to.CRC32C = o.Version, o.Order, o.Size, o.ModTime, o.CRC32C
	case class.Permanent() && !class.Bucketwide():
		to.err = bus.Poison(err) // about this object; the reason stays readable among the dead letters
	default:
		to.err = err
	}
}

// change is what a batch says in the end about one object for one automation.
type change struct {
	candidate
	created bool
	deleted *event.Notification // the last deletion
	from    []int               // the notices that say so
}

// fold reduces a batch to one change per arrival, in order. What was created and deleted again is only deleted.
func (n *notifications) fold(notices []notice) []*change {
	changes := make([]*change, 0, len(notices))
	bySubject := make(map[string]*change, len(notices))
	for i := range notices {
		to := &notices[i]
		if to.err != nil || to.outcome != handled {
			continue
		}
		hash := event.ObjectHash(to.connector.ID, to.Path)
		for _, a := range to.wanted {
			subject := n.bus.Subject("arrival", a.ID, hash)
			ch := bySubject[subject]
			if ch == nil {
				ch = &change{candidate: candidate{
					automation: a, connector: to.connector.ID, subject: subject, exact: to.connector.Provider == "gcs",
				}}
				changes, bySubject[subject] = append(changes, ch), ch
			}
			ch.from = append(ch.from, i)
			ch.add(&to.Notification)
		}
	}
	return changes
}

func (ch *change) add(n *event.Notification) {
	if n.Op == event.Deleted {
		ch.deleted = n
		ch.created = ch.created && !covers(*n, ch.object)
		return
	}
	o := event.Object{Path: n.Path, Version: n.Version, Order: n.Order, Size: n.Size, ModTime: n.ModTime, CRC32C: n.CRC32C}
	outlived := ch.deleted != nil && ch.deleted.Order != "" && covers(*ch.deleted, o)
	if outlived || ch.created && newer(ch.object.Order, o.Order) {
		return
	}
	ch.unsure = ch.unsure || ch.created && ch.object.Version != o.Version && (ch.object.Order == "" || o.Order == "")
	ch.object, ch.created = o, true
}

// apply withdraws what was deleted, then publishes what is new. What fails is the error of every notice behind it.
func (n *notifications) apply(ctx context.Context, changes []*change, notices []notice) {
	fail := func(ch *change, err error) {
		for _, i := range ch.from {
			notices[i].err = err
		}
	}
	deleted := make(map[string]event.Notification)
	for _, ch := range changes {
		if ch.deleted != nil {
			deleted[ch.subject] = *ch.deleted
		}
	}
	kept := n.arrivals.withdraw(ctx, deleted)
	if err := failpoint.Here("scanner.withdrawn"); err != nil {
		for _, ch := range changes {
			fail(ch, err)
		}
		return
	}
	var created []*change
	var candidates []candidate
	for _, ch := range changes {
		switch err := kept[ch.subject]; {
		case err != nil:
			fail(ch, err)
		case ch.created:
			created = append(created, ch)
			candidates = append(candidates, ch.candidate)
		}
	}
	for i, answer := range n.arrivals.arrive(ctx, candidates, event.ByNotification) {
		if answer.err == nil && answer.verdict == news {
			answer.err = failpoint.Here("scanner.arrived")
		}
		if answer.err != nil {
			fail(created[i], answer.err)
		}
	}
}
