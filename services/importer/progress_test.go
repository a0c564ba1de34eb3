package importer

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/service/servicetest"
	"millrace/shared/topology"
)

// The progress of a job is announced while it runs: forwards, at most once a second, and nothing twice.
func TestProgressIsTold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var paths []string
	for i := range 3 {
		p := fmt.Sprintf("%d.jpg", i)
		r.write(p, append(sample(t, "photo.jpg"), byte(i)))
		paths = append(paths, p)
	}
	job := r.plan("auto", event.NewOnly, paths...)
	last := event.ObjectHash("conn", paths[2])
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(r.env.Bus.Purge(t.Context(), topology.Tasks, r.env.Bus.Subject("task", "live", job, last), 0)) // it never ends
	start := time.Now()
	r.start(Config{}, r.library)
	told := func() (list []event.JobEvent) {
		t.Helper()
		for m, err := range r.env.Bus.Scan(t.Context(), topology.Events, r.env.Bus.Subject("event", string(event.JobProgress), "idx", job), 0) {
			must(err)
			var e event.JobEvent
			must(json.Unmarshal(m.Data, &e))
			list = append(list, e)
		}
		return list
	}
	servicetest.Eventually(t, "progress is told", func() error {
		if len(told()) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	// A large file is in transfer: its bytes are shown, and soon the events have nothing new to say.
	for n, begin := int64(1), time.Now(); time.Since(begin) < 3*tellJobEvery; n++ {
		r.publish([]bus.Message{r.message(event.File{
			Job: job, Connector: "conn", Index: "idx", Path: paths[2], State: event.Importing, Bytes: n << 40,
		}, "file", job, last)})
		servicetest.Eventually(t, "its bytes are shown", func() error {
			rec, _, err := r.jobs.Get(t.Context(), job)
			if err == nil && rec.Progress.Bytes>>40 != n { // the other files are small
				err = fmt.Errorf("%+v", rec.Progress)
			}
			return err
		})
	}
	list := told()
	if most := int(time.Since(start)/tellJobEvery) + 1; len(list) > most {
		t.Errorf("%d events in %s", len(list), time.Since(start))
	}
	for i, e := range list {
		if e.Job != job || e.Index != "idx" || e.Connector != "conn" || e.Automation != "auto" || e.Total != 3 || e.Status != "importing" ||
			i > 0 && e.Imported <= list[i-1].Imported {
			t.Errorf("%+v", e)
		}
	}
}
