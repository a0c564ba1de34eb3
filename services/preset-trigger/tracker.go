package presettrigger

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/store"
	"millrace/shared/topology"
)

const (
	trackerLease = "run-tracker"
	// writeEvery bounds how often the record of one run is written while reports come in.
	writeEvery = 500 * time.Millisecond
	// tellEvery bounds how often the progress of a run is announced.
	tellEvery = time.Second
	// reportBatch is how many reports are folded before records are looked after.
	reportBatch = 1000
	// writers is how many records are written at a time; their writes share fsyncs.
	writers = 64
)

// tracker folds reports into run records, hands out runs that nobody handed out, and announces how runs go. One at a
// time does, under a lease; two for a moment, as when one is stopped and woken up, do no harm: each write is a merge
// that goes forward, and each event has the id of its fact.
type tracker struct {
	runs          *Runs
	sweepInterval time.Duration
	log           *slog.Logger
	metrics       metrics
}

// run tracks whenever it holds the lease, until ctx ends. What fails is begun anew from the stream.
func (t *tracker) run(ctx context.Context, leases *store.Leases) {
	leases.Keep(ctx, trackerLease, func(err error) { t.log.Warn("tracking reports, will begin anew", "error", err) }, t.track)
}

// track works until ctx ends or something fails.
func (t *tracker) track(ctx context.Context) error {
	defer t.metrics.tracked.Set(0)
	before, err := t.runs.bus.State(ctx, topology.Reports)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	changes, known := make(chan store.Change[store.Run]), make(chan struct{})
	g.Go(func() error {
		return t.runs.records.Watch(ctx, func() { close(known) }, func(c store.Change[store.Run]) {
			select {
			case changes <- c:
			case <-ctx.Done():
			}
		})
	})
	g.Go(func() error {
		s := &session{
			tracker: t, live: make(map[string]*liveRun), dirty: make(map[string]*liveRun), settled: make(map[string]struct{}),
		}
		if !s.load(ctx, changes, known) {
			return nil
		}
		after, err := t.runs.bus.State(ctx, topology.Reports)
		if err != nil {
			return err
		}
		reports, following, err := t.follow(ctx, s.from(before.LastSeq, after.LastSeq))
		if err != nil {
			return err
		}
		defer following.Stop()
		return s.work(ctx, changes, reports, following.Closed())
	})
	return g.Wait()
}

// follow delivers the reports from sequence from on, in stream order.
func (t *tracker) follow(ctx context.Context, from uint64) (<-chan jetstream.Msg, jetstream.ConsumeContext, error) {
	b := t.runs.bus
	c, err := b.JetStream().OrderedConsumer(ctx, b.Stream(topology.Reports), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{b.Subject("run", "report", ">")},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    from,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("follow reports: %w", err)
	}
	reports := make(chan jetstream.Msg, reportBatch)
	cc, err := c.Consume(func(m jetstream.Msg) {
		select {
		case reports <- m:
		case <-ctx.Done():
		}
	}, jetstream.PullMaxMessages(2*reportBatch), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		t.log.Debug("following reports", "error", err) // the consumer finds its place again by itself
	}))
	if err != nil {
		return nil, nil, fmt.Errorf("follow reports: %w", err)
	}
	return reports, cc, nil
}

// session is what one holder of the lease knows.
type session struct {
	*tracker
	live    map[string]*liveRun // runs not settled, by id
	dirty   map[string]*liveRun // those whose records are behind, or not announced
	settled map[string]struct{} // runs of which nothing more is to be done
	news    []bus.Message       // of media, not announced
}

// liveRun is a run that is not settled.
type liveRun struct {
	record    store.Run
	fold      *fold     // nil before the first report
	written   time.Time // last tried
	ended     bool      // its end was tried to be written
	announced bool      // that it started
	told      time.Time // how far it is, by the event toldAs
	toldAs    string
	swept     bool // it was there at the last sweep
}

// maxSettled bounds the memory for settled runs. Forgetting one costs a read when a late report or change comes.
const maxSettled = 100_000

// load takes in all records as they stand. It returns false when ctx ended first.
func (s *session) load(ctx context.Context, changes <-chan store.Change[store.Run], known <-chan struct{}) bool {
	for {
		select {
		case c := <-changes:
			s.see(c)
		case <-known:
			for _, l := range s.live {
				l.swept = true
			}
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// from is where in the stream to begin, given its last sequence before and after the runs were listed. A run that was
// not in the list was made after before was read, so its reports lie behind that.
//
// A run that expects its reports behind what the stream has is older than a restore of the stream: positions mean
// nothing then, and everything is read.
func (s *session) from(before, after uint64) uint64 {
	from := before + 1
	for _, l := range s.live {
		if l.record.ReportsFrom > after+1 {
			return 1
		}
		from = min(from, l.record.ReportsFrom)
	}
	return max(from, 1)
}

// see takes note of a record.
func (s *session) see(c store.Change[store.Run]) {
	if c.Value == nil {
		delete(s.live, c.Key)
		delete(s.dirty, c.Key)
		return
	}
	s.note(*c.Value)
}

func (s *session) note(r store.Run) *liveRun {
	if _, over := s.settled[r.ID]; over {
		return nil // an echo of what was written before the end
	}
	if r.Settled {
		s.forget(r.ID)
		return nil
	}
	l := s.live[r.ID]
	if l == nil {
		l = new(liveRun)
		s.live[r.ID] = l
	}
	l.record = r
	if r.Status.Terminal() || (!l.announced && !r.StartedAt.IsZero()) {
		s.dirty[r.ID] = l // to be announced
	}
	return l
}

func (s *session) forget(run string) {
	delete(s.live, run)
	delete(s.dirty, run)
	if len(s.settled) >= maxSettled {
		clear(s.settled)
	}
	s.settled[run] = struct{}{}
}

func (s *session) work(ctx context.Context, changes <-chan store.Change[store.Run], reports <-chan jetstream.Msg, closed <-chan struct{}) error {
	s.advance(ctx, time.Now())
	s.sweep(ctx)
	tick := time.NewTicker(writeEvery / 5)
	defer tick.Stop()
	sweep := time.NewTicker(s.sweepInterval)
	defer sweep.Stop()
	for {
		var look <-chan time.Time // nobody is woken while there is nothing to write
		if len(s.dirty) > 0 {
			look = tick.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-closed:
			return errors.New("the subscription to reports ended")
		case c := <-changes:
			s.see(c)
		case m := <-reports:
			if err := s.take(ctx, m, reports); err != nil {
				return err
			}
			if err := s.tellNews(ctx); err != nil {
				return err
			}
		case <-look:
		case <-sweep.C:
			s.sweep(ctx)
		}
		s.advance(ctx, time.Now())
		s.metrics.tracked.Set(float64(len(s.live)))
	}
}

// take folds a report and those that wait behind it.
func (s *session) take(ctx context.Context, m jetstream.Msg, more <-chan jetstream.Msg) error {
	for n := 1; ; n++ {
		outcome, err := s.report(ctx, m)
		if err != nil {
			return err
		}
		s.metrics.reports.WithLabelValues(outcome).Inc()
		if n == reportBatch { // asked before the next is received: what is received is folded
			return nil
		}
		select {
		case m = <-more:
		default:
			return nil
		}
	}
}

// report folds one report and says what became of it.
func (s *session) report(ctx context.Context, m jetstream.Msg) (string, error) {
	md, err := m.Metadata()
	if err != nil {
		return reportMalformed, fmt.Errorf("report %s: %w", m.Subject(), err)
	}
	r, err := readReport(m.Subject(), m.Data())
	if err != nil {
		s.bury(ctx, m, md.Sequence.Stream, err)
		return reportMalformed, nil
	}
	l, outcome, err := s.lookup(ctx, r.Run)
	if l == nil || err != nil {
		return outcome, err
	}
	if l.record.Media == "" { // nobody can have been asked yet
		return reportUnknownMedium, nil
	}
	if l.fold == nil {
		l.fold, err = s.begin(ctx, l.record)
		if errors.Is(err, store.ErrNotFound) {
			l.record.Status = store.RunFailed // so that this is done once
			return reportUnknownMedium, s.runs.fail(ctx, r.Run, "the list of its media is lost")
		}
		if err != nil {
			return "", err
		}
	}
	before := l.fold.media[r.Video].state
	if !l.fold.apply(r.Video, r.State, md.Sequence.Stream, md.Timestamp) {
		return reportUnknownMedium, nil
	}
	s.dirty[r.Run] = l
	if now := l.fold.media[r.Video]; now.state != before {
		e, err := processingEvent(l.record, r, now, md.Timestamp)
		if err != nil {
			return "", err
		}
		s.news = append(s.news, s.runs.bus.EventMessage(e))
	}
	return reportFolded, nil
}

// tellNews announces how media got on, before the record of their run shows it: once that is settled, nobody folds these
// reports again. A takeover tells the newest of each medium once more, under the same id.
func (s *session) tellNews(ctx context.Context) error {
	if len(s.news) == 0 {
		return nil
	}
	_, errs := s.runs.bus.PublishAll(ctx, s.news)
	s.news = s.news[:0]
	return errors.Join(errs...)
}

// processingEvent is the event that says how a medium gets on in a run.
func processingEvent(run store.Run, r event.Report, m standing, at time.Time) (event.Event, error) {
	typ, status := event.ProcessingStarted, "processing"
	switch m.state {
	case event.Successful:
		typ, status = event.ProcessingCompleted, "processed"
	case event.Unsuccessful:
		typ, status = event.ProcessingFailed, "failed"
	}
	e, err := bus.NewEvent(typ, cmp.Or(run.Index, bus.NoIndex), r.Video, at, event.ProcessingEvent{
		Video: r.Video, Index: run.Index, Run: run.ID, Prompt: run.Prompt, Job: run.Job, Title: m.title, MediaType: m.kind,
		Status: status, Error: r.Error,
	})
	e.ID = event.IDOf(typ, e.Index, run.ID+" "+r.Video) // a medium may be in many runs
	return e, err
}

// lookup finds the run of a report, nil with the reason if there is nothing to be done for it.
func (s *session) lookup(ctx context.Context, run string) (*liveRun, string, error) {
	l := s.live[run]
	if l == nil {
		if _, over := s.settled[run]; over {
			return nil, reportLate, nil
		}
		// A report may be here before the watch has brought its run.
		r, _, err := s.runs.records.Get(ctx, run)
		if errors.Is(err, store.ErrNotFound) {
			return nil, reportUnknownRun, nil
		}
		if err != nil {
			return nil, "", err
		}
		if l = s.note(r); l == nil {
			return nil, reportLate, nil
		}
	}
	if l.record.Status.Terminal() {
		return nil, reportLate, nil
	}
	return l, "", nil
}

// begin makes the fold of a run from its media list.
func (s *session) begin(ctx context.Context, run store.Run) (*fold, error) {
	f := newFold()
	for m, err := range store.ReadLines[event.RunMedium](ctx, s.runs.documents, run.Media) {
		if err != nil {
			return nil, err
		}
		f.add(m)
	}
	return f, nil
}

// readReport reads what a report says. Its subject decides what it is about; a body that names something else, or a
// state that is none, is malformed.
func readReport(subject string, data []byte) (event.Report, error) {
	var body struct { // what is needed of event.Report: results can be big
		Run   string            `json:"run_id"`
		Video string            `json:"video_id"`
		State event.ReportState `json:"state"`
		Error string            `json:"error"`
	}
	if err := json.Unmarshal(data, &body); err != nil {
		return event.Report{}, fmt.Errorf("decode report: %w", err)
	}
	tokens := strings.Split(subject, ".")
	n := len(tokens)
	if n < 2 {
		return event.Report{}, fmt.Errorf("subject %s names no run and medium", subject)
	}
	r := event.Report{Run: tokens[n-2], Video: tokens[n-1], State: body.State}
	if r.State == event.Unsuccessful {
		r.Error = body.Error
	}
	switch {
	case body.Run != "" && body.Run != r.Run:
		return r, fmt.Errorf("run_id %q in the body, %q in the subject", body.Run, r.Run)
	case body.Video != "" && body.Video != r.Video:
		return r, fmt.Errorf("video_id %q in the body, %q in the subject", body.Video, r.Video)
	case body.State != event.Processing && !final(body.State):
		return r, fmt.Errorf("state %q is not one of %s, %s, %s", body.State, event.Processing, event.Successful, event.Unsuccessful)
	}
	return r, nil
}

// bury moves a malformed report to the dead stream. It is removed from its own only once it is safe there; else the
// next takeover meets it again.
func (s *session) bury(ctx context.Context, m jetstream.Msg, seq uint64, cause error) {
	b := s.runs.bus
	err := b.Bury(ctx, event.Dead{
		Consumer: trackerLease, Stream: b.Stream(topology.Reports), Subject: m.Subject(), Reason: cause.Error(),
		Stage: "decode", Delivered: 1, Header: m.Headers(), Data: m.Data(),
	})
	if err == nil {
		var stream jetstream.Stream
		if stream, err = b.JetStream().Stream(ctx, b.Stream(topology.Reports)); err == nil {
			err = stream.DeleteMsg(ctx, seq)
		}
	}
	if err != nil {
		s.log.Warn("moving a malformed report to the dead stream", "subject", m.Subject(), "error", err)
	}
}

// advance writes the records that are due: an end at once, anything else not more often than every writeEvery.
func (s *session) advance(ctx context.Context, now time.Time) {
	var due []*liveRun
	for _, l := range s.dirty {
		ends := l.fold != nil && l.fold.complete() && !l.ended
		if ends || now.Sub(l.written) >= writeEvery {
			l.written, l.ended = now, l.ended || ends
			due = append(due, l)
		}
	}
	if len(due) == 0 {
		return
	}
	errs := make([]error, len(due))
	var g errgroup.Group
	g.SetLimit(writers)
	for i, l := range due {
		g.Go(func() error {
			errs[i] = s.write(ctx, l)
			return nil
		})
	}
	_ = g.Wait()
	for i, l := range due {
		switch id := l.record.ID; {
		case errs[i] != nil:
			if ctx.Err() == nil {
				s.log.Warn("writing the record of a run, will be tried again", "run_id", id, "error", errs[i])
			}
		case l.record.Settled:
			s.metrics.ended.WithLabelValues(string(l.record.Status)).Inc()
			s.forget(id)
		default:
			delete(s.dirty, id)
		}
	}
}

var errGone = errors.New("the record was deleted")

// write brings the record of a run up to its fold and announces what is new. In this order, so that an event never
// tells of something that the record does not show; a crash in between repeats the event under the same id, and only a
// settled run is left alone.
func (s *session) write(ctx context.Context, l *liveRun) error {
	rec, _, err := s.runs.records.Modify(ctx, l.record.ID, func(r *store.Run) error {
		if r.ID == "" {
			return errGone
		}
		if l.fold != nil {
			*r = l.fold.into(*r)
		}
		return nil
	})
	if errors.Is(err, errGone) {
		return nil // the watch takes it away
	}
	if err != nil {
		return err
	}
	l.record = rec
	if !rec.StartedAt.IsZero() && !l.announced && !rec.Settled {
		if err := s.announce(ctx, event.RunStarted, rec, rec.StartedAt); err != nil {
			return err
		}
		l.announced = true
	}
	if l.fold != nil && rec.Status == store.RunProcessing && time.Since(l.told) >= tellEvery {
		if err := s.announceProgress(ctx, l, rec); err != nil {
			return err
		}
	}
	if rec.Status.Terminal() && !rec.Settled {
		if err := failpoint.Here("runs.ended"); err != nil {
			return err
		}
		if typ, ok := endEvents[rec.Status]; ok {
			if err := s.announce(ctx, typ, rec, rec.EndedAt); err != nil {
				return err
			}
		}
		if err := failpoint.Here("runs.announced"); err != nil {
			return err
		}
		rec, _, err = s.runs.records.Modify(ctx, rec.ID, func(r *store.Run) error {
			if r.ID == "" {
				return store.ErrUnchanged
			}
			r.Settled = true
			return nil
		})
		if err != nil {
			return err
		}
		l.record = rec
	}
	return nil
}

// endEvents are the events of the ends of runs.
var endEvents = map[store.RunStatus]event.Type{
	store.RunCompleted:             event.RunCompleted,
	store.RunCompletedWithFailures: event.RunPartialCompleted,
	store.RunFailed:                event.RunFailed,
	store.RunCancelled:             event.RunCancelled,
}

func (s *session) announce(ctx context.Context, typ event.Type, r store.Run, at time.Time) error {
	e, err := runEvent(typ, r, at)
	if err != nil {
		return err
	}
	return s.runs.bus.PublishEvent(ctx, e)
}

// announceProgress says how far a run is, unless that was said last.
func (s *session) announceProgress(ctx context.Context, l *liveRun, r store.Run) error {
	now := time.Now()
	e, err := runEvent(event.RunProgress, r, now)
	if err != nil {
		return err
	}
	e.ID = event.IDOf(e.Type, e.Index, r.ID+" "+string(e.Data)) // it happens again and again
	if e.ID == l.toldAs {
		return nil
	}
	l.told, l.toldAs = now, e.ID
	return s.runs.bus.PublishEvent(ctx, e)
}

// runEvent is the event that says typ about a run.
func runEvent(typ event.Type, r store.Run, at time.Time) (event.Event, error) {
	data := event.RunEvent{Run: r.ID, Job: r.Job, Index: r.Index, Prompt: r.Prompt, Status: string(r.Status)}
	for _, t := range r.Tallies {
		data.Total += t.Total
		data.Completed += t.Completed
		data.Failed += t.Failed
	}
	if typ == event.RunStarted { // the same at each repetition, however far the run is by then
		data.Status, data.Completed, data.Failed = string(store.RunProcessing), 0, 0
	}
	return bus.NewEvent(typ, cmp.Or(r.Index, bus.NoIndex), r.ID, at, data)
}

// sweep hands out the runs that were made before the last sweep and that nobody handed out: whoever made them died in
// between.
func (s *session) sweep(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(writers)
	for _, l := range s.live {
		if l.record.Status != store.RunPending || l.record.Dispatched || l.record.Media == "" {
			continue
		}
		if !l.swept {
			l.swept = true
			continue
		}
		g.Go(func() error {
			if err := s.runs.Dispatch(ctx, l.record); err != nil {
				if ctx.Err() == nil {
					s.log.Warn("handing out a run, will be tried again", "run_id", l.record.ID, "error", err)
				}
				return nil
			}
			s.metrics.redispatched.Inc()
			s.log.Info("the sweep handed out a run", "run_id", l.record.ID)
			return nil
		})
	}
	_ = g.Wait()
}
