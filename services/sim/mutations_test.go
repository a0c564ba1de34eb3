package sim

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mutation is a rule taken out of the product, and the tests of which one has to notice.
type mutation struct {
	rule     string
	file     string // below the root
	old, new string
	pkg, run string
}

const (
	simulated = "./services/sim"
	histories = "TestSimulation"
)

var mutations = []mutation{
	{"a window's time is that of its arrivals, not that of their delivery", "shared/window/window.go",
		`if a.Stored.After(o.LastArrivalAt) {`, `if a.Stored = time.Now(); a.Stored.After(o.LastArrivalAt) {`, "./shared/window", "TestMerge"},
	{"what is pending does not arrive again", "services/scanner/decide.go",
		`k.pending != nil && k.pending.Version == o.Version`, `false`, simulated, histories},
	{"versions count, and not times", "services/scanner/decide.go",
		`if m.Version == o.Version && m.Settled(now) {`, `if m.Order >= o.Order && m.Settled(now) {`, simulated, histories},
	{"what belongs to a window that has closed is its job's", "shared/window/window.go",
		`if a.Seq <= r.ClosedSeq {`, `if false {`, simulated, histories},
	{"a window takes only what came up to its last sequence", "services/scanner/plan.go",
		"if m.Sequence > lastSeq {\n\t\t\t\tcontinue // of the next window\n\t\t\t}", "", "./services/scanner", "TestLaterArrivals|Window"},
	{"a window that is held does not close", "shared/window/window.go", `!r.Held && `, ``, simulated, histories},
	{"a pause or resume that was held up does not undo a later one", "shared/window/window.go",
		`if turn < r.Turn {`, `if false {`, "./shared/window", "TestHold|TestSteer|TestLifeOfARecord"},
	{"a window closes when it is due", "shared/window/window.go", `!now.Before(r.Open.Deadline)`, `true`, simulated, histories},
	{"a changed configuration moves the deadline of an open window", "shared/window/window.go",
		`r.Open.ConfigRev == cfg.Rev {`, `true {`, "./shared/window", "TestNewDeadlines"},
	{"the epoch of a window makes its job", "shared/window/window.go",
		`event.JobOfWindow(r.Automation, r.Open.Epoch)`, `event.JobOfWindow(r.Automation, "")`, simulated, histories},
	{"the entries of an interrupted planning get their tasks", "services/scanner/plan.go",
		"for h, old := range pl.had {\n\t\tif old.queued {", "for h, old := range pl.had {\n\t\tif false {", "./services/scanner", "TestEntryWhose"},
	{"a job is let go once", "services/scanner/plan.go",
		"func release(j *store.Job, total int) bool {\n\tif j.Status != store.JobScanning {", "func release(j *store.Job, total int) bool {\n\tif false {",
		simulated, histories},
	{"what a job has imported itself is imported, and not skipped", "services/importer/decide.go",
		`case e.State == event.MediumImported && e.Job == t.Job:`, `case false:`, "./services/importer", "TestAsk|TestCrash"},
	{"what another has imported is skipped", "services/importer/decide.go",
		`case e.State != event.MediumFailed && e.State != event.MediumSkipped:`, `case e.State == event.MediumDeleted:`, simulated, histories},
	{"progress is a sum of states, and not of changes", "services/importer/fold.go",
		"if known {\n\t\tf.counts[old.state]--", "if false {\n\t\tf.counts[old.state]--", "./services/importer", "TestFold"},
	{"progress does not go back", "services/importer/fold.go", ` || j.AsOf >= asOf {`, ` {`, "./services/importer", "TestAdvanced"},
	{"a cancelled job does not end completed", "services/importer/fold.go",
		`if j.Status != store.JobImporting {`, `if false {`, simulated, histories},
	{"a cancelled job has no run", "services/preset-trigger/decide.go",
		`job.Status == store.JobCancelled || `, ``, "./services/preset-trigger", "TestNoRun"},
	{"a run waits for the report", "services/preset-trigger/decide.go",
		`!job.Status.Terminal() || job.Report == ""`, `false`, "./services/preset-trigger", "TestWaitsForTheReport"},
	{"a run that is there is asked for first", "services/preset-trigger/runs.go",
		`return run.Media != "" || run.Status.Terminal()`, `return false`, "./services/preset-trigger", "TestEventAgain"},
	{"a record of a run does not go back", "services/preset-trigger/fold.go",
		`if run.Status.Terminal() || f.seen == 0 {`, `if false {`, "./services/preset-trigger", "TestFold"},
	{"a request that comes again is known by its record, and not by its message id", "services/scanner/plan.go",
		`was := phaseOf(j)`, `was := unplanned`, "./services/scanner", "TestListingIsPlanned"},
	{"a delivery is acknowledged when its effects are stored", "shared/bus/consume.go",
		"\tc.inHand[d] = struct{}{}\n", "\tc.inHand[d] = struct{}{}\n\t_ = msg.Ack()\n", "./shared/bus", "TestConsume|TestVerdicts|TestLease"},
	{"arrivals go when their tasks are there", "services/scanner/plan.go",
		"	var pl *plan\n", "	_ = p.bus.Purge(ctx, topology.Arrivals, backlog, req.LastSeq)\n	var pl *plan\n", "./services/scanner", "TestWindow"},
	{"the ledger is written before the file's state", "services/importer/commit.go",
		`group = crash(ctx, im.commitLedger(ctx, group), "importer.settled")`, ``, "./services/importer", "TestImport|TestNothing|TestCrash"},
	{"a delivery is given up at the end of its schedule", "services/webhooks/attempt.go",
		`case d.Tries > len(p.schedule):`, `case false:`, "./services/webhooks", "TestGivenUp|TestAfter|TestPolicy"},
	{"a delivery that was taken is over", "services/webhooks/attempt.go",
		`d.State, d.EndedAt = event.DeliveryDelivered, now`, `d.State, d.EndedAt = event.DeliveryRetrying, now`, simulated, histories},
}

// TestMutations takes one rule out at a time, in an overlay, and wants a test to go red. It is run by `make mutations`;
// among the other tests it only sees that each mutation still finds its place.
func TestMutations(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutations {
		t.Run(strings.ReplaceAll(m.rule, " ", "-"), func(t *testing.T) {
			path := filepath.Join(root, m.file)
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(src), m.old); n != 1 {
				t.Fatalf("what is to be changed in %s is there %d times: %s", m.file, n, m.old)
			}
			if os.Getenv("MILLRACE_MUTATIONS") != "" {
				m.kill(t, root, path, strings.Replace(string(src), m.old, m.new, 1))
			}
		})
	}
}

// kill runs the tests on the changed source.
func (m mutation) kill(t *testing.T, root, path, changed string) {
	t.Helper()
	dir := t.TempDir()
	file, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	data, err := json.Marshal(map[string]map[string]string{"Replace": {path: file}})
	if err == nil {
		err = os.WriteFile(file, []byte(changed), 0o600)
	}
	if err == nil {
		err = os.WriteFile(overlay, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"test", "-count=1", "-vet=off", "-failfast", "-timeout=5m", "-overlay", overlay, "-run", m.run, m.pkg}
	if usesRapid(t, filepath.Join(root, m.pkg)) {
		args = append(args, "-rapid.nofailfile") // what fails here is no regression
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "MILLRACE_MUTATIONS=", "MILLRACE_SIM_SEED=", "MILLRACE_SIM_SEEDS=1000", "MILLRACE_SIM_SHRINK=no")
	out, err := cmd.CombinedOutput()
	switch {
	case strings.Contains(string(out), "[build failed]"):
		t.Fatalf("it does not compile:\n%s", out)
	case err == nil:
		t.Errorf("nobody notices")
	case !strings.Contains(string(out), "--- FAIL"):
		t.Fatalf("the tests did not fail, but were not run either:\n%s", out)
	default:
		t.Logf("noticed: %s", firstOf(string(out)))
	}
}

func usesRapid(t *testing.T, pkg string) bool {
	t.Helper()
	tests, err := filepath.Glob(filepath.Join(pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range tests {
		if src, err := os.ReadFile(path); err == nil && strings.Contains(string(src), "\"pgregory.net/rapid\"") {
			return true
		}
	}
	return false
}

// firstOf is the first thing that a test said.
func firstOf(out string) string {
	for line := range strings.Lines(out) {
		if strings.Contains(line, "_test.go:") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
