package bus_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/topology"
)

// open starts a broker in the process, applies the topology and returns a bus.
func open(t testing.TB) *bus.Bus {
	t.Helper()
	s, err := server.NewServer(&server.Options{JetStream: true, StoreDir: t.TempDir(), DontListen: true, NoSigs: true, NoLog: true, SyncAlways: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the broker did not start")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b, err := bus.New(nc, topology.Topology{Prefix: "t", Replicas: 1}, "test", slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := b.Apply(t.Context(), b.JetStream()); err != nil {
		t.Fatal(err)
	}
	t.Log("apply", time.Since(start))
	start = time.Now()
	if err := b.Apply(t.Context(), b.JetStream()); err != nil {
		t.Fatal(err)
	}
	t.Log("apply again", time.Since(start))
	return b
}

func TestSmoke(t *testing.T) {
	b := open(t)
	ctx := context.Background()
	start := time.Now()
	var msgs []bus.Message
	for i := range 10000 {
		msgs = append(msgs, bus.Message{Subject: b.Subject("file", "j", fmt.Sprint(i)), Data: make([]byte, 300), Expect: bus.Absent()})
	}
	_, errs := b.PublishAll(ctx, msgs)
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Log("10k with CAS", time.Since(start))
	start = time.Now()
	_, errs = b.PublishAll(ctx, msgs[:501])
	n := 0
	for _, err := range errs {
		if err != nil {
			n++
		}
	}
	t.Log("501 conflicts", n, errs[0], time.Since(start))
	var timers []bus.Message
	start = time.Now()
	for i := range 1000 {
		timers = append(timers, bus.Message{Subject: b.Subject("timer", "window", fmt.Sprint(i), "e"), Header: nats.Header{
			jetstream.ScheduleHeader:       {"@at " + time.Now().Add(2*time.Second).UTC().Format(time.RFC3339)},
			jetstream.ScheduleTargetHeader: {b.Subject("due", "window", fmt.Sprint(i))},
		}, Data: []byte("{}")})
	}
	_, errs = b.PublishAll(ctx, timers)
	t.Log("timers", errs[0], time.Since(start))
	start = time.Now()
	n = 0
	for _, err := range b.Scan(ctx, topology.Files, b.Subject("file", "j", "*"), 0) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	t.Log("scan", n, time.Since(start))
	start = time.Now()
	subj := []string{}
	for i := range 500 {
		subj = append(subj, b.Subject("file", "j", fmt.Sprint(i*20+5)))
	}
	n = 0
	for _, err := range b.Last(ctx, topology.Files, subj...) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	t.Log("last 500", n, time.Since(start))
	start = time.Now()
	for i := range 500 {
		subj[i] = b.Subject("file", "k", fmt.Sprint(i*20+5))
	}
	n = 0
	for _, err := range b.Last(ctx, topology.Files, subj...) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	t.Log("last 500 absent", n, time.Since(start))
	start = time.Now()
	for range 100 {
		for _, err := range b.Last(ctx, topology.Files, subj[0]) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Log("100 x last 1 absent", time.Since(start))
	done := make(chan struct{})
	cctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	got := 0
	go func() {
		b.ConsumeBatch(cctx, topology.DebouncerDue, bus.Options{}, func(ctx context.Context, ds []*bus.Delivery) []error {
			got += len(ds)
			if got == 1000 {
				close(done)
			}
			return nil
		})
	}()
	select {
	case <-done:
		t.Log("all due")
	case <-cctx.Done():
		t.Fatal("got", got)
	}
}
