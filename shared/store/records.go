package store

import (
	"encoding/json"
	"net/url"
	"path/filepath"
	"time"

	"millrace/shared/event"
)

// Connector is access to one bucket, container or folder.
type Connector struct {
	ID             string           `json:"connector_id"`
	Name           string           `json:"name"`
	Provider       string           `json:"provider"` // dir, gcs, s3 or azure
	Status         string           `json:"status"`
	Scopes         []string         `json:"scopes"` // import, export
	ImportMode     event.ImportMode `json:"import_mode"`
	ExportBasePath string           `json:"export_base_path,omitempty"`
	Path           string           `json:"path,omitempty"`            // dir: absolute
	Poll           bool             `json:"poll,omitempty"`            // dir: others change it unheard
	Mount          bool             `json:"mount,omitempty"`           // dir: it was a mount point when it was connected
	Bucket         string           `json:"bucket,omitempty"`          // gcs, s3
	Region         string           `json:"region,omitempty"`          // s3
	StorageAccount string           `json:"storage_account,omitempty"` // azure
	Container      string           `json:"container,omitempty"`       // azure
	Project        string           `json:"gcp_project_id,omitempty"`
	UserProject    string           `json:"user_project,omitempty"` // gcs: who pays, where the requester does
	EndpointURL    string           `json:"endpoint_url,omitempty"`
	ForcePathStyle bool             `json:"force_path_style,omitempty"` // s3: the bucket stands in the path and not in the host name
	Subscription   string           `json:"subscription,omitempty"`     // Pub/Sub to pull notifications from: projects/P/subscriptions/S
	Credentials    string           `json:"credentials,omitempty"`      // sealed, bound to id and field
	CreatedAt      time.Time        `json:"created_at"`
	UpdatedAt      time.Time        `json:"updated_at"`
	LastTestedAt   time.Time        `json:"last_tested_at,omitzero"`
	LastTestResult string           `json:"last_test_result,omitempty"` // success or failed
	LastTestError  string           `json:"last_test_error,omitempty"`
}

// The statuses of connectors. One that failed is tried again by whoever has work for it.
const (
	ConnectorActive   = "active"
	ConnectorFailed   = "failed"
	ConnectorDisabled = "disabled"
)

// HasScope reports whether the connector may be used for scope.
func (c Connector) HasScope(scope string) bool {
	for _, s := range c.Scopes {
		if s == scope {
			return true
		}
	}
	return false
}

// URI says where the object of path lies, for people and for tools that read the storage themselves.
func (c Connector) URI(path string) string {
	switch c.Provider {
	case "dir":
		return (&url.URL{Scheme: "file", Path: filepath.Join(c.Path, path)}).String()
	case "s3":
		return (&url.URL{Scheme: "s3", Host: c.Bucket, Path: "/" + path}).String()
	case "azure":
		return (&url.URL{Scheme: "https", Host: c.StorageAccount + ".blob.core.windows.net", Path: "/" + c.Container + "/" + path}).String()
	}
	return (&url.URL{Scheme: "gs", Host: c.Bucket, Path: "/" + path}).String()
}

// LocalPath is the file of path, "" where there is none on this machine.
func (c Connector) LocalPath(path string) string {
	if c.Provider != "dir" {
		return ""
	}
	return filepath.Join(c.Path, path)
}

// Notified reports whether the storage tells us about changes; else only listing finds them.
func (c Connector) Notified() bool { return c.Provider == "dir" || c.Subscription != "" }

// Index is a container that media are imported into.
type Index struct {
	ID        string    `json:"index_id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

// Automation is the saved import configuration of one index.
type Automation struct {
	ID              string          `json:"automation_id"`
	Index           string          `json:"index_id"`
	Enabled         bool            `json:"enabled"`
	Paused          bool            `json:"paused"`
	Connector       string          `json:"connector_id"`
	Prefix          string          `json:"source_prefix"`
	Pattern         string          `json:"file_pattern"`
	Recursive       bool            `json:"recursive"`
	Debounce        string          `json:"debounce_interval"` // as given, e.g. "5m"
	Preset          json.RawMessage `json:"prompt_preset"`     // null: import only
	IncludeExisting bool            `json:"include_existing"`
	Rev             int             `json:"rev"` // counts configurations
	// Turn grows with each pause and resume, and tells the window which of two is the later.
	Turn      int64     `json:"turn,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Steer pauses or resumes the automation at now.
func (a *Automation) Steer(paused bool, now time.Time) {
	a.Paused, a.Turn = paused, max(a.Turn+1, now.UnixNano())
}

// Interval is the debounce interval; "1d" is a day.
func (a Automation) Interval() time.Duration {
	d, _ := ParseInterval(a.Debounce) // checked when it was stored
	return d
}

// Prompt is what runs ask of each medium.
type Prompt struct {
	ID          string          `json:"prompt_id"`
	Name        string          `json:"name"`
	Description string          `json:"description"`
	Text        string          `json:"prompt_text"`
	JSONSchema  json.RawMessage `json:"json_schema"`
	Extra       json.RawMessage `json:"extra,omitempty"` // members that are kept and echoed
	Active      bool            `json:"is_active"`
	CreatedAt   time.Time       `json:"created_at"`
}

// JobStatus is where a job stands.
//
//	pending ──► scanning ──► importing ──► completed
//	   │            │            │
//	   ├────────────┼────────────┼──► failed
//	   └────────────┴────────────┴──► cancelled
type JobStatus string

// The statuses of jobs.
const (
	JobPending   JobStatus = "pending"
	JobScanning  JobStatus = "scanning"
	JobImporting JobStatus = "importing"
	JobCompleted JobStatus = "completed"
	JobFailed    JobStatus = "failed"
	JobCancelled JobStatus = "cancelled"
)

// Terminal reports whether the job has ended.
func (s JobStatus) Terminal() bool { return s == JobCompleted || s == JobFailed || s == JobCancelled }

// Origins of jobs.
const (
	Manual       = "manual"
	ByAutomation = "automation"
)

// Progress counts the files of a job.
type Progress struct {
	Total    int    `json:"total_files"`
	Imported int    `json:"imported"`
	Skipped  int    `json:"skipped"`
	Failed   int    `json:"failed"`
	Bytes    int64  `json:"bytes_transferred"`
	Current  string `json:"current_file,omitempty"`
}

// Job is one import: the object set, its progress, its outcome.
type Job struct {
	ID         string           `json:"job_id"`
	Index      string           `json:"index_id"`
	Connector  string           `json:"connector_id"`
	Automation string           `json:"automation_id,omitempty"`
	Origin     string           `json:"origin"`
	Lane       event.Lane       `json:"lane"`
	Prefix     string           `json:"source_prefix"`
	Pattern    string           `json:"file_pattern"`
	Recursive  bool             `json:"recursive"`
	Mode       event.ImportMode `json:"import_mode"`
	Preset     json.RawMessage  `json:"prompt_preset,omitempty"`
	Status     JobStatus        `json:"status"`
	Progress   Progress         `json:"progress"`
	Left       []Range          `json:"left,omitempty"`  // of the listing, while it is planned; none: all of it
	AsOf       uint64           `json:"as_of,omitempty"` // the progress is true as of this sequence of files
	RetryOf    string           `json:"retry_of,omitempty"`
	RetryPath  string           `json:"retry_path,omitempty"` // the one file of RetryOf that is retried; "": all that failed
	Error      string           `json:"error_message,omitempty"`
	CreatedAt  time.Time        `json:"created_at"`
	StartedAt  time.Time        `json:"started_at,omitzero"`
	EndedAt    time.Time        `json:"ended_at,omitzero"`
	// CancelledBy is the operation that cancelled the job, when it had an id: a repetition of it has succeeded.
	CancelledBy string `json:"cancelled_by,omitempty"`
	// Report is the document with a line per file, once the job has ended and been settled.
	Report string `json:"report,omitempty"`
	// Settled: the end was announced and the file entries are compacted.
	Settled bool `json:"settled,omitempty"`
}

// RunStatus is where a run stands: pending → processing → one of the others.
type RunStatus string

// The statuses of runs; never another (contract §15.3).
const (
	RunPending               RunStatus = "pending"
	RunProcessing            RunStatus = "processing"
	RunCompleted             RunStatus = "completed"
	RunCompletedWithFailures RunStatus = "completed_with_failures"
	RunFailed                RunStatus = "failed"
	RunCancelled             RunStatus = "cancelled"
)

// Terminal reports whether the run has ended.
func (s RunStatus) Terminal() bool { return s != RunPending && s != RunProcessing }

// OfIndex is the Target of a run on all media of an index.
const OfIndex = "index"

// Tally counts media of one type in a run.
type Tally struct {
	Total     int `json:"total"`
	Completed int `json:"completed"`
	Failed    int `json:"failed"`
}

// Run is one prompt run over a list of media.
type Run struct {
	ID         string           `json:"run_id"`
	Job        string           `json:"job_id,omitempty"`
	Index      string           `json:"index_id,omitempty"`
	Target     string           `json:"target,omitempty"` // OfIndex, or "" for media by id or of a job
	Prompt     string           `json:"prompt_id"`
	PromptName string           `json:"prompt_name"`
	Preset     json.RawMessage  `json:"prompt_preset"`
	Status     RunStatus        `json:"status"`
	Tallies    map[string]Tally `json:"tallies"` // by media type
	Seconds    float64          `json:"total_seconds"`
	Media      string           `json:"media"` // the document with a line per medium, in order; "" while the run is being made
	Count      int              `json:"media_count"`
	// ReportsFrom is a position in the reports stream before which nothing is about this run.
	ReportsFrom uint64    `json:"reports_from"`
	Error       string    `json:"error_message,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
	StartedAt   time.Time `json:"started_at,omitzero"`
	EndedAt     time.Time `json:"ended_at,omitzero"`
	Dispatched  bool      `json:"dispatched,omitempty"` // executors have been asked
	Settled     bool      `json:"settled,omitempty"`    // the end was announced
}

// DeletionStatus is where a deletion stands: draining → deleting → deleted.
type DeletionStatus string

// The statuses of deletions (contract §9).
const (
	Draining DeletionStatus = "draining" // jobs and runs in hand are ending
	Deleting DeletionStatus = "deleting" // media and their bytes are being removed
	Gone     DeletionStatus = "deleted"
)

// Deletion is the deletion of one index. It outlives the index.
type Deletion struct {
	ID          string         `json:"deletion_id"`
	Index       string         `json:"index_id"`
	Status      DeletionStatus `json:"status"`
	RequestedAt time.Time      `json:"requested_at"`
	DeletedAt   time.Time      `json:"deleted_at,omitzero"`
}

// Key is an API key. Only its hash is kept.
type Key struct {
	Hash       string    `json:"hash"`
	Prefix     string    `json:"prefix"` // a short, non-secret head to recognise it by
	Name       string    `json:"name"`
	Scopes     []string  `json:"scopes"`
	CreatedAt  time.Time `json:"created_at"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
	RevokedAt  time.Time `json:"revoked_at,omitzero"`
	LastUsedAt time.Time `json:"last_used_at,omitzero"` // to within minutes
}

// ID names the key to those who manage keys. It is made of the hash, and so of nothing that a client sends.
func (k Key) ID() string { return event.DerivedID("key", k.Hash) }

// Active reports whether the key lets anybody in at a time.
func (k Key) Active(now time.Time) bool {
	return k.RevokedAt.IsZero() && (k.ExpiresAt.IsZero() || now.Before(k.ExpiresAt))
}

// Answer is what became of a request with an idempotency key: claimed by a process that carries it out, kept, or, when
// neither, free for the next who sends it.
type Answer struct {
	Request string `json:"request"`           // digest of the request
	Process string `json:"process,omitempty"` // who carries it out
	Attempt string `json:"attempt,omitempty"` // unlike any other
	Beat    int    `json:"beat,omitempty"`    // counts up while Process lives
	Status  int    `json:"status,omitempty"`  // of the answer that is kept
	Body    string `json:"body,omitempty"`    // sealed
	Parts   int    `json:"parts,omitempty"`   // a long body is in so many records of its own
}

// Scan is what is known of the listings of one automation.
type Scan struct {
	Automation string    `json:"automation_id"`
	Epoch      string    `json:"epoch"`   // of the armed timer
	NextAt     time.Time `json:"next_at"` // when it rings
	LastAt     time.Time `json:"last_at,omitzero"`
	Listed     int       `json:"listed"` // objects that matched, last time
	Found      int       `json:"found"`  // of these, new and announced by no notification
	Drift      int       `json:"drift"`  // Found, summed over all scans but the first
	Scans      int       `json:"scans"`
	Error      string    `json:"error,omitempty"`
	Baseline   bool      `json:"baseline,omitempty"` // what is there now shall be settled as baseline by the next scan
	// Underway is the listing that has begun and not come to its end: where the next one goes on, whatever ended this
	// one. It is written every few seconds, so a short scan has none.
	Underway *Underway `json:"underway,omitempty"`
}

// Underway is a listing that has not come to its end.
type Underway struct {
	Ring      string    `json:"ring"`          // the request it serves
	Row       bool      `json:"row,omitempty"` // that request is the automation's standing timer
	Rev       int       `json:"config_rev"`    // of the automation: another configuration is another listing
	StartedAt time.Time `json:"started_at"`
	Listed    int       `json:"listed"` // as in Scan, so far
	Found     int       `json:"found"`
	Drift     int       `json:"drift"`
	Refused   string    `json:"refused,omitempty"` // a name that cannot be imported
	Left      []Range   `json:"left"`
}

// Range is a part of a listing: the keys behind After up to and including Until, "" meaning to the end.
type Range struct {
	After string `json:"after,omitempty"`
	Until string `json:"until,omitempty"`
}

// Holds reports whether key is in the range.
func (r Range) Holds(key string) bool { return key > r.After && (r.Until == "" || key <= r.Until) }
