package store_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"millrace/shared/broker/brokertest"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

const patience = 10 * time.Second

// open starts a broker with the topology and returns what opens a bus on it, each on a connection of its own.
func open(t *testing.T) func() (*bus.Bus, *nats.Conn) {
	t.Helper()
	broker := brokertest.Start(t)
	connect := func() (*bus.Bus, *nats.Conn) {
		t.Helper()
		nc := brokertest.Connect(t, broker)
		b, err := bus.New(nc, topology.Topology{Prefix: "t", Replicas: 1}, "test", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return b, nc
	}
	b, _ := connect()
	if err := b.Apply(t.Context(), b.JetStream()); err != nil {
		t.Fatal(err)
	}
	return connect
}

func openOne(t *testing.T) *bus.Bus {
	t.Helper()
	b, _ := open(t)()
	return b
}

func await[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("not within %s: %s", patience, what)
		panic("unreachable")
	}
}

type counter struct {
	N int `json:"n"`
}

func increment(c *counter) error {
	c.N++
	return nil
}

func counters(t *testing.T, b *bus.Bus) *store.Register[counter] {
	t.Helper()
	r, err := store.Open[counter](t.Context(), b, topology.JobRecords)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOpenNeedsTheTopology(t *testing.T) {
	t.Parallel()
	b, err := bus.New(brokertest.Connect(t, brokertest.Start(t)), topology.Topology{Prefix: "t"}, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open[counter](t.Context(), b, topology.Windows); !errors.Is(err, topology.ErrMissing) {
		t.Errorf("a register: %v", err)
	}
	if _, err := store.OpenDocuments(t.Context(), b); !errors.Is(err, topology.ErrMissing) {
		t.Errorf("documents: %v", err)
	}
	if _, err := store.OpenLeases(t.Context(), b, "a"); !errors.Is(err, topology.ErrMissing) {
		t.Errorf("leases: %v", err)
	}
}

// Two that add one to the same number write the same bytes, and both count. Some keys are new, some were deleted, some
// are there.
func TestModifyLosesNothing(t *testing.T) {
	t.Parallel()
	connect := open(t)
	const writers, keys, rounds = 8, 12, 6
	b, _ := connect()
	r := counters(t, b)
	for k := range keys {
		key := fmt.Sprint("key", k)
		switch k % 3 {
		case 1:
			if err := r.Put(t.Context(), key, counter{}); err != nil {
				t.Fatal(err)
			}
		case 2:
			if err := errors.Join(r.Put(t.Context(), key, counter{N: 99}), r.Delete(t.Context(), key)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var g sync.WaitGroup
	for range writers {
		b, _ := connect() // writers of one bus would be grouped
		r := counters(t, b)
		g.Go(func() {
			for range rounds {
				for k := range keys {
					if _, _, err := r.Modify(t.Context(), fmt.Sprint("key", k), increment); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	g.Wait()
	for k := range keys {
		v, _, err := r.Get(t.Context(), fmt.Sprint("key", k))
		if err != nil || v.N != writers*rounds {
			t.Errorf("key %d counts %d of %d: %v", k, v.N, writers*rounds, err)
		}
	}
}

func TestModifyReturnsWhatIsStored(t *testing.T) {
	t.Parallel()
	r := counters(t, openOne(t))
	ctx := t.Context()
	boom := errors.New("boom")

	v, rev, err := r.Modify(ctx, "a", func(*counter) error { return store.ErrUnchanged })
	if v != (counter{}) || rev != 0 || err != nil {
		t.Errorf("unchanged and absent: %v %d %v", v, rev, err)
	}
	if _, _, err := r.Get(ctx, "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("something was written: %v", err)
	}
	v, first, err := r.Modify(ctx, "a", increment)
	if v.N != 1 || err != nil {
		t.Errorf("%v %v", v, err)
	}
	if got, rev, err := r.Get(ctx, "a"); got != v || rev != first || err != nil {
		t.Errorf("%v %d %v", got, rev, err)
	}
	v, rev, err = r.Modify(ctx, "a", func(c *counter) error { return nil })
	if v.N != 1 || rev != first || err != nil {
		t.Errorf("no difference, yet revision %d after %d: %v", rev, first, err)
	}
	if _, _, err = r.Modify(ctx, "a", func(c *counter) error { c.N = 7; return boom }); !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	if got, rev, _ := r.Get(ctx, "a"); got.N != 1 || rev != first {
		t.Errorf("an error of the change was written: %v %d", got, rev)
	}
}

func TestCreateAndUpdate(t *testing.T) {
	t.Parallel()
	r := counters(t, openOne(t))
	ctx := t.Context()
	if err := r.Create(ctx, "a", counter{1}); err != nil {
		t.Fatal(err)
	}
	if err := r.Create(ctx, "a", counter{1}); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("created twice: %v", err)
	}
	_, rev, err := r.Get(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Update(ctx, "a", counter{2}, rev); err != nil {
		t.Error(err)
	}
	if err := r.Update(ctx, "a", counter{3}, rev); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("an old revision: %v", err)
	}
	if err := r.Update(ctx, "a", counter{2}, rev); err != nil {
		t.Errorf("what is there already, by whoever: %v", err)
	}
	if v, _, _ := r.Get(ctx, "a"); v.N != 2 {
		t.Errorf("%v", v)
	}
	for _, key := range []string{"nobody", "not a key", ""} {
		if _, _, err := r.Get(ctx, key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestSwap(t *testing.T) {
	t.Parallel()
	r, ctx := counters(t, openOne(t)), t.Context()
	if last, err := r.Last(ctx); err != nil || last != 0 {
		t.Errorf("an empty bucket's last revision: %d, %v", last, err)
	}
	first, err := r.Swap(ctx, "a", counter{N: 1}, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Equal bytes are no excuse: somebody else may have written them.
	for _, rev := range []store.Revision{0, first + 1} {
		if _, err := r.Swap(ctx, "a", counter{N: 1}, rev); !errors.Is(err, bus.ErrConflict) {
			t.Errorf("revision %d: %v", rev, err)
		}
	}
	second, err := r.Swap(ctx, "a", counter{N: 2}, first)
	if err != nil {
		t.Fatal(err)
	}
	if v, rev, err := r.Get(ctx, "a"); err != nil || v.N != 2 || rev != second {
		t.Errorf("%+v at %d, %v; want revision %d", v, rev, err, second)
	}
	if last, err := r.Last(ctx); err != nil || last != second {
		t.Errorf("last revision %d, %v; want %d", last, err, second)
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	r := counters(t, openOne(t))
	ctx := t.Context()
	if err := errors.Join(r.Delete(ctx, "a"), r.Put(ctx, "a", counter{5}), r.Delete(ctx, "a"), r.Delete(ctx, "a")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Get(ctx, "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if v, _, err := r.Modify(ctx, "a", increment); v.N != 1 || err != nil {
		t.Errorf("modified after it was deleted: %v %v", v, err)
	}
	if v, _, err := r.Modify(ctx, "a", increment); v.N != 2 || err != nil {
		t.Errorf("and again: %v %v", v, err)
	}
}

// A record that is replaced while the list is made must be in it. A client that trusts its count of what is pending
// misses one now and then: an admin that started at such a moment saw no API key, and made another.
func TestAllWhileRecordsAreReplaced(t *testing.T) {
	t.Parallel()
	b := openOne(t)
	r := counters(t, b)
	ctx := t.Context()
	for i := range 6 {
		if err := r.Put(ctx, fmt.Sprint(i), counter{0}); err != nil {
			t.Fatal(err)
		}
	}
	writing, stop := context.WithCancel(ctx)
	var g sync.WaitGroup
	defer g.Wait()
	defer stop()
	for k := range 3 {
		g.Go(func() {
			for n := 1; writing.Err() == nil; n++ {
				if err := r.Put(ctx, fmt.Sprint(k+3), counter{n}); err != nil && writing.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	for round := range 300 {
		n := 0
		for _, err := range r.All(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n < 6 {
			t.Fatalf("round %d: %d of 6 records", round, n)
		}
	}
}

func TestAll(t *testing.T) {
	t.Parallel()
	b := openOne(t)
	r := counters(t, b)
	ctx := t.Context()
	list := func() (out []int) {
		for v, err := range r.All(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, v.N)
		}
		return out
	}
	if got := list(); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
	for i := range 6 {
		if err := r.Put(ctx, fmt.Sprint(i), counter{i}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(r.Delete(ctx, "3"), r.Put(ctx, "1", counter{11})); err != nil {
		t.Fatal(err)
	}
	if got := list(); !slices.Equal(got, []int{0, 2, 4, 5, 11}) {
		t.Errorf("%v", got)
	}
	for range r.All(ctx) {
		break
	}

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	err := error(nil)
	for _, err = range r.All(cancelled) {
	}
	if err == nil {
		t.Error("a cancelled list ended without an error")
	}

	if _, err := b.JetStream().Publish(ctx, "$KV."+b.Bucket(topology.JobRecords)+".bad", []byte("{")); err != nil {
		t.Fatal(err)
	}
	for _, err = range r.All(ctx) {
	}
	if err == nil {
		t.Error("a record that cannot be read was passed over in silence")
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	r := counters(t, openOne(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 3 {
		if err := r.Put(ctx, fmt.Sprint(i), counter{i}); err != nil {
			t.Fatal(err)
		}
	}
	ready := make(chan struct{})
	seen := make(chan string, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- r.Watch(ctx, func() { close(ready) }, func(c store.Change[counter]) {
			if c.Revision == 0 {
				t.Errorf("%s has no revision", c.Key)
			}
			if c.Value == nil {
				seen <- c.Key + " gone"
			} else {
				seen <- fmt.Sprint(c.Key, "=", c.Value.N)
			}
		})
	}()
	await(t, "the records as they stand", ready)
	if len(seen) != 3 {
		t.Errorf("ready after %d records", len(seen))
	}
	if err := errors.Join(r.Put(ctx, "1", counter{7}), r.Delete(ctx, "0"), r.Put(ctx, "1", counter{8}), r.Create(ctx, "9", counter{9})); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0=0", "1=1", "2=2", "1=7", "0 gone", "1=8", "9=9"} {
		if got := await(t, want, seen); got != want {
			t.Errorf("saw %s instead of %s", got, want)
		}
	}
	cancel()
	if err := await(t, "the end", ended); err != nil {
		t.Error(err)
	}
}

func medium(index string, i int, state event.MediumState) event.Medium {
	path := fmt.Sprintf("%06d.mp4", i)
	return event.Medium{
		ID: event.NewMediumID(index, "con", path, "v", ""), Index: index, Connector: "con", Path: path, Version: "v",
		State: state, Job: "job", CreatedAt: time.Unix(int64(i), 0).UTC(),
	}
}

func write(t *testing.T, l *store.Ledger, media []event.Medium) {
	t.Helper()
	entries := make([]store.Entry, len(media))
	for i, m := range media {
		entries[i].Medium = m
	}
	if err := errors.Join(l.Write(t.Context(), entries)...); err != nil {
		t.Fatal(err)
	}
}

func TestLedgerPages(t *testing.T) {
	t.Parallel()
	b := openOne(t)
	l := store.NewLedger(b)
	if page, next, err := l.Page(t.Context(), "even", 10, ""); len(page) != 0 || next != "" || err != nil {
		t.Errorf("a ledger without entries: %v %s %v", page, next, err)
	}
	var media []event.Medium
	want := make(map[string][]event.Medium) // imported, the newest first
	for i := range 1200 {
		index, state := []string{"even", "odd"}[i%2], event.MediumImported
		switch {
		case i%400 == 7:
			index = "sparse"
		case i%10 == 3:
			state = event.MediumFailed
		}
		m := medium(index, i, state)
		media = append(media, m)
		if state == event.MediumImported {
			want[index] = append(want[index], m)
		}
	}
	write(t, l, media)
	for index, w := range want {
		slices.Reverse(w)
		for _, limit := range []int{0, 1, 90, 5000} {
			if limit < 2 && index != "sparse" {
				continue // one at a time is tried where there are few
			}
			var got []event.Medium
			for cursor := ""; ; {
				page, next, err := l.Page(t.Context(), index, limit, cursor)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) > max(limit, 1) || next != "" && len(page) < limit {
					t.Fatalf("a page of %d has %d media", limit, len(page))
				}
				got = append(got, page...)
				if cursor = next; cursor == "" {
					break
				}
			}
			if !reflect.DeepEqual(got, w) {
				t.Errorf("%s by %d: %d media of %d, or in another order", index, limit, len(got), len(w))
			}
		}
	}
	// A page that was read before knows what was written since, by whomever.
	first, _, err := l.Page(t.Context(), "sparse", 3, "")
	if err != nil {
		t.Fatal(err)
	}
	news := medium("sparse", 5000, event.MediumImported)
	write(t, store.NewLedger(b), []event.Medium{news})
	if now, _, err := l.Page(t.Context(), "sparse", 3, ""); err != nil || !reflect.DeepEqual(now, append([]event.Medium{news}, first[:2]...)) {
		t.Errorf("after a write: %v %v", now, err)
	}
	if page, next, err := l.Page(t.Context(), "nobody", 10, ""); len(page) != 0 || next != "" || err != nil {
		t.Errorf("an index without media: %v %s %v", page, next, err)
	}
	if _, _, err := l.Page(t.Context(), "even", 10, "not a cursor!"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a bad cursor: %v", err)
	}
}

func TestLedgerReads(t *testing.T) {
	t.Parallel()
	l := store.NewLedger(openOne(t))
	ctx := t.Context()
	var media []event.Medium
	var ids []event.MediumID
	var objects []string
	for i := range 700 {
		for _, version := range []string{"v1", "v2"} {
			m := medium("idx", i, event.MediumImported)
			m.Version, m.ID = version, event.NewMediumID("idx", "con", m.Path, version, "")
			media = append(media, m)
			ids = append(ids, m.ID)
		}
		objects = append(objects, media[2*i].ID.Object)
	}
	write(t, l, media)

	got, err := l.Get(ctx, "idx", ids...)
	if err != nil || len(got) != 1400 {
		t.Errorf("by id: %d %v", len(got), err)
	}
	if got, err := l.Versions(ctx, "idx", objects...); err != nil || len(got) != 1400 {
		t.Errorf("by object, two versions each: %d %v", len(got), err)
	}
	if got, err := l.Find(ctx, ids[0], ids[1399]); err != nil || len(got) != 2 {
		t.Errorf("in whatever index: %d %v", len(got), err)
	}
	if got, err := l.Get(ctx, "other", ids...); err != nil || len(got) != 0 {
		t.Errorf("in another index: %d %v", len(got), err)
	}
	if got, err := l.Get(ctx, "idx"); err != nil || len(got) != 0 {
		t.Errorf("nothing: %d %v", len(got), err)
	}

	// Creating an entry that is there is a conflict; turning it into another needs its revision.
	errs := l.Write(ctx, []store.Entry{{Medium: media[0]}, {Medium: medium("idx", 9999, event.MediumSkipped)}})
	if !errors.Is(errs[0], bus.ErrConflict) || errs[1] != nil {
		t.Errorf("%v", errs)
	}
	e := got[0]
	e.State = event.MediumDeleted
	if errs := l.Write(ctx, []store.Entry{e}); errs[0] != nil {
		t.Error(errs)
	}
	if again, err := l.Get(ctx, "idx", e.ID); err != nil || again[0].State != event.MediumDeleted || again[0].Revision <= e.Revision {
		t.Errorf("%+v %v", again, err)
	}
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	b := openOne(t)
	ctx := t.Context()
	d, err := store.OpenDocuments(ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	lines := func(n int, fail error) iter.Seq2[event.RunMedium, error] {
		return func(yield func(event.RunMedium, error) bool) {
			for i := range n {
				if !yield(event.RunMedium{Video: fmt.Sprint(i), Title: "<&>\n", URI: "file:///x", Size: int64(i)}, nil) {
					return
				}
			}
			if fail != nil {
				yield(event.RunMedium{}, fail)
			}
		}
	}
	read := func(name string) (n int, err error) {
		for v, err := range store.ReadLines[event.RunMedium](ctx, d, name) {
			if err != nil {
				return n, err
			}
			if v.Video != fmt.Sprint(n) || v.Title != "<&>\n" || v.Size != int64(n) {
				return n, fmt.Errorf("line %d is %+v", n, v)
			}
			n++
		}
		return n, nil
	}
	var sizes []int64
	for _, write := range []func(context.Context, *store.Documents, string, iter.Seq2[event.RunMedium, error]) error{
		store.WriteLines[event.RunMedium], store.WritePacked[event.RunMedium],
	} {
		for _, n := range []int{1, 0, 10_000} { // each replaces the one before
			if err := write(ctx, d, "runs/run_1.media.jsonl", lines(n, nil)); err != nil {
				t.Fatal(err)
			}
			if got, err := read("runs/run_1.media.jsonl"); got != n || err != nil {
				t.Errorf("of %d lines it read %d: %v", n, got, err)
			}
		}
		doc, err := d.Find(ctx, "runs/run_1.media.jsonl")
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, doc.Size)
		from, n := int64(0), 0
		for ; n < 3; n++ { // go on where one was left
			for line, err := range store.ReadLinesFrom[event.RunMedium](ctx, d, doc.Name, from) {
				if err != nil || line.Value.Video != fmt.Sprint(n) {
					t.Errorf("line %d from %d is %+v: %v", n, from, line.Value, err)
				}
				from = line.Next
				break
			}
		}
	}
	if sizes[1] > sizes[0]/4 {
		t.Errorf("of %d bytes, packing leaves %d", sizes[0], sizes[1])
	}
	if _, err := read("nothing"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	boom := errors.New("boom")
	if err := store.WriteLines(ctx, d, "broken", lines(5000, boom)); !errors.Is(err, boom) {
		t.Errorf("a source that fails: %v", err)
	}
	if _, err := read("broken"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("half a document was kept: %v", err)
	}
	if err := store.WriteLines(ctx, d, "runs/run_2.media.jsonl", lines(5000, nil)); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range store.ReadLines[event.RunMedium](ctx, d, "runs/run_2.media.jsonl") {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("it read on to %d", n)
	}
}

func TestParseInterval(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Duration{
		"1s": time.Second, "30s": 30 * time.Second, "5m": 5 * time.Minute, "10m": 10 * time.Minute, "1h": time.Hour,
		"1d": 24 * time.Hour, "30d": 720 * time.Hour, "1h30m": 90 * time.Minute, "1.5s": 1500 * time.Millisecond,
		"": 0, "0": 0, "0d": 0, "999ms": 0, "-1d": 0, "-5m": 0, "1.5d": 0, "1dd": 0, "d": 0, "5": 0, "5 m": 0, "1w": 0,
		"200000d": 0, "300000d": 0, "+1d": 0, "9223372036854775807d": 0,
	} {
		got, err := store.ParseInterval(s)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q is %s, %v", s, got, err)
		}
	}
	for _, s := range store.PublicIntervals {
		if _, err := store.ParseInterval(s); err != nil {
			t.Error(err)
		}
	}
}
