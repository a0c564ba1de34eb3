package match

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The index finds exactly what asking every matcher finds, whatever was added and removed before.
func TestIndex(t *testing.T) {
	segment := rapid.StringMatching(`[ab/]{0,4}`)
	rapid.Check(t, func(t *rapid.T) {
		var x Index[int]
		all := map[int]Matcher{}
		for i := range rapid.IntRange(0, 20).Draw(t, "matchers") {
			m, err := Compile(segment.Draw(t, "prefix"), rapid.SampledFrom([]string{"*", "a*", "*/b", "{a,b}"}).Draw(t, "pattern"), rapid.Bool().Draw(t, "recursive"))
			if err != nil {
				t.Fatal(err)
			}
			x.Add(m, i)
			all[i] = m
			if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
				x.Remove(m, i)
				delete(all, i)
			}
		}
		path := rapid.StringMatching(`[ab/]{0,8}`).Draw(t, "path")
		var want []int
		for i, m := range all {
			if m.Match(path) {
				want = append(want, i)
			}
		}
		got := x.Lookup(path)
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("Lookup(%q) = %v, want %v", path, got, want)
		}
	})
}

// BenchmarkLookup is the match half of "notification decode + match": 10,000 automations on 100 connectors.
func BenchmarkLookup(b *testing.B) {
	indexes := make([]Index[int], 100)
	for i := range 10_000 {
		m, err := Compile(fmt.Sprintf("site-%d/cam-%d/", i%7, i/100), "*.{mp4,mov}", true)
		if err != nil {
			b.Fatal(err)
		}
		indexes[i%100].Add(m, i)
	}
	paths := make([]string, 1000)
	for i := range paths {
		paths[i] = fmt.Sprintf("site-%d/cam-%d/2026/03/%d.mp4", rand.IntN(7), rand.IntN(100), i)
	}
	b.ResetTimer()
	for i := range b.N {
		indexes[i%100].Lookup(paths[i%len(paths)])
	}
}
