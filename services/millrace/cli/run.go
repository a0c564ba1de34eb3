package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"millrace/services/millrace/client"
)

type runCommand struct {
	Ls      runList    `cmd:"" help:"List prompt runs, the newest first."`
	Create  runCreate  `cmd:"" help:"Run a prompt on media: of an index, by id, or what a job imported."`
	Get     runGet     `cmd:"" help:"Show a run."`
	Cancel  runCancel  `cmd:"" help:"Ask a run to stop. Media that are being processed may still be finished."`
	Results runResults `cmd:"" help:"Show the results of a run, of all its media or of one."`
	Failed  runFailed  `cmd:"" help:"List the media that failed in a run, and why."`
}

var (
	runColumns = []column{
		{"RUN", "run_id"}, {"PROMPT", "prompt_name"}, {"STATUS", "status"}, {"MEDIA", "run_context.media_count"}, {"DONE", "completed_segments"},
		{"FAILED", "field_extraction_failures"}, {"STARTED", "executed_at"},
	}
	runWide = []column{
		{"INDEX", "run_context.index_id"}, {"JOB", "job_id"}, {"EXECUTOR", "executor"}, {"ENDED", "completed_at"}, {"ERROR", "error_message"},
	}
)

type runList struct {
	shown `embed:""`
	Index string `help:"Only runs on this index." placeholder:"ID"`
	Video string `help:"Only runs that this medium is part of." placeholder:"ID"`
	Limit int    `help:"The most to list, up to 200." default:"50" placeholder:"N"`
}

// Run lists runs.
func (c *runList) Run(ctx context.Context) error {
	switch {
	case c.Index != "" && c.Video != "":
		return errors.New("give --index or --video, not both")
	case c.Index != "":
		return c.pages(ctx, "/indexes/"+url.PathEscape(c.Index)+"/prompt-runs", optional(), c.Limit, runColumns, runWide)
	}
	path := "/prompt-runs"
	if c.Video != "" {
		path = "/videos/" + url.PathEscape(c.Video) + "/prompt-runs"
	}
	return c.do(ctx, http.MethodGet, path+"?limit="+fmt.Sprint(c.Limit), nil, runColumns, runWide)
}

type runCreate struct {
	shown  `embed:""`
	Prompt string   `help:"The prompt. With --job: that of the job's automation, when left out." placeholder:"ID"`
	Index  string   `help:"Run it on all media of this index." xor:"on" required:"" placeholder:"ID"`
	Video  []string `help:"Run it on these media. Repeatable." xor:"on" required:"" placeholder:"ID"`
	Job    string   `help:"Run it on what this import job brought in." xor:"on" required:"" placeholder:"ID"`
}

// Run starts a run.
func (c *runCreate) Run(ctx context.Context) error {
	if c.Job != "" {
		body := make(map[string]any)
		if c.Prompt != "" {
			body["prompt_preset"] = map[string]any{"prompt_id": c.Prompt}
		}
		return c.post(ctx, pathOfJob(c.Job, "/prompt-run"), body, runColumns, runWide)
	}
	if c.Prompt == "" {
		return errors.New("which prompt? --prompt ID, as millrace prompt ls shows it")
	}
	target := map[string]any{"type": "videos", "video_ids": c.Video}
	if c.Index != "" {
		target = map[string]any{"type": "index", "index_id": c.Index}
	}
	return c.post(ctx, "/prompt-runs/execute", map[string]any{"prompt_id": c.Prompt, "target": target}, runColumns, runWide)
}

type ofRun struct {
	shown `embed:""`
	ID    string `arg:"" help:"The run."`
}

func (c ofRun) path(verb string) string { return "/prompt-runs/" + url.PathEscape(c.ID) + verb }

type runGet struct{ ofRun }

// Run shows a run.
func (c *runGet) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, c.path(""), nil, runColumns, runWide)
}

type runCancel struct{ ofRun }

// Run cancels a run.
func (c *runCancel) Run(ctx context.Context) error {
	return c.post(ctx, c.path("/cancel"), nil, runColumns, runWide)
}

type runResults struct {
	ofRun
	Video string `arg:"" optional:"" help:"Only the results of this medium."`
	Limit int    `help:"The most to show; 0: all." default:"100" placeholder:"N"`
}

// Run shows results.
func (c *runResults) Run(ctx context.Context) error {
	rows := make([]json.RawMessage, 0, 50)
	query := optional("result_level", "video", "limit", "50", "video_id", c.Video)
	for {
		var answer struct {
			Unfiltered client.Page[json.RawMessage] `json:"unfiltered"`
		}
		if err := c.dial().Get(ctx, "/workflow/runs/"+url.PathEscape(c.ID)+"/results?"+query.Encode(), &answer); err != nil {
			return err
		}
		p := answer.Unfiltered
		if rows = append(rows, p.Data...); !p.Pagination.HasMore || p.Pagination.Next == nil || c.Limit > 0 && len(rows) >= c.Limit {
			break
		}
		query.Set("unfiltered_cursor", *p.Pagination.Next)
	}
	if c.Limit > 0 {
		rows = rows[:min(c.Limit, len(rows))]
	}
	return c.showAll(rows, []column{{"VIDEO", "video_id"}, {"STATUS", "status"}, {"RESULT", "metadata_text"}, {"ERROR", "error_message"}},
		[]column{{"AT", "executed_at"}})
}

type runFailed struct{ ofRun }

// Run lists failures.
func (c *runFailed) Run(ctx context.Context) error {
	var failures struct {
		Videos []struct {
			Segments []map[string]any `json:"segments"`
		} `json:"videos"`
	}
	if err := c.dial().Get(ctx, c.path("/failed-segments"), &failures); err != nil {
		return err
	}
	list := make([]map[string]any, 0) // JSON has no null for nothing
	for _, v := range failures.Videos {
		list = append(list, v.Segments...)
	}
	return c.showAll(list, []column{{"VIDEO", "video_id"}, {"ERROR", "error_message"}, {"AT", "completed_at"}}, nil)
}
