package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/topology"
)

// problemError is an error as a client sees it: a code for machines and a sentence for people.
type problemError struct {
	status     int
	code       string
	message    string
	details    map[string]any // nil: none
	retryAfter int            // seconds; 0: none
}

func (p *problemError) Error() string { return p.message }

// GetStatus is for huma.
func (p *problemError) GetStatus() int { return p.status }

// GetHeaders is for huma.
func (p *problemError) GetHeaders() http.Header {
	h := make(http.Header)
	if p.retryAfter > 0 {
		h.Set("Retry-After", fmt.Sprint(p.retryAfter))
	}
	if p.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	return h
}

// envelope is the one shape of all errors.
type envelope struct {
	Error     errorMember `json:"error"`
	RequestID string      `json:"request_id"`
}

type errorMember struct {
	Code      string         `json:"code" doc:"lower snake case" example:"resource_index_not_found"`
	Message   string         `json:"message" doc:"a sentence for people"`
	Details   map[string]any `json:"details,omitempty" doc:"for validation_error: fields, a list of {field, message}"`
	RequestID string         `json:"request_id"`
	Timestamp string         `json:"timestamp" format:"date-time"`
}

func (p *problemError) envelope(requestID string) envelope {
	return envelope{
		Error: errorMember{
			Code: p.code, Message: p.message, Details: p.details,
			RequestID: requestID, Timestamp: stamp(time.Now()),
		},
		RequestID: requestID,
	}
}

func newProblem(status int, code, format string, args ...any) *problemError {
	return &problemError{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

func (p *problemError) with(key string, value any) *problemError {
	if p.details == nil {
		p.details = make(map[string]any)
	}
	p.details[key] = value
	return p
}

// notFound says that there is no such thing: "index", "import_job", …
func notFound(thing, id string) *problemError {
	member := thing + "_id"
	switch thing {
	case "import_job":
		member = "job_id"
	case "dead_letter":
		member = "dead_id"
	case "prompt_run":
		member = "run_id"
	case "api_key":
		member = "key_id"
	case "import_automation", "export_automation":
		member = "index_id"
	}
	p := newProblem(http.StatusNotFound, "resource_"+thing+"_not_found", "No %s has the id %s.", strings.ReplaceAll(thing, "_", " "), id)
	if kind, ok := strings.CutSuffix(thing, "_automation"); ok {
		p.message = fmt.Sprintf("The index %s has no %s automation.", id, kind)
	}
	return p.with(member, id)
}

// fieldError says what is wrong with one member of a request, and what is allowed.
type fieldError struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

// fieldErrors collects them, so that a client hears of all at once.
type fieldErrors []fieldError

func (f *fieldErrors) add(field, format string, args ...any) {
	*f = append(*f, fieldError{Field: field, Message: fmt.Sprintf(format, args...)})
}

// err is nil when there are none.
func (f fieldErrors) err() error {
	if len(f) == 0 {
		return nil
	}
	return f.problem()
}

func (f fieldErrors) problem() *problemError {
	texts := make([]string, len(f))
	for i, e := range f {
		texts[i] = e.Field + ": " + e.Message
	}
	return newProblem(http.StatusUnprocessableEntity, "validation_error", "The request is not valid. %s.", strings.Join(texts, "; ")).
		with("fields", []fieldError(f))
}

func invalid(field, format string, args ...any) *problemError {
	var f fieldErrors
	f.add(field, format, args...)
	return f.problem()
}

var noInt = regexp.MustCompile(`^json: cannot unmarshal .* into Go struct field (?:\S*\.)?(\w+) of type u?int\d*$`)

var missing = regexp.MustCompile(`^expected required property (\S+) to be present$`)

// reworded turns what huma says into what is allowed.
var reworded = []struct {
	from *regexp.Regexp
	to   string
}{
	{regexp.MustCompile(`^required \w+ parameter is missing$`), "is required"},
	{regexp.MustCompile(`^(?:expected|invalid) (string|boolean|number)$`), "must be a $1"},
	{regexp.MustCompile(`^(?:expected|invalid) (integer|array|object)$`), "must be an $1"},
	{regexp.MustCompile(`^expected length >= (\d+)$`), "must have at least $1 characters"},
	{regexp.MustCompile(`^expected array length >= (\d+)$`), "must have at least $1 items"},
	{regexp.MustCompile(`^expected array length <= (\d+)$`), "must have at most $1 items"},
	{regexp.MustCompile(`^expected length <= (\d+)$`), "must have at most $1 characters"},
	{regexp.MustCompile(`^expected number >= (\S+)$`), "must be at least $1"},
	{regexp.MustCompile(`^expected number <= (\S+)$`), "must be at most $1"},
	{regexp.MustCompile(`^expected value to be one of "(.*)"$`), "must be one of $1"},
}

// fromHuma translates what huma's own validation found.
func fromHuma(m *huma.ErrorModel) *problemError {
	if m.Status >= http.StatusInternalServerError {
		return internal()
	}
	var f fieldErrors
	for _, e := range m.Errors {
		field := e.Location
		for _, place := range []string{"body.", "query.", "path.", "header."} {
			field = strings.TrimPrefix(field, place)
		}
		message := e.Message
		if name := missing.FindStringSubmatch(message); name != nil {
			field, message = strings.TrimPrefix(strings.TrimPrefix(field, "body")+"."+name[1], "."), "is required"
		}
		if name := noInt.FindStringSubmatch(message); name != nil { // huma takes 1e30 for an integer, Go does not
			field, message = name[1], "must be an integer, written without fraction and exponent"
		}
		for _, r := range reworded {
			message = r.from.ReplaceAllString(message, r.to)
		}
		f.add(field, "%s", message)
	}
	if len(f) == 0 {
		f.add("body", "%s", m.Detail)
	}
	return f.problem()
}

func internal() *problemError {
	return newProblem(http.StatusInternalServerError, "internal_error", "Something went wrong here, and was logged with this request id.")
}

// explain turns any error of a handler into what the client sees. What is our fault is not shown, and is to be logged.
func explain(err error) (p *problemError, ours bool) {
	var api *jetstream.APIError
	switch {
	case errors.As(err, &p):
		return p, false
	case errors.Is(err, bus.ErrFull):
		p = newProblem(http.StatusServiceUnavailable, "store_full", "The store of the broker is full; nothing was changed. Free space and try again.")
	case errors.Is(err, bus.ErrUnknown), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		errors.Is(err, nats.ErrTimeout), errors.Is(err, nats.ErrNoResponders), errors.Is(err, nats.ErrConnectionClosed),
		errors.Is(err, nats.ErrConnectionReconnecting), errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrNoServers),
		errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionDraining),
		errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, jetstream.ErrJetStreamNotEnabled),
		errors.Is(err, topology.ErrMissing):
		p = newProblem(http.StatusServiceUnavailable, "broker_unavailable", "The broker did not answer in time. Try again.")
	case errors.As(err, &api) && api.Code == http.StatusServiceUnavailable:
		p = newProblem(http.StatusServiceUnavailable, "broker_unavailable", "The broker cannot serve this now (%s). Try again.", api.Description)
	default:
		return internal(), true
	}
	p.retryAfter = 1
	return p, !errors.Is(err, context.Canceled)
}
