package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/topology"
)

// Ledger is what became of every object version in every index: one message per version in the media stream. An entry
// in state imported is a medium, and creating it is the commit point of an import.
type Ledger struct {
	bus  *bus.Bus
	read pages
}

// NewLedger returns the ledger behind b.
func NewLedger(b *bus.Bus) *Ledger { return &Ledger{bus: b} }

// Entry is a medium and the revision of its entry.
type Entry struct {
	event.Medium
	Revision Revision
}

func (l *Ledger) subject(index string, id event.MediumID) string {
	return l.bus.Subject("media", index, id.Object, id.Version)
}

// Get returns the entries of the ids in one index that have one, in no particular order.
func (l *Ledger) Get(ctx context.Context, index string, ids ...event.MediumID) ([]Entry, error) {
	subjects := make([]string, len(ids))
	for i, id := range ids {
		subjects[i] = l.subject(index, id)
	}
	return l.last(ctx, subjects)
}

// Versions returns the entries of all versions of the objects in one index, each given by the Object of its id.
func (l *Ledger) Versions(ctx context.Context, index string, objects ...string) ([]Entry, error) {
	subjects := make([]string, len(objects))
	for i, o := range objects {
		subjects[i] = l.bus.Subject("media", index, o, "*")
	}
	return l.last(ctx, subjects)
}

// Find returns the entries of media in whatever index, by id.
func (l *Ledger) Find(ctx context.Context, ids ...event.MediumID) ([]Entry, error) {
	subjects := make([]string, len(ids))
	for i, id := range ids {
		subjects[i] = l.bus.Subject("media", "*", id.Object, id.Version)
	}
	return l.last(ctx, subjects)
}

func (l *Ledger) last(ctx context.Context, subjects []string) ([]Entry, error) {
	if len(subjects) == 0 {
		return nil, nil
	}
	var found []Entry
	for m, err := range l.bus.Last(ctx, topology.Media, subjects...) {
		if err != nil {
			return nil, err
		}
		e, err := entry(m)
		if err != nil {
			return nil, err
		}
		found = append(found, e)
	}
	return found, nil
}

func entry(m bus.Stored) (Entry, error) {
	e := Entry{Revision: m.Sequence}
	if err := json.Unmarshal(m.Data, &e.Medium); err != nil {
		return e, fmt.Errorf("decode ledger entry %s: %w", m.Subject, err)
	}
	return e, nil
}

// Message is the write that turns the entry at revision rev (0: none) into m.
func (l *Ledger) Message(m event.Medium, rev Revision) (bus.Message, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return bus.Message{}, fmt.Errorf("encode ledger entry %s: %w", m.ID, err)
	}
	return bus.Message{Subject: l.subject(m.Index, m.ID), Data: data, Expect: &rev}, nil
}

// Write turns entries at the given revisions into the given media, as atomic batches. Each has its own error; see
// bus.ErrConflict.
func (l *Ledger) Write(ctx context.Context, entries []Entry) []error {
	msgs := make([]bus.Message, len(entries))
	for i, e := range entries {
		m, err := l.Message(e.Medium, e.Revision)
		if err != nil {
			return slices.Repeat([]error{err}, len(entries))
		}
		msgs[i] = m
	}
	_, errs := l.bus.PublishAll(ctx, msgs)
	return errs
}

// narrow is up to how many sequences a page is read without a filter. With one, the broker counts among all subjects
// how many messages follow, which costs more than to read these few.
const narrow = 1000

// Page returns up to limit imported media of an index, newest first, that were registered before cursor ("": from the
// newest), and the cursor of the next page, "" when there is none.
//
// The stream is only readable forwards, so a page is read from windows of sequences that reach further back the fewer
// media they hold.
//
// Clients ask for the same pages again and again, so those that were read since the ledger changed last are remembered.
// They are shared: the caller leaves them as they are.
func (l *Ledger) Page(ctx context.Context, index string, limit int, cursor string) ([]event.Medium, string, error) {
	state, err := l.bus.State(ctx, topology.Media)
	if err != nil {
		return nil, "", err
	}
	key := pageKey{index, max(limit, 1), cursor}
	at := ledgerState{state.LastSeq, state.Msgs}
	p, ok := l.read.get(at, key)
	if !ok {
		if p.media, p.next, err = l.page(ctx, state, key); err != nil {
			return nil, "", err
		}
		l.read.put(at, key, p)
	}
	return p.media, p.next, nil
}

func (l *Ledger) page(ctx context.Context, state jetstream.StreamState, key pageKey) (media []event.Medium, next string, err error) {
	index, limit, cursor := key.index, key.limit, key.cursor
	before := state.LastSeq + 1
	if cursor != "" {
		if before, err = strconv.ParseUint(cursor, 36, 64); err != nil {
			return nil, "", fmt.Errorf("cursor %q: %w", cursor, ErrNotFound)
		}
	}
	filter := l.bus.Subject("media", index, "*", "*")
	mine := l.bus.Subject("media", index) + "."
	var newest []Entry // in order of age, the newest first
	for width := uint64(2 * limit); len(newest) <= limit && before > max(state.FirstSeq, 1); width *= 4 {
		from := max(state.FirstSeq, 1)
		if before > from+width {
			from = before - width
		}
		read := filter
		if before-from <= narrow {
			read = ">"
		}
		var window []Entry
		for m, err := range l.bus.Scan(ctx, topology.Media, read, from) {
			if err != nil {
				return nil, "", err
			}
			if m.Sequence >= before {
				break
			}
			if !strings.HasPrefix(m.Subject, mine) {
				continue
			}
			e, err := entry(m)
			if err != nil {
				return nil, "", err
			}
			if e.State == event.MediumImported {
				window = append(window, e)
			}
		}
		slices.Reverse(window)
		newest = append(newest, window...)
		before = from
	}
	more := len(newest) > limit
	newest = newest[:min(limit, len(newest))]
	page := make([]event.Medium, len(newest))
	for i, e := range newest {
		page[i] = e.Medium
	}
	if !more {
		return page, "", nil
	}
	return page, strconv.FormatUint(newest[limit-1].Revision, 36), nil
}

// pages are those that were read while the ledger was in one state.
type pages struct {
	mu    sync.Mutex
	state ledgerState
	byKey map[pageKey]ledgerPage
}

type pageKey struct {
	index  string
	limit  int
	cursor string
}

type ledgerPage struct {
	media []event.Medium
	next  string
}

// ledgerState changes with each write, which moves last, and each removal, which lowers count.
type ledgerState struct{ last, count uint64 }

// maxPages bounds the memory of pages: each has about a kilobyte per medium.
const maxPages = 100

func (p *pages) get(at ledgerState, key pageKey) (ledgerPage, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != at {
		return ledgerPage{}, false
	}
	found, ok := p.byKey[key]
	return found, ok
}

// put remembers a page that was read after the ledger was in that state, so it may know of what came later, too; who asks
// then is told so by the state.
func (p *pages) put(at ledgerState, key pageKey, page ledgerPage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byKey == nil || p.state != at || len(p.byKey) == maxPages {
		p.state, p.byKey = at, make(map[pageKey]ledgerPage)
	}
	p.byKey[key] = page
}

// few is up to how many entries All reads with a filter, which finds a small index fast in a large ledger; from there
// on it reads all there is, which is faster for a large one (see narrow).
const few = 1000

// All yields the entries of an index that are not newer than sequence upTo (0: all), in whatever state, in stream
// order. An entry that changes meanwhile may come twice, or not at all if it is newer then.
func (l *Ledger) All(ctx context.Context, index string, upTo uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for m, err := range l.all(ctx, index, upTo) {
			if err != nil {
				yield(Entry{}, err)
				return
			}
			e, err := entry(m)
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Settled yields the ids of the versions in an index that need no import now nor later: all but failures that may pass.
// It reads no more of an entry than it must, which makes it several times as fast as All.
func (l *Ledger) Settled(ctx context.Context, index string) iter.Seq2[event.MediumID, error] {
	return func(yield func(event.MediumID, error) bool) {
		for m, err := range l.all(ctx, index, 0) {
			if err != nil {
				yield(event.MediumID{}, err)
				return
			}
			if bytes.Contains(m.Data, retryAt) { // in a string it would stand with a backslash
				continue
			}
			head, version := cutLast(m.Subject)
			_, object := cutLast(head)
			if !yield(event.MediumID{Object: object, Version: version}, nil) {
				return
			}
		}
	}
}

// retryAt is the member of entries that are to be tried again.
var retryAt = []byte(`"retry_at":`)

func cutLast(subject string) (before, last string) {
	i := strings.LastIndexByte(subject, '.')
	return subject[:max(i, 0)], subject[i+1:]
}

// Size is how many entries the ledger has, of all indexes.
func (l *Ledger) Size(ctx context.Context) (int, error) {
	state, err := l.bus.State(ctx, topology.Media)
	return int(state.Msgs), err
}

func (l *Ledger) all(ctx context.Context, index string, upTo uint64) iter.Seq2[bus.Stored, error] {
	return func(yield func(bus.Stored, error) bool) {
		mine := l.bus.Subject("media", index) + "."
		next, n := uint64(0), 0
	pass:
		for filter := mine + ">"; ; filter = ">" {
			for m, err := range l.bus.Scan(ctx, topology.Media, filter, next) {
				if err != nil {
					yield(bus.Stored{}, err)
					return
				}
				if upTo > 0 && m.Sequence > upTo {
					return
				}
				if next = m.Sequence + 1; !strings.HasPrefix(m.Subject, mine) {
					continue
				}
				if !yield(m, nil) {
					return
				}
				if n++; n == few {
					continue pass
				}
			}
			return
		}
	}
}

// IndexOf tells which index a ledger subject belongs to.
func (l *Ledger) IndexOf(subject string) string {
	return strings.Split(subject, ".")[2]
}
