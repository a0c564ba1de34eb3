package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
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
	Create jobCreate `cmd:"" help:"Import what lies under a prefix now."`
	Ls     jobList   `cmd:"" help:"List jobs, the newest first."`
	Get    jobGet    `cmd:"" help:"Show a job."`
	Watch  jobWatch  `cmd:"" help:"Follow a job to its end: a progress bar on a terminal, JSON lines otherwise."`
	Cancel jobCancel `cmd:"" help:"Cancel a job. What is imported stays."`
	Retry  jobRetry  `cmd:"" help:"Try the failed files of a job again, or one file that failed or was skipped, as a new job."`
	Files  jobFiles  `cmd:"" help:"List the files of a job, with attempts and errors."`
}

type jobCreate struct {
	shown     `embed:""`
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
	if !c.Watch {
		return c.post(ctx, "/import-jobs", body, jobColumns, jobWide)
	}
	var j client.Job
	if err := c.dial().Do(ctx, http.MethodPost, "/import-jobs", body, &j); err != nil {
		return err
	}
	return follow(ctx, c.dial(), j.ID)
}

func pathOfJob(id, verb string) string { return "/import-jobs/" + url.PathEscape(id) + verb }

type jobGet struct {
	shown `embed:""`
	ID    string `arg:"" help:"The job."`
}

// Run shows a job.
func (c *jobGet) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, pathOfJob(c.ID, ""), nil, jobColumns, jobWide)
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
	shown `embed:""`
	ID    string `arg:"" help:"The job."`
}

// Run cancels a job.
func (c *jobCancel) Run(ctx context.Context) error {
	return c.post(ctx, pathOfJob(c.ID, "/cancel"), nil, jobColumns, jobWide)
}

var (
	jobColumns = []column{
		{"JOB", "job_id"}, {"STATUS", "status"}, {"FILES", "progress.total_files"}, {"IMPORTED", "progress.imported"}, {"SKIPPED", "progress.skipped"},
		{"FAILED", "progress.failed"}, {"CREATED", "created_at"},
	}
	jobWide = []column{
		{"INDEX", "target_index_id"}, {"CONNECTOR", "connector_id"}, {"PREFIX", "source_prefix"}, {"ORIGIN", "origin"}, {"RETRY OF", "retry_of"}, {"ERROR", "error_message"},
	}
)

type jobList struct {
	shown      `embed:""`
	Status     string `help:"Only jobs of this status." placeholder:"STATUS"`
	Index      string `help:"Only jobs into this index." placeholder:"ID"`
	Automation bool   `help:"Only jobs that an automation made."`
	Limit      int    `help:"The most to list, up to 200." default:"50" placeholder:"N"`
}

// Run lists jobs.
func (c *jobList) Run(ctx context.Context) error {
	query := optional("limit", fmt.Sprint(c.Limit), "status", c.Status, "index_id", c.Index)
	if c.Automation {
		query.Set("automation_only", "true")
	}
	return c.do(ctx, http.MethodGet, "/import-jobs?"+query.Encode(), nil, jobColumns, jobWide)
}

type jobRetry struct {
	shown `embed:""`
	ID    string `arg:"" help:"The job, which has ended."`
	Path  string `help:"One file of it (default: all that failed)." placeholder:"PATH"`
	Watch bool   `help:"Follow the new job to its end."`
}

// Run retries files.
func (c *jobRetry) Run(ctx context.Context) error {
	path, body := pathOfJob(c.ID, "/retry-failed"), any(nil)
	if c.Path != "" {
		path, body = pathOfJob(c.ID, "/files/retry"), map[string]any{"path": c.Path}
	}
	if !c.Watch {
		return c.post(ctx, path, body, jobColumns, jobWide)
	}
	var j client.Job
	if err := c.dial().Do(ctx, http.MethodPost, path, body, &j); err != nil {
		return err
	}
	return follow(ctx, c.dial(), j.ID)
}

type jobFiles struct {
	shown `embed:""`
	ID    string `arg:"" help:"The job."`
	State string `help:"Only files in this state: queued, importing, imported, skipped or failed." placeholder:"STATE"`
	Limit int    `help:"The most to list; 0: all." default:"0" placeholder:"N"`
}

// Run lists files.
func (c *jobFiles) Run(ctx context.Context) error {
	return c.pages(ctx, pathOfJob(c.ID, "/files"), optional("state", c.State), c.Limit,
		[]column{{"PATH", "path"}, {"STATE", "state"}, {"TRIED", "attempts"}, {"REASON", "reason"}, {"ERROR", "error"}},
		[]column{{"BYTES", "size_bytes"}, {"VIDEO", "video_id"}, {"STARTED", "started_at"}, {"ENDED", "ended_at"}})
}

func printJSON(raw json.RawMessage) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(raw)
}
