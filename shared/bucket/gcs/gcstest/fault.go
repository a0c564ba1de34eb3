package gcstest

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"
)

// Match picks requests.
type Match func(*http.Request) bool

// What there is to pick.
var (
	Anything Match = func(*http.Request) bool { return true }
	Listings Match = func(r *http.Request) bool { return isGet(r) && strings.HasSuffix(r.URL.Path, "/o") }
	Stats    Match = func(r *http.Request) bool {
		return isGet(r) && strings.Contains(r.URL.Path, "/o/") && r.URL.Query().Get("alt") != "media"
	}
	Reads    Match = func(r *http.Request) bool { return isGet(r) && r.URL.Query().Get("alt") == "media" }
	Uploads  Match = func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/upload/") }
	Pieces   Match = func(r *http.Request) bool { return Uploads(r) && r.URL.Query().Has("upload_id") } // after the first request
	Rewrites Match = func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/rewriteTo/") }
	Deletes  Match = func(r *http.Request) bool { return r.Method == http.MethodDelete }
	Tokens   Match = func(r *http.Request) bool { return r.URL.Path == tokenPath }
)

func isGet(r *http.Request) bool { return r.Method == http.MethodGet }

// Fault answers a request in place of next, or around it.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

type fault struct {
	match Match
	left  int // how often still; negative: for ever
	do    Fault
}

// Inject has the next requests that match meet a fault, n of them, or all if n is negative. Of several faults that match
// the first that was injected counts, until it is used up.
func (s *Server) Inject(n int, match Match, do Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &fault{match, n, do})
}

// Heal takes all faults away.
func (s *Server) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Status answers with an error as Google spells it. The reason is the API's own word, such as "forbidden".
func Status(code int, reason, message string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { answer(w, code, reason, message) }
}

// Busy answers with an error and how long to wait.
func Busy(code int, wait time.Duration) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())))
		answer(w, code, "backendError", "We encountered an internal error. Please try again.")
	}
}

// Truncated breaks the connection after n bytes of the body.
func Truncated(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		replay(w, r, next, func(body []byte) []byte { return body[:min(n, len(body))] })
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
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

// Trickled answers with a byte a second, until the client gives up.
func Trickled(w http.ResponseWriter, r *http.Request, next http.Handler) {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	for key, values := range rec.Header() {
		w.Header()[key] = values
	}
	w.WriteHeader(rec.Code)
	for tick := time.NewTicker(time.Second); rec.Body.Len() > 0; {
		_, _ = w.Write(rec.Body.Next(1))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-tick.C:
		case <-r.Context().Done():
			tick.Stop()
			return
		}
	}
}

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
	for key, values := range rec.Header() {
		w.Header()[key] = values
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(change(rec.Body.Bytes()))
}
