package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"millrace/shared/event"
	"millrace/shared/topology"
)

// clients is how many wait for an answer at a time.
const clients = 64

// header is what a client of the product sends with each request.
func (p *product) header() http.Header { return http.Header{"X-API-Key": {p.key}} }

// newJobs measures how many import jobs per second are asked for, each durable, and once whatever happens, when it is
// answered.
func newJobs(ctx context.Context, l *lab) (_ []Row, err error) {
	root := filepath.Join(l.dir, "inbox")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	up, err := l.up(ctx, settings{data: filepath.Join(l.dir, "data"), allow: root, bus: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, up.stop()) }()
	var conn struct {
		ID string `json:"connector_id"`
	}
	var index struct {
		ID string `json:"index_id"`
	}
	if err := up.Do(ctx, http.MethodPost, "/connectors/dir", map[string]any{"name": "Bench", "path": root, "scopes": []string{"import"}}, &conn); err != nil {
		return nil, up.explain(err)
	}
	if err := up.Do(ctx, http.MethodPost, "/indexes", map[string]string{"name": "Bench"}, &index); err != nil {
		return nil, up.explain(err)
	}
	body := fmt.Appendf(nil, `{"connector_id": %q, "index_id": %q}`, conn.ID, index.ID)
	n := 40 * l.size.requests
	post := func(int) (float64, error) {
		round := rand.Text()
		rate, _, err := load{addr: up.addr, clients: clients, want: http.StatusAccepted, request: func(i int) []byte {
			h := up.header()
			h.Set("Idempotency-Key", fmt.Sprint(round, i))
			return wire(http.MethodPost, up.addr, "/api/v2/import-jobs", h, body)
		}}.run(ctx, n, 0)
		if err != nil {
			return 0, up.explain(err)
		}
		return rate, until(ctx, 100*time.Millisecond, func() (bool, error) { // planned, and out of the way of the next round
			s, err := up.bus.State(ctx, topology.Jobs)
			return s.Msgs == 0, err
		})
	}
	js := up.bus.JetStream()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "bench", Subjects: []string{"bench.raw"}}); err != nil {
		return nil, err
	}
	p, err := l.alternate(post, func(int) (float64, error) { return publishing(ctx, js, n, body) })
	if err != nil {
		return nil, err
	}
	row := Row{
		What:   "`POST /import-jobs` with an `Idempotency-Key`",
		Beside: "durable publishes of the same body",
		Target: Target{AtLeast: true, N: 500, Unit: "/s"},
		How: fmt.Sprintf("%s requests, each with a key of its own, by %d clients at a time that wait for their answer, while the jobs (of an empty folder) are planned and end. "+
			"The yardstick is as many publishers that wait for one synced write each, on the same broker.", digits(float64(n)), clients),
	}
	p.into(&row, "/s")
	return []Row{row}, nil
}

// publishing is how many messages per second are stored for publishers that wait.
func publishing(ctx context.Context, js jetstream.JetStream, n int, body []byte) (float64, error) {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	start := time.Now()
	for range clients {
		g.Go(func() error {
			for next.Add(1) <= int64(n) {
				if _, err := js.Publish(ctx, "bench.raw", body); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return perSecond(n, start), err
}

// reads measures how fast records are read that clients poll, from a full store.
func reads(ctx context.Context, l *lab) (_ []Row, err error) {
	f, err := l.fullStore(ctx)
	if err != nil {
		return nil, err
	}
	up, err := l.up(ctx, settings{data: f.data})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, up.stop()) }()
	var rows []Row
	for _, r := range []struct{ what, path string }{
		{fmt.Sprintf("`GET /import-jobs/{id}`, a job of %d files", smallJob), "/import-jobs/" + fullJob(smallJob)},
		{"`GET /indexes/{id}/videos`, the newest 50", "/indexes/" + f.indexes[0].id + "/videos"},
	} {
		of, err := l.readRows(ctx, up, r.what, r.path)
		if err != nil {
			return nil, up.explain(fmt.Errorf("%s: %w", r.what, err))
		}
		rows = append(rows, of...)
	}
	large, err := l.largeJob(ctx, up)
	return append(rows, large...), err
}

// Targets of reads.
const readRate, readP99 = 5_000, 20

func (l *lab) readRows(ctx context.Context, up *product, what, path string) ([]Row, error) {
	answer, err := up.answer(ctx, path)
	if err != nil {
		return nil, err
	}
	bare, stop, err := serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = w.Write(answer)
	}))
	if err != nil {
		return nil, err
	}
	defer stop()
	to := func(addr string) load {
		request := wire(http.MethodGet, addr, "/api/v2"+path, up.header(), nil)
		return load{addr: addr, clients: clients, want: http.StatusOK, request: func(int) []byte { return request }}
	}
	ours, theirs, n := to(up.addr), to(strings.TrimPrefix(bare, "http://")), 200*l.size.requests
	p, err := l.alternate(
		func(int) (float64, error) { rate, _, err := ours.run(ctx, n, 0); return rate, err },
		func(int) (float64, error) { rate, _, err := theirs.run(ctx, n, 0); return rate, err })
	if err != nil {
		return nil, err
	}
	rate := Row{
		What: what, Beside: "a Go server that answers the same bytes at once", Target: Target{AtLeast: true, N: readRate, Unit: "/s"},
		How: fmt.Sprintf("%s requests by %d clients at a time, on the cores of the server, in a store with %s media; the answer has %s bytes. The yardstick shares a process with the clients.",
			digits(float64(n)), clients, digits(float64(l.size.media)), digits(float64(len(answer)))),
	}
	p.into(&rate, "/s")
	p, err = l.alternate(
		func(int) (float64, error) {
			_, took, err := ours.run(ctx, n, readRate/2)
			return quantile(took, 0.99), err
		},
		func(int) (float64, error) {
			_, took, err := theirs.run(ctx, n, readRate/2)
			return quantile(took, 0.99), err
		})
	if err != nil {
		return nil, err
	}
	slow := Row{
		What: what + fmt.Sprintf(": p99 at %s/s", digits(readRate/2)), Beside: "the same of that server", Target: Target{N: readP99, Unit: "ms"},
		How: "As before, but requests leave evenly, and what waits for a client that is busy counts as time that it took.",
	}
	p.into(&slow, "ms")
	return []Row{rate, slow}, nil
}

// largeJob measures one job with very many files, asked for again and again.
func (l *lab) largeJob(ctx context.Context, up *product) ([]Row, error) {
	files := l.size.jobFiles
	path := "/import-jobs/" + fullJob(files)
	if err := forgetPeak(up.cmd.Process.Pid); err != nil {
		return nil, err
	}
	before, _, err := up.memory()
	if err != nil {
		return nil, err
	}
	var times []float64
	for range max(3, l.size.requests/5) {
		var job struct {
			Videos []string `json:"video_ids"`
		}
		start := time.Now()
		if err := up.Get(ctx, path, &job); err != nil {
			return nil, up.explain(err)
		}
		times = append(times, time.Since(start).Seconds())
		if len(job.Videos) != files {
			return nil, fmt.Errorf("the job of %d files has %d video_ids", files, len(job.Videos))
		}
	}
	_, peak, err := up.memory()
	if err != nil {
		return nil, err
	}
	doc, err := up.answer(ctx, path)
	if err != nil {
		return nil, err
	}
	size := float64(len(doc)) / 1e6
	what := fmt.Sprintf("`GET /import-jobs/{id}`, a job of %s files", digits(float64(files)))
	return []Row{{
		What: what, Measured: Quantity{quantile(times, 1), "s"}, Yardstick: Quantity{median(times), "s"}, Beside: "the median of them",
		Target: Target{N: 1, Unit: "s"}, How: fmt.Sprintf("The slowest of %d requests one after the other, with the time in which the client decodes %s MB.", len(times), digits(size)),
	}, {
		What: what + ": growth of resident memory", Measured: Quantity{peak - before, "MB"}, Yardstick: Quantity{size, "MB"}, Beside: "the answer itself",
		Target: Target{N: 32, Unit: "MB"}, How: "The peak of the process during these requests, over what was resident before them.",
	}}, nil
}

// answer is what a GET answers, as it is.
func (p *product) answer(ctx context.Context, path string) (data []byte, err error) {
	err = p.Stream(ctx, path, "", func(r io.Reader) error { data, err = io.ReadAll(r); return err })
	return data, err
}

// smallJob is how many files a job has that clients poll.
const smallJob = 10

// fullJob is the job of so many files in a full store.
func fullJob(files int) string { return event.DerivedID("job", "bench", fmt.Sprint(files)) }
