package s3test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"millrace/shared/bucket/faulttest"
)

// What there is to pick.
var (
	Listings faulttest.Match = func(r *http.Request) bool {
		return r.Method == http.MethodGet && (r.URL.Query().Has("list-type") || r.URL.Query().Has("versions"))
	}
	Stats   faulttest.Match = func(r *http.Request) bool { return r.Method == http.MethodHead && inObject(r) }
	Reads   faulttest.Match = func(r *http.Request) bool { return r.Method == http.MethodGet && inObject(r) }
	Writes  faulttest.Match = func(r *http.Request) bool { return r.Method == http.MethodPut && inObject(r) }
	Parts   faulttest.Match = func(r *http.Request) bool { return Writes(r) && r.URL.Query().Has("partNumber") }
	Aborts  faulttest.Match = func(r *http.Request) bool { return Deletes(r) && r.URL.Query().Has("uploadId") }
	Deletes faulttest.Match = func(r *http.Request) bool { return r.Method == http.MethodDelete && inObject(r) }

	Completions faulttest.Match = func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") }
)

// inObject reports whether a request is about an object and not about its bucket.
func inObject(r *http.Request) bool {
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	return key != ""
}

// Status answers with an error as S3 spells it. Answers to HEAD have no body, so there the code stays unsaid.
func Status(status int, code, message string, headers ...string) faulttest.Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"+
			"<Error><Code>%s</Code><Message>%s</Message><RequestId>1</RequestId></Error>", code, message)
	}
}

// Busy answers with SlowDown and how long to wait.
func Busy(status int, wait time.Duration) faulttest.Fault {
	return Status(status, "SlowDown", "Please reduce your request rate.", "Retry-After", strconv.Itoa(int(wait.Seconds())))
}
