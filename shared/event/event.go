// Package event holds the messages on the bus: their Go types, ids and closed vocabularies.
//
// Each type has a JSON Schema in schemas/v1 and a golden example; a test holds the three together. The types grow by
// optional members only; readers skip members they do not know. Anything else is a new version.
package event

import (
	"encoding/json"
	"time"
)

// Op says what happened to an object.
type Op string

// The operations.
const (
	Created Op = "created" // written, copied or moved into place: complete
	Deleted Op = "deleted"
)

// Notification is our own form of "something happened to an object", for folders and for any program that publishes to
// notification.<connector> itself. Storage providers' own payloads lie in the same stream as they came.
type Notification struct {
	Op      Op        `json:"op"`
	Path    string    `json:"path"`
	Version string    `json:"version,omitempty"` // unknown: the scanner asks the storage
	Order   string    `json:"order,omitempty"`   // sorts the versions of one path; see bucket.Object
	Size    int64     `json:"size,omitempty"`
	ModTime time.Time `json:"mod_time,omitzero"`
	CRC32C  string    `json:"crc32c,omitempty"`
}

// Object is one file of a connector at one version.
type Object struct {
	Path    string    `json:"path"`
	Version string    `json:"version"`
	Order   string    `json:"order,omitempty"`
	Size    int64     `json:"size"` // bytes
	ModTime time.Time `json:"mod_time,omitzero"`
	CRC32C  string    `json:"crc32c,omitempty"` // Castagnoli, base64 of the big-endian value; "" if the storage has none
}

// Found says how an object came to our notice.
type Found string

// The ways.
const (
	ByNotification Found = "notification"
	ByScan         Found = "scan"
	ByImporter     Found = "importer" // the version that superseded the one a task was about
)

// Arrival says that this version of this object is new for this automation.
type Arrival struct {
	Automation string `json:"automation_id"`
	Index      string `json:"index_id"`
	Connector  string `json:"connector_id"`
	Object
	Found Found `json:"found"`
}

// Timer is the body of the timer of a scan and of what it turns into when it rings.
type Timer struct {
	Automation string `json:"automation_id"`
	Epoch      string `json:"epoch"`
}

// Lane separates what somebody waits for from what may take all night.
type Lane string

// The lanes.
const (
	Live Lane = "live" // windows
	Bulk Lane = "bulk" // one-time jobs
)

// ImportMode says whether an object that was imported before is imported again.
type ImportMode string

// The modes.
const (
	All     ImportMode = "all"
	NewOnly ImportMode = "new_only"
)

// JobRequested asks the scanner to plan a job: the backlog of a window (Automation, Epoch and LastSeq are set), files
// of a job that has ended (RetryOf), or a listing (Prefix, Pattern, Recursive).
type JobRequested struct {
	Job         string          `json:"job_id"`
	Lane        Lane            `json:"lane"`
	Index       string          `json:"index_id"`
	Connector   string          `json:"connector_id"`
	Automation  string          `json:"automation_id,omitempty"`
	Epoch       string          `json:"epoch,omitempty"`
	LastSeq     uint64          `json:"last_seq,omitempty"` // arrivals up to here belong to the window
	Prefix      string          `json:"source_prefix"`
	Pattern     string          `json:"file_pattern"`
	Recursive   bool            `json:"recursive"`
	Mode        ImportMode      `json:"import_mode"`
	Preset      json.RawMessage `json:"prompt_preset,omitempty"` // as stored with the automation when the window closed
	RetryOf     string          `json:"retry_of,omitempty"`      // the job whose files are tried again
	RetryPath   string          `json:"retry_path,omitempty"`    // of these, the one; "": all that failed
	RequestedAt time.Time       `json:"requested_at"`
}

// Task is one object of one job, to be imported.
type Task struct {
	Job        string     `json:"job_id"`
	Lane       Lane       `json:"lane"`
	Index      string     `json:"index_id"`
	Connector  string     `json:"connector_id"`
	Automation string     `json:"automation_id,omitempty"`
	Mode       ImportMode `json:"import_mode"`
	Object
	// FileSeq and Fresh are what the planner saw, and save the importer a read each at the first delivery: the sequence of
	// the file entry, and that the ledger knew no version of the object. Both may be out of date; every write that builds
	// on them is a compare-and-set.
	FileSeq uint64 `json:"file_seq,omitempty"`
	Fresh   bool   `json:"fresh,omitempty"`
	// Again: a person wants the object tried once more, so what the ledger says of an earlier skip does not count.
	Again bool `json:"again,omitempty"`
}

// FileState is where one object of one job stands.
type FileState string

// The states. The last three are final.
const (
	Queued    FileState = "queued"
	Importing FileState = "importing"
	Imported  FileState = "imported"
	Skipped   FileState = "skipped"
	Failed    FileState = "failed"
)

// Final reports whether no more work follows.
func (s FileState) Final() bool { return s == Imported || s == Skipped || s == Failed }

// SkipReason says why an object needed no import.
type SkipReason string

// The closed list of skip reasons (design §8).
const (
	AlreadyImported   SkipReason = "already_imported"
	Unchanged         SkipReason = "unchanged"
	Empty             SkipReason = "empty"
	HiddenOrTemporary SkipReason = "hidden_or_temporary"
	UnsupportedType   SkipReason = "unsupported_type"
	TooLarge          SkipReason = "too_large"
	ObjectGone        SkipReason = "object_gone"
	Superseded        SkipReason = "superseded"
	Cancelled         SkipReason = "cancelled"
	Baseline          SkipReason = "baseline"
)

// Phrase is the reason in the words clients filter by (contract §12.5).
func (r SkipReason) Phrase() string {
	switch r {
	case AlreadyImported:
		return "already imported"
	case Unchanged:
		return "unchanged"
	case Empty:
		return "empty file"
	case HiddenOrTemporary:
		return "hidden or temporary file"
	case UnsupportedType:
		return "unsupported file type"
	case TooLarge:
		return "file too large"
	case ObjectGone:
		return "object gone"
	case Superseded:
		return "superseded by a newer version"
	case Cancelled:
		return "job cancelled"
	case Baseline:
		return "present before the automation"
	}
	return string(r)
}

// File is the current state of one object of one job.
type File struct {
	Job       string     `json:"job_id"`
	Connector string     `json:"connector_id"`
	Index     string     `json:"index_id"`
	Path      string     `json:"path"`
	Version   string     `json:"version"`
	Size      int64      `json:"size"`
	State     FileState  `json:"state"`
	Reason    SkipReason `json:"reason,omitempty"` // of a skip
	Error     string     `json:"error,omitempty"`  // of a failure, or of the last attempt; also the detail of a skip
	Video     string     `json:"video_id,omitempty"`
	MediaType string     `json:"media_type,omitempty"`
	Seconds   float64    `json:"duration_seconds,omitempty"`
	Bytes     int64      `json:"bytes_transferred,omitempty"`
	Copying   string     `json:"copying,omitempty"` // where a copy inside the storage is; see bucket.Copying
	Attempts  int        `json:"attempts,omitempty"`
	StartedAt time.Time  `json:"started_at,omitzero"`
	EndedAt   time.Time  `json:"ended_at,omitzero"`
}

// MediumState is how an object version was settled.
type MediumState string

// The states.
const (
	MediumImported MediumState = "imported"
	MediumFailed   MediumState = "failed"
	MediumSkipped  MediumState = "skipped"
	MediumDeleted  MediumState = "deleted"
	MediumBaseline MediumState = "baseline"
)

// Medium is one row of the ledger: what became of one object version in one index. Its creation in state imported is
// the commit point of an import.
type Medium struct {
	ID          MediumID    `json:"video_id"`
	Index       string      `json:"index_id"`
	Connector   string      `json:"connector_id"`
	Path        string      `json:"path"`
	Version     string      `json:"version"`
	Order       string      `json:"order,omitempty"`
	State       MediumState `json:"state"`
	Reason      string      `json:"reason,omitempty"` // of a skip or a failure
	Error       string      `json:"error,omitempty"`
	RetryAt     time.Time   `json:"retry_at,omitzero"` // a failure that may pass: a scan tries again from then on
	Attempts    int         `json:"attempts,omitempty"`
	Size        int64       `json:"size"`
	CRC32C      string      `json:"crc32c,omitempty"`
	SHA256      string      `json:"sha256,omitempty"` // hex
	URI         string      `json:"uri,omitempty"`    // where the bytes are kept
	MediaType   string      `json:"media_type,omitempty"`
	ContentType string      `json:"content_type,omitempty"`
	Container   string      `json:"container,omitempty"`
	VideoCodec  string      `json:"video_codec,omitempty"`
	AudioCodec  string      `json:"audio_codec,omitempty"`
	Seconds     float64     `json:"duration_seconds,omitempty"`
	Width       int         `json:"width,omitempty"`
	Height      int         `json:"height,omitempty"`
	Job         string      `json:"job_id"`
	CreatedAt   time.Time   `json:"created_at"`
}

// Settled reports whether the version needs no further import at now: everything but a failure that may pass and
// whose time has come.
func (m Medium) Settled(now time.Time) bool {
	return m.State != MediumFailed || m.RetryAt.IsZero() || now.Before(m.RetryAt)
}

// RunRequested asks an executor to carry out a run. The media are listed here when there are at most MaxInlineMedia,
// and always, as JSON Lines of RunMedium, in the object MediaObject of the reports object store.
type RunRequested struct {
	Run         string          `json:"run_id"`
	Job         string          `json:"job_id,omitempty"`
	Index       string          `json:"index_id,omitempty"`
	Prompt      Prompt          `json:"prompt"`
	Preset      json.RawMessage `json:"prompt_preset"`
	Media       []RunMedium     `json:"media,omitempty"`
	MediaCount  int             `json:"media_count"`
	MediaObject string          `json:"media_object"`
	RequestedAt time.Time       `json:"requested_at"`
}

// RunWanted asks the preset trigger to make a run on what is named here: the media that a job imported (Job), media by
// id (Videos), or those of an index (Index alone). It may be asked for again; the run is made once.
type RunWanted struct {
	Run         string          `json:"run_id"`
	Job         string          `json:"job_id,omitempty"`
	Index       string          `json:"index_id,omitempty"` // of the media; "" when they are of several
	Videos      []string        `json:"video_ids,omitempty"`
	AsOf        uint64          `json:"as_of,omitempty"` // of an index: entries of the ledger up to this sequence
	Preset      json.RawMessage `json:"prompt_preset"`
	RequestedAt time.Time       `json:"requested_at"`
}

// DeletionRequested asks the importer, whose library it is, to delete one medium, or an index with all that is in it.
type DeletionRequested struct {
	Deletion    string    `json:"deletion_id"`
	Index       string    `json:"index_id"`
	Video       string    `json:"video_id,omitempty"` // "": the whole index
	RequestedAt time.Time `json:"requested_at"`
}

// MaxInlineMedia bounds RunRequested.Media, so that the message stays far below the broker's payload limit.
const MaxInlineMedia = 500

// Prompt is what a run asks of each medium.
type Prompt struct {
	ID         string          `json:"prompt_id"`
	Name       string          `json:"name"`
	Text       string          `json:"prompt_text"`
	JSONSchema json.RawMessage `json:"json_schema,omitempty"`
}

// RunMedium is one medium of a run, with what an executor needs to find and read it.
type RunMedium struct {
	Video       string  `json:"video_id"`
	Title       string  `json:"title"`
	URI         string  `json:"uri"`
	MediaType   string  `json:"media_type"`
	ContentType string  `json:"content_type,omitempty"`
	Seconds     float64 `json:"duration_seconds,omitempty"`
	Size        int64   `json:"size"`
}

// ReportState is where one medium of a run stands.
type ReportState string

// The states. All but processing are final.
const (
	Processing   ReportState = "processing"
	Successful   ReportState = "successful"
	Unsuccessful ReportState = "failed"
)

// Report is what an executor says about one medium of a run.
type Report struct {
	Run        string          `json:"run_id"`
	Video      string          `json:"video_id"`
	State      ReportState     `json:"state"`
	Result     json.RawMessage `json:"result,omitempty"` // a JSON object
	Error      string          `json:"error,omitempty"`
	ReportedAt time.Time       `json:"reported_at"`
}

// Type is the type of a public event.
type Type string

// The types.
const (
	JobStarted          Type = "import_job.started"
	JobProgress         Type = "import_job.progress" // at most once a second
	JobCompleted        Type = "import_job.completed"
	JobPartialCompleted Type = "import_job.partial_completed"
	JobFailed           Type = "import_job.failed"
	MediaCreated        Type = "media.created"
	ProcessingStarted   Type = "media.processing.started"
	ProcessingCompleted Type = "media.processing.completed"
	ProcessingFailed    Type = "media.processing.failed"
	RunStarted          Type = "prompt_run.started"
	RunProgress         Type = "prompt_run.progress" // at most once a second
	RunCompleted        Type = "prompt_run.completed"
	RunPartialCompleted Type = "prompt_run.partial_completed"
	RunFailed           Type = "prompt_run.failed"
	RunCancelled        Type = "prompt_run.cancelled"
	ScanDrift           Type = "automation.drift"
	CommandCompleted    Type = "command.completed"
	CommandFailed       Type = "command.failed"
)

// Event is a public event. On the bus its attributes are CloudEvents headers and only Data is the body.
type Event struct {
	ID      string          `json:"id"` // the same for every publication of the same fact
	Type    Type            `json:"type"`
	Index   string          `json:"index_id"`
	Subject string          `json:"subject"` // the id of what it is about
	Time    time.Time       `json:"time"`
	Data    json.RawMessage `json:"data"`
}

// JobEvent is the data of import_job.* events.
type JobEvent struct {
	Job        string `json:"job_id"`
	Index      string `json:"index_id"`
	Connector  string `json:"connector_id"`
	Automation string `json:"automation_id,omitempty"`
	Status     string `json:"status"`
	Total      int    `json:"total_files"`
	Imported   int    `json:"imported"`
	Skipped    int    `json:"skipped"`
	Failed     int    `json:"failed"`
	Error      string `json:"error_message,omitempty"`
}

// MediaEvent is the data of media.created.
type MediaEvent struct {
	Video     string  `json:"video_id"`
	Index     string  `json:"index_id"`
	Job       string  `json:"job_id"`
	Path      string  `json:"path"`
	MediaType string  `json:"media_type"`
	Seconds   float64 `json:"duration_seconds,omitempty"`
	Size      int64   `json:"size"`
}

// ProcessingEvent is the data of media.processing.* events: what a run does with one medium.
type ProcessingEvent struct {
	Video     string `json:"video_id"`
	Index     string `json:"index_id,omitempty"`
	Run       string `json:"run_id"`
	Prompt    string `json:"prompt_id"`
	Job       string `json:"job_id,omitempty"`
	Title     string `json:"title"`
	MediaType string `json:"media_type"`
	Status    string `json:"status"` // as the medium has it in the API: processing, processed or failed
	Error     string `json:"error_message,omitempty"`
}

// RunEvent is the data of prompt_run.* events.
type RunEvent struct {
	Run       string `json:"run_id"`
	Job       string `json:"job_id,omitempty"`
	Index     string `json:"index_id,omitempty"`
	Prompt    string `json:"prompt_id"`
	Status    string `json:"status"`
	Total     int    `json:"total"`
	Completed int    `json:"completed"`
	Failed    int    `json:"failed"`
}

// DriftEvent is the data of automation.drift: what a scan found that no notification had announced.
type DriftEvent struct {
	Automation string `json:"automation_id"`
	Found      int    `json:"found"`
	Listed     int    `json:"listed"`
}

// Command is the body of a command: the members that the operation named by its subject takes, all in one object. Which
// these are is in the OpenAPI document.
type Command struct{}

// CommandEvent is the data of command.* events: the outcome of a command.
type CommandEvent struct {
	Command     string            `json:"command_id"`
	Correlation string            `json:"correlation_id"`    // the Nats-Msg-Id of the command; without one as Command
	Name        string            `json:"command"`           // resource and verb
	Status      int               `json:"status"`            // as HTTP would have answered
	Code        string            `json:"code,omitempty"`    // of a failure
	Message     string            `json:"message,omitempty"` // of a failure
	IDs         map[string]string `json:"ids,omitempty"`     // the ids in the answer, by member: job_id, index_id, …
}

// Dead is a message that could not be handled, with the reason. The original body is the message body; this stands in
// the headers' place when shown to a person.
type Dead struct {
	Service   string              `json:"service"`
	Consumer  string              `json:"consumer"`
	Stream    string              `json:"stream"`
	Subject   string              `json:"subject"`
	Reason    string              `json:"reason"`
	Stage     string              `json:"stage"` // decode, handle or deliver
	Delivered int                 `json:"delivered"`
	Header    map[string][]string `json:"header,omitempty"`
	Data      []byte              `json:"data"`
	Cut       bool                `json:"cut,omitempty"` // data is not whole
	At        time.Time           `json:"at"`
}
