package debouncer

import (
	"context"
	"errors"
	"sync"

	"millrace/shared/store"
)

// automations is the configuration of all automations, fresh by a watch.
type automations struct {
	reg   *store.Register[store.Automation]
	ready chan struct{}

	mu   sync.RWMutex
	byID map[string]*store.Automation
}

func (as *automations) follow(ctx context.Context) error {
	return as.reg.Watch(ctx, func() { close(as.ready) }, func(c store.Change[store.Automation]) {
		as.mu.Lock()
		defer as.mu.Unlock()
		if c.Value == nil {
			delete(as.byID, c.Key)
			return
		}
		as.byID[c.Key] = c.Value
	})
}

// wait returns true once all automations are known, false when ctx ended first.
func (as *automations) wait(ctx context.Context) bool { return done(ctx, as.ready) }

// done reports whether something became ready before ctx ended.
func done(ctx context.Context, ready <-chan struct{}) bool {
	select {
	case <-ready:
		return true
	case <-ctx.Done():
		return false
	}
}

// get returns an automation, nil if there is none. What the watch has not brought yet is read.
func (as *automations) get(ctx context.Context, id string) (*store.Automation, error) {
	if a := as.cached(id); a != nil {
		return a, nil
	}
	v, _, err := as.reg.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return &v, err
}

// cached is get without reading.
func (as *automations) cached(id string) *store.Automation {
	as.mu.RLock()
	defer as.mu.RUnlock()
	return as.byID[id]
}

func (as *automations) all() []*store.Automation {
	as.mu.RLock()
	defer as.mu.RUnlock()
	list := make([]*store.Automation, 0, len(as.byID))
	for _, a := range as.byID {
		list = append(list, a)
	}
	return list
}
