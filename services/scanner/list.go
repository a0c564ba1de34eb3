package scanner

import (
	"context"
	"errors"
	"iter"
	"strconv"
	"strings"
	"unicode/utf8"

	"millrace/shared/bucket"
	"millrace/shared/event"
	"millrace/shared/match"
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
	cursor string // the listing goes on behind this path
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

// list yields what a bucket holds and selects wants, in pages, behind the path after.
func list(ctx context.Context, src bucket.Source, connector string, selects *match.Matcher, after string) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		var pg page
		listed := 0
		opts := bucket.ListOptions{Prefix: selects.Prefix(), StartAfter: after, Delimiter: !selects.Recursive()}
		for o, err := range src.List(ctx, opts) {
			refused := ""
			switch {
			case errors.Is(err, bucket.ErrUnreadable) && strings.HasSuffix(o.Path, "/"):
				refused = "folder cannot be read" // and the listing goes on
			case err != nil:
				yield(page{}, err)
				return
			case !selects.Match(o.Path):
			case !utf8.ValidString(o.Path):
				// It cannot travel: messages are JSON.
				o.Path, refused = escape(o.Path), "name is not valid UTF-8"
			default:
				pg.files = append(pg.files, file{connector: connector, Object: objectOf(o)})
			}
			if refused != "" {
				pg.files = append(pg.files, file{connector: connector, Object: event.Object{Path: o.Path}, refused: refused})
			} else {
				pg.cursor = o.Path
			}
			if listed++; len(pg.files) == pageSize || listed == listedPerPage {
				if !yield(pg, nil) {
					return
				}
				pg, listed = page{cursor: pg.cursor}, 0
			}
		}
		if len(pg.files) > 0 {
			yield(pg, nil)
		}
	}
}

// escape spells a name that is not valid UTF-8 so that it can be read, and differs from any other.
func escape(path string) string { return strings.Trim(strconv.Quote(path), `"`) }

func objectOf(o bucket.Object) event.Object {
	return event.Object{
		Path: o.Path, Version: o.Version, Order: o.Order, Size: o.Size, ModTime: o.ModTime, CRC32C: o.CRC32C,
	}
}
