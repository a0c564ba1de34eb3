package match

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func mustCompile(t testing.TB, prefix, pattern string, recursive bool) *Matcher {
	t.Helper()
	m, err := Compile(prefix, pattern, recursive)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestPropertyIndex holds the index against trying every matcher, while entries come, change and go.
func TestPropertyIndex(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var index Index[string]
		model := map[string]*Matcher{}
		word := rapid.StringOfN(rapid.SampledFrom([]rune("ab/é")), 0, 5, -1)
		rt.Repeat(map[string]func(*rapid.T){
			"add": func(rt *rapid.T) {
				id := rapid.SampledFrom([]string{"1", "2", "3", "4", "5", "6"}).Draw(rt, "id")
				pattern := rapid.SampledFrom([]string{"*", "a*", "*b", "a/*", "**/b"}).Draw(rt, "pattern")
				m := mustCompile(t, word.Draw(rt, "prefix"), pattern, rapid.Bool().Draw(rt, "recursive"))
				index.Add(id, m, id)
				model[id] = m
			},
			"remove": func(rt *rapid.T) {
				id := rapid.SampledFrom([]string{"1", "2", "3", "4", "5", "6", "7"}).Draw(rt, "id")
				index.Remove(id)
				delete(model, id)
			},
			"": func(rt *rapid.T) {
				if index.Len() != len(model) {
					rt.Fatalf("%d entries, want %d", index.Len(), len(model))
				}
				if len(model) == 0 && index.root.Load() != nil {
					rt.Fatal("an empty index keeps its tree")
				}
				path := word.Draw(rt, "path")
				want := []string{}
				for id, m := range model {
					if m.Match(path) {
						want = append(want, id)
					}
				}
				got := index.Lookup(path)
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					rt.Fatalf("Lookup %q: %q, want %q", path, got, want)
				}
			},
		})
	})
}

// TestIndexWhileItChanges looks up while another goroutine replaces entries: what is not replaced is always there, and
// what is, is there once.
func TestIndexWhileItChanges(t *testing.T) {
	var index Index[string]
	index.Add("stays", mustCompile(t, "cams/", "*", true), "stays")
	index.Add("changes", mustCompile(t, "cams/a", "*", true), "changes")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got := index.Lookup("cams/a.mp4")
				slices.Sort(got)
				if !slices.Equal(got, []string{"changes", "stays"}) {
					t.Errorf("Lookup: %q", got)
					return
				}
			}
		})
	}
	for i := range 2_000 {
		index.Add("changes", mustCompile(t, "cams/a.mp4"[:i%11], "*", true), "changes")
		index.Add(fmt.Sprint(i%50), mustCompile(t, fmt.Sprintf("cams/b%d", i), "*", true), "other")
		index.Remove(fmt.Sprint((i + 25) % 50))
	}
	close(stop)
	wg.Wait()
}

func BenchmarkLookup(b *testing.B) {
	b.Run("distinct prefixes", func(b *testing.B) {
		benchmarkLookup(b, func(i int) *Matcher {
			return mustCompile(b, fmt.Sprintf("customers/%04d/cams/%02d/", i/10, i%10), "*.{mp4,mov}", true)
		})
	})
	b.Run("one prefix, 100 patterns", func(b *testing.B) {
		benchmarkLookup(b, func(i int) *Matcher {
			return mustCompile(b, "customers/", fmt.Sprintf("*-%02d.{mp4,mov}", i%100), true)
		})
	})
	b.Run("nested prefixes", func(b *testing.B) {
		benchmarkLookup(b, func(i int) *Matcher {
			path := fmt.Sprintf("customers/%04d/cams/%02d/2026-03-01/", i/10, i%10)
			return mustCompile(b, path[:len("customers/")+i%(len(path)-len("customers/"))], "*.mkv", true)
		})
	})
}

func benchmarkLookup(b *testing.B, matcher func(i int) *Matcher) {
	var index Index[int]
	for i := range 10_000 {
		index.Add(fmt.Sprint(i), matcher(i), i)
	}
	paths := make([]string, 1000)
	for i := range paths {
		paths[i] = fmt.Sprintf("customers/%04d/cams/%02d/2026-03-01/clip-%02d.mp4", i, i%10, i%100)
	}
	found := 0
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		found += len(index.Lookup(paths[i%len(paths)]))
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
	b.ReportMetric(float64(found)/float64(b.N), "found/op")
}

func BenchmarkIndexAdd(b *testing.B) {
	var index Index[int]
	matchers := make([]*Matcher, 10_000)
	for i := range matchers {
		matchers[i] = mustCompile(b, fmt.Sprintf("customers/%04d/cams/%02d/", i/10, i%10), "*.{mp4,mov}", true)
		index.Add(fmt.Sprint(i), matchers[i], i)
	}
	for i := 0; b.Loop(); i++ {
		index.Add(fmt.Sprint(i%len(matchers)), matchers[i%len(matchers)], i)
	}
}
