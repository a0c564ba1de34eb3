package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// MaxAttempts is how often an export is begun before it has failed.
const MaxAttempts = 6

// Exports are the exports on record, and the way to ask for one. It is safe for concurrent use.
type Exports struct {
	bus     *bus.Bus
	records *store.Register[store.Export]
}

// Open binds what exports are kept in. It fails with topology.ErrMissing when nobody has made it.
func Open(ctx context.Context, b *bus.Bus) (*Exports, error) {
	reg, err := store.Open[store.Export](ctx, b, topology.ExportRecords)
	if err != nil {
		return nil, err
	}
	return &Exports{bus: b, records: reg}, nil
}

// Records are the exports as they stand.
func (x *Exports) Records() *store.Register[store.Export] { return x.records }

// Create asks for an export and returns its record. One that is on record already, under whatever request, is returned
// as it is and not asked for again.
//
// It is asked for first and recorded second: a record without a request would stay pending for ever, while a request
// without a record gets one from whoever takes it up.
func (x *Exports) Create(ctx context.Context, req event.ExportRequested) (store.Export, error) {
	have, _, err := x.records.Get(ctx, req.Export)
	if !errors.Is(err, store.ErrNotFound) {
		return have, err
	}
	data, err := json.Marshal(req)
	if err != nil {
		return have, fmt.Errorf("encode request of %s: %w", req.Export, err)
	}
	msg := bus.Message{Subject: x.bus.Subject("export", "requested", req.Export), ID: req.Export, Data: data}
	if _, err := x.bus.Publish(ctx, msg); err != nil {
		return have, err
	}
	record, _, err := x.records.Modify(ctx, req.Export, func(v *store.Export) error {
		if v.ID != "" { // somebody has taken it up
			return store.ErrUnchanged
		}
		*v = recordOf(req)
		return nil
	})
	return record, err
}

// recordOf is the record of an export that nobody has begun.
func recordOf(req event.ExportRequested) store.Export {
	return store.Export{
		ID: req.Export, Type: req.Type, Target: req.Target, Index: req.Index, Runs: req.Runs, Scope: req.Scope, Format: req.Format,
		Connector: req.Connector, BasePath: req.BasePath, Subpath: req.Subpath, Automation: req.Automation,
		Status: store.ExportPending, MaxAttempts: MaxAttempts,
		CreatedAt: req.RequestedAt, AvailableAt: req.RequestedAt, UpdatedAt: req.RequestedAt,
	}
}
