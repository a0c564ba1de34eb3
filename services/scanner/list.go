package scanner

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"millrace/shared/bucket"
	"millrace/shared/event"
	"millrace/shared/match"
	"millrace/shared/store"
)

// pageSize is how many files are looked up and written at a time; the broker takes them as one atomic batch. A page ends
// earlier after listedPerPage names, so that whoever lists a lot and wants little is heard of.
const (
	pageSize      = 500
	listedPerPage = 20_000
)

// file is an object of a page. One with a reason to refuse it can never be imported and has no version.
type file struct {
	connector string
	event.Object
	refused string
}

// page is a part of a listing, of a backlog or of a report.
type page struct {
	files  []file
	cursor string // of a listing: its range goes on behind this path
}

// paged yields files in pages. They are in no order that a cursor could go by.
func paged(files iter.Seq2[file, error]) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		var pg page
		for f, err := range files {
			if err != nil {
				yield(page{}, err)
				return
			}
			if pg.files = append(pg.files, f); len(pg.files) == pageSize {
				if !yield(pg, nil) {
					return
				}
				pg = page{}
			}
		}
		if len(pg.files) > 0 {
			yield(pg, nil)
		}
	}
}

// perRequest is how many names one request to a storage brings: the page of Google, Amazon and most others.
const perRequest = 1000

// listing lists what a bucket holds and selects wants, from several places at a time: a range of names that turns out to
// be long is cut in two by whoever lists it, as long as the limits of the connector leave room for one more.
//
//	a ──────────▶·························· z     one range, a request's worth of it listed
//	a ──────────▶········· m ─────▶········ z     cut at m, and listed from both places
//
// It needs no more of a provider than to begin behind a name. What it holds is constant: a page per place.
type listing struct {
	src       bucket.Source
	connector string
	selects   *match.Matcher
	limits    *limits
	cuts      bool // ranges may be cut

	chunks chan chunk
	all    sync.WaitGroup

	mu      sync.Mutex
	ranges  []*span // what was not dealt with
	waiting []*span // of these, what nobody has begun
	origin  string  // the first name that was seen
}

// span is a range while it is listed. What lies up to After was dealt with.
type span struct{ store.Range }

// chunk is a page on its way.
type chunk struct {
	page
	of    *span
	ended bool // nothing follows in its range
	err   error
}

// newListing returns the listing of what an earlier one left; nothing stands for everything.
func newListing(src bucket.Source, conn store.Connector, selects *match.Matcher, lim *limits, left []store.Range) *listing {
	if len(left) == 0 {
		left = []store.Range{{}}
	}
	l := &listing{
		src: src, connector: conn.ID, selects: selects, limits: lim, chunks: make(chan chunk),
		// To begin in the middle of a folder means to read all names before it.
		cuts: conn.Provider != "dir",
	}
	for _, r := range left {
		l.ranges = append(l.ranges, &span{r})
	}
	l.waiting = slices.Clone(l.ranges)
	return l
}

// left returns what somebody has to list who goes on in place of this listing. It is all but the pages that were dealt
// with.
func (l *listing) left() []store.Range {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := make([]store.Range, len(l.ranges))
	for i, s := range l.ranges {
		left[i] = s.Range
	}
	return left
}

// pages yields the pages, in no order. A page counts as dealt with once the loop asks for the next. An error is the last
// of all. It is to be called once.
func (l *listing) pages(ctx context.Context) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer func() { cancel(); l.all.Wait() }()
		if err := l.limits.enter(ctx); err != nil {
			yield(page{}, err)
			return
		}
		l.begin(ctx)
		for range len(l.ranges) - 1 {
			l.beginIfFree(ctx)
		}
		go func() { l.all.Wait(); close(l.chunks) }()
		for c := range l.chunks {
			if c.err != nil {
				yield(page{}, c.err)
				return
			}
			if (len(c.files) > 0 || !c.ended) && !yield(c.page, nil) {
				return
			}
			l.dealtWith(c)
		}
		if err := ctx.Err(); err != nil {
			yield(page{}, err)
		}
	}
}

func (l *listing) dealtWith(c chunk) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.cursor != "" {
		c.of.After = c.cursor
	}
	if c.ended {
		l.ranges = slices.DeleteFunc(l.ranges, func(s *span) bool { return s == c.of })
	}
}

// begin lists the ranges that wait, one after the other, from one more place, for which the caller has entered.
func (l *listing) begin(ctx context.Context) {
	l.all.Go(func() {
		defer l.limits.leave()
		for s := l.next(); s != nil; s = l.next() {
			if !l.list(ctx, s) {
				return
			}
		}
	})
}

func (l *listing) beginIfFree(ctx context.Context) {
	if l.limits.enterIfFree() {
		l.begin(ctx)
	}
}

func (l *listing) next() *span {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		return nil
	}
	s := l.waiting[0]
	l.waiting = l.waiting[1:]
	return s
}

// list lists a range to its end. It reports whether to go on.
func (l *listing) list(ctx context.Context, s *span) bool {
	send := func(c chunk) bool {
		c.of = s
		select {
		case l.chunks <- c:
			return true
		case <-ctx.Done():
			return false
		}
	}
	if err := l.limits.request(ctx); err != nil {
		return send(chunk{err: err})
	}
	var pg page
	listed, brought := 0, 0
	opts := bucket.ListOptions{Prefix: l.selects.Prefix(), StartAfter: s.After, Delimiter: !l.selects.Recursive()}
	for o, err := range l.src.List(ctx, opts) {
		folder := errors.Is(err, bucket.ErrUnreadable) && strings.HasSuffix(o.Path, "/") // and the listing goes on
		if err != nil && !folder {
			send(chunk{err: err})
			return false
		}
		if s.Until != "" && o.Path > s.Until {
			break
		}
		l.add(&pg, o, folder)
		if listed++; len(pg.files) == pageSize || listed == listedPerPage {
			if !send(chunk{page: pg}) {
				return false
			}
			pg, listed = page{cursor: pg.cursor}, 0
		}
		if brought == 0 {
			l.seen(o.Path)
		}
		if brought++; brought%perRequest == 0 {
			if err := l.limits.request(ctx); err != nil {
				return send(chunk{err: err})
			}
			l.share(ctx, s, o.Path)
		}
	}
	return send(chunk{page: pg, ended: true})
}

// add adds to a page what is wanted.
func (l *listing) add(pg *page, o bucket.Object, folder bool) {
	refused := ""
	switch {
	case folder:
		refused = "folder cannot be read"
	case !l.selects.Match(o.Path):
	case !utf8.ValidString(o.Path):
		// It cannot travel: messages are JSON.
		o.Path, refused = escape(o.Path), "name is not valid UTF-8"
	default:
		pg.files = append(pg.files, file{connector: l.connector, Object: objectOf(o)})
	}
	switch {
	case refused != "":
		pg.files = append(pg.files, file{connector: l.connector, Object: event.Object{Path: o.Path}, refused: refused})
	case utf8.ValidString(o.Path):
		pg.cursor = o.Path
	}
}

// share has somebody else begin a range that waits, or the second half of what is left behind at of s.
func (l *listing) share(ctx context.Context, s *span, at string) {
	if !l.limits.enterIfFree() {
		return
	}
	if !l.cut(s, at) {
		l.limits.leave()
		return
	}
	l.begin(ctx)
}

func (l *listing) seen(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.origin == "" {
		l.origin = name
	}
}

// cut reports whether there is something for one more place to list.
func (l *listing) cut(s *span, at string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 || !l.cuts {
		return len(l.waiting) > 0
	}
	m := middle(l.selects.Prefix(), l.origin, at, s.Until)
	if m == "" || !utf8.ValidString(m) {
		return false
	}
	second := &span{store.Range{After: m, Until: s.Until}}
	s.Until = m
	l.ranges, l.waiting = append(l.ranges, second), append(l.waiting, second)
	return true
}

// escape spells a name that is not valid UTF-8 so that it can be read, and differs from any other.
func escape(path string) string { return strings.Trim(strconv.Quote(path), `"`) }

func objectOf(o bucket.Object) event.Object {
	return event.Object{
		Path: o.Path, Version: o.Version, Order: o.Order, Size: o.Size, ModTime: o.ModTime, CRC32C: o.CRC32C,
	}
}
