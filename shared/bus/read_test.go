package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"millrace/shared/bus"
	"millrace/shared/topology"
)

// fill stores n file states per job.
func fill(t *testing.T, b *bus.Bus, n int, jobs ...string) {
	t.Helper()
	var msgs []bus.Message
	for _, job := range jobs {
		for i := range n {
			msgs = append(msgs, bus.Message{Subject: b.Subject("file", job, fmt.Sprint(i)), Data: fmt.Append(nil, i)})
		}
	}
	if _, errs := b.PublishAll(t.Context(), msgs); errors.Join(errs...) != nil {
		t.Fatal(errors.Join(errs...))
	}
}

func TestScanPages(t *testing.T) {
	t.Parallel()
	b := open(t)
	for _, n := range []int{0, 1, 499, 500, 501, 1000, 1234} {
		job := fmt.Sprint("job", n)
		fill(t, b, n, job)
		got := all(t, b, topology.Files, "file", job, "*")
		if len(got) != n {
			t.Errorf("of %d messages it saw %d", n, len(got))
		}
		for i, m := range got {
			if string(m.Data) != fmt.Sprint(i) || i > 0 && m.Sequence <= got[i-1].Sequence {
				t.Fatalf("message %d is %s at %d", i, m.Data, m.Sequence)
			}
			if m.Subject != b.Subject("file", job, fmt.Sprint(i)) || time.Since(m.Time).Abs() > time.Minute {
				t.Fatalf("message %d: %s, %s", i, m.Subject, m.Time)
			}
		}
	}
	// From a sequence on, and no further than the caller wants.
	tail := all(t, b, topology.Files, "file", "job1234", "*")[1000:]
	n := 0
	for m, err := range b.Scan(t.Context(), topology.Files, b.Subject("file", "job1234", "*"), tail[0].Sequence) {
		if err != nil || m.Sequence != tail[n].Sequence {
			t.Fatal(m.Sequence, err)
		}
		if n++; n == 7 {
			break
		}
	}
	if n != 7 {
		t.Errorf("it saw %d", n)
	}
}

// Each page costs the broker a walk over all subjects that are left, so that there must not be many.
func TestScanTakesFewPages(t *testing.T) {
	t.Parallel()
	b := open(t)
	const n = 12_000
	fill(t, b, n, "job")
	asked, err := b.JetStream().Conn().SubscribeSync("$JS.API.DIRECT.GET." + b.Stream(topology.Files))
	if err != nil {
		t.Fatal(err)
	}
	if got := len(all(t, b, topology.Files, "file", "job", "*")); got != n {
		t.Errorf("of %d messages it saw %d", n, got)
	}
	if pages, _, err := asked.Pending(); err != nil || pages > 5 {
		t.Errorf("in %d pages: %v", pages, err)
	}
}

// A page ends by size too.
func TestScanLargeMessages(t *testing.T) {
	t.Parallel()
	b := open(t)
	var msgs []bus.Message
	for i := range 40 {
		msgs = append(msgs, bus.Message{Subject: b.Subject("file", "large", fmt.Sprint(i)), Data: make([]byte, 512<<10)})
	}
	for few := range slices.Chunk(msgs, 8) { // all at once take a busy disk longer than one write may
		if _, errs := b.PublishAll(t.Context(), few); errors.Join(errs...) != nil {
			t.Fatal(errors.Join(errs...))
		}
	}
	if n := len(all(t, b, topology.Files, "file", "large", "*")); n != len(msgs) {
		t.Errorf("of %d messages it saw %d", len(msgs), n)
	}
	n := 0
	for _, err := range b.Last(t.Context(), topology.Files, b.Subject("file", "large", "*")) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != len(msgs) {
		t.Errorf("of %d newest messages it saw %d", len(msgs), n)
	}
}

// A read that breaks off is an error: whoever took it for the end would forget what it did not see.
func TestReadsNeverEndEarlyInSilence(t *testing.T) {
	t.Parallel()
	b := open(t)
	fill(t, b, 1200, "job")
	filter := b.Subject("file", "job", "*")

	ctx, cancel := context.WithCancel(t.Context())
	n, err := 0, error(nil)
	for _, err = range b.Scan(ctx, topology.Files, filter, 0) {
		if n++; n == 10 {
			cancel()
		}
	}
	if err == nil {
		t.Errorf("a cancelled scan ended without an error after %d", n)
	}
	err = nil
	for _, err = range b.Last(ctx, topology.Files, filter) {
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled read of the last: %v", err)
	}

	err = nil
	for _, err = range b.Scan(t.Context(), "nothing", filter, 0) {
	}
	if !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a stream that is not there: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	mute, err := b.JetStream().Conn().Subscribe("$JS.API.DIRECT.GET.t-mute", func(*nats.Msg) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mute.Unsubscribe() }()
	err = nil
	for _, err = range b.Scan(ctx, "mute", filter, 0) {
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a broker that does not answer: %v", err)
	}
}

// The time a caller takes between two messages is its own affair.
func TestScanWaitsForItsCaller(t *testing.T) {
	t.Parallel()
	b := open(t)
	fill(t, b, 700, "job")
	b.JetStream().Conn().Opts.Timeout = time.Millisecond
	n := 0
	for _, err := range b.Scan(t.Context(), topology.Files, b.Subject("file", "job", "*"), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%300 == 1 {
			fill(t, b, 1000, fmt.Sprint("other", n)) // takes longer than the client's timeout
		}
	}
	if n != 700 {
		t.Errorf("it saw %d", n)
	}
}

func TestLast(t *testing.T) {
	t.Parallel()
	b := open(t)
	fill(t, b, 1300, "a", "b")
	fill(t, b, 1300, "a") // a newer state of each

	last := func(subjects ...string) map[string]uint64 {
		t.Helper()
		out := make(map[string]uint64)
		for m, err := range b.Last(t.Context(), topology.Files, subjects...) {
			if err != nil {
				t.Fatal(err)
			}
			if _, twice := out[m.Subject]; twice {
				t.Fatalf("%s came twice", m.Subject)
			}
			out[m.Subject] = m.Sequence
		}
		return out
	}
	var each []string
	for i := range 1300 {
		each = append(each, b.Subject("file", "a", fmt.Sprint(i)), b.Subject("file", "nobody", fmt.Sprint(i)))
	}
	got := last(each...)
	if len(got) != 1300 {
		t.Errorf("of 1,300 among 2,600 subjects it saw %d", len(got))
	}
	for s, seq := range got {
		if seq <= 2600 {
			t.Fatalf("%s: %d is not the newest", s, seq)
		}
	}
	if n := len(last(b.Subject("file", "b", "*"))); n != 1300 {
		t.Errorf("a wildcard of 1,300: %d", n)
	}
	var wild []string
	for i := range 600 {
		wild = append(wild, b.Subject("file", "*", fmt.Sprint(i)))
	}
	if n := len(last(wild...)); n != 1200 {
		t.Errorf("600 wildcards of 2: %d", n)
	}
	if n := len(last(b.Subject("file", "nobody", "*"), b.Subject("file", "b", "7"))); n != 1 {
		t.Errorf("one of two: %d", n)
	}
	if n := len(last()); n != 0 {
		t.Errorf("no subjects: %d", n)
	}
	n := 0
	for range b.Last(t.Context(), topology.Files, wild...) {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("it went on to %d", n)
	}
}

// What the publisher put in the headers does not pass for the server's.
func TestReadsTrustTheServersHeaders(t *testing.T) {
	t.Parallel()
	b := open(t)
	h := nats.Header{"Nats-Sequence": {"99", "98"}, "Nats-Subject": {"x"}, "Status": {"204"}, "Description": {"EOB"}, "Nats-Num-Pending": {"0"}}
	for i := range 2 {
		m := message(b, i)
		m.Header, m.Data = h, nil
		if _, err := b.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	got := all(t, b, topology.Files, "file", "job", "*")
	if len(got) != 2 || got[0].Sequence != 1 || got[1].Subject != message(b, 1).Subject {
		t.Errorf("%+v", got)
	}
}

func TestPurge(t *testing.T) {
	t.Parallel()
	b := open(t)
	fill(t, b, 10, "a", "b")
	if err := b.Purge(t.Context(), topology.Files, b.Subject("file", "a", "*"), 4); err != nil {
		t.Fatal(err)
	}
	var left []uint64
	for _, m := range all(t, b, topology.Files, "file", "*", "*") {
		left = append(left, m.Sequence)
	}
	want := []uint64{5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}
	if !slices.Equal(left, want) {
		t.Errorf("left are %v", left)
	}
	if err := b.Purge(t.Context(), topology.Files, b.Subject("file", "b", "*"), 0); err != nil {
		t.Fatal(err)
	}
	if n := len(all(t, b, topology.Files, "file", "*", "*")); n != 6 {
		t.Errorf("%d are left", n)
	}
	state, err := b.State(t.Context(), topology.Files)
	if err != nil || state.Msgs != 6 || state.LastSeq != 20 {
		t.Errorf("%+v %v", state, err)
	}
}
