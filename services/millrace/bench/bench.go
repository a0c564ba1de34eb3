// Package bench measures Millrace, each figure beside a yardstick that is taken in the same run: ratios hold on any
// machine, numbers do not.
//
//	millrace bench ──▶ millrace bench --figure NAME ──▶ millrace up
//	  table, report        fills, times, yardstick       what is measured
//
// Each figure has a process and a folder of its own, so that nothing it does to memory, caches or the broker counts for
// the next one. Where the whole product is measured, that is `millrace up` as people start it, seen from outside.
package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Config of a run.
type Config struct {
	// Only names the figures to measure. Empty: all.
	Only []string
	// Scale is Small or Full.
	Scale Scale
	// Dir is where the data of the run goes, on the disk that is to be measured. Default: os.TempDir.
	Dir string
	// Out is the report to write. Empty: none.
	Out string
	// Table is where the table goes, Progress what happens meanwhile.
	Table, Progress io.Writer
	// Program is this program, which is to understand `bench --figure`, `bench --alone` and `up`.
	Program string
}

// Names are the figures there are.
func Names() []string {
	names := make([]string, len(figures))
	for i, f := range figures {
		names[i] = f.name
	}
	return names
}

// List says what there is to measure.
func List(w io.Writer) {
	for _, f := range figures {
		fmt.Fprintf(w, "  %-10s %s\n", f.name, f.about)
	}
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	for _, name := range c.Only {
		if !slices.Contains(Names(), name) {
			errs = append(errs, fmt.Errorf("figure %q: there are %s", name, strings.Join(Names(), ", ")))
		}
	}
	if _, ok := scales[c.Scale]; !ok {
		errs = append(errs, fmt.Errorf("scale %q: must be %s or %s", c.Scale, Small, Full))
	}
	return errors.Join(errs...)
}

// Run measures, prints the table, writes the report, and returns all that was measured. A missed target is no error; a
// figure that could not be measured is, once the others are done.
func Run(ctx context.Context, c Config) ([]Row, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Dir == "" {
		c.Dir = os.TempDir()
	}
	dir, err := os.MkdirTemp(c.Dir, "millrace-bench-")
	if err != nil {
		return nil, fmt.Errorf("folder for the run: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	m, err := look(dir)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(c.Progress, "%s\n%s\n", m, dir)

	var rows []Row
	var failed []error
	for _, f := range figures {
		if len(c.Only) > 0 && !slices.Contains(c.Only, f.name) {
			continue
		}
		fmt.Fprintf(c.Progress, "\n%s: %s\n", f.name, f.about)
		start := time.Now()
		got, err := c.apart(ctx, f, dir)
		if ctx.Err() != nil {
			return rows, context.Cause(ctx)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("figure %s: %w", f.name, err))
			fmt.Fprintf(c.Progress, "  failed: %v\n", err)
			continue
		}
		for _, r := range got {
			for _, also := range r.Also {
				fmt.Fprintf(c.Progress, "  %s\n", also)
			}
		}
		rows = append(rows, got...)
		fmt.Fprintf(c.Progress, "  took %s\n", time.Since(start).Round(time.Second))
	}
	fmt.Fprintln(c.Table)
	writeTable(c.Table, rows)
	if c.Out != "" && len(failed) == 0 {
		if err := writeReport(c.Out, m, c.Scale, rows); err != nil {
			return rows, err
		}
		fmt.Fprintf(c.Progress, "\nwritten to %s\n", c.Out)
	}
	return rows, errors.Join(failed...)
}

// stopTime is how long a figure's process may take to stop what it started.
const stopTime = 40 * time.Second

// apart measures one figure in a process of its own.
func (c Config) apart(ctx context.Context, f figure, dir string) ([]Row, error) {

	cmd := exec.CommandContext(ctx, c.Program, "bench", "--figure", f.name, "--dir", dir, "--scale", string(c.Scale))
	var out bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = environ(), &out, c.Progress
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTime
	if err := cmd.Run(); err != nil {
		return nil, err // it has said why on stderr
	}
	var rows []Row
	if err := json.Unmarshal(out.Bytes(), &rows); err != nil {
		return nil, fmt.Errorf("its result: %w", err)
	}
	return rows, nil
}

// environ is the environment without settings of ours: figures are taken with the defaults.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "MILLRACE_") })
}

// Measure measures one figure in this process and writes its rows to w as JSON. dir is the folder of the run.
func Measure(ctx context.Context, name, dir string, scale Scale, program string, w io.Writer) error {
	i := slices.IndexFunc(figures, func(f figure) bool { return f.name == name })
	if i < 0 {
		return Config{Only: []string{name}, Scale: scale}.Validate()
	}
	l := &lab{dir: filepath.Join(dir, name), run: dir, size: scales[scale], program: program}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(l.dir) }()
	rows, err := figures[i].measure(ctx, l)
	if err != nil {
		return err
	}
	for j := range rows {
		rows[j].Figure = name
	}
	return json.NewEncoder(w).Encode(rows)
}
