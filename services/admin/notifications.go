package admin

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"

	"millrace/shared/bus"
)

// maxNotification bounds one notification, in bytes: the broker takes no larger message. maxPush bounds what is pushed in
// one request, which may be a list of them; Event Grid sends up to 1 MiB.
const (
	maxNotification = 1<<20 - 4<<10
	maxPush         = 1<<20 + 512<<10
)

type pushedNotification struct {
	Connector string `path:"connector_id"`
	RawBody   []byte `contentType:"*/*"`

	// Of a CloudEvent in binary mode; its data are the body.
	SpecVersion string `header:"Ce-Specversion" hidden:"true"`
	Type        string `header:"Ce-Type" hidden:"true"`
	Source      string `header:"Ce-Source" hidden:"true"`
	Subject     string `header:"Ce-Subject" hidden:"true"`
	ID          string `header:"Ce-Id" hidden:"true"`
	Time        string `header:"Ce-Time" hidden:"true"`
}

type pushed struct {
	Message            string `json:"message"`
	ValidationResponse string `json:"validationResponse,omitempty" doc:"to the handshake of Event Grid"`
}

func (a *Admin) notificationRoutes() {
	const path = "/notifications/{connector_id}"
	register(a, route{
		method: "POST", path: path, scope: write, auth: a.authorizePush, tag: "Connectors", raw: maxPush,
		summary: "Push a notification of a storage system",
		about: "The body is stored as it is, and answered once it is durable; a list of events is taken apart. It is a hint: what it " +
			"says is looked up in the storage. The key may stand in the query, as code=KEY. Where the operator configured an audience " +
			"and a service account, an OIDC token of Pub/Sub is accepted in place of a key. What SNS brings has to be signed by it, and a " +
			"subscription that it asks about is confirmed. Event Grid is never answered 401 or 403, " +
			"but 503, as it would drop the event.",
	}, a.takeNotification)
	a.router.HandleFunc("OPTIONS "+a.cfg.BasePath+path, a.allowOrigin)
}

func (a *Admin) takeNotification(ctx context.Context, in *pushedNotification) (*body[pushed], error) {
	c, err := lookUp(ctx, a.connectors, "connector", in.Connector)
	if err != nil {
		return nil, err
	}
	data, err := in.whole()
	if err != nil {
		return nil, err
	}
	events := eventsIn(data)
	if code, err := validationCode(c, events); code != "" || err != nil {
		return &body[pushed]{pushed{Message: "validated", ValidationResponse: code}}, err
	}
	if c.Provider == "s3" {
		if done, err := a.fromSNS(ctx, events); done != "" || err != nil {
			return &body[pushed]{pushed{Message: done}}, err
		}
	}
	messages := make([]bus.Message, len(events))
	for i, e := range events {
		if len(e) > maxNotification {
			return nil, newProblem(http.StatusRequestEntityTooLarge, "request_too_large", "A notification may have at most %d bytes.", maxNotification).
				with("limit_bytes", maxNotification)
		}
		// The buffer of the body is used again for another request; the write may outlive this one.
		messages[i] = bus.Message{Subject: a.bus.Subject("notification", c.ID), Data: bytes.Clone(e)}
	}
	_, errs := a.bus.PublishAll(ctx, messages)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &body[pushed]{pushed{Message: "stored"}}, nil
}

// authorizePush says no in a way that the sender bears.
func (a *Admin) authorizePush(r *http.Request) error {
	err := a.authorizeSender(withCode(r))
	if fromEventGrid(r) {
		return comeBack(err)
	}
	return err
}

// authorizeSender takes an OIDC token where that is configured, and an API key always.
func (a *Admin) authorizeSender(r *http.Request) error {
	token := bearer(r)
	if a.push == nil || r.Header.Get("X-API-Key") != "" || strings.Count(token, ".") != 2 {
		return a.authorizeAs(r, write, notifying)
	}
	if err := a.push.verify(r.Context(), token); err != nil {
		a.metrics.refused.WithLabelValues(refusedPush).Inc()
		return err
	}
	return nil
}
