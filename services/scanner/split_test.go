package scanner

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"millrace/shared/bucket"
	"millrace/shared/match"
	"millrace/shared/store"
)

// TestPropertyMiddle: a guess always lies between, so that both halves together are the whole.
func TestPropertyMiddle(t *testing.T) {
	names := rapid.StringOfN(rapid.SampledFrom([]rune("/-.09aczAZ~é\u00ff\U0001F3AC ")), 0, 8, -1)
	rapid.Check(t, func(t *rapid.T) {
		prefix := names.Draw(t, "prefix")
		name := func(label string) string { return prefix + names.Draw(t, label) }
		at, until, origin := name("at"), name("until"), name("origin")
		if until <= at {
			until = ""
		}
		m := middle(prefix, origin, at, until)
		if m == "" {
			return
		}
		if m <= at || until != "" && m >= until || !strings.HasPrefix(m, prefix) || !utf8.ValidString(m) {
			t.Fatalf("middle(%q, %q, %q, %q) = %q", prefix, origin, at, until, m)
		}
	})
}

// sorted is a bucket of names, which answers in pages and counts requests.
type sorted struct {
	bucket.Source
	names    []string
	page     int
	requests atomic.Int64
	atOnce   atomic.Int64
	most     atomic.Int64
	asked    func()                   // at each request
	broken   func(after string) error // instead of a page
}

func (s *sorted) List(_ context.Context, opts bucket.ListOptions) iter.Seq2[bucket.Object, error] {
	return func(yield func(bucket.Object, error) bool) {
		at := max(opts.StartAfter, opts.Prefix)
		i, exact := slices.BinarySearch(s.names, at)
		if exact && at == opts.StartAfter {
			i++
		}
		for n := 0; i < len(s.names) && strings.HasPrefix(s.names[i], opts.Prefix); i++ {
			if n%s.page == 0 && !s.request(s.names[i], yield) {
				return
			}
			n++
			if opts.Delimiter && strings.Contains(s.names[i][len(opts.Prefix):], "/") {
				continue
			}
			if !yield(bucket.Object{Path: s.names[i], Version: "1"}, nil) {
				return
			}
		}
		s.requests.Add(1) // the last page may be empty
	}
}

func (s *sorted) request(name string, yield func(bucket.Object, error) bool) bool {
	s.requests.Add(1)
	s.most.Store(max(s.most.Load(), s.atOnce.Add(1)))
	defer s.atOnce.Add(-1)
	if s.asked != nil {
		s.asked()
	}
	if s.broken != nil {
		if err := s.broken(name); err != nil {
			yield(bucket.Object{}, err)
			return false
		}
	}
	return true
}

func (s *sorted) listing(atOnce int, left []store.Range) *listing {
	everything, err := match.Compile("", "*", true)
	if err != nil {
		panic(err)
	}
	return newListing(s, store.Connector{ID: testConnector, Provider: "gcs"}, everything, newLimits(atOnce, 1e9), left)
}

var errBreak = errors.New("the connection broke")

// TestPropertyListing: whatever the tree, wherever ranges are cut and the listing breaks off or is given up, each name is
// dealt with exactly once, but for those of pages that were under way when it ended.
func TestPropertyListing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &sorted{page: 1000, names: drawTree(t)}
		breaks := rapid.IntRange(0, 4).Draw(t, "breaks")
		var left []store.Range
		dealt := make(map[string]int)
		for {
			var requests atomic.Int64
			stopAt := int64(rapid.IntRange(1, 6).Draw(t, "stop at request"))
			fails := breaks > 0 && rapid.Bool().Draw(t, "storage fails")
			s.broken = func(string) error {
				if requests.Add(1) >= stopAt && fails {
					return errBreak
				}
				return nil
			}
			l := s.listing(rapid.IntRange(1, 8).Draw(t, "at once"), left)
			pages, killed := 0, false
			var failure error
			for pg, err := range l.pages(context.Background()) {
				if failure = err; err != nil {
					break
				}
				if pages++; breaks > 0 && !fails && pages == int(stopAt) {
					killed = true
					break // before it is dealt with
				}
				for _, f := range pg.files {
					dealt[f.Path]++
				}
			}
			if left = l.left(); failure == nil && !killed {
				break
			}
			if failure != nil && !errors.Is(failure, errBreak) {
				t.Fatal(failure)
			}
			if len(left) == 0 {
				t.Fatal("it ended early and left nothing")
			}
			breaks--
		}
		if len(left) > 0 {
			t.Fatalf("listed to the end, and left %v", left)
		}
		for _, name := range s.names {
			if dealt[name] != 1 {
				t.Fatalf("%q was dealt with %d times", name, dealt[name])
			}
		}
		if len(dealt) != len(s.names) {
			t.Fatalf("%d names of %d", len(dealt), len(s.names))
		}
	})
}

// drawTree returns some thousand names, as people and machines make them.
func drawTree(t *rapid.T) []string {
	var names []string
	for range rapid.IntRange(1, 4).Draw(t, "folders") {
		folder := rapid.SampledFrom([]string{"", "a/", "cams/0/", "cams/1/", "cams/10/", "日本/", "Z", "~/"}).Draw(t, "folder")
		n := rapid.IntRange(0, 4000).Draw(t, "names")
		form := rapid.SampledFrom([]string{"%d", "%07d.mp4", "%x", "clip é %03d", "2026/%02[2]d/%[1]d", "%c.x"}).Draw(t, "form")
		for i := range n {
			name := folder + fmt.Sprintf(form, i, i/100)
			if i := strings.Index(name, "%!"); i >= 0 {
				name = name[:i]
			}
			if utf8.ValidString(name) && !strings.HasSuffix(name, "/") && name != "" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// A long listing is cut where there is something on both sides: nearly all places are busy, and few requests are in vain.
func TestListingSpreads(t *testing.T) {
	const n, places, page = 120_000, 8, perRequest
	for _, c := range []struct {
		what string
		name func(i int) string
	}{
		{"one folder, numbered", func(i int) string { return fmt.Sprintf("in/clip-%07d.mp4", i) }},
		{"one folder, not padded", func(i int) string { return fmt.Sprintf("in/%d", i) }},
		{"days", func(i int) string { return fmt.Sprintf("2026/%02d/%02d/cam-%d.mp4", i/20000+1, i/800%25+1, i) }},
		{"cameras", func(i int) string { return fmt.Sprintf("rushes/camera-%d/clip-%07d.mp4", i%8, i) }},
		{"hashes", func(i int) string { return fmt.Sprintf("%08x", uint32(i)*2654435761) }},
		{"words", func(i int) string {
			return fmt.Sprintf("%s/%d", strings.Repeat(string(rune('a'+i%26)), 3), i)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			s := &sorted{page: page}
			for i := range n {
				s.names = append(s.names, c.name(i))
			}
			slices.Sort(s.names)
			got, rounds := s.rounds(t, places)
			if got != n {
				t.Fatalf("%d names", got)
			}
			ideal := n / page / places
			requests := int(s.requests.Load())
			t.Logf("%d requests in %d rounds; %d and %d would be ideal", requests, rounds, n/page, ideal)
			if rounds > 2*ideal+10 {
				t.Errorf("%d rounds", rounds)
			}
			if requests > n/page*3/2+10*places {
				t.Errorf("%d requests", requests)
			}
		})
	}
}

// rounds lists everything on a storage that is far away, and returns how many times the way there and back that took.
func (s *sorted) rounds(t *testing.T, places int) (names, rounds int) {
	const away = time.Second
	s.asked = func() { time.Sleep(away) }
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		l := s.listing(places+places/3, nil)
		for pg, err := range l.pages(t.Context()) {
			must(t, err)
			names += len(pg.files)
		}
		rounds = int(time.Since(start) / away)
	})
	return names, rounds
}

func TestListingKeepsToTheLimits(t *testing.T) {
	s := &sorted{page: perRequest}
	for i := range 50_000 {
		s.names = append(s.names, fmt.Sprintf("%06d", i))
	}
	lim := newLimits(4, 1e9)
	everything, err := match.Compile("", "*", true)
	must(t, err)
	var all sync.WaitGroup
	for range 3 { // automations of one connector
		all.Go(func() {
			l := newListing(s, store.Connector{ID: testConnector, Provider: "gcs"}, everything, lim, nil)
			n := 0
			for pg, err := range l.pages(t.Context()) {
				must(t, err)
				n += len(pg.files)
			}
			if n != len(s.names) {
				t.Errorf("%d names", n)
			}
		})
	}
	all.Wait()
	if most := s.most.Load(); most > 4 || len(lim.places) != 0 {
		t.Errorf("%d requests at a time, %d places taken", most, len(lim.places))
	}
}

func TestLimitsPaceRequests(t *testing.T) {
	lim := newLimits(1, 0.001)
	must(t, lim.request(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := lim.request(ctx); err == nil {
		t.Error("the second request did not wait")
	}
}
