package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"millrace/services/millrace/client"
)

// server are the flags of commands that speak to a server.
type server struct {
	URL    string `help:"The server." default:"http://127.0.0.1:8080" placeholder:"URL"`
	APIKey string `name:"api-key" help:"Key to present." placeholder:"KEY" secret:"yes"`
}

func (s server) dial() *client.Client { return client.New(s.URL, s.APIKey) }

type jobCommand struct {
	Create jobCreate `cmd:"" help:"Import what lies under a prefix now. Prints the job."`
	Get    jobGet    `cmd:"" help:"Show a job."`
	Watch  jobWatch  `cmd:"" help:"Follow a job to its end: a progress bar on a terminal, JSON lines otherwise."`
	Cancel jobCancel `cmd:"" help:"Cancel a job. What is imported stays."`
}

type jobCreate struct {
	server    `embed:""`
	Connector string `help:"Where the files are." required:"" placeholder:"ID"`
	Index     string `help:"Where they go." required:"" placeholder:"ID"`
	Source    string `name:"source-prefix" help:"Beginning of their paths." placeholder:"PREFIX"`
	Pattern   string `name:"file-pattern" help:"Glob, such as '*.{mp4,mov}'." default:"*" placeholder:"GLOB"`
	Flat      bool   `help:"Leave out what lies in folders below the prefix."`
	Mode      string `help:"all imports again what was imported before, new_only does not (default: the connector's)." placeholder:"all|new_only"`
	Watch     bool   `help:"Follow the job to its end."`
}

// Run creates a job.
func (c *jobCreate) Run(ctx context.Context) error {
	body := map[string]any{
		"connector_id": c.Connector, "index_id": c.Index, "source_prefix": c.Source, "file_pattern": c.Pattern, "recursive": !c.Flat,
	}
	if c.Mode != "" {
		body["import_mode_override"] = c.Mode
	}
	var raw json.RawMessage
	if err := c.dial().Do(ctx, http.MethodPost, "/import-jobs", body, &raw); err != nil {
		return err
	}
	if !c.Watch {
		return printJSON(raw)
	}
	var j client.Job
	if err := json.Unmarshal(raw, &j); err != nil {
		return fmt.Errorf("decode job: %w", err)
	}
	return follow(ctx, c.dial(), j.ID)
}

type jobGet struct {
	server `embed:""`
	ID     string `arg:"" help:"The job."`
}

// Run shows a job.
func (c *jobGet) Run(ctx context.Context) error {
	var raw json.RawMessage
	if err := c.dial().Get(ctx, "/import-jobs/"+c.ID, &raw); err != nil {
		return err
	}
	return printJSON(raw)
}

type jobWatch struct {
	server `embed:""`
	ID     string `arg:"" help:"The job."`
}

// Run follows a job.
func (c *jobWatch) Run(ctx context.Context) error { return follow(ctx, c.dial(), c.ID) }

// follow follows a job and fails when it does.
func follow(ctx context.Context, c *client.Client, id string) error {
	j, err := watchJob(ctx, c, id, os.Stdout, jsonLine)
	if err != nil {
		return err
	}
	if j.Status == "failed" && j.Error != nil {
		return fmt.Errorf("job %s failed: %s", j.ID, *j.Error)
	}
	return nil
}

type jobCancel struct {
	server `embed:""`
	ID     string `arg:"" help:"The job."`
}

// Run cancels a job.
func (c *jobCancel) Run(ctx context.Context) error {
	var raw json.RawMessage
	if err := c.dial().Do(ctx, http.MethodPost, "/import-jobs/"+c.ID+"/cancel", nil, &raw); err != nil {
		return err
	}
	return printJSON(raw)
}

func printJSON(raw json.RawMessage) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(raw)
}
