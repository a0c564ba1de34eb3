package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// verdict gathers what does not hold.
type verdict struct {
	kinds map[string][]Entry
	wrong []string
}

// Check holds a history against the invariants of docs/design.md §4 and returns what does not hold, each sentence beginning
// with its invariant.
func Check(entries []Entry) []string {
	v := &verdict{kinds: map[string][]Entry{}}
	for _, e := range entries {
		v.kinds[e.What] = append(v.kinds[e.What], e)
	}
	for _, i := range []func(){
		v.nothingLost, v.once, v.oneRun, v.exactSet, v.integrity, v.debounced, v.forward, v.acknowledged, v.nothingStuck, v.webhooks,
		v.pauses, v.secrets,
	} {
		i()
	}
	slices.Sort(v.wrong)
	return slices.Compact(v.wrong)
}

func (v *verdict) fail(format string, args ...any) {
	v.wrong = append(v.wrong, fmt.Sprintf(format, args...))
}

// by sorts entries of a kind.
func (v *verdict) by(kind string, key func(Entry) string) map[string][]Entry {
	m := map[string][]Entry{}
	for _, e := range v.kinds[kind] {
		m[key(e)] = append(m[key(e)], e)
	}
	return m
}

func ofJob(e Entry) string     { return e.Job }
func ofRun(e Entry) string     { return e.Run }
func ofIndex(e Entry) string   { return e.Index }
func ofVideo(e Entry) string   { return e.Video }
func ofVersion(e Entry) string { return e.Connector + " " + e.Path + " " + e.Version }
func ofPlace(e Entry) string   { return e.Index + " " + ofVersion(e) }

func ended(state string) bool {
	return state == "completed" || state == "failed" || state == "cancelled"
}

// I1: each object that is there has an outcome in each index that wants it, and one that fits an object that is there.
func (v *verdict) nothingLost() {
	outcomes := v.by(File, ofPlace)
	for _, s := range v.kinds[There] {
		for _, w := range v.kinds[Wired] {
			if w.Connector != s.Connector || !strings.HasPrefix(s.Path, w.Path) {
				continue
			}
			s.Index = w.Index
			fits := func(f Entry) bool {
				return f.State == "imported" || f.State == "failed" ||
					f.State == "skipped" && (f.Detail == "already imported" || f.Detail == "unchanged")
			}
			if !slices.ContainsFunc(outcomes[ofPlace(s)], fits) {
				v.fail("I1: nothing became of %s: %+v", ofPlace(s), outcomes[ofPlace(s)])
			}
		}
	}
}

// I2: a version is one medium of an index, and imported by one job. Two jobs that are planned at once may both have it in
// their list (docs/design.md §7): then it is skipped in the other.
func (v *verdict) once() {
	for place, media := range v.by(Medium, ofPlace) {
		if len(media) > 1 {
			v.fail("I2: %s is %d media", place, len(media))
		}
	}
	for place, files := range v.by(File, ofPlace) {
		jobs := map[string]bool{}
		for _, f := range files {
			if f.State == "imported" {
				jobs[f.Job] = true
			}
		}
		if len(jobs) > 1 {
			v.fail("I2: %s is imported by %d jobs", place, len(jobs))
		}
	}
}

// I3: a job of an automation with a preset has one run if it imported something, and every other none.
func (v *verdict) oneRun() {
	runs, automations, jobs := v.by(Run, ofJob), v.by(Wired, ofIndex), v.by(Job, ofJob)
	for id, j := range jobs {
		want := 0
		if a := automations[j[0].Index]; j[0].Detail == "automation" && len(a) > 0 && a[0].State == "runs" && len(j[0].Videos) > 0 && j[0].State != "cancelled" {
			want = 1
		}
		if n := len(runs[id]); n != want {
			v.fail("I3: job %s (%s, %d imported) has %d runs, want %d", id, j[0].State, len(j[0].Videos), n, want)
		}
	}
	for id := range runs {
		if len(jobs[id]) == 0 {
			v.fail("I3: there is a run of job %q, which there is not", id)
		}
	}
}

// I4: a run is on exactly the media that its job imported, and the prompt service was asked about exactly these.
func (v *verdict) exactSet() {
	jobs, asked, runs := v.by(Job, ofJob), v.by(Prompted, ofRun), v.by(Run, ofRun)
	set := func(ids []string) []string {
		ids = slices.Clone(ids)
		slices.Sort(ids)
		return slices.Compact(ids)
	}
	for id, r := range runs {
		var want, got []string
		if j := jobs[r[0].Job]; len(j) > 0 {
			want = set(j[0].Videos)
		}
		for _, e := range asked[id] {
			got = append(got, e.Video)
		}
		if !slices.Equal(set(r[0].Videos), want) {
			v.fail("I4: run %s is on %d media, its job %s imported %d", id, len(r[0].Videos), r[0].Job, len(want))
		}
		if !slices.Equal(set(got), want) {
			v.fail("I4: of run %s the prompt service saw %d media, the job imported %d", id, len(set(got)), len(want))
		}
	}
	for id := range asked {
		if len(runs[id]) == 0 {
			v.fail("I4: the prompt service was asked for run %s, which there is not", id)
		}
	}
}

// I5: a medium has the bytes of the version it names, in its record and in the library, and the library has no others but
// for what is left behind.
func (v *verdict) integrity() {
	written, library, media := v.by(Wrote, ofVersion), v.by(Kept, ofVideo), v.by(Medium, ofVideo)
	for id, m := range media {
		was := written[ofVersion(m[0])]
		if len(was) == 0 || was[0].SHA256 != m[0].SHA256 || was[0].Size != m[0].Size {
			v.fail("I5: medium %s says %s of %d bytes, %s was %+v", id, m[0].SHA256, m[0].Size, ofVersion(m[0]), was)
		}
		if k := library[id]; len(k) != 1 || k[0].SHA256 != m[0].SHA256 {
			v.fail("I5: medium %s says %s, the library has %+v", id, m[0].SHA256, k)
		}
	}
	for id, k := range library {
		if len(media[id]) == 0 && !v.leftBehind(k[0].SHA256) {
			v.fail("I5: the library keeps %s, which is in no index and nothing that was given up", id)
		}
	}
}

// leftBehind reports whether bytes are those of a version that was skipped in the end. An importer that dies between its
// copy and its record leaves them in the library, if the source has another version when the task comes again.
func (v *verdict) leftBehind(sum string) bool {
	files := v.by(File, ofVersion)
	return slices.ContainsFunc(v.kinds[Wrote], func(w Entry) bool {
		return w.SHA256 == sum && slices.ContainsFunc(files[ofVersion(w)], func(f Entry) bool { return f.State == "skipped" })
	})
}

// I6: no job of an automation before the interval has passed since the newest of its files came to be, unless the longest
// wait (six intervals) has passed since the job before. When a file was announced is not known from outside, so that a job
// comes late enough by the outside's measure is necessary and not sufficient.
func (v *verdict) debounced() {
	written, files := v.by(Wrote, ofVersion), v.by(File, ofJob)
	for _, w := range v.kinds[Wired] {
		before := w.At
		for _, j := range v.automatic(w.Index) {
			var newest time.Time
			for _, f := range files[j.Job] {
				if was := written[ofVersion(f)]; len(was) > 0 && was[0].At.After(newest) {
					newest = was[0].At
				}
			}
			if j.At.Before(newest.Add(w.Interval)) && j.At.Before(before.Add(6*w.Interval-time.Second)) {
				v.fail("I6: the window of job %s closed %s after the newest of its files and %s after the one before", j.Job,
					j.At.Sub(newest), j.At.Sub(before))
			}
			before = j.At
		}
	}
}

// automatic returns the jobs of an automation in order.
func (v *verdict) automatic(idx string) []Entry {
	list := slices.DeleteFunc(slices.Clone(v.kinds[Job]), func(j Entry) bool { return j.Index != idx || j.Detail != "automation" })
	slices.SortFunc(list, func(x, y Entry) int { return x.At.Compare(y.At) })
	return list
}

// I7: the progress of a job goes forward, an end is an end, and then it adds up. What is read while the broker's nodes
// are apart can be old (docs/design.md §5) and is left out.
func (v *verdict) forward() {
	for id, list := range v.by(Seen, ofJob) {
		settled, end := 0, ""
		for _, s := range list {
			if v.apart(s.At) {
				continue
			}
			if s.N < settled || end != "" && s.State != end {
				v.fail("I7: job %s was %s with %d files settled, and then %s with %d", id, cmp.Or(end, "under way"), settled, s.State, s.N)
			}
			settled = s.N
			if ended(s.State) {
				end = s.State
			}
		}
	}
	for _, j := range v.kinds[Job] {
		if j.N != j.Total {
			v.fail("I7: job %s is %s, %d of %d files are settled", j.Job, j.State, j.N, j.Total)
		}
	}
}

// apart reports whether nodes of the broker may have had different minds at a time.
func (v *verdict) apart(at time.Time) bool {
	const until = 15 * time.Second
	since := map[string]time.Time{}
	for _, e := range v.kinds[Fault] {
		if strings.HasPrefix(e.Detail, "node") && !e.At.After(at) {
			since[e.Detail] = e.At
		}
	}
	for _, e := range v.kinds[Healed] {
		if from, ok := since[e.Detail]; ok && !e.At.Before(from) && e.At.Add(until).Before(at) {
			delete(since, e.Detail)
		}
	}
	return len(since) > 0
}

// I8: what was acknowledged is there.
func (v *verdict) acknowledged() {
	indexes, jobs := v.by(Index, ofIndex), v.by(Job, ofJob)
	for _, a := range v.kinds[Acked] {
		if a.Index != "" && len(indexes[a.Index]) == 0 || a.Job != "" && len(jobs[a.Job]) == 0 {
			v.fail("I8: %s was acknowledged and is gone", a.Index+a.Job)
		}
	}
}

// I9: in the end nothing waits, and only what nobody can read is among the dead.
func (v *verdict) nothingStuck() {
	for _, j := range slices.Concat(v.kinds[Job], v.kinds[Run]) {
		if !ended(j.State) && j.State != "completed_with_failures" {
			v.fail("I9: %s is %s for ever", cmp.Or(j.Run, j.Job), j.State)
		}
	}
	for _, e := range v.kinds[Dead] {
		if e.Detail == "" || !strings.Contains(e.State, Poison) {
			v.fail("I9: dead: %s: %s", e.Detail, e.State)
		}
	}
	for _, e := range v.kinds[Window] {
		v.fail("I9: the window of %s is still open", e.Index)
	}
	for _, e := range v.kinds[Unrest] {
		v.fail("I9: %s", e.Detail)
	}
	for _, e := range v.kinds[Died] {
		if e.State == "panic" {
			v.fail("I9: %s", e.Detail)
		}
	}
}

// I10: each end of a job and of a run is told to each webhook or given up with a reason, signed, each event under one id.
func (v *verdict) webhooks() {
	deliveries := v.by(Delivery, func(e Entry) string { return e.Delivery })
	ids, taken, about := map[string]string{}, map[string]bool{}, map[string]bool{}
	for _, e := range v.kinds[Told] {
		of := e.Hook + " " + e.Event
		if had, again := ids[of]; again && had != e.Delivery {
			v.fail("I10: %s is told as %s and as %s", of, had, e.Delivery)
		}
		ids[of] = e.Delivery
		if e.State != "signed" {
			v.fail("I10: %s of %s is not signed: %s", e.Delivery, of, e.State)
		}
		if e.N/100 == 2 {
			taken[e.Delivery] = true
		}
		about[e.Hook+" "+e.Job+e.Run] = true
	}
	for of, id := range ids {
		if d := deliveries[id]; !taken[id] && (len(d) == 0 || d[0].State != "failed" || d[0].Detail == "") {
			v.fail("I10: %s (%s) was neither taken nor given up: %+v", of, id, d)
		}
	}
	for _, h := range v.kinds[Hook] {
		for _, e := range slices.Concat(v.kinds[Job], v.kinds[Run]) {
			if what := cmp.Or(e.Run, e.Job); h.State == "steady" && !about[h.Hook+" "+what] {
				v.fail("I10: %s never heard of %s", h.Hook, what)
			}
		}
	}
}

// I11: between the answer to a pause and the next resume no window closes.
func (v *verdict) pauses() {
	for _, p := range v.kinds[Paused] {
		until := time.Now()
		for _, r := range v.kinds[Resuming] {
			if r.Index == p.Index && r.At.After(p.At) && r.At.Before(until) {
				until = r.At
			}
		}
		for _, j := range v.automatic(p.Index) {
			if j.At.After(p.At) && j.At.Before(until) {
				v.fail("I11: the window of job %s closed %s after a pause was answered", j.Job, j.At.Sub(p.At))
			}
		}
	}
}

// I12: no secret was found where it does not belong.
func (v *verdict) secrets() {
	for _, e := range v.kinds[Leaked] {
		v.fail("I12: %s", e.Detail)
	}
}
