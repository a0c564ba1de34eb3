package store_test

import (
	"testing"

	"millrace/shared/service/servicetest"
	"millrace/shared/store"
)

// TestRecordsOnAClusterAreCurrent writes records through one node and reads them through the others.
func TestRecordsOnAClusterAreCurrent(t *testing.T) {
	t.Parallel()
	var regs []*store.Register[counter]
	for _, b := range servicetest.Cluster(t) {
		regs = append(regs, counters(t, b))
	}
	for n := 1; n <= 600; n++ {
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
