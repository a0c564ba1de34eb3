package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"millrace/shared/bus"
	"millrace/shared/egress"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/webhook"
)

// webhooks is what the routes of webhooks stand on. Events are delivered by services/webhooks; only a test delivery is
// made here.
type webhooks struct {
	reg        *store.Register[store.Webhook]
	deliveries *store.Deliveries
	client     *webhook.Client
	sealer     Sealer
}

func openWebhooks(ctx context.Context, cfg Config, b *bus.Bus, sealer Sealer) (*webhooks, error) {
	guard, err := egress.New(cfg.AllowEndpoints)
	if err != nil {
		return nil, err
	}
	reg, err := store.Open[store.Webhook](ctx, b, topology.Webhooks)
	if err != nil {
		return nil, err
	}
	return &webhooks{reg: reg, deliveries: store.NewDeliveries(b), client: webhook.NewClient(guard, webhook.ClientConfig{}), sealer: sealer}, nil
}

// hook is a store.Webhook as clients see it: never with its secret.
type hook struct {
	ID            string          `json:"webhook_id"`
	Name          string          `json:"name"`
	URL           string          `json:"url" doc:"as it was given"`
	Events        []string        `json:"events" nullable:"false"`
	Indexes       []string        `json:"index_ids" doc:"only events of these; null: of all. Events without an index come in any case"`
	Status        string          `json:"status" enum:"active,paused,disabled" doc:"disabled: by the server, as the receiver said 410 or took nothing for long"`
	FailureCount  int             `json:"failure_count" doc:"failed attempts since the last success"`
	LastFailureAt *string         `json:"last_failure_at" format:"date-time"`
	LastSuccessAt *string         `json:"last_success_at" format:"date-time"`
	CreatedAt     string          `json:"created_at" format:"date-time"`
	UpdatedAt     string          `json:"updated_at" format:"date-time"`
	Metadata      json.RawMessage `json:"metadata" doc:"as it was given; null: none"`
}

// newHook is the answer to a creation, the only one with the secret but for a rotation.
type newHook struct {
	hook
	Secret string `json:"secret" doc:"signs deliveries; shown here and never again, but to a creation with the same Idempotency-Key"`
}

func viewHook(w store.Webhook) hook {
	v := hook{
		ID: w.ID, Name: w.Name, URL: w.URL, Events: append(make([]string, 0, len(w.Events)), w.Events...), Indexes: w.Indexes,
		Status: w.Status, FailureCount: w.Failures, LastFailureAt: stampOrNull(w.LastFailureAt), LastSuccessAt: stampOrNull(w.LastSuccessAt),
		CreatedAt: stamp(w.CreatedAt), UpdatedAt: stamp(w.UpdatedAt), Metadata: json.RawMessage("null"),
	}
	if len(w.Indexes) == 0 {
		v.Indexes = nil
	}
	if len(w.Metadata) > 0 {
		v.Metadata = unescaped(w.Metadata)
	}
	return v
}

// delivery is an event.Delivery as clients see it.
type delivery struct {
	ID             string          `json:"delivery_id"`
	Webhook        string          `json:"webhook_id"`
	EventType      string          `json:"event_type"`
	Status         string          `json:"status" enum:"pending,processing,retrying,delivered,failed"`
	Attempts       int             `json:"attempts"`
	LastAttemptAt  *string         `json:"last_attempt_at" format:"date-time"`
	NextRetryAt    *string         `json:"next_retry_at" format:"date-time"`
	ResponseStatus *int            `json:"response_status_code"`
	ResponseBody   *string         `json:"response_body" doc:"its beginning, as text"`
	ErrorMessage   *string         `json:"error_message"`
	CreatedAt      string          `json:"created_at" format:"date-time"`
	CompletedAt    *string         `json:"completed_at" format:"date-time"`
	Payload        json.RawMessage `json:"payload" doc:"what is sent; null when it is not kept any more"`
}

func viewDelivery(d event.Delivery, envelope json.RawMessage) (delivery, error) {
	v := delivery{
		ID: d.ID, Webhook: d.Webhook, EventType: string(d.Type), Status: string(d.State), Attempts: d.Attempts,
		LastAttemptAt: stampOrNull(d.LastAt), NextRetryAt: stampOrNull(d.DueAt), ResponseBody: orNull(d.Body), ErrorMessage: orNull(d.Error),
		CreatedAt: stamp(d.CreatedAt), CompletedAt: stampOrNull(d.EndedAt), Payload: json.RawMessage("null"),
	}
	if d.Code > 0 {
		v.ResponseStatus = &d.Code
	}
	if len(envelope) > 0 {
		var err error
		if v.Payload, err = webhook.Body(envelope, d.Metadata); err != nil {
			return v, err
		}
	}
	return v, nil
}

type hookPath struct {
	ID string `path:"webhook_id"`
}

type deliveryPath struct {
	ID string `path:"delivery_id"`
}

// indexFilter tells null and [], which clear the filter, from a filter that was not given.
type indexFilter struct {
	given bool
	ids   []string
}

// UnmarshalJSON is for encoding/json.
func (f *indexFilter) UnmarshalJSON(data []byte) error {
	f.given = true
	return json.Unmarshal(data, &f.ids)
}

// Schema is for huma.
func (indexFilter) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeArray, Nullable: true, Items: &huma.Schema{Type: huma.TypeString},
		Description: "only events of these indexes; null or []: of all",
	}
}

// createdHook is the answer to a creation.
type createdHook struct {
	Replayed string `header:"Idempotent-Replayed"`
	Body     newHook
}

type createHook struct {
	// Read by the middleware of all keys, and here for the document: its rule is another one.
	Key  string `header:"Idempotency-Key" doc:"while the webhook exists, the same request with the same key is answered with it and its secret; once it is deleted, it is created anew under the same id with another secret"`
	Body struct {
		Name     string          `json:"name" minLength:"1" maxLength:"100"`
		URL      string          `json:"url" doc:"https; kept as it is"`
		Events   []string        `json:"events" minItems:"1" doc:"names of GET /webhooks/events"`
		Indexes  indexFilter     `json:"index_ids,omitempty"`
		Metadata json.RawMessage `json:"metadata,omitempty" doc:"an object, sent along with every delivery"`
	}
}

type patchHook struct {
	ID   string `path:"webhook_id"`
	Body struct {
		Name     *string         `json:"name,omitempty" minLength:"1" maxLength:"100"`
		URL      *string         `json:"url,omitempty"`
		Events   []string        `json:"events,omitempty" minItems:"1"`
		Indexes  indexFilter     `json:"index_ids,omitempty"`
		Status   *string         `json:"status,omitempty" enum:"active,paused" doc:"active also enables a disabled one, and forgets failures. Events during a pause are not delivered later; deliveries that were waiting then are"`
		Metadata json.RawMessage `json:"metadata,omitempty"`
	}
}

type rotated struct {
	ID        string `json:"webhook_id"`
	NewSecret string `json:"new_secret"`
}

type hookTest struct {
	Success    bool    `json:"success"`
	StatusCode *int    `json:"status_code"`
	Error      *string `json:"error"`
}

type listDeliveries struct {
	ID     string `path:"webhook_id"`
	Status string `query:"status" enum:"pending,processing,retrying,delivered,failed"`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
}

func (a *Admin) webhookRoutes() {
	const tag = "Webhooks"
	one := func(method, suffix string, s scope, summary, about string) route {
		return route{method: method, path: "/webhooks/{webhook_id}" + suffix, scope: s, tag: tag, summary: summary, about: about}
	}
	register(a, route{method: "GET", path: "/webhooks/events", scope: public, tag: tag, summary: "List the events there are"},
		func(context.Context, *none) (*body[[]string], error) { return &body[[]string]{webhook.Events()}, nil })
	register(a, route{
		method: "POST", path: "/webhooks", scope: write, status: http.StatusCreated, tag: tag, repeats: true, summary: "Create a webhook",
		about: "Nothing is sent to it before this is answered. Deliveries carry X-Webhook-Signature (sha256= and the HMAC-SHA256 of the body " +
			"under the whole secret, in hex) and the headers of Standard Webhooks; they come at least once and in no order.",
	}, a.createHook)
	register(a, route{method: "GET", path: "/webhooks", scope: read, tag: tag, summary: "List webhooks", about: "In order of creation."}, a.listHooks)
	register(a, one("GET", "", read, "Get a webhook", ""), a.getHook)
	patch := one("PATCH", "", write, "Change a webhook", "At least one member.")
	patch.keep = "index_ids"
	register(a, patch, a.patchHook)
	register(a, one("DELETE", "", admin, "Delete a webhook", "With its deliveries; what is queued is not sent."), a.deleteHook)
	register(a, one("POST", "/rotate-secret", write, "Give a webhook a new secret",
		"It signs from now on, queued deliveries included. For a day webhook-signature carries a signature under the old one as well."), a.rotateHook)
	test := one("POST", "/test", write, "Send a test delivery", "Of an event \"test\", whatever the webhook subscribes to. 200 whether the receiver takes it or not.")
	test.timeout = webhook.Timeout + requestTimeout
	register(a, test, a.testHook)
	register(a, one("GET", "/deliveries", read, "List deliveries to a webhook", "Newest first."), a.listDeliveries)
	register(a, route{method: "GET", path: "/webhooks/deliveries/{delivery_id}", scope: read, tag: tag, summary: "Get a delivery"}, a.getDelivery)
	register(a, route{
		method: "POST", path: "/webhooks/deliveries/{delivery_id}/retry", scope: write, tag: tag, summary: "Send a delivery again now",
		about: "One that failed or is waiting for its next attempt; the schedule begins anew. 400 for any other.",
	}, a.retryDelivery)
}

// maxMetadata bounds the metadata of a webhook, which goes with every delivery.
const maxMetadata = 16 << 10

// checkHook says what is wrong with members of a webhook; nil stands for one that is not given.
func (a *Admin) checkHook(f *fieldErrors, url *string, events, indexes []string, metadata json.RawMessage) {
	if url != nil {
		if err := a.webhooks.client.CheckURL(*url); err != nil {
			f.add("url", "%s", err)
		}
	}
	for _, e := range events {
		if !slices.Contains(webhook.Events(), e) {
			f.add("events", "%q is none of the events of GET /webhooks/events", e)
		}
	}
	for _, id := range indexes {
		if !event.IsToken(id) {
			f.add("index_ids", "%q is not the id of an index", id)
		}
	}
	switch {
	case len(metadata) > maxMetadata:
		f.add("metadata", "must have at most %d bytes", maxMetadata)
	case len(metadata) > 0 && !isObject(metadata):
		f.add("metadata", "must be an object")
	}
}

// createHook makes a webhook, or answers with the one that the same key has made. The key belongs to the webhook and
// has no end: the id is a function of it, and its record tells whether the request is the same (contract §5.2).
func (a *Admin) createHook(ctx context.Context, in *createHook) (*createdHook, error) {
	b := in.Body
	var f fieldErrors
	a.checkHook(&f, &b.URL, b.Events, b.Indexes.ids, b.Metadata)
	if err := f.err(); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	wanted := store.Webhook{
		Name: b.Name, URL: b.URL, Events: distinct(b.Events), Indexes: distinct(b.Indexes.ids), Metadata: b.Metadata,
	}
	wanted.ID = event.NewID("wh")
	if op, keyed := operationOf(ctx); keyed {
		wanted.ID, wanted.Request = event.WebhookOfKey(owner, op.key), op.request
	}
	wanted.Status, wanted.Since, wanted.CreatedAt, wanted.UpdatedAt = store.WebhookActive, now, now, now
	var err error
	if wanted.Secret, err = a.newHookSecret(wanted.ID); err != nil {
		return nil, err
	}
	var out createdHook
	w, _, err := a.webhooks.reg.Modify(ctx, wanted.ID, func(w *store.Webhook) error {
		out.Replayed = ""
		switch {
		case w.ID == "":
			*w = wanted
			return nil
		case w.Request != wanted.Request:
			return mismatch()
		}
		out.Replayed = "true"
		return store.ErrUnchanged
	})
	if err != nil {
		return nil, err
	}
	out.Body.hook = viewHook(w)
	out.Body.Secret, err = a.hookSecret(w)
	return &out, err
}

// distinct is a list without repetitions, in order; never nil.
func distinct(list []string) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// newHookSecret returns a new secret, sealed.
func (a *Admin) newHookSecret(id string) (string, error) {
	return a.webhooks.sealer.Seal([]byte(webhook.NewSecret().Reveal()), webhook.SecretAAD(id))
}

// hookSecret is the text of the secret that is valid now.
func (a *Admin) hookSecret(w store.Webhook) (string, error) {
	keys, err := webhook.Secrets(a.webhooks.sealer, w, time.Now())
	if err != nil {
		return "", err
	}
	return keys[0].Reveal(), nil
}

func (a *Admin) listHooks(ctx context.Context, _ *none) (*body[[]hook], error) {
	found, err := all(ctx, a.webhooks.reg)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(x, y store.Webhook) int {
		return cmp.Or(x.CreatedAt.Compare(y.CreatedAt), cmp.Compare(x.ID, y.ID))
	})
	list := make([]hook, 0, len(found))
	for _, w := range found {
		list = append(list, viewHook(w))
	}
	return &body[[]hook]{list}, nil
}

func (a *Admin) getHook(ctx context.Context, in *hookPath) (*body[hook], error) {
	w, err := lookUp(ctx, a.webhooks.reg, "webhook", in.ID)
	if err != nil {
		return nil, err
	}
	return &body[hook]{viewHook(w)}, nil
}

// changeHook edits the record of a webhook that is there, unless change returns store.ErrUnchanged.
func (a *Admin) changeHook(ctx context.Context, id string, change func(w *store.Webhook) error) (store.Webhook, error) {
	now := time.Now().UTC()
	w, _, err := a.webhooks.reg.Modify(ctx, id, func(w *store.Webhook) error {
		if w.ID == "" {
			return notFound("webhook", id)
		}
		if err := change(w); err != nil {
			return err
		}
		w.UpdatedAt = now
		return nil
	})
	return w, err
}

func (a *Admin) patchHook(ctx context.Context, in *patchHook) (*body[hook], error) {
	b := in.Body
	if _, err := lookUp(ctx, a.webhooks.reg, "webhook", in.ID); err != nil {
		return nil, err
	}
	var f fieldErrors
	if b.Name == nil && b.URL == nil && b.Events == nil && !b.Indexes.given && b.Status == nil && b.Metadata == nil {
		f.add("body", "at least one of name, url, events, index_ids, status, metadata is required")
	}
	a.checkHook(&f, b.URL, b.Events, b.Indexes.ids, b.Metadata)
	if err := f.err(); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	w, err := a.changeHook(ctx, in.ID, func(w *store.Webhook) error {
		w.Name, w.URL = value(b.Name, w.Name), value(b.URL, w.URL)
		if b.Events != nil {
			w.Events = distinct(b.Events)
		}
		if b.Indexes.given {
			w.Indexes = distinct(b.Indexes.ids)
		}
		if b.Metadata != nil {
			w.Metadata = b.Metadata
		}
		if b.Status != nil {
			w.SetStatus(*b.Status, now)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &body[hook]{viewHook(w)}, nil
}

// deleteHook removes the record first: what is not there is not sent to. Then it removes the deliveries as they stood
// before, as somebody may have created the webhook again under its id by now. Those that this or an interruption leaves
// behind are for a webhook that is gone, and nobody sees them.
func (a *Admin) deleteHook(ctx context.Context, in *hookPath) (*body[message], error) {
	before, err := a.webhooks.deliveries.Last(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := lookUp(ctx, a.webhooks.reg, "webhook", in.ID); err != nil {
		// A client that repeats a deletion hears what it would have heard.
		if deleted, derr := a.webhooks.reg.Deleted(ctx, in.ID); !deleted || derr != nil {
			return nil, errors.Join(err, derr)
		}
	} else if err := a.webhooks.reg.Delete(ctx, in.ID); err != nil {
		return nil, err
	}
	if err := a.webhooks.deliveries.Forget(ctx, in.ID, "*", before); err != nil {
		return nil, err
	}
	return &body[message]{message{"The webhook was deleted."}}, nil
}

// overlap is how long a secret that was rotated signs beside the new one.
const overlap = 24 * time.Hour

func (a *Admin) rotateHook(ctx context.Context, in *hookPath) (*body[rotated], error) {
	sealed, err := a.newHookSecret(in.ID)
	if err != nil {
		return nil, err
	}
	op, _ := operationOf(ctx)
	until := time.Now().UTC().Add(overlap)
	w, err := a.changeHook(ctx, in.ID, func(w *store.Webhook) error {
		if op.id != "" && w.RotatedBy == op.id { // and died before it could answer
			return store.ErrUnchanged
		}
		w.OldSecret, w.OldUntil = w.Secret, until
		w.Secret, w.RotatedBy = sealed, op.id
		return nil
	})
	if err != nil {
		return nil, err
	}
	text, err := a.hookSecret(w)
	return &body[rotated]{rotated{ID: w.ID, NewSecret: text}}, err
}

func (a *Admin) testHook(ctx context.Context, in *hookPath) (*body[hookTest], error) {
	w, err := lookUp(ctx, a.webhooks.reg, "webhook", in.ID)
	if err != nil {
		return nil, err
	}
	id := event.NewID("evt_test")
	envelope, err := webhook.NewEnvelope(id, webhook.TestEvent, time.Now(), message{"This is a test delivery."})
	if err != nil {
		return nil, err
	}
	sent, err := webhook.Body(envelope, w.Metadata)
	if err != nil {
		return nil, err
	}
	keys, err := webhook.Secrets(a.webhooks.sealer, w, time.Now())
	if err != nil {
		return nil, err
	}
	answer := a.webhooks.client.Send(ctx, webhook.Request{
		URL: w.URL, Webhook: w.ID, Delivery: event.DeliveryOf(w.ID, id), EventID: id, Event: webhook.TestEvent, Body: sent, Secrets: keys,
	})
	result := hookTest{Success: answer.Delivered(), Error: orNull(answer.Error)}
	if answer.Code > 0 {
		result.StatusCode = &answer.Code
	}
	return &body[hookTest]{result}, nil
}

func (a *Admin) listDeliveries(ctx context.Context, in *listDeliveries) (*body[[]delivery], error) {
	w, err := lookUp(ctx, a.webhooks.reg, "webhook", in.ID)
	if err != nil {
		return nil, err
	}
	newest := newestOf[event.Delivery]{limit: in.Limit, created: func(d event.Delivery) (time.Time, string) { return d.CreatedAt, d.ID }}
	for d, err := range a.webhooks.deliveries.Of(ctx, w.ID) {
		if err != nil {
			return nil, err
		}
		if d.Life.Equal(w.CreatedAt) && (in.Status == "" || in.Status == string(d.State)) {
			newest.add(d)
		}
	}
	views, err := a.viewDeliveries(ctx, newest.sorted()...)
	return &body[[]delivery]{views}, err
}

func (a *Admin) viewDeliveries(ctx context.Context, found ...event.Delivery) ([]delivery, error) {
	events := make([]string, len(found))
	for i, d := range found {
		events[i] = d.Event
	}
	envelopes, err := a.webhooks.deliveries.Envelopes(ctx, events...)
	if err != nil {
		return nil, err
	}
	views := make([]delivery, len(found))
	for i, d := range found {
		if views[i], err = viewDelivery(d, envelopes[d.Event]); err != nil {
			return nil, err
		}
	}
	return views, nil
}

// delivery returns one of a webhook that is there, or the 404.
func (a *Admin) delivery(ctx context.Context, id string) (event.Delivery, store.Revision, error) {
	missing := newProblem(http.StatusNotFound, "resource_webhook_delivery_not_found", "No webhook delivery has the id %s.", id).with("delivery_id", id)
	d, rev, err := a.webhooks.deliveries.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return d, 0, missing
	}
	if err != nil {
		return d, 0, err
	}
	w, _, err := a.webhooks.reg.Get(ctx, d.Webhook)
	if errors.Is(err, store.ErrNotFound) || err == nil && !w.CreatedAt.Equal(d.Life) {
		return d, 0, missing
	}
	return d, rev, err
}

func (a *Admin) getDelivery(ctx context.Context, in *deliveryPath) (*body[delivery], error) {
	d, _, err := a.delivery(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return a.answerDelivery(ctx, d)
}

func (a *Admin) answerDelivery(ctx context.Context, d event.Delivery) (*body[delivery], error) {
	views, err := a.viewDeliveries(ctx, d)
	if err != nil {
		return nil, err
	}
	return &body[delivery]{views[0]}, nil
}

func (a *Admin) retryDelivery(ctx context.Context, in *deliveryPath) (*body[delivery], error) {
	op, _ := operationOf(ctx)
	for {
		d, rev, err := a.delivery(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		if op.id != "" && d.RetriedBy == op.id { // and died before it could answer
			return a.answerDelivery(ctx, d)
		}
		if d.State != event.DeliveryFailed && d.State != event.DeliveryRetrying {
			return nil, newProblem(http.StatusBadRequest, "webhook_delivery_not_retryable",
				"The delivery is %s; only one that is failed or retrying can be sent again.", d.State).with("delivery_id", d.ID).with("status", d.State)
		}
		d.State, d.Tries, d.DueAt, d.EndedAt, d.RetriedBy = event.DeliveryPending, 0, time.Time{}, time.Time{}, op.id
		_, err = a.webhooks.deliveries.Write(ctx, d, rev)
		if errors.Is(err, bus.ErrConflict) { // its state has changed meanwhile, so look again
			continue
		}
		if err != nil {
			return nil, err
		}
		return a.answerDelivery(ctx, d)
	}
}
