package bus_test

import (
	"fmt"
	"testing"

	"millrace/shared/bus"
	"millrace/shared/topology"
)

func TestBack(t *testing.T) {
	t.Parallel()
	b := open(t)
	const n = 1500
	var msgs []bus.Message
	for i := range n {
		service := "a"
		if i%100 == 7 {
			service = "b"
		}
		msgs = append(msgs, bus.Message{Subject: b.Subject("dead", service, "c"), Data: []byte(fmt.Sprint(i))})
	}
	_, errs := b.PublishAll(t.Context(), msgs)
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		filter         string
		before         uint64
		count          int
		newest, oldest uint64
	}{
		{"*", 0, n, n, 1},
		{"*", n + 500, n, n, 1},
		{"*", 101, 100, 100, 1},
		{"*", 1, 0, 0, 0},
		{"b", 0, 15, 1408, 8},
		{"nobody", 0, 0, 0, 0},
	} {
		var seqs []uint64
		for m, err := range b.Back(t.Context(), topology.DeadLetters, b.Subject("dead", c.filter, "*"), c.before) {
			if err != nil {
				t.Fatal(err)
			}
			if len(seqs) > 0 && m.Sequence >= seqs[len(seqs)-1] {
				t.Fatalf("%d after %d", m.Sequence, seqs[len(seqs)-1])
			}
			seqs = append(seqs, m.Sequence)
		}
		if len(seqs) != c.count || c.count > 0 && (seqs[0] != c.newest || seqs[len(seqs)-1] != c.oldest) {
			t.Errorf("%s before %d: %d messages", c.filter, c.before, len(seqs))
		}
	}
	for range b.Back(t.Context(), topology.DeadLetters, ">", 0) {
		break // the caller may stop
	}
}
