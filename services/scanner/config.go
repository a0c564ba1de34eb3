package scanner

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"millrace/shared/match"
	"millrace/shared/store"
)

// config is all connectors and automations, fresh by watches.
type config struct {
	connectorRecords  *store.Register[store.Connector]
	automationRecords *store.Register[store.Automation]
	jobRecords        *store.Register[store.Job]
	log               *slog.Logger

	ready chan struct{} // closed when all that was configured at the start is known

	mu          sync.RWMutex
	connectors  map[string]store.Connector
	automations map[string]*automation
	byConnector map[string]*match.Index[*automation] // of the enabled ones
	changed     []chan struct{}
	reselected  map[string]*automation         // want other objects than before
	unfinished  map[string]map[string]struct{} // jobs in hand, by automation
}

// automation is a configuration, and what it selects.
type automation struct {
	store.Automation
	selects *match.Matcher
	broken  error // the pattern cannot be read: nothing is selected
}

func compile(a store.Automation) *automation {
	m, err := match.Compile(a.Prefix, a.Pattern, a.Recursive)
	return &automation{Automation: a, selects: m, broken: err}
}

// sameSelection reports whether two configurations of one automation want the same objects.
func sameSelection(a, b *automation) bool {
	return a.Connector == b.Connector && a.Prefix == b.Prefix && a.Pattern == b.Pattern && a.Recursive == b.Recursive
}

func newConfig(
	connectors *store.Register[store.Connector], automations *store.Register[store.Automation], jobs *store.Register[store.Job],
	log *slog.Logger,
) *config {
	return &config{
		jobRecords:        jobs,
		connectorRecords:  connectors,
		automationRecords: automations,
		log:               log,
		ready:             make(chan struct{}),
		connectors:        make(map[string]store.Connector),
		automations:       make(map[string]*automation),
		byConnector:       make(map[string]*match.Index[*automation]),
		unfinished:        make(map[string]map[string]struct{}),
		reselected:        make(map[string]*automation),
	}
}

// follow keeps the configuration fresh until ctx ends.
func (c *config) follow(ctx context.Context) error {
	var all sync.WaitGroup
	all.Add(3)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.connectorRecords.Watch(ctx, all.Done, c.seeConnector) })
	g.Go(func() error { return c.automationRecords.Watch(ctx, all.Done, c.seeAutomation) })
	g.Go(func() error { return c.jobRecords.Watch(ctx, all.Done, c.seeJob) })
	g.Go(func() error {
		known := make(chan struct{})
		go func() { all.Wait(); close(known) }()
		select {
		case <-known:
			close(c.ready)
		case <-ctx.Done():
		}
		return nil
	})
	return g.Wait()
}

// wait returns true once all that was configured at the start is known, false when ctx ended first.
func (c *config) wait(ctx context.Context) bool {
	select {
	case <-c.ready:
		return true
	case <-ctx.Done():
		return false
	}
}

// onChange returns a channel that has something in it whenever the configuration changed since it was last read, until
// quiet is called.
func (c *config) onChange() (changed <-chan struct{}, quiet func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed = append(c.changed, ch)
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed = slices.DeleteFunc(c.changed, func(have chan struct{}) bool { return have == ch })
	}
}

// notify wakes those who asked for changes. The caller holds the lock.
func (c *config) notify() {
	for _, ch := range c.changed {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (c *config) seeConnector(ch store.Change[store.Connector]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch.Value == nil {
		delete(c.connectors, ch.Key)
	} else {
		c.connectors[ch.Key] = *ch.Value
	}
	c.notify()
}

func (c *config) seeJob(ch store.Change[store.Job]) {
	j := ch.Value
	if j == nil || j.Automation == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if j.Status != store.JobScanning && j.Status != store.JobImporting {
		delete(c.unfinished[j.Automation], j.ID)
		if len(c.unfinished[j.Automation]) == 0 {
			delete(c.unfinished, j.Automation)
		}
		return
	}
	if c.unfinished[j.Automation] == nil {
		c.unfinished[j.Automation] = make(map[string]struct{})
	}
	c.unfinished[j.Automation][j.ID] = struct{}{}
}

// jobsOf returns the jobs of an automation that have its objects in hand.
func (c *config) jobsOf(automation string) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Collect(maps.Keys(c.unfinished[automation]))
}

func (c *config) seeAutomation(ch store.Change[store.Automation]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.notify()
	old := c.automations[ch.Key]
	if old != nil && old.Enabled && old.broken == nil {
		c.byConnector[old.Connector].Remove(old.ID)
	}
	delete(c.automations, ch.Key)
	if ch.Value == nil {
		return
	}
	now := compile(*ch.Value)
	c.automations[ch.Key] = now
	switch {
	case now.broken != nil:
		c.log.Error("automation selects nothing", "automation", now.ID, "error", now.broken)
		return
	case !now.Enabled:
		return
	}
	index := c.byConnector[now.Connector]
	if index == nil {
		index = new(match.Index[*automation])
		c.byConnector[now.Connector] = index
	}
	index.Add(now.ID, now.selects, now)
	if old != nil && old.Enabled && !sameSelection(old, now) {
		c.reselected[now.ID] = now
	}
}

// takeReselected returns, once, the enabled automations that were changed to want other objects.
func (c *config) takeReselected() map[string]*automation {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.reselected
	c.reselected = make(map[string]*automation)
	return taken
}

// connector returns the record of a connector. One that the watch has not brought yet is read. It fails with
// store.ErrNotFound.
func (c *config) connector(ctx context.Context, id string) (store.Connector, error) {
	c.mu.RLock()
	have, ok := c.connectors[id]
	c.mu.RUnlock()
	if ok {
		return have, nil
	}
	have, _, err := c.connectorRecords.Get(ctx, id)
	return have, err
}

// wanting returns the enabled automations of a connector that select path.
func (c *config) wanting(connector, path string) []*automation {
	c.mu.RLock()
	defer c.mu.RUnlock()
	index := c.byConnector[connector]
	if index == nil {
		return nil
	}
	return index.Lookup(path)
}

// enabled returns the automations to scan.
func (c *config) enabled() []*automation {
	c.mu.RLock()
	defer c.mu.RUnlock()
	list := make([]*automation, 0, len(c.automations))
	for _, a := range c.automations {
		if a.Enabled {
			list = append(list, a)
		}
	}
	return list
}

// ofConnector returns the enabled automations of a connector.
func (c *config) ofConnector(id string) []*automation {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var list []*automation
	for _, a := range c.automations {
		if a.Enabled && a.Connector == id {
			list = append(list, a)
		}
	}
	return list
}

// isEnabled reports whether an automation is there and enabled.
func (c *config) isEnabled(id string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	a := c.automations[id]
	return a != nil && a.Enabled
}

// freshAutomation reads an automation from its register, nil when there is none.
func (c *config) freshAutomation(ctx context.Context, id string) (*automation, error) {
	a, _, err := c.automationRecords.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return compile(a), nil
}

// followable returns the connectors whose storage says what changes and whose automations want to know.
func (c *config) followable() map[string]store.Connector {
	c.mu.RLock()
	defer c.mu.RUnlock()
	list := make(map[string]store.Connector)
	for _, a := range c.automations {
		if conn, ok := c.connectors[a.Connector]; ok && a.Enabled && conn.Notified() && conn.Status != "disabled" {
			list[conn.ID] = conn
		}
	}
	return list
}
