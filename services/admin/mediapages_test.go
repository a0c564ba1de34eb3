package admin_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/service/servicetest"
	"millrace/shared/store"
)

// Pages that are remembered show everything that was there before they were asked for, while others ask for the same page.
func TestPagesAreFresh(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	servicetest.Run(t, w.admin)
	ctx := t.Context()
	index := w.do("POST", "/indexes", obj{"name": "Fresh"}).want(201).str("index_id")
	path := "/indexes/" + index + "/videos"
	page := func() answer { return w.do("GET", path, nil) }

	var others sync.WaitGroup
	done := make(chan struct{})
	defer others.Wait()
	defer close(done)
	for range 2 {
		others.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				r := httptest.NewRequestWithContext(ctx, http.MethodGet, base+path, http.NoBody)
				r.Header.Set("X-API-Key", w.keys["read"])
				rec := httptest.NewRecorder()
				if w.admin.Handler().ServeHTTP(rec, r); rec.Code != http.StatusOK && rec.Code != http.StatusNotFound {
					t.Errorf("%d: %s", rec.Code, rec.Body)
					return
				}
			}
		})
	}
	now := time.Now().UTC()
	media := make([]store.Entry, 10)
	for i := range media {
		id := event.NewMediumID(index, "con_1", fmt.Sprint(i), "v", "")
		media[i].Medium = event.Medium{
			ID: id, Index: index, Connector: "con_1", Path: fmt.Sprint(i), Version: "v", State: event.MediumImported, MediaType: "video",
			Job: "job_1", CreatedAt: now,
		}
		must(t, errors.Join(w.ledger.Write(ctx, media[i:i+1])...))
		if a := page().want(200); len(a.at("data").([]any)) != i+1 || a.str("data", 0, "video_id") != id.String() {
			t.Fatalf("the page lacks the medium %d: %s", i, a.raw)
		}
	}
	// The run that followed, and what it comes to.
	run := store.Run{ID: event.RunOfJob("job_1"), Job: "job_1", Index: index, Prompt: "prm_1", Status: store.RunProcessing, CreatedAt: now}
	must(t, w.runs.Put(ctx, run.ID, run))
	if a := page().want(200); a.str("data", 0, "processing_status", 0, "run_id") != run.ID || a.str("data", 0, "status") != "processing" {
		t.Errorf("the page lacks the run: %s", a.raw)
	}
	report := func(run, video string) {
		data, err := json.Marshal(event.Report{Run: run, Video: video, State: event.Successful, ReportedAt: now})
		must(t, err)
		_, err = w.bus.Publish(ctx, bus.Message{Subject: w.bus.Subject("run", "report", run, video), Data: data})
		must(t, err)
	}
	for i := range media {
		at := len(media) - 1 - i
		if a := page().want(200); a.str("data", at, "status") != "processing" {
			t.Errorf("medium %d: %s", i, a.str("data", at, "status"))
		}
		report(run.ID, media[i].ID.String())
		if a := page().want(200); a.str("data", at, "status") != "processed" {
			t.Errorf("medium %d is reported, and is %s", i, a.str("data", at, "status"))
		}
	}
	// Runs that somebody asks for are told by a watch, later, and must not be left out for good.
	for i := range 5 {
		asked := store.Run{ID: fmt.Sprint("run_", i), Index: index, Prompt: "prm_1", Status: store.RunProcessing, CreatedAt: now.Add(time.Duration(i) * time.Second)}
		report(asked.ID, media[0].ID.String())
		must(t, w.runs.Put(ctx, asked.ID, asked))
		eventually(t, "the run is shown", func() bool {
			runs, _ := page().want(200).at("data", len(media)-1, "processing_status").([]any)
			return len(runs) == i+2
		})
	}
	w.do("DELETE", "/videos/"+media[0].ID.String(), nil).want(200)
	if a := page().want(200); len(a.at("data").([]any)) != len(media)-1 {
		t.Errorf("a medium that was deleted is shown: %s", a.raw)
	}
	w.do("DELETE", "/indexes/"+index, nil).want(200)
	page().refused(404, "resource_index_not_found")
}
