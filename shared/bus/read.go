package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// readTimeout bounds the answer to one direct get.
const readTimeout = 10 * time.Second

// Stored is a message as a stream holds it.
type Stored struct {
	Subject  string
	Sequence uint64
	Time     time.Time // when the broker stored it
	Data     []byte
}

// Bounds of one answer, so that the memory of a reader stays constant whatever the size of the messages. Each page has twice
// as many as the one before: for each the broker counts what is left, subject by subject, which among a million takes
// longer than to read thousands; but who stops early, as most do, has not had much more sent than was wanted.
const (
	pageSize  = 500
	longPage  = 10_000
	pageBytes = 8 << 20
)

// Scan yields the messages of a stream whose subject matches filter, from sequence from on (0: the first), in stream
// order. It pages, so memory stays constant, and the caller may take its time between two messages; what is written
// meanwhile may or may not be seen. What was written before is seen, on replicated streams too.
func (b *Bus) Scan(ctx context.Context, stream, filter string, from uint64) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) { b.scan(ctx, b.Stream(stream), filter, max(from, 1), yield) }
}

// scan reports whether the caller wants more than there is.
func (b *Bus) scan(ctx context.Context, stream, filter string, from uint64, yield func(Stored, error) bool) bool {
	q := query{Seq: from, Next: filter, Batch: pageSize}
	next := from // the first sequence that was not read
	see := func(m Stored, err error) bool {
		if err == nil {
			next = m.Sequence + 1
		}
		return yield(m, err)
	}
	if !b.clustered() {
		return b.pages(ctx, stream, q, see)
	}
	for late := (lateness{}); ; {
		if !b.pages(ctx, stream, q, see) {
			return false
		}
		newest, err := b.newest(ctx, stream, filter)
		if err == nil && newest < next {
			return true
		}
		if err == nil {
			err = late.wait(ctx, next > q.Seq)
		}
		if err != nil {
			yield(Stored{}, fmt.Errorf("read stream %s: %w", stream, err))
			return false
		}
		q.Seq = next
	}
}

// Records yields every message of a stream given by the broker's name, as those behind buckets are, in stream order. One
// that is replaced meanwhile may come twice, and is never left out.
func (b *Bus) Records(ctx context.Context, stream string) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) { b.scan(ctx, stream, ">", 1, yield) }
}

// Get returns the last message of one subject of a stream given by the broker's name; its sequence is 0 when there is
// none.
func (b *Bus) Get(ctx context.Context, stream, subject string) (Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	if b.clustered() {
		return b.lastOfLeader(ctx, stream, subject)
	}
	m, err := b.nc.RequestWithContext(ctx, "$JS.API.DIRECT.GET."+stream+"."+subject, nil)
	if err != nil {
		return Stored{}, err
	}
	switch status := m.Header.Get("Status"); {
	case m.Header.Get(jetstream.SequenceHeader) != "":
		return stored(m)
	case status == "404":
		return Stored{}, nil
	default:
		return Stored{}, fmt.Errorf("the broker answered %s %s", status, m.Header.Get("Description"))
	}
}

// lastBound is how many subjects one request for last messages names; the server answers with up to 1,024 messages.
const lastBound = 500

// Last yields the newest message of each of the subjects, which may have wildcards, in no particular order. Subjects
// without a message yield nothing. A wildcard may match more than 1,024 subjects only on a stream that keeps one message
// per subject.
func (b *Bus) Last(ctx context.Context, stream string, subjects ...string) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		for chunk := range slices.Chunk(subjects, lastBound) {
			if !b.last(ctx, b.Stream(stream), chunk, yield) {
				return
			}
		}
	}
}

// last halves the subjects until the server can answer. It reports whether to go on.
func (b *Bus) last(ctx context.Context, stream string, subjects []string, yield func(Stored, error) bool) bool {
	tooMany := false
	more := b.pages(ctx, stream, query{Last: subjects}, func(m Stored, err error) bool {
		if tooMany = errors.Is(err, errTooMany); tooMany {
			return false
		}
		return yield(m, err)
	})
	switch {
	case !tooMany:
		return more
	case len(subjects) == 1:
		return b.scan(ctx, stream, subjects[0], 1, yield)
	}
	mid := len(subjects) / 2
	return b.last(ctx, stream, subjects[:mid], yield) && b.last(ctx, stream, subjects[mid:], yield)
}

// pages yields all that answers q, a page at a time. It reports whether the caller wants more than that.
func (b *Bus) pages(ctx context.Context, stream string, q query, yield func(Stored, error) bool) bool {
	q.MaxBytes = pageBytes
	get := b.get
	if q.Last != nil && b.clustered() {
		get = b.getCurrent
	}
	for {
		page, err := get(ctx, stream, q)
		if err != nil {
			yield(Stored{}, fmt.Errorf("read stream %s: %w", stream, err))
			return false
		}
		for _, m := range page.msgs {
			if !yield(m, nil) {
				return false
			}
		}
		if !page.more || len(page.msgs) == 0 {
			return true
		}
		q.Seq, q.reached = page.msgs[len(page.msgs)-1].Sequence+1, page.upTo
		q.Batch = min(2*q.Batch, longPage)
	}
}

// query is the body of a direct get (NATS ADR-31).
type query struct {
	Seq      uint64   `json:"seq,omitempty"` // the first to consider
	Next     string   `json:"next_by_subj,omitempty"`
	Batch    int      `json:"batch,omitempty"`
	Last     []string `json:"multi_last,omitempty"`
	MaxBytes int      `json:"max_bytes,omitempty"`

	reached uint64 // how far the replica was that answered the page before
}

// answer is what one direct get brought.
type answer struct {
	msgs []Stored
	more bool   // behind the last message
	upTo uint64 // of last messages: how far the replica was that answered; 0: there was nothing to tell it by
}

// errTooMany says that more last messages match than the server is willing to send at once.
var errTooMany = errors.New("too many results")

// get asks a stream once and returns the whole answer.
//
// It is ours rather than jetstreamext's, whose iterators end without an error when an answer breaks off, be it by time
// or by the end of the context: a planner that took that for the end would forget the arrivals it did not see.
func (b *Bus) get(ctx context.Context, stream string, q query) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	body, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	sub, err := b.nc.SubscribeSync(b.nc.NewInbox())
	if err != nil {
		return a, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := b.nc.PublishRequest("$JS.API.DIRECT.GET."+stream, sub.Subject, body); err != nil {
		return a, err
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return a, fmt.Errorf("after %d messages: %w", len(a.msgs), err)
		}
		if m.Header.Get(jetstream.SequenceHeader) != "" {
			s, err := stored(m)
			if err != nil {
				return a, err
			}
			a.msgs = append(a.msgs, s)
			continue
		}
		status, text := m.Header.Get("Status"), m.Header.Get("Description")
		switch {
		case status == "204": // the end of the answer
			a.more = m.Header.Get("Nats-Num-Pending") != "0"
			if q.Last != nil {
				a.upTo, err = strconv.ParseUint(m.Header.Get("Nats-UpTo-Sequence"), 10, 64)
			}
			return a, err
		case status == "404" && (q.Last == nil || text == "No Results"):
			return a, nil
		case status == "413":
			return a, errTooMany
		case status == "503":
			return a, nats.ErrNoResponders
		}
		return a, fmt.Errorf("the broker answered %s %s", status, text)
	}
}

// stored reads a message of an answer. The server appends its headers behind those of the publisher.
func stored(m *nats.Msg) (Stored, error) {
	header := func(key string) string {
		v := m.Header[key]
		if len(v) == 0 {
			return ""
		}
		return v[len(v)-1]
	}
	seq, err := strconv.ParseUint(header(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return Stored{}, fmt.Errorf("sequence of a stored message: %w", err)
	}
	at, err := time.Parse(time.RFC3339Nano, header(jetstream.TimeStampHeaer))
	if err != nil {
		return Stored{}, fmt.Errorf("time of stored message %d: %w", seq, err)
	}
	return Stored{Subject: header(jetstream.SubjectHeader), Sequence: seq, Time: at, Data: m.Data}, nil
}

// Purge removes the messages of a stream whose subject matches filter, up to and including sequence upTo (0: all).
func (b *Bus) Purge(ctx context.Context, stream, filter string, upTo uint64) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	s, err := b.js.Stream(ctx, b.Stream(stream))
	if err != nil {
		return fmt.Errorf("purge %s of stream %s: %w", filter, stream, err)
	}
	opts := []jetstream.StreamPurgeOpt{jetstream.WithPurgeSubject(filter)}
	if upTo > 0 {
		opts = append(opts, jetstream.WithPurgeSequence(upTo+1))
	}
	if err := s.Purge(ctx, opts...); err != nil {
		return fmt.Errorf("purge %s of stream %s: %w", filter, stream, err)
	}
	return nil
}

// State returns the size and bounds of a stream.
func (b *Bus) State(ctx context.Context, stream string) (jetstream.StreamState, error) {
	s, err := b.js.Stream(ctx, b.Stream(stream))
	if err != nil {
		return jetstream.StreamState{}, fmt.Errorf("state of stream %s: %w", stream, err)
	}
	return s.CachedInfo().State, nil
}

// Handled reports whether a consumer of the topology has handled its stream up to a sequence.
func (b *Bus) Handled(ctx context.Context, consumer string, upTo uint64) (bool, error) {
	c, err := b.Bind(ctx, b.js, consumer)
	if err != nil {
		return false, fmt.Errorf("progress of consumer %s: %w", consumer, err)
	}
	// What was replaced or removed is never acknowledged, so the floor can stay behind.
	info := c.CachedInfo()
	return info.AckFloor.Stream >= upTo || (info.NumPending == 0 && info.NumAckPending == 0), nil
}
