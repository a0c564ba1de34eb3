package admin

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"millrace/shared/store"
)

// index is a store.Index as clients see it.
type index struct {
	ID          string  `json:"index_id"`
	Name        string  `json:"name"`
	UserID      string  `json:"user_id"`
	Description *string `json:"description"`
	SortOrder   *int    `json:"sort_order"`
	IsDefault   bool    `json:"is_default"`
	CreatedAt   string  `json:"created_at" format:"date-time"`
}

func viewIndex(x store.Index) index {
	return index{ID: x.ID, Name: x.Name, UserID: owner, CreatedAt: stamp(x.CreatedAt)}
}

type indexPath struct {
	ID string `path:"index_id"`
}

type newIndex struct {
	Body struct {
		Name string `json:"name" minLength:"1" maxLength:"255"`
	}
}

type listIndexes struct {
	IncludeDefaults bool `query:"include_defaults" default:"true" doc:"has no effect: there are no shared demonstration indexes here"`
}

type listVideos struct {
	ID     string `path:"index_id"`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
	Cursor string `query:"cursor" maxLength:"512" doc:"pagination.next_cursor of the page before"`
}

func (a *Admin) indexRoutes() {
	const tag = "Indexes"
	register(a, route{method: "POST", path: "/indexes", scope: write, status: http.StatusCreated, tag: tag, summary: "Create an index"}, a.createIndex)
	register(a, route{method: "GET", path: "/indexes", scope: search, tag: tag, summary: "List indexes", about: "In order of creation."}, a.listIndexes)
	register(a, route{method: "GET", path: "/indexes/{index_id}", scope: search, tag: tag, summary: "Get an index"}, a.getIndex)
	register(a, route{
		method: "GET", path: "/indexes/{index_id}/videos", scope: read, tag: tag,
		summary: "List the media of an index", about: "Newest first.", answer: reflect.TypeFor[page[video]](),
	}, a.listVideos)
}

func (a *Admin) createIndex(ctx context.Context, in *newIndex) (*body[index], error) {
	x := store.Index{ID: newID(ctx, "idx"), Name: in.Body.Name, CreatedAt: time.Now().UTC()}
	x, err := create(ctx, a.indexes, x.ID, x)
	if err != nil {
		return nil, err
	}
	return &body[index]{viewIndex(x)}, nil
}

func (a *Admin) listIndexes(ctx context.Context, _ *listIndexes) (*body[[]index], error) {
	found, err := all(ctx, a.indexes)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(x, y store.Index) int {
		return cmp.Or(x.CreatedAt.Compare(y.CreatedAt), cmp.Compare(x.ID, y.ID))
	})
	list := make([]index, 0, len(found))
	for _, x := range found {
		list = append(list, viewIndex(x))
	}
	return &body[[]index]{list}, nil
}

func (a *Admin) getIndex(ctx context.Context, in *indexPath) (*body[index], error) {
	x, err := lookUp(ctx, a.indexes, "index", in.ID)
	if err != nil {
		return nil, err
	}
	return &body[index]{viewIndex(x)}, nil
}

func (a *Admin) listVideos(ctx context.Context, in *listVideos) (*huma.StreamResponse, error) {
	now, err := a.versions.get(ctx)
	if err != nil {
		return nil, err
	}
	if raw, ok := a.mediaPages.get(now, *in); ok {
		return answered(raw), nil
	}
	followed := a.runBook.knows(now.runs)
	v, err := a.pageOfVideos(ctx, in)
	if err != nil {
		return nil, err
	}
	raw, err := spelled(v)
	if err == nil && followed { // else it may lack a run that was there before it was asked for
		a.mediaPages.put(now, *in, raw)
	}
	return answered(raw), err
}

func (a *Admin) pageOfVideos(ctx context.Context, in *listVideos) (p page[video], err error) {
	if _, err := lookUp(ctx, a.indexes, "index", in.ID); err != nil {
		return p, err
	}
	list := "videos of " + in.ID
	position, err := openCursor(list, in.Cursor)
	if err != nil {
		return p, err
	}
	media, next, err := a.ledger.Page(ctx, in.ID, in.Limit, position)
	if errors.Is(err, store.ErrNotFound) {
		return p, badCursor()
	}
	if err != nil {
		return p, err
	}
	videos, err := a.viewVideos(ctx, media)
	return newPage(videos, in.Limit, sealCursor(list, next)), err
}
