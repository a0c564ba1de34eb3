package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/secret"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/webhook"
)

// Resealed is what a pass over everything that is sealed found and did.
type Resealed struct {
	Sealed  int      `json:"sealed"`         // with the key that seals now
	Renewed int      `json:"renewed"`        // of these, by this pass
	Lost    []string `json:"lost,omitempty"` // what no key opens: it was so before
	More    bool     `json:"more,omitempty"` // this pass did not come to the end
}

const (
	// resealBatch is how much one pass renews, so that a request for one comes back in time.
	resealBatch = 2000
	resealers   = 16
)

// Reseal seals again what is not sealed with the key that seals now: credentials of connectors, secrets of webhooks and
// answers that are kept. It may run beside everything else, several times, and end anywhere: each record is replaced by
// compare-and-set.
func Reseal(ctx context.Context, b *bus.Bus, keeper *secret.Keeper) (Resealed, error) {
	r := resealer{keeper: keeper}
	connectors, err := store.Open[store.Connector](ctx, b, topology.Connectors)
	if err != nil {
		return r.done, err
	}
	hooks, err := store.Open[store.Webhook](ctx, b, topology.Webhooks)
	if err != nil {
		return r.done, err
	}
	kept, err := store.Open[store.Answer](ctx, b, topology.Answers)
	if err != nil {
		return r.done, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(resealers)
	for e, err := range connectors.Entries(ctx) {
		if err != nil {
			return r.done, errors.Join(err, g.Wait())
		}
		if r.due(e.Value.Credentials) {
			g.Go(func() error { return r.connector(ctx, connectors, e.Key) })
		}
	}
	for e, err := range hooks.Entries(ctx) {
		if err != nil {
			return r.done, errors.Join(err, g.Wait())
		}
		if r.due(e.Value.Secret, e.Value.OldSecret) {
			g.Go(func() error { return r.hook(ctx, hooks, e.Key) })
		}
	}
	answers := &answers{reg: kept, sealer: keeper}
	for e, err := range kept.Entries(ctx) {
		if err != nil {
			return r.done, errors.Join(err, g.Wait())
		}
		if e.Value.Status == 0 { // a claim, or a part of a long answer
			continue
		}
		sealed, err := answers.sealed(ctx, *e.Value)
		if errors.Is(err, store.ErrNotFound) { // its day ended just now
			continue
		}
		if err != nil {
			return r.done, errors.Join(err, g.Wait())
		}
		if r.due(sealed) {
			g.Go(func() error { return r.answer(ctx, answers, e.Key, *e.Value, e.Revision, sealed) })
		}
	}
	err = g.Wait()
	return r.done, err
}

type resealer struct {
	keeper *secret.Keeper

	mu   sync.Mutex
	done Resealed
	left int // begun
}

// due counts a record and reports whether it is to be sealed again now.
func (r *resealer) due(sealed ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	any := false
	for _, s := range sealed {
		if s == "" {
			continue
		}
		any = true
		if !r.keeper.Current(s) {
			if r.left == resealBatch {
				r.done.More = true
				return false
			}
			r.left++
			return true
		}
	}
	if any {
		r.done.Sealed++
	}
	return false
}

func (r *resealer) renewed(err error, kind, key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.done.Sealed++
		r.done.Renewed++
	case errors.Is(err, secret.ErrOpen):
		r.done.Lost = append(r.done.Lost, kind+" "+key)
	default:
		return fmt.Errorf("seal %s %s again: %w", kind, key, err)
	}
	return nil
}

// again seals one text with the key that seals now.
func (r *resealer) again(sealed, aad string) (string, error) {
	if sealed == "" || r.keeper.Current(sealed) {
		return sealed, nil
	}
	plain, err := r.keeper.Open(sealed, aad)
	if err != nil {
		return "", err
	}
	return r.keeper.Seal(plain, aad)
}

func (r *resealer) connector(ctx context.Context, reg *store.Register[store.Connector], id string) error {
	_, _, err := reg.Modify(ctx, id, func(c *store.Connector) (err error) {
		if c.ID == "" {
			return store.ErrUnchanged // deleted meanwhile
		}
		c.Credentials, err = r.again(c.Credentials, CredentialsAAD(id))
		return err
	})
	return r.renewed(err, "connector", id)
}

func (r *resealer) hook(ctx context.Context, reg *store.Register[store.Webhook], id string) error {
	_, _, err := reg.Modify(ctx, id, func(w *store.Webhook) error {
		if w.ID == "" {
			return store.ErrUnchanged
		}
		var err, olderr error
		w.Secret, err = r.again(w.Secret, webhook.SecretAAD(id))
		w.OldSecret, olderr = r.again(w.OldSecret, webhook.SecretAAD(id))
		return errors.Join(err, olderr)
	})
	return r.renewed(err, "webhook", id)
}

// answer keeps an answer again, as another attempt at the same operation: a long one has parts, which are replaced with
// its record in one step that way.
func (r *resealer) answer(ctx context.Context, s *answers, id string, kept store.Answer, rev store.Revision, sealed string) error {
	body, err := r.keeper.Open(sealed, answerAAD(id, kept.Attempt))
	if err == nil {
		again := store.Answer{Request: kept.Request, Attempt: event.NewID("try")}
		c := &claim{answers: s, op: operation{id: id, request: kept.Request}, record: again, rev: rev}
		if err = c.keep(ctx, kept.Status, body); errors.As(err, new(*problemError)) {
			err = nil // somebody replaced it, or its day ended
		}
	}
	return r.renewed(err, "answer", id)
}

// resealRoute is for `millrace secrets` alone.
func (a *Admin) resealRoute() {
	keeper, ok := a.deps.Sealer.(*secret.Keeper)
	if a.operator == "" || !ok {
		return
	}
	a.handle("POST /operator/secrets/reseal", func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return a.asOperator(r, func(ctx context.Context) (any, error) { return Reseal(ctx, a.bus, keeper) })
	})
}
