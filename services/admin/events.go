package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

type followEvents struct {
	Types     []string `query:"type" doc:"only these, separated by commas: import_job.completed, or import_job.* for all of a family"`
	Index     string   `query:"index_id" doc:"only events of this index"`
	LastID    string   `header:"Last-Event-ID" doc:"goes on behind the event that had this id"`
	LastQuery string   `query:"last_event_id" doc:"the same, for clients that cannot set headers"`
}

const (
	// feedBeat is how often a quiet stream says that it is alive; feedCheck how often its key is looked at.
	feedBeat  = 15 * time.Second
	feedCheck = time.Second
	// feedStall is how long a client may take to accept one event before it is dropped.
	feedStall = 10 * time.Second
	// feedAhead bounds the events that are fetched ahead for one client, and maxFeeds the clients of one process.
	feedAhead = 64
	maxFeeds  = 256
)

func (a *Admin) eventRoutes() {
	rt := route{
		method: "GET", path: "/events", scope: read, tag: "Events", summary: "Follow events as they happen",
		about: "Server-sent events: id, event (its type) and data (the event as JSON: id, type, index_id, subject, time, data). " +
			"A client that comes back with Last-Event-ID misses nothing of the last 30 days. Events come at least once, and the " +
			"id inside data is the same each time. A comment comes every 15 seconds; a client that accepts nothing for 10 is dropped.",
	}
	register(a, rt, a.followEvents)
	a.api.OpenAPI().Paths[rt.path].Get.Responses["200"] = &huma.Response{
		Description: "The stream, without an end",
		Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: "string"}}},
	}
}

// feeds are the open event streams of this process.
type feeds struct {
	mu     sync.Mutex
	open   int
	ending chan struct{} // closed when all shall end
}

func newFeeds() *feeds { return &feeds{ending: make(chan struct{})} }

// begin takes a place and returns what tells that the stream shall end.
func (f *feeds) begin() (<-chan struct{}, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open >= maxFeeds {
		return nil, false
	}
	f.open++
	return f.ending, true
}

func (f *feeds) done() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
}

// end ends all streams, which would keep the server from stopping.
func (f *feeds) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.ending)
	f.ending = make(chan struct{})
}

var eventTypes = regexp.MustCompile(`^[a-z_]+\.([a-z_]+|\*)$`)

// filters are the subjects of what a client wants to see. None contains another: the broker refuses that.
func (in *followEvents) filters(subject func(...string) string) ([]string, error) {
	index := "*"
	var f fieldErrors
	if in.Index != "" {
		index = in.Index
		if !event.IsToken(index) {
			f.add("index_id", "must be the id of an index")
		}
	}
	types := slices.Compact(slices.Sorted(slices.Values(in.Types)))
	for _, t := range types {
		if !eventTypes.MatchString(t) {
			f.add("type", "must be a type such as import_job.completed, or import_job.* for all of a family")
			break
		}
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if len(types) == 0 {
		if index == "*" {
			return []string{subject("event", ">")}, nil
		}
		types = []string{"*.*"}
	}
	var filters []string
	for _, t := range types {
		family, _, _ := strings.Cut(t, ".")
		if !strings.HasSuffix(t, "*") && slices.Contains(types, family+".*") {
			continue
		}
		filters = append(filters, subject("event", t, index, "*"))
	}
	return filters, nil
}

func (a *Admin) followEvents(ctx context.Context, in *followEvents) (*huma.StreamResponse, error) {
	filters, err := in.filters(a.bus.Subject)
	if err != nil {
		return nil, err
	}
	ending, ok := a.feeds.begin() // first: what is refused shall cost the broker nothing
	if !ok {
		p := newProblem(http.StatusServiceUnavailable, "too_many_event_streams",
			"%d event streams are open here already. Close one, or try again later.", maxFeeds)
		p.retryAfter = 5
		return nil, p
	}
	consumer, err := a.eventConsumer(ctx, filters, in)
	if err != nil {
		a.feeds.done()
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer a.feeds.done()
		r, w := humago.Unwrap(hctx)
		a.feed(w, r, consumer, ending)
	}}, nil
}

func (a *Admin) eventConsumer(ctx context.Context, filters []string, in *followEvents) (jetstream.Consumer, error) {
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: filters}
	if err := a.resume(ctx, &cfg, in.LastID, in.LastQuery); err != nil {
		return nil, err
	}
	consumer, err := a.bus.JetStream().OrderedConsumer(ctx, a.bus.Stream(topology.Events), cfg)
	if err != nil {
		return nil, fmt.Errorf("follow events: %w", err)
	}
	return consumer, nil
}

// An event's id on this stream is its place in the broker's and the time it was stored: the place finds it fast, and
// the time tells whether that place still holds what it did, which after a restore it need not.
func feedID(seq uint64, stored time.Time) string {
	return strconv.FormatUint(seq, 36) + "-" + strconv.FormatInt(stored.UnixNano(), 36)
}

func parseFeedID(id string) (seq uint64, stored time.Time, ok bool) {
	place, at, found := strings.Cut(id, "-")
	seq, err := strconv.ParseUint(place, 36, 64)
	nanos, terr := strconv.ParseInt(at, 36, 64)
	return seq, time.Unix(0, nanos).UTC(), found && err == nil && terr == nil && seq > 0 && nanos > 0
}

// resume sets where a stream begins: behind the last event that the client saw, or with what comes from now on.
func (a *Admin) resume(ctx context.Context, cfg *jetstream.OrderedConsumerConfig, header, query string) error {
	field, last := "Last-Event-ID", header
	if last == "" {
		field, last = "last_event_id", query
	}
	s, err := a.bus.JetStream().Stream(ctx, a.bus.Stream(topology.Events))
	if err != nil {
		return err
	}
	cfg.DeliverPolicy = jetstream.DeliverByStartSequencePolicy
	if last == "" {
		cfg.OptStartSeq = s.CachedInfo().State.LastSeq + 1
		return nil
	}
	seq, stored, ok := parseFeedID(last)
	if !ok {
		return invalid(field, "must be the id of an event of this stream, or left out")
	}
	m, err := s.GetMsg(ctx, seq)
	switch {
	case err == nil && m.Time.Equal(stored):
		cfg.OptStartSeq = seq + 1
	case err == nil || errors.Is(err, jetstream.ErrMsgNotFound): // it has expired, or the stream is another one now
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &stored
	default:
		return err
	}
	return nil
}

// feed writes events to one client until it goes away, accepts no more, loses its key, or the server ends.
func (a *Admin) feed(w http.ResponseWriter, r *http.Request, consumer jetstream.Consumer, ending <-chan struct{}) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // proxies shall not wait for more
	control := http.NewResponseController(w)
	send := func(frame []byte) bool {
		_ = control.SetWriteDeadline(time.Now().Add(feedStall)) // not every writer has one
		_, err := w.Write(frame)
		return err == nil && control.Flush() == nil
	}
	if r.Method == http.MethodHead || !send([]byte("retry: 2000\n: connected\n\n")) {
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	events := make(chan jetstream.Msg)
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		select {
		case events <- m: // waiting here is what keeps memory bounded: the broker sends no more than was asked for
		case <-ctx.Done():
		}
	}, jetstream.PullMaxMessages(feedAhead), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		a.log.Debug("following events", "request_id", requestID(r.Context()), "error", err)
	}))
	if err != nil {
		a.log.Warn("following events", "request_id", requestID(r.Context()), "error", err)
		return
	}
	defer consuming.Stop()
	beat, check := time.NewTicker(feedBeat), time.NewTicker(feedCheck)
	defer beat.Stop()
	defer check.Stop()
	for ok := true; ok; {
		select {
		case m := <-events:
			ok = send(frame(m))
		case <-beat.C:
			ok = send([]byte(":\n\n"))
		case <-check.C:
			ok = a.allowed(r, read)
		case <-consuming.Closed():
			ok = false
		case <-ending:
			ok = false
		case <-ctx.Done():
			ok = false
		}
	}
}

// allowed reports whether the key of a request that was let in would be let in still. A broker that does not answer
// says nothing about keys.
func (a *Admin) allowed(r *http.Request, need scope) bool {
	key, err := a.keys.find(r.Context(), credential(r))
	if errors.Is(err, store.ErrNotFound) {
		return false
	}
	return err != nil || levelOf(key) >= need
}

// frame is a message of the events stream as a server-sent event.
func frame(m jetstream.Msg) []byte {
	h := m.Headers()
	e := event.Event{ID: h.Get("ce-id"), Type: event.Type(h.Get("ce-type")), Subject: h.Get("ce-subject"), Data: m.Data()}
	e.Time, _ = time.Parse(time.RFC3339Nano, h.Get("ce-time"))
	if tokens := strings.Split(m.Subject(), "."); len(tokens) == 6 { // PREFIX.event.FAMILY.KIND.INDEX.ID
		e.Index = tokens[4]
	}
	if e.Data = unescaped(e.Data); !json.Valid(e.Data) {
		e.Data = json.RawMessage("null")
	}
	id := ""
	if md, err := m.Metadata(); err == nil {
		id = feedID(md.Sequence.Stream, md.Timestamp)
		if e.Time.IsZero() {
			e.Time = md.Timestamp
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "id: %s\nevent: %s\ndata: ", id, oneLine(string(e.Type)))
	_ = jsonFormat.Marshal(&b, e) // plain data, on one line with its end
	b.WriteByte('\n')
	return b.Bytes()
}

// oneLine keeps what somebody else published from ending a line of the stream.
func oneLine(s string) string { return strings.NewReplacer("\r", " ", "\n", " ").Replace(s) }
