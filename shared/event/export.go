package event

import "time"

// ExportType is what an export is of. Official clients know the first two and refuse a list with any other in it.
type ExportType string

// The types.
const (
	ExportOfIndex ExportType = "index"
	ExportOfRun   ExportType = "prompt_run"
	ExportOfJob   ExportType = "import_job"
)

// ExportFormat is how an export is written.
type ExportFormat string

// The formats.
const (
	FormatJSON  ExportFormat = "json"  // one document
	FormatLines ExportFormat = "jsonl" // a JSON object per line
	FormatCSV   ExportFormat = "csv"   // RFC 4180, with a heading
)

// ResultScope says which results of a run an export has.
type ResultScope string

// The scopes.
const (
	AllResults  ResultScope = "all"
	OnlyMatches ResultScope = "matches" // media for which the run has a result
)

// ExportRequested asks the exporter for an export. It says all there is to know, so that whoever finds no record of it
// can make one.
type ExportRequested struct {
	Export      string       `json:"export_id"`
	Type        ExportType   `json:"export_type"`
	Target      string       `json:"target_id"`
	Index       string       `json:"index_id,omitempty"`
	Runs        []string     `json:"prompt_run_ids,omitempty"` // of an index; none: all
	Scope       ResultScope  `json:"result_scope"`
	Format      ExportFormat `json:"format"`
	Connector   string       `json:"destination_connector_id,omitempty"` // none: for download
	BasePath    string       `json:"destination_base_path,omitempty"`
	Subpath     string       `json:"destination_subpath,omitempty"`
	Automation  string       `json:"automation_id,omitempty"`
	RequestedAt time.Time    `json:"requested_at"`
}

// The types of export.* events.
const (
	ExportReady  Type = "export.ready"
	ExportFailed Type = "export.failed"
)

// ExportEvent is the data of export.* events.
type ExportEvent struct {
	Export     string     `json:"export_id"`
	Type       ExportType `json:"export_type"`
	Target     string     `json:"target_id"`
	Index      string     `json:"index_id,omitempty"`
	Automation string     `json:"automation_id,omitempty"`
	Status     string     `json:"status"`
	Error      string     `json:"error_message,omitempty"`
}

// ExportAutomationOfIndex is the export automation of an index: there is at most one.
func ExportAutomationOfIndex(index string) string {
	return "exa_" + hash(10, "export automation", index)
}

// ExportOfRunBy is the export of a run that an automation makes.
func ExportOfRunBy(automation, run string) string {
	return "exp_" + hash(16, "export", automation, run)
}
