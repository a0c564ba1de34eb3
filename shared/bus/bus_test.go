package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/topology"
)

// patience is how long a test waits for a fact before it fails.
const patience = 10 * time.Second

// open starts a broker in the process, applies the topology and returns a bus.
func open(t testing.TB) *bus.Bus {
	t.Helper()
	b := openBare(t, nil)
	if err := b.Apply(t.Context(), b.JetStream()); err != nil {
		t.Fatal(err)
	}
	return b
}

// openBare is open without the topology, on a broker with other options.
func openBare(t testing.TB, change func(*server.Options)) *bus.Bus {
	t.Helper()
	opts := &server.Options{JetStream: true, StoreDir: t.TempDir(), DontListen: true, NoSigs: true, NoLog: true}
	if change != nil {
		change(opts)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the broker did not start")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b, err := bus.New(nc, topology.Topology{Prefix: "t", Replicas: 1}, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stream makes one stream of the topology by hand, changed.
func stream(t testing.TB, b *bus.Bus, name string, change func(*jetstream.StreamConfig)) jetstream.Stream {
	t.Helper()
	for _, row := range b.Streams() {
		if row.Name != name {
			continue
		}
		if change != nil {
			change(&row.Config)
		}
		s, err := b.JetStream().CreateStream(t.Context(), row.Config)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Fatalf("no stream %s", name)
	return nil
}

// consumer makes one consumer of the topology by hand, changed, with its stream.
func consumer(t testing.TB, b *bus.Bus, name string, change func(*jetstream.ConsumerConfig)) jetstream.Consumer {
	t.Helper()
	for _, row := range b.Consumers() {
		if row.Config.Durable != name {
			continue
		}
		change(&row.Config)
		c, err := stream(t, b, row.Stream, nil).CreateConsumer(t.Context(), row.Config)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	t.Fatalf("no consumer %s", name)
	return nil
}

// eventually waits for a fact.
func eventually(t testing.TB, what string, fact func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !fact() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// await waits for a signal.
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

func message(b *bus.Bus, i int) bus.Message {
	return bus.Message{Subject: b.Subject("file", "job", fmt.Sprint(i)), Data: fmt.Append(nil, i)}
}

func all(t testing.TB, b *bus.Bus, stream string, tokens ...string) []bus.Stored {
	t.Helper()
	var out []bus.Stored
	for m, err := range b.Scan(t.Context(), stream, b.Subject(tokens...), 0) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func TestApplyIsSafeToRepeat(t *testing.T) {
	t.Parallel()
	b := open(t)
	var g sync.WaitGroup
	for range 3 {
		g.Go(func() {
			if err := b.Apply(t.Context(), b.JetStream()); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
}

// Each of many concurrent callers learns the sequence of its own message, and the broker saw far fewer commits than
// messages.
func TestPublishGroupsConcurrentWrites(t *testing.T) {
	t.Parallel()
	b := open(t)
	const n = 2000
	seqs := make([]uint64, n)
	var g sync.WaitGroup
	for i := range n {
		g.Go(func() {
			var err error
			if seqs[i], err = b.Publish(t.Context(), message(b, i)); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()

	at := make(map[uint64]bus.Stored)
	for _, m := range all(t, b, topology.Files, "file", "job", "*") {
		at[m.Sequence] = m
	}
	if len(at) != n {
		t.Fatalf("%d messages are stored", len(at))
	}
	for i, seq := range seqs {
		if want := message(b, i); at[seq].Subject != want.Subject || !bytes.Equal(at[seq].Data, want.Data) {
			t.Fatalf("message %d is said to be at %d, where %s lies", i, seq, at[seq].Subject)
		}
	}
	// A batch is stored with its id in the headers of each message.
	s, err := b.JetStream().Stream(t.Context(), b.Stream(topology.Files))
	if err != nil {
		t.Fatal(err)
	}
	commits := 0
	for i := uint64(1); i <= n; i++ {
		m, err := s.GetMsg(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header.Get("Nats-Batch-Id") == "" || m.Header.Get("Nats-Batch-Commit") != "" {
			commits++
		}
	}
	if commits > n/4 {
		t.Errorf("%d commits for %d messages", commits, n)
	}
	t.Logf("%d commits for %d messages", commits, n)
}

func TestConflictsLeaveTheirNeighboursWritten(t *testing.T) {
	t.Parallel()
	b := open(t)
	ctx := t.Context()
	taken := map[int]bool{0: true, 7: true, 8: true, 499: true, 500: true, 731: true}
	for i := range taken {
		if _, err := b.Publish(ctx, message(b, i)); err != nil {
			t.Fatal(err)
		}
	}
	msgs := make([]bus.Message, 1200)
	for i := range msgs {
		msgs[i] = message(b, i)
		msgs[i].Expect = bus.Absent()
	}
	seqs, errs := b.PublishAll(ctx, msgs)
	stored := make(map[string]uint64)
	for _, m := range all(t, b, topology.Files, "file", "job", "*") {
		stored[m.Subject] = m.Sequence
	}
	for i := range msgs {
		if taken[i] {
			if !errors.Is(errs[i], bus.ErrConflict) {
				t.Errorf("message %d, which was there: %v", i, errs[i])
			}
			continue
		}
		if errs[i] != nil || stored[msgs[i].Subject] != seqs[i] {
			t.Errorf("message %d: %v, said to be at %d, lies at %d", i, errs[i], seqs[i], stored[msgs[i].Subject])
		}
	}

	// A revision that is true goes through, beside one that is not.
	right, wrong := stored[msgs[1].Subject], stored[msgs[2].Subject]-1
	msgs[1].Expect, msgs[2].Expect = &right, &wrong
	seqs, errs = b.PublishAll(ctx, msgs[1:3])
	if errs[0] != nil || seqs[0] <= right || !errors.Is(errs[1], bus.ErrConflict) {
		t.Errorf("revisions: %v %v", seqs, errs)
	}
}

// A repetition of an id is a success, with the sequence of the first, and costs its neighbours nothing.
func TestRepeatedIDs(t *testing.T) {
	t.Parallel()
	b := open(t)
	m := message(b, 0)
	m.ID = "once"
	first, err := b.Publish(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	seqs, errs := b.PublishAll(t.Context(), []bus.Message{message(b, 1), m, message(b, 2)})
	if err := errors.Join(errs...); err != nil || seqs[1] != first {
		t.Errorf("%v at %v, first was at %d", err, seqs, first)
	}
	if n := len(all(t, b, topology.Files, "file", "job", "*")); n != 3 {
		t.Errorf("%d messages are stored", n)
	}
}

// One subject can be written many times at once: the writes keep their order and are never in one batch.
func TestPublishOneSubjectManyTimes(t *testing.T) {
	t.Parallel()
	b := open(t)
	dead := b.Subject("dead", "test", "consumer")
	var g sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[uint64]bool)
	for i := range 100 {
		g.Go(func() {
			seq, err := b.Publish(t.Context(), bus.Message{Subject: dead, Data: fmt.Append(nil, i)})
			mu.Lock()
			defer mu.Unlock()
			if err != nil || seen[seq] {
				t.Errorf("sequence %d: %v", seq, err)
			}
			seen[seq] = true
		})
	}
	g.Wait()
	if n := len(all(t, b, topology.DeadLetters, "dead", "*", "*")); n != 100 {
		t.Errorf("%d messages are stored", n)
	}

	// Of many that expect the same revision, one wins.
	won := 0
	for range 20 {
		g.Go(func() {
			m := message(b, 1)
			m.Expect = bus.Absent()
			_, err := b.Publish(t.Context(), m)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, bus.ErrConflict) {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if won != 1 {
		t.Errorf("%d won", won)
	}
}

// What the server does with a subject that occurs twice in an atomic batch, which PublishAll forbids: it takes it when
// nothing is expected of the subject, and refuses the batch else. Halving then stores one of the two.
func TestSubjectTwiceInABatch(t *testing.T) {
	t.Parallel()
	b := open(t)
	event := bus.Message{Subject: b.Subject("event", "x", "i", "s"), Data: []byte("{}")}
	seqs, errs := b.PublishAll(t.Context(), []bus.Message{event, event})
	if err := errors.Join(errs...); err != nil || seqs[1] != seqs[0]+1 {
		t.Errorf("without expectation: %v %v", seqs, err)
	}
	m := message(b, 1)
	m.Expect = bus.Absent()
	_, errs = b.PublishAll(t.Context(), []bus.Message{m, m})
	if errs[0] != nil || !errors.Is(errs[1], bus.ErrConflict) {
		t.Errorf("with expectation: %v", errs)
	}
}

// Few messages go by themselves: in their order, each with its own verdict.
func TestFewAreNoBatch(t *testing.T) {
	t.Parallel()
	b := open(t)
	taken := message(b, 1)
	if _, err := b.Publish(t.Context(), taken); err != nil {
		t.Fatal(err)
	}
	msgs := []bus.Message{message(b, 2), taken, message(b, 3)}
	for i := range msgs {
		msgs[i].Expect = bus.Absent()
	}
	seqs, errs := b.PublishAll(t.Context(), msgs)
	if errs[0] != nil || !errors.Is(errs[1], bus.ErrConflict) || errs[2] != nil {
		t.Fatal(errs)
	}
	if seqs[0] != 2 || seqs[2] != 3 {
		t.Errorf("sequences %v", seqs)
	}
	s, err := b.JetStream().Stream(t.Context(), b.Stream(topology.Files))
	if err != nil {
		t.Fatal(err)
	}
	for i, seq := range []uint64{2, 3} {
		m, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != msgs[2*i].Subject || m.Header.Get("Nats-Batch-Id") != "" {
			t.Errorf("at %d: %s %v", seq, m.Subject, m.Header)
		}
	}
}

func TestPublishWithACancelledContext(t *testing.T) {
	t.Parallel()
	b := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Publish(ctx, message(b, 1)); !errors.Is(err, bus.ErrUnknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	_, errs := b.PublishAll(ctx, []bus.Message{message(b, 2), message(b, 3)})
	for _, err := range errs {
		if !errors.Is(err, bus.ErrUnknown) {
			t.Errorf("%v", err)
		}
	}
	// Others are not taken down, and the message itself may well have been written: that is what unknown means.
	if _, err := b.Publish(t.Context(), message(b, 4)); err != nil {
		t.Error(err)
	}
}

func TestExpectIsTheCallersAgainAfterItLeft(t *testing.T) {
	t.Parallel()
	b := open(t)
	left, leave := context.WithCancel(t.Context())
	leave()
	for i := range 50 {
		m := message(b, i)
		m.Expect = bus.Absent()
		_, err := b.Publish(left, m)
		*m.Expect = 1 << 40 // as a caller does that uses its variable for something else; the race detector looks on
		if err != nil && !errors.Is(err, bus.ErrUnknown) {
			t.Fatal(err)
		}
	}
	if _, err := b.Publish(t.Context(), message(b, 50)); err != nil { // it leaves after all the others
		t.Fatal(err)
	}
	if got := len(all(t, b, topology.Files, "file", "job", "*")); got != 51 {
		t.Errorf("%d of 51 were written under the expectation they were published with", got)
	}
}

func TestStoreFull(t *testing.T) {
	t.Parallel()
	b := openBare(t, func(o *server.Options) { o.JetStreamMaxStore = 1 << 20 })
	stream(t, b, topology.Files, nil)
	body := make([]byte, 64<<10)
	eventually(t, "the store is full", func() bool {
		m := message(b, time.Now().Nanosecond())
		m.Data = body
		_, err := b.Publish(t.Context(), m)
		if err != nil && !errors.Is(err, bus.ErrFull) {
			t.Fatal(err)
		}
		return err != nil
	})
	msgs := []bus.Message{message(b, 1), message(b, 2), message(b, 3)}
	for i := range msgs {
		msgs[i].Data = body
	}
	start := time.Now()
	_, errs := b.PublishAll(t.Context(), msgs)
	for _, err := range errs {
		if !errors.Is(err, bus.ErrFull) {
			t.Errorf("a batch: %v", err)
		}
	}
	// The first messages may still fit while a later one does not.
	msgs[0].Data, msgs[1].Data = nil, nil
	_, errs = b.PublishAll(t.Context(), msgs)
	if !errors.Is(errs[2], bus.ErrFull) {
		t.Errorf("the large one of a batch: %v", errs[2])
	}
	if d := time.Since(start); d > patience/2 {
		t.Errorf("it took %s to learn that the store is full", d)
	}
}

func TestNoAnswerIsUnknown(t *testing.T) {
	t.Parallel()
	b := openBare(t, nil)
	stream(t, b, topology.Files, func(c *jetstream.StreamConfig) { c.NoAck = true })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for n := range 3 {
		_, errs := b.PublishAll(ctx, []bus.Message{message(b, 1), message(b, 2), message(b, 3)}[:n+1])
		for _, err := range errs {
			if !errors.Is(err, bus.ErrUnknown) {
				t.Errorf("%d messages: %v", n+1, err)
			}
		}
	}
	if _, err := b.Publish(ctx, message(b, 1)); !errors.Is(err, bus.ErrUnknown) {
		t.Errorf("one: %v", err)
	}
}

// A stream that is not there yet, as while a cluster elects a leader, is waited for.
func TestPublishWaitsForTheStream(t *testing.T) {
	t.Parallel()
	b := openBare(t, nil)
	done := make(chan error, 2)
	go func() {
		_, err := b.Publish(t.Context(), message(b, 1))
		done <- err
	}()
	go func() {
		_, errs := b.PublishAll(t.Context(), []bus.Message{message(b, 2), message(b, 3)})
		done <- errors.Join(errs...)
	}()
	stream(t, b, topology.Files, nil)
	for range 2 {
		if err := await(t, "the write", done); err != nil {
			t.Error(err)
		}
	}
}

func TestTooManyOpenBatchesWaits(t *testing.T) {
	t.Parallel()
	b := openBare(t, func(o *server.Options) { o.JetStreamLimits.MaxBatchInflightPerStream = 1 })
	stream(t, b, topology.Files, nil)
	nc := b.JetStream().Conn()

	// Somebody has a batch open.
	part := func(seq int, commit bool) *nats.Msg {
		m := nats.NewMsg(message(b, seq).Subject)
		m.Header.Set("Nats-Batch-Id", "other")
		m.Header.Set("Nats-Batch-Sequence", fmt.Sprint(seq))
		if commit {
			m.Header.Set("Nats-Batch-Commit", "1")
		}
		return m
	}
	if _, err := nc.RequestMsg(part(1, false), patience); err != nil {
		t.Fatal(err)
	}
	refused, err := nc.SubscribeSync("_INBOX.>")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	const many = 20 // few would not be a batch
	msgs := make([]bus.Message, many)
	for i := range msgs {
		msgs[i] = message(b, 3+i)
	}
	go func() {
		_, errs := b.PublishAll(t.Context(), msgs)
		done <- errors.Join(errs...)
	}()
	for n := 0; n < 2; { // it was refused, and came again
		m, err := refused.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(m.Data), `"err_code":10210`) {
			n++
		}
	}
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	default:
	}
	if _, err := nc.RequestMsg(part(2, true), patience); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "the batch", done); err != nil {
		t.Error(err)
	}
	if n := len(all(t, b, topology.Files, "file", "job", "*")); n != many+2 {
		t.Errorf("%d messages are stored", n)
	}
}

func TestMessageTooLargeFailsAlone(t *testing.T) {
	t.Parallel()
	b := open(t)
	msgs := []bus.Message{message(b, 1), message(b, 2), message(b, 3)}
	msgs[1].Data = make([]byte, 2<<20)
	_, errs := b.PublishAll(t.Context(), msgs)
	if errs[0] != nil || !errors.Is(errs[1], nats.ErrMaxPayload) || errs[2] != nil {
		t.Error(errs)
	}
}
