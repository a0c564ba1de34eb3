package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// reference measures how fast small files become media, and media a run, when no bytes are kept.
func reference(ctx context.Context, l *lab) ([]Row, error) {
	return l.imports(ctx, importBench{
		files: l.size.files, none: true,
		write: func(dir string) (int64, error) { return writeFiles(dir, l.size.files, 0) },
		yardstick: func(_ context.Context, im *importer) error {
			n, err := readAll(im.inbox)
			if err == nil && n != im.files {
				err = fmt.Errorf("%d files are there, not %d", n, im.files)
			}
			return err
		},
		row: Row{
			What:   "small files by reference: window close → run published",
			Beside: "plain read of the same files",
			Target: Target{AtLeast: true, N: 2000, Unit: "files/s"},
			How: "`millrace up --library none` finds %s small media files in a folder (each read, checksummed, probed). From the instant the window closes, as the job's request says, until the `run.requested` message with exactly these files is stored. " +
				"The yardstick opens and reads the same files with 16 goroutines; both find them in the page cache. Median of %d rounds in turns, each round a new index.",
		},
	})
}

// small measures copies of many files, beside rclone.
func small(ctx context.Context, l *lab) ([]Row, error) {
	row := Row{
		What:   "files of 64 kB copied: window close → job completed",
		Beside: "`rclone copy --transfers 16` + sync",
		Target: Target{Ratio: true, AtLeast: true, N: 0.5},
		How: "`millrace up` copies %s media files of 64 kB into its library: checksummed, probed, on disk before they count. From the instant the window closes until the job's end. " +
			"The yardstick is `rclone copy --transfers 16 --checkers 16` of the same tree and a sync of the volume; both read from the page cache, and nothing of before waits for the disk. Median of %d rounds in turns, each round a new index.",
	}
	rclone, err := findProgram("rclone", l.program)
	if err != nil {
		row.Skipped = "there is no rclone beside millrace nor in PATH: `make bench` builds it"
		return []Row{row}, nil //nolint:nilerr // it is said in the row
	}
	return l.imports(ctx, importBench{
		files: l.size.files,
		write: func(dir string) (int64, error) { return writeFiles(dir, l.size.files, 64<<10) },
		yardstick: func(ctx context.Context, im *importer) error {
			return copyTree(ctx, im.copy, rclone, im.rcloneArgs()...)
		},
		row: row,
	})
}

func (im *importer) rcloneArgs() []string {
	return []string{"copy", im.inbox, im.copy, "--transfers", "16", "--checkers", "16", "--config", ""}
}

// largeFiles is how many.
const largeFiles = 4

// large measures copies of large files, beside cp.
func large(ctx context.Context, l *lab) ([]Row, error) {
	return l.imports(ctx, importBench{
		files: largeFiles, bytes: true,
		write: func(dir string) (int64, error) { return writeLarges(dir, l.size.large) },
		yardstick: func(ctx context.Context, im *importer) error {
			return copyTree(ctx, im.copy, "cp", "-r", im.inbox, im.copy)
		},
		row: Row{
			What:   fmt.Sprintf("%d × %d MiB copied: window close → job completed", largeFiles, l.size.large>>20),
			Beside: "`cp` + sync",
			Target: Target{Ratio: true, AtLeast: true, N: 0.9},
			How: "`millrace up` copies %s videos into its library: checksummed, probed, on disk before they count. From the instant the window closes until the job's end. " +
				"The yardstick is `cp -r` of the same folder and a sync of the volume; both read from the page cache, and nothing of before waits for the disk. Median of %d rounds in turns, each round a new index.",
		},
	})
}

// importBench is one figure about an import.
type importBench struct {
	files     int
	bytes     bool // count these, not files
	none      bool // no library; measure to the run, not to the end of the job
	write     func(dir string) (int64, error)
	yardstick func(context.Context, *importer) error
	timed     func(context.Context, *importer) (time.Duration, error) // a yardstick that says itself how long it took
	row       Row

	s3      *gateway // serves the files; nil: they are in a folder
	library string   // default: a folder
	copy    string   // where the yardstick leaves its copy; default: a folder
	peak    *float64 // takes the peak of resident memory, in MB; nil: nobody asks
}

// importer is a running product with a folder of files.
type importer struct {
	importBench
	*lab
	up        *product
	inbox     string
	data      string
	connector string
	jobs      *store.Register[store.Job]
	windows   *window.Windows
	used      []float64 // CPU seconds of each round
}

// room is how much more space than the data takes a figure wants.
const room = 1 << 30

func (l *lab) imports(ctx context.Context, b importBench) (_ []Row, err error) {
	im := &importer{importBench: b, lab: l, inbox: filepath.Join(l.dir, "inbox"), data: filepath.Join(l.dir, "data")}
	im.copy = cmp.Or(b.copy, filepath.Join(l.dir, "copy"))
	if b.s3 != nil {
		im.inbox = filepath.Join(b.s3.dir, drops)
	}
	if err := os.MkdirAll(im.inbox, 0o755); err != nil {
		return nil, err
	}
	total, err := im.write(im.inbox)
	if err != nil {
		return nil, err
	}
	if free, err := freeSpace(l.dir); err != nil || free < total+room {
		return nil, errors.Join(err, fmt.Errorf("%d MB are free, not enough for a copy of %d MB", free>>20, total>>20))
	}
	s := settings{data: im.data, allow: im.inbox, bus: true}
	if s.library = im.library; im.none {
		s.library = "none"
	}
	if im.s3 != nil {
		s.hooks = "127.0.0.1"
		s.flags = []string{"--workers", fmt.Sprint(transfers)}
		s.environ = []string{"AWS_ACCESS_KEY_ID=" + s3ID, "AWS_SECRET_ACCESS_KEY=" + s3Secret}
	}
	if im.up, err = l.up(ctx, s); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, im.up.stop()) }()
	if err := im.open(ctx); err != nil {
		return nil, err
	}
	amount, unit := float64(im.files), "files/s"
	if im.bytes {
		amount, unit = float64(total)/1e6, "MB/s"
	}
	p, err := l.alternate(
		func(round int) (float64, error) {
			took, err := im.product(ctx, round)
			return amount / took.Seconds(), err
		},
		func(int) (float64, error) {
			took, err := im.plain(ctx)
			return amount / took.Seconds(), err
		})
	if err != nil {
		return nil, im.up.explain(err)
	}
	row := im.row
	row.How = fmt.Sprintf(row.How, digits(float64(im.files)), len(p.ours))
	p.into(&row, unit)
	row.Also = append(row.Also, fmt.Sprintf("CPU time of the product: %s s per round", digits(median(im.used))))
	if _, peak, err := im.up.memory(); err == nil {
		row.Also = append(row.Also, "peak resident memory: "+digits(peak)+" MB")
		if im.peak != nil {
			*im.peak = peak
		}
	}
	return []Row{row}, nil
}

func (im *importer) open(ctx context.Context) (err error) {
	if im.jobs, err = store.Open[store.Job](ctx, im.up.bus, topology.JobRecords); err != nil {
		return err
	}
	if im.windows, err = window.Bind(ctx, im.up.bus); err != nil {
		return err
	}
	var c struct {
		ID string `json:"connector_id"`
	}
	route, body := "/connectors/dir", map[string]any{"path": im.inbox}
	if im.s3 != nil {
		route, body = "/connectors/s3", im.s3.connector()
	}
	body["name"], body["import_mode"] = "Bench", event.NewOnly
	err = im.up.Do(ctx, http.MethodPost, route, body, &c)
	im.connector = c.ID
	return err
}

// quiet brings caches and disk into the same state before each measurement: files read once, nothing waiting to be
// written.
func (im *importer) quiet() error {
	if _, err := readAll(im.inbox); err != nil {
		return err
	}
	return syncVolume(im.dir)
}

// plain is the yardstick.
func (im *importer) plain(ctx context.Context) (time.Duration, error) {
	if err := im.quiet(); err != nil {
		return 0, err
	}
	if im.timed != nil {
		return im.timed(ctx, im)
	}
	start := time.Now()
	err := im.yardstick(ctx, im)
	took := time.Since(start)
	return took, errors.Join(err, os.RemoveAll(im.copy))
}

// copyTree runs a program that copies to dir and waits until the copies are on disk.
func copyTree(ctx context.Context, dir, program string, args ...string) error {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, out)
	}
	return syncVolume(dir)
}

// product has the files imported into a new index and returns how long that took from the close of the window.
func (im *importer) product(ctx context.Context, round int) (time.Duration, error) {
	if err := im.quiet(); err != nil {
		return 0, err
	}
	index, prompt, err := im.automate(ctx, round)
	if err != nil {
		return 0, err
	}
	job, err := im.closed(ctx, event.AutomationOfIndex(index))
	if err != nil {
		return 0, err
	}
	before, err := im.up.cpu()
	if err != nil {
		return 0, err
	}
	var took time.Duration
	if im.none {
		took, err = im.dispatched(ctx, prompt, job)
	} else {
		took, err = im.completed(ctx, job)
	}
	if err != nil {
		return 0, err
	}
	after, err := im.up.cpu()
	if err != nil {
		return 0, err
	}
	im.used = append(im.used, (after - before).Seconds())
	err = im.up.Do(ctx, http.MethodPost, "/indexes/"+index+"/automations/import/pause", nil, nil)
	kept := filepath.Join(im.data, "library", index)
	if im.library != "" {
		kept = filepath.Join(im.s3.dir, shelf, index)
	}
	return took, errors.Join(err, os.RemoveAll(kept))
}

// automate makes a new index that the folder is imported into, and a prompt.
func (im *importer) automate(ctx context.Context, round int) (index, prompt string, err error) {
	name := fmt.Sprintf("Round %d", round+1)
	var made struct {
		Index  string `json:"index_id"`
		Prompt string `json:"prompt_id"`
	}
	if err := im.up.Do(ctx, http.MethodPost, "/indexes", map[string]any{"name": name}, &made); err != nil {
		return "", "", err
	}
	err = im.up.Do(ctx, http.MethodPost, "/prompts", map[string]any{
		"name": name, "prompt_text": "What is it?", "json_schema": map[string]any{"type": "object"},
	}, &made)
	if err != nil {
		return "", "", err
	}
	return made.Index, made.Prompt, im.up.Do(ctx, http.MethodPut, "/indexes/"+made.Index+"/automations/import", map[string]any{
		"connector_id": im.connector, "debounce_interval": interval, "prompt_preset": map[string]any{"prompt_id": made.Prompt},
	}, nil)
}

// closed waits for the window to close and returns its job.
func (im *importer) closed(ctx context.Context, automation string) (job string, err error) {
	err = until(ctx, 20*time.Millisecond, func() (bool, error) {
		r, err := im.windows.Get(ctx, automation)
		job = r.LastJob
		return job != "", err
	})
	return job, err
}

// requested returns the record of a job once it is there and done says so.
func (im *importer) requested(ctx context.Context, id string, done func(store.Job) bool) (job store.Job, err error) {
	err = until(ctx, 10*time.Millisecond, func() (bool, error) {
		job, _, err = im.jobs.Get(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		return err == nil && done(job), err
	})
	return job, err
}

// completed waits for the end of the job. The record says when it was requested and when it ended.
func (im *importer) completed(ctx context.Context, id string) (time.Duration, error) {
	job, err := im.requested(ctx, id, func(j store.Job) bool { return j.Status.Terminal() })
	if err != nil {
		return 0, err
	}
	return job.EndedAt.Sub(job.CreatedAt), im.whole(job.ID, job.Progress.Imported)
}

// dispatched waits for the job's run to be published. The broker says when that was.
func (im *importer) dispatched(ctx context.Context, prompt, id string) (time.Duration, error) {
	runs, err := im.up.bus.JetStream().Stream(ctx, names.Stream(topology.Runs))
	if err != nil {
		return 0, err
	}
	var stored *jetstream.RawStreamMsg
	err = until(ctx, 10*time.Millisecond, func() (bool, error) {
		stored, err = runs.GetLastMsgForSubject(ctx, names.Subject("run", "requested", prompt))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return 0, err
	}
	var run event.RunRequested
	if err := json.Unmarshal(stored.Data, &run); err != nil {
		return 0, err
	}
	job, err := im.requested(ctx, id, func(store.Job) bool { return true })
	if err == nil && run.Job != job.ID {
		err = fmt.Errorf("the run is of job %s, not of %s", run.Job, job.ID)
	}
	if err != nil {
		return 0, err
	}
	return stored.Time.Sub(job.CreatedAt), im.whole(job.ID, run.MediaCount)
}

// whole fails unless the job imported everything: a figure of half a job is worth nothing.
func (im *importer) whole(job string, n int) error {
	if n != im.files {
		return fmt.Errorf("job %s imported %d files, not %d", job, n, im.files)
	}
	return nil
}

// findProgram looks beside a program and then in PATH.
func findProgram(name, beside string) (string, error) {
	path := filepath.Join(filepath.Dir(beside), name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return exec.LookPath(name)
}
