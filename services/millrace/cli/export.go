package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
)

type exportCommand struct {
	Ls       exportList     `cmd:"" help:"List exports, the newest first."`
	Create   exportCreate   `cmd:"" help:"Make a file of the results of a run or an index, or of the files of a job."`
	Get      exportGet      `cmd:"" help:"Show an export."`
	Download exportDownload `cmd:"" help:"Fetch the file of an export."`
}

var (
	exportColumns = []column{
		{"EXPORT", "export_id"}, {"OF", "export_type"}, {"TARGET", "target_id"}, {"STATUS", "status"}, {"BYTES", "file_size_bytes"},
		{"TO", "destination_type"}, {"CREATED", "created_at"},
	}
	exportWide = []column{{"CONNECTOR", "destination_connector_id"}, {"URI", "gcs_uri"}, {"TRIED", "attempts"}, {"ERROR", "last_error"}}
)

type exportList struct {
	shown `embed:""`
	Type  string `help:"Only exports of this: index, prompt_run or import_job (default: the first two)." placeholder:"TYPE"`
	Limit int    `help:"The most to list, up to 200." default:"50" placeholder:"N"`
}

// Run lists exports.
func (c *exportList) Run(ctx context.Context) error {
	query := optional("export_type", c.Type, "limit", fmt.Sprint(c.Limit))
	return c.do(ctx, http.MethodGet, "/exports?"+query.Encode(), nil, exportColumns, exportWide)
}

type exportCreate struct {
	shown   `embed:""`
	OfRun   string `name:"run" help:"Results of this run." xor:"of" required:"" placeholder:"ID"`
	Index   string `help:"Results of all runs on this index." xor:"of" required:"" placeholder:"ID"`
	Job     string `help:"What became of the files of this import job." xor:"of" required:"" placeholder:"ID"`
	Format  string `help:"json, jsonl or csv." default:"json" enum:"json,jsonl,csv"`
	To      string `help:"Connector with the scope export to write it to (default: for download)." placeholder:"ID"`
	Subpath string `help:"Where in the connector, below its export_base_path." placeholder:"PATH"`
}

func (c *exportCreate) path() string {
	switch {
	case c.OfRun != "":
		return "/exports/prompt-run/" + url.PathEscape(c.OfRun)
	case c.Index != "":
		return "/exports/index/" + url.PathEscape(c.Index)
	}
	return "/exports/import-job/" + url.PathEscape(c.Job)
}

// Run makes an export and shows it.
func (c *exportCreate) Run(ctx context.Context) error {
	body := map[string]any{"format": c.Format}
	switch {
	case c.To != "":
		body["destination_connector_id"], body["destination_subpath"] = c.To, c.Subpath
	case c.Subpath != "":
		return errors.New("--subpath is where in a connector: name that with --to ID")
	}
	var made struct {
		ID string `json:"export_id"`
	}
	if err := c.dial().Do(ctx, http.MethodPost, c.path(), body, &made); err != nil {
		return err
	}
	return c.do(ctx, http.MethodGet, "/exports/"+url.PathEscape(made.ID), nil, exportColumns, exportWide)
}

type ofExport struct {
	shown `embed:""`
	ID    string `arg:"" help:"The export."`
}

func (c ofExport) path(verb string) string { return "/exports/" + url.PathEscape(c.ID) + verb }

type exportGet struct{ ofExport }

// Run shows an export.
func (c *exportGet) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, c.path(""), nil, exportColumns, exportWide)
}

type exportDownload struct {
	server `embed:""`
	ID     string `arg:"" help:"The export, which has completed."`
	File   string `short:"f" help:"Where to write it (default: the standard output)." type:"path" placeholder:"FILE"`
}

// Run fetches a file. One that is named is there whole, or not at all.
func (c *exportDownload) Run(ctx context.Context) error {
	fetch := func(w io.Writer) error {
		return c.dial().Stream(ctx, "/exports/"+url.PathEscape(c.ID)+"/download", "", func(body io.Reader) error {
			_, err := io.Copy(w, body)
			return err
		})
	}
	if c.File == "" {
		return fetch(os.Stdout)
	}
	part, err := os.CreateTemp(filepath.Dir(c.File), "."+filepath.Base(c.File)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(part.Name()) }() // which is gone when all went well
	if err := errors.Join(fetch(part), part.Chmod(0o644), part.Close()); err != nil {
		return err
	}
	return os.Rename(part.Name(), c.File)
}
