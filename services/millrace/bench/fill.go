package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/broker"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// onBroker starts the embedded broker of a data folder by itself, with the topology in place, and stops it when do has
// returned.
func onBroker(ctx context.Context, data string, do func(*broker.Broker, *bus.Bus) error) (err error) {
	b, err := broker.Start(ctx, broker.Config{Dir: filepath.Join(data, "broker"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer b.Shutdown()
	nc, err := b.Connect("bench")
	if err != nil {
		return err
	}
	defer nc.Close()
	msgs, err := bus.New(nc, names, "bench", slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if err := names.Apply(ctx, msgs.JetStream()); err != nil {
		return err
	}
	return do(b, msgs)
}

// fill writes records as they would be after long use: the product sees no difference.
type fill struct {
	bus *bus.Bus
}

// records writes n records of one bucket.
func records[T any](ctx context.Context, f fill, bucket string, n int, record func(int) (key string, v T)) error {
	prefix := "$KV." + names.Bucket(bucket) + "."
	_, err := f.messages(ctx, n, func(i int) (bus.Message, error) {
		key, v := record(i)
		data, err := json.Marshal(v)
		return bus.Message{Subject: prefix + key, Data: data}, err
	})
	if err != nil {
		return fmt.Errorf("fill %s: %w", bucket, err)
	}
	return nil
}

// atOnce is how many messages are made before they are written.
const atOnce = 5_000

// messages writes n messages of one stream and returns their sequences.
func (f fill) messages(ctx context.Context, n int, message func(int) (bus.Message, error)) ([]uint64, error) {
	all := make([]uint64, 0, n)
	msgs := make([]bus.Message, 0, min(n, atOnce))
	for i := range n {
		m, err := message(i)
		if err != nil {
			return nil, err
		}
		if msgs = append(msgs, m); len(msgs) == atOnce || i == n-1 {
			seqs, errs := f.bus.PublishAll(ctx, msgs)
			if err := errors.Join(errs...); err != nil {
				return nil, err
			}
			all, msgs = append(all, seqs...), msgs[:0]
		}
	}
	return all, nil
}

// connectors writes dir connectors for the given folders.
func (f fill) connectors(ctx context.Context, folders []string) ([]string, error) {
	now, ids := time.Now().UTC(), make([]string, len(folders))
	err := records(ctx, f, topology.Connectors, len(folders), func(i int) (string, store.Connector) {
		ids[i] = event.NewID("con")
		return ids[i], store.Connector{
			ID: ids[i], Name: filepath.Base(folders[i]), Provider: "dir", Status: "active", Scopes: []string{"import"},
			ImportMode: event.NewOnly, Path: folders[i], CreatedAt: now, UpdatedAt: now,
		}
	})
	return ids, err
}

// automations writes n indexes with an automation each, which of changes before it is stored.
func (f fill) automations(ctx context.Context, n int, of func(int, *store.Automation)) ([]store.Automation, error) {
	now, list := time.Now().UTC(), make([]store.Automation, n)
	err := records(ctx, f, topology.Indexes, n, func(i int) (string, store.Index) {
		index := event.NewID("idx")
		list[i] = store.Automation{
			ID: event.AutomationOfIndex(index), Index: index, Enabled: true, Pattern: "*", Recursive: true, Debounce: "5m",
			IncludeExisting: true, Rev: 1, CreatedAt: now, UpdatedAt: now,
		}
		of(i, &list[i])
		return index, store.Index{ID: index, Name: fmt.Sprintf("Index %d", i), CreatedAt: now}
	})
	if err != nil {
		return nil, err
	}
	return list, records(ctx, f, topology.Automations, n, func(i int) (string, store.Automation) { return list[i].ID, list[i] })
}

// scans writes that each automation was listed before and is to be listed again, evenly over the hour, with the alarms
// that stand for that.
func (f fill) scans(ctx context.Context, list []store.Automation) error {
	now := time.Now().UTC()
	made := make([]store.Scan, len(list))
	err := records(ctx, f, topology.Scans, len(list), func(i int) (string, store.Scan) {
		made[i] = store.Scan{
			Automation: list[i].ID, Epoch: event.NewID("s"), LastAt: now, Scans: 1, Listed: 1,
			NextAt: now.Add(time.Hour * time.Duration(i+1) / time.Duration(len(list))),
		}
		return list[i].ID, made[i]
	})
	if err != nil {
		return err
	}
	return f.scanAlarms(ctx, len(made), func(i int) (event.Timer, time.Time) {
		return event.Timer{Automation: made[i].Automation, Epoch: made[i].Epoch}, made[i].NextAt
	})
}

// scanAlarms sets n alarms as the scanner does, in batches.
func (f fill) scanAlarms(ctx context.Context, n int, alarm func(int) (event.Timer, time.Time)) error {
	_, err := f.messages(ctx, n, func(i int) (bus.Message, error) {
		t, at := alarm(i)
		at = at.Add(time.Second - 1).Truncate(time.Second).UTC()
		body, err := json.Marshal(t)
		return bus.Message{
			Subject: names.Subject("timer", "scan", t.Automation, t.Epoch),
			Header: nats.Header{
				jetstream.ScheduleHeader:       {"@at " + at.Format(time.RFC3339)},
				jetstream.ScheduleTargetHeader: {names.Subject("due", "scan", t.Automation)},
			},
			Data: body,
		}, err
	})
	if err != nil {
		return fmt.Errorf("set alarms: %w", err)
	}
	return nil
}
