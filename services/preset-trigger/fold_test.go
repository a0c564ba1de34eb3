package presettrigger

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/shared/event"
	"millrace/shared/store"
)

// said is a report with its place in the stream.
type said struct {
	video string
	state event.ReportState
	seq   uint64
}

func (s said) at() time.Time { return time.Unix(1_000_000+int64(s.seq), 0).UTC() }

func foldOf(media int, reports ...said) *fold {
	f := newFold()
	for i := range media {
		f.add(event.RunMedium{Video: video(i), MediaType: []string{"video", "audio", "image"}[i%3]})
	}
	for _, r := range reports {
		f.apply(r.video, r.state, r.seq, r.at())
	}
	return f
}

func video(i int) string { return fmt.Sprint("vid_", i) }

func drawReports(t *rapid.T, media int) []said {
	var all []said
	for i := range rapid.IntRange(0, 40).Draw(t, "reports") {
		all = append(all, said{
			video: video(rapid.IntRange(0, media).Draw(t, "video")), // one more than there are
			state: rapid.SampledFrom([]event.ReportState{event.Processing, event.Successful, event.Unsuccessful}).Draw(t, "state"),
			seq:   uint64(i + 1),
		})
	}
	return all
}

func TestFoldDependsOnTheReportsOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		media := rapid.IntRange(1, 6).Draw(t, "media")
		reports := drawReports(t, media)
		want := foldOf(media, reports...)
		again := slices.Concat(reports, rapid.SliceOf(rapid.SampledFrom(append(reports, said{"vid_x", event.Processing, 1}))).Draw(t, "repeated"))
		if got := foldOf(media, rapid.Permutation(again).Draw(t, "order")...); !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v, want %+v", got, want)
		}
	})
}

func TestFoldGoesForward(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		media := rapid.IntRange(1, 6).Draw(t, "media")
		f := foldOf(media)
		run := f.into(store.Run{Status: store.RunPending, Tallies: f.tallies})
		if run.Status != store.RunPending {
			t.Fatalf("%s before any report", run.Status)
		}
		rank := map[store.RunStatus]int{store.RunPending: 0, store.RunProcessing: 1}
		for _, r := range drawReports(t, media) {
			f.apply(r.video, r.state, r.seq, r.at())
			next := f.into(run)
			switch {
			case run.Status.Terminal() && !reflect.DeepEqual(next, run):
				t.Fatalf("changed after its end: %+v, %+v", run, next)
			case !next.Status.Terminal() && rank[next.Status] < rank[run.Status]:
				t.Fatalf("from %s to %s", run.Status, next.Status)
			case done(next.Tallies) < done(run.Tallies):
				t.Fatalf("from %v to %v", run.Tallies, next.Tallies)
			case !reflect.DeepEqual(f.into(next), next):
				t.Fatal("not the same when done again")
			}
			total, completed, failed := sum(next.Tallies)
			if total != media || (next.Status.Terminal() && completed+failed != total) {
				t.Fatalf("%d media: %+v", media, next)
			}
			run = next
		}
	})
}

// A holder of the lease that begins anew sees only the newest report of each medium, from none to all of them, and
// takes nothing back on the way.
func TestFoldAnew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		media := rapid.IntRange(1, 6).Draw(t, "media")
		reports := drawReports(t, media)
		before := foldOf(media, reports...)
		record := before.into(store.Run{Status: store.RunPending, Tallies: foldOf(media).tallies})

		newest := make(map[string]said)
		for _, r := range reports {
			newest[r.video] = r
		}
		anew := foldOf(media)
		run := record
		for _, r := range reports {
			if newest[r.video].seq != r.seq {
				continue
			}
			anew.apply(r.video, r.state, r.seq, r.at())
			next := anew.into(run)
			if done(next.Tallies) < done(run.Tallies) || next.StartedAt.After(run.StartedAt) || (run.Status.Terminal() && !reflect.DeepEqual(next, run)) {
				t.Fatalf("from %+v to %+v", run, next)
			}
			run = next
		}
	})
}

func sum(tallies map[string]store.Tally) (total, completed, failed int) {
	for _, t := range tallies {
		total += t.Total
		completed += t.Completed
		failed += t.Failed
	}
	return total, completed, failed
}

func TestHowRunsEnd(t *testing.T) {
	ok, bad := event.Successful, event.Unsuccessful
	for name, c := range map[string]struct {
		states []event.ReportState
		want   store.RunStatus
	}{
		"all well":      {[]event.ReportState{ok, ok}, store.RunCompleted},
		"some failed":   {[]event.ReportState{ok, bad}, store.RunCompletedWithFailures},
		"all failed":    {[]event.ReportState{bad, bad}, store.RunFailed},
		"one is left":   {[]event.ReportState{ok}, store.RunProcessing},
		"one in hand":   {[]event.ReportState{ok, event.Processing}, store.RunProcessing},
		"none reported": {nil, store.RunPending},
	} {
		f := foldOf(2)
		for i, s := range c.states {
			f.apply(video(i), s, uint64(i+1), said{seq: uint64(i + 1)}.at())
		}
		run := f.into(store.Run{Status: store.RunPending})
		if run.Status != c.want || run.Status.Terminal() == run.EndedAt.IsZero() || (run.Status == store.RunFailed) != (run.Error != "") {
			t.Errorf("%s: %+v", name, run)
		}
	}
	cancelled := store.Run{Status: store.RunCancelled}
	if got := foldOf(1, said{video(0), ok, 1}).into(cancelled); !reflect.DeepEqual(got, cancelled) {
		t.Errorf("a cancelled run became %+v", got)
	}
}
