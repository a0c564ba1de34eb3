package presettrigger

import (
	"bytes"
	"encoding/json"
	"time"

	"millrace/shared/store"
)

// decision is what follows from the end of a job; also a label of the metric.
type decision string

const (
	create     decision = "run"
	wait       decision = "wait"
	skipStatus decision = "not_completed"
	skipPreset decision = "no_preset"
	skipEmpty  decision = "nothing_imported"
)

// decide says what follows from a job. Only what can no longer change is decided: until the job is on record as ended,
// with its report, a job that would be run is waited for.
func decide(job store.Job) decision {
	switch {
	case job.Status == store.JobCancelled || job.Status == store.JobFailed:
		return skipStatus
	case !hasPreset(job.Preset):
		return skipPreset
	case !job.Status.Terminal() || job.Report == "":
		return wait
	case job.Progress.Imported == 0:
		return skipEmpty
	}
	return create
}

func hasPreset(raw json.RawMessage) bool {
	raw = bytes.TrimSpace(raw)
	return len(raw) > 0 && string(raw) != "null"
}

// promptOf is the prompt a preset names, "" if it names none.
func promptOf(preset json.RawMessage) string {
	var p struct {
		Prompt string `json:"prompt_id"`
	}
	_ = json.Unmarshal(preset, &p) // what is no preset names no prompt
	return p.Prompt
}

// patience is how long to wait before looking again for a report that was waited for already: a share of that, so that
// a run is late by that share at most and a report that takes long costs few looks.
func patience(waited time.Duration) time.Duration {
	return max(waited/4, 25*time.Millisecond)
}
