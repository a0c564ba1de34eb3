package sim

import (
	"bufio"
	"embed"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// turns is the length of a history with faults.
const turns = 300

// few is how many seeds run among the other tests; `make sim` sets MILLRACE_SIM_SEEDS.
const few = 30

//go:embed testdata/seeds
var testdata embed.FS

func number(t *testing.T, name string, without uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return without
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s=%s: %v", name, s, err)
	}
	return n
}

// TestSimulation lives through one history per seed. MILLRACE_SIM_SEED=N is that one alone.
func TestSimulation(t *testing.T) {
	t.Parallel()
	if os.Getenv("MILLRACE_SIM_SEED") != "" {
		check(t, number(t, "MILLRACE_SIM_SEED", 0))
		return
	}
	seeds := number(t, "MILLRACE_SIM_SEEDS", few)
	var next atomic.Uint64
	var wait sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wait.Go(func() {
			for seed := next.Add(1); seed <= seeds && !t.Failed(); seed = next.Add(1) {
				check(t, seed)
			}
		})
	}
	wait.Wait()
}

// TestSeedsThatFailed are the seeds that found something, each with what it was.
func TestSeedsThatFailed(t *testing.T) {
	t.Parallel()
	f, err := testdata.Open("testdata/seeds")
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		word, _, _ := strings.Cut(lines.Text(), " ")
		if word == "" || word == "#" {
			continue
		}
		seed, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		check(t, seed)
	}
}

// check lives through the history of a seed, and when it fails shows the shortest one it can find that fails alike.
func check(t *testing.T, seed uint64) {
	t.Helper()
	w := newWorld(newTape(seed))
	wrong := w.history(turns)
	if wrong == "" || t.Failed() { // one is enough to look at
		return
	}
	if os.Getenv("MILLRACE_SIM_SHRINK") == "no" { // for mutations, of which many are tried
		t.Errorf("seed %d: %s", seed, wrong)
		return
	}
	kind, _, _ := strings.Cut(wrong, ":")
	live := func(draws []uint16, verbose bool) *world {
		w := newWorld(&tape{draws: draws})
		w.verbose = verbose
		w.history(turns)
		return w
	}
	draws := shrink(w.draws, func(d []uint16) bool { return strings.HasPrefix(live(d, false).wrong, kind+":") })
	short := live(draws, true)
	t.Errorf("seed %d: %s\nagain with: make sim SEED=%d\nthe shortest history found:\n  %s", seed, wrong, seed, strings.Join(short.log, "\n  "))
}
