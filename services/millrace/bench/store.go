package bench

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"millrace/shared/broker"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// full is a store with many media, shared by the figures that want one.
type full struct {
	data    string
	indexes []fullIndex
}

// fullIndex is one of its indexes.
type fullIndex struct {
	id    string
	what  string
	media int
}

// Every hundredth medium is in the second index; the third has only the oldest ones.
const (
	sparseEvery = 100
	oldest      = 100
)

// jobMedia is how many media one job brought in.
const jobMedia = 1_000

// fullStore fills the store if no figure of this run did before.
func (l *lab) fullStore(ctx context.Context) (full, error) {
	n := l.size.media
	f := full{data: filepath.Join(l.run, "full"), indexes: []fullIndex{
		{id: "idx_most", what: "an index with nearly all of them"},
		{id: "idx_sparse", what: "an index with every hundredth"},
		{id: "idx_old", what: "an index with the oldest 100"},
	}}
	for i := range n {
		f.indexes[indexOf(i)].media++
	}
	mark := filepath.Join(f.data, "filled")
	if _, err := os.Stat(mark); err == nil {
		return f, nil
	}
	l.say("filling a store with %s media", digits(float64(n)))
	err := onBroker(ctx, f.data, func(_ *broker.Broker, b *bus.Bus) error {
		return errors.Join(f.fill(ctx, fill{b}, n), f.reported(ctx, fill{b}, smallJob), f.reported(ctx, fill{b}, l.size.jobFiles))
	})
	if err != nil {
		return f, err
	}
	return f, os.WriteFile(mark, nil, 0o600)
}

func indexOf(i int) int {
	switch {
	case i < oldest:
		return 2
	case i%sparseEvery == 0:
		return 1
	}
	return 0
}

func (f full) fill(ctx context.Context, w fill, n int) error {
	began := time.Now().Add(-time.Duration(n) * time.Second).UTC()
	err := records(ctx, w, topology.Indexes, len(f.indexes), func(i int) (string, store.Index) {
		return f.indexes[i].id, store.Index{ID: f.indexes[i].id, Name: f.indexes[i].what, CreatedAt: began}
	})
	if err != nil {
		return err
	}
	job := func(i int) string { return event.JobOfWindow(f.indexes[indexOf(i)].id, strconv.Itoa(i/jobMedia)) }
	if err := f.jobs(ctx, w, n, job, began); err != nil {
		return err
	}
	ledger := store.NewLedger(w.bus)
	_, err = w.messages(ctx, n, func(i int) (bus.Message, error) {
		at := began.Add(time.Duration(i) * time.Second)
		o := event.Object{
			Path: fmt.Sprintf("2026/rushes/camera-%d/clip-%07d.mp4", i%8, i), Version: fmt.Sprintf("%d-%d", at.UnixNano(), 1<<20+i),
			Order: fmt.Sprintf("%020d", at.UnixNano()), Size: int64(1<<20 + i), ModTime: at,
		}
		return ledger.Message(medium(f.indexes[indexOf(i)].id, "con_bench", o, job(i)), 0)
	})
	return err
}

// jobs writes the jobs that brought the media in, and the runs that followed.
func (f full) jobs(ctx context.Context, w fill, n int, job func(int) string, began time.Time) error {
	counts, list := map[string]int{}, []store.Job(nil)
	for i := range n {
		id := job(i)
		if counts[id]++; counts[id] == 1 {
			list = append(list, store.Job{
				ID: id, Index: f.indexes[indexOf(i)].id, Connector: "con_bench", Origin: store.ByAutomation, Lane: event.Live,
				Pattern: "*", Recursive: true, Mode: event.NewOnly, Status: store.JobCompleted, CreatedAt: began, StartedAt: began,
				EndedAt: began, Report: "jobs/" + id + ".jsonl", Settled: true,
			})
		}
	}
	err := records(ctx, w, topology.JobRecords, len(list), func(i int) (string, store.Job) {
		j := list[i]
		j.Progress = store.Progress{Total: counts[j.ID], Imported: counts[j.ID]}
		return j.ID, j
	})
	if err != nil {
		return err
	}
	return records(ctx, w, topology.RunRecords, len(list), func(i int) (string, store.Run) {
		j := list[i]
		id := event.RunOfJob(j.ID)
		return id, store.Run{
			ID: id, Job: j.ID, Index: j.Index, Prompt: "prm_bench", PromptName: "Bench", Status: store.RunCompleted,
			Media: "runs/" + id + ".media.jsonl", Count: counts[j.ID], CreatedAt: began, StartedAt: began, EndedAt: began,
			Dispatched: true, Settled: true,
		}
	})
}

// reported writes a job that has ended, with the report on its files.
func (f full) reported(ctx context.Context, w fill, files int) error {
	documents, err := store.OpenDocuments(ctx, w.bus)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	j := store.Job{
		ID: fullJob(files), Index: f.indexes[0].id, Connector: "con_bench", Origin: store.Manual, Lane: event.Bulk, Pattern: "*", Recursive: true,
		Mode: event.NewOnly, Status: store.JobCompleted, CreatedAt: now, StartedAt: now, EndedAt: now, Settled: true,
		Progress: store.Progress{Total: files, Imported: files},
	}
	j.Report = "jobs/" + j.ID + ".jsonl"
	err = store.WritePacked(ctx, documents, j.Report, func(yield func(event.File, error) bool) {
		for i := range files {
			path, version := fmt.Sprintf("2026/rushes/camera-%d/take-%07d.mp4", i%8, i), strconv.Itoa(i)
			if !yield(event.File{
				Job: j.ID, Connector: j.Connector, Index: j.Index, Path: path, Version: version, Size: 1 << 20, State: event.Imported,
				Video: event.NewMediumID(j.Index, j.Connector, path, version, "").String(), MediaType: "video", Seconds: 12.5,
				Bytes: 1 << 20, Attempts: 1, StartedAt: now, EndedAt: now,
			}, nil) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return records(ctx, w, topology.JobRecords, 1, func(int) (string, store.Job) { return j.ID, j })
}

// starts is how often the product is started on a store.
func (l *lab) starts() int { return max(1, 2*l.size.rounds-1) }

// coldStart measures the time from exec to ready, and the memory that takes.
func coldStart(ctx context.Context, l *lab) ([]Row, error) {
	empty, err := l.startRows(ctx, "empty store", nil, 0.5, 60)
	if err != nil {
		return nil, err
	}
	f, err := l.fullStore(ctx)
	if err != nil {
		return nil, err
	}
	filled, err := l.startRows(ctx, digits(float64(l.size.media))+" media", &f, 5, 700)
	return append(empty, filled...), err
}

// startRows starts the broker alone and the product in turns; without a full store, each time on an empty folder.
func (l *lab) startRows(ctx context.Context, what string, f *full, seconds, mb float64) ([]Row, error) {
	var ours, theirs, peaks, plain []float64
	for i := range l.starts() {
		data := filepath.Join(l.dir, fmt.Sprintf("data-%d", i))
		if f != nil {
			data = f.data
		}
		yardstick, err := l.brokerStart(ctx, data)
		if err != nil {
			return nil, err
		}
		theirs, plain = append(theirs, yardstick.Seconds), append(plain, yardstick.MB)
		if f == nil {
			data += "-product" // where no broker was before
		}
		up, err := l.up(ctx, settings{data: data})
		if err != nil {
			return nil, err
		}
		_, peak, err := up.memory()
		if err = errors.Join(err, up.stop()); err != nil {
			return nil, err
		}
		ours, peaks = append(ours, up.ready.Seconds()), append(peaks, peak)
		l.say("%s: ready after %s s, %s MB; the broker alone %s s", what, digits(ours[i]), digits(peak), digits(yardstick.Seconds))
	}
	return []Row{
		{
			What:      "cold start to ready, " + what,
			Measured:  Quantity{median(ours), "s"},
			Yardstick: Quantity{median(theirs), "s"},
			Beside:    "the broker alone",
			Target:    Target{N: seconds, Unit: "s"},
			How: fmt.Sprintf("From starting the program `millrace up` until `GET /readyz` answers 200, every service holding its consumers; the store is in the page cache. "+
				"The yardstick is the time in which the embedded broker starts by itself on the same kind of store. Median of %d starts in turns.", len(ours)),
			Also: []string{"starts: " + spread(ours) + " s; yardstick: " + spread(theirs) + " s"},
		},
		{
			What:      "resident memory when ready, " + what,
			Measured:  Quantity{median(peaks), "MB"},
			Yardstick: Quantity{median(plain), "MB"},
			Beside:    "the broker alone",
			Target:    Target{N: mb, Unit: "MB"},
			How:       "The peak of the process's resident memory (VmHWM, program text included) at that moment. The yardstick is the memory of a process with nothing but the broker.",
			Also:      []string{"starts: " + spread(peaks) + " MB"},
		},
	}, nil
}

// alone is how the broker by itself did.
type alone struct {
	Seconds float64 `json:"seconds"`
	MB      float64 `json:"mb"`
}

// brokerStart starts the broker of a data folder in a process of its own.
func (l *lab) brokerStart(ctx context.Context, data string) (a alone, err error) {
	cmd := exec.CommandContext(ctx, l.program, "bench", "--alone", data)
	cmd.Env, cmd.Stderr = environ(), os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &a)
	}
	if err != nil {
		err = fmt.Errorf("start the broker alone: %w", err)
	}
	return a, err
}

// BrokerAlone is the yardstick of a start: it starts the broker of a data folder, says in JSON how long that took and
// what memory this process then has, and stops it.
func BrokerAlone(ctx context.Context, data string, w io.Writer) error {
	start := time.Now()
	b, err := broker.Start(ctx, broker.Config{Dir: filepath.Join(data, "broker"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer b.Shutdown()
	a := alone{Seconds: time.Since(start).Seconds()}
	if _, a.MB, err = resident(os.Getpid()); err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(a)
}

// pageLimit is the largest page of the API.
const pageLimit = 100

// pages measures how long a page takes, at the beginning, in the middle and at the end of an index.
func pages(ctx context.Context, l *lab) (_ []Row, err error) {
	f, err := l.fullStore(ctx)
	if err != nil {
		return nil, err
	}
	up, err := l.up(ctx, settings{data: f.data, bus: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, up.stop()) }()
	state, err := up.bus.State(ctx, topology.Media)
	if err != nil {
		return nil, err
	}
	plain, err := l.plainPage(ctx, up.bus, f.indexes[0].id, state.LastSeq/2)
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, x := range f.indexes {
		row, err := l.pagesOf(ctx, up, x, state.LastSeq)
		if err != nil {
			return nil, up.explain(fmt.Errorf("pages of %s: %w", x.what, err))
		}
		row.What = fmt.Sprintf("a page of %s, among %s media", x.what, digits(float64(l.size.media)))
		row.Yardstick, row.Beside = Quantity{plain, "ms"}, "direct get of 100 messages"
		rows = append(rows, row)
	}
	return rows, nil
}

// plainPage is the yardstick: a read of as many messages of that index from the broker, p99 in ms.
func (l *lab) plainPage(ctx context.Context, b *bus.Bus, index string, from uint64) (float64, error) {
	times := make([]float64, l.size.requests)
	for i := range times {
		start, n := time.Now(), 0
		for _, err := range b.Scan(ctx, topology.Media, names.Subject("media", index, "*", "*"), from) {
			if err != nil {
				return 0, err
			}
			if n++; n == pageLimit {
				break
			}
		}
		times[i] = ms(time.Since(start))
	}
	return quantile(times, 0.99), nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (l *lab) pagesOf(ctx context.Context, up *product, x fullIndex, last uint64) (Row, error) {
	type list struct {
		Data       []struct{} `json:"data"`
		Pagination struct {
			Next *string `json:"next_cursor"`
		} `json:"pagination"`
	}
	path := func(cursor string) string {
		return fmt.Sprintf("/indexes/%s/videos?limit=%d&cursor=%s", x.id, pageLimit, url.QueryEscape(cursor))
	}
	row := Row{
		Target: Target{N: 100, Unit: "ms"},
		How: fmt.Sprintf("The slowest place's 99th percentile of `GET /api/v2/indexes/{id}/videos?limit=100`, as a client sees it, %d requests one after another for the first page, one in the middle and the last. "+
			"The yardstick is the same percentile of reading 100 messages of the largest index from the broker by filter and sequence.", l.size.requests),
	}
	var first list
	if err := up.Get(ctx, path(""), &first); err != nil {
		return row, err
	}
	places := []struct{ name, cursor string }{{"first", ""}}
	if first.Pagination.Next != nil {
		for _, at := range []struct {
			name   string
			before uint64
		}{{"middle", last / 2}, {"last", sparseEvery * pageLimit}} {
			cursor, err := cursorAt(*first.Pagination.Next, at.before)
			if err != nil {
				return row, err
			}
			places = append(places, struct{ name, cursor string }{at.name, cursor})
		}
	}
	for _, place := range places {
		times := make([]float64, l.size.requests)
		for i := range times {
			start := time.Now()
			var page list
			if err := up.Get(ctx, path(place.cursor), &page); err != nil {
				return row, err
			}
			times[i] = ms(time.Since(start))
			if len(page.Data) == 0 {
				return row, fmt.Errorf("the %s page is empty", place.name)
			}
		}
		p50, p99 := median(times), quantile(times, 0.99)
		l.say("%s, %s page: p50 %s ms, p99 %s ms", x.id, place.name, digits(p50), digits(p99))
		row.Also = append(row.Also, fmt.Sprintf("%s page: p50 %s ms, p99 %s ms", place.name, digits(p50), digits(p99)))
		row.Measured = Quantity{max(row.Measured.N, p99), "ms"}
	}
	return row, nil
}

// markLength is how many bytes of a cursor say which list it belongs to. Behind them is the position.
const markLength = 6

// cursorAt turns a cursor into one of the same list at another position, which a client would reach after thousands of
// pages.
func cursorAt(cursor string, before uint64) (string, error) {
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(raw) <= markLength {
		return "", fmt.Errorf("cursor %q is not of the form that is known here", cursor)
	}
	return base64.RawURLEncoding.EncodeToString(append(raw[:markLength:markLength], strconv.FormatUint(before, 36)...)), nil
}
