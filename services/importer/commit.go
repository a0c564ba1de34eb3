package importer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/store"
)

const (
	// groupSize and groupLinger bound how many outcomes share one commit and how long the first waits for company. A commit
	// costs the broker three batches, whose files take it longer than what is in them.
	groupSize   = 500
	groupLinger = 100 * time.Millisecond
)

// commitLoop gathers outcomes into groups and commits them until the channel is closed.
func (im *Importer) commitLoop(ctx context.Context) {
	for {
		group := im.nextGroup()
		if group == nil {
			return
		}
		im.commit(ctx, group)
	}
}

// nextGroup waits for an outcome, and for company while some is on its way. It returns nothing when the channel is closed.
func (im *Importer) nextGroup() []*outcome {
	im.gather.Lock()
	defer im.gather.Unlock()
	first, open := <-im.commits
	if !open {
		return nil
	}
	group := []*outcome{first}
	late := time.After(groupLinger)
	for len(group) < groupSize && (len(im.commits) > 0 || im.inWork.Load() > 0) {
		select {
		case o, open := <-im.commits:
			if !open {
				return group
			}
			group = append(group, o)
		case <-late:
			return group
		}
	}
	return group
}

// commit makes a group of outcomes true, in the order that lets a crash anywhere be repaired by the redelivery of the
// tasks: bytes durable, ledger, file states, events, ack.
func (im *Importer) commit(ctx context.Context, group []*outcome) {
	start := time.Now()
	group = crash(ctx, im.commitBytes(ctx, group), "importer.durable")
	group = crash(ctx, im.commitLedger(ctx, group), "importer.settled")
	group = crash(ctx, im.commitFiles(ctx, group), "importer.filed")
	group = crash(ctx, im.commitEvents(ctx, group), "importer.told")
	for _, o := range group {
		im.metrics.count(o.file)
		o.d.Settle(ctx, nil)
	}
	im.metrics.commit.Observe(time.Since(start).Seconds())
}

// keep returns the outcomes whose step succeeded; the others are settled with their error and come again.
func keep(ctx context.Context, group []*outcome, errs []error) []*outcome {
	kept := group[:0:0]
	for i, o := range group {
		if errs[i] != nil {
			o.d.Settle(ctx, errs[i])
			continue
		}
		kept = append(kept, o)
	}
	return kept
}

// crash is where a crash has to be harmless.
func crash(ctx context.Context, group []*outcome, name string) []*outcome {
	errs := make([]error, len(group))
	for i := range group {
		errs[i] = failpoint.Here(name)
	}
	return keep(ctx, group, errs)
}

// commitBytes makes the library's side durable.
func (im *Importer) commitBytes(ctx context.Context, group []*outcome) []*outcome {
	var keys []string
	for _, o := range group {
		if o.key != "" {
			keys = append(keys, o.key)
		}
	}
	if len(keys) == 0 {
		return group
	}
	err := im.library.Sync(ctx, keys...)
	if err == nil {
		return group
	}
	err = fmt.Errorf("make %d library objects durable: %w", len(keys), err)
	errs := make([]error, len(group))
	for i, o := range group {
		if o.key != "" {
			errs[i] = err
		}
	}
	return keep(ctx, group, errs)
}

// commitLedger writes the ledger. An entry that somebody else changed meanwhile decides over the outcome.
func (im *Importer) commitLedger(ctx context.Context, group []*outcome) []*outcome {
	errs := make([]error, len(group))
	var entries []store.Entry
	var places []int
	seen := make(map[event.MediumID]bool)
	for i, o := range group {
		if o.medium == nil {
			continue
		}
		if seen[o.medium.ID] { // two jobs about one object version, at the same moment
			errs[i] = bus.RetryAfter(0, errOtherFirst)
			continue
		}
		seen[o.medium.ID] = true
		entries = append(entries, store.Entry{Medium: *o.medium, Revision: o.revision})
		places = append(places, i)
	}
	for j, err := range im.ledger.Write(ctx, entries) {
		if err != nil {
			errs[places[j]] = im.reconcile(ctx, group[places[j]], err)
		}
	}
	return keep(ctx, group, errs)
}

var errOtherFirst = errors.New("another job settles this object version")

// reconcile reads back what a ledger write met. nil means that the entry says what we wanted to say, whoever wrote it;
// otherwise the task is to be decided anew by what the ledger says now.
func (im *Importer) reconcile(ctx context.Context, o *outcome, err error) error {
	if !errors.Is(err, bus.ErrConflict) && !errors.Is(err, bus.ErrUnknown) {
		return err
	}
	found, rerr := im.ledger.Get(ctx, o.medium.Index, o.medium.ID)
	if rerr != nil {
		return rerr
	}
	if says(found, *o.medium) {
		return nil
	}
	return bus.RetryAfter(0, errors.Join(errOtherFirst, err))
}

// says reports whether the ledger says what m says, whoever wrote it.
func says(found []store.Entry, m event.Medium) bool {
	return len(found) == 1 && found[0].Job == m.Job && found[0].State == m.State
}

func (im *Importer) commitFiles(ctx context.Context, group []*outcome) []*outcome {
	msgs := make([]bus.Message, len(group))
	for i, o := range group {
		var err error
		if msgs[i], err = im.fileMessage(o.file, o.fileRev); err != nil {
			o.d.Settle(ctx, bus.Poison(err))
			return im.commitFiles(ctx, append(group[:i:i], group[i+1:]...))
		}
	}
	_, errs := im.env.Bus.PublishAll(ctx, msgs)
	for i, err := range errs {
		if errors.Is(err, bus.ErrConflict) { // the redelivery finds out what it is now
			errs[i] = bus.RetryAfter(0, err)
		}
	}
	return keep(ctx, group, errs)
}

func (im *Importer) commitEvents(ctx context.Context, group []*outcome) []*outcome {
	errs := make([]error, len(group))
	var msgs []bus.Message
	var places []int
	for i, o := range group {
		if o.file.State != event.Imported {
			continue
		}
		e, err := bus.NewEvent(event.MediaCreated, o.file.Index, o.file.Video, o.file.EndedAt, event.MediaEvent{
			Video: o.file.Video, Index: o.file.Index, Job: o.file.Job, Path: o.file.Path,
			MediaType: o.file.MediaType, Seconds: o.file.Seconds, Size: o.file.Size,
		})
		if err != nil {
			errs[i] = bus.Poison(err)
			continue
		}
		msgs = append(msgs, im.env.Bus.EventMessage(e))
		places = append(places, i)
	}
	_, perrs := im.env.Bus.PublishAll(ctx, msgs)
	for j, err := range perrs {
		errs[places[j]] = err
	}
	return keep(ctx, group, errs)
}

// isBroker reports whether err is the broker's.
func isBroker(err error) bool {
	var api jetstream.JetStreamError
	return errors.As(err, &api) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) ||
		errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrDisconnected)
}
