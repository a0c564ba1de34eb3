package sim

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/window"
)

// world is one history: what there is, who is at what, and what has been seen of it from outside.
type world struct {
	*tape
	now     time.Time
	procs   []*proc
	effects int // grows with each write
	log     []string
	verbose bool
	wrong   string // the first invariant that did not hold

	// The storage.
	buckets map[string]map[string]object // by connector and path
	bytes   map[string]string            // of each version, by connector, path and version
	clock   int                          // makes versions
	down    bool                         // the storage answers nobody

	// The bus.
	notified  *queue[notification]
	arrivals  *stream[event.Arrival]
	arriving  *queue[event.Arrival] // the debouncers' consumer of arrivals
	requested *queue[event.JobRequested]
	files     *stream[event.File] // job/object
	tasks     *queue[event.Task]
	media     *stream[event.Medium] // index/object/version
	ended     *queue[string]        // the preset triggers' consumer of events: jobs
	toTell    *queue[string]        // the webhooks' consumer of events: ids
	events    map[string]bool
	runs      *queue[string]
	dedupe    map[string]bool // message ids that the broker remembers
	reports   *stream[event.Report]
	library   map[string]string // bytes by medium

	// The registers and documents.
	automations *stream[store.Automation]
	windows     *stream[window.Record]
	jobs        *stream[store.Job]
	runRecords  *stream[store.Run]
	deliveries  *stream[event.Delivery]
	jobReports  map[string][]event.File
	runMedia    map[string][]event.RunMedium

	trackers [2]*tracker
	orphans  map[string]uint64 // as the last sweep found them
	mood     mood              // of the prompt service
	receiver int               // what the webhook's receiver answers

	oracle
}

// mood is how the prompt service answers.
type mood int

const (
	well       mood = iota
	refusing        // it takes nothing
	unanswered      // it takes the run and nobody hears of it
)

// object is what lies in a bucket.
type object struct {
	event.Object
	content string
}

type notification struct {
	connector string
	event.Notification
}

const (
	exactly = "cn_exact" // a bucket that counts versions
	folder  = "cn_folder"
)

// wired is an automation of the simulated deployment.
type wired struct {
	index, connector, preset string
}

var wiring = []wired{
	{"idx_one", exactly, `{"prompt_id":"prm_one"}`},
	{"idx_two", exactly, ``}, // the same objects, and no run
	{"idx_three", folder, `{"prompt_id":"prm_one"}`},
}

var paths = []string{"a.mp4", "b.mp4", "c.mp4", "d.png", ".hidden.mp4"}

const (
	brief = 10 * time.Second
	long  = 60 * time.Second
)

var intervals = []string{"10s", "60s"}

func newWorld(t *tape) *world {
	w := &world{
		tape: t, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		buckets: map[string]map[string]object{exactly: {}, folder: {}}, bytes: map[string]string{},
		events: map[string]bool{}, dedupe: map[string]bool{}, library: map[string]string{},
		jobReports: map[string][]event.File{}, runMedia: map[string][]event.RunMedium{}, orphans: map[string]uint64{}, receiver: 200,
		oracle: newOracle(),
	}
	w.notified = &queue[notification]{w: w, loses: true}
	w.arriving = &queue[event.Arrival]{w: w, loses: true}
	w.ended, w.toTell = &queue[string]{w: w, loses: true}, &queue[string]{w: w, loses: true}
	w.requested, w.tasks, w.runs = &queue[event.JobRequested]{w: w}, &queue[event.Task]{w: w}, &queue[string]{w: w}
	w.arrivals, w.files, w.media = newStream[event.Arrival](w), newStream[event.File](w), newStream[event.Medium](w)
	w.reports, w.deliveries = newStream[event.Report](w), newStream[event.Delivery](w)
	w.automations, w.windows = newStream[store.Automation](w), newStream[window.Record](w)
	w.jobs, w.runRecords = newStream[store.Job](w), newStream[store.Run](w)
	w.automations.wrote = func(_, now stored[store.Automation]) {
		if !now.v.Paused { // whoever resumed it, and whenever that was begun
			delete(w.paused, now.v.ID)
		}
	}
	w.arrivals.wrote, w.windows.wrote, w.files.wrote = w.arrived, w.windowed, w.filed
	w.media.wrote, w.jobs.wrote, w.runRecords.wrote = w.settled, w.jobbed, w.ran
	w.deliveries.wrote = w.delivered
	for i := range w.trackers {
		w.trackers[i] = newTracker()
	}
	for _, a := range wiring {
		id := event.AutomationOfIndex(a.index)
		var preset json.RawMessage
		if a.preset != "" {
			preset = json.RawMessage(a.preset)
		}
		w.automations.put(id, store.Automation{
			ID: id, Index: a.index, Connector: a.connector, Enabled: true, Debounce: intervals[0], Preset: preset, Rev: 1, Recursive: true,
		}, nil)
		w.interval(id, brief)
	}
	return w
}

func (w *world) logf(format string, args ...any) {
	if w.verbose {
		w.log = append(w.log, w.now.Format("15:04:05.0 ")+fmt.Sprintf(format, args...))
	}
}

func (w *world) violated(format string, args ...any) {
	if w.wrong == "" {
		w.wrong = fmt.Sprintf(format, args...)
		w.logf("VIOLATED %s", w.wrong)
	}
}

// history lives through a number of turns with faults, then heals, and returns the first invariant that did not hold.
func (w *world) history(turns int) string {
	defer w.shutdown()
	for range turns {
		if w.turn(); w.wrong != "" {
			return w.wrong
		}
	}
	w.heal()
	return w.wrong
}

func (w *world) shutdown() {
	for len(w.procs) > 0 {
		p := w.procs[0]
		p.stop()
		w.gone(p)
	}
}

// turn is one move of somebody.
func (w *world) turn() {
	switch k := w.draw(100); {
	case k < 52:
		w.goOn()
	case k < 74:
		w.serve(w.draw(len(services)))
	case k < 87:
		w.outside()
	case k < 93:
		w.tick()
	default:
		w.fault()
	}
}

// goOn lets somebody do one step who has something in hand.
func (w *world) goOn() {
	awake := slices.DeleteFunc(slices.Clone(w.procs), func(p *proc) bool { return p.until.After(w.now) })
	if len(awake) > 0 {
		w.run(awake[w.draw(len(awake))])
	}
}

const crowd = 8

func (w *world) serve(n int) {
	if len(w.procs) < crowd {
		s := services[n]
		w.start(s.name, func(p *proc) { s.do(w, p) })
		w.run(w.procs[len(w.procs)-1])
	}
}

func (w *world) tick() {
	w.pass([]time.Duration{time.Second, 3 * time.Second, brief, 35 * time.Second, 6 * time.Minute, 2 * time.Hour}[w.draw(6)])
}

func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	w.logf("%s pass", d)
}

// outside is what people and uploaders do.
func (w *world) outside() {
	connector := []string{exactly, folder}[w.draw(2)]
	at := paths[w.draw(len(paths))]
	a := wiring[w.draw(len(wiring))]
	id := event.AutomationOfIndex(a.index)
	switch k := w.draw(16); {
	case k < 8:
		w.upload(connector, at, w.draw(4), w.draw(8) == 7)
	case k < 10:
		w.remove(connector, at)
	case k < 11:
		w.start("pause", func(p *proc) { w.steer(p, id, true) })
	case k < 13:
		w.start("resume", func(p *proc) { w.steer(p, id, false) })
	case k < 14:
		w.start("reconfigure", func(p *proc) { w.reconfigure(p, id) })
	case k < 15:
		w.start("flush", func(p *proc) { w.flush(p, id) })
	default:
		if all := w.jobs.under(""); len(all) > 0 {
			job := all[w.draw(len(all))].v.ID
			w.start("cancel", func(p *proc) { w.cancel(p, job) })
		}
	}
}

// upload puts a version of an object: content n, or 0 bytes; early puts it under an older time, where times are versions.
func (w *world) upload(connector, at string, n int, early bool) {
	w.clock++
	order := w.clock * 2
	if early && connector == folder {
		order -= 9
	}
	content := fmt.Sprintf("%s is %d", at, n)
	if n == 3 && w.draw(3) == 2 {
		content = ""
	}
	o := object{event.Object{
		Path: at, Order: fmt.Sprintf("%020d", 1000+order), Version: fmt.Sprintf("v%d-%d", order, len(content)), Size: int64(len(content)),
		ModTime: w.now, CRC32C: content,
	}, content}
	if old, there := w.buckets[connector][at]; there && old.Version == o.Version {
		return
	}
	w.buckets[connector][at] = o
	w.newest[connector+at] = max(w.newest[connector+at], o.Order)
	w.bytes[connector+at+o.Version] = content
	w.logf("put %s %s %q", connector, at, o.Version)
	w.notify(notification{connector, event.Notification{
		Op: event.Created, Path: at, Version: o.Version, Order: o.Order, Size: o.Size, ModTime: o.ModTime, CRC32C: o.CRC32C,
	}})
}

func (w *world) remove(connector, at string) {
	o, there := w.buckets[connector][at]
	if !there {
		return
	}
	delete(w.buckets[connector], at)
	w.logf("delete %s %s", connector, at)
	w.notify(notification{connector, event.Notification{Op: event.Deleted, Path: at, Version: o.Version, Order: o.Order}})
}

// notify tells of a change: once, again, late, or never. Messages are taken in any order anyway.
func (w *world) notify(n notification) {
	times := 1
	var late time.Duration
	switch w.draw(8) {
	case 5:
		times = 0
	case 6:
		times = 2 + w.draw(3)
	case 7:
		late = time.Duration(w.draw(5)) * time.Hour
	}
	for range times {
		w.notified.add(item[notification]{v: n, from: w.now.Add(late)})
		late += time.Duration(w.draw(2)) * 30 * time.Second
	}
}

// fault breaks something.
func (w *world) fault() {
	switch k := w.draw(12); {
	case k < 4:
		if len(w.procs) > 0 {
			w.kill(w.procs[w.draw(len(w.procs))])
		}
	case k < 6: // it stands still for so long that others get what it has in hand, and then goes on
		if len(w.procs) > 0 {
			p := w.procs[w.draw(len(w.procs))]
			p.until = w.now.Add(time.Duration(1+w.draw(60)) * time.Second)
			w.release(p)
			w.logf("stall %s", p.name)
		}
	case k < 8: // the broker dies, with what it had not written of acknowledgements
		w.logf("the broker restarts")
		w.notified.forget()
		w.arriving.forget()
		w.ended.forget()
		w.toTell.forget()
		clear(w.dedupe)
	case k < 9:
		w.down = !w.down
		w.logf("storage down: %v", w.down)
	case k < 10:
		w.mood = mood(w.draw(3))
	case k < 11:
		w.receiver = []int{200, 500, 0, 410}[w.draw(4)]
	default:
		w.rot()
	}
}

// rot is a stream that lost its end, so that sequences are handed out again, and a record that is as it was before.
func (w *world) rot() {
	if w.draw(8) != 7 {
		return
	}
	a := id(wiring[w.draw(len(wiring))])
	if was := w.before[a]; len(was) > 0 && w.draw(2) == 1 {
		old := was[w.draw(len(was))]
		w.logf("the window of %s goes back to revision %d", a, old.seq)
		w.windows.m[a] = &old
		w.rotten[a] = true
		return
	}
	all := w.arrivals.under("")
	if len(all) == 0 {
		return
	}
	first := all[w.draw(len(all))].seq
	w.logf("arrivals are lost from %d on", first)
	for _, m := range all {
		if m.seq >= first {
			w.arrivals.remove(m.subject)
		}
	}
	w.arriving.drop(func(it *item[event.Arrival]) bool { return it.seq >= first })
	w.arrivals.last = first - 1
	for _, a := range wiring {
		w.rotten[id(a)] = true
	}
}

// heal ends all faults and lets everybody work until nothing is left to be done, then checks what must hold in the end.
func (w *world) heal() {
	w.logf("--- all is well from here on")
	for _, p := range slices.Clone(w.procs) {
		if w.draw(2) == 1 {
			w.kill(p)
			continue
		}
		p.until = time.Time{}
	}
	w.down, w.mood, w.receiver = false, well, 200
	for _, a := range wiring {
		id := event.AutomationOfIndex(a.index)
		w.start("resume", func(p *proc) { w.steer(p, id, false) })
	}
	// What failed for a reason that may pass comes back with listings within a day.
	for _, wait := range []time.Duration{0, 25 * time.Hour, 25 * time.Hour} {
		w.pass(wait)
		for n, quiet := 0, 0; quiet < 3; n++ {
			before := w.effects
			for s := range services {
				w.serve(s)
				for len(w.procs) > 0 && w.wrong == "" {
					w.run(w.procs[0])
				}
			}
			w.pass(15 * time.Second)
			if w.effects == before && !w.overdue() {
				quiet++
			} else {
				quiet = 0
			}
			if w.wrong != "" {
				return
			}
			if n > 3000 {
				w.violated("I9: it does not come to rest")
				return
			}
		}
	}
	w.atRest()
}

// overdue reports whether something waits for its time.
func (w *world) overdue() bool {
	for _, r := range w.windows.m {
		if r.v.Open != nil || r.v.Closing != nil {
			return true
		}
	}
	for _, d := range w.deliveries.m {
		if !d.v.State.Final() {
			return true
		}
	}
	return len(w.notified.items)+len(w.requested.items)+len(w.tasks.items)+len(w.ended.items)+len(w.runs.items) > 0
}

func subjectOf(parts ...string) string { return strings.Join(parts, "/") }
