package bench_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace/services/millrace/bench"
	"millrace/services/millrace/cli"
)

// TestMain lets the figures start this very program as `millrace`, as they do in earnest.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"bench", "up"}, os.Args[1]) {
		os.Exit(cli.Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// The bench is only run by people; this keeps it in working order. What it measures here means nothing.
func TestFigures(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "bench.md")
	var table bytes.Buffer
	rows, err := bench.Run(t.Context(), bench.Config{
		Only: []string{"match", "arrivals", "rescan", "reference", "nats"}, Scale: bench.Small, Out: out, Table: &table, Progress: t.Output(), Program: program,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 6 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, r := range rows {
		if r.Skipped != "" || r.Measured.N <= 0 || r.Yardstick.N <= 0 || r.Ratio() <= 0 {
			t.Errorf("%+v", r)
		}
	}
	page, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"notifications → stored arrivals", "≥ 2,000 files/s", "<!-- notes -->"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the report lacks %q:\n%s", want, page)
		}
	}
	if !strings.Contains(table.String(), "MEASURED") {
		t.Errorf("the table:\n%s", table.String())
	}
}

func TestUnknownFigure(t *testing.T) {
	_, err := bench.Run(t.Context(), bench.Config{Only: []string{"speed"}, Scale: "huge"})
	if err == nil || !strings.Contains(err.Error(), `figure "speed"`) || !strings.Contains(err.Error(), `scale "huge"`) {
		t.Errorf("%v", err)
	}
}
