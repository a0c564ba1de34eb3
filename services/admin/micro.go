package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"millrace/shared/process"
)

// Bounds of the door for NATS requests.
const (
	// soon is how long the next request of an endpoint waits for the one before. What is answered within it shows in
	// the framework's statistics as it was; what takes longer goes on beside those that follow, and shows as this long.
	soon = 2 * time.Millisecond
	// maxInHand is how many requests are answered at a time, over all endpoints. More wait with the client library.
	maxInHand = 256
)

// requestDoor answers NATS requests on <prefix>.api.<resource>.<verb>. Every admin has one; the broker gives each
// request to one of them.
type requestDoor struct {
	admin  *Admin
	conn   *nats.Conn
	svc    micro.Service
	ctx    context.Context // of all requests
	cancel context.CancelFunc
	slots  chan struct{}
	inHand sync.WaitGroup
}

// openRequestDoor subscribes. The door has a connection of its own, which close ends.
func (a *Admin) openRequestDoor(ctx context.Context) (_ *requestDoor, err error) {
	d := &requestDoor{admin: a, slots: make(chan struct{}, maxInHand)}
	if d.conn, err = a.env.Connect("admin-api"); err != nil {
		return nil, err
	}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			d.cancel()
			d.conn.Close()
		}
	}()
	d.svc, err = micro.AddService(d.conn, micro.Config{
		Name:        a.bus.Prefix,
		Version:     semver(process.Version()),
		Description: "Millrace: what HTTP answers under " + a.cfg.BasePath + ", as requests with one JSON object",
		QueueGroup:  "admin",
	})
	if err != nil {
		return nil, fmt.Errorf("announce the NATS service: %w", err)
	}
	group := d.svc.AddGroup(a.bus.Subject("api"))
	for _, o := range a.offers {
		metadata, err := a.describe(o)
		if err != nil {
			return nil, err
		}
		err = group.AddEndpoint(strings.ReplaceAll(o.subject, ".", "-"), d.handler(o),
			micro.WithEndpointSubject(o.subject), micro.WithEndpointMetadata(metadata))
		if err != nil {
			return nil, fmt.Errorf("add endpoint %s: %w", o.subject, err)
		}
	}
	if err := d.conn.Flush(); err != nil {
		return nil, fmt.Errorf("announce the NATS service: %w", err)
	}
	return d, nil
}

// close takes no more requests, waits for those in hand up to shutdownTimeout, and returns when the connection is
// closed.
func (d *requestDoor) close() {
	_ = d.svc.Stop() // fails when the connection is closed already, which is as good
	done := make(chan struct{})
	go func() {
		d.inHand.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(shutdownTimeout):
	}
	d.cancel()
	_ = d.conn.FlushTimeout(time.Second)
	d.conn.Close()
}

func (d *requestDoor) handler(o offer) micro.HandlerFunc {
	return func(req micro.Request) {
		d.slots <- struct{}{}
		answered := make(chan *answer, 1)
		d.inHand.Go(func() {
			defer func() { <-d.slots }()
			answered <- d.fitting(d.admin.call(d.ctx, o, req.Data(), http.Header(req.Headers()), d.limit()))
		})
		timer := time.NewTimer(soon)
		defer timer.Stop()
		select {
		case w := <-answered:
			d.log(o, respond(req, w))
		case <-timer.C:
			// By hand: what the framework's Respond notes in the request is read when this function returns.
			reply := req.Reply()
			d.inHand.Go(func() { d.log(o, d.send(reply, <-answered)) })
		}
	}
}

func (d *requestDoor) log(o offer, err error) {
	if err != nil { // nobody to answer to, or the connection is going down
		d.admin.log.Debug("answer to a NATS request not sent", "endpoint", o.subject, "error", err)
	}
}

func respond(req micro.Request, w *answer) error {
	if w.failed() {
		code, text := microError(w)
		return req.Error(code, text, w.body.Bytes(), micro.WithHeaders(headersOf(w)))
	}
	return req.Respond(w.body.Bytes(), micro.WithHeaders(headersOf(w)))
}

func (d *requestDoor) send(reply string, w *answer) error {
	m := &nats.Msg{Subject: reply, Header: nats.Header(headersOf(w)), Data: w.body.Bytes()}
	if w.failed() {
		code, text := microError(w)
		m.Header.Set(micro.ErrorCodeHeader, code)
		m.Header.Set(micro.ErrorHeader, text)
	}
	return d.conn.PublishMsg(m)
}

// microError is the status of an answer, and in one line what its envelope says.
func microError(w *answer) (code, text string) {
	var e envelope
	_ = json.Unmarshal(w.body.Bytes(), &e) // every error of ours is one
	text = strings.Join(strings.Fields(e.Error.Code+": "+e.Error.Message), " ")
	return strconv.Itoa(w.status), text
}

// headersOf are the headers of an answer that say something on NATS too.
func headersOf(w *answer) micro.Headers {
	h := make(micro.Headers)
	for _, name := range []string{"Content-Type", "X-Request-ID", "Retry-After", "Idempotent-Replayed"} {
		if v := w.header.Values(name); len(v) > 0 {
			h[name] = v
		}
	}
	return h
}

// room is what of the broker's limit is left to headers, in bytes.
const room = 8 << 10

// limit is how many bytes of an answer the broker carries.
func (d *requestDoor) limit() int64 { return d.conn.MaxPayload() - room }

// fitting is the answer, or an error in its place when the broker would not carry it.
func (d *requestDoor) fitting(w *answer) *answer {
	limit := d.limit()
	if w.size <= limit {
		return w
	}
	p := newProblem(http.StatusRequestEntityTooLarge, "answer_too_large",
		"The answer has %d bytes, and a NATS message at most %d: ask for less, or over HTTP.", w.size, limit).with("limit_bytes", limit)
	small := &answer{status: p.status, header: w.header}
	_ = jsonFormat.Marshal(&small.body, p.envelope(w.header.Get("X-Request-ID")))
	return small
}

var semantic = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+)?$`)

// semver is the version as the framework wants it. A build without a tag has none.
func semver(v string) string {
	if v = strings.TrimPrefix(v, "v"); semantic.MatchString(v) {
		return v
	}
	return "0.0.0"
}

// describe is what `nats micro info` shows of an endpoint: what HTTP calls it, and its schemas, each complete in itself.
func (a *Admin) describe(o offer) (map[string]string, error) {
	components := a.api.OpenAPI().Components.Schemas
	properties, required := make(map[string]*huma.Schema), make([]string, 0)
	if o.body != nil {
		for name, p := range o.body.Properties {
			properties[name] = p
		}
		required = append(required, o.body.Required...)
	}
	for _, p := range o.doc.Parameters {
		if p.In != "path" && p.In != "query" {
			continue
		}
		s := *p.Schema
		s.Description = cmp.Or(s.Description, p.Description)
		properties[p.Name] = &s
		if p.Required && !slices.Contains(required, p.Name) {
			required = append(required, p.Name)
		}
	}
	request, err := standalone(components, &huma.Schema{Type: "object", Properties: properties, Required: required})
	if err != nil {
		return nil, err
	}
	about := map[string]string{
		"summary":        o.doc.Summary,
		"http":           o.method + " " + a.cfg.BasePath + o.path,
		"request_schema": request,
	}
	if s := answerOf(o.doc); s != nil {
		about["response_schema"], err = standalone(components, s)
	}
	return about, err
}

const componentRef, ownRef = "#/components/schemas/", "#/$defs/"

// standalone is a schema as JSON, with what it refers to inside of it.
func standalone(components huma.Registry, s *huma.Schema) (string, error) {
	defs := make(map[string]any)
	var include func(v any) error
	include = func(v any) error {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				if err := include(e); err != nil {
					return err
				}
			}
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				name := strings.TrimPrefix(ref, componentRef)
				v["$ref"] = ownRef + name
				if defs[name] != nil {
					return nil
				}
				def, err := plain(components.SchemaFromRef(ref))
				if err != nil {
					return err
				}
				defs[name] = def
				return include(def)
			}
			for _, e := range v {
				if err := include(e); err != nil {
					return err
				}
			}
		}
		return nil
	}
	root, err := plain(s)
	if err != nil {
		return "", err
	}
	if err := include(root); err != nil {
		return "", err
	}
	if len(defs) > 0 {
		root["$defs"] = defs
	}
	out, err := json.Marshal(root)
	return string(out), err
}

// plain is a schema as what its JSON says.
func plain(s *huma.Schema) (map[string]any, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	v := make(map[string]any)
	return v, json.Unmarshal(data, &v)
}
