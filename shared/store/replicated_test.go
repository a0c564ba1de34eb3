package store_test

import (
	"log/slog"
	"testing"
	"time"

	"millrace/shared/broker"
	"millrace/shared/broker/brokertest"
	"millrace/shared/bus"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// TestRecordsOnAClusterAreCurrent writes records through one node and reads them through the others.
func TestRecordsOnAClusterAreCurrent(t *testing.T) {
	t.Parallel()
	nodes := brokertest.Cluster(t, 3)
	regs := make([]*store.Register[counter], 3)
	for node := range regs {
		nc, err := broker.Dial(nodes.NodeURL(node), t.Name())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		b, err := bus.New(nc, topology.Topology{Prefix: "t", Replicas: 3}, "test", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Apply(t.Context(), b.JetStream()); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); b.Complete(t.Context(), b.JetStream()) != nil; {
			if time.Now().After(end) {
				t.Fatal("the streams have no leaders")
			}
		}
		regs[node] = counters(t, b)
	}
	for n := 1; n <= 3000; n++ {
		if err := regs[n%3].Put(t.Context(), "k", counter{n}); err != nil {
			t.Fatal(err)
		}
		for node, r := range regs {
			if v, _, err := r.Get(t.Context(), "k"); v.N != n || err != nil {
				t.Fatalf("through node %d: %d after %d, %v", node, v.N, n, err)
			}
		}
	}
}
