package match

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestMatch(t *testing.T) {
	tests := []struct {
		prefix, pattern string
		recursive       bool
		yes, no         []string
	}{
		{"", "", true, []string{"a", "a/b", ".hidden", "a/.b", "日本語"}, []string{"", "/", "a/", "a/b/"}},
		{"", "*", false, []string{"a", "a.mp4"}, []string{"a/b", "/a"}},
		{"", "*.mp4", true, []string{"a.mp4", "x/y/a.mp4", ".mp4"}, []string{"a.MP4", "a.mp4x", "mp4", "a.mp4/b"}},
		{"", "*.{mp4,mov}", true, []string{"a.mp4", "x/a.mov"}, []string{"a.mkv", "a.", "a.{mp4,mov}"}},
		{"", "*.{mp4,{jpg,jpeg}}", true, []string{"a.mp4", "a.jpg", "x/a.jpeg"}, []string{"a.jp"}},
		{"", "clip-?.mp4", true, []string{"clip-1.mp4", "x/clip-é.mp4"}, []string{"clip-.mp4", "clip-12.mp4"}},
		{"", "[a-c]*.mp4", true, []string{"a.mp4", "x/c1.mp4"}, []string{"d.mp4", "A.mp4"}},
		{"", "[!a-c]*", true, []string{"d", "x/é"}, []string{"a", "x/b"}},
		{"", "[^-a]x", true, []string{"bx", ".x"}, []string{"-x", "ax"}},
		{"", `\*.mp4`, true, []string{"*.mp4"}, []string{"a.mp4"}},
		{"", "caf\u00e9", true, []string{"caf\u00e9"}, []string{"cafe\u0301"}},

		// The prefix is the beginning of a key, not a folder.
		{"cams/2026-0", "*.mp4", true, []string{"cams/2026-03/a.mp4", "cams/2026-0.mp4"}, []string{"cams/a.mp4", "cams/2026-1/a.mp4"}},
		{"cams/2026-0", "*.mp4", false, []string{"cams/2026-0.mp4", "cams/2026-03.mp4"}, []string{"cams/2026-03/a.mp4"}},
		{"cams/", "*", false, []string{"cams/a"}, []string{"cams/b/a", "cams", "cams/"}},
		{"cams", "*", false, []string{"cams", "camsite"}, []string{"cams/a"}},

		// The acceptance case: a whole key, its last segment, not recursive: exactly that object.
		{"cams/2026-03-01/a.mp4", "a.mp4", false, []string{"cams/2026-03-01/a.mp4"},
			[]string{"cams/2026-03-01/a.mp4.bak", "cams/2026-03-01/a.mp4/a.mp4", "cams/a.mp4", "a.mp4"}},
		{"x/clip [final] {1}.mp4", "clip [final] {1}.mp4", false, []string{"x/clip [final] {1}.mp4"}, []string{"x/clip f 1.mp4"}},
		{"x/a[.mp4", "a[.mp4", false, []string{"x/a[.mp4"}, []string{"x/a.mp4"}},
		{`x/\`, `\`, false, []string{`x/\`}, []string{"x/a"}},

		// With a "/": from the last "/" of the prefix on, and failing that the whole key.
		{"", "videos/*.mov", true, []string{"videos/a.mov"}, []string{"a.mov", "x/videos/a.mov", "videos/x/a.mov"}},
		{"in/", "videos/*.mov", true, []string{"in/videos/a.mov"}, []string{"in/a.mov", "in/x/videos/a.mov"}},
		{"in/vid", "videos/*.mov", true, []string{"in/videos/a.mov"}, []string{"in/video/a.mov"}},
		{"in/", "in/*.mov", true, []string{"in/a.mov", "in/in/a.mov"}, []string{"in/x/a.mov"}},
		{"in/", "videos/*.mov", false, nil, []string{"in/videos/a.mov"}},
		{"", "**/*.mp4", true, []string{"a.mp4", "x/a.mp4", "x/y/z/a.mp4"}, []string{"a.mov"}},
		{"", "x/**/a", true, []string{"x/a", "x/1/a", "x/1/2/a"}, []string{"xa", "x/1/b", "y/x/a"}},
		{"", "x/**", true, []string{"x/a", "x/a/b"}, []string{"xa", "y/a"}},
		{"", "x/**.mp4", true, []string{"x/a.mp4", "x/1/2/a.mp4", "x/.mp4"}, []string{"y/a.mp4", "x.mp4"}},
		{"", "x/a**b/c", true, []string{"x/ab/c", "x/a1b/c", "x/a/b/c", "x/a1/2/3b/c"}, []string{"x/a/c", "x/bc"}},
		{"", "**", true, []string{"a", "x/y/a"}, []string{"x/"}},
		{"", "**.mp4", true, []string{"a.mp4", "x/a.mp4"}, []string{"a.mov"}},
		{"", "{x,y/z}/*.mp4", true, []string{"x/a.mp4", "y/z/a.mp4"}, []string{"z/a.mp4", "y/a.mp4"}},
		{"", "x/?/a", true, []string{"x/1/a"}, []string{"x///a", "x/12/a"}},
		{"", "x[^1]a/b", true, []string{"x2a/b"}, []string{"x/a/b", "x1a/b"}},
		{"", "/x", true, []string{"/x"}, []string{"x"}},
	}
	for _, tt := range tests {
		m, err := Compile(tt.prefix, tt.pattern, tt.recursive)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, path := range tt.yes {
			if !m.Match(path) {
				t.Errorf("%q %q recursive=%v does not match %q", tt.prefix, tt.pattern, tt.recursive, path)
			}
		}
		for _, path := range tt.no {
			if m.Match(path) {
				t.Errorf("%q %q recursive=%v matches %q", tt.prefix, tt.pattern, tt.recursive, path)
			}
		}
	}
}

func TestCompileNamesTheProblem(t *testing.T) {
	for pattern, want := range map[string]string{
		"*.{mp4,mov":                `pattern "*.{mp4,mov": "{" without "}" at byte 2`,
		"*.mp4}":                    `pattern "*.mp4}": "}" without "{" at byte 5`,
		"[a-z":                      `pattern "[a-z": "[" without "]" at byte 0`,
		"a[!]":                      `pattern "a[!]": empty character class at byte 1`,
		`[a\]`:                      `pattern "[a\\]": "[" without "]" at byte 0`,
		`a\`:                        `pattern "a\\": nothing after "\" at byte 1`,
		"{{a}":                      `pattern "{{a}": "{" without "}" at byte 0`,
		strings.Repeat("{a,b}", 11): `braces and "**" multiply to more than 1000 alternatives at byte 45`,
		strings.Repeat("a**", 11):   `braces and "**" multiply to more than 1000 alternatives`,
		strings.Repeat("a", 2000):   "longer than 1024 bytes",
		"{" + strings.Repeat("{a,b}", 5) + "," + strings.Repeat("{a,b}", 10) + "}": "multiply",
	} {
		_, err := Compile("", pattern, true)
		var pe *PatternError
		if !errors.Is(err, ErrPattern) || !errors.As(err, &pe) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", pattern, err, want)
		}
	}
	if _, err := Compile("", strings.Repeat("{a,b}", 9)+strings.Repeat(",", 500), true); err != nil {
		t.Error(err)
	}
}

// TestPropertyGlob holds the matcher against regular expressions that say what the package comment says.
func TestPropertyGlob(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern, expression := drawGlob(t, 3)
		path := rapid.StringOfN(rapid.SampledFrom([]rune("ab/.é")), 1, 8, -1).Draw(t, "path")
		m, err := Compile("", pattern, true)
		if err != nil {
			t.Skip(err) // too many alternatives
		}
		held := path
		if !strings.Contains(pattern, "/") {
			held = path[strings.LastIndexByte(path, '/')+1:]
		}
		if pattern == "" {
			expression = "[^/]*"
		}
		want := regexp.MustCompile(`(?s)\A(?:`+expression+`)\z`).MatchString(held) && !strings.HasSuffix(path, "/")
		if got := m.Match(path); got != want {
			t.Fatalf("%q (%q, %q) matches %q: %v", pattern, m.glob, expression, path, got)
		}
	})
}

// drawGlob returns a pattern and the regular expression for it. A "**" that is a segment of its own has a meaning of its
// own, so it is drawn as what may stand between two segments.
func drawGlob(t *rapid.T, depth int) (pattern, expression string) {
	for i := range rapid.IntRange(1, 4).Draw(t, "segments") {
		if i > 0 {
			if rapid.IntRange(0, 3).Draw(t, "between") == 0 {
				pattern, expression = pattern+"/**/", expression+"/(?:.*/)?"
			} else {
				pattern, expression = pattern+"/", expression+"/"
			}
		}
		p, e := drawSegment(t, depth)
		pattern, expression = pattern+p, expression+e
	}
	return pattern, expression
}

func drawSegment(t *rapid.T, depth int) (pattern, expression string) {
	// A letter at both ends keeps stars from meeting "/" or each other.
	pattern, expression = "a", "a"
	for range rapid.IntRange(0, 3).Draw(t, "parts") {
		var p, e string
		switch rapid.IntRange(0, 7).Draw(t, "part") {
		case 0:
			p, e = "*", "[^/]*"
		case 1:
			p, e = "**", ".*"
		case 2:
			p, e = "?", "[^/]"
		case 3:
			p, e = "[ab]", "[ab]"
		case 4:
			p, e = "[^a]", "[^a/]"
		case 5:
			p, e = `\*`, `\*`
		case 6:
			p, e = "é", "é"
		case 7:
			if depth == 0 {
				continue
			}
			var ps, es []string
			for range rapid.IntRange(1, 3).Draw(t, "alternatives") {
				p, e := drawSegment(t, depth-1)
				ps, es = append(ps, p), append(es, e)
			}
			p, e = "{"+strings.Join(ps, ",")+"}", "(?:"+strings.Join(es, "|")+")"
		}
		pattern, expression = pattern+p+"b", expression+e+"b"
	}
	return pattern, expression
}

// TestPropertyAcceptance: whatever a key is called, prefix = the key and pattern = its last segment finds it.
func TestPropertyAcceptance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		folder := rapid.StringMatching(`([^/]{1,5}/){0,3}`).Draw(t, "folder")
		name := rapid.OneOf(
			rapid.StringMatching(`[^/]{1,10}`), rapid.StringOfN(rapid.SampledFrom([]rune(`a[]{}*?\,!^-`)), 1, 8, -1),
		).Draw(t, "name")
		m, err := Compile(folder+name, name, false)
		if err != nil {
			t.Fatal(err)
		}
		if !m.Match(folder + name) {
			t.Fatalf("prefix %q and pattern %q miss the object", folder+name, name)
		}
		if m.Match(folder+name+"/"+name) || m.Match(folder+name+"/") {
			t.Fatal("matches below the object")
		}
	})
}

func FuzzCompile(f *testing.F) {
	f.Add("", "*.{mp4,mov}", "a.mp4")
	f.Add("x/", "[^-a]**{b,c/**}", "x/a/b/c")
	f.Add("a", `\`, "a")
	f.Fuzz(func(t *testing.T, prefix, pattern, path string) {
		m, err := Compile(prefix, pattern, true)
		if err != nil {
			if !errors.Is(err, ErrPattern) {
				t.Error(err)
			}
			return
		}
		if m.Match(path) && !strings.HasPrefix(path, prefix) {
			t.Errorf("%q matches without the prefix %q", path, prefix)
		}
		var x Index[int]
		x.Add("a", m, 1)
		if found := len(x.Lookup(path)) > 0; found != m.Match(path) {
			t.Errorf("%q, %q: among many %v, alone %v", pattern, path, found, m.Match(path))
		}
		if flat, err := Compile(prefix, pattern, false); err == nil && flat.Match(path) && !m.Match(path) {
			t.Errorf("%q, %q: matches only without the folders below", pattern, path)
		}
	})
}
