package webhooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/webhook"
)

// sender sends what is due. It holds no truth: what it knows of open deliveries is read from their stream, all of it
// when it begins (see session), and the record of a delivery is read again before each attempt but the first.
//
// One at a time sends, under a lease; two for a moment, as when a process is stopped and woken up, repeat attempts at
// most.
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
	failed := func(err error) { s.env.Log.Warn("sending to webhooks, will begin anew", "error", err) }
	leases.Keep(ctx, senderLease, failed, func(held context.Context) error { return s.send(ctx, held) })
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
// it was at rev, which spares a read: whoever else may have tried it would be another sender. nil: it is read first. An
// attempt that has begun is finished although running ends; from then on nothing waits for long.
func (s *sender) attempt(running context.Context, it *item, fresh *event.Delivery, rev store.Revision) result {
	ctx := context.WithoutCancel(running)
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
		if err := s.deliveries.Forget(ctx, d.Webhook, d.ID, rev); err != nil {
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
	if err == nil {
		err = failpoint.Here("webhooks.posted")
	}
	if err != nil {
		return unsure(err)
	}
	next, what := s.policy().after(d, a, time.Now().UTC())
	r.what = what
	s.metrics.attempts.WithLabelValues(string(what)).Inc()
	s.hooks.note(w, what, a.At)
	if what == gone {
		s.hooks.settle(running, w.ID)
	}
	return s.record(running, r, next, rev, a)
}

// webhook returns the one that a delivery is for, nil when that was deleted, also when another was created under its
// id.
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

// record writes what came of an attempt. It is not given up easily, as what is not written has to be sent again, but
// once running has ended it is tried once more at most.
func (s *sender) record(running context.Context, r result, next event.Delivery, rev store.Revision, a webhook.Answer) result {
	ctx := context.WithoutCancel(running)
	for begin := time.Now(); ; {
		written, err := s.deliveries.Write(ctx, next, rev)
		if err == nil {
			r.d, r.rev = next, written
			return r
		}
		if !errors.Is(err, bus.ErrConflict) {
			s.env.Log.Warn("writing what came of a delivery", "delivery_id", next.ID, "error", err)
			if running.Err() != nil || time.Since(begin) > writeLimit {
				r.pause = sendAgain
				return r
			}
			select {
			case <-time.After(writeAgain):
			case <-running.Done():
			}
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
