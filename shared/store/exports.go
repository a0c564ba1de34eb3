package store

import (
	"time"

	"millrace/shared/event"
)

// ExportStatus is where an export stands: pending ⇄ processing → completed or failed.
type ExportStatus string

// The statuses of exports; never another (contract §17.2).
const (
	ExportPending    ExportStatus = "pending"
	ExportProcessing ExportStatus = "processing"
	ExportCompleted  ExportStatus = "completed"
	ExportFailed     ExportStatus = "failed"
)

// Terminal reports whether the export has ended.
func (s ExportStatus) Terminal() bool { return s == ExportCompleted || s == ExportFailed }

// Export is one file made of results, for download or in the storage of a connector.
type Export struct {
	ID         string             `json:"export_id"`
	Type       event.ExportType   `json:"export_type"`
	Target     string             `json:"target_id"` // id of the index, run or job
	Index      string             `json:"index_id,omitempty"`
	Runs       []string           `json:"prompt_run_ids,omitempty"` // of an index; none: all
	Scope      event.ResultScope  `json:"result_scope"`
	Format     event.ExportFormat `json:"format"`
	Connector  string             `json:"destination_connector_id,omitempty"` // "": for download
	BasePath   string             `json:"destination_base_path,omitempty"`
	Subpath    string             `json:"destination_subpath,omitempty"`
	Automation string             `json:"automation_id,omitempty"`

	Status      ExportStatus `json:"status"`
	Attempts    int          `json:"attempts"` // begun so far; those that ended by a shutdown do not count
	MaxAttempts int          `json:"max_attempts"`
	LastError   string       `json:"last_error,omitempty"` // of the last attempt that failed
	CreatedAt   time.Time    `json:"created_at"`
	AvailableAt time.Time    `json:"available_at"` // when it is tried next, or was first
	StartedAt   time.Time    `json:"started_at,omitzero"`
	EndedAt     time.Time    `json:"completed_at,omitzero"`
	UpdatedAt   time.Time    `json:"updated_at"`

	Size     int64  `json:"file_size_bytes,omitempty"`
	URI      string `json:"uri,omitempty"`      // once completed; "" again when a download has expired
	Document string `json:"document,omitempty"` // of a download
	Settled  bool   `json:"settled,omitempty"`  // the end was announced
}

// ExportAutomation is the saved export configuration of one index: each run on it that completes is exported.
type ExportAutomation struct {
	ID        string             `json:"automation_id"`
	Index     string             `json:"index_id"`
	Enabled   bool               `json:"enabled"`
	Paused    bool               `json:"paused"`
	Connector string             `json:"destination_connector_id"`
	Subpath   string             `json:"destination_subpath,omitempty"`
	Format    event.ExportFormat `json:"format"`
	CreatedAt time.Time          `json:"created_at"`
	UpdatedAt time.Time          `json:"updated_at"`
	// EnabledAt: runs that ended before are none of its business.
	EnabledAt time.Time `json:"enabled_at,omitzero"`
	// HeldFrom is when the first of the runs ended that completed during a pause and have yet to be exported.
	HeldFrom   time.Time `json:"held_from,omitzero"`
	LastExport string    `json:"last_export_id,omitempty"`
	LastAt     time.Time `json:"last_triggered_at,omitzero"`
}
