package webhooks

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

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
	gone  bool    // there is none any more
	what  outcome // of the request; "" when none was made
}

// followBatch is how many changes of deliveries are prefetched, and taken in before anything is sent.
const followBatch = 1000

// expireEvery is how often deliveries are looked for that have waited too long for their webhook.
const expireEvery = time.Minute

// send works until held ended and what is in flight is over, or until the stream cannot be followed. held is the time
// of the lease, running that of the process: who loses just the lease still does all to write down what its attempts
// bring.
func (s *sender) send(running, held context.Context) error {
	ss := &session{
		sender: s, items: make(map[string]*item), queues: make(map[string]*queue),
		results: make(chan result, s.cfg.Concurrency),
	}
	defer s.metrics.open.Set(0)
	changes, following, err := ss.follow(held)
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
		case <-held.Done():
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
			ss.expire(running, time.Now())
		}
		ss.start(running, time.Now())
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
func (s *session) start(running context.Context, now time.Time) {
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
			s.begin(running, it)
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

func (s *session) begin(running context.Context, it *item) {
	it.place = inFlight
	it.queue.inFlight++
	s.inFlight++
	d, rev := it.fresh, it.rev
	it.fresh = nil
	go func() { s.results <- s.attempt(running, it, d, rev) }()
}

// done takes in what came of an attempt.
func (s *session) done(r result) {
	s.inFlight--
	q := r.queue
	q.inFlight--
	s.mark(q)
	if r.what != "" {
		q.failing = r.what != delivered
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
func (s *session) expire(running context.Context, now time.Time) {
	for _, q := range s.queues {
		if !s.idle(q.webhook) {
			continue
		}
		for _, it := range q.due {
			if it != nil && it.place == due && now.Sub(it.created) > s.cfg.MaxWait && s.inFlight < s.cfg.Concurrency {
				s.begin(running, it)
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
