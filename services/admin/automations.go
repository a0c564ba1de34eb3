package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/store"
	"millrace/shared/window"
)

// importAutomation is a store.Automation as clients see it, with where it stands.
type importAutomation struct {
	ID              string          `json:"automation_id"`
	Index           string          `json:"index_id"`
	Enabled         bool            `json:"enabled"`
	Paused          bool            `json:"paused"`
	Connector       string          `json:"connector_id"`
	SourcePrefix    string          `json:"source_prefix"`
	FilePattern     string          `json:"file_pattern"`
	Recursive       bool            `json:"recursive"`
	Debounce        string          `json:"debounce_interval"`
	Preset          json.RawMessage `json:"prompt_preset" doc:"with defaults filled in; null: import only"`
	IncludeExisting bool            `json:"include_existing"`
	CreatedAt       string          `json:"created_at" format:"date-time"`
	UpdatedAt       string          `json:"updated_at" format:"date-time"`
	PendingSince    *string         `json:"pending_since" format:"date-time" doc:"when the open batch began"`
	NextFireAt      *string         `json:"next_fire_at" format:"date-time" doc:"when it closes, unless more arrives; null while paused"`
	PendingFiles    int             `json:"pending_files" doc:"files in the open batch"`
	PendingBytes    int64           `json:"pending_bytes"`
	LastTriggeredAt *string         `json:"last_triggered_at" format:"date-time" doc:"when a batch closed last"`
	LastJobID       *string         `json:"last_job_id"`
	LastRunID       *string         `json:"last_run_id"`
	LastError       *string         `json:"last_error" doc:"null again after the next success"`
	Scan            scanState       `json:"scan"`
}

// scanState is how the listing of an automation's source went, and how far the one under way is.
type scanState struct {
	LastAt  *string      `json:"last_at" format:"date-time" doc:"when the source was listed last"`
	NextAt  *string      `json:"next_at" format:"date-time" doc:"when it is listed next"`
	Listed  int          `json:"listed" doc:"files that matched then"`
	Found   int          `json:"found" doc:"of these, new ones that nothing had announced"`
	Drift   int          `json:"drift" doc:"files that should have been announced and were only found by listing, since the automation was enabled"`
	Running *scanRunning `json:"running" doc:"a listing that has not come to its end; null when there is none, or it has just begun"`
}

type scanRunning struct {
	StartedAt string `json:"started_at" format:"date-time"`
	Listed    int    `json:"listed" doc:"files that matched so far"`
	Found     int    `json:"found"`
}

func viewScan(r store.Scan) scanState {
	v := scanState{LastAt: stampOrNull(r.LastAt), NextAt: stampOrNull(r.NextAt), Listed: r.Listed, Found: r.Found, Drift: r.Drift}
	if u := r.Underway; u != nil {
		v.NextAt, v.Running = nil, &scanRunning{StartedAt: stamp(u.StartedAt), Listed: u.Listed, Found: u.Found}
	}
	return v
}

type automationPath struct {
	Index string `path:"index_id"`
}

type putAutomation struct {
	Index string `path:"index_id"`
	Body  struct {
		Enabled         *bool           `json:"enabled,omitempty" default:"true" nullable:"true"`
		Paused          bool            `json:"paused,omitempty"`
		Connector       string          `json:"connector_id"`
		SourcePrefix    string          `json:"source_prefix,omitempty" doc:"what keys must begin with; not a folder"`
		FilePattern     string          `json:"file_pattern,omitempty" doc:"a glob, as in browse. Default *"`
		Recursive       *bool           `json:"recursive,omitempty" default:"true" nullable:"true"`
		Debounce        string          `json:"debounce_interval" doc:"quiet period: 5m, 10m, 1h or 1d"`
		Preset          json.RawMessage `json:"prompt_preset" doc:"an object with prompt_id and, optionally, the settings of an execution; null: import only"`
		IncludeExisting *bool           `json:"include_existing,omitempty" default:"true" nullable:"true" doc:"false: what is there when the automation is enabled is not imported"`
	}
}

func (a *Admin) automationRoutes() {
	const tag, path = "Automations", "/indexes/{index_id}/automations/import"
	register(a, route{method: "GET", path: path, scope: read, tag: tag, summary: "Get the import automation of an index"}, a.getAutomation)
	register(a, route{
		method: "PUT", path: path, scope: write, tag: tag, keep: "prompt_preset",
		summary: "Create or replace the import automation of an index",
		about: "Replaces the whole configuration, so prompt_preset must be there: null to import only. An open batch is judged " +
			"anew under the new configuration. Enabling lists the storage at once; disabling forgets the open batch.",
	}, a.putAutomation)
	register(a, route{
		method: "POST", path: path + "/pause", scope: write, tag: tag, summary: "Pause an import automation",
		about: "Once this is answered no batch closes before resume. Arrivals are recorded all the same, and a job that runs goes on.",
	}, a.pauseAutomation)
	register(a, route{
		method: "POST", path: path + "/resume", scope: write, tag: tag, summary: "Resume an import automation",
		about: "An open batch whose quiet period has passed closes now. Resuming does not enable.",
	}, a.resumeAutomation)
}

func (a *Admin) automation(ctx context.Context, index string) (store.Automation, error) {
	if _, err := lookUp(ctx, a.indexes, "index", index); err != nil {
		return store.Automation{}, err
	}
	at, _, err := a.automations.Get(ctx, event.AutomationOfIndex(index))
	if errors.Is(err, store.ErrNotFound) {
		return at, notFound("import_automation", index)
	}
	return at, err
}

func (a *Admin) getAutomation(ctx context.Context, in *automationPath) (*body[importAutomation], error) {
	at, err := a.automation(ctx, in.Index)
	if err != nil {
		return nil, err
	}
	return a.viewAutomation(ctx, at)
}

func (a *Admin) pauseAutomation(ctx context.Context, in *automationPath) (*body[importAutomation], error) {
	return a.setPaused(ctx, in.Index, true)
}

func (a *Admin) resumeAutomation(ctx context.Context, in *automationPath) (*body[importAutomation], error) {
	return a.setPaused(ctx, in.Index, false)
}

func (a *Admin) setPaused(ctx context.Context, index string, paused bool) (*body[importAutomation], error) {
	if _, err := a.automation(ctx, index); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	at, _, err := a.automations.Modify(ctx, event.AutomationOfIndex(index), func(at *store.Automation) error {
		switch {
		case at.ID == "":
			return notFound("import_automation", index)
		case at.Paused == paused:
			return store.ErrUnchanged
		}
		at.Steer(paused, now)
		at.UpdatedAt = now
		return nil
	})
	if err != nil {
		return nil, err
	}
	if at, err = a.enforce(ctx, at); err != nil {
		return nil, err
	}
	return a.viewAutomation(ctx, at)
}

func (a *Admin) putAutomation(ctx context.Context, in *putAutomation) (*body[importAutomation], error) {
	if _, err := lookUp(ctx, a.indexes, "index", in.Index); err != nil {
		return nil, err
	}
	wanted, err := a.configured(ctx, in)
	if err != nil {
		return nil, err
	}
	var rescan bool
	at, _, err := a.automations.Modify(ctx, wanted.ID, func(at *store.Automation) error {
		rescan = wanted.Enabled && (!at.Enabled || !sameSelection(*at, wanted))
		next := wanted
		next.CreatedAt, next.Rev, next.Turn = cmp.Or(at.CreatedAt, wanted.UpdatedAt), at.Rev, at.Turn
		if at.Paused != wanted.Paused {
			next.Steer(wanted.Paused, wanted.UpdatedAt)
		}
		if !sameWindow(*at, wanted) {
			next.Rev++
		}
		if same(*at, next) { // a repetition of what was done
			return store.ErrUnchanged
		}
		*at = next
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := failpoint.Here("admin.configured"); err != nil {
		return nil, err
	}
	if at, err = a.enforce(ctx, at); err != nil {
		return nil, err
	}
	if err := a.scanNow(ctx, at, rescan); err != nil {
		return nil, err
	}
	return a.viewAutomation(ctx, at)
}

// configured checks a whole configuration and fills in its defaults.
func (a *Admin) configured(ctx context.Context, in *putAutomation) (store.Automation, error) {
	b := in.Body
	at := store.Automation{
		ID: event.AutomationOfIndex(in.Index), Index: in.Index,
		Enabled: value(b.Enabled, true), Paused: b.Paused, Connector: b.Connector,
		Prefix: b.SourcePrefix, Pattern: cmp.Or(b.FilePattern, "*"), Recursive: value(b.Recursive, true),
		Debounce: b.Debounce, IncludeExisting: value(b.IncludeExisting, true), UpdatedAt: time.Now().UTC(),
	}
	var f fieldErrors
	if allowed := slices.Concat(store.PublicIntervals, a.cfg.ExtraIntervals); !slices.Contains(allowed, b.Debounce) {
		f.add("debounce_interval", "must be one of %s", strings.Join(allowed, ", "))
	}
	if _, err := compilePattern("file_pattern", at.Prefix, at.Pattern, at.Recursive); err != nil {
		var p *problemError
		if !errors.As(err, &p) {
			return at, err
		}
		f = append(f, p.details["fields"].([]fieldError)...)
	}
	promptID := ""
	at.Preset = json.RawMessage("null")
	if string(b.Preset) != "null" {
		at.Preset, promptID = resolvePreset(b.Preset, "prompt_preset", &f)
	}
	if err := f.err(); err != nil {
		return at, err
	}
	if _, err := a.importable(ctx, at.Connector); err != nil {
		return at, err
	}
	if promptID != "" {
		if _, err := lookUp(ctx, a.prompts, "prompt", promptID); err != nil {
			return at, err
		}
	}
	return at, nil
}

// sameSelection reports whether two configurations want the same objects.
func sameSelection(x, y store.Automation) bool {
	return x.Connector == y.Connector && x.Prefix == y.Prefix && x.Pattern == y.Pattern && x.Recursive == y.Recursive
}

// sameWindow reports whether an open window would be judged the same under two configurations. The preset and the
// connector count: a window is of one configuration.
func sameWindow(x, y store.Automation) bool {
	return sameSelection(x, y) && x.Enabled == y.Enabled && x.Debounce == y.Debounce &&
		bytes.Equal(x.Preset, y.Preset) && x.IncludeExisting == y.IncludeExisting
}

func same(x, y store.Automation) bool { return sameWindow(x, y) && x.Paused == y.Paused }

// enforce makes the window of an automation follow its record, and returns the record that it follows. Two requests
// may get here in another order than they changed the record, so it looks again afterwards: whoever is last leaves the
// window as the record says. What is on record as paused, but by a later turn than the window has followed, may yet be
// released by a resume between the two.
//
// A pause holds before anything else, so that a changed interval cannot close a window on the way.
func (a *Admin) enforce(ctx context.Context, at store.Automation) (store.Automation, error) {
	for {
		cfg := window.Config{Interval: at.Interval(), Rev: at.Rev}
		var err error
		if at.Paused {
			err = a.windows.Hold(ctx, at.ID, at.Turn)
		}
		if err == nil && at.Enabled {
			err = a.windows.Reconfigure(ctx, at.ID, cfg)
		} else if err == nil {
			err = a.windows.Drop(ctx, at.ID)
		}
		if err == nil && !at.Paused {
			err = a.windows.Release(ctx, at.ID, cfg, at.Turn)
		}
		if err != nil {
			return at, fmt.Errorf("apply the configuration of %s to its window: %w", at.ID, err)
		}
		now, _, err := a.automations.Get(ctx, at.ID)
		if errors.Is(err, store.ErrNotFound) {
			return at, notFound("import_automation", at.Index)
		}
		if err != nil || (now.Rev == at.Rev && now.Turn == at.Turn && now.Enabled == at.Enabled) {
			return now, err
		}
		at = now
	}
}

// scanNow has an automation listed at once when it has just been enabled or wants other objects than before. One that
// has no scan planned is listed as well: it was enabled by somebody who did not get this far.
func (a *Admin) scanNow(ctx context.Context, at store.Automation, changed bool) error {
	if !at.Enabled {
		return nil
	}
	if !changed {
		planned, _, err := a.scans.Get(ctx, at.ID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if planned.Epoch != "" {
			return nil
		}
	}
	data, err := json.Marshal(event.Timer{Automation: at.ID, Epoch: "now"})
	if err != nil {
		return err
	}
	_, err = a.bus.Publish(ctx, bus.Message{Subject: a.bus.Subject("due", "scan", at.ID), Data: data})
	return err
}

func (a *Admin) viewAutomation(ctx context.Context, at store.Automation) (*body[importAutomation], error) {
	w, err := a.windows.Get(ctx, at.ID)
	if err != nil {
		return nil, err
	}
	return a.viewAutomationWith(ctx, at, w)
}

func (a *Admin) viewAutomationWith(ctx context.Context, at store.Automation, w window.Record) (*body[importAutomation], error) {
	v := importAutomation{
		ID: at.ID, Index: at.Index, Enabled: at.Enabled, Paused: at.Paused, Connector: at.Connector,
		SourcePrefix: at.Prefix, FilePattern: at.Pattern, Recursive: at.Recursive, Debounce: at.Debounce,
		Preset: unescaped(at.Preset), IncludeExisting: at.IncludeExisting, CreatedAt: stamp(at.CreatedAt), UpdatedAt: stamp(at.UpdatedAt),
		LastTriggeredAt: stampOrNull(w.LastClosed),
	}
	if len(v.Preset) == 0 {
		v.Preset = json.RawMessage("null")
	}
	if o := w.Open; o != nil {
		v.PendingSince = stampOrNull(o.OpenedAt)
		var err error
		if v.PendingFiles, v.PendingBytes, err = a.windows.Pending(ctx, w); err != nil {
			return nil, err
		}
		if !at.Paused && !w.Held {
			v.NextFireAt = stampOrNull(o.Deadline)
		}
	}
	if err := a.viewLast(ctx, &v, w.LastJob); err != nil {
		return nil, err
	}
	return &body[importAutomation]{v}, nil
}

// viewLast fills in what the automation started last and what went wrong last. A job that found nothing to do leaves
// no record, and is not shown.
func (a *Admin) viewLast(ctx context.Context, v *importAutomation, jobID string) error {
	var failure string
	if jobID != "" {
		job, _, err := a.jobs.Get(ctx, jobID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		v.LastJobID, failure = orNull(job.ID), job.Error
		run, _, err := a.runs.Get(ctx, event.RunOfJob(jobID))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		v.LastRunID, failure = orNull(run.ID), cmp.Or(run.Error, failure)
	}
	scan, _, err := a.scans.Get(ctx, v.ID)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	v.Scan = viewScan(scan)
	failure = cmp.Or(scan.Error, failure)
	var p *problemError
	if _, err := a.importable(ctx, v.Connector); errors.As(err, &p) {
		failure = p.message
	} else if err != nil {
		return err
	}
	v.LastError = orNull(failure)
	return nil
}
