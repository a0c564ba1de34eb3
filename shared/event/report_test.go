package event_test

import (
	"encoding/json"
	"testing"
	"time"

	"millrace/shared/event"
)

// What a report leaves out is in its subject; what contradicts that, or says nothing, is malformed.
func TestReadReport(t *testing.T) {
	t.Parallel()
	stored := time.Unix(1, 0).UTC()
	said := stored.Add(-time.Minute)
	for body, want := range map[string]event.Report{
		`{"state":"processing"}`: {State: event.Processing, ReportedAt: stored},
		`{"run_id":"run_1","video_id":"vid_1","state":"failed","error":"e","reported_at":"` + said.Format(time.RFC3339) + `"}`: {
			State: event.Unsuccessful, Error: "e", ReportedAt: said,
		},
	} {
		want.Run, want.Video = "run_1", "vid_1"
		r, err := event.ReadReport("p.run.report.run_1.vid_1", []byte(body), stored)
		if err != nil || r.Run != want.Run || r.Video != want.Video || r.State != want.State || r.Error != want.Error || !r.ReportedAt.Equal(want.ReportedAt) {
			t.Errorf("%s: %+v, %v", body, r, err)
		}
	}
	for _, body := range []string{
		``, `[]`, `{`, `{}`, `{"state":"done"}`, `{"state":"failed","run_id":"run_2"}`, `{"state":"failed","video_id":"vid_2"}`,
	} {
		if r, err := event.ReadReport("p.run.report.run_1.vid_1", []byte(body), stored); err == nil {
			t.Errorf("%s: %+v", body, r)
		}
	}
	if err := (&event.Report{State: event.Processing}).Check("run"); err == nil {
		t.Error("a subject that names nothing")
	}
}

func TestResultObject(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		``: `{}`, `null`: `{}`, `{`: `{}`, ` { "a" : [ 1 ] } `: `{"a":[1]}`, `[1]`: `{"result":[1]}`, ` "<x>" `: `{"result":"<x>"}`,
	} {
		if got := string(event.ResultObject(json.RawMessage(raw))); got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
}
