package bus_test

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"millrace/shared/broker"
	"millrace/shared/broker/brokertest"
	"millrace/shared/bus"
	"millrace/shared/topology"
)

// TestReadsOnAClusterSeeWhatWasAcknowledged reads through each of three nodes right after a write. Taken as they came,
// about 16 of 200 answers of a follower lacked messages.
func TestReadsOnAClusterSeeWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	nodes := brokertest.Cluster(t, 3)
	for node := range 3 {
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
		eventually(t, "the streams have leaders", func() bool { return b.Complete(t.Context(), b.JetStream()) == nil })

		const rounds, n = 100, 50
		for r := range rounds {
			job, other := fmt.Sprintf("job-%d-%d", node, r), fmt.Sprintf("other-%d-%d", node, r)
			fill(t, b, n, job)
			if got := all(t, b, topology.Files, "file", job, "*"); len(got) != n {
				t.Fatalf("node %d, round %d: a scan saw %d of %d", node, r, len(got), n)
			}
			fill(t, b, n, other)
			subjects := []string{b.Subject("file", "nobody", "*")}
			for i := range n {
				subjects = append(subjects, b.Subject("file", other, fmt.Sprint(i)))
			}
			got := 0
			for _, err := range b.Last(t.Context(), topology.Files, subjects...) {
				if err != nil {
					t.Fatal(err)
				}
				got++
			}
			if got != n {
				t.Fatalf("node %d, round %d: the last messages of %d subjects were %d", node, r, n, got)
			}
			_, errs := b.PublishAll(t.Context(), []bus.Message{{Subject: subjects[1], Data: []byte("new")}, {Subject: subjects[2], Data: []byte("new")}})
			if errors.Join(errs...) != nil {
				t.Fatal(errs)
			}
			for m, err := range b.Last(t.Context(), topology.Files, subjects[1]) {
				if err != nil || string(m.Data) != "new" {
					t.Fatalf("node %d, round %d: what was replaced is %s: %v", node, r, m.Data, err)
				}
			}
			for m, err := range b.Last(t.Context(), topology.Files, subjects[0]) {
				t.Fatalf("node %d, round %d: %s, %v of a subject without messages", node, r, m.Subject, err)
			}
		}
	}
}
