package azuretest

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"millrace/shared/bucket/gcs/gcstest"
)

// What there is to pick. Match and Fault are those of gcstest, whose faults below HTTP hold for any storage.
var (
	Anything gcstest.Match = func(*http.Request) bool { return true }
	Listings gcstest.Match = func(r *http.Request) bool { return isGet(r) && r.URL.Query().Get("comp") == "list" }
	Stats    gcstest.Match = func(r *http.Request) bool { return r.Method == http.MethodHead }
	Reads    gcstest.Match = func(r *http.Request) bool {
		return isGet(r) && !r.URL.Query().Has("comp") && strings.Count(r.URL.Path, "/") > 2
	}
	Blocks  gcstest.Match = func(r *http.Request) bool { return isPut(r) && r.URL.Query().Get("comp") == "block" && !Copies(r) }
	Commits gcstest.Match = func(r *http.Request) bool { return isPut(r) && r.URL.Query().Get("comp") == "blocklist" }
	Uploads gcstest.Match = func(r *http.Request) bool { return isPut(r) && !r.URL.Query().Has("comp") && !Copies(r) } // in one request
	Copies  gcstest.Match = func(r *http.Request) bool { return isPut(r) && r.Header.Get("X-Ms-Copy-Source") != "" }
	Deletes gcstest.Match = func(r *http.Request) bool { return r.Method == http.MethodDelete }
	Logins  gcstest.Match = func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/token") }
)

func isGet(r *http.Request) bool { return r.Method == http.MethodGet }

func isPut(r *http.Request) bool { return r.Method == http.MethodPut }

type fault struct {
	match gcstest.Match
	left  int // how often still; negative: for ever
	do    gcstest.Fault
}

// Inject has the next requests that match meet a fault, n of them, or all if n is negative. Of several faults that match
// the first that was injected counts, until it is used up.
func (s *Server) Inject(n int, match gcstest.Match, do gcstest.Fault) {
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

// Status answers with an error as Azure spells it. The code is the API's own word, such as "ServerBusy".
func Status(status int, code string) gcstest.Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { answer(w, status, code) }
}

// Busy answers with an error and how long to wait.
func Busy(status int, code string, wait time.Duration) gcstest.Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())))
		answer(w, status, code)
	}
}

// AtTime answers with an error, by another clock than ours.
func AtTime(now time.Time, status int, code string) gcstest.Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
		answer(w, status, code)
	}
}

// answer is an error as the API spells it. The answer to a HEAD has no body, and only Azure itself says the code in a
// header too.
func answer(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	if code != "" {
		w.Header().Set("X-Ms-Error-Code", code)
	}
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>what went wrong
RequestId:00000000-0000-0000-0000-000000000000</Message></Error>`, code)
}
