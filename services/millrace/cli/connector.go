package cli

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"path/filepath"
)

type connectorCommand struct {
	Ls     connectorList   `cmd:"" help:"List connectors."`
	Create connectorCreate `cmd:"" help:"Connect a storage."`
	Test   connectorTest   `cmd:"" help:"Try whether the storage can be listed, and note the outcome."`
	Browse connectorBrowse `cmd:"" help:"List objects, with the matching that jobs and automations use."`
	Rm     connectorRemove `cmd:"" help:"Delete a connector that nothing uses. Imported media stay."`
}

var (
	connectorColumns = []column{
		{"CONNECTOR", "connector_id"}, {"NAME", "name"}, {"PROVIDER", "provider"}, {"STATUS", "status"}, {"LAST TEST", "last_test_result"},
	}
	connectorWide = []column{
		{"FOLDER", "path"}, {"BUCKET", "bucket"}, {"CONTAINER", "container"}, {"SCOPES", "scopes"}, {"MODE", "import_mode"}, {"LAST ERROR", "last_test_error"},
	}
	messageColumns = []column{{"MESSAGE", "message"}}
)

type connectorList struct {
	shown `embed:""`
}

// Run lists connectors.
func (c *connectorList) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/connectors", nil, connectorColumns, connectorWide)
}

type connectorCreate struct {
	Dir connectorCreateDir `cmd:"" help:"Connect a folder of the server's machine, inside one of its --allow-dir roots."`
}

type connectorCreateDir struct {
	shown  `embed:""`
	Path   string   `arg:"" help:"The folder, as the server sees it."`
	Name   string   `help:"What to call it (default: the folder's name)." placeholder:"NAME"`
	Scopes []string `help:"import, export or both." default:"import" placeholder:"LIST"`
	Mode   string   `help:"all imports again what was imported before, new_only does not." enum:"all,new_only" default:"all"`
}

// Run connects a folder.
func (c *connectorCreateDir) Run(ctx context.Context) error {
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return err
	}
	if c.Name == "" {
		c.Name = filepath.Base(path)
	}
	return c.post(ctx, "/connectors/dir", map[string]any{"name": c.Name, "path": path, "scopes": c.Scopes, "import_mode": c.Mode}, connectorColumns, connectorWide)
}

type ofConnector struct {
	shown `embed:""`
	ID    string `arg:"" help:"The connector."`
}

func (c ofConnector) path(verb string) string { return "/connectors/" + url.PathEscape(c.ID) + verb }

type connectorTest struct{ ofConnector }

// Run tests a connector, and fails when the test does.
func (c *connectorTest) Run(ctx context.Context) error {
	var raw json.RawMessage
	if err := c.dial().Do(ctx, http.MethodPost, c.path("/test"), nil, &raw); err != nil {
		return err
	}
	var said struct {
		Success bool    `json:"success"`
		Error   *string `json:"error_message"`
	}
	if err := json.Unmarshal(raw, &said); err != nil {
		return err
	}
	if err := c.show(raw, []column{{"SUCCESS", "success"}, {"ERROR", "error_message"}}, nil); err != nil {
		return err
	}
	if !said.Success && said.Error != nil {
		return errors.New(*said.Error)
	}
	return nil
}

type connectorBrowse struct {
	ofConnector
	Prefix  string `help:"Beginning of the paths." placeholder:"PREFIX"`
	Pattern string `help:"Glob, such as '*.{mp4,mov}'." default:"*" placeholder:"GLOB"`
	Flat    bool   `help:"Leave out what lies in folders below the prefix."`
	Limit   int    `help:"The most to list, up to 1000." default:"1000" placeholder:"N"`
}

// Run lists objects.
func (c *connectorBrowse) Run(ctx context.Context) error {
	body := map[string]any{"prefix": c.Prefix, "pattern": c.Pattern, "recursive": !c.Flat, "limit": c.Limit}
	return c.post(ctx, c.path("/browse"), body, []column{{"PATH", "path"}, {"BYTES", "size_bytes"}, {"MODIFIED", "last_modified"}},
		[]column{{"TYPE", "content_type"}})
}

type connectorRemove struct{ ofConnector }

// Run deletes a connector.
func (c *connectorRemove) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, c.path(""), nil, messageColumns, nil)
}
