package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"gopkg.in/yaml.v3"
)

type automationCommand struct {
	Ls     automationList   `cmd:"" help:"List the import automations of all indexes, with their open windows."`
	Get    automationGet    `cmd:"" help:"Show the import automation of an index."`
	Apply  automationApply  `cmd:"" help:"Create or replace the import automation of an index, from a file."`
	Plan   automationPlan   `cmd:"" help:"Show what the automation would import now, without importing it."`
	Pause  automationPause  `cmd:"" help:"Start no job before resume. Arrivals are recorded all the same."`
	Resume automationResume `cmd:"" help:"End a pause."`
	Flush  automationFlush  `cmd:"" help:"Close the open window now: what has arrived becomes a job."`
	Extend automationExtend `cmd:"" help:"Keep the open window open for longer."`
	Drop   automationDrop   `cmd:"" help:"Drop what is in the open window: these versions are not imported by the automation."`
}

var (
	automationColumns = []column{
		{"INDEX", "index_id"}, {"CONNECTOR", "connector_id"}, {"PREFIX", "source_prefix"}, {"PATTERN", "file_pattern"}, {"QUIET", "debounce_interval"},
		{"ENABLED", "enabled"}, {"PAUSED", "paused"}, {"PENDING", "pending_files"}, {"NEXT", "next_fire_at"},
	}
	automationWide = []column{
		{"LAST JOB", "last_job_id"}, {"LAST RUN", "last_run_id"}, {"LAST ERROR", "last_error"},
	}
	watchedColumns = []column{
		{"INDEX", "automation.index_id"}, {"PREFIX", "automation.source_prefix"}, {"PATTERN", "automation.file_pattern"}, {"QUIET", "automation.debounce_interval"},
		{"ENABLED", "automation.enabled"}, {"FILES", "window.files"}, {"BYTES", "window.bytes"}, {"SECONDS LEFT", "window.seconds_left"}, {"HELD", "window.held"},
	}
	watchedWide = []column{
		{"CONNECTOR", "automation.connector_id"}, {"OPENED", "window.opened_at"}, {"LAST JOB", "automation.last_job_id"}, {"LAST ERROR", "automation.last_error"},
	}
)

// ofIndex is an index whose automation is meant.
type ofIndex struct {
	shown `embed:""`
	Index string `arg:"" help:"The index."`
}

func (c ofIndex) path(verb string) string { return pathOfAutomation(c.Index, verb) }

func pathOfAutomation(index, verb string) string {
	return "/indexes/" + url.PathEscape(index) + "/automations/import" + verb
}

type automationList struct {
	shown `embed:""`
}

// Run lists automations.
func (c *automationList) Run(ctx context.Context) error {
	return c.pages(ctx, "/automations", optional(), 0, watchedColumns, watchedWide)
}

type automationGet struct{ ofIndex }

// Run shows an automation.
func (c *automationGet) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, c.path(""), nil, automationColumns, automationWide)
}

type automationApply struct {
	shown `embed:""`
	File  string `arg:"" optional:"" help:"YAML or JSON: index_id, and what PUT takes: connector_id, source_prefix, file_pattern, debounce_interval, prompt_preset, … A - reads from the standard input." placeholder:"FILE"`
	From  string `short:"f" name:"file" help:"The same as the argument." placeholder:"FILE"`
}

// Run applies a file.
func (c *automationApply) Run(ctx context.Context) error {
	name := c.File
	switch {
	case name != "" && c.From != "":
		return errors.New("give the file once: as an argument or with -f")
	case name == "" && c.From == "":
		return errors.New("which file? millrace automation apply -f FILE")
	case name == "":
		name = c.From
	}
	config, index, err := readAutomation(name)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPut, pathOfAutomation(index, ""), config, automationColumns, automationWide)
}

// readAutomation reads the body of a PUT and the index it is for. JSON is YAML too.
func readAutomation(name string) (config map[string]any, index string, err error) {
	var data []byte
	if name == "-" {
		data, err = io.ReadAll(os.Stdin)
	} else {
		data, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, "", err
	}
	if err := yaml.Unmarshal(data, &config); err != nil {
		return nil, "", fmt.Errorf("%s is neither YAML nor JSON: %w", name, err)
	}
	index, _ = config["index_id"].(string)
	if index == "" {
		return nil, "", fmt.Errorf("%s: index_id is missing: the index whose automation this is", name)
	}
	delete(config, "index_id")
	return config, index, nil
}

type automationPlan struct {
	ofIndex
	Limit int `help:"The most files to name, up to 10000." default:"1000" placeholder:"N"`
}

// Run shows a plan.
func (c *automationPlan) Run(ctx context.Context) error {
	var raw json.RawMessage
	if err := c.dial().Get(ctx, c.path("/plan?limit="+fmt.Sprint(c.Limit)), &raw); err != nil {
		return err
	}
	var plan struct {
		Enabled   bool            `json:"enabled"`
		Paused    bool            `json:"paused"`
		Matched   int             `json:"matched_files"`
		Settled   int             `json:"settled_files"`
		Importing int             `json:"importing_files"`
		Bytes     int64           `json:"bytes"`
		Files     json.RawMessage `json:"files"`
		Complete  bool            `json:"complete"`
	}
	if err := json.Unmarshal(raw, &plan); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	if c.Output == "json" {
		return printJSON(raw)
	}
	err := c.show(plan.Files, []column{{"PATH", "path"}, {"BYTES", "size_bytes"}, {"MODIFIED", "last_modified"}, {"WAITING", "waiting"}}, []column{{"VERSION", "version"}})
	if err != nil {
		return err
	}
	// Beside the table, so that this can be piped.
	fmt.Fprintf(os.Stderr, "%d match, %d of them are settled, %d are being imported; %d bytes to import.\n", plan.Matched, plan.Settled, plan.Importing, plan.Bytes)
	switch {
	case !plan.Complete:
		fmt.Fprintln(os.Stderr, "There is more: this is its beginning.")
	case !plan.Enabled:
		fmt.Fprintln(os.Stderr, "The automation is disabled: nothing of this happens.")
	case plan.Paused:
		fmt.Fprintln(os.Stderr, "The automation is paused: this happens after millrace automation resume.")
	}
	return nil
}

type automationPause struct{ ofIndex }

// Run pauses an automation.
func (c *automationPause) Run(ctx context.Context) error {
	return c.post(ctx, c.path("/pause"), nil, automationColumns, automationWide)
}

type automationResume struct{ ofIndex }

// Run resumes an automation.
func (c *automationResume) Run(ctx context.Context) error {
	return c.post(ctx, c.path("/resume"), nil, automationColumns, automationWide)
}

type automationFlush struct{ ofIndex }

// Run flushes a window.
func (c *automationFlush) Run(ctx context.Context) error {
	return c.post(ctx, c.path("/flush"), nil, watchedColumns, watchedWide)
}

type automationExtend struct {
	ofIndex
	By    string    `help:"How much later than its deadline it closes: 10m, 1h, 1d." xor:"when" required:"" placeholder:"TIME"`
	Until time.Time `help:"Or when it closes, RFC 3339." xor:"when" required:"" placeholder:"TIME"`
}

// Run extends a window.
func (c *automationExtend) Run(ctx context.Context) error {
	body := map[string]any{"by": c.By}
	if c.By == "" {
		body = map[string]any{"until": c.Until.Format(time.RFC3339)}
	}
	return c.post(ctx, c.path("/extend"), body, watchedColumns, watchedWide)
}

type automationDrop struct{ ofIndex }

// Run drops a window.
func (c *automationDrop) Run(ctx context.Context) error {
	return c.post(ctx, c.path("/drop"), nil, watchedColumns, watchedWide)
}
