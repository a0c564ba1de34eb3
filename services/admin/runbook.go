package admin

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// runBook knows the runs that somebody asked for, so that media can be shown with them. The run that followed the
// import of a medium is found by its id; the others would have to be looked for among all runs. While it follows the
// records it answers from memory; otherwise it asks the broker each time.
type runBook struct {
	reg *store.Register[store.Run]

	mu      sync.RWMutex
	live    bool
	seen    store.Revision                  // the newest that has come
	byIndex map[string]map[string]store.Run // by id; index "": media of several
	indexOf map[string]string               // of each run in it
}

func newRunBook(reg *store.Register[store.Run]) *runBook {
	b := &runBook{reg: reg}
	b.forget()
	return b
}

func (b *runBook) forget() {
	b.byIndex, b.indexOf = make(map[string]map[string]store.Run), make(map[string]string)
}

// follow keeps the book until ctx ends.
func (b *runBook) follow(ctx context.Context, log *slog.Logger) {
	for ctx.Err() == nil {
		err := b.reg.Watch(ctx, func() { b.setLive(true) }, b.apply)
		b.setLive(false)
		if err == nil {
			return
		}
		log.Warn("following runs, will try again", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (b *runBook) setLive(live bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.live = live; !live {
		b.forget()
		b.seen = 0
	}
}

// knows reports whether what of answers has come as far as a revision of the records.
func (b *runBook) knows(rev store.Revision) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.live && b.seen >= rev
}

// wanted reports whether somebody asked for a run, rather than that it followed an import.
func wanted(r store.Run) bool { return r.ID != event.RunOfJob(r.Job) }

func (b *runBook) apply(c store.Change[store.Run]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen = max(b.seen, c.Revision)
	if old, ok := b.indexOf[c.Key]; ok {
		delete(b.byIndex[old], c.Key)
		delete(b.indexOf, c.Key)
	}
	if c.Value == nil || !wanted(*c.Value) {
		return
	}
	r := *c.Value
	if b.byIndex[r.Index] == nil {
		b.byIndex[r.Index] = make(map[string]store.Run)
	}
	b.byIndex[r.Index][r.ID], b.indexOf[r.ID] = r, r.Index
}

// of returns the newest runs, at most limit of them, that somebody asked for and that may have media of these indexes.
func (b *runBook) of(ctx context.Context, limit int, indexes ...string) ([]store.Run, error) {
	indexes = append(slices.Clone(indexes), "")
	newest := newestOf[store.Run]{limit: limit, created: runCreated}
	b.mu.RLock()
	if b.live {
		defer b.mu.RUnlock()
		for i, index := range indexes {
			if slices.Contains(indexes[:i], index) {
				continue
			}
			for _, r := range b.byIndex[index] {
				newest.add(r)
			}
		}
		return newest.sorted(), nil
	}
	b.mu.RUnlock()
	for r, err := range b.reg.All(ctx) {
		if err != nil {
			return nil, err
		}
		if wanted(r) && slices.Contains(indexes, r.Index) {
			newest.add(r)
		}
	}
	return newest.sorted(), nil
}

func runCreated(r store.Run) (time.Time, string) { return r.CreatedAt, r.ID }
