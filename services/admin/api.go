package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"millrace/shared/event"
	"millrace/shared/store"
)

// owner is the one account of a self-hosted deployment.
const owner = "usr_1"

// route is what the table of routes says of one operation.
type route struct {
	method  string
	path    string
	scope   scope
	status  int // of success; 0: 200
	tag     string
	summary string
	about   string
	timeout time.Duration // 0: requestTimeout
	keep    string        // the one member of the body for which null is a value; elsewhere null means absent
	raw     int64         // the body is not JSON, and at most so many bytes; 0: JSON of at most Config.MaxBody
	content *huma.RequestBody
	auth    func(*http.Request) error // in place of authorize; scope is then for the document
	answer  reflect.Type              // of an answer that is written piece by piece, for the document
	repeats bool                      // the handler itself answers repetitions of an idempotency key, see operationOf
}

// requestTimeout bounds what a request may take. Clients wait 60 seconds and more; a store that is full answers
// nothing at all, and then they should hear so.
const requestTimeout = 20 * time.Second

// scopeOf is where an operation's metadata has its scope.
const scopeOf = "scope"

// none is the input of an operation without parameters or body.
type none struct{}

// body is an output.
type body[T any] struct {
	Body T `nullable:"false"`
}

// message is the answer where there is nothing else to say: clients want an object.
type message struct {
	Message string `json:"message"`
}

func (a *Admin) routes() http.Handler {
	a.router = &router{
		notFound: func(w http.ResponseWriter, r *http.Request) {
			writeProblem(w, r, newProblem(http.StatusNotFound, "route_not_found", "There is no %s here.", r.URL.Path))
		},
		notAllowed: func(w http.ResponseWriter, r *http.Request) {
			writeProblem(w, r, newProblem(http.StatusMethodNotAllowed, "method_not_allowed", "%s is not allowed here, only %s.", r.Method, w.Header().Get("Allow")))
		},
	}
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			Info: &huma.Info{
				Title:   "Millrace",
				Version: "2",
				Description: "A bucket as a pipeline. Errors have one envelope; timestamps are RFC 3339 in UTC; " +
					"null in a request means absent, and unknown members are ignored.",
			},
			Components: &huma.Components{SecuritySchemes: map[string]*huma.SecurityScheme{
				"apiKey": {Type: "apiKey", In: "header", Name: "X-API-Key"},
				"bearer": {Type: "http", Scheme: "bearer"},
			}},
		},
		Formats:      map[string]huma.Format{"application/json": jsonFormat, "json": jsonFormat},
		Transformers: []huma.Transformer{wrapProblem},
	}
	config.AllowAdditionalPropertiesByDefault = true
	a.api = humago.NewWithPrefix(a.router, a.cfg.BasePath, config)

	a.connectorRoutes()
	a.cloudRoutes()
	a.indexRoutes()
	a.promptRoutes()
	a.promptEditRoutes()
	a.jobRoutes()
	a.fileRoutes()
	a.automationRoutes()
	a.windowRoutes()
	a.runRoutes()
	a.runResultRoutes()
	a.executeRoutes()
	a.videoRoutes()
	a.mediaRoutes()
	a.deletionRoutes()
	a.workflowRoutes()
	a.exportRoutes()
	a.exportAutomationRoutes()
	a.webhookRoutes()
	a.notificationRoutes()
	a.deadRoutes()
	a.eventRoutes()
	a.explainRoutes()
	a.accountRoutes()
	a.keyRoutes()
	a.outsideRoutes()

	a.router.HandleFunc("GET /openapi.json", a.serveOpenAPI())
	if a.deps.Ops != nil {
		for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
			a.router.HandleFunc("GET "+path, a.deps.Ops.ServeHTTP)
		}
	}
	return a.observed(a.router)
}

// jsonFormat is how bodies are read and written. Nothing is escaped for HTML: what clients compare and sign are the
// characters themselves.
var jsonFormat = huma.Format{
	Marshal: func(w io.Writer, v any) error {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	},
	Unmarshal: json.Unmarshal,
}

// unescaped undoes in stored JSON what Go escapes for HTML, so that clients get the characters that were given.
func unescaped(raw json.RawMessage) json.RawMessage {
	if !bytes.Contains(raw, []byte(`\u00`)) {
		return raw
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' || i+1 == len(raw) {
			out = append(out, raw[i])
			continue
		}
		if i+6 <= len(raw) {
			if c, ok := htmlEscapes[string(raw[i:i+6])]; ok {
				out = append(out, c)
				i += 5
				continue
			}
		}
		out = append(out, raw[i], raw[i+1]) // also a backslash that stands for itself, so that what follows it stays
		i++
	}
	return out
}

var htmlEscapes = map[string]byte{`\u003c`: '<', `\u003e`: '>', `\u0026`: '&'}

// wrapProblem puts errors into the envelope, huma's own included.
func wrapProblem(ctx huma.Context, _ string, v any) (any, error) {
	switch e := v.(type) {
	case *problemError:
		return e.envelope(requestID(ctx.Context())), nil
	case *huma.ErrorModel:
		return fromHuma(e).envelope(requestID(ctx.Context())), nil
	}
	return v, nil
}

// register adds one operation: first the key, then the body, then what huma validates, then the handler.
func register[I, O any](a *Admin, rt route, handle func(context.Context, *I) (*O, error)) {
	schemas := a.api.OpenAPI().Components.Schemas
	op := huma.Operation{
		Method:        rt.method,
		Path:          rt.path,
		OperationID:   operationID(rt),
		DefaultStatus: rt.status,
		Tags:          []string{rt.tag},
		Summary:       rt.summary,
		Description:   strings.TrimSpace(rt.about + "\n\nScope: " + rt.scope.String() + "."),
		RequestBody:   rt.content,
		Responses: map[string]*huma.Response{"default": {
			Description: "An error",
			Content: map[string]*huma.MediaType{"application/json": {
				Schema: schemas.Schema(reflect.TypeFor[envelope](), true, "Error"),
			}},
		}},
		Security:         []map[string][]string{{"apiKey": {}}, {"bearer": {}}},
		MaxBodyBytes:     -1, // bounded by readBody
		BodyReadTimeout:  -1, // as well
		SkipValidateBody: rt.raw > 0,
		Metadata:         map[string]any{scopeOf: rt.scope},
	}
	if op.DefaultStatus == 0 {
		op.DefaultStatus = http.StatusOK
	}
	if rt.scope == public {
		op.Security = nil
	}
	if rt.answer != nil {
		op.Responses[strconv.Itoa(op.DefaultStatus)] = &huma.Response{
			Description: http.StatusText(op.DefaultStatus),
			Content:     map[string]*huma.MediaType{jsonType: {Schema: schemas.Schema(rt.answer, true, "")}},
		}
	}
	inType := reflect.TypeFor[I]()
	_, hasBody := inType.FieldByName("Body")
	_, hasRaw := inType.FieldByName("RawBody")
	op.Middlewares = huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		var err error
		if rt.auth != nil {
			err = rt.auth(r)
		} else {
			err = a.authorize(r, rt.scope)
		}
		if err == nil && (hasBody || hasRaw) {
			err = a.readBody(w, r, rt)
		}
		var op operation
		keyed := false
		if err == nil {
			op, keyed, err = operationIn(r, rt, hasBody || hasRaw)
		}
		switch {
		case err != nil:
			a.fail(w, r, err)
		case keyed:
			a.once(ctx, op, rt, next)
		default:
			next(ctx)
		}
	}}
	timeout := rt.timeout
	if timeout == 0 {
		timeout = requestTimeout
	}
	huma.Register(a.api, op, func(ctx context.Context, in *I) (*O, error) {
		if rt.scope == write || rt.scope == admin {
			// What changes several things goes through with all of them, also when the client hangs up.
			ctx = context.WithoutCancel(ctx)
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		out, err := handle(ctx, in)
		if err != nil {
			return nil, a.explained(ctx, err)
		}
		return out, nil
	})
}

var notWord = regexp.MustCompile(`[^a-z0-9]+`)

func operationID(rt route) string {
	return strings.Trim(notWord.ReplaceAllString(strings.ToLower(rt.method+rt.path), "-"), "-")
}

// explained logs what is our fault and returns what the client sees.
func (a *Admin) explained(ctx context.Context, err error) *problemError {
	p, ours := explain(err)
	if ours {
		a.log.Error("request failed", "request_id", requestID(ctx), "status", p.status, "error", err)
	}
	return p
}

func (a *Admin) fail(w http.ResponseWriter, r *http.Request, err error) {
	writeProblem(w, r, a.explained(r.Context(), err))
}

func writeProblem(w http.ResponseWriter, r *http.Request, p *problemError) {
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(p.status)
	_ = jsonFormat.Marshal(w, p.envelope(requestID(r.Context()))) // a client that has gone away does not mind
}

var (
	member = regexp.MustCompile(`^[a-z0-9_]+$`)
	whole  = regexp.MustCompile(`^-?\d+\.0+$`)
)

// readBody replaces the body of a JSON request by what huma is to see: an object, {} if there was nothing, without
// nulls. Go would take members whose case differs for ours, after validation had taken them for unknown; they go too.
func (a *Admin) readBody(w http.ResponseWriter, r *http.Request, rt route) error {
	limit := a.cfg.MaxBody
	if rt.raw > 0 {
		limit = rt.raw
	}
	data, err := readAll(w, r, limit)
	if err != nil {
		return err
	}
	if rt.raw > 0 && len(data) == 0 {
		return newProblem(http.StatusBadRequest, "request_malformed", "The body is empty.")
	}
	if rt.raw == 0 {
		if data, err = plainObject(data, r.Header.Get("Content-Type"), rt.keep); err != nil {
			return err
		}
		r.Header.Set("Content-Type", "application/json")
	}
	r.Body = io.NopCloser(bytes.NewReader(data))
	return nil
}

func plainObject(data []byte, contentType, keep string) ([]byte, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return []byte("{}"), nil
	}
	if t, _, _ := mime.ParseMediaType(contentType); contentType != "" && t != "application/json" && !strings.HasSuffix(t, "+json") {
		return nil, newProblem(http.StatusBadRequest, "request_malformed", "The body is %q: send application/json.", contentType)
	}
	members, err := membersOf(data)
	if err != nil {
		return nil, err
	}
	for name, value := range members {
		switch {
		case !member.MatchString(name) || (name != keep && string(value) == "null"):
			delete(members, name)
		case name != keep && whole.Match(value): // 5.0 is an integer in JSON, and none for Go
			members[name] = value[:bytes.IndexByte(value, '.')]
		}
	}
	return json.Marshal(members)
}

// membersOf reads a JSON object; null is an empty one.
func membersOf(data []byte) (map[string]json.RawMessage, error) {
	members := make(map[string]json.RawMessage)
	if err := json.Unmarshal(data, &members); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, newProblem(http.StatusBadRequest, "request_malformed", "The body is not JSON: %s, at byte %d.", syntax, syntax.Offset)
		}
		return nil, newProblem(http.StatusBadRequest, "request_malformed", "The body must be a JSON object.")
	}
	if members == nil {
		members = make(map[string]json.RawMessage)
	}
	return members, nil
}

// maxUnwanted is how much of a body is read behind its limit, only to be thrown away. A client that is still writing when
// the connection is closed is reset, and may lose the answer that says why; the server by itself takes 256 KiB.
const maxUnwanted = 16 << 20

// readAll reads a body of at most limit bytes within bodyTimeout. Its errors are for the client.
func readAll(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // not every writer has one
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) && r.ContentLength <= limit+maxUnwanted {
		_, _ = io.CopyN(io.Discard, r.Body, maxUnwanted) // the answer is the same, however that ends
	}
	_ = control.SetReadDeadline(time.Time{})
	switch {
	case tooLarge != nil:
		return nil, newProblem(http.StatusRequestEntityTooLarge, "request_too_large", "The body may have at most %d bytes.", limit).
			with("limit_bytes", limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, newProblem(http.StatusRequestTimeout, "request_timeout", "The body did not arrive within %s.", bodyTimeout)
	case err != nil:
		return nil, newProblem(http.StatusBadRequest, "request_malformed", "The body could not be read to its end.")
	}
	return data, nil
}

// serveOpenAPI renders the document once, for the first who asks.
func (a *Admin) serveOpenAPI() http.HandlerFunc {
	schemas := a.api.OpenAPI().Components.Schemas.Map()
	for _, unused := range []string{"ErrorModel", "ErrorDetail"} { // huma documents its own error, which nobody gets
		delete(schemas, unused)
	}
	rendered := sync.OnceValue(func() []byte {
		doc, err := json.Marshal(a.api.OpenAPI())
		if err != nil {
			panic(err) // plain data
		}
		return doc
	})
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(rendered())
	}
}

// asked is what is known of a request while it is answered.
type asked struct {
	id  string
	key string // hash of the API key, once that has been found good
}

type askedKey struct{}

func requestID(ctx context.Context) string {
	if asked, ok := ctx.Value(askedKey{}).(*asked); ok {
		return asked.id
	}
	return ""
}

// observed gives each request an id, catches panics, and counts and logs the answer.
func (a *Admin) observed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id := event.NewID("req")
		r = r.WithContext(context.WithValue(r.Context(), askedKey{}, &asked{id: id}))
		rec := &recorder{ResponseWriter: w}
		rec.Header().Set("X-Request-ID", id)
		rec.Header().Set("X-Content-Type-Options", "nosniff")
		rec.Header().Set("Cache-Control", "no-store")
		defer func() {
			cause := recover()
			if aborted(cause) {
				defer panic(cause) // which closes the connection
			} else if cause != nil {
				a.caught(rec, r, cause)
			}
			took := time.Since(start)
			a.metrics.request(r, rec.status, took)
			a.log.Debug("request", "request_id", id, "method", r.Method, "route", r.Pattern, "status", rec.status,
				"took", took, "remote", r.RemoteAddr)
		}()
		next.ServeHTTP(rec, r)
	})
}

func (a *Admin) caught(rec *recorder, r *http.Request, cause any) {
	if r.Context().Err() != nil { // the client went away while its answer was being written
		return
	}
	a.log.Error("panic while answering", "request_id", requestID(r.Context()), "route", r.Pattern, "panic", fmt.Sprint(cause), "stack", string(debug.Stack()))
	if rec.status == 0 {
		writeProblem(rec, r, internal())
	}
}

// recorder remembers the status, and spells the content type of all JSON the same.
type recorder struct {
	http.ResponseWriter
	status int
}

func (w *recorder) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	w.status = status
	if w.Header().Get("Content-Disposition") != "" { // a file is what it is
		w.ResponseWriter.WriteHeader(status)
		return
	}
	switch w.Header().Get("Content-Type") {
	case "application/json", "application/problem+json":
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// stamp spells a time as all answers do.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// stampOrNull is null for no time.
func stampOrNull(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := stamp(t)
	return &s
}

// orNull is null for the empty string.
func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// value is *p, or def for nil.
func value[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

// lookUp returns a record, or the 404 of its kind.
func lookUp[T any](ctx context.Context, reg *store.Register[T], thing, id string) (T, error) {
	var none T
	if !event.IsToken(id) { // it could be a wildcard on the bus
		return none, notFound(thing, id)
	}
	v, _, err := reg.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return none, notFound(thing, id)
	}
	return v, err
}

// all returns every record.
func all[T any](ctx context.Context, reg *store.Register[T]) ([]T, error) {
	found := make([]T, 0, 16)
	at := make(map[string]int) // one that changes meanwhile comes twice
	for e, err := range reg.Entries(ctx) {
		if err != nil {
			return nil, err
		}
		if i, twice := at[e.Key]; twice {
			found[i] = *e.Value
			continue
		}
		at[e.Key] = len(found)
		found = append(found, *e.Value)
	}
	return found, nil
}
