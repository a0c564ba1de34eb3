package match

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		prefix, pattern string
		flat            bool
		yes, no         []string
	}{
		{pattern: "*", yes: []string{"a.mp4", "x/y/a.mp4", ".hidden"}, no: []string{"", "x/", "x/y/"}},
		{pattern: "", yes: []string{"a", "x/a"}},
		{pattern: "*.mp4", yes: []string{"a.mp4", "x/a.mp4"}, no: []string{"a.MP4", "a.mp4x", "a.mov"}},
		{pattern: "*.{mp4,mov}", yes: []string{"a.mp4", "x/a.mov"}, no: []string{"a.mkv"}},
		{pattern: "{a,b{c,d}}.mp4", yes: []string{"a.mp4", "bc.mp4", "bd.mp4"}, no: []string{"b.mp4"}},
		{pattern: "?.mp4", yes: []string{"é.mp4", "a.mp4"}, no: []string{"ab.mp4"}},
		{pattern: "[a-c]*.mp4", yes: []string{"b1.mp4"}, no: []string{"d1.mp4"}},
		{pattern: "videos/*.mov", yes: []string{"videos/a.mov"}, no: []string{"videos/x/a.mov", "other/videos/a.mov"}},
		{pattern: "**/*.mov", yes: []string{"a.mov", "x/y/a.mov"}},
		{prefix: "cams/", pattern: "videos/*.mov", yes: []string{"cams/videos/a.mov"}, no: []string{"cams/a.mov", "videos/a.mov"}},
		{prefix: "cams/", pattern: "cams/*.mov", yes: []string{"cams/a.mov"}},
		{prefix: "cams/2026-0", pattern: "*/a.mp4", yes: []string{"cams/2026-03/a.mp4"}, no: []string{"cams/2026-1/a.mp4"}},
		{prefix: "cams/", pattern: "*", flat: true, yes: []string{"cams/a.mp4"}, no: []string{"cams/x/a.mp4"}},
		{prefix: "cams", pattern: "*", flat: true, yes: []string{"cams.mp4"}, no: []string{"cams/a.mp4"}},
		{prefix: "cams/a [1].mp4", pattern: "a \\[1\\].mp4", flat: true, yes: []string{"cams/a [1].mp4"}},
		// The acceptance case of §8.5: a complete key, its base name, not recursive.
		{prefix: "cams/2026/a.mp4", pattern: "a.mp4", flat: true, yes: []string{"cams/2026/a.mp4"}, no: []string{"cams/2026/a.mp4.bak", "cams/2026/b.mp4"}},
		{pattern: "*.mp4", yes: []string{"line\nbreak.mp4", "caf\u00e9.mp4"}},
		{pattern: "caf\u00e9.mp4", no: []string{"cafe\u0301.mp4"}},
	} {
		m, err := Compile(c.prefix, c.pattern, !c.flat)
		if err != nil {
			t.Errorf("%q: %v", c.pattern, err)
			continue
		}
		for _, p := range c.yes {
			if !m.Match(p) {
				t.Errorf("prefix %q pattern %q flat %v: %q is not selected", c.prefix, c.pattern, c.flat, p)
			}
		}
		for _, p := range c.no {
			if m.Match(p) {
				t.Errorf("prefix %q pattern %q flat %v: %q is selected", c.prefix, c.pattern, c.flat, p)
			}
		}
	}
	if (Matcher{}).Match("a") {
		t.Error("the zero matcher selects")
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, p := range []string{"[a", "{a", "a{b,c", "[", "\\"} {
		if _, err := Compile("", p, true); !errors.Is(err, ErrPattern) || !strings.Contains(err.Error(), fmt.Sprintf("%q", p)) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

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

// FuzzCompile: no pattern and no path makes the matcher panic.
func FuzzCompile(f *testing.F) {
	f.Add("cams/", "*.{mp4,mov}", "cams/a.mp4", true)
	f.Add("", "[a-", "a", false)
	f.Fuzz(func(_ *testing.T, prefix, pattern, path string, recursive bool) {
		if m, err := Compile(prefix, pattern, recursive); err == nil {
			m.Match(path)
		}
	})
}
