package admin

import (
	"net/http"
	"regexp"
	"strings"
)

// moved is where a path stands among the resources of NATS, if elsewhere than its own first segment says.
var moved = []struct{ from, to string }{
	{"/indexes/{}/automations/import", "/automations/{}"},
	{"/indexes/{}/automations/export", "/export-automations/{}"},
	{"/webhooks/deliveries", "/webhook-deliveries"},
}

// named are the operations whose verb the rule of verbOf would not make a natural one.
var named = map[string]string{
	"POST /connectors/dir":                                 "connectors.create-dir",
	"POST /connectors/gcs":                                 "connectors.create-gcs",
	"POST /connectors/s3":                                  "connectors.create-s3",
	"POST /connectors/azure":                               "connectors.create-azure",
	"POST /import-jobs/{}/files/retry":                     "import-jobs.retry-file",
	"POST /import-jobs/{}/prompt-run":                      "import-jobs.rerun",
	"GET /explain":                                         "explain.get",
	"GET /usage":                                           "usage.get",
	"POST /prompt-runs/{}/videos/{}/segments/{}/retry":     "prompt-runs.retry-segment",
	"GET /prompt-runs/{}/videos/{}/segments/{}/retries/{}": "prompt-runs.segment-retry",
}

var parameter = regexp.MustCompile(`\{[^}]*\}`)

// subjectOf is the last two tokens of an operation's subject on NATS, <resource>.<verb>: the resource is the first
// segment of its path, the verb see verbOf.
func subjectOf(method, path string) string {
	path = parameter.ReplaceAllString(path, "{}")
	if subject, ok := named[method+" "+path]; ok {
		return subject
	}
	for _, m := range moved {
		if rest, ok := strings.CutPrefix(path, m.from); ok && (rest == "" || rest[0] == '/') {
			path = m.to + rest
			break
		}
	}
	resource, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return resource + "." + verbOf(method, rest)
}

// verbOf says in one word what a method does to the rest of a path. That is what stands behind the last parameter
// ("cancel" of {}/cancel); where nothing does, it is the method's own word.
func verbOf(method, rest string) string {
	rest, item := strings.CutSuffix("/"+rest, "/{}")
	tail := strings.Trim(rest[strings.LastIndex(rest, "}")+1:], "/")
	tail = strings.ReplaceAll(tail, "/", "-")
	var word string
	switch method {
	case http.MethodGet:
		if word = "list"; item {
			word = "get"
		}
	case http.MethodPost:
		word = "create"
	case http.MethodPatch:
		word = "update"
	default:
		word = strings.ToLower(method)
	}
	switch {
	case tail == "":
		return word
	case method == http.MethodGet, method == http.MethodPost:
		return tail
	}
	return word + "-" + tail
}
