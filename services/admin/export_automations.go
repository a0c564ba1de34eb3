package admin

import (
	"cmp"
	"context"
	"errors"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// exportAutomation is a store.ExportAutomation as clients see it, with where it stands.
type exportAutomation struct {
	ID              string  `json:"automation_id"`
	Index           string  `json:"index_id"`
	Enabled         bool    `json:"enabled"`
	Paused          bool    `json:"paused"`
	Connector       string  `json:"destination_connector_id"`
	Subpath         *string `json:"destination_subpath"`
	Format          string  `json:"format" enum:"json,jsonl,csv"`
	CreatedAt       string  `json:"created_at" format:"date-time"`
	UpdatedAt       string  `json:"updated_at" format:"date-time"`
	PendingSince    *string `json:"pending_since" format:"date-time" doc:"when the first of the runs ended that wait for the end of a pause"`
	LastTriggeredAt *string `json:"last_triggered_at" format:"date-time" doc:"when it asked for an export last"`
	LastExportID    *string `json:"last_export_id"`
	LastError       *string `json:"last_error" doc:"of the last export, or what stands in the way of the next; null again after the next success"`
}

type putExportAutomation struct {
	Index string `path:"index_id"`
	Body  struct {
		Enabled   *bool  `json:"enabled,omitempty" default:"true" nullable:"true"`
		Paused    bool   `json:"paused,omitempty"`
		Connector string `json:"destination_connector_id" doc:"a connector with the scope export"`
		Subpath   string `json:"destination_subpath,omitempty" doc:"where files go below the export_base_path of the connector"`
		Format    string `json:"format,omitempty" enum:"json,jsonl,csv" default:"json" doc:"as for an export by hand"`
	}
}

func (a *Admin) exportAutomationRoutes() {
	const tag, path = "Automations", "/indexes/{index_id}/automations/export"
	register(a, route{method: "GET", path: path, scope: read, tag: tag, summary: "Get the export automation of an index"}, a.getExportAutomation)
	register(a, route{
		method: "PUT", path: path, scope: write, tag: tag, summary: "Create or replace the export automation of an index",
		about: "Replaces the whole configuration. From the moment it is enabled, each run on the index that ends completed or " +
			"completed_with_failures is exported to the connector, once. Disabling forgets what waits for the end of a pause.",
	}, a.putExportAutomation)
	register(a, route{
		method: "POST", path: path + "/pause", scope: write, tag: tag, summary: "Pause an export automation",
		about: "Runs that complete meanwhile are remembered, and exported after resume. Exports already asked for go on.",
	}, a.pauseExportAutomation)
	register(a, route{
		method: "POST", path: path + "/resume", scope: write, tag: tag, summary: "Resume an export automation",
		about: "What completed during the pause is exported now. Resuming does not enable.",
	}, a.resumeExportAutomation)
}

func (a *Admin) getExportAutomation(ctx context.Context, in *automationPath) (*body[exportAutomation], error) {
	if _, err := lookUp(ctx, a.indexes, "index", in.Index); err != nil {
		return nil, err
	}
	at, _, err := a.exportAutos.Get(ctx, event.ExportAutomationOfIndex(in.Index))
	if errors.Is(err, store.ErrNotFound) {
		return nil, notFound("export_automation", in.Index)
	}
	if err != nil {
		return nil, err
	}
	return a.viewExportAutomation(ctx, at)
}

func (a *Admin) pauseExportAutomation(ctx context.Context, in *automationPath) (*body[exportAutomation], error) {
	return a.setExportPaused(ctx, in.Index, true)
}

func (a *Admin) resumeExportAutomation(ctx context.Context, in *automationPath) (*body[exportAutomation], error) {
	return a.setExportPaused(ctx, in.Index, false)
}

func (a *Admin) setExportPaused(ctx context.Context, index string, paused bool) (*body[exportAutomation], error) {
	if _, err := lookUp(ctx, a.indexes, "index", index); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	at, _, err := a.exportAutos.Modify(ctx, event.ExportAutomationOfIndex(index), func(at *store.ExportAutomation) error {
		switch {
		case at.ID == "":
			return notFound("export_automation", index)
		case at.Paused == paused:
			return store.ErrUnchanged
		}
		at.Paused, at.UpdatedAt = paused, now
		return nil
	})
	if err != nil {
		return nil, err
	}
	return a.viewExportAutomation(ctx, at)
}

func (a *Admin) putExportAutomation(ctx context.Context, in *putExportAutomation) (*body[exportAutomation], error) {
	b := in.Body
	sub, err := exportSubpath(b.Subpath)
	if err != nil {
		return nil, err
	}
	if _, err := lookUp(ctx, a.indexes, "index", in.Index); err != nil {
		return nil, err
	}
	if _, err := a.exportable(ctx, b.Connector); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	at, _, err := a.exportAutos.Modify(ctx, event.ExportAutomationOfIndex(in.Index), func(at *store.ExportAutomation) error {
		next := *at
		next.ID, next.Index = event.ExportAutomationOfIndex(in.Index), in.Index
		next.Enabled, next.Paused, next.Connector, next.Subpath, next.Format = value(b.Enabled, true), b.Paused, b.Connector, sub, event.ExportFormat(b.Format)
		if next == *at { // a repetition of what was done
			return store.ErrUnchanged
		}
		next.UpdatedAt = now
		if at.ID == "" {
			next.CreatedAt = now
		}
		switch {
		case !next.Enabled:
			next.HeldFrom = time.Time{}
		case !at.Enabled:
			next.EnabledAt = now
		}
		*at = next
		return nil
	})
	if err != nil {
		return nil, err
	}
	return a.viewExportAutomation(ctx, at)
}

func (a *Admin) viewExportAutomation(ctx context.Context, at store.ExportAutomation) (*body[exportAutomation], error) {
	v := exportAutomation{
		ID: at.ID, Index: at.Index, Enabled: at.Enabled, Paused: at.Paused, Connector: at.Connector, Subpath: orNull(at.Subpath),
		Format: string(at.Format), CreatedAt: stamp(at.CreatedAt), UpdatedAt: stamp(at.UpdatedAt), PendingSince: stampOrNull(at.HeldFrom),
		LastTriggeredAt: stampOrNull(at.LastAt), LastExportID: orNull(at.LastExport),
	}
	failure := ""
	if at.LastExport != "" {
		x, _, err := a.exports.Records().Get(ctx, at.LastExport)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if x.Status != store.ExportCompleted {
			failure = x.LastError
		}
	}
	var p *problemError
	if _, err := a.exportable(ctx, at.Connector); errors.As(err, &p) {
		failure = cmp.Or(p.message, failure)
	} else if err != nil {
		return nil, err
	}
	v.LastError = orNull(failure)
	return &body[exportAutomation]{v}, nil
}
