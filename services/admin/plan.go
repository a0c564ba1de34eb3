package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"millrace/shared/bucket"
	"millrace/shared/event"
	"millrace/shared/match"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// importPlan is what an automation would import if everything that it does not know yet arrived now.
type importPlan struct {
	Automation string        `json:"automation_id"`
	Index      string        `json:"index_id"`
	Connector  string        `json:"connector_id"`
	Enabled    bool          `json:"enabled" doc:"false: nothing of this happens before it is enabled"`
	Paused     bool          `json:"paused" doc:"true: nothing of this happens before a resume"`
	Matched    int           `json:"matched_files" doc:"objects that were listed and match"`
	Settled    int           `json:"settled_files" doc:"of these: imported, skipped, failed for good, deleted, or left alone on purpose"`
	Importing  int           `json:"importing_files" doc:"of these: in a job that has not ended"`
	Files      []plannedFile `json:"files" nullable:"false" doc:"of these: what would be imported"`
	Bytes      int64         `json:"bytes" doc:"of files together"`
	Complete   bool          `json:"complete" doc:"false: there was more than limit, or more than could be listed in time"`
}

type plannedFile struct {
	Path      string `json:"path"`
	Version   string `json:"version"`
	SizeBytes int64  `json:"size_bytes"`
	Modified  string `json:"last_modified" format:"date-time"`
	Waiting   bool   `json:"waiting" doc:"it has arrived and waits in the open window"`
}

type planAutomation struct {
	Index string `path:"index_id"`
	Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"the most files to name"`
}

// planPage is how many objects are looked up at a time, and planTime how long a listing may take that finds little in a
// lot.
const (
	planPage = 500
	planTime = 40 * time.Second
)

// planAutomation lists the storage as a scan does and says what that would find, without letting anything arrive.
func (a *Admin) planAutomation(ctx context.Context, in *planAutomation) (*body[importPlan], error) {
	at, err := a.automation(ctx, in.Index)
	if err != nil {
		return nil, err
	}
	c, err := a.importable(ctx, at.Connector)
	if err != nil {
		return nil, err
	}
	selects, err := match.Compile(at.Prefix, at.Pattern, at.Recursive)
	if err != nil {
		return nil, fmt.Errorf("the pattern of %s: %w", at.ID, err)
	}
	src, _, err := a.deps.Sources.Source(ctx, c.ID)
	if err != nil {
		return nil, storageUnavailable(c, err)
	}
	p := importPlan{
		Automation: at.ID, Index: at.Index, Connector: c.ID, Enabled: at.Enabled, Paused: at.Paused,
		Files: make([]plannedFile, 0), Complete: true,
	}
	look, cancel := context.WithTimeout(ctx, planTime)
	defer cancel()
	found := make([]bucket.Object, 0, planPage)
	for o, err := range src.List(look, bucket.ListOptions{Prefix: selects.Prefix(), Delimiter: !selects.Recursive()}) {
		if err != nil && elsewhere(o, err) {
			continue
		}
		if err != nil && look.Err() != nil && ctx.Err() == nil {
			p.Complete = false
			break
		}
		if err != nil {
			return nil, storageUnavailable(c, err)
		}
		if !selects.Match(o.Path) || !utf8.ValidString(o.Path) {
			continue
		}
		if found = append(found, o); len(found) < planPage {
			continue
		}
		if err := a.planned(ctx, at, found, &p); err != nil {
			return nil, err
		}
		if found = found[:0]; len(p.Files) > in.Limit {
			break
		}
	}
	if err := a.planned(ctx, at, found, &p); err != nil {
		return nil, err
	}
	if len(p.Files) > in.Limit {
		p.Files, p.Complete = p.Files[:in.Limit], false
	}
	for _, f := range p.Files {
		p.Bytes += f.SizeBytes
	}
	return &body[importPlan]{p}, nil
}

// planned sorts objects into those that are done with, those in a job, and those that would be imported. Places are
// asked in the order in which an object travels, as scans do.
func (a *Admin) planned(ctx context.Context, at store.Automation, found []bucket.Object, p *importPlan) error {
	arrivals, files := make([]string, len(found)), make([]string, len(found))
	objects := make([]string, len(found))
	for i, o := range found {
		hash := event.ObjectHash(at.Connector, o.Path)
		arrivals[i], files[i] = a.bus.Subject("arrival", at.ID, hash), a.bus.Subject("file", "*", hash)
		objects[i] = event.NewMediumID(at.Index, at.Connector, o.Path, "", "").Object
	}
	type version struct{ path, version string }
	waiting, working, settled := make(map[version]bool), make(map[version]bool), make(map[version]bool)
	for m, err := range a.bus.Last(ctx, topology.Arrivals, arrivals...) {
		if err != nil {
			return err
		}
		var arrived event.Arrival
		if json.Unmarshal(m.Data, &arrived) == nil {
			waiting[version{arrived.Path, arrived.Version}] = true
		}
	}
	for m, err := range a.bus.Last(ctx, topology.Files, files...) {
		if err != nil {
			return err
		}
		var f event.File
		if err := json.Unmarshal(m.Data, &f); err != nil {
			return fmt.Errorf("decode %s: %w", m.Subject, err)
		}
		if f.Index == at.Index && !f.State.Final() {
			working[version{f.Path, f.Version}] = true
		}
	}
	entries, err := a.ledger.Versions(ctx, at.Index, objects...)
	if err != nil {
		return err
	}
	now := time.Now()
	for _, e := range entries {
		if e.Settled(now) {
			settled[version{e.Path, e.Version}] = true
		}
	}
	for _, o := range found {
		p.Matched++
		v := version{o.Path, o.Version}
		switch {
		case settled[v]:
			p.Settled++
		case working[v]:
			p.Importing++
		default:
			p.Files = append(p.Files, plannedFile{
				Path: o.Path, Version: o.Version, SizeBytes: o.Size, Modified: stamp(o.ModTime), Waiting: waiting[v],
			})
		}
	}
	return nil
}
