package admin

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"millrace/shared/store"
)

// Event Grid gives up on an event at once when it is answered 400, 401, 403 or 413. What may be a fault of our own, such as
// a key that was revoked too early, must not cost the event: it is told to come back.

// fromEventGrid reports whether a request delivers events, which includes no handshake.
func fromEventGrid(r *http.Request) bool {
	return r.Header.Get("Aeg-Event-Type") == "Notification" || r.Header.Get("Aeg-Delivery-Count") != ""
}

// comeBack is what a sender that gives up too easily hears in place of err.
func comeBack(err error) error {
	var p *problemError
	if !errors.As(err, &p) || p.status != http.StatusUnauthorized && p.status != http.StatusForbidden {
		return err
	}
	again := newProblem(http.StatusServiceUnavailable, p.code, "%s Until then events have to come again.", p.message)
	again.details, again.retryAfter = p.details, 60
	return again
}

// withCode lets a sender that cannot set headers bring its key in the query, as Event Grid's subscriptions may: ?code=KEY.
func withCode(r *http.Request) *http.Request {
	code := r.URL.Query().Get("code")
	if code == "" || credential(r) != "" {
		return r
	}
	r = r.Clone(r.Context())
	r.Header.Set("X-API-Key", code)
	return r
}

// eventsIn takes a list of events apart, so that each is stored, tried again and explained by itself. Anything else is one
// message as it is.
func eventsIn(data []byte) [][]byte {
	var list []json.RawMessage
	if json.Unmarshal(data, &list) != nil || len(list) == 0 {
		return [][]byte{data}
	}
	events := make([][]byte, len(list))
	for i, e := range list {
		var shape struct {
			EventType   string `json:"eventType"`
			SpecVersion string `json:"specversion"`
		}
		if json.Unmarshal(e, &shape) != nil || shape.EventType == "" && shape.SpecVersion == "" {
			return [][]byte{data}
		}
		events[i] = e
	}
	return events
}

// validationCode answers the handshake by which Event Grid asks whether events are wanted here. It is "" for anything
// else. A topic that is not of the connector's account is turned away: somebody subscribed the wrong one.
func validationCode(c store.Connector, events [][]byte) (string, error) {
	var e struct {
		EventType string `json:"eventType"`
		Topic     string `json:"topic"`
		Data      struct {
			Code string `json:"validationCode"`
		} `json:"data"`
	}
	if len(events) != 1 || json.Unmarshal(events[0], &e) != nil || e.EventType != "Microsoft.EventGrid.SubscriptionValidationEvent" {
		return "", nil //nolint:nilerr // what is not JSON is no handshake
	}
	_, rest, storage := strings.Cut(strings.ToLower(e.Topic), "/storageaccounts/")
	account, _, _ := strings.Cut(rest, "/")
	if c.Provider != "azure" || storage && account != strings.ToLower(c.StorageAccount) {
		return "", newProblem(http.StatusBadRequest, "notification_topic_unexpected",
			"Events of this topic do not belong to the connector %s: subscribe to the storage account of the connector.", c.ID).
			with("connector_id", c.ID)
	}
	return e.Data.Code, nil
}

// allowOrigin answers the handshake of CloudEvents: whoever asks with a key may send.
func (a *Admin) allowOrigin(w http.ResponseWriter, r *http.Request) {
	err := a.authorizeSender(withCode(r))
	if err == nil {
		_, err = lookUp(r.Context(), a.connectors, "connector", r.PathValue("connector_id"))
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("Allow", "OPTIONS, POST")
	if origin := r.Header.Get("WebHook-Request-Origin"); origin != "" {
		w.Header().Set("WebHook-Allowed-Origin", origin)
		w.Header().Set("WebHook-Allowed-Rate", cmp.Or(r.Header.Get("WebHook-Request-Rate"), "*"))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(message{"allowed"})
}

// whole returns a CloudEvent in one piece, whose data are the body and whose attributes are headers; any other body as it
// is.
func (in *pushedNotification) whole() ([]byte, error) {
	if in.SpecVersion == "" || !json.Valid(in.RawBody) {
		return in.RawBody, nil
	}
	members := map[string]any{
		"specversion": in.SpecVersion, "type": in.Type, "source": in.Source, "id": in.ID, "data": json.RawMessage(in.RawBody),
	}
	for name, value := range map[string]string{"subject": in.Subject, "time": in.Time} {
		if value != "" {
			members[name] = value
		}
	}
	return json.Marshal(members)
}
