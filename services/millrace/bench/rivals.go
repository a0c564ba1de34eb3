package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// rivals measures what one would use instead: Benthos, the engine of Redpanda Connect, and the consumer of a queue that one
// writes first. Each is built from a module of its own, in the folder rivals. What rclone takes is the yardstick of small.
func rivals(ctx context.Context, l *lab) (rows []Row, err error) {
	for _, r := range []struct {
		name, program string
		bench         func(program string, use *usage) importBench
	}{
		{"small", "benthos", func(program string, use *usage) importBench {
			return importBench{
				files: l.size.files,
				write: func(dir string) (int64, error) { return writeFiles(dir, l.size.files, 64<<10) },
				timed: func(ctx context.Context, im *importer) (time.Duration, error) { return im.benthos(ctx, program, use) },
				row: Row{
					What: "files of 64 kB copied, beside Benthos", Beside: "Benthos + sync", Target: Target{Ratio: true, AtLeast: true, N: 1},
					How: "The product as for `small`, %s files. The yardstick is Benthos 4.60, which reads files whole and writes them with 16 outputs at a time, " +
						"and a sync of the volume. It checksums and records nothing, and begins anew when it was killed. Median of %d rounds in turns.",
				},
			}
		}},
		{"large", "benthos", func(program string, use *usage) importBench {
			return importBench{
				files: largeFiles, bytes: true,
				write: func(dir string) (int64, error) { return writeLarges(dir, l.size.large) },
				timed: func(ctx context.Context, im *importer) (time.Duration, error) { return im.benthos(ctx, program, use) },
				row: Row{
					What:   fmt.Sprintf("%d × %d MiB copied, beside Benthos", largeFiles, l.size.large>>20),
					Beside: "Benthos + sync", Target: Target{Ratio: true, AtLeast: true, N: 1},
					How: "As before, with %s videos, each of which Benthos holds in memory. Median of %d rounds in turns.",
				},
			}
		}},
		{"reference", "onebyone", func(program string, use *usage) importBench {
			return importBench{
				files: l.size.files, none: true,
				write: func(dir string) (int64, error) { return writeFiles(dir, l.size.files, 0) },
				timed: func(ctx context.Context, im *importer) (time.Duration, error) { return im.oneByOne(ctx, program, use) },
				row: Row{
					What: "small files by reference, beside a consumer of one file at a time", Beside: "a consumer of watermill-nats",
					Target: Target{Ratio: true, AtLeast: true, N: 5},
					How: "The product as for `reference`, %s files. The yardstick reads and checksums each file and publishes what it found, one message after the other, " +
						"on a broker whose every acknowledged write is on disk; it is timed once all paths are in its queue. Median of %d rounds in turns.",
				},
			}
		}},
	} {
		sub := *l
		sub.dir = filepath.Join(l.dir, r.name)
		program, perr := findProgram(r.program, l.program)
		var use usage
		b := r.bench(program, &use)
		if perr != nil {
			b.row.Skipped = "there is no " + r.program + " beside millrace nor in PATH: `make bench` builds it"
			rows = append(rows, b.row)
			continue
		}
		if err := os.MkdirAll(sub.dir, 0o755); err != nil {
			return nil, err
		}
		got, err := sub.imports(ctx, b)
		if err := errors.Join(err, os.RemoveAll(sub.dir)); err != nil {
			return nil, err
		}
		got[0].Also = append(got[0].Also, use.String())
		rows = append(rows, got...)
	}
	return rows, nil
}

// usage is what the rounds of a yardstick took.
type usage struct {
	cpu  []float64 // s
	peak float64   // MB
}

func (u *usage) String() string {
	return fmt.Sprintf("CPU time of the yardstick: %s s per round; its peak resident memory: %s MB", digits(median(u.cpu)), digits(u.peak))
}

// rival runs the program of a yardstick and returns what it wrote.
func (u *usage) rival(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var out, said bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = environ(), &out, &said
	peak, err := watched(cmd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(program), err, said.Bytes())
	}
	u.peak = max(u.peak, peak)
	u.cpu = append(u.cpu, (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds())
	return out.Bytes(), nil
}

// benthosArgs has Benthos copy the inbox, and writes down how.
func (im *importer) benthosArgs() ([]string, error) {
	path := filepath.Join(im.dir, "benthos.json") // which is YAML
	out := map[string]any{"file": map[string]any{
		"codec": "all-bytes", "path": fmt.Sprintf(`%s/${! metadata("path").string().trim_prefix(%q) }`, im.copy, im.inbox+"/"),
	}}
	config, err := json.Marshal(map[string]any{
		"logger": map[string]any{"level": "WARN"},
		"input":  map[string]any{"file": map[string]any{"paths": []string{im.inbox + "/**"}, "scanner": map[string]any{"to_the_end": map[string]any{}}}},
		"output": map[string]any{"broker": map[string]any{"pattern": "greedy", "copies": 16, "outputs": []any{out}}},
	})
	if err != nil {
		return nil, err
	}
	return []string{"run", path}, os.WriteFile(path, config, 0o600)
}

func (im *importer) benthos(ctx context.Context, program string, use *usage) (time.Duration, error) {
	args, err := im.benthosArgs()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := use.rival(ctx, program, args...); err != nil {
		return 0, err
	}
	if err := syncVolume(im.copy); err != nil {
		return 0, err
	}
	took := time.Since(start)
	n, err := readAll(im.copy)
	if err == nil && n != im.files {
		err = fmt.Errorf("benthos copied %d files of %d", n, im.files)
	}
	return took, errors.Join(err, os.RemoveAll(im.copy))
}

func (im *importer) oneByOne(ctx context.Context, program string, use *usage) (time.Duration, error) {
	dir := filepath.Join(im.dir, "queue")
	out, err := use.rival(ctx, program, dir, im.inbox)
	var seconds float64
	if err == nil {
		err = json.Unmarshal(out, &seconds)
	}
	return time.Duration(seconds * float64(time.Second)), errors.Join(err, os.RemoveAll(dir))
}
