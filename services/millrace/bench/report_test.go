package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Notes are the one thing in the report that cannot be measured again.
func TestReportKeepsNotes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docs", "bench.md")
	write := func(rows ...Row) string {
		t.Helper()
		if err := writeReport(path, machine{}, Full, rows); err != nil {
			t.Fatal(err)
		}
		page, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(page)
	}
	page := write(Row{What: "first", Measured: Quantity{1, "/s"}, Yardstick: Quantity{10, "/s"}, Target: Target{Ratio: true, AtLeast: true, N: 0.5}})
	if !strings.Contains(page, "- **first**: 0.1 × instead of ≥ 0.5 × yardstick: short by a factor of 5.") {
		t.Errorf("the missed target:\n%s", page)
	}
	noted := strings.Replace(page, notesBegin+"\n", notesBegin+"\n\nThe disk is slow.\n\n", 1)
	if err := os.WriteFile(path, []byte(noted), 0o600); err != nil {
		t.Fatal(err)
	}
	page = write(Row{What: "second", Measured: Quantity{1, "s"}, Yardstick: Quantity{1, "s"}, Target: Target{N: 20, Unit: "s"}})
	if strings.Contains(page, "first") || !strings.Contains(page, "None.") || !strings.Contains(page, notesBegin+"\n\nThe disk is slow.\n\n"+notesEnd) {
		t.Errorf("the second run:\n%s", page)
	}
	if err := os.WriteFile(path, []byte(notesBegin+" and no end"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeReport(path, machine{}, Full, nil); err == nil {
		t.Error("it wrote over notes whose end it did not find")
	}
}

// A ratio may be better than in an earlier report, and a little worse; of numbers nothing is said.
func TestAgainst(t *testing.T) {
	rate := func(what string, measured float64) Row {
		return Row{What: what, Measured: Quantity{measured, "/s"}, Yardstick: Quantity{10, "/s"}, Target: Target{Ratio: true, AtLeast: true, N: 1}}
	}
	start := func(measured float64) Row {
		return Row{What: "start", Measured: Quantity{measured, "s"}, Yardstick: Quantity{0.001, "s"}, Target: Target{N: 2, Unit: "s"}}
	}
	path := filepath.Join(t.TempDir(), "bench.md")
	if err := writeReport(path, machine{}, Full, []Row{rate("`copy`, small", 20), start(2)}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		now   Row
		worse string
	}{
		{rate("`copy`, small", 14), ""},
		{rate("`copy`, small", 200), ""},
		{rate("`copy`, small", 13), "`copy`, small: 1.3 × its yardstick, and 2 ×"},
		{start(2.9), ""},
		{start(0.1), ""},
		{start(3.1), "start: 3,100 × its yardstick, and 2,000 ×"},
		{rate("new", 1), ""},
	} {
		err := Against(path, []Row{c.now})
		if c.worse == "" && err != nil || c.worse != "" && (err == nil || !strings.Contains(err.Error(), c.worse)) {
			t.Errorf("%v: %v, want %q", c.now.cells(), err, c.worse)
		}
	}
}

func TestDigits(t *testing.T) {
	for v, want := range map[float64]string{
		0.1234: "0.123", 0.5: "0.5", 1.256: "1.26", 20: "20", 99.96: "100", 123.4: "123", 100000: "100,000", 1234567.8: "1,234,568", 0: "0",
	} {
		if got := digits(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}
