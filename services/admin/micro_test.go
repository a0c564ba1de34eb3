package admin_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"millrace/services/admin/strict"
	"millrace/shared/service/servicetest"
)

// natsDoor is a client on the door for requests.
type natsDoor struct {
	t        testing.TB
	nc       *nats.Conn
	info     micro.Info
	subjects map[string]string // by "METHOD /path" below the base
}

func (w *world) natsDoor() *natsDoor {
	w.t.Helper()
	servicetest.Run(w.t, w.admin)
	nc, err := w.env.Connect("client")
	must(w.t, err)
	w.t.Cleanup(nc.Close)
	d := &natsDoor{t: w.t, nc: nc, subjects: make(map[string]string)}
	m, err := nc.Request("$SRV.INFO.t", nil, 10*time.Second) // as `nats micro info t` asks
	must(w.t, err)
	must(w.t, json.Unmarshal(m.Data, &d.info))
	if half := int(nc.MaxPayload() / 2); len(m.Data) > half {
		w.t.Errorf("nats micro info has %d bytes, which leaves no room to grow in a message", len(m.Data))
	}
	for _, e := range d.info.Endpoints {
		method, path, _ := strings.Cut(e.Metadata["http"], " "+base)
		if other := d.subjects[method+" "+path]; other != "" || e.Subject == "" {
			w.t.Errorf("%s is %s and %s", e.Metadata["http"], other, e.Subject)
		}
		d.subjects[method+" "+path] = e.Subject
	}
	return d
}

// send makes a request and returns its answer, as do does over HTTP.
func (d *natsDoor) send(subject string, body any, header ...string) answer {
	d.t.Helper()
	data, ok := body.(string)
	if !ok && body != nil {
		b, err := json.Marshal(body)
		must(d.t, err)
		data = string(b)
	}
	m := &nats.Msg{Subject: subject, Data: []byte(data), Header: nats.Header{}}
	for i := 0; i < len(header); i += 2 {
		m.Header.Set(header[i], header[i+1])
	}
	r, err := d.nc.RequestMsg(m, 30*time.Second)
	if err != nil {
		d.t.Fatalf("%s: %v", subject, err)
	}
	a := answer{t: d.t, what: subject, status: http.StatusOK, header: http.Header(r.Header), raw: r.Data}
	a.header["X-Request-Id"] = a.header["X-Request-ID"]
	if code := r.Header.Get(micro.ErrorCodeHeader); code != "" {
		if _, err := fmt.Sscan(code, &a.status); err != nil {
			d.t.Errorf("%s: error code %q", subject, code)
		}
	} else if len(r.Data) == 0 {
		a.status = http.StatusNoContent
	}
	a.check()
	if text := r.Header.Get(micro.ErrorHeader); a.status >= 400 && !strings.HasPrefix(text, a.str("error", "code")+": ") {
		d.t.Errorf("%s: error header %q, body %s", subject, text, a.raw)
	}
	return a
}

// asOne puts the parameters of a path and the members of a body into one object.
func asOne(template, path string, body any) obj {
	all := obj{}
	if b, ok := body.(obj); ok {
		for k, v := range b {
			all[k] = v
		}
	}
	path, query, _ := strings.Cut(path, "?")
	var names []string
	pattern := regexp.MustCompile(`\{(\w+)\}`).ReplaceAllStringFunc(template, func(s string) string {
		names = append(names, s[1:len(s)-1])
		return `([^/]+)`
	})
	if m := regexp.MustCompile("^" + pattern + "$").FindStringSubmatch(path); m != nil {
		for i, name := range names {
			all[name], _ = url.PathUnescape(m[i+1])
		}
	}
	values, _ := url.ParseQuery(query)
	for k, v := range values {
		all[k] = v[0]
	}
	return all
}

// onlyHTTP are the routes whose answer is no JSON, or whose body is none.
var onlyHTTP = regexp.MustCompile(`^(POST /notifications/\{\w+\}|GET /events|GET /exports/\{\w+\}/download|POST /videos/upload)$`)

// TestRequestsAnswerLikeHTTP sends to each endpoint what the table of routes sends over HTTP.
func TestRequestsAnswerLikeHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	d := w.natsDoor()
	eachOperation(t, w, func(t *testing.T, name string, p probe) {
		subject := d.subjects[name]
		if subject == "" {
			if !onlyHTTP.MatchString(name) {
				t.Errorf("no endpoint for %s", name)
			}
			return
		}
		if !regexp.MustCompile(`^t\.api\.[a-z-]+\.[a-z0-9-]+$`).MatchString(subject) {
			t.Errorf("subject %s", subject)
		}
		_, template, _ := strings.Cut(name, " ")
		var body any
		if p.body != nil {
			body = p.body(f)
		}
		if p.multi { // the only one is POST /connectors/gcs
			body = obj{"name": "Archive", "bucket": "b", "gcp_project_id": "p", "scopes": []string{"import", "export"},
				"credentials_file": json.RawMessage(account(nil))}
		}
		over := p.send(w, name, p.path(f), f, request{})
		a := d.send(subject, asOne(template, p.path(f), body))
		if strings.HasPrefix(name, "DELETE ") && over.status < 300 && a.status == 404 {
			return // it is gone
		}
		if a.status >= 400 != (over.status >= 400) || a.str("error", "code") != over.str("error", "code") {
			t.Fatalf("HTTP says %d %s, NATS %d %s", over.status, over.raw, a.status, a.raw)
		}
		if method, _, _ := strings.Cut(name, " "); over.status < 300 && over.status != http.StatusNoContent {
			if err := strict.Check(method, p.path(f), a.raw); err != nil {
				t.Error(err)
			}
		}
		for _, path := range p.unknown {
			over, a := p.send(w, name, path, f, request{}), d.send(subject, asOne(template, path, body))
			if a.status != 404 || a.str("error", "code") != over.str("error", "code") {
				t.Errorf("%s: HTTP says %s, NATS %s", path, over.raw, a.raw)
			}
		}
		for _, wrong := range p.wrong {
			a := d.send(subject, asOne(template, p.path(f), wrong))
			if a.status != 422 {
				t.Errorf("%v: %s", wrong, a.raw)
			}
		}
		d.send(subject, `{"x":`).refused(400, "request_malformed")
		d.send(subject, `[]`).refused(400, "request_malformed")
	})
	for name, subject := range d.subjects {
		if _, ok := probes()[name]; !ok {
			t.Errorf("%s is no route: %s", subject, name)
		}
	}
}

func TestRequestErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	d := w.natsDoor()
	d.send("t.api.indexes.get", nil).refused(422, "validation_error", `"index_id"`, "is required")
	d.send("t.api.indexes.get", obj{"index_id": 5}).refused(422, "validation_error", "must be a string")
	d.send("t.api.indexes.get", obj{"index_id": ""}).refused(422, "validation_error", "index_id")
	d.send("t.api.indexes.get", obj{"index_id": nil}).refused(422, "validation_error", "is required")
	d.send("t.api.indexes.get", obj{"index_id": "../connectors"}).refused(404, "resource_index_not_found")
	d.send("t.api.indexes.videos", obj{"index_id": f.index, "limit": "many"}).refused(422, "validation_error", "limit")
	d.send("t.api.indexes.videos", obj{"index_id": f.index, "limit": obj{}}).refused(422, "validation_error", "limit")
	d.send("t.api.indexes.videos", obj{"index_id": f.index, "limit": 1, "cursor": nil, "unknown": obj{}}).want(200)
	d.send("t.api.connectors.create-gcs", obj{"name": obj{}}).refused(422, "validation_error", "name")
	d.send("t.api.connectors.create-gcs", obj{"name": "n", "bucket": "b", "gcp_project_id": "p", "credentials_file": string(account(nil))}).want(200)
	d.send("t.api.auth.validate", nil).want(204)
	// The one member for which null is a value.
	put := obj{"index_id": f.index, "connector_id": f.connector, "debounce_interval": "1h", "prompt_preset": nil}
	d.send("t.api.automations.put", put).want(200)
	delete(put, "prompt_preset")
	d.send("t.api.automations.put", put).refused(422, "validation_error", "prompt_preset")

	// A broker that carries a megabyte carries no longer answer.
	prompt := obj{"name": "abc", "prompt_text": strings.Repeat("x", 5000), "json_schema": obj{"type": "object"}}
	for range 250 {
		w.do("POST", "/prompts", prompt).want(201)
	}
	d.send("t.api.prompts.list", nil).refused(413, "answer_too_large", "over HTTP")
	w.do("GET", "/prompts", nil).want(200)
}

// A request that waits for a storage does not keep others of its endpoint waiting.
func TestSlowRequestsStandAside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	d := w.natsDoor()
	w.sources.mu.Lock()
	inbox, err := d.nc.SubscribeSync(d.nc.NewInbox())
	must(t, err)
	const slow = 5
	for range slow {
		must(t, d.nc.PublishRequest("t.api.connectors.test", inbox.Subject, []byte(`{"connector_id":"`+f.connector+`"}`)))
	}
	d.send("t.api.connectors.test", obj{"connector_id": gone}).refused(404, "resource_connector_not_found")
	if n, _, _ := inbox.Pending(); n > 0 {
		t.Fatal("the storage answered although it was held")
	}
	w.sources.mu.Unlock()
	for range slow {
		m, err := inbox.NextMsg(30 * time.Second)
		must(t, err)
		if !strings.Contains(string(m.Data), `"success":true`) || m.Header.Get(micro.ErrorCodeHeader) != "" {
			t.Errorf("%v %s", m.Header, m.Data)
		}
	}
	servicetest.Eventually(t, "all of them are counted", func() error { // which is done after the answer
		m, err := d.nc.Request("$SRV.STATS.t", nil, 10*time.Second)
		if err != nil {
			return err
		}
		var stats micro.Stats
		if err := json.Unmarshal(m.Data, &stats); err != nil {
			return err
		}
		for _, e := range stats.Endpoints {
			if e.Subject == "t.api.connectors.test" && e.NumRequests != slow+1 {
				return fmt.Errorf("%d requests", e.NumRequests)
			}
		}
		return nil
	})
}
