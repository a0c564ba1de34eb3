package azure

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"millrace/shared/bucket"
)

// list yields blobs in byte order of their names.
//
// A flat account lists in that order by itself. One with a hierarchical namespace (Data Lake Storage) lists folder by
// folder, where "cams/a" comes before "cams-old/a"; its listings say of what kind each entry is, and that is how we know.
// It is walked instead, folder by folder, with the names of one folder per level sorted in memory.
func (c *client) list(ctx context.Context, opts bucket.ListOptions) iter.Seq2[bucket.Object, error] {
	return func(yield func(bucket.Object, error) bool) {
		if !utf8.ValidString(opts.Prefix) || strings.ContainsRune(opts.Prefix, 0) {
			return // as is every name
		}
		switch {
		case opts.Delimiter:
			c.listLevel(ctx, opts, yield)
		case c.folders.Load():
			c.listFolders(ctx, opts, yield)
		default:
			c.listFlat(ctx, opts, yield)
		}
	}
}

// listed is what else a listing tells.
func (c *client) listed() container.ListBlobsInclude {
	return container.ListBlobsInclude{Metadata: c.sums}
}

// listFlat asks for pages of up to 5,000 names. Where to start is given as a name and without the prefix, because Azure
// does not say whether the one is meant to be below the other; the names that begin with the prefix follow each other.
func (c *client) listFlat(ctx context.Context, opts bucket.ListOptions, yield func(bucket.Object, error) bool) {
	query := &container.ListBlobsFlatOptions{Include: c.listed()}
	if start := validPart(opts.StartAfter); start > opts.Prefix {
		query.StartFrom = &start
	} else if opts.Prefix != "" {
		query.Prefix = &opts.Prefix
	}
	last := ""
	for pages := c.blobs.NewListBlobsFlatPager(query); pages.More(); {
		page, err := pages.NextPage(ctx)
		if err == nil {
			err = ctx.Err() // a page can outlive its context
		}
		if err != nil {
			yield(bucket.Object{}, wrap(ctx, "list", opts.Prefix, err))
			return
		}
		for _, item := range page.Segment.BlobItems {
			obj, err := c.newObject(item)
			if err == nil && (item.Properties.ResourceType != nil || obj.Path < last) {
				c.folders.Store(true)
				if last == "" { // nothing has been said yet
					c.listFolders(ctx, opts, yield)
					return
				}
				err = fmt.Errorf("%q comes after %q: folders are walked from now on: %w", obj.Path, last, bucket.ErrUnavailable)
			}
			if err != nil {
				yield(bucket.Object{}, fmt.Errorf("list %q: %w", opts.Prefix, err))
				return
			}
			if obj.Path <= opts.StartAfter {
				continue
			}
			if !strings.HasPrefix(obj.Path, opts.Prefix) {
				return // and so do all that follow
			}
			last = obj.Path
			if !yield(obj, nil) {
				return
			}
		}
	}
}

// listLevel yields the blobs directly below a prefix. No account has these in another order.
func (c *client) listLevel(ctx context.Context, opts bucket.ListOptions, yield func(bucket.Object, error) bool) {
	for page, err := range c.pages(ctx, opts.Prefix) {
		if err != nil {
			yield(bucket.Object{}, wrap(ctx, "list", opts.Prefix, err))
			return
		}
		for _, e := range page {
			if e.blob.Path > opts.StartAfter && !yield(e.blob, nil) {
				return
			}
		}
	}
}

// listFolders yields the blobs at any depth below a prefix, folder by folder.
func (c *client) listFolders(ctx context.Context, opts bucket.ListOptions, yield func(bucket.Object, error) bool) {
	if _, err := c.walk(ctx, opts.Prefix, opts.StartAfter, yield); err != nil {
		yield(bucket.Object{}, wrap(ctx, "list", opts.Prefix, err))
	}
}

// walk yields what lies below a prefix and after a name, and reports whether the loop goes on.
func (c *client) walk(ctx context.Context, prefix, after string, yield func(bucket.Object, error) bool) (bool, error) {
	var entries []entry
	for page, err := range c.pages(ctx, prefix) {
		if err != nil {
			return false, err
		}
		for _, e := range page {
			if e.name > after || e.blob.Path == "" && strings.HasPrefix(after, e.name) {
				entries = append(entries, e)
			}
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	for _, e := range entries {
		if e.blob.Path != "" {
			if !yield(e.blob, nil) {
				return false, nil
			}
			continue
		}
		if more, err := c.walk(ctx, e.name, after, yield); !more {
			return false, err
		}
	}
	return true, nil
}

// entry is a blob, or a folder with the "/" at the end of its name.
type entry struct {
	name string
	blob bucket.Object // without a path: a folder
}

// pages yields what lies directly below a prefix.
func (c *client) pages(ctx context.Context, prefix string) iter.Seq2[[]entry, error] {
	return func(yield func([]entry, error) bool) {
		query := &container.ListBlobsHierarchyOptions{Prefix: &prefix, Include: c.listed()}
		for pages := c.blobs.NewListBlobsHierarchyPager("/", query); pages.More(); {
			page, err := pages.NextPage(ctx)
			if err == nil {
				err = ctx.Err() // a page can outlive its context
			}
			if err != nil {
				yield(nil, err)
				return
			}
			entries := make([]entry, 0, len(page.Segment.BlobItems)+len(page.Segment.BlobPrefixes))
			for _, item := range page.Segment.BlobItems {
				obj, err := c.newObject(item)
				if err != nil {
					yield(nil, err)
					return
				}
				if value(item.Properties.ResourceType) != "directory" {
					entries = append(entries, entry{obj.Path, obj})
				}
			}
			for _, sub := range page.Segment.BlobPrefixes {
				if name := value(sub.Name); len(name) > len(prefix) {
					entries = append(entries, entry{name: name})
				}
			}
			if !yield(entries, nil) {
				return
			}
		}
	}
}

// validPart returns s up to the first byte that cannot be part of a name.
func validPart(s string) string {
	for i, r := range s {
		if r == 0 || r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)) {
			return s[:i]
		}
	}
	return s
}
