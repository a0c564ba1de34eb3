package bench

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Row is one measured number beside its yardstick and its target.
type Row struct {
	Figure    string   `json:"figure"`
	What      string   `json:"what"`
	Measured  Quantity `json:"measured"`
	Yardstick Quantity `json:"yardstick"`
	Beside    string   `json:"beside"`           // what the yardstick is
	Paired    float64  `json:"paired,omitempty"` // the ratio, where it is known better than from the two numbers
	Target    Target   `json:"target"`
	How       string   `json:"how"`
	Also      []string `json:"also,omitempty"`
	// Skipped says why nothing was measured.
	Skipped string `json:"skipped,omitempty"`
}

// Quantity is a number and its unit.
type Quantity struct {
	N    float64 `json:"n"`
	Unit string  `json:"unit"`
}

func (q Quantity) String() string {
	if q.Unit == "" {
		return "–"
	}
	return digits(q.N) + " " + q.Unit
}

// Target is what a number, or its ratio to the yardstick, must reach.
type Target struct {
	Ratio   bool    `json:"ratio"`    // of the ratio, else of the number
	AtLeast bool    `json:"at_least"` // else at most
	N       float64 `json:"n"`
	Unit    string  `json:"unit"`
}

func (t Target) String() string {
	sign := "≤"
	if t.AtLeast {
		sign = "≥"
	}
	if t.Ratio {
		return fmt.Sprintf("%s %s × yardstick", sign, digits(t.N))
	}
	return sign + " " + Quantity{t.N, t.Unit}.String()
}

// Ratio is the measured number over the yardstick; of several rounds, the median of their ratios.
func (r Row) Ratio() float64 {
	if r.Paired != 0 {
		return r.Paired
	}
	return r.Measured.N / r.Yardstick.N
}

func (r Row) judged() float64 {
	if r.Target.Ratio {
		return r.Ratio()
	}
	return r.Measured.N
}

// Met reports whether the target is reached.
func (r Row) Met() bool {
	if r.Skipped != "" {
		return false
	}
	if r.Target.AtLeast {
		return r.judged() >= r.Target.N
	}
	return r.judged() <= r.Target.N
}

// Missed says by how much the target is missed.
func (r Row) Missed() string {
	have := Quantity{r.judged(), r.Target.Unit}.String()
	if r.Target.Ratio {
		have = digits(r.judged()) + " ×"
	}
	times := r.judged() / r.Target.N
	if r.Target.AtLeast {
		times = 1 / times
	}
	return fmt.Sprintf("%s instead of %s: short by a factor of %s", have, r.Target, digits(times))
}

func (r Row) verdict() string {
	switch {
	case r.Skipped != "":
		return "skipped"
	case r.Met():
		return "yes"
	}
	return "no"
}

func (r Row) cells() []string {
	if r.Skipped != "" {
		return []string{r.What, "–", "–", "–", r.Target.String(), r.verdict()}
	}
	return []string{r.What, r.Measured.String(), r.Beside + ": " + r.Yardstick.String(), digits(r.Ratio()) + " ×", r.Target.String(), r.verdict()}
}

var columns = []string{"Figure", "Measured", "Yardstick", "Ratio", "Target", "Met"}

func writeTable(w io.Writer, rows []Row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ToUpper(strings.Join(columns, "\t")))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r.cells(), "\t"))
		if r.Skipped != "" {
			fmt.Fprintln(t, "  "+r.Skipped)
		}
	}
	_ = t.Flush()
}

// digits shows as much of a number as was measured: three digits, or all of a large one.
func digits(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case a >= 1000:
		return thousands(int64(math.Round(v)))
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return shorten(strconv.FormatFloat(v, 'f', 1, 64))
	case a >= 1:
		return shorten(strconv.FormatFloat(v, 'f', 2, 64))
	}
	return shorten(strconv.FormatFloat(v, 'f', 3, 64))
}

func shorten(s string) string { return strings.TrimRight(strings.TrimRight(s, "0"), ".") }

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
