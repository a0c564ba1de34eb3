package millrace_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/services/millrace/client"
	"millrace/shared/event"
	"millrace/shared/topology"
)

// TestTenThousandFiles drops 10,000 files, and 200 more while the window is open: one job with every one of them, one
// run with exactly these media. The run is carried out by an executor in another language, as far as the broker can
// tell: one that speaks the protocol and nothing else.
func TestTenThousandFiles(t *testing.T) {
	const first, second, prefix = 10_000, 200, "bulk"
	listen := freeAddr(t)
	up := startUp(t, "--prefix", prefix, "--library", "none", "--extra-debounce-intervals", "5s", "--nats-listen", listen)
	p := wire(t, up.api, up.inbox)
	// Five seconds: a machine under load may take that long between two files, and a window no longer than six times that.
	p.automate(p.index, "5s", nil)

	png, jpg := sample(t, "photo.png"), sample(t, "photo.jpg")
	drop := func(from, to int) {
		for i := from; i < to; i++ {
			data, ext := png, "png"
			if i%10 == 0 {
				data, ext = jpg, "jpg"
			}
			// Bytes behind the end of an image make it another file and the same picture.
			p.drop(fmt.Sprintf("%05d.%s", i, ext), fmt.Appendf(slices.Clip(data), "file %d", i))
		}
	}
	drop(0, first)
	p.pending(first)
	drop(first, first+second)

	j := p.nthJob(1)
	j = p.follow(j.ID, 2*patience)
	want := map[string]string{}
	for name := range p.exists {
		want[name] = "imported"
	}
	if got := p.outcomes(j); !maps.Equal(got, want) || j.Progress.Imported != first+second {
		t.Errorf("%d files imported, %d in all: %+v", j.Progress.Imported, len(got), j.Progress)
	}
	p.genuine("", j.Videos)

	id := p.nthRun(1)
	nc := dial(t, "nats://"+listen)
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(first+second))
	must(t, err)
	got := carryOut(t, js, topology.Topology{Prefix: prefix}, id)
	slices.Sort(got)
	slices.Sort(j.Videos)
	if !slices.Equal(got, j.Videos) {
		t.Errorf("the run has %d media, and they are not those %d of its job", len(got), len(j.Videos))
	}
	var r struct {
		client.Run
		TotalImages     int `json:"total_images"`
		CompletedImages int `json:"completed_images"`
	}
	eventually(t, "the run ends", func() error {
		must(t, p.api.Get(t.Context(), "/prompt-runs/"+id, &r))
		if !r.Done() {
			return fmt.Errorf("%s, %d of %d", r.Status, r.CompletedImages, r.TotalImages)
		}
		return nil
	})
	if r.Status != "completed" || r.TotalImages != first+second || r.CompletedImages != first+second {
		t.Errorf("run: %s, %d of %d", r.Status, r.CompletedImages, r.TotalImages)
	}
	if jobs, err := p.jobs(p.index); err != nil || len(jobs) != 1 {
		t.Errorf("%d jobs, %v: %+v", len(jobs), err, jobs)
	}
	p.nthRun(1)
	atRest(t, nc, prefix)
}

// carryOut takes the next run off the queue as the documentation of the worker says, reports every medium of it, and
// returns them.
func carryOut(t *testing.T, js jetstream.JetStream, top topology.Topology, want string) (videos []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cons, err := js.Consumer(ctx, top.Stream(topology.Runs), topology.WorkerRuns)
	must(t, err)
	msg, err := cons.Next(jetstream.FetchMaxWait(30 * time.Second))
	must(t, err)
	var req event.RunRequested
	must(t, json.Unmarshal(msg.Data(), &req))
	objects, err := js.ObjectStore(ctx, top.Bucket(topology.Documents))
	must(t, err)
	list, err := objects.GetBytes(ctx, req.MediaObject)
	must(t, err)
	var acks []jetstream.PubAckFuture
	for line := range bytes.Lines(list) {
		var m event.RunMedium
		must(t, json.Unmarshal(line, &m))
		videos = append(videos, m.Video)
		report, err := json.Marshal(event.Report{
			Run: req.Run, Video: m.Video, State: event.Successful, Result: json.RawMessage(`{}`), ReportedAt: time.Now(),
		})
		must(t, err)
		ack, err := js.PublishAsync(top.Subject("run", "report", req.Run, m.Video), report)
		must(t, err)
		acks = append(acks, ack)
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			t.Fatal("report:", err)
		case <-ctx.Done():
			t.Fatal("the reports are not acknowledged")
		}
	}
	must(t, msg.DoubleAck(ctx))
	if req.Run != want || req.MediaCount != len(videos) || len(req.Media) != 0 {
		t.Errorf("request of run %s (want %s): %d media, of which %d listed; the object has %d", req.Run, want, req.MediaCount, len(req.Media), len(videos))
	}
	return videos
}
