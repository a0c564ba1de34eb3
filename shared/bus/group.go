package bus

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
)

// Publish writes one message and returns its sequence when it is durable. It fails with ErrConflict, ErrFull or
// ErrUnknown.
//
// Messages of one stream that are published while an earlier write is under way leave together, see PublishAll.
// Nobody waits for company: an idle stream gets a message at once, a busy one pays its fsyncs per batch.
//
// An alarm (a message with a schedule) always leaves alone: what it turns into would inherit the headers of its batch, and
// a server that restarts would take that for a part of one.
func (b *Bus) Publish(ctx context.Context, m Message) (uint64, error) {
	if m.Header.Get(jetstream.ScheduleHeader) != "" {
		return b.publish(ctx, m)
	}
	if m.Expect != nil { // the variable is the caller's, who may leave before the write has begun
		expect := *m.Expect
		m.Expect = &expect
	}
	p := &pending{msg: m, done: make(chan struct{})}
	b.groupOf(m.Subject).add(p)
	select {
	case <-p.done:
		return p.seq, p.err
	case <-ctx.Done():
		return 0, fmt.Errorf("publish %s: %w: %w", m.Subject, ErrUnknown, ctx.Err())
	}
}

type pending struct {
	msg  Message
	done chan struct{}
	seq  uint64
	err  error
}

// group is the messages waiting to be written to one stream.
type group struct {
	bus     *Bus
	mu      sync.Mutex
	waiting []*pending
	writing bool
}

func (b *Bus) groupOf(subject string) *group {
	key := b.streamKey(subject)
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.groups[key]
	if g == nil {
		g = &group{bus: b}
		b.groups[key] = g
	}
	return g
}

// streamKey tells the streams of two subjects apart: an atomic batch must not span streams.
func (b *Bus) streamKey(subject string) string {
	rest, own := strings.CutPrefix(subject, b.Prefix+".")
	if !own {
		bucket, _, _ := strings.Cut(strings.TrimPrefix(subject, "$KV."), ".")
		return "$KV." + bucket
	}
	kind, rest, _ := strings.Cut(rest, ".")
	if kind == "run" { // run.requested and run.report
		next, _, _ := strings.Cut(rest, ".")
		return kind + "." + next
	}
	return kind
}

func (g *group) add(p *pending) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, p)
	if !g.writing {
		g.writing = true
		go g.write()
	}
}

// write empties the group. Each write has a deadline of its own, so callers that have left take nobody down.
func (g *group) write() {
	for {
		batch := g.next()
		if batch == nil {
			return
		}
		msgs := make([]Message, len(batch))
		for i, p := range batch {
			msgs[i] = p.msg
		}
		seqs, errs := g.bus.PublishAll(context.Background(), msgs)
		for i, p := range batch {
			p.seq, p.err = seqs[i], errs[i]
			close(p.done)
		}
	}
}

// next takes the longest run of messages that can be one batch: in order, and no compare-and-set of a subject that is in
// it already.
func (g *group) next() []*pending {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		g.writing, g.waiting = false, nil
		return nil
	}
	seen := make(map[string]struct{}, min(len(g.waiting), maxBatch))
	n := 0
	for n < len(g.waiting) && n < maxBatch {
		m := g.waiting[n].msg
		if _, twice := seen[m.Subject]; twice && m.Expect != nil {
			break
		}
		seen[m.Subject] = struct{}{}
		n++
	}
	batch := g.waiting[:n:n]
	g.waiting = g.waiting[n:]
	return batch
}
