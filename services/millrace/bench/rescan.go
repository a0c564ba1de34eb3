package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"millrace/shared/broker"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// rescan measures what a scan of a large bucket costs beyond its listing when everything in it is known.
func rescan(ctx context.Context, l *lab) (rows []Row, err error) {
	n := l.size.objects
	endpoint, stop, err := serve(ctx, generator{n})
	if err != nil {
		return nil, err
	}
	defer stop()
	err = onBroker(ctx, l.dir, func(br *broker.Broker, b *bus.Bus) error {
		r := &rescanBench{arrivalBench: &arrivalBench{lab: l, broker: br, bus: b}, endpoint: endpoint}
		l.say("filling a ledger with %s media", digits(float64(n)))
		if err := r.fill(ctx); err != nil {
			return err
		}
		stop, err := r.scanner(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
		p, err := l.alternate(
			func(int) (float64, error) { return r.scan(ctx) },
			func(int) (float64, error) { return r.list(ctx) })
		if err != nil {
			return err
		}
		row := Row{
			What:   digits(float64(n)) + " known objects scanned, nothing new: beyond the bare listing",
			Beside: "the bare listing",
			Target: Target{N: 20, Unit: "s"},
			How: "The objects of the figure above, of which the ledger has every version as imported. From the request of a scan until its record says how many objects it listed, less the listing by itself that was taken in the same round. " +
				"Neither the ledger nor the arrivals, files or jobs have one message more afterwards.",
			Also: []string{"scans, with their listing: " + spread(p.ours) + " s"},
		}
		for i := range p.ours {
			p.ours[i] -= p.theirs[i]
		}
		p.into(&row, "s")
		rows = []Row{row}
		return nil
	})
	return rows, err
}

type rescanBench struct {
	*arrivalBench
	endpoint   string
	automation store.Automation
	scans      *store.Register[store.Scan]
}

func (r *rescanBench) fill(ctx context.Context) (err error) {
	f, now := fill{r.bus}, time.Now().UTC()
	r.connector = "con_bench"
	err = records(ctx, f, topology.Connectors, 1, func(int) (string, store.Connector) {
		return r.connector, store.Connector{
			ID: r.connector, Name: "Rushes", Provider: "gcs", Status: "active", Scopes: []string{"import"}, ImportMode: event.NewOnly,
			Bucket: bucketName, EndpointURL: r.endpoint, CreatedAt: now, UpdatedAt: now,
		}
	})
	if err != nil {
		return err
	}
	list, err := f.automations(ctx, 1, func(_ int, a *store.Automation) { a.Connector = r.connector })
	if err != nil {
		return err
	}
	r.automation = list[0]
	ledger, g := store.NewLedger(r.bus), generator{r.size.objects}
	_, err = f.messages(ctx, r.size.objects, func(i int) (bus.Message, error) {
		generation := generated + i
		return ledger.Message(medium(r.automation.Index, r.connector, event.Object{
			Path: g.path(i), Version: fmt.Sprint(generation), Order: fmt.Sprintf("%020d", generation), Size: int64(1<<20 + i), ModTime: now,
		}, "job_first"), 0)
	})
	if err != nil {
		return err
	}
	if err := f.scans(ctx, list); err != nil {
		return err
	}
	if r.scans, err = store.Open[store.Scan](ctx, r.bus, topology.Scans); err != nil {
		return err
	}
	_, _, err = r.scans.Modify(ctx, r.automation.ID, func(s *store.Scan) error { s.Listed = r.size.objects; return nil })
	return err
}

// scan asks for a scan and returns how long it took.
func (r *rescanBench) scan(ctx context.Context) (seconds float64, err error) {
	before, err := r.written(ctx)
	if err != nil {
		return 0, err
	}
	was, _, err := r.scans.Get(ctx, r.automation.ID)
	if err != nil {
		return 0, err
	}
	body, err := json.Marshal(event.Timer{Automation: r.automation.ID, Epoch: "now"})
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := r.bus.Publish(ctx, bus.Message{Subject: names.Subject("due", "scan", r.automation.ID), Data: body}); err != nil {
		return 0, err
	}
	var now store.Scan
	err = until(ctx, 20*time.Millisecond, func() (bool, error) {
		now, _, err = r.scans.Get(ctx, r.automation.ID)
		if err == nil && now.Error != "" {
			err = errors.New(now.Error)
		}
		return now.Scans > was.Scans, err
	})
	if err != nil {
		return 0, err
	}
	seconds = time.Since(start).Seconds()
	after, err := r.written(ctx)
	if err == nil && (now.Listed != r.size.objects || after != before) {
		err = fmt.Errorf("%d objects listed, %d messages written", now.Listed, after-before)
	}
	return seconds, err
}

// written counts the messages that were ever written to the streams that have one per object.
func (r *rescanBench) written(ctx context.Context) (n uint64, err error) {
	for _, stream := range []string{topology.Arrivals, topology.Files, topology.Tasks, topology.Jobs, topology.Media} {
		state, err := r.bus.State(ctx, stream)
		if err != nil {
			return 0, err
		}
		n += state.LastSeq
	}
	return n, nil
}

// list is the yardstick: the same listing, of which nothing is kept.
func (r *rescanBench) list(ctx context.Context) (seconds float64, err error) {
	src, err := gcs.NewSource(ctx, gcs.Config{Bucket: bucketName, Endpoint: r.endpoint})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	start, n := time.Now(), 0
	err = listAll(ctx, src, func(string) { n++ })
	if err == nil && n != r.size.objects {
		err = fmt.Errorf("listed %d objects", n)
	}
	return time.Since(start).Seconds(), err
}
