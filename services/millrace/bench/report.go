package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// What stands between these marks is written by hand and outlives every run.
const (
	notesBegin = "<!-- notes -->"
	notesEnd   = "<!-- /notes -->"
)

// writeReport writes the page of a run over the one before, and keeps its notes.
func writeReport(path string, m machine, scale Scale, rows []Row) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("report: %w", err)
	}
	notes, err := notesOf(string(old))
	if err != nil {
		return fmt.Errorf("report %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := os.WriteFile(path, []byte(report(m, scale, rows, notes)), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// notesOf returns what stands between the marks of a page. A page that has one mark only is not ours to overwrite.
func notesOf(page string) (string, error) {
	_, rest, begun := strings.Cut(page, notesBegin)
	notes, _, ended := strings.Cut(rest, notesEnd)
	switch {
	case !begun && !strings.Contains(page, notesEnd):
		return "\n", nil
	case !begun || !ended:
		return "", fmt.Errorf("it has only one of %s and %s: its notes would be lost", notesBegin, notesEnd)
	}
	return notes, nil
}

func report(m machine, scale Scale, rows []Row, notes string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("# Bench\n")
	p("Written by `make bench`; only the notes are by hand. Each figure stands beside a yardstick from the same run, on the")
	p("same machine and file system. The numbers belong to this machine, the ratios travel.\n")
	if scale != Full {
		p("**Scale %s: this shows that the bench works, and no more.**\n", scale)
	}
	p("| Machine | |\n|---|---|")
	for _, line := range m.lines() {
		p("| %s | %s |", line[0], line[1])
	}
	p("\n| %s |\n|---|--:|---|--:|--:|---|", strings.Join(columns, " | "))
	for _, r := range rows {
		p("| %s |", strings.Join(r.cells(), " | "))
	}
	p("\n## How each was measured\n")
	for _, r := range rows {
		p("- **%s** (`%s`). %s", r.What, r.Figure, r.How)
		for _, s := range r.Also {
			p("  - %s", s)
		}
	}
	p("\n## Missed targets\n")
	none := true
	for _, r := range rows {
		switch {
		case r.Skipped != "":
			p("- **%s**: not measured: %s", r.What, r.Skipped)
		case !r.Met():
			p("- **%s**: %s.", r.What, r.Missed())
		default:
			continue
		}
		none = false
	}
	if none {
		p("None.")
	}
	p("\n## Notes\n")
	p("%s%s%s", notesBegin, notes, notesEnd)
	return b.String()
}

// ratios reads what a report says of each figure beside its yardstick.
func ratios(page string) map[string]float64 {
	of := map[string]float64{}
	for line := range strings.Lines(page) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != len(columns) {
			continue
		}
		ratio, found := strings.CutSuffix(strings.TrimSpace(cells[3]), " ×")
		if v, err := strconv.ParseFloat(strings.ReplaceAll(ratio, ",", ""), 64); found && err == nil {
			of[strings.TrimSpace(cells[0])] = v
		}
	}
	return of
}

// Worse is by how much the ratio of a figure may be worse than that of an earlier report: machines are noisy.
const Worse = 1.5

// Against holds rows against an earlier report, and returns an error for each whose ratio is worse by more than that.
// What the report does not have passes; numbers are not compared, only ratios.
func Against(report string, rows []Row) error {
	page, err := os.ReadFile(filepath.Clean(report))
	if err != nil {
		return fmt.Errorf("earlier report: %w", err)
	}
	was := ratios(string(page))
	var errs []error
	for _, r := range rows {
		before, ok := was[r.What]
		if !ok || r.Skipped != "" {
			continue
		}
		worse := r.Ratio() / before
		if r.Target.AtLeast {
			worse = 1 / worse
		}
		if worse > Worse {
			errs = append(errs, fmt.Errorf("%s: %s × its yardstick, and %s × in %s: worse by a factor of %s",
				r.What, digits(r.Ratio()), digits(before), report, digits(worse)))
		}
	}
	return errors.Join(errs...)
}
