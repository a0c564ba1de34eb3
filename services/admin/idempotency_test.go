package admin_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"millrace/services/admin"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// What the table in routes_test.go does not hold for every route.

func keyed(key string) request {
	return request{header: map[string]string{"Idempotency-Key": key}}
}

// again is the same admin in another process.
func (w *world) again(process string) *world {
	w.t.Helper()
	other := *w
	other.env.Instance, other.env.Metrics = process, nil
	var err error
	other.admin, err = admin.New(admin.Config{}, other.env, admin.Deps{Sources: w.sources, Sealer: w.keeper})
	must(w.t, err)
	return &other
}

// kept is the record of an operation.
func (w *world) kept(method, path, key string) store.Answer {
	w.t.Helper()
	a, _, err := w.answers.Get(w.t.Context(), event.DerivedID("op", "usr_1", method, base+path, key))
	must(w.t, err)
	return a
}

// crash leaves an operation as a process does that dies between the effect and the answer.
func (w *world) crash(method, path, key string) {
	w.t.Helper()
	_, _, err := w.answers.Modify(w.t.Context(), event.DerivedID("op", "usr_1", method, base+path, key), func(a *store.Answer) error {
		if a.Status < 200 || a.Status >= 300 {
			w.t.Errorf("%s %s: kept %+v", method, path, a)
		}
		*a = store.Answer{Request: a.Request, Process: w.env.Instance, Attempt: "dead"}
		return nil
	})
	must(w.t, err)
}

// Requests are compared by what they say.
func TestSameRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	raw := func(path, key, body, contentType string) answer {
		return w.do("POST", path, nil, request{raw: []byte(body), header: map[string]string{"Idempotency-Key": key, "Content-Type": contentType}})
	}
	prompt := func(body string) answer { return raw("/prompts", "p", body, "application/json") }
	first := prompt(`{"name":"abc","prompt_text":"0123456789","json_schema":{"type":"object","minimum":5,"x":[1,1e3]}}`).want(201).str("prompt_id")
	for _, same := range []string{
		`{ "prompt_text":"0123456789", "json_schema":{"x":[1.0, 1000],"minimum":5.0,"type":"\u006fbject"}, "name":"abc", "description":null}`,
	} {
		if a := prompt(same).want(201); a.str("prompt_id") != first {
			t.Errorf("not the same: %s", same)
		}
	}
	for _, other := range []string{
		`{"name":"abc","prompt_text":"0123456789","json_schema":{"type":"object","minimum":5,"x":[1e3,1]}}`,
		`{"name":"abc","prompt_text":"0123456789","json_schema":{"type":"object","minimum":"5","x":[1,1e3]}}`,
		`{"name":"abc","prompt_text":"0123456789","json_schema":{"type":"object","minimum":9007199254740993,"x":[1,1e3]}}`,
		`{"name":"abc","prompt_text":"0123456789","json_schema":{"type":"object","minimum":9007199254740992,"x":[1,1e3]}}`,
	} {
		prompt(other).refused(409, "idempotency_request_mismatch")
	}
	// Numbers that no float64 tells apart.
	raw("/prompts", "big", `{"name":"abc","prompt_text":"0123456789","json_schema":{"type":"object","x":9007199254740993}}`, "").want(201)
	raw("/prompts", "big", `{"name":"abc","prompt_text":"0123456789","json_schema":{"type":"object","x":9007199254740992}}`, "").refused(409, "idempotency_request_mismatch")

	// No body is {}, and where no body is wanted none is compared.
	test := "/connectors/" + f.connector + "/test"
	w.do("POST", test, nil, keyed("t")).want(200)
	raw(test, "t", `{}`, "application/json").want(200)
	browse := "/connectors/" + f.connector + "/browse"
	w.do("POST", browse, nil, keyed("b")).want(200)
	raw(browse, "b", ` { } `, "application/json").want(200)
	raw(browse, "b", `{"limit":1}`, "application/json").refused(409, "idempotency_request_mismatch")

	// A form is its parts: another boundary and another order of names are the same, another file is not.
	form := func(credentials []byte, parts ...[2]string) answer {
		body, ct := gcsForm(t, credentials, parts...)
		return raw("/connectors/gcs", "f", string(body), ct)
	}
	connector := form(account(nil), gcsParts...).want(201).str("connector_id")
	turned := append([][2]string{gcsParts[2], gcsParts[3]}, gcsParts[4], gcsParts[5], gcsParts[1], gcsParts[0])
	if a := form(account(nil), turned...).want(201); a.str("connector_id") != connector {
		t.Error("a form in another order is another request")
	}
	form(account(obj{"client_email": "other"}), gcsParts...).refused(409, "idempotency_request_mismatch")
	form(account(nil), append(gcsParts[:4:4], [2]string{"scopes", "import"})...).refused(409, "idempotency_request_mismatch")

	// Each path, method and key is an operation of its own; blanks are no key.
	a := w.do("POST", "/indexes", obj{"name": "n"}, keyed("p")).want(201)
	b := w.do("POST", "/indexes", obj{"name": "n"}, keyed("q")).want(201)
	c := w.do("POST", "/indexes", obj{"name": "n"}, keyed("  ")).want(201)
	if a.str("index_id") == b.str("index_id") || c.header.Get("Idempotent-Replayed") != "" {
		t.Error("different operations are taken for one")
	}
	d := w.do("POST", "/indexes", obj{"name": "n"}, request{header: map[string]string{"X-Idempotency-Key": "p"}}).want(201)
	if d.str("index_id") != a.str("index_id") {
		t.Error("the alias is not heard")
	}
	long := strings.Repeat("k:-", 341)
	if id := w.do("POST", "/indexes", obj{"name": "n"}, keyed(long)).want(201).str("index_id"); id != w.do("POST", "/indexes", obj{"name": "n"}, keyed(long)).str("index_id") {
		t.Error("a long key is not the same twice")
	}
	w.do("POST", "/indexes", obj{"name": "n"}, keyed(strings.Repeat("k", 1025))).refused(422, "validation_error", "Idempotency-Key", "1024")
	// Another key of the same account repeats the same operation.
	again := keyed("p")
	again.key = w.keys["write"]
	if w.do("POST", "/indexes", obj{"name": "n"}, again).want(201).str("index_id") != a.str("index_id") {
		t.Error("the account has changed with the API key")
	}
}

// What is kept is sealed, whatever it is, and the key itself is not kept.
func TestAnswersAreSealed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do("POST", "/indexes", obj{"name": "PLANTED-NAME"}, keyed("PLANTED-KEY")).want(201)
	stream, err := w.bus.JetStream().Stream(t.Context(), "KV_"+w.bus.Bucket(topology.Answers))
	must(t, err)
	last := stream.CachedInfo().State.LastSeq
	if last != 2 { // the claim and the answer
		t.Errorf("%d writes", last)
	}
	m, err := stream.GetMsg(t.Context(), last)
	must(t, err)
	if bytes.Contains(m.Data, []byte("PLANTED")) || strings.Contains(m.Subject, "PLANTED") || !strings.Contains(string(m.Data), `"status":201`) {
		t.Errorf("%s: %s", m.Subject, m.Data)
	}
	if age := stream.CachedInfo().Config.MaxAge.Hours(); age < 24 {
		t.Errorf("kept for %v hours", age)
	}
	// An answer cannot be put in the place of another.
	w.do("POST", "/indexes", obj{"name": "PLANTED-NAME"}, keyed("other")).want(201)
	one := w.kept("POST", "/indexes", "PLANTED-KEY")
	_, _, err = w.answers.Modify(t.Context(), event.DerivedID("op", "usr_1", "POST", base+"/indexes", "other"), func(a *store.Answer) error {
		a.Body = one.Body
		return nil
	})
	must(t, err)
	w.do("POST", "/indexes", obj{"name": "PLANTED-NAME"}, keyed("other")).refused(500, "internal_error")
}

// An answer that is larger than a message of the broker may be.
func TestLongAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	job := w.do("POST", "/import-jobs", obj{"connector_id": f.connector, "index_id": f.index}).want(202).str("job_id")
	const files = 12_000
	must(t, store.WriteLines(t.Context(), w.documents, "long", func(yield func(event.File, error) bool) {
		for i := range files {
			if !yield(event.File{Job: job, Path: fmt.Sprintf("%0100d.mp4", i), State: event.Failed, Error: "object vanished"}, nil) {
				return
			}
		}
	}))
	_, _, err := w.jobs.Modify(t.Context(), job, func(j *store.Job) error { j.Report = "long"; return nil })
	must(t, err)
	first := w.do("POST", "/import-jobs/"+job+"/cancel", nil, keyed("k")).want(200)
	second := w.do("POST", "/import-jobs/"+job+"/cancel", nil, keyed("k")).want(200)
	if len(first.raw) < 3<<19 || !bytes.Equal(first.raw, second.raw) || second.header.Get("Idempotent-Replayed") == "" {
		t.Errorf("%d bytes, then %d", len(first.raw), len(second.raw))
	}
	if kept := w.kept("POST", "/import-jobs/"+job+"/cancel", "k"); kept.Parts < 3 || kept.Body != "" {
		t.Errorf("%d parts", kept.Parts)
	}
}

// Two processes get the same request at once: one carries it out, both give its answer.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	doors := []*world{w, w.again("second"), w.again("third")}
	for round := range 20 {
		answers := make([]answer, 2*len(doors))
		var wg sync.WaitGroup
		for i := range answers {
			wg.Go(func() { answers[i] = doors[i/2].do("POST", "/indexes", obj{"name": "n"}, keyed(fmt.Sprint(round))) })
		}
		wg.Wait()
		effects := 0
		for _, a := range answers {
			if a.want(201); !bytes.Equal(a.raw, answers[0].raw) {
				t.Errorf("%s and %s", a.raw, answers[0].raw)
			}
			if a.header.Get("Idempotent-Replayed") == "" {
				effects++
			}
		}
		if effects != 1 {
			t.Errorf("%d effects", effects)
		}
	}
}

// A claim of a process that is silent is taken over after a while; of one that lives it is not.
func TestSilentProcess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	other := w.again("second")

	// The storage does not answer: the first is busy, and says so to everybody, until it is through.
	busy, release := w.sources.block()
	path := "/connectors/" + f.connector + "/test"
	first := make(chan answer, 1)
	go func() { first <- w.do("POST", path, nil, keyed("k")) }()
	<-busy
	var wg sync.WaitGroup
	for _, door := range []*world{w, other} {
		wg.Go(func() { door.do("POST", path, nil, keyed("k")).refused(503, "idempotency_request_in_progress") })
	}
	wg.Wait()
	if w.kept("POST", path, "k").Beat == 0 {
		t.Error("nothing shows that the first one lives")
	}
	release()
	one := (<-first).want(200)
	if two := other.do("POST", path, nil, keyed("k")).want(200); two.header.Get("Idempotent-Replayed") == "" || !bytes.Equal(one.raw, two.raw) {
		t.Errorf("%s, then %s", one.raw, two.raw)
	}

	// One that never says anything any more.
	index := w.do("POST", "/indexes", obj{"name": "n"}, keyed("dead")).want(201)
	w.again("third").crash("POST", "/indexes", "dead")
	if after := w.do("POST", "/indexes", obj{"name": "n"}, keyed("dead")).want(201); after.str("index_id") != index.str("index_id") {
		t.Errorf("after the takeover there is another: %s", after.raw)
	}
}

// What a request created is left as it has become when the request is carried out once more.
func TestRepeatedCreation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	body := obj{"name": "n", "path": "/allowed/x"}
	id := w.do("POST", "/connectors/dir", body, keyed("k")).want(201).str("connector_id")
	_, _, err := w.connectors.Modify(t.Context(), id, func(c *store.Connector) error { c.Name = "renamed"; return nil })
	must(t, err)
	w.crash("POST", "/connectors/dir", "k")
	if a := w.do("POST", "/connectors/dir", body, keyed("k")).want(201); a.str("connector_id") != id || a.str("name") != "renamed" {
		t.Errorf("%s", a.raw)
	}
	must(t, w.connectors.Delete(t.Context(), id))
	w.crash("POST", "/connectors/dir", "k")
	w.do("POST", "/connectors/dir", body, keyed("k")).want(201)
	w.do("GET", "/connectors/"+id, nil).refused(404, "resource_connector_not_found")

	// A job is not asked for twice.
	job := obj{"connector_id": f.connector, "index_id": f.index}
	made := w.do("POST", "/import-jobs", job, keyed("k")).want(202).str("job_id")
	subject := w.bus.Subject("job", "requested", "bulk", made)
	must(t, w.bus.Purge(t.Context(), topology.Jobs, subject, 0)) // it has been planned
	w.crash("POST", "/import-jobs", "k")
	if again := w.do("POST", "/import-jobs", job, keyed("k")).want(202).str("job_id"); again != made {
		t.Errorf("job %s, then %s", made, again)
	}
	for m, err := range w.bus.Last(t.Context(), topology.Jobs, subject) {
		t.Errorf("asked for again: %s, %v", m.Subject, err)
	}
}

// A panic and a refusal leave the key free.
func TestFailureLeavesTheKeyFree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/connectors/" + f.connector + "/test"
	w.sources.panics = true
	w.do("POST", path, nil, keyed("k")).refused(500, "internal_error")
	w.sources.panics = false
	w.do("POST", path, nil, keyed("k")).want(200)
	w.do("POST", "/import-jobs", obj{"connector_id": "conn_1", "index_id": f.index}, keyed("k")).want(404)
	w.do("POST", "/import-jobs", obj{"connector_id": f.connector, "index_id": f.index}, keyed("k")).want(202)
}

func BenchmarkCreateJobs(b *testing.B) {
	w := newWorld(b)
	f := w.fixture()
	body, err := json.Marshal(obj{"connector_id": f.connector, "index_id": f.index})
	must(b, err)
	for _, with := range []string{"", "key"} {
		b.Run("with"+with, func(b *testing.B) {
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					header := map[string]string{"Content-Type": "application/json"}
					if with != "" {
						header["Idempotency-Key"] = event.NewID("k")
					}
					if a := w.do("POST", "/import-jobs", nil, request{raw: body, header: header}); a.status != http.StatusAccepted {
						b.Errorf("%d: %s", a.status, a.raw)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
		})
	}
}
