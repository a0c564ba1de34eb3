package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// gateway is an S3 server of this machine: versitygw, which keeps objects as files.
type gateway struct {
	dir   string // a folder per bucket
	url   string
	ended chan struct{} // closed when the program has ended,
	err   error         // this way
	cmd   *exec.Cmd
}

// The credentials of the gateway, and its buckets: of the source, of the library, and of rclone's copies.
const (
	s3ID, s3Secret       = "bench", "bench-secret"
	drops, shelf, copies = "drops", "shelf", "copies"
	gatewayRegion        = "us-east-1"
	gatewayStart         = 30 * time.Second
	transfers            = 16 // at a time, of product and rclone
)

// startGateway runs the program with these buckets.
func (l *lab) startGateway(ctx context.Context, program string) (g *gateway, err error) {
	addr, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	g = &gateway{dir: filepath.Join(l.dir, "buckets"), url: "http://" + addr, ended: make(chan struct{})}
	meta := filepath.Join(l.dir, "meta")
	for _, d := range []string{meta, filepath.Join(g.dir, drops), filepath.Join(g.dir, shelf), filepath.Join(g.dir, copies)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(filepath.Join(l.dir, "s3.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	g.cmd = exec.CommandContext(ctx, program, "--port", addr, "--access", s3ID, "--secret", s3Secret, "--region", gatewayRegion, "--quiet",
		"posix", "--sidecar", meta, g.dir)
	g.cmd.Stdout, g.cmd.Stderr = log, log
	if err := g.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start versitygw: %w", err)
	}
	go func() { g.err = g.cmd.Wait(); close(g.ended) }()
	wait, enough := context.WithTimeout(ctx, gatewayStart)
	defer enough()
	err = until(wait, 20*time.Millisecond, func() (bool, error) {
		select {
		case <-g.ended:
			said, _ := os.ReadFile(log.Name())
			return false, fmt.Errorf("versitygw ended: %w: %s", g.err, said)
		default:
		}
		conn, err := new(net.Dialer).DialContext(wait, "tcp", addr)
		if err == nil {
			err = conn.Close()
		}
		return err == nil, nil
	})
	if err != nil {
		g.stop()
		return nil, err
	}
	return g, nil
}

func (g *gateway) stop() {
	_ = g.cmd.Process.Kill() // nothing of it is needed any more
	<-g.ended
}

// connector is the request for one that reads the bucket of files.
func (g *gateway) connector() map[string]any {
	return map[string]any{
		"bucket": drops, "endpoint_url": g.url, "force_path_style": true, "region": gatewayRegion,
		"aws_access_key_id": s3ID, "aws_secret_access_key": s3Secret,
	}
}

// library is the flag for one in another bucket.
func (g *gateway) library() string {
	return "s3://" + shelf + "?region=" + gatewayRegion + "&path-style=true&endpoint=" + url.QueryEscape(g.url)
}

// rclone runs a copy with what turned out to be its best flags, and returns the highest of its resident memory, in MB.
func (l *lab) rclone(ctx context.Context, program string, g *gateway, from, to string) (peak float64, err error) {
	_, peak, err = l.lines(ctx, 0, program, "copy", from, to, "--config", "", "--s3-provider", "Other", "--s3-endpoint", g.url,
		"--s3-access-key-id", s3ID, "--s3-secret-access-key", s3Secret, "--s3-region", gatewayRegion, "--s3-force-path-style",
		"--transfers", fmt.Sprint(transfers), "--checkers", fmt.Sprint(transfers), "--multi-thread-streams", "4", "--s3-no-check-bucket")
	return peak, err
}

// clouds measures imports out of an S3 server, into a folder and into another bucket, beside rclone.
func clouds(ctx context.Context, l *lab) (rows []Row, err error) {
	const missing = "there is no rclone or versitygw beside millrace nor in PATH: `make bench` builds them"
	rclone, rerr := findProgram("rclone", l.program)
	versitygw, verr := findProgram("versitygw", l.program)
	for _, what := range []struct {
		name  string
		files int
		bytes bool
		write func(dir string) (int64, error)
	}{
		{fmt.Sprintf("%s × 1 MB", digits(float64(l.size.middling))), l.size.middling, false, func(dir string) (int64, error) {
			return writeFiles(dir, l.size.middling, 1_000_000)
		}},
		{fmt.Sprintf("%d × %d MiB", largeFiles, l.size.huge>>20), largeFiles, true, func(dir string) (int64, error) { return writeLarges(dir, l.size.huge) }},
	} {
		for _, to := range []string{"a folder", "another bucket"} {
			row := Row{
				What:   what.name + ", S3 to " + to + ": window close → job completed",
				Beside: "`rclone copy --transfers 16` + sync",
				Target: Target{Ratio: true, AtLeast: true, N: 1},
				How: "versitygw serves %s media files from this machine; `millrace up --workers 16` imports them: checksummed, probed, durable before they count. From the instant the window closes until the job's end. " +
					"The yardstick is `rclone copy --transfers 16 --checkers 16 --multi-thread-streams 4` of the same bucket and a sync of the volume; into another bucket both have the server copy what is large enough for that. Median of %d rounds in turns, each round a new index.",
			}
			if rerr != nil || verr != nil {
				row.Skipped = missing
				rows = append(rows, row)
				continue
			}
			sub := *l
			sub.dir = filepath.Join(l.dir, fmt.Sprint(len(rows)))
			got, err := sub.cloud(ctx, cloudBench{rclone: rclone, versitygw: versitygw, bucket: to != "a folder", b: importBench{
				files: what.files, bytes: what.bytes, write: what.write, row: row,
			}})
			if err := errors.Join(err, os.RemoveAll(sub.dir)); err != nil {
				return nil, err
			}
			rows = append(rows, got...)
		}
	}
	return rows, nil
}

// cloudBench is one figure about an import out of a bucket.
type cloudBench struct {
	rclone, versitygw string
	bucket            bool // the library is one
	b                 importBench
}

func (l *lab) cloud(ctx context.Context, c cloudBench) ([]Row, error) {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, err
	}
	g, err := l.startGateway(ctx, c.versitygw)
	if err != nil {
		return nil, err
	}
	defer g.stop()
	c.b.s3 = g
	write := c.b.write
	c.b.write = func(dir string) (int64, error) { // objects are put, so that the server knows them
		made := filepath.Join(l.dir, "made")
		total, err := write(made)
		if err == nil {
			_, err = l.rclone(ctx, c.rclone, g, made, ":s3:"+drops)
		}
		return total, errors.Join(err, os.RemoveAll(made))
	}
	target := filepath.Join(l.dir, "copy")
	to := target
	if c.bucket {
		c.b.library = g.library()
		target, to = filepath.Join(g.dir, copies, "all"), ":s3:"+copies+"/all"
	}
	theirs := 0.0
	c.b.copy = target
	c.b.yardstick = func(ctx context.Context, im *importer) error {
		peak, err := l.rclone(ctx, c.rclone, g, ":s3:"+drops, to)
		theirs = max(theirs, peak)
		return errors.Join(err, syncVolume(im.dir))
	}
	var ours float64
	c.b.peak = &ours
	rows, err := l.imports(ctx, c.b)
	if err != nil || !c.b.bytes || c.bucket {
		return rows, err
	}
	return append(rows, Row{
		What:      fmt.Sprintf("resident memory, %d workers, %d × %d MiB in flight", transfers, largeFiles, l.size.huge>>20),
		Measured:  Quantity{ours, "MB"},
		Yardstick: Quantity{theirs, "MB"},
		Beside:    "`rclone copy`",
		Target:    Target{N: 256, Unit: "MB"},
		How:       "The peak of that process's resident memory (VmHWM: broker, all services and program text) over these rounds.",
	}), nil
}
