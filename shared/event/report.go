package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// ReadReport decodes the report that was stored under subject, at that time by the clock of the broker. The subject ends
// in run and medium and decides what the report is about; what its body leaves out is filled in from subject and time. An
// error says what is malformed: such a report counts for nothing.
func ReadReport(subject string, data []byte, stored time.Time) (Report, error) {
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("decode report: %w", err)
	}
	if r.ReportedAt.IsZero() {
		r.ReportedAt = stored
	}
	return r, r.Check(subject)
}

// Check holds a decoded report against the subject that it came under and fills in run and medium. It fails when the
// report names others than its subject, or a state that is none.
func (r *Report) Check(subject string) error {
	tokens := strings.Split(subject, ".")
	if len(tokens) < 2 {
		return fmt.Errorf("subject %s names no run and medium", subject)
	}
	run, video := tokens[len(tokens)-2], tokens[len(tokens)-1]
	switch {
	case r.Run != "" && r.Run != run:
		return fmt.Errorf("run_id %q in the body, %q in the subject", r.Run, run)
	case r.Video != "" && r.Video != video:
		return fmt.Errorf("video_id %q in the body, %q in the subject", r.Video, video)
	case r.State != Processing && r.State != Successful && r.State != Unsuccessful:
		return fmt.Errorf("state %q is not one of %s, %s, %s", r.State, Processing, Successful, Unsuccessful)
	}
	r.Run, r.Video = run, video
	return nil
}

// ResultObject is the result of a report as a compact JSON object: {} for none, and what is no object under "result".
func ResultObject(raw json.RawMessage) json.RawMessage {
	var compact bytes.Buffer
	if len(raw) == 0 || json.Compact(&compact, raw) != nil || compact.String() == "null" {
		return json.RawMessage("{}")
	}
	if compact.Bytes()[0] != '{' {
		return json.RawMessage(`{"result":` + compact.String() + `}`)
	}
	return compact.Bytes()
}
