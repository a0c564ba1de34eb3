package bus_test

import (
	"errors"
	"fmt"
	"testing"

	"millrace/shared/bus"
	"millrace/shared/service/servicetest"
	"millrace/shared/topology"
)

// TestReadsOnAClusterSeeWhatWasAcknowledged reads through each of three nodes right after a write. Taken as they came,
// about 16 of 200 answers of a follower lacked messages.
func TestReadsOnAClusterSeeWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	for node, b := range servicetest.Cluster(t) {
		const rounds, n = 15, 50
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
