package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"millrace/services/millrace/client"
)

// pollEvery is how often a job that is being watched is looked at.
const pollEvery = 200 * time.Millisecond

// watchJob follows a job to its end: with a progress bar on a terminal, with a line per change otherwise, made by line.
func watchJob(ctx context.Context, c *client.Client, id string, w io.Writer, line func(client.Job) string) (client.Job, error) {
	if f, ok := w.(*os.File); ok && isTerminal(f) {
		return watchBar(ctx, c, id, w)
	}
	last := ""
	return pollJob(ctx, c, id, func(j client.Job) {
		if s := line(j); s != last {
			last = s
			fmt.Fprintln(w, s)
		}
	})
}

// pollJob calls each with the job until it has ended.
func pollJob(ctx context.Context, c *client.Client, id string, each func(client.Job)) (client.Job, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var j client.Job
		if err := c.Get(ctx, pathOfJob(id, ""), &j); err != nil {
			return j, err
		}
		each(j)
		if j.Done() {
			return j, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return j, ctx.Err()
		}
	}
}

func watchBar(ctx context.Context, c *client.Client, id string, w io.Writer) (client.Job, error) {
	p := mpb.NewWithContext(ctx, mpb.WithOutput(w), mpb.WithWidth(40))
	var now client.Job
	bar := p.AddBar(0,
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return fmt.Sprintf("%-10s", now.Status) })),
		mpb.AppendDecorators(
			decor.CountersNoUnit(" %d/%d files"),
			decor.Any(func(decor.Statistics) string {
				return fmt.Sprintf("  %d imported, %d skipped, %d failed", now.Progress.Imported, now.Progress.Skipped, now.Progress.Failed)
			}),
		),
	)
	j, err := pollJob(ctx, c, id, func(j client.Job) {
		now = j
		bar.SetTotal(int64(j.Progress.Total), false)
		bar.SetCurrent(int64(settled(j)))
	})
	bar.SetTotal(int64(max(settled(j), 1)), true)
	p.Wait()
	return j, err
}

func settled(j client.Job) int { return j.Progress.Imported + j.Progress.Skipped + j.Progress.Failed }

// jsonLine is a job's progress as one line for programs.
func jsonLine(j client.Job) string {
	data, err := json.Marshal(map[string]any{
		"job_id": j.ID, "status": j.Status, "total_files": j.Progress.Total, "imported": j.Progress.Imported,
		"skipped": j.Progress.Skipped, "failed": j.Progress.Failed, "bytes_transferred": j.Progress.Bytes,
	})
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// barLine is a job's progress as one line for people who read a log.
func barLine(j client.Job) string {
	const width = 30
	done := 0
	if j.Progress.Total > 0 {
		done = width * settled(j) / j.Progress.Total
	}
	return fmt.Sprintf("  [%s%s] %d/%d  %s", strings.Repeat("#", done), strings.Repeat("-", width-done), settled(j), j.Progress.Total, j.Status)
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
