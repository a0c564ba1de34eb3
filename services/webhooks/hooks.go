package webhooks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// hooks is all webhooks, fresh by a watch, and the books about how they are doing.
type hooks struct {
	env          service.Env
	metrics      metrics
	disableAfter int
	reg          *store.Register[store.Webhook]
	ready        chan struct{}
	wake         chan struct{} // signalled when dirty has something

	mu    sync.Mutex
	dirty map[string]struct{} // webhooks whose status changed, for the sender
	byID  map[string]*store.Webhook
	seen  store.Revision
	moved chan struct{}   // closed when seen moves on
	books map[string]book // not written yet
}

// book is what became of attempts at one webhook since it was written last.
type book struct {
	life                time.Time // when the webhook was created: what happened to an earlier one says nothing of it
	failures, exhausted int       // since the last success
	succeeded, gone     bool      // gone: the receiver said 410
	failureAt           time.Time
	successAt           time.Time
}

func newHooks(env service.Env, m metrics, disableAfter int) *hooks {
	return &hooks{
		env: env, metrics: m, disableAfter: disableAfter, ready: make(chan struct{}), wake: make(chan struct{}, 1),
		dirty: make(map[string]struct{}), byID: make(map[string]*store.Webhook), moved: make(chan struct{}), books: make(map[string]book),
	}
}

func (h *hooks) open(ctx context.Context) (err error) {
	h.reg, err = store.Open[store.Webhook](ctx, h.env.Bus, topology.Webhooks)
	return err
}

func (h *hooks) follow(ctx context.Context) error {
	return h.reg.Watch(ctx, func() { close(h.ready) }, func(c store.Change[store.Webhook]) {
		h.mu.Lock()
		defer h.mu.Unlock()
		old := h.byID[c.Key]
		if c.Value == nil {
			delete(h.byID, c.Key)
		} else {
			h.byID[c.Key] = c.Value
		}
		h.seen = max(h.seen, c.Revision)
		close(h.moved)
		h.moved = make(chan struct{})
		h.metrics.webhooks.Set(float64(len(h.byID)))
		if old != nil && c.Value != nil && old.Status == c.Value.Status { // books, mostly
			return
		}
		h.dirty[c.Key] = struct{}{}
		select {
		case h.wake <- struct{}{}:
		default:
		}
	})
}

// changed returns the webhooks whose status changed since it was asked last.
func (h *hooks) changed() map[string]struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := h.dirty
	h.dirty = make(map[string]struct{})
	return ids
}

// wait returns true once all webhooks are known, false when ctx ended first.
func (h *hooks) wait(ctx context.Context) bool {
	select {
	case <-h.ready:
		return true
	case <-ctx.Done():
		return false
	}
}

// current returns all webhooks, with every change that was durable when it was called: an event that happened after a
// webhook was created must not miss it.
func (h *hooks) current(ctx context.Context) ([]*store.Webhook, error) {
	if err := h.catchUp(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*store.Webhook, 0, len(h.byID))
	for _, w := range h.byID {
		list = append(list, w)
	}
	return list, nil
}

// catchUp returns when the watch has brought every change that was durable when it was called.
func (h *hooks) catchUp(ctx context.Context) error {
	last, err := h.reg.Last(ctx)
	if err != nil {
		return err
	}
	for {
		h.mu.Lock()
		seen, moved := h.seen, h.moved
		h.mu.Unlock()
		if seen >= last {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// get returns a webhook, nil if there is none. What the watch has not brought yet is read.
func (h *hooks) get(ctx context.Context, id string) (*store.Webhook, error) {
	if w := h.cached(id); w != nil {
		return w, nil
	}
	w, _, err := h.reg.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return &w, err
}

func (h *hooks) cached(id string) *store.Webhook {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byID[id]
}

// note takes down what came of an attempt at a webhook.
func (h *hooks) note(w *store.Webhook, d outcome, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.books[w.ID]
	switch {
	case w.CreatedAt.Before(b.life):
		return
	case w.CreatedAt.After(b.life):
		b = book{life: w.CreatedAt}
	}
	switch d {
	case delivered:
		b = book{life: b.life, succeeded: true, successAt: at, failureAt: b.failureAt}
	case gone, exhausted:
		b.exhausted++
		fallthrough
	case failed:
		b.failures++
		b.failureAt = at
	}
	b.gone = b.gone || d == gone
	h.books[w.ID] = b
}

const (
	// writeEvery is how often what was noted is written into the records of webhooks.
	writeEvery = time.Second
	// writers is how many records are written at a time; their writes share fsyncs.
	writers = 64
)

// keepBooks writes what was noted, until the last attempt is over and all is written. A crash costs a second of
// counting, nothing else.
func (h *hooks) keepBooks(ctx context.Context, over <-chan struct{}) {
	ctx = context.WithoutCancel(ctx)
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			h.writeBooks(ctx)
		case <-over:
			ctx, cancel := context.WithTimeout(ctx, 2*writeEvery)
			h.writeBooks(ctx)
			cancel()
			return
		}
	}
}

func (h *hooks) writeBooks(ctx context.Context) {
	h.mu.Lock()
	books := h.books
	h.books = make(map[string]book, len(books))
	h.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(writers)
	for id, b := range books {
		g.Go(func() error {
			h.write(ctx, id, b)
			return nil
		})
	}
	_ = g.Wait()
}

// settle writes at once what was noted of one webhook, and returns when it counts, or when ctx ends.
func (h *hooks) settle(ctx context.Context, id string) {
	h.mu.Lock()
	b := h.books[id]
	delete(h.books, id)
	h.mu.Unlock()
	h.write(context.WithoutCancel(ctx), id, b)
	_ = h.catchUp(ctx) // if that fails, another attempt or two hear the same
}

// write brings the record of a webhook up to its book, and disables it when that is due.
func (h *hooks) write(ctx context.Context, id string, b book) {
	disabled := ""
	_, _, err := h.reg.Modify(ctx, id, func(w *store.Webhook) error {
		disabled = ""
		if w.ID == "" || !w.CreatedAt.Equal(b.life) {
			return store.ErrUnchanged
		}
		if b.succeeded {
			w.Failures, w.Exhausted = 0, 0
		}
		w.Failures += b.failures
		w.Exhausted += b.exhausted
		w.LastFailureAt, w.LastSuccessAt = later(w.LastFailureAt, b.failureAt), later(w.LastSuccessAt, b.successAt)
		if w.Status == store.WebhookActive {
			switch {
			case b.gone:
				disabled = "the receiver answered 410"
			case w.Exhausted >= h.disableAfter:
				disabled = fmt.Sprintf("%d deliveries in a row were given up", w.Exhausted)
			}
			if disabled != "" {
				now := time.Now().UTC()
				w.SetStatus(store.WebhookDisabled, now)
				w.UpdatedAt = now
			}
		}
		return nil
	})
	switch {
	case err != nil:
		h.env.Log.Warn("writing how a webhook is doing; what it failed is not counted", "webhook_id", id, "error", err)
	case disabled != "":
		h.metrics.disabled.Inc()
		h.env.Log.Warn("webhook disabled", "webhook_id", id, "reason", disabled)
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
