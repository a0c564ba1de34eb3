package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"millrace/shared/broker"
	"millrace/shared/bus"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// curves measures what one file costs where there are more of them, and where there are more automations.
func curves(ctx context.Context, l *lab) ([]Row, error) {
	var files []cost
	for _, n := range l.size.curve {
		c, err := l.costOf(ctx, n, 0)
		if err != nil {
			return nil, err
		}
		files = append(files, c)
	}
	var automations []cost
	for n := 1; n <= l.size.automations; n *= 100 {
		c, err := l.costOf(ctx, l.size.files, n)
		if err != nil {
			return nil, err
		}
		automations = append(automations, c)
	}
	how := "A one-time import job of a folder of small pictures, `millrace up --library none`, on a data folder of its own: " +
		"CPU time of the process from the request until the job has ended, by the number of files. One round."
	var rows []Row
	for _, c := range files[2:] {
		rows = append(rows, c.row(files[1], digits(float64(c.files)), how))
	}
	for _, c := range automations[1:] {
		rows = append(rows, c.row(automations[0], fmt.Sprintf("%s, beside %s automations with nothing to do", digits(float64(c.files)), digits(float64(c.automations))), how))
	}
	for _, c := range slices.Concat(files, automations) {
		rows[0].Also = append(rows[0].Also, c.String())
	}
	return rows, nil
}

// cost is what a job of so many files took, beside so many automations.
type cost struct {
	files, automations int
	cpu, took          time.Duration
	peak               float64 // MB
}

// perFile is in µs.
func (c cost) perFile() float64 { return float64(c.cpu.Microseconds()) / float64(c.files) }

func (c cost) String() string {
	return fmt.Sprintf("%s files beside %d automations: %s µs of CPU time each, %s files/s, peak resident memory %s MB",
		digits(float64(c.files)), c.automations, digits(c.perFile()), digits(float64(c.files)/c.took.Seconds()), digits(c.peak))
}

func (c cost) row(base cost, of, how string) Row {
	return Row{
		What:     "CPU time of one small file by reference, of " + of,
		Measured: Quantity{c.perFile(), "µs"}, Yardstick: Quantity{base.perFile(), "µs"},
		Beside: fmt.Sprintf("of %s, beside %d automations", digits(float64(base.files)), base.automations),
		Target: Target{Ratio: true, N: 1.3}, How: how,
	}
}

// costOf has so many files imported in one job, on a store with so many idle automations.
func (l *lab) costOf(ctx context.Context, files, automations int) (c cost, err error) {
	dir := filepath.Join(l.dir, fmt.Sprintf("%d-%d", files, automations))
	inbox, data := filepath.Join(dir, "inbox"), filepath.Join(dir, "data")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if _, err := writeFiles(inbox, files, 0, "photo.png"); err != nil {
		return c, err
	}
	if automations > 0 {
		sub := *l
		sub.size.automations = automations
		err := onBroker(ctx, data, func(_ *broker.Broker, b *bus.Bus) error {
			return sub.fillIdle(ctx, fill{b}, filepath.Join(dir, "idle"))
		})
		if err != nil {
			return c, err
		}
	}
	up, err := l.up(ctx, settings{data: data, allow: dir, library: "none", bus: true})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, up.stop()) }()
	if err := l.settled(ctx, up); err != nil {
		return c, err
	}
	before, err := up.cpu()
	if err != nil {
		return c, err
	}
	if c.took, err = up.job(ctx, "dir", map[string]any{"path": inbox}, files); err != nil {
		return c, err
	}
	after, err := up.cpu()
	if err != nil {
		return c, err
	}
	c.files, c.automations, c.cpu = files, automations, after-before
	_, c.peak, err = up.memory()
	l.say("%s", c)
	return c, err
}

// job has the so many files of a connector imported into a new index by one job, and returns how long it took.
func (p *product) job(ctx context.Context, kind string, connector map[string]any, files int) (took time.Duration, err error) {
	var made struct {
		Connector string `json:"connector_id"`
		Index     string `json:"index_id"`
		Job       string `json:"job_id"`
	}
	connector["name"] = "Bench"
	if err := p.Do(ctx, http.MethodPost, "/connectors/"+kind, connector, &made); err != nil {
		return 0, err
	}
	if err := p.Do(ctx, http.MethodPost, "/indexes", map[string]string{"name": "Bench"}, &made); err != nil {
		return 0, err
	}
	jobs, err := store.Open[store.Job](ctx, p.bus, topology.JobRecords)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	err = p.Do(ctx, http.MethodPost, "/import-jobs", map[string]string{"connector_id": made.Connector, "index_id": made.Index}, &made)
	var j store.Job
	for err == nil && !j.Status.Terminal() { // however long it takes: a million files are beyond our patience
		if err = sleep(ctx, 50*time.Millisecond); err == nil {
			j, _, err = jobs.Get(ctx, made.Job)
		}
	}
	took = time.Since(start)
	if err == nil && j.Progress.Imported != files {
		err = fmt.Errorf("%d files of %d were imported: %s", j.Progress.Imported, files, j.Status)
	}
	if err != nil {
		return 0, p.explain(err)
	}
	return took, nil
}
