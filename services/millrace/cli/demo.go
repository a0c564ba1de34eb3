package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/services/millrace"
	"millrace/services/millrace/client"
	"millrace/shared/event"
	"millrace/shared/media/samples"
)

// demoCommand tells the whole story on real files in a temporary folder, and fails when any sentence of it is not true.
type demoCommand struct {
	Keep bool `help:"Leave the folder behind."`
}

// demoTimeout bounds the demo; it takes about half of that.
const demoTimeout = 40 * time.Second

// Run runs the demo.
func (c *demoCommand) Run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "millrace-demo-")
	if err != nil {
		return err
	}
	if !c.Keep {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	d := &demo{inbox: filepath.Join(dir, "inbox"), began: time.Now()}
	if err := os.Mkdir(d.inbox, 0o755); err != nil {
		return err
	}
	opts := millrace.Options{
		Data: filepath.Join(dir, "data"), HTTP: "127.0.0.1:0", ExtraDebounceIntervals: []string{"2s"},
		Executor: `exec=printf '{"summary":"%s, %s"}' "$MILLRACE_MEDIA_TYPE" "$(wc -c <"$MILLRACE_MEDIA_PATH" | tr -d ' ') bytes"`,
	}
	opts.AllowDir = []string{d.inbox}
	opts.Prefix = "demo"
	app, err := millrace.New(ctx, opts, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- app.Run(run) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	if err := app.WaitReady(ctx); err != nil {
		return err
	}
	d.client = client.New(app.URL(), app.Key)
	if d.pipeline, err = setUp(ctx, d.client, "Demo", d.inbox, "2s"); err != nil {
		return err
	}
	d.say("Everything runs in %s: an embedded broker, five services, an executor.", dir)
	for _, scene := range []func(context.Context) error{d.burst, d.touch, d.overwrite, d.pause} {
		if err := scene(ctx); err != nil {
			return fmt.Errorf("the demo's story does not hold: %w", err)
		}
	}
	fmt.Printf("\nAll of it held, in %s.\n", time.Since(d.began).Round(100*time.Millisecond))
	return nil
}

type demo struct {
	pipeline
	client *client.Client
	inbox  string
	began  time.Time
	jobs   int // seen so far
	runs   int
}

func (d *demo) say(format string, args ...any) {
	fmt.Printf("\n%5.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// expect is a sentence of the story.
func expect(holds bool, format string, args ...any) error {
	if holds {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// drop writes a sample into the inbox as an uploader does.
func (d *demo) drop(sample, name string) error {
	data, err := samples.FS.ReadFile(sample)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.inbox, name), data, 0o644)
}

// difficult are names that programs stumble over.
func difficult() []string {
	return []string{
		"with space.mp4", "hash # and percent %20.mp4", "a+b.mp4", "line\nbreak.mp4", "🎬 take one.mp4",
		"caf\u00e9.mp4", "cafe\u0301.mp4", strings.Repeat("n", 251) + ".mp4",
	}
}

// burst drops everything there is in three bursts and follows it through.
func (d *demo) burst(ctx context.Context) error {
	bad := slices.Sorted(maps.Keys(samples.Bad))
	outcome := map[string]string{}
	for _, name := range samples.Good {
		outcome[name] = "imported"
	}
	for name, what := range samples.Bad {
		outcome[name] = what
	}
	bursts := [][]string{samples.Good, bad, difficult()}
	var deadlines []time.Time
	for i, names := range bursts {
		for j, name := range names {
			sample := name
			if i == 2 {
				outcome[name] = "imported"
				sample = samples.Good[j%4]
			}
			if err := d.drop(sample, name); err != nil {
				return err
			}
		}
		a, err := d.window(ctx, func(a client.Automation) bool {
			return a.NextFireAt != nil && (i == 0 || a.NextFireAt.After(deadlines[i-1]))
		})
		if err != nil {
			return fmt.Errorf("burst %d: %w", i+1, err)
		}
		deadlines = append(deadlines, *a.NextFireAt)
		word := "extends: it"
		if i == 0 {
			word = "opens: it"
		}
		d.say("%d files dropped. The window %s will close at %s.", len(names), word, a.NextFireAt.Local().Format("15:04:05.000"))
		if i < len(bursts)-1 {
			wait(ctx, 700*time.Millisecond)
		}
	}
	job, err := d.nextJob(ctx)
	if err != nil {
		return err
	}
	d.say("Quiet for 2 s. The window closes and becomes job %s.", job.ID)
	if job, err = watchJob(ctx, d.client, job.ID, os.Stdout, barLine); err != nil {
		return err
	}
	if err := d.table(ctx, job, outcome); err != nil {
		return err
	}
	return d.follow(ctx, job)
}

// table prints what became of every file and holds it against what should have.
func (d *demo) table(ctx context.Context, job client.Job, want map[string]string) error {
	got := map[string]string{}
	videos, err := d.client.Videos(ctx, d.Index)
	if err != nil {
		return err
	}
	details := map[string]string{}
	for _, v := range videos {
		if slices.Contains(job.Videos, v.ID) {
			got[v.Title] = "imported"
			if v.Duration != nil && *v.Duration > 0 {
				details[v.Title] = fmt.Sprintf("%s, %.1f s", v.Type, *v.Duration)
			} else {
				details[v.Title] = v.Type
			}
		}
	}
	for _, f := range job.Failed {
		got[f["path"]] = "failed: " + strings.SplitN(f["error"], ":", 2)[0]
		details[f["path"]] = f["error"]
	}
	for _, f := range job.Skipped {
		got[f["path"]] = "skipped: " + f["reason"]
	}
	fmt.Println()
	for _, name := range slices.Sorted(maps.Keys(got)) {
		shown := strings.Trim(strconv.Quote(name), `"`)
		if len(shown) > 32 {
			shown = shown[:29] + "..."
		}
		fmt.Printf("  %-32s  %-34s  %s\n", shown, got[name], details[name])
	}
	for name, w := range want {
		if reason, skipped := strings.CutPrefix(w, "skipped: "); skipped {
			w = "skipped: " + event.SkipReason(reason).Phrase()
		}
		if err := expect(got[name] == w, "%q should be %q and is %q", name, w, got[name]); err != nil {
			return err
		}
	}
	return expect(len(got) == len(want) && job.Progress.Total == len(want),
		"%d files were dropped, the job knows %d and counts %d", len(want), len(got), job.Progress.Total)
}

// follow shows the run of a job and holds it against the job.
func (d *demo) follow(ctx context.Context, job client.Job) error {
	run, err := d.nextRun(ctx)
	if err != nil {
		return err
	}
	slices.Sort(job.Videos)
	slices.Sort(run.Context.Videos)
	d.say("Run %s (%s): %s, %d videos.", run.ID, run.Prompt, run.Status, len(run.Context.Videos))
	if err := expect(slices.Equal(job.Videos, run.Context.Videos), "the run's videos are not exactly the job's"); err != nil {
		return err
	}
	for i, v := range run.Context.Videos {
		var p client.Page[struct {
			Metadata map[string]any `json:"metadata"`
		}]
		if err := d.client.Get(ctx, "/prompt-runs/"+run.ID+"/results?video_id="+v, &p); err != nil {
			return err
		}
		if err := expect(len(p.Data) == 1 && p.Data[0].Metadata["summary"] != nil, "no result for %s", v); err != nil {
			return err
		}
		if i < 3 {
			fmt.Printf("  %s  %v\n", v, p.Data[0].Metadata["summary"])
		}
	}
	if n := len(run.Context.Videos); n > 3 {
		fmt.Printf("  … and %d more\n", n-3)
	}
	return nil
}

// touch changes times and rewrites the same bytes: nothing may be imported twice.
func (d *demo) touch(ctx context.Context) error {
	before, err := d.client.Videos(ctx, d.Index)
	if err != nil {
		return err
	}
	now := time.Now()
	if err := os.Chtimes(filepath.Join(d.inbox, "video.mp4"), now, now); err != nil {
		return err
	}
	if err := d.drop("photo.png", "photo.png"); err != nil {
		return err
	}
	d.say("video.mp4 is touched and photo.png written again with the same bytes.")
	job, err := d.nextJob(ctx)
	if err != nil {
		return err
	}
	if job, err = pollJob(ctx, d.client, job.ID, func(client.Job) {}); err != nil {
		return err
	}
	for _, f := range job.Skipped {
		fmt.Printf("  %-32s  skipped: %s\n", f["path"], f["reason"])
		if err := expect(f["reason"] == "unchanged", "%s should be unchanged and is %q", f["path"], f["reason"]); err != nil {
			return err
		}
	}
	after, err := d.client.Videos(ctx, d.Index)
	if err != nil {
		return err
	}
	return errors.Join(
		expect(len(job.Skipped) > 0 && len(job.Videos) == 0, "the job imported %d again", len(job.Videos)),
		expect(len(after) == len(before), "there were %d media and now there are %d", len(before), len(after)),
	)
}

// overwrite replaces a file: the new version alone comes in.
func (d *demo) overwrite(ctx context.Context) error {
	if err := d.drop("video.mov", "video.mp4"); err != nil {
		return err
	}
	d.say("video.mp4 is overwritten with other bytes: a new window, job and run for the new version alone.")
	job, err := d.nextJob(ctx)
	if err != nil {
		return err
	}
	if job, err = pollJob(ctx, d.client, job.ID, func(client.Job) {}); err != nil {
		return err
	}
	if err := expect(len(job.Videos) == 1 && job.Progress.Total == 1, "the job has %d files, %d imported", job.Progress.Total, len(job.Videos)); err != nil {
		return err
	}
	return d.follow(ctx, job)
}

// pause drops while paused: nothing starts, and nothing is lost.
func (d *demo) pause(ctx context.Context) error {
	path := pathOfAutomation(d.Index, "")
	if err := d.client.Do(ctx, http.MethodPost, path+"/pause", nil, nil); err != nil {
		return err
	}
	if err := d.drop("audio.wav", "while paused.wav"); err != nil {
		return err
	}
	d.say("The automation is paused, and a file dropped.")
	if _, err := d.window(ctx, func(a client.Automation) bool { return a.PendingSince != nil }); err != nil {
		return err
	}
	wait(ctx, 3*time.Second)
	var jobs []client.Job
	if err := d.client.Get(ctx, "/import-jobs", &jobs); err != nil {
		return err
	}
	if err := expect(len(jobs) == d.jobs, "a job started while paused"); err != nil {
		return err
	}
	if err := d.client.Do(ctx, http.MethodPost, path+"/resume", nil, nil); err != nil {
		return err
	}
	d.say("3 s later no job has started. It is resumed.")
	job, err := d.nextJob(ctx)
	if err != nil {
		return err
	}
	if job, err = pollJob(ctx, d.client, job.ID, func(client.Job) {}); err != nil {
		return err
	}
	if err := expect(len(job.Videos) == 1, "the file dropped while paused was not imported"); err != nil {
		return err
	}
	return d.follow(ctx, job)
}

// window waits for a state of the automation.
func (d *demo) window(ctx context.Context, ok func(client.Automation) bool) (a client.Automation, err error) {
	err = until(ctx, "the window to move", func() (bool, error) {
		err := d.client.Get(ctx, pathOfAutomation(d.Index, ""), &a)
		return ok(a), err
	})
	return a, err
}

// nextJob waits for one more job than there was.
func (d *demo) nextJob(ctx context.Context) (client.Job, error) {
	var jobs []client.Job
	err := until(ctx, "the next job", func() (bool, error) {
		jobs = nil
		err := d.client.Get(ctx, "/import-jobs", &jobs)
		return len(jobs) > d.jobs, err
	})
	if err != nil {
		return client.Job{}, err
	}
	d.jobs++
	return jobs[0], expect(len(jobs) == d.jobs, "there are %d jobs instead of %d", len(jobs), d.jobs)
}

// nextRun waits for one more run than there was, and for its end.
func (d *demo) nextRun(ctx context.Context) (client.Run, error) {
	var runs []client.Run
	err := until(ctx, "the run to end", func() (bool, error) {
		runs = nil
		err := d.client.Get(ctx, "/prompt-runs", &runs)
		return len(runs) > d.runs && runs[0].Done(), err
	})
	if err != nil {
		return client.Run{}, err
	}
	d.runs++
	var run client.Run
	if err := d.client.Get(ctx, "/prompt-runs/"+runs[0].ID, &run); err != nil {
		return run, err
	}
	return run, errors.Join(
		expect(len(runs) == d.runs, "there are %d runs instead of %d", len(runs), d.runs),
		expect(run.Status == "completed", "the run ended %s", run.Status),
	)
}

// until polls a fact until it holds.
func until(ctx context.Context, what string, fact func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := fact()
		if err != nil || ok {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w", what, ctx.Err())
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
