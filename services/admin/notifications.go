package admin

import (
	"bytes"
	"context"
	"net/http"
	"strings"

	"millrace/shared/bus"
)

// maxNotification bounds one pushed notification, in bytes. The broker takes no larger message.
const maxNotification = 1<<20 - 4<<10

type pushedNotification struct {
	Connector string `path:"connector_id"`
	RawBody   []byte `contentType:"*/*"`
}

func (a *Admin) notificationRoutes() {
	register(a, route{
		method: "POST", path: "/notifications/{connector_id}", scope: write, auth: a.authorizePush, tag: "Connectors", raw: maxNotification,
		summary: "Push a notification of a storage system",
		about: "The body is stored as it is, and answered once it is durable. It is a hint: what it says is looked up in the storage. " +
			"Where the operator configured an audience and a service account, an OIDC token of Pub/Sub is accepted in place of a key.",
	}, a.takeNotification)
}

func (a *Admin) takeNotification(ctx context.Context, in *pushedNotification) (*body[message], error) {
	c, err := lookUp(ctx, a.connectors, "connector", in.Connector)
	if err != nil {
		return nil, err
	}
	// The buffer of the body is used again for another request; the write may outlive this one.
	_, err = a.bus.Publish(ctx, bus.Message{Subject: a.bus.Subject("notification", c.ID), Data: bytes.Clone(in.RawBody)})
	if err != nil {
		return nil, err
	}
	return &body[message]{message{"stored"}}, nil
}

// authorizePush takes an OIDC token where that is configured, and an API key always.
func (a *Admin) authorizePush(r *http.Request) error {
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
