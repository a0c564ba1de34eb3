package webhooks

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/singleflight"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/webhook"
)

// sender sends what is due. It holds no truth: what it knows of open deliveries is read from their stream, all of it when
// it begins, and the record of a delivery is read again before each attempt.
//
// One at a time sends, under a lease; two for a moment, as when one is stopped and woken up, repeat attempts at most.
type sender struct {
	cfg        Config
	env        service.Env
	metrics    metrics
	hooks      *hooks
	deliveries *store.Deliveries
	secrets    webhook.Opener
	client     *webhook.Client
	reads      chan struct{} // places

	envelopes struct {
		sync.Mutex
		known map[string]json.RawMessage // by event
		reads singleflight.Group
	}
}

// run sends whenever it holds the lease, until ctx ends. What fails is begun anew from the stream.
func (s *sender) run(ctx context.Context, leases *store.Leases) {
	for ctx.Err() == nil {
		err := leases.Hold(ctx, senderLease, s.send)
		if err == nil || ctx.Err() != nil {
			continue
		}
		s.env.Log.Warn("sending to webhooks, will begin anew", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// item is an open delivery.
type item struct {
	id      string
	queue   *queue
	at      time.Time // due
	created time.Time
	rev     store.Revision
	fresh   *event.Delivery // as it stands at rev, of one that was never tried; nil: to be read
	place   place
	index   int // in session.waiting
}

// place is where an item is.
type place int

const (
	waiting  place = iota // until it is due
	due                   // in its queue
	inFlight              // being attempted
	over                  // nothing more is to be done
)

// queue is what is due at one webhook.
type queue struct {
	webhook  string
	due      []*item // in order; those that are elsewhere by now are passed over
	inFlight int
	failing  bool // the last attempt was no success: one at a time until one is
	queued   bool // in session.runnable
}

// session is what one holder of the lease knows.
type session struct {
	*sender
	items    map[string]*item // by delivery
	queues   map[string]*queue
	waiting  schedule
	runnable []*queue // those with something due, in turn
	inFlight int
	results  chan result
}

// result is what an attempt found out about a delivery.
type result struct {
	*item
	d     event.Delivery // as it stands at rev
	rev   store.Revision // 0: not known, look again after pause
	pause time.Duration
	gone  bool // there is none any more
	sent  bool // a request was made, and it was no success
	ok    bool // a request was made, and it was one
}

// followBatch is how many changes of deliveries are prefetched, and taken in before anything is sent.
const followBatch = 1000

// expireEvery is how often deliveries are looked for that have waited too long for their webhook.
const expireEvery = time.Minute

// send works until ctx ended and what is in flight is over, or until the stream cannot be followed.
func (s *sender) send(ctx context.Context) error {
	ss := &session{
		sender: s, items: make(map[string]*item), queues: make(map[string]*queue),
		results: make(chan result, s.cfg.Concurrency),
	}
	defer s.metrics.open.Set(0)
	changes, following, err := ss.follow(ctx)
	if err != nil {
		return err
	}
	defer following.Stop()
	closed := following.Closed() // asked once: each call starts a goroutine
	defer func() {               // attempts have deadlines of their own
		for ; ss.inFlight > 0; ss.inFlight-- {
			<-ss.results
		}
	}()
	timer, expire := time.NewTimer(0), time.NewTicker(min(expireEvery, s.cfg.MaxWait))
	defer timer.Stop()
	defer expire.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-closed:
			return errors.New("the subscription to deliveries ended")
		case m := <-changes:
			ss.take(m, changes)
		case r := <-ss.results:
			ss.done(r)
		case <-s.hooks.wake:
			for id := range s.hooks.changed() {
				if q := ss.queues[id]; q != nil {
					ss.mark(q)
				}
			}
		case <-timer.C:
		case <-expire.C:
			ss.expire(ctx, time.Now())
		}
		ss.start(ctx, time.Now())
		timer.Stop()
		if len(ss.waiting) > 0 {
			timer.Reset(time.Until(ss.waiting[0].at))
		}
		s.metrics.open.Set(float64(len(ss.items)))
	}
}

// follow delivers the deliveries as they stand and then each change, in stream order.
func (s *session) follow(ctx context.Context) (<-chan jetstream.Msg, jetstream.ConsumeContext, error) {
	b := s.env.Bus
	c, err := b.JetStream().OrderedConsumer(ctx, b.Stream(topology.Deliveries), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{s.deliveries.Subject("*", "*")},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("follow deliveries: %w", err)
	}
	changes := make(chan jetstream.Msg, followBatch)
	cc, err := c.Consume(func(m jetstream.Msg) {
		select {
		case changes <- m:
		case <-ctx.Done():
		}
	}, jetstream.PullMaxMessages(2*followBatch), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		s.env.Log.Debug("following deliveries", "error", err) // the consumer finds its place again by itself
	}))
	if err != nil {
		return nil, nil, fmt.Errorf("follow deliveries: %w", err)
	}
	return changes, cc, nil
}

// take sees a change and those that wait behind it.
func (s *session) take(m jetstream.Msg, more <-chan jetstream.Msg) {
	for n := 1; ; n++ {
		if md, err := m.Metadata(); err == nil {
			var d event.Delivery
			if d, err = store.ReadDelivery(m.Data()); err == nil {
				s.see(d, md.Sequence.Stream)
			} else {
				s.env.Log.Error("a delivery that cannot be read is left alone", "subject", m.Subject(), "error", err)
			}
		}
		if n == followBatch {
			return
		}
		select {
		case m = <-more:
		default:
			return
		}
	}
}

// see takes note of how a delivery stands.
func (s *session) see(d event.Delivery, rev store.Revision) {
	it := s.items[d.ID]
	switch {
	case it != nil && rev <= it.rev: // an echo
		return
	case d.State.Final():
		s.forget(it)
		return
	case it == nil:
		q := s.queues[d.Webhook]
		if q == nil {
			q = &queue{webhook: d.Webhook}
			s.queues[d.Webhook] = q
		}
		it = &item{id: d.ID, queue: q, created: d.CreatedAt, place: waiting, index: -1}
		s.items[d.ID] = it
	}
	it.at, it.rev, it.fresh = d.DueAt, rev, nil
	if d.Attempts == 0 {
		it.fresh = &d
	}
	if it.place == waiting {
		s.await(it)
	}
}

func (s *session) forget(it *item) {
	if it == nil {
		return
	}
	if it.place == waiting && it.index >= 0 {
		heap.Remove(&s.waiting, it.index)
	}
	it.place = over
	delete(s.items, it.id)
}

// await puts an item where its time is kept.
func (s *session) await(it *item) {
	it.place = waiting
	if it.index >= 0 {
		heap.Fix(&s.waiting, it.index)
	} else {
		heap.Push(&s.waiting, it)
	}
}

// mark has a queue looked at.
func (s *session) mark(q *queue) {
	if !q.queued {
		q.queued = true
		s.runnable = append(s.runnable, q)
	}
}

// start begins what is due, one of each webhook in turn, as far as there are places.
func (s *session) start(ctx context.Context, now time.Time) {
	for len(s.waiting) > 0 && !s.waiting[0].at.After(now) {
		it := heap.Pop(&s.waiting).(*item)
		it.place = due
		it.queue.due = append(it.queue.due, it)
		s.mark(it.queue)
	}
	for s.inFlight < s.cfg.Concurrency && len(s.runnable) > 0 {
		q := s.runnable[0]
		s.runnable[0] = nil
		s.runnable = s.runnable[1:]
		q.queued = false
		if q.inFlight >= s.places(q) || s.idle(q.webhook) {
			continue // its next result, or the next change of the webhook, marks it again
		}
		if it := q.next(); it != nil {
			s.begin(ctx, it)
			s.mark(q)
		} else if q.inFlight == 0 {
			q.due = nil
		}
	}
}

func (s *session) places(q *queue) int {
	if q.failing {
		return 1
	}
	return s.cfg.PerWebhook
}

// idle reports whether nothing is to be sent to a webhook for now.
func (s *session) idle(id string) bool {
	w := s.hooks.cached(id)
	return w != nil && w.Status != store.WebhookActive
}

// next takes the first item that is due.
func (q *queue) next() *item {
	for len(q.due) > 0 {
		it := q.due[0]
		q.due[0] = nil
		q.due = q.due[1:]
		if it.place == due {
			return it
		}
	}
	return nil
}

func (s *session) begin(ctx context.Context, it *item) {
	it.place = inFlight
	it.queue.inFlight++
	s.inFlight++
	d, rev := it.fresh, it.rev
	it.fresh = nil
	go func() { s.results <- s.attempt(context.WithoutCancel(ctx), it, d, rev) }()
}

// done takes in what came of an attempt.
func (s *session) done(r result) {
	s.inFlight--
	q := r.queue
	q.inFlight--
	s.mark(q)
	if r.sent || r.ok {
		q.failing = !r.ok
	}
	if r.place != inFlight { // settled by somebody else meanwhile
		return
	}
	r.place = waiting
	switch {
	case r.gone:
		s.forget(r.item)
	case r.rev == 0:
		r.at = time.Now().Add(r.pause)
		s.await(r.item)
	case r.rev > r.item.rev:
		s.see(r.d, r.rev)
	default: // what was seen meanwhile is as new
		s.await(r.item)
	}
}

// expire has those looked at that have waited too long for a webhook that is paused or disabled.
func (s *session) expire(ctx context.Context, now time.Time) {
	for _, q := range s.queues {
		if !s.idle(q.webhook) {
			continue
		}
		for _, it := range q.due {
			if it != nil && it.place == due && now.Sub(it.created) > s.cfg.MaxWait && s.inFlight < s.cfg.Concurrency {
				s.begin(ctx, it)
			}
		}
	}
}

// schedule is a heap of items by when they are due.
type schedule []*item

func (h schedule) Len() int           { return len(h) }
func (h schedule) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h schedule) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push is for heap.
func (h *schedule) Push(x any) {
	it := x.(*item)
	it.index = len(*h)
	*h = append(*h, it)
}

// Pop is for heap.
func (h *schedule) Pop() any {
	last := len(*h) - 1
	it := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	it.index = -1
	return it
}

// Pauses after trouble that is ours.
const (
	lookAgain  = time.Second      // a record could not be read
	writeAgain = time.Second      // what came of an attempt could not be written
	writeLimit = 30 * time.Second // and then the attempt is lost, and has to be repeated:
	sendAgain  = time.Minute
)

// read returns a delivery as it stands now. Each read holds a buffer of the client, so a few at a time must do.
func (s *sender) read(ctx context.Context, id string) (event.Delivery, store.Revision, error) {
	s.reads <- struct{}{}
	defer func() { <-s.reads }()
	return s.deliveries.Get(ctx, id)
}

// attempt makes one attempt if one is due, and writes down what came of it. fresh is a delivery that was never tried as
// it was at rev, which spares a read: whoever else may have tried it would be another sender. nil: it is read first.
func (s *sender) attempt(ctx context.Context, it *item, fresh *event.Delivery, rev store.Revision) result {
	r := result{item: it}
	unsure := func(err error) result {
		s.env.Log.Warn("delivery will be looked at again", "delivery_id", it.id, "error", err)
		r.pause = lookAgain
		return r
	}
	var d event.Delivery
	var err error
	if fresh != nil {
		d = *fresh
	} else {
		d, rev, err = s.read(ctx, it.id)
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		r.gone = true
		return r
	case err != nil:
		return unsure(err)
	case d.State.Final() || d.DueAt.After(time.Now()):
		r.d, r.rev = d, rev
		return r
	}
	w, err := s.webhook(ctx, d)
	if err != nil {
		return unsure(err)
	}
	if w == nil { // deleted, and this was overlooked or came later
		r.gone = true
		if err := s.deliveries.Forget(ctx, d.Webhook, d.ID); err != nil {
			return unsure(err)
		}
		return r
	}
	if w.Status != store.WebhookActive {
		if time.Since(d.CreatedAt) <= s.cfg.MaxWait {
			r.d, r.rev = d, rev
			return r
		}
		d.State, d.EndedAt, d.DueAt = event.DeliveryFailed, time.Now().UTC(), time.Time{}
		d.Error = fmt.Sprintf("given up: the webhook was %s for longer than %s", w.Status, s.cfg.MaxWait)
		if r.rev, err = s.deliveries.Write(ctx, d, rev); err != nil {
			return unsure(err)
		}
		r.d = d
		s.metrics.attempts.WithLabelValues(string(exhausted)).Inc()
		return r
	}
	a, err := s.post(ctx, d, w)
	if err != nil {
		return unsure(err)
	}
	r.ok, r.sent = a.Delivered(), !a.Delivered()
	next, what := s.policy().after(d, a, time.Now().UTC())
	s.metrics.attempts.WithLabelValues(string(what)).Inc()
	s.hooks.note(w.ID, what, a.At)
	if what == gone {
		s.hooks.settle(ctx, w.ID)
	}
	return s.record(ctx, r, next, rev, a)
}

// webhook returns the one that a delivery is for, nil when that was deleted, also when another was created under its id.
func (s *sender) webhook(ctx context.Context, d event.Delivery) (*store.Webhook, error) {
	w, err := s.hooks.get(ctx, d.Webhook)
	if err != nil || w != nil && w.CreatedAt.Equal(d.Life) {
		return w, err
	}
	read, _, err := s.hooks.reg.Get(ctx, d.Webhook) // the watch may be behind
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, nil
	case err != nil || !read.CreatedAt.Equal(d.Life):
		return nil, err
	}
	return &read, nil
}

func (s *sender) policy() policy {
	return policy{schedule: s.cfg.Schedule, maxRetryAfter: s.cfg.MaxRetryAfter, jitter: spread}
}

// post makes the request.
func (s *sender) post(ctx context.Context, d event.Delivery, w *store.Webhook) (webhook.Answer, error) {
	envelope, err := s.envelope(ctx, d.Event)
	if errors.Is(err, store.ErrNotFound) {
		return webhook.Answer{At: time.Now().UTC(), Error: "what was to be sent is not kept any more"}, nil
	}
	if err != nil {
		return webhook.Answer{}, err
	}
	body, err := webhook.Body(envelope, d.Metadata)
	if err != nil {
		return webhook.Answer{}, err
	}
	keys, err := webhook.Secrets(s.secrets, *w, time.Now())
	if err != nil {
		return webhook.Answer{}, err
	}
	start := time.Now()
	a := s.client.Send(ctx, webhook.Request{
		URL: w.URL, Webhook: w.ID, Delivery: d.ID, EventID: d.Event, Event: string(d.Type), Body: body, Secrets: keys,
	})
	s.metrics.attempt.Observe(time.Since(start).Seconds())
	return a, nil
}

// maxEnvelopes bounds the envelopes in memory.
const maxEnvelopes = 256

// envelope reads what the deliveries of an event send, once for all of them.
func (s *sender) envelope(ctx context.Context, id string) (json.RawMessage, error) {
	e := &s.envelopes
	e.Lock()
	raw := e.known[id]
	e.Unlock()
	if raw != nil {
		return raw, nil
	}
	v, err, _ := e.reads.Do(id, func() (any, error) {
		found, err := s.deliveries.Envelopes(ctx, id)
		if err != nil {
			return nil, err
		}
		raw := found[id]
		if raw == nil {
			return nil, fmt.Errorf("envelope of %s: %w", id, store.ErrNotFound)
		}
		e.Lock()
		defer e.Unlock()
		if len(e.known) >= maxEnvelopes || e.known == nil {
			e.known = make(map[string]json.RawMessage)
		}
		e.known[id] = raw
		return raw, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(json.RawMessage), nil
}

// record writes what came of an attempt. It is not given up easily: what is not written has to be sent again.
func (s *sender) record(ctx context.Context, r result, next event.Delivery, rev store.Revision, a webhook.Answer) result {
	for begin := time.Now(); ; {
		written, err := s.deliveries.Write(ctx, next, rev)
		if err == nil {
			r.d, r.rev = next, written
			return r
		}
		if !errors.Is(err, bus.ErrConflict) {
			s.env.Log.Warn("writing what came of a delivery", "delivery_id", next.ID, "error", err)
			if time.Since(begin) > writeLimit {
				r.pause = sendAgain
				return r
			}
			time.Sleep(writeAgain)
		}
		now, current, err := s.read(ctx, next.ID)
		switch {
		case errors.Is(err, store.ErrNotFound):
			r.gone = true
			return r
		case err != nil:
		case now.Attempts == next.Attempts && now.LastAt.Equal(next.LastAt): // it was written after all
			r.d, r.rev = now, current
			return r
		case current != rev:
			next, rev = s.policy().merge(now, a, time.Now().UTC()), current
		}
	}
}
