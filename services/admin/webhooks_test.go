package admin_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"millrace/services/admin"
	"millrace/shared/event"
	"millrace/shared/secret"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/webhook"
)

// hookURL is public, so it may be given, and reserved, so nobody is there.
const hookURL = "https://hooks.invalid:443//webhook/%7E9d/?a=b+c#x"

var hookEvents = []string{"import_job.completed", "import_job.partial_completed"}

func hookBody(fixture) any {
	return obj{"name": "n8n: 12 / trigger", "url": hookURL, "events": hookEvents, "index_ids": nil, "metadata": obj{"n8n_workflow_id": "12"}}
}

// webhooks adds two webhooks, and a delivery to the first.
func (w *world) webhooks(f *fixture) {
	w.t.Helper()
	create := func() string { return w.do("POST", "/webhooks", hookBody(*f)).want(201).str("webhook_id") }
	f.webhook, f.otherWebhook = create(), create()
	f.delivery = w.delivery(f.webhook, "evt_1", func(d *event.Delivery) {
		d.State, d.Attempts, d.LastAt, d.EndedAt, d.Code, d.Body = event.DeliveryDelivered, 1, d.CreatedAt, d.CreatedAt, 200, "<ok>"
	})
}

// delivery stores one.
func (w *world) delivery(hook, eventID string, change func(*event.Delivery)) string {
	w.t.Helper()
	stored, _, err := register[store.Webhook](w, topology.Webhooks).Get(w.t.Context(), hook)
	must(w.t, err)
	d := event.Delivery{
		ID: event.DeliveryOf(hook, eventID), Webhook: hook, Life: stored.CreatedAt, Event: eventID, Type: event.JobCompleted,
		State: event.DeliveryPending, CreatedAt: time.Now().UTC(), Metadata: stored.Metadata,
	}
	change(&d)
	env, err := webhook.NewEnvelope(eventID, string(d.Type), d.CreatedAt, obj{"title": "a & b"})
	must(w.t, err)
	must(w.t, store.NewDeliveries(w.bus).Queue(w.t.Context(), eventID, env, []event.Delivery{d}))
	return d.ID
}

func TestWebhookEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.do("GET", "/webhooks/events", nil, request{key: "-"}).want(200)
	var names []string
	must(t, json.Unmarshal(a.raw, &names))
	if len(names) != 17 || slices.Contains(names, "import_job.cancelled") {
		t.Error(names)
	}
}

// What the n8n trigger relies on (contract §5.2, §16.2): everything comes back as it was given, a key replays the
// webhook with its secret while it lives and makes it anew under its id once it is gone.
func TestWebhookCreation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const given = `{"name":"n","url":"` + hookURL + `","events":["export.ready","export.failed"],"index_ids":[],` +
		`"metadata":{"z":1.50,"n8n_workflow_id":"<12> & é","big":12345678901234567890,"e":1e3}}`
	key := map[string]string{"Idempotency-Key": "  n8n-webhook-" + strings.Repeat("0f", 32) + " ", "Content-Type": "application/json"}
	create := func(raw string, header map[string]string) answer {
		return w.do("POST", "/webhooks", nil, request{raw: []byte(raw), header: header})
	}
	first := create(given, key).want(201)
	id := first.str("webhook_id")
	if first.str("url") != hookURL || first.at("index_ids") != nil || !strings.HasPrefix(first.str("secret"), "whsec_") {
		t.Errorf("%s", first.raw)
	}
	const metadata = `"metadata":{"z":1.50,"n8n_workflow_id":"<12> & é","big":12345678901234567890,"e":1e3}`
	for _, a := range []answer{first, w.do("GET", "/webhooks/"+id, nil)} {
		if !strings.Contains(string(a.raw), metadata) {
			t.Errorf("%s", a.raw)
		}
	}
	for _, path := range []string{"/webhooks/" + id, "/webhooks"} {
		if a := w.do("GET", path, nil).want(200); strings.Contains(string(a.raw), "secret") {
			t.Errorf("%s", a.raw)
		}
	}
	// The value counts, not its spelling.
	same := `{ "metadata": {"e":1e3,"big":12345678901234567890,"n8n_workflow_id":"<12> \u0026 é","z":1.50}, "events":["export.ready","export.failed"], "url":"` + hookURL + `", "name":"n", "index_ids":[]}`
	if again := create(same, key).want(201); again.str("secret") != first.str("secret") || again.str("webhook_id") != id {
		t.Errorf("%s", again.raw)
	}
	create(strings.Replace(given, "export.failed", "media.created", 1), key).refused(409, "idempotency_request_mismatch")
	if other := create(given, nil).want(201); other.str("webhook_id") == id || other.str("secret") == first.str("secret") {
		t.Errorf("without a key: %s", other.raw)
	}
	// A changed and rotated webhook is still the one of its key.
	w.do("PATCH", "/webhooks/"+id, obj{"name": "renamed"}).want(200)
	fresh := w.do("POST", "/webhooks/"+id+"/rotate-secret", nil).want(200).str("new_secret")
	if again := create(given, key).want(201); again.str("secret") != fresh || fresh == first.str("secret") || again.str("name") != "renamed" {
		t.Errorf("%s", again.raw)
	}
	d := w.delivery(id, "evt_1", func(*event.Delivery) {})
	w.do("DELETE", "/webhooks/"+id, nil).want(200)
	w.do("GET", "/webhooks/"+id, nil).refused(404, "resource_webhook_not_found", id)
	w.do("GET", "/webhooks/deliveries/"+d, nil).refused(404, "resource_webhook_delivery_not_found", d)
	reborn := create(given, key).want(201)
	if reborn.str("webhook_id") != id || reborn.str("secret") == fresh || reborn.str("name") != "n" {
		t.Errorf("%s", reborn.raw)
	}
	if log := w.log.String(); strings.Contains(log, fresh) || strings.Contains(log, first.str("secret")) {
		t.Error("a secret is in the log")
	}
	create(given, map[string]string{"Idempotency-Key": "k\x7f"}).refused(422, "validation_error", "printable")
	create(given, map[string]string{"Idempotency-Key": strings.Repeat("k", 2000)}).refused(422, "validation_error", "1024")
}

// died has the server forget what it answered to a request with an idempotency key, as one does that dies before it has
// kept its answer.
func (w *world) died(path, key string) {
	w.t.Helper()
	_, _, err := w.answers.Modify(w.t.Context(), event.DerivedID("op", "usr_1", "POST", base+path, key), func(a *store.Answer) error {
		if a.Status == 0 {
			w.t.Errorf("nothing is kept of %s", path)
		}
		*a = store.Answer{Request: a.Request, Attempt: "dead"}
		return nil
	})
	must(w.t, err)
}

// What cannot be done twice is not done twice, also when the first who did it died before it could answer: receivers
// still have the secret from before the rotation, and that is the one that signs beside the new one.
func TestWebhookRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	with := request{header: map[string]string{"Idempotency-Key": "k"}}
	repeated := func(path string) (before, after answer) {
		t.Helper()
		before = w.do("POST", path, nil, with).want(200)
		w.died(path, "k")
		return before, w.do("POST", path, nil, with).want(200)
	}
	created := w.do("POST", "/webhooks", hookBody(fixture{})).want(201)
	id := created.str("webhook_id")
	before, after := repeated("/webhooks/" + id + "/rotate-secret")
	if before.str("new_secret") != after.str("new_secret") || before.str("new_secret") == created.str("secret") {
		t.Error("rotated twice")
	}
	stored, _, err := register[store.Webhook](w, topology.Webhooks).Get(t.Context(), id)
	must(t, err)
	keys, err := webhook.Secrets(w.keeper, stored, time.Now())
	must(t, err)
	if len(keys) != 2 || keys[0].Reveal() != after.str("new_secret") || keys[1].Reveal() != created.str("secret") {
		t.Errorf("%d secrets sign, or not the new one and the one before", len(keys))
	}
	other := request{header: map[string]string{"Idempotency-Key": "another"}}
	if again := w.do("POST", "/webhooks/"+id+"/rotate-secret", nil, other).want(200); again.str("new_secret") == after.str("new_secret") {
		t.Error("another key did not rotate")
	}

	d := w.delivery(id, "evt_1", func(d *event.Delivery) { d.State, d.Attempts = event.DeliveryFailed, 3 })
	if _, after = repeated("/webhooks/deliveries/" + d + "/retry"); after.str("status") != "pending" || after.at("attempts") != 3.0 {
		t.Errorf("%s", after.raw)
	}
	w.do("POST", "/webhooks/deliveries/"+d+"/retry", nil, other).refused(400, "webhook_delivery_not_retryable", "pending")
}

// Two at once make one.
func TestWebhookCreatedTwiceAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var all sync.WaitGroup
	secrets := make([]string, 16)
	for i := range secrets {
		all.Go(func() {
			secrets[i] = w.do("POST", "/webhooks", hookBody(fixture{}), request{header: map[string]string{"Idempotency-Key": "k"}}).want(201).str("secret")
		})
	}
	all.Wait()
	if slices.Sort(secrets); secrets[0] == "" || len(slices.Compact(secrets)) != 1 {
		t.Error("not one secret")
	}
	if a := w.do("GET", "/webhooks", nil); a.at(1) != nil {
		t.Errorf("%s", a.raw)
	}
}

func TestWebhookPatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.do("POST", "/webhooks", obj{"name": "n", "url": hookURL, "events": hookEvents, "index_ids": []string{"idx_1", "idx_1"}}).want(201)
	path := "/webhooks/" + a.str("webhook_id")
	if a.at("index_ids", 0) != "idx_1" || a.at("index_ids", 1) != nil || a.at("metadata") != nil {
		t.Errorf("%s", a.raw)
	}
	if a = w.do("PATCH", path, obj{"name": "m"}).want(200); a.at("index_ids", 0) != "idx_1" {
		t.Errorf("the filter went: %s", a.raw)
	}
	for _, none := range []any{nil, []string{}} {
		w.do("PATCH", path, obj{"index_ids": []string{"idx_2"}}).want(200)
		if a = w.do("PATCH", path, obj{"index_ids": none}).want(200); a.at("index_ids") != nil {
			t.Errorf("%v does not clear the filter: %s", none, a.raw)
		}
	}
	reg := register[store.Webhook](w, topology.Webhooks)
	_, _, err := reg.Modify(t.Context(), a.str("webhook_id"), func(h *store.Webhook) error {
		h.SetStatus(store.WebhookDisabled, time.Now())
		h.Failures, h.Exhausted = 20, 20
		return nil
	})
	must(t, err)
	if a = w.do("GET", path, nil); a.str("status") != "disabled" || a.at("failure_count") != 20.0 {
		t.Errorf("%s", a.raw)
	}
	if a = w.do("PATCH", path, obj{"status": "active"}).want(200); a.str("status") != "active" || a.at("failure_count") != 0.0 {
		t.Errorf("%s", a.raw)
	}
	w.do("PATCH", path, obj{}).refused(422, "validation_error", "at least one of")
	w.do("PATCH", path, obj{"status": "disabled"}).refused(422, "validation_error", "active, paused")
}

func TestDeliveries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.do("POST", "/webhooks", hookBody(fixture{})).want(201).str("webhook_id")
	path := "/webhooks/" + id + "/deliveries"
	if a := w.do("GET", path, nil).want(200); string(a.raw) != "[]\n" {
		t.Errorf("%s", a.raw)
	}
	states := []event.DeliveryState{event.DeliveryPending, event.DeliveryRetrying, event.DeliveryDelivered, event.DeliveryFailed}
	now := time.Now().UTC()
	ids := make(map[event.DeliveryState]string)
	for i, s := range states {
		ids[s] = w.delivery(id, fmt.Sprintf("evt_%d", i), func(d *event.Delivery) {
			d.State, d.Attempts, d.CreatedAt = s, i, now.Add(time.Duration(i)*time.Second)
			if s == event.DeliveryRetrying {
				d.Code, d.Error, d.DueAt, d.LastAt = 502, "receiver answered 502", now.Add(time.Hour), now
			}
		})
	}
	a := w.do("GET", path, nil).want(200)
	for i := range states {
		if a.str(i, "delivery_id") != ids[states[len(states)-1-i]] {
			t.Errorf("not the newest first: %s", a.raw)
		}
	}
	if a = w.do("GET", path+"?limit=2", nil).want(200); a.at(1) == nil || a.at(2) != nil {
		t.Errorf("limit: %s", a.raw)
	}
	for _, s := range append(states, event.DeliveryProcessing) {
		a := w.do("GET", path+"?status="+string(s), nil).want(200)
		if s != event.DeliveryProcessing && a.str(0, "status") != string(s) || a.at(1) != nil {
			t.Errorf("%s: %s", s, a.raw)
		}
	}
	w.do("GET", path+"?status=lost", nil).refused(422, "validation_error", "pending")
	w.do("GET", path+"?limit=101", nil).refused(422, "validation_error", "100")

	one := "/webhooks/deliveries/" + ids[event.DeliveryRetrying]
	a = w.do("GET", one, nil).want(200)
	if a.at("payload", "metadata", "n8n_workflow_id") != "12" || a.str("payload", "data", "title") != "a & b" || a.at("response_status_code") != 502.0 ||
		a.str("next_retry_at") == "" || a.at("response_body") != nil || a.at("completed_at") != nil {
		t.Errorf("%s", a.raw)
	}
	a = w.do("POST", one+"/retry", nil).want(200)
	if a.str("status") != "pending" || a.at("next_retry_at") != nil || a.at("attempts") != 1.0 {
		t.Errorf("%s", a.raw)
	}
	w.do("POST", one+"/retry", nil).refused(400, "webhook_delivery_not_retryable", "pending")
	w.do("POST", "/webhooks/deliveries/"+ids[event.DeliveryFailed]+"/retry", nil).want(200)
	w.do("POST", "/webhooks/deliveries/"+ids[event.DeliveryDelivered]+"/retry", nil).refused(400, "webhook_delivery_not_retryable")

	// Those of an earlier webhook under the same id are nobody's.
	w.delivery(id, "evt_old", func(d *event.Delivery) { d.Life = d.Life.Add(-time.Hour) })
	if a := w.do("GET", path, nil); a.at(4) != nil {
		t.Errorf("%s", a.raw)
	}
	w.do("GET", "/webhooks/deliveries/"+event.DeliveryOf(id, "evt_old"), nil).refused(404, "resource_webhook_delivery_not_found")
}

// A test delivery is signed like any other, ignores what the webhook subscribes to, and is answered with 200 whatever
// the receiver does.
func TestWebhookTest(t *testing.T) {
	t.Parallel()
	var got *http.Request
	var sent []byte
	status := http.StatusNoContent
	receiver := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		got = r
		sent, _ = io.ReadAll(r.Body)
		rw.WriteHeader(status)
	}))
	t.Cleanup(receiver.Close)
	w := newWorld(t, func(c *admin.Config) { c.AllowEndpoints = []string{"127.0.0.1"} })
	a := w.do("POST", "/webhooks", obj{"name": "n", "url": receiver.URL + "/x", "events": hookEvents, "metadata": obj{"k": "<v>"}}).want(201)
	path, key := "/webhooks/"+a.str("webhook_id")+"/test", a.str("secret")
	w.do("PATCH", "/webhooks/"+a.str("webhook_id"), obj{"status": "paused"}).want(200)
	if a := w.do("POST", path, nil).want(200); a.at("success") != true || a.at("status_code") != 204.0 || a.at("error") != nil {
		t.Errorf("%s", a.raw)
	}
	if !strings.Contains(string(sent), `"event":"test","id":"evt_test_`) || !strings.HasSuffix(string(sent), `,"metadata":{"k":"<v>"}}`) {
		t.Errorf("%s", sent)
	}
	if got.Header.Get("X-Webhook-Signature") != webhook.Signature(secret.NewString(key), sent) {
		t.Error("not signed")
	}
	v, err := standard.NewWebhook(key)
	must(t, err)
	must(t, v.Verify(sent, got.Header))
	status = 500
	if a := w.do("POST", path, obj{}).want(200); a.at("success") != false || a.at("status_code") != 500.0 || a.str("error") == "" {
		t.Errorf("%s", a.raw)
	}
	receiver.Close()
	if a := w.do("POST", path, nil).want(200); a.at("success") != false || a.at("status_code") != nil || a.str("error") == "" {
		t.Errorf("%s", a.raw)
	}
}
