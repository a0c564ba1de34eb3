package gcstest

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"millrace/shared/bucket/faulttest"
)

// Fault is what becomes of a request.
type Fault = faulttest.Fault

// Match picks requests.
type Match = faulttest.Match

// What there is to pick.
var (
	Anything Match = faulttest.Anything
	Listings Match = func(r *http.Request) bool { return isGet(r) && strings.HasSuffix(r.URL.Path, "/o") }
	Stats    Match = func(r *http.Request) bool {
		return isGet(r) && strings.Contains(r.URL.Path, "/o/") && r.URL.Query().Get("alt") != "media"
	}
	Reads    Match = func(r *http.Request) bool { return isGet(r) && r.URL.Query().Get("alt") == "media" }
	Uploads  Match = func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/upload/") }
	Pieces   Match = func(r *http.Request) bool { return Uploads(r) && r.URL.Query().Has("upload_id") } // after the first request
	Rewrites Match = func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/rewriteTo/") }
	Begun    Match = func(r *http.Request) bool { return Rewrites(r) && !r.URL.Query().Has("rewriteToken") } // a copy, from the start
	Deletes  Match = func(r *http.Request) bool { return r.Method == http.MethodDelete }
	// NewNotifications are requests to have a bucket publish its changes.
	NewNotifications Match = func(r *http.Request) bool {
		return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, notificationConfigs)
	}
	Tokens Match = func(r *http.Request) bool { return r.URL.Path == tokenPath }
)

func isGet(r *http.Request) bool { return r.Method == http.MethodGet }

// What any server can suffer.
var (
	Truncated       = faulttest.Truncated
	Trickled        = faulttest.Trickled
	Before          = faulttest.Before
	Corrupted Fault = faulttest.Corrupted
	Lost      Fault = faulttest.Lost
	Broken    Fault = faulttest.Broken
	Stalled   Fault = faulttest.Stalled
)

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
