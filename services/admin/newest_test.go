package admin

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever comes in whatever order, also more than once: the newest, each once, as it was last.
func TestNewestOf(t *testing.T) {
	type record struct {
		created time.Time
		id      string
		state   int
	}
	created := func(r record) (time.Time, string) { return r.created, r.id }
	rapid.Check(t, func(t *rapid.T) {
		n := newestOf[record]{limit: rapid.IntRange(1, 4).Draw(t, "limit"), created: created}
		last := map[string]record{}
		for i, k := range rapid.SliceOf(rapid.IntRange(0, 11)).Draw(t, "ids") {
			r := record{created: time.Unix(int64(k/2), 0), id: fmt.Sprint(k), state: i}
			last[r.id] = r
			n.add(r)
		}
		var want []record
		for _, r := range last {
			want = append(want, r)
		}
		slices.SortFunc(want, func(x, y record) int { return cmp.Or(y.created.Compare(x.created), cmp.Compare(y.id, x.id)) })
		want = want[:min(n.limit, len(want))]
		if got := n.sorted(); !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}
