package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/broker"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/media/samples"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// windows measures how long it takes until every one of many windows that are due at the same instant has become a job,
// and what that takes of memory.
func windows(ctx context.Context, l *lab) (_ []Row, err error) {
	w := &windowBench{lab: l, inbox: filepath.Join(l.dir, "inbox"), data: filepath.Join(l.dir, "data")}
	if err := os.MkdirAll(w.inbox, 0o755); err != nil {
		return nil, err
	}
	l.say("opening %d windows", l.size.windows)
	if err := onBroker(ctx, w.data, func(_ *broker.Broker, b *bus.Bus) error { return w.fill(ctx, fill{b}) }); err != nil {
		return nil, err
	}
	up, err := l.up(ctx, settings{data: w.data, allow: w.inbox, library: "none", bus: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, up.stop()) }()
	l.say("ready after %s", up.ready.Round(time.Millisecond))
	if err := l.settled(ctx, up); err != nil {
		return nil, err
	}
	if err := w.setDue(ctx, fill{up.bus}); err != nil {
		return nil, err
	}
	started, _, err := up.memory()
	if err != nil {
		return nil, err
	}
	l.say("%.0f MB resident; due in %s", started, time.Until(w.due).Round(time.Second))
	took, err := w.watch(ctx, up)
	if err != nil {
		return nil, up.explain(err)
	}
	_, peak, err := up.memory()
	if err != nil {
		return nil, err
	}
	l.say("all jobs requested after %.1f s, peak %.0f MB", took, peak)

	n := digits(float64(l.size.windows))
	row := Row{
		What:      n + " windows due in one second: all jobs requested",
		Measured:  Quantity{took, "s"},
		Yardstick: Quantity{w.yardstick, "s"},
		Beside:    "raw atomic batches of as many requests",
		Target:    Target{N: 20, Unit: "s"},
		How: fmt.Sprintf("%s automations over %d watched folders with an open window each (its record and the pending arrival of a real file are written to the store, all with the same deadline). `millrace up --library none` runs on it and has done its first listings. "+
			"From the deadline until the jobs stream has taken the last of %s `job.requested` messages, with the jobs being planned and imported at the same time. "+
			"The yardstick writes %s messages of that size to a stream that nobody reads.", n, len(w.folders), n, n),
		Also: []string{"the first job was requested " + digits(w.first) + " s after the deadline"},
	}
	memory := Row{
		What:      n + " windows due in one second: peak resident memory",
		Measured:  Quantity{peak, "MB"},
		Yardstick: Quantity{started, "MB"},
		Beside:    "the same, before they are due",
		Target:    Target{N: 400, Unit: "MB"},
		How:       "The highest resident memory of that process (VmHWM: broker, all services and program text), from its start until the last job was requested.",
	}
	return []Row{row, memory}, nil
}

type windowBench struct {
	*lab
	inbox, data string
	folders     []string
	open        []window.Record
	due         time.Time
	yardstick   float64 // s
	first       float64 // s after due
}

// files writes a file for each automation, into the folders that these share.
func (w *windowBench) files(ctx context.Context) ([]event.Object, error) {
	photo, err := samples.FS.ReadFile("photo.png")
	if err != nil {
		return nil, err
	}
	for i := range min(sharedFolders, w.size.windows) {
		w.folders = append(w.folders, filepath.Join(w.inbox, fmt.Sprintf("team-%03d", i)))
		if err := os.MkdirAll(w.folders[i], 0o755); err != nil {
			return nil, err
		}
	}
	place := func(i int) (folder, name string) { return w.folders[i%len(w.folders)], project(i) + "-still.png" }
	for i := range w.size.windows {
		folder, name := place(i)
		if err := os.WriteFile(filepath.Join(folder, name), photo, 0o600); err != nil {
			return nil, err
		}
	}
	objects := make([]event.Object, w.size.windows)
	for i := range objects { // not while they are written: the version of a file that is just written is waited for
		folder, name := place(i)
		if objects[i], err = objectAt(ctx, folder, name); err != nil {
			return nil, err
		}
	}
	return objects, nil
}

// fill writes the automations and their pending arrivals as merged into windows.
func (w *windowBench) fill(ctx context.Context, f fill) error {
	objects, err := w.files(ctx)
	if err != nil {
		return err
	}
	if w.yardstick, err = w.requests(ctx, f); err != nil {
		return err
	}
	connectors, err := f.connectors(ctx, w.folders)
	if err != nil {
		return err
	}
	list, err := f.automations(ctx, w.size.windows, func(i int, a *store.Automation) {
		a.Connector, a.Prefix, a.Debounce = connectors[i%len(connectors)], project(i)+"-", "1d"
	})
	if err != nil {
		return err
	}
	if err := f.scans(ctx, list); err != nil {
		return err
	}
	seqs, err := f.messages(ctx, len(list), func(i int) (bus.Message, error) {
		data, err := json.Marshal(event.Arrival{
			Automation: list[i].ID, Index: list[i].Index, Connector: list[i].Connector, Object: objects[i], Found: event.ByNotification,
		})
		return bus.Message{Subject: names.Subject("arrival", list[i].ID, event.ObjectHash(list[i].Connector, objects[i].Path)), Data: data}, err
	})
	if err != nil {
		return err
	}
	if err := f.merged(ctx, len(list)); err != nil {
		return err
	}
	w.open = make([]window.Record, len(list))
	opened := time.Now().UTC()
	for i := range w.open {
		w.open[i] = window.Record{Automation: list[i].ID, Open: &window.Open{
			Epoch: event.NewID("w"), OpenedAt: opened, LastArrivalAt: opened, LastSeq: seqs[i], Deadline: opened.Add(list[i].Interval()),
			Count: 1, Bytes: objects[i].Size, ConfigRev: list[i].Rev,
		}}
	}
	return w.write(ctx, f)
}

// write writes the records of the windows as they are.
func (w *windowBench) write(ctx context.Context, f fill) error {
	return records(ctx, f, topology.Windows, len(w.open), func(i int) (string, window.Record) { return w.open[i].Automation, w.open[i] })
}

// lead is how long before their deadline the records are written again.
func (w *windowBench) lead() time.Duration {
	return 5*time.Second + time.Duration(w.size.windows)*100*time.Microsecond
}

// setDue moves the deadline of all windows to the same instant.
func (w *windowBench) setDue(ctx context.Context, f fill) error {
	w.due = time.Now().Add(w.lead()).Truncate(time.Second).UTC()
	for i := range w.open {
		o := w.open[i].Open
		back := w.due.Sub(o.Deadline)
		o.OpenedAt, o.LastArrivalAt, o.Deadline = o.OpenedAt.Add(back), o.LastArrivalAt.Add(back), w.due
	}
	err := w.write(ctx, f)
	if err == nil && time.Now().After(w.due) {
		err = fmt.Errorf("writing the records took longer than %s", w.lead())
	}
	return err
}

// merged acknowledges the arrivals for the debouncer, which would else merge them into their windows once more.
func (f fill) merged(ctx context.Context, n int) error {
	cons, err := f.bus.Bind(ctx, f.bus.JetStream(), topology.DebouncerArrivals)
	if err != nil {
		return err
	}
	for n > 0 {
		got, err := cons.Fetch(min(n, atOnce), jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			return err
		}
		for m := range got.Messages() {
			n--
			if n == 0 {
				err = m.DoubleAck(ctx) // behind all others
			} else {
				err = m.Ack()
			}
			if err != nil {
				return err
			}
		}
		if err := got.Error(); err != nil {
			return err
		}
	}
	return nil
}

// requests is the yardstick: as many messages of the size of a request, by themselves.
func (w *windowBench) requests(ctx context.Context, f fill) (float64, error) {
	index := event.NewID("idx")
	automation := event.AutomationOfIndex(index)
	body, err := json.Marshal(event.JobRequested{
		Job: event.JobOfWindow(automation, event.NewID("w")), Lane: event.Live, Index: index, Connector: event.NewID("con"),
		Automation: automation, Epoch: event.NewID("w"), LastSeq: 100_000, Pattern: "*", Recursive: true, Mode: event.NewOnly,
		RequestedAt: time.Now().UTC(),
	})
	if err != nil {
		return 0, err
	}
	js := f.bus.JetStream()
	times := make([]float64, w.size.rounds)
	for round := range times {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{
			Name: "raw", Subjects: []string{"raw.*"}, MaxMsgsPerSubject: 1, AllowAtomicPublish: true,
		})
		if err != nil {
			return 0, err
		}
		start := time.Now()
		_, err = f.messages(ctx, w.size.windows, func(i int) (bus.Message, error) {
			return bus.Message{Subject: fmt.Sprintf("raw.%026d", i), Data: body}, nil
		})
		times[round] = time.Since(start).Seconds()
		if err = errors.Join(err, js.DeleteStream(ctx, "raw")); err != nil {
			return 0, err
		}
	}
	return median(times), nil
}

// tellEvery is how often the watch says how far it is.
const tellEvery = 3 * time.Second

// watch follows the jobs stream, a work queue, by its last sequence, which does not shrink, and returns how long after
// the deadline the last job was requested.
func (w *windowBench) watch(ctx context.Context, up *product) (seconds float64, err error) {
	before := make(map[string]uint64)
	for _, stream := range []string{topology.Jobs, topology.Media} {
		state, err := up.bus.State(ctx, stream)
		if err != nil {
			return 0, err
		}
		before[stream] = state.LastSeq
	}
	var last, told time.Time
	err = until(ctx, 20*time.Millisecond, func() (bool, error) {
		state, err := up.bus.State(ctx, topology.Jobs)
		last = time.Now()
		if state.LastSeq > before[topology.Jobs] && w.first == 0 {
			w.first = time.Since(w.due).Seconds()
		}
		if time.Since(told) > tellEvery && last.After(w.due) {
			told = last
			imported, err := up.bus.State(ctx, topology.Media)
			if err != nil {
				return false, err
			}
			l := func(stream string, now uint64) string { return digits(float64(now - before[stream])) }
			w.say("%4.1f s: %s jobs requested, %s files imported", time.Since(w.due).Seconds(),
				l(topology.Jobs, state.LastSeq), l(topology.Media, imported.LastSeq))
		}
		return state.LastSeq >= before[topology.Jobs]+uint64(w.size.windows), err
	})
	if err != nil {
		return 0, fmt.Errorf("%w (of %d jobs)", err, w.size.windows)
	}
	return last.Sub(w.due).Seconds(), w.each(ctx, up)
}

// each makes sure that no job was counted twice: every window has closed.
func (w *windowBench) each(ctx context.Context, up *product) error {
	reg, err := store.Open[window.Record](ctx, up.bus, topology.Windows)
	if err != nil {
		return err
	}
	for r, err := range reg.All(ctx) {
		if err != nil {
			return err
		}
		if r.Open != nil || r.LastJob == "" {
			return fmt.Errorf("the window of %s did not close", r.Automation)
		}
	}
	return nil
}
