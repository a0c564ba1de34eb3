package cli

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"millrace/services/millrace"
	"millrace/services/millrace/client"
)

// The quickstart is what a newcomer would set up by hand, done at the first start: a watched folder that fills an index
// and runs a prompt on what came in.

const (
	quickstartInbox    = "inbox"
	quickstartInterval = "10s"
	// quickstartExec prints what it would process; its answer becomes the result of the run.
	quickstartExec = `printf 'would process %s (%s)\n' "$MILLRACE_TITLE" "$MILLRACE_MEDIA_TYPE" >&2; printf '{"seen":true}'`
)

// quickstart completes the options: the inbox, and an executor that prints.
func quickstart(o *millrace.Options) error {
	inbox, err := filepath.Abs(quickstartInbox)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(inbox, 0o755); err != nil {
		return fmt.Errorf("make the watch folder: %w", err)
	}
	o.AllowDir = append(o.AllowDir, inbox)
	o.ExtraDebounceIntervals = append(o.ExtraDebounceIntervals, quickstartInterval)
	if o.Executor == "nats" {
		o.Executor = "exec=" + quickstartExec
	}
	return nil
}

// welcome wires the inbox if this is the first start, and says what to do next.
func welcome(ctx context.Context, app *millrace.App) error {
	inbox, err := filepath.Abs(quickstartInbox)
	if err != nil {
		return err
	}
	if app.Key != "" {
		if _, err := setUp(ctx, client.New(app.URL(), app.Key), "Inbox", inbox, quickstartInterval); err != nil {
			return fmt.Errorf("set up the inbox: %w", err)
		}
	}
	fmt.Printf("  inbox     %s\n\nDrop media files into the inbox. %s after the last one they become one import job, and a prompt runs on\nexactly what came in. Ctrl-C stops; nothing is lost.\n", inbox, quickstartInterval)
	if app.Key != "" {
		fmt.Printf("\n  export MILLRACE_API_KEY=%s\n", app.Key)
	}
	fmt.Printf("  curl -H \"X-API-Key: $MILLRACE_API_KEY\" %s/api/v2/import-jobs\n\n", app.URL())
	return nil
}

// pipeline is a watched folder wired to an index and a prompt.
type pipeline struct {
	Connector, Index, Prompt string
}

// setUp makes a connector for dir, an index, a prompt, and the automation between them.
func setUp(ctx context.Context, c *client.Client, name, dir, interval string) (p pipeline, err error) {
	var connector struct {
		ID string `json:"connector_id"`
	}
	err = c.Do(ctx, http.MethodPost, "/connectors/dir", map[string]any{"name": name, "path": dir, "scopes": []string{"import"}, "import_mode": "new_only"}, &connector)
	if err != nil {
		return p, err
	}
	var index struct {
		ID string `json:"index_id"`
	}
	if err = c.Do(ctx, http.MethodPost, "/indexes", map[string]any{"name": name}, &index); err != nil {
		return p, err
	}
	var prompt struct {
		ID string `json:"prompt_id"`
	}
	err = c.Do(ctx, http.MethodPost, "/prompts", map[string]any{
		"name": "Describe", "prompt_text": "Describe what can be seen and heard.",
		"json_schema": map[string]any{"type": "object", "properties": map[string]any{"description": map[string]any{"type": "string"}}},
	}, &prompt)
	if err != nil {
		return p, err
	}
	p = pipeline{Connector: connector.ID, Index: index.ID, Prompt: prompt.ID}
	return p, c.Do(ctx, http.MethodPut, pathOfAutomation(p.Index, ""), map[string]any{
		"enabled": true, "paused": false, "connector_id": p.Connector, "source_prefix": "", "file_pattern": "*", "recursive": true,
		"debounce_interval": interval, "prompt_preset": map[string]any{"prompt_id": p.Prompt},
	}, nil)
}
