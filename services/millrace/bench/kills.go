package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"millrace/services/millrace/client"
	"millrace/shared/event"
)

// copier is a program that copies a folder, and is killed while it does.
type copier struct {
	what  string
	kept  string                                                // the folder that it copies to
	begin func(context.Context) (kill func() error, err error)  // what is there at the kill is at work
	again func(context.Context) (took time.Duration, err error) // a start after the kill, until all is done
}

// toll is what one kill costs.
type toll struct {
	done  int // files that were there at the kill, whole
	again int // of these, written once more
	lost  int // files that are not there at the end
	left  int // files that are there and are no copy of anything: halves, and seconds
	took  time.Duration
}

func (t toll) String() string {
	return fmt.Sprintf("%s of the %s files that were whole at the kill were written again, %d are lost, %d left behind that are no file's copy; %s s from the next start to the end",
		digits(float64(t.again)), digits(float64(t.done)), t.lost, t.left, digits(t.took.Seconds()))
}

// kills measures what one kill -9 costs in the middle of a copy, and what it costs those that one would use instead.
func kills(ctx context.Context, l *lab) ([]Row, error) {
	inbox := filepath.Join(l.dir, "inbox")
	if _, err := writeFiles(inbox, l.size.files, 64<<10); err != nil {
		return nil, err
	}
	want := map[[sha256.Size]byte]bool{}
	err := eachSum(inbox, func(_ string, _ fs.FileInfo, sum [sha256.Size]byte) { want[sum] = true })
	if err != nil {
		return nil, err
	}
	im := &importer{importBench: importBench{files: l.size.files, copy: filepath.Join(l.dir, "copy")}, lab: l, inbox: inbox, data: filepath.Join(l.dir, "data")}
	ours, err := l.toll(ctx, im.copier(), want)
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, rival := range []struct {
		name string
		args func() ([]string, error)
	}{
		{"rclone", func() ([]string, error) { return im.rcloneArgs(), nil }},
		{"benthos", im.benthosArgs},
	} {
		row := Row{
			What:   "files of 64 kB copied, one `kill -9` half way: copied twice, beside " + rival.name,
			Beside: rival.name, Target: Target{N: float64(l.size.files / 10), Unit: "files"},
			How: fmt.Sprintf("Killed once half of %s files are there, and started again until it says that it is done. "+
				"Counted are files that were whole at the kill and are another file at the end, or one with a later time.", digits(float64(l.size.files))),
		}
		if len(rows) == 0 {
			row.Also = []string{"the product: " + ours.String()}
		}
		program, err := findProgram(rival.name, l.program)
		if err != nil {
			row.Skipped = "there is no " + rival.name + " beside millrace nor in PATH: `make bench` builds it"
			rows = append(rows, row)
			continue
		}
		args, err := rival.args()
		if err != nil {
			return nil, err
		}
		theirs, err := l.toll(ctx, outsider(rival.name, im.copy, program, args), want)
		if err := errors.Join(err, os.RemoveAll(im.copy)); err != nil {
			return nil, err
		}
		row.Measured, row.Yardstick = Quantity{float64(ours.again), "files"}, Quantity{float64(theirs.again), "files"}
		row.Also = append(row.Also, rival.name+": "+theirs.String())
		rows = append(rows, row)
	}
	return rows, nil
}

// toll has c copy, kills it when half of the files are there, and has it go on.
func (l *lab) toll(ctx context.Context, c copier, want map[[sha256.Size]byte]bool) (t toll, err error) {
	kill, err := c.begin(ctx)
	if err != nil {
		return t, fmt.Errorf("%s: %w", c.what, err)
	}
	err = until(ctx, 20*time.Millisecond, func() (bool, error) {
		n, err := count(c.kept)
		return n >= len(want)/2, err
	})
	if err := errors.Join(err, kill()); err != nil {
		return t, fmt.Errorf("%s: %w", c.what, err)
	}
	whole := map[string]fs.FileInfo{}
	err = eachSum(c.kept, func(path string, info fs.FileInfo, sum [sha256.Size]byte) {
		if want[sum] {
			whole[path] = info
		}
	})
	if err != nil {
		return t, err
	}
	if t.took, err = c.again(ctx); err != nil {
		return t, fmt.Errorf("%s, after the kill: %w", c.what, err)
	}
	t.done = len(whole)
	found := map[[sha256.Size]byte]bool{}
	err = eachSum(c.kept, func(path string, info fs.FileInfo, sum [sha256.Size]byte) {
		if before, ok := whole[path]; ok && (!os.SameFile(before, info) || !before.ModTime().Equal(info.ModTime())) {
			t.again++
		}
		if !want[sum] || found[sum] {
			t.left++
		}
		found[sum] = true
	})
	for sum := range want {
		if !found[sum] {
			t.lost++
		}
	}
	l.say("%s: %s", c.what, t)
	return t, err
}

// copier is the product, which copies into the library of its data folder.
func (im *importer) copier() copier {
	var job string
	start := func(ctx context.Context, bus bool) (err error) {
		im.up, err = im.lab.up(ctx, settings{data: im.data, allow: im.inbox, bus: bus})
		return err
	}
	return copier{
		what: "the product",
		kept: filepath.Join(im.data, "library"),
		begin: func(ctx context.Context) (func() error, error) {
			if err := start(ctx, true); err != nil {
				return nil, err
			}
			err := im.open(ctx)
			var index string
			if err == nil {
				index, _, err = im.automate(ctx, 0)
			}
			if err == nil {
				job, err = im.closed(ctx, event.AutomationOfIndex(index))
			}
			if err != nil {
				return nil, errors.Join(err, im.up.kill())
			}
			return im.up.kill, nil
		},
		again: func(ctx context.Context) (time.Duration, error) {
			begun := time.Now()
			// Nobody else is let to the broker, as in most deployments: what was in hand is then taken up at once.
			if err := start(ctx, false); err != nil {
				return 0, err
			}
			var j client.Job
			err := until(ctx, 20*time.Millisecond, func() (bool, error) {
				err := im.up.Get(ctx, "/import-jobs/"+job, &j)
				return j.Done(), err
			})
			took := time.Since(begun)
			if err == nil {
				err = im.whole(job, j.Progress.Imported)
			}
			return took, errors.Join(err, im.up.stop())
		},
	}
}

// outsider is a program that copies once and ends.
func outsider(what, kept, program string, args []string) copier {
	return copier{
		what: what,
		kept: kept,
		begin: func(ctx context.Context) (func() error, error) {
			cmd := exec.CommandContext(ctx, program, args...)
			cmd.Env = environ()
			if err := cmd.Start(); err != nil {
				return nil, err
			}
			return func() error {
				err := cmd.Process.Kill()
				_ = cmd.Wait() // it says that it was killed
				return err
			}, nil
		},
		again: func(ctx context.Context) (time.Duration, error) {
			begun := time.Now()
			err := copyTree(ctx, kept, program, args...)
			return time.Since(begun), err
		},
	}
}

// count is how many files there are below a folder, which need not be there yet.
func count(dir string) (n int, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			n++
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // moved meanwhile
		}
		return err
	})
	return n, err
}

// eachSum calls fn with the checksum of each file below dir.
func eachSum(dir string, fn func(path string, info fs.FileInfo, sum [sha256.Size]byte)) error {
	below := os.DirFS(dir)
	return fs.WalkDir(below, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		f, err := below.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		fn(path, info, [sha256.Size]byte(h.Sum(nil)))
		return nil
	})
}
