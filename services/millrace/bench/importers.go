package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	fewWorkers = 4                      // of each importer
	farAway    = 100 * time.Millisecond // how long an answer of storage is on its way
)

// importers measures what further importer processes gain where one waits for its storage.
func importers(ctx context.Context, l *lab) (_ []Row, err error) {
	row := Row{
		What:   "files out of storage that is far away, by 4 importers",
		Beside: "by 1", Target: Target{Ratio: true, AtLeast: true, N: 3},
		How: fmt.Sprintf("A one-time job of %s small pictures by reference, in an S3 server whose answers take %s longer. `millrace up` with %d workers, alone and with further `millrace importer` processes of as many on its broker, "+
			"each time with a data folder of its own; from the request until the job has ended. On two cores only waiting can be shared out. One round.", digits(float64(l.size.middling)), farAway, fewWorkers),
	}
	program, err := findProgram("versitygw", l.program)
	if err != nil {
		row.Skipped = "there is no versitygw beside millrace nor in PATH: `make bench` builds it"
		return []Row{row}, nil
	}
	g, err := l.startGateway(ctx, program)
	if err != nil {
		return nil, err
	}
	defer g.stop()
	if _, err := writeFiles(filepath.Join(g.dir, drops), l.size.middling, 0, "photo.png"); err != nil {
		return nil, err
	}
	near, err := url.Parse(g.url)
	if err != nil {
		return nil, err
	}
	there := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(near)
		r.Out.Host = r.In.Host // which is signed
	}}
	far, stop, err := serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sleep(r.Context(), farAway) == nil {
			there.ServeHTTP(w, r)
		}
	}))
	if err != nil {
		return nil, err
	}
	defer stop()
	connector := g.connector()
	connector["endpoint_url"] = far
	rates := map[int]float64{}
	for _, n := range []int{1, 2, 4} {
		took, err := l.importedBy(ctx, n, connector)
		if err != nil {
			return nil, fmt.Errorf("%d importers: %w", n, err)
		}
		rates[n] = float64(l.size.middling) / took.Seconds()
		row.Also = append(row.Also, fmt.Sprintf("%d: %s files/s", n, digits(rates[n])))
		l.say("%s", row.Also[len(row.Also)-1])
	}
	row.Measured, row.Yardstick = Quantity{rates[4], "files/s"}, Quantity{rates[1], "files/s"}
	return []Row{row}, nil
}

// importedBy has n importers import what a connector shows.
func (l *lab) importedBy(ctx context.Context, n int, connector map[string]any) (took time.Duration, err error) {
	dir := filepath.Join(l.dir, fmt.Sprint("by-", n))
	s := settings{data: filepath.Join(dir, "data"), library: "none", bus: true, hooks: "127.0.0.1", flags: []string{"--workers", fmt.Sprint(fewWorkers)}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	up, err := l.up(ctx, s)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, up.stop()) }()
	further := make([]*product, n-1)
	defer func() {
		for _, p := range further {
			if p != nil {
				err = errors.Join(err, p.stop())
			}
		}
	}()
	for i := range further {
		if further[i], err = l.further(ctx, up, s); err != nil {
			return 0, err
		}
	}
	return up.job(ctx, "s3", connector, l.size.middling)
}

// further starts one more importer on the broker of up.
func (l *lab) further(ctx context.Context, up *product, s settings) (*product, error) {
	ops, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	p := &product{ended: make(chan error, 1)}
	p.cmd = exec.CommandContext(ctx, l.program, append([]string{"importer"}, append(s.flags, "--nats-url", up.conn.ConnectedUrl(), "--library", s.library,
		"--secrets-key", filepath.Join(s.data, "secrets.key"), "--allow-endpoint", s.hooks, "--ops", ops, "--log-level", "warn")...)...)
	p.cmd.Env, p.cmd.Stderr = environ(), os.Stderr
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.ended <- p.cmd.Wait() }()
	return p, p.waitReady(ctx, "http://"+ops+"/readyz")
}
