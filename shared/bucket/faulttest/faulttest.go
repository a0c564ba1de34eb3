// Package faulttest puts a layer in front of a storage server of a test that notes what is asked and can be told to fail:
// to hang, to trickle, to cut off, to corrupt, to turn away.
package faulttest

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"
)

// Match picks requests.
type Match func(*http.Request) bool

// Anything picks every request.
func Anything(*http.Request) bool { return true }

// Fault answers a request in place of next, or around it.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

// After does to an answer what f does, once g has done what it does.
func (f Fault) After(g Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		f(w, r, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g(w, r, next) }))
	}
}

// Layer is a handler before another.
type Layer struct {
	next http.Handler

	mu       sync.Mutex
	requests []*http.Request
	faults   []*fault
}

type fault struct {
	match Match
	left  int // how often still; negative: for ever
	do    Fault
}

// New returns a layer in front of next.
func New(next http.Handler) *Layer { return &Layer{next: next} }

// Inject has the next requests that match meet a fault, n of them, or all if n is negative. Of several faults that match
// the first that was injected counts, until it is used up.
func (l *Layer) Inject(n int, match Match, do Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, &fault{match, n, do})
}

// Heal takes all faults away.
func (l *Layer) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = nil
}

// Requests returns how many requests came so far that match.
func (l *Layer) Requests(match Match) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, r := range l.requests {
		if match(r) {
			n++
		}
	}
	return n
}

// ServeHTTP implements http.Handler.
func (l *Layer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A handler that ends before it has read the body makes the connection useless, and the client's error depends on
	// who is faster.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if f := l.arrived(r); f != nil {
		f.do(w, r, l.next)
		return
	}
	l.next.ServeHTTP(w, r)
}

// arrived notes a request and returns the fault it is to meet, if any.
func (l *Layer) arrived(r *http.Request) *fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	past := r.Clone(context.Background()) // what serves the request may change it
	past.Body = nil                       // for others to have the memory
	l.requests = append(l.requests, past)
	for _, f := range l.faults {
		if f.left != 0 && f.match(r) {
			f.left--
			return f
		}
	}
	return nil
}

// Truncated breaks the connection after n bytes of the body.
func Truncated(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		replay(w, r, next, func(body []byte) []byte { return body[:min(n, len(body))] })
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// Trickled sends the body piece by piece with pauses in between.
func Trickled(piece int, pause time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		head(w, rec)
		for body := rec.Body.Bytes(); len(body) > 0; {
			n := min(piece, len(body))
			if _, err := w.Write(body[:n]); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			body = body[n:]
			select {
			case <-time.After(pause):
			case <-r.Context().Done():
				return
			}
		}
	}
}

// Corrupted changes one bit of the body.
func Corrupted(w http.ResponseWriter, r *http.Request, next http.Handler) {
	replay(w, r, next, func(body []byte) []byte {
		if len(body) > 0 {
			body[len(body)/2] ^= 1
		}
		return body
	})
}

// Lost does what is asked, and breaks the connection instead of answering.
func Lost(_ http.ResponseWriter, r *http.Request, next http.Handler) {
	next.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// Broken breaks the connection and does nothing.
func Broken(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// Stalled answers nothing until the client gives up.
func Stalled(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }

// Before does something, and then what is asked.
func Before(do func()) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		do()
		next.ServeHTTP(w, r)
	}
}

// replay answers with a changed body under the headers of the true one.
func replay(w http.ResponseWriter, r *http.Request, next http.Handler, change func([]byte) []byte) {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	head(w, rec)
	_, _ = w.Write(change(rec.Body.Bytes()))
}

func head(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	for key, values := range rec.Header() {
		w.Header()[key] = values
	}
	w.WriteHeader(rec.Code)
}
