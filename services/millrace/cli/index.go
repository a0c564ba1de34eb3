package cli

import (
	"context"
	"net/http"
	"net/url"
)

type indexCommand struct {
	Ls     indexList   `cmd:"" help:"List indexes."`
	Create indexCreate `cmd:"" help:"Make an index."`
	Get    indexGet    `cmd:"" help:"Show an index."`
	Media  indexMedia  `cmd:"" help:"List the media of an index, the newest first."`
	Rm     indexRemove `cmd:"" help:"Delete an index with all its media. Ask again to see how far that is."`
}

var (
	indexColumns    = []column{{"INDEX", "index_id"}, {"NAME", "name"}, {"CREATED", "created_at"}}
	deletionColumns = []column{{"DELETION", "deletion_id"}, {"STATUS", "status"}, {"MESSAGE", "message"}}
	mediaColumns    = []column{
		{"VIDEO", "video_id"}, {"TITLE", "title"}, {"TYPE", "media_type"}, {"SECONDS", "duration_seconds"}, {"STATUS", "status"}, {"CREATED", "created_at"},
	}
	mediaWide = []column{{"BYTES", "size_bytes"}, {"CONNECTOR", "source_connector_id"}, {"PATH", "source_path"}, {"JOB", "job_id"}, {"URI", "video_uri"}}
)

type indexList struct {
	shown `embed:""`
}

// Run lists indexes.
func (c *indexList) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/indexes", nil, indexColumns, nil)
}

type indexCreate struct {
	shown `embed:""`
	Name  string `arg:"" help:"What to call it."`
}

// Run makes an index.
func (c *indexCreate) Run(ctx context.Context) error {
	return c.post(ctx, "/indexes", map[string]any{"name": c.Name}, indexColumns, nil)
}

// oneIndex is an index that is meant itself.
type oneIndex struct {
	shown `embed:""`
	ID    string `arg:"" help:"The index."`
}

func (c oneIndex) path(verb string) string { return "/indexes/" + url.PathEscape(c.ID) + verb }

type indexGet struct{ oneIndex }

// Run shows an index.
func (c *indexGet) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, c.path(""), nil, indexColumns, nil)
}

type indexMedia struct {
	oneIndex
	Limit int `help:"The most to list; 0: all." default:"100" placeholder:"N"`
}

// Run lists media.
func (c *indexMedia) Run(ctx context.Context) error {
	return c.pages(ctx, c.path("/videos"), optional(), c.Limit, mediaColumns, mediaWide)
}

type indexRemove struct{ oneIndex }

// Run deletes an index.
func (c *indexRemove) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, c.path(""), nil, deletionColumns, nil)
}
