package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/secret"
	"millrace/shared/store"
)

// A request with an Idempotency-Key is carried out once, however often it is sent (contract §5):
//
//	claim ──► effect ──► 2xx kept ──► answered; every repetition gets the kept answer
//	  ▲          │
//	  │          └─ no 2xx: the claim is given back, and a corrected request runs
//	  └─ the process died before it kept an answer: the next who sends the request carries it out again
//
// That last step does no harm because what is created gets its id from the request (newID) and is left alone when it is
// there (create), and because what cannot be done twice remembers which request did it (operation.id), or is used up by
// it: a dead letter that was replayed and a delivery that was retried refuse the second time.

// operation is what a client wants done once.
type operation struct {
	key     string // as the client sent it
	id      string // stands for account, method, path and key
	request string // digest of the decoded request; it tells nothing to those who do not know the key
	beside  *errgroup.Group
}

type operationKey struct{}

// operationOf returns the operation of a request that came with an idempotency key.
func operationOf(ctx context.Context) (operation, bool) {
	op, ok := ctx.Value(operationKey{}).(operation)
	return op, ok
}

// beside carries out what of an operation must be done before it is answered, but may go on while the answer is being kept:
// what comes to be without it as well, should the process die when only the answer is there. Of other requests it is just a
// step.
func beside(ctx context.Context, do func(context.Context) error) error {
	op, ok := operationOf(ctx)
	if !ok || op.beside == nil {
		return do(ctx)
	}
	op.beside.Go(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		defer cancel()
		return do(ctx)
	})
	return nil
}

// newID is the id of something that a request creates, one per prefix: random, or a function of the request when that
// has an idempotency key.
func newID(ctx context.Context, prefix string) string {
	if op, ok := operationOf(ctx); ok {
		return event.DerivedID(prefix, op.id, op.request)
	}
	return event.NewID(prefix)
}

// create stores a record with an id of newID. When the request had created it before, create returns it as it is now.
func create[T any](ctx context.Context, reg *store.Register[T], id string, v T) (T, error) {
	err := reg.Create(ctx, id, v)
	if _, repeatable := operationOf(ctx); !repeatable || !errors.Is(err, bus.ErrConflict) {
		return v, err
	}
	stored, _, err := reg.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return v, nil // created, and deleted since
	}
	return stored, err
}

// mismatch says that a key was used for another request.
func mismatch() error {
	return newProblem(http.StatusConflict, "idempotency_request_mismatch",
		"This Idempotency-Key was used for a different request. Use a new key, or repeat the first request unchanged.")
}

func inProgress() error {
	p := newProblem(http.StatusServiceUnavailable, "idempotency_request_in_progress",
		"A request with this Idempotency-Key is being carried out. Try again.")
	p.retryAfter = 1
	return p
}

// maxIdempotencyKey is the longest key that is accepted, in bytes. Clients count on 255.
const maxIdempotencyKey = 1024

// operationIn recognises a request that is to be carried out once. Its body must be in memory.
func operationIn(r *http.Request, rt route, hasBody bool) (op operation, ok bool, err error) {
	if r.Method != http.MethodPost && r.Method != http.MethodPut && r.Method != http.MethodPatch {
		return op, false, nil
	}
	op.key = strings.TrimSpace(cmp.Or(r.Header.Get("Idempotency-Key"), r.Header.Get("X-Idempotency-Key")))
	if op.key == "" {
		return op, false, nil
	}
	if strings.ContainsFunc(op.key, func(c rune) bool { return c < ' ' || c > '~' }) {
		return op, false, invalid("Idempotency-Key", "must be printable ASCII")
	}
	if len(op.key) > maxIdempotencyKey {
		return op, false, invalid("Idempotency-Key", "must have at most %d characters", maxIdempotencyKey)
	}
	op.id = event.DerivedID("op", owner, r.Method, r.URL.Path, op.key)
	d := digest{hmac.New(sha256.New, []byte(op.key))}
	d.add([]byte(r.URL.Query().Encode()))
	if hasBody {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			return op, false, err
		}
		r.Body = io.NopCloser(bytes.NewReader(data))
		d.body(data, r.Header.Get("Content-Type"), rt.raw > 0)
	}
	op.request = base64.RawURLEncoding.EncodeToString(d.Sum(nil))
	return op, true, nil
}

// digest is of what a request says, not of how it spells that.
type digest struct{ hash.Hash }

func (d digest) add(part []byte) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(part)))
	d.Write(n[:])
	d.Write(part)
}

func (d digest) body(data []byte, contentType string, raw bool) {
	if !raw {
		d.add(canonical(data))
		return
	}
	form, ok := formParts(contentType, data)
	if !ok {
		d.add(data)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(form)) { // the order of names is the client's whim, and so is a boundary
		for _, content := range form[name] {
			d.add([]byte(name))
			d.add(content)
		}
	}
}

// canonical spells equal JSON values the same: members in order, 5.0 as 5.
func canonical(data []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return data
	}
	spelled, err := json.Marshal(normal(v))
	if err != nil {
		return data
	}
	return spelled
}

// maxExact is up to where every integer has a float64 of its own.
const maxExact = 1 << 53

func normal(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = normal(e)
		}
	case []any:
		for i, e := range v {
			v[i] = normal(e)
		}
	case json.Number:
		if f, err := strconv.ParseFloat(v.String(), 64); err == nil && math.Abs(f) < maxExact {
			return json.Number(strconv.FormatFloat(f, 'g', -1, 64))
		}
	}
	return v
}

// answers carries each operation out once and keeps what it answered.
type answers struct {
	reg     *store.Register[store.Answer]
	sealer  Sealer
	process string
	log     *slog.Logger
	metrics *metrics

	mu       sync.Mutex
	underWay map[string]chan struct{} // by operation, closed when it has ended in this process
}

// What happens when an operation is under way already.
const (
	beatEvery = time.Second
	// deadAfter is how long the one who claimed it may be silent before somebody else carries it out.
	deadAfter = 3 * time.Second
	// patience is how long a repetition waits for the first.
	patience  = 5 * time.Second
	lookEvery = 50 * time.Millisecond
)

// once answers a request: by what handle does, the first time, and by what is kept, from then on.
func (a *Admin) once(ctx huma.Context, op operation, rt route, handle func(huma.Context)) {
	r, w := humago.Unwrap(ctx)
	if rt.repeats {
		handle(humago.NewContext(ctx.Operation(), withOperation(r, op), w))
		return
	}
	s := a.answers
	until := time.Now().Add(patience)
	leave, err := s.enter(r.Context(), op.id, until)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	defer leave()
	c, kept, err := s.claim(r.Context(), op, until)
	if err == nil && kept != nil {
		err = s.replay(r.Context(), w, op, *kept)
	}
	if err != nil {
		a.fail(w, r, err)
	}
	if c == nil {
		return
	}

	rec := &answer{header: make(http.Header)}
	stop := c.beat()
	defer func() {
		stop()
		if c != nil { // a panic
			c.giveBack(r.Context())
		}
	}()
	op.beside = new(errgroup.Group)
	handle(humago.NewContext(ctx.Operation(), withOperation(r, op), rec))
	stop()
	if rec.status >= 200 && rec.status < 300 {
		err = c.keep(context.WithoutCancel(r.Context()), rec.status, rec.body.Bytes())
	} else {
		c.giveBack(r.Context())
	}
	c = nil
	if err = errors.Join(err, op.beside.Wait()); err != nil { // the effect is there; who repeats the request finds it
		a.fail(w, r, err)
		return
	}
	maps.Copy(w.Header(), rec.header)
	w.WriteHeader(rec.status)
	_, _ = w.Write(rec.body.Bytes())
}

func withOperation(r *http.Request, op operation) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), operationKey{}, op))
}

// enter waits until the operation is not under way in this process.
func (s *answers) enter(ctx context.Context, id string, until time.Time) (leave func(), err error) {
	late := time.NewTimer(time.Until(until))
	defer late.Stop()
	for {
		s.mu.Lock()
		other, busy := s.underWay[id]
		if !busy {
			done := make(chan struct{})
			s.underWay[id] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.underWay, id)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-late.C:
			s.metrics.repeated.WithLabelValues(repeatInProgress).Inc()
			return nil, inProgress()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// claim returns a claim, or the answer that is kept.
func (s *answers) claim(ctx context.Context, op operation, until time.Time) (*claim, *store.Answer, error) {
	mine := store.Answer{Request: op.request, Process: s.process, Attempt: event.NewID("try")}
	var seen store.Revision // a claim of another process, as it was
	var since time.Time     // and since when
	for rev := store.Revision(0); ; {
		at, err := s.reg.Swap(ctx, op.id, mine, rev)
		if err == nil {
			return &claim{answers: s, op: op, record: mine, rev: at}, nil, nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return nil, nil, err
		}
		for {
			there, at, err := s.reg.Get(ctx, op.id)
			if errors.Is(err, store.ErrNotFound) { // its day ended just now
				rev = 0
				break
			}
			if err != nil {
				return nil, nil, err
			}
			if there.Attempt == mine.Attempt { // written, although it did not look like it
				return &claim{answers: s, op: op, record: mine, rev: at}, nil, nil
			}
			if there.Status != 0 && there.Request != op.request {
				s.metrics.repeated.WithLabelValues(repeatMismatch).Inc()
				return nil, nil, mismatch()
			}
			if there.Status != 0 {
				return nil, &there, nil
			}
			// Nobody carries it out in this process, see enter: a claim of ours is of an earlier life.
			if rev = at; there.Process == "" || there.Process == s.process {
				break
			}
			if at != seen {
				seen, since = at, time.Now()
			}
			if time.Since(since) >= deadAfter {
				break
			}
			if time.Now().After(until) {
				s.metrics.repeated.WithLabelValues(repeatInProgress).Inc()
				return nil, nil, inProgress()
			}
			select {
			case <-time.After(lookEvery):
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			}
		}
		if time.Now().After(until) {
			return nil, nil, inProgress()
		}
	}
}

// claim is the right to carry an operation out.
type claim struct {
	*answers
	op     operation
	record store.Answer
	rev    store.Revision
}

// beat shows others that this process lives, until stop is called.
func (c *claim) beat() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for tick := time.NewTicker(beatEvery); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			next := c.record
			next.Beat++
			if c.write(context.WithoutCancel(ctx), next) != nil { // whoever waits will find out
				return
			}
			c.record = next
		}
	})
	return sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// errTaken says that another process has taken the operation over.
var errTaken = errors.New("the claim was taken over")

// write replaces the record of the claim as long as it is ours.
func (c *claim) write(ctx context.Context, v store.Answer) error {
	for {
		rev, err := c.reg.Swap(ctx, c.op.id, v, c.rev)
		if err == nil {
			c.rev = rev
			return nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
		there, at, err := c.reg.Get(ctx, c.op.id)
		switch {
		case err != nil:
			return err
		case there.Attempt != c.record.Attempt:
			return errTaken
		case there == v:
			c.rev = at
			return nil
		}
		c.rev = at
	}
}

// partSize is how much of a sealed body one record holds, in bytes; the broker takes messages of 1 MiB.
const partSize = 512 << 10

// keep makes an answer durable. The parts of a long one come first: a record without them would be read.
func (c *claim) keep(ctx context.Context, status int, body []byte) error {
	sealed, err := c.sealer.Seal(body, c.aad())
	if err != nil {
		return err
	}
	v := store.Answer{Request: c.op.request, Attempt: c.record.Attempt, Status: status, Body: sealed}
	if len(sealed) > partSize {
		v.Body = ""
		for part := range slices.Chunk([]byte(sealed), partSize) {
			if err := c.reg.Put(ctx, partKey(c.record.Attempt, v.Parts), store.Answer{Request: c.op.request, Body: string(part)}); err != nil {
				return err
			}
			v.Parts++
		}
	}
	err = c.write(ctx, v)
	if errors.Is(err, errTaken) || errors.Is(err, store.ErrNotFound) {
		return inProgress()
	}
	return err
}

func partKey(attempt string, n int) string { return attempt + "-" + strconv.Itoa(n) }

func (c *claim) aad() string { return answerAAD(c.op.id, c.record.Attempt) }

func answerAAD(id, attempt string) string { return secret.AAD("answer", id, attempt) }

// giveBack lets the next request with this key run. If that fails the claim is found dead, sooner or later.
func (c *claim) giveBack(ctx context.Context) {
	err := c.write(context.WithoutCancel(ctx), store.Answer{Attempt: c.record.Attempt})
	if err != nil && !errors.Is(err, errTaken) {
		c.log.Warn("an idempotency key is still claimed", "request_id", requestID(ctx), "error", err)
	}
}

// replay sends an answer again.
func (s *answers) replay(ctx context.Context, w http.ResponseWriter, op operation, kept store.Answer) error {
	sealed, err := s.sealed(ctx, kept)
	if err != nil {
		return err
	}
	body, err := s.sealer.Open(sealed, answerAAD(op.id, kept.Attempt))
	if errors.Is(err, secret.ErrOpen) { // it may have been sealed again just now, see Reseal
		if now, _, gerr := s.reg.Get(ctx, op.id); gerr == nil && now.Attempt != kept.Attempt && now.Status != 0 {
			return s.replay(ctx, w, op, now)
		}
	}
	if err != nil {
		return fmt.Errorf("the answer to an operation: %w", err)
	}
	s.metrics.repeated.WithLabelValues(repeatReplayed).Inc()
	if len(body) > 0 {
		w.Header().Set("Content-Type", "application/json")
	}
	w.Header().Set("Idempotent-Replayed", "true")
	w.WriteHeader(kept.Status)
	_, _ = w.Write(body)
	return nil
}

// sealed returns the sealed body of an answer that is kept.
func (s *answers) sealed(ctx context.Context, kept store.Answer) (string, error) {
	if kept.Parts == 0 {
		return kept.Body, nil
	}
	var b strings.Builder
	for n := range kept.Parts {
		p, _, err := s.reg.Get(ctx, partKey(kept.Attempt, n))
		if err != nil {
			return "", err
		}
		b.WriteString(p.Body)
	}
	return b.String(), nil
}
