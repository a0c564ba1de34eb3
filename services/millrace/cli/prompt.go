package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
)

type promptCommand struct {
	Ls     promptList   `cmd:"" help:"List prompts."`
	Create promptCreate `cmd:"" help:"Make a prompt."`
	Get    promptGet    `cmd:"" help:"Show a prompt."`
	Rm     promptRemove `cmd:"" help:"Delete a prompt that no automation uses."`
}

var (
	promptColumns = []column{{"PROMPT", "prompt_id"}, {"NAME", "name"}, {"ACTIVE", "is_active"}, {"CREATED", "created_at"}}
	promptWide    = []column{{"TEXT", "prompt_text"}, {"SCHEMA", "json_schema"}}
)

type promptList struct {
	shown `embed:""`
}

// Run lists prompts.
func (c *promptList) Run(ctx context.Context) error {
	var list struct {
		Prompts json.RawMessage `json:"prompts"`
	}
	if err := c.dial().Get(ctx, "/prompts", &list); err != nil {
		return err
	}
	return c.show(list.Prompts, promptColumns, promptWide)
}

type promptCreate struct {
	shown       `embed:""`
	Name        string `arg:"" help:"What to call it."`
	Text        string `help:"What is asked of each medium; @FILE reads it from a file." required:"" placeholder:"TEXT"`
	Schema      string `help:"JSON Schema of the results, an object; @FILE reads it from a file." default:"{\"type\":\"object\"}" placeholder:"JSON"`
	Description string `help:"A remark." placeholder:"TEXT"`
}

// Run makes a prompt.
func (c *promptCreate) Run(ctx context.Context) error {
	text, err := given("--text", c.Text)
	if err != nil {
		return err
	}
	schema, err := given("--schema", c.Schema)
	if err != nil {
		return err
	}
	if !json.Valid([]byte(schema)) {
		return fmt.Errorf("--schema is not JSON: give a JSON Schema such as {\"type\":\"object\"}, or @FILE")
	}
	body := map[string]any{"name": c.Name, "prompt_text": text, "json_schema": json.RawMessage(schema), "description": c.Description}
	return c.post(ctx, "/prompts", body, promptColumns, promptWide)
}

// given is the value of a flag, or what is in the file that it names with an @.
func given(flag, value string) (string, error) {
	name, isFile := strings.CutPrefix(value, "@")
	if !isFile {
		return value, nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	return strings.TrimSpace(string(data)), nil
}

type ofPrompt struct {
	shown `embed:""`
	ID    string `arg:"" help:"The prompt."`
}

func (c ofPrompt) path() string { return "/prompts/" + url.PathEscape(c.ID) }

type promptGet struct{ ofPrompt }

// Run shows a prompt.
func (c *promptGet) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, c.path(), nil, promptColumns, promptWide)
}

type promptRemove struct{ ofPrompt }

// Run deletes a prompt.
func (c *promptRemove) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, c.path(), nil, messageColumns, nil)
}
