package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// offer is one operation of the OpenAPI document as NATS sees it: a subject, and members of one JSON object in
// place of path, query and body.
type offer struct {
	subject string // <resource>.<verb>
	method  string
	path    string // below the base path
	doc     *huma.Operation
	body    *huma.Schema // nil: takes none
	form    bool         // the body is multipart
	writes  bool         // it needs a key that may do more than look
	secret  bool         // it takes or answers one
}

const jsonType, formType = "application/json", "multipart/form-data"

// offers derives what NATS offers from the operations that are registered: all that answer JSON, and take JSON or
// a form if anything. Streams and files are for HTTP, and raw notifications have a subject of their own. It fails when
// two would have the same subject.
func offers(doc *huma.OpenAPI) ([]offer, error) {
	var found []offer
	taken := make(map[string]string)
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		item := doc.Paths[path]
		for _, m := range []struct {
			method string
			doc    *huma.Operation
		}{
			{http.MethodGet, item.Get}, {http.MethodPost, item.Post}, {http.MethodPut, item.Put},
			{http.MethodPatch, item.Patch}, {http.MethodDelete, item.Delete},
		} {
			if m.doc == nil || !answersJSON(m.doc) {
				continue
			}
			o := offer{subject: subjectOf(m.method, path), method: m.method, path: path, doc: m.doc}
			if b := m.doc.RequestBody; b != nil {
				content := b.Content[jsonType]
				if content == nil {
					content, o.form = b.Content[formType], true
				}
				if content == nil {
					continue
				}
				if o.body = content.Schema; o.body.Ref != "" {
					o.body = doc.Components.Schemas.SchemaFromRef(o.body.Ref)
				}
			}
			if need, ok := m.doc.Metadata[scopeOf].(scope); ok {
				o.writes = need == write || need == admin
			}
			o.secret = hasSecrets(membersIn(doc.Components.Schemas, o.body, "", 0)) ||
				hasSecrets(membersIn(doc.Components.Schemas, answerOf(m.doc), "", 0))
			name := m.method + " " + path
			if other := taken[o.subject]; other != "" {
				return nil, fmt.Errorf("%s and %s would both be %s on NATS: name one of them in services/admin/subject.go", other, name, o.subject)
			}
			taken[o.subject] = name
			found = append(found, o)
		}
	}
	return found, nil
}

// answerOf is the schema of success, nil if there is no body.
func answerOf(doc *huma.Operation) *huma.Schema {
	for status, r := range doc.Responses {
		if c := r.Content[jsonType]; c != nil && strings.HasPrefix(status, "2") {
			return c.Schema
		}
	}
	return nil
}

func answersJSON(doc *huma.Operation) bool {
	for status, r := range doc.Responses {
		if !strings.HasPrefix(status, "2") || status == strconv.Itoa(http.StatusNoContent) {
			continue
		}
		if len(r.Content) != 1 || r.Content[jsonType] == nil { // a stream, or a file that may be JSON or not
			return false
		}
	}
	return true
}

// answer is what an operation answered, kept in memory. It is the http.ResponseWriter of a call, and of an operation
// whose answer is kept before it is sent.
type answer struct {
	status int
	header http.Header
	body   bytes.Buffer
	most   int64 // bytes of the body that are kept; 0: all
	size   int64 // of the body
}

func (w *answer) Header() http.Header { return w.header }

func (w *answer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *answer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.size += int64(len(p)); w.most > 0 && w.size > w.most {
		return len(p), nil // to be counted
	}
	return w.body.Write(p)
}

func (w *answer) failed() bool { return w.status >= http.StatusBadRequest }

// passedOn are the headers of a message that a request gets too.
var passedOn = []string{"Idempotency-Key", "Traceparent", "Tracestate"}

// call has an operation carried out by the handlers behind HTTP, the whole chain of them, with payload's members as
// parameters and body. The caller is the operator: NATS has let the message through, which is this door's
// authorization. It never fails; what goes wrong is an answer too. Of a body no more than most bytes are kept, 0: all.
func (a *Admin) call(ctx context.Context, o offer, payload []byte, header http.Header, most int64) *answer {
	w := &answer{header: make(http.Header), most: most}
	r, err := a.requestOf(asOperator(ctx), o, payload)
	if err != nil {
		a.observed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Pattern = o.method + " " + a.cfg.BasePath + o.path
			a.fail(w, r, err)
		})).ServeHTTP(w, r)
		return w
	}
	for _, name := range passedOn {
		if v := header.Get(name); v != "" {
			r.Header.Set(name, v)
		}
	}
	if a.brokeOff(w, r) {
		id := w.header.Get("X-Request-ID")
		w = &answer{header: w.header}
		writeProblem(&recorder{ResponseWriter: w}, r.WithContext(context.WithValue(ctx, askedKey{}, &asked{id: id})), internal())
	}
	return w
}

// brokeOff has a request answered. It reports whether that ended in the middle of an answer.
func (a *Admin) brokeOff(w *answer, r *http.Request) (broke bool) {
	defer func() {
		if cause := recover(); cause != nil {
			if broke = aborted(cause); !broke {
				panic(cause)
			}
		}
	}()
	a.handler.ServeHTTP(w, r)
	return false
}

// aborted reports whether a handler panicked to end an answer that it could not finish.
func aborted(cause any) bool {
	err, ok := cause.(error)
	return ok && errors.Is(err, http.ErrAbortHandler)
}

// requestOf makes the request that an HTTP client would have sent. With an error it is one without parameters.
func (a *Admin) requestOf(ctx context.Context, o offer, payload []byte) (*http.Request, error) {
	plain := func(path, contentType string, body []byte) *http.Request {
		r := &http.Request{
			Method: o.method, URL: &url.URL{Path: path}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: make(http.Header), Body: http.NoBody, Host: "nats", RemoteAddr: "nats",
		}
		if body != nil {
			r.Body, r.ContentLength = readCloser{bytes.NewReader(body)}, int64(len(body))
			r.Header.Set("Content-Type", contentType)
		}
		return r.WithContext(ctx)
	}
	nowhere := plain(a.cfg.BasePath+o.path, "", nil)
	members := make(map[string]json.RawMessage)
	if len(bytes.TrimSpace(payload)) > 0 {
		var err error
		if members, err = membersOf(payload); err != nil {
			return nowhere, err
		}
	}
	path, query, err := o.parameters(members)
	if err != nil {
		return nowhere, err
	}
	var contentType string
	var body []byte
	switch {
	case o.form:
		body, contentType, err = formOf(o.body, members)
	case o.body != nil:
		contentType = jsonType
		body, err = json.Marshal(members)
	}
	if err != nil {
		return nowhere, err
	}
	r := plain("", contentType, body)
	if r.URL, err = url.Parse(a.cfg.BasePath + path); err != nil {
		return nowhere, err
	}
	r.URL.RawQuery = query.Encode()
	return r, nil
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

// parameters takes what belongs into path and query out of members. A member that the body has as well stays.
func (o offer) parameters(members map[string]json.RawMessage) (path string, query url.Values, err error) {
	var wrong fieldErrors
	path, query = o.path, make(url.Values)
	for _, p := range o.doc.Parameters {
		value, given := members[p.Name]
		given = given && string(value) != "null"
		switch p.In {
		case "path":
			var s string
			switch {
			case !given:
				wrong.add(p.Name, "is required")
			case json.Unmarshal(value, &s) != nil:
				wrong.add(p.Name, "must be a string")
			case s == "":
				wrong.add(p.Name, "must have at least 1 characters")
			}
			path = strings.ReplaceAll(path, "{"+p.Name+"}", url.PathEscape(s))
		case "query":
			if !given {
				break
			}
			values, ok := texts(value)
			if !ok {
				wrong.add(p.Name, "must be a string, a number, a boolean or a list of them")
				break
			}
			if p.Explode == nil || !*p.Explode {
				values = []string{strings.Join(values, ",")}
			}
			query[p.Name] = values
		default:
			continue
		}
		if o.body == nil || o.body.Properties[p.Name] == nil {
			delete(members, p.Name)
		}
	}
	return path, query, wrong.err()
}

// texts spells a JSON scalar, or each of a list, as a query does.
func texts(value json.RawMessage) ([]string, bool) {
	var list []json.RawMessage
	if json.Unmarshal(value, &list) != nil {
		list = []json.RawMessage{value}
	}
	out := make([]string, 0, len(list))
	for _, v := range list {
		var s string
		switch {
		case json.Unmarshal(v, &s) == nil:
		case v[0] == '{' || v[0] == '[':
			return nil, false
		default:
			s = string(v)
		}
		out = append(out, s)
	}
	return out, true
}

// formOf makes a multipart body. A list becomes a part per value. A file is given as a string or, if it holds JSON, as
// that JSON.
func formOf(schema *huma.Schema, members map[string]json.RawMessage) (body []byte, contentType string, err error) {
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(members)) {
		value := members[name]
		if string(value) == "null" {
			continue
		}
		if p := schema.Properties[name]; p != nil && p.Format == "binary" {
			var s string
			if json.Unmarshal(value, &s) != nil {
				s = string(value)
			}
			part, err := form.CreateFormFile(name, name)
			if err != nil {
				return nil, "", err
			}
			if _, err := part.Write([]byte(s)); err != nil {
				return nil, "", err
			}
			continue
		}
		values, ok := texts(value)
		if !ok {
			return nil, "", invalid(name, "must be a string, a number, a boolean or a list of them")
		}
		for _, v := range values {
			if err := form.WriteField(name, v); err != nil {
				return nil, "", err
			}
		}
	}
	if err := form.Close(); err != nil {
		return nil, "", err
	}
	return b.Bytes(), form.FormDataContentType(), nil
}

type operatorKey struct{}

// asOperator marks a request that NATS has let through: its own accounts and permissions say who may publish on the
// subjects of the API, and whoever may has the scope admin.
func asOperator(ctx context.Context) context.Context {
	return context.WithValue(ctx, operatorKey{}, true)
}

func isOperator(ctx context.Context) bool { return ctx.Value(operatorKey{}) != nil }
