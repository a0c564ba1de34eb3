package admin_test

import (
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/topology"
)

func (w *world) bury(d event.Dead) string {
	w.t.Helper()
	if d.Stage == "" {
		d.Consumer, d.Reason, d.Stage = "scanner-notifications", "why", "decode"
	}
	must(w.t, w.bus.Bury(w.t.Context(), d))
	return w.do("GET", "/dead?limit=1", nil).want(200).str("data", 0, "dead_id")
}

func (w *world) messages(stream, subject string) (data []string) {
	w.t.Helper()
	for m, err := range w.bus.Scan(w.t.Context(), stream, subject, 0) {
		must(w.t, err)
		data = append(data, string(m.Data))
	}
	return data
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 5 {
		w.bury(event.Dead{Subject: w.bus.Subject("notification", "c"), Delivered: 3, Data: []byte(fmt.Sprintf("<%d>", i))})
	}
	_, err := w.bus.Publish(t.Context(), bus.Message{Subject: w.bus.Subject("dead", "somebody", "else"), Data: []byte("no letter")})
	must(t, err)
	var ids []string
	for cursor := ""; ; {
		a := w.do("GET", "/dead?limit=2&cursor="+url.QueryEscape(cursor), nil).want(200)
		for i := range a.at("data").([]any) {
			ids = append(ids, a.str("data", i, "dead_id"))
		}
		if cursor = a.str("pagination", "next_cursor"); cursor == "" {
			break
		}
	}
	if len(ids) != 6 {
		t.Fatalf("%d letters: %v", len(ids), ids)
	}
	a := w.do("GET", "/dead?service=admin&limit=1", nil).want(200)
	if a.str("data", 0, "data") != "<4>" || a.at("data", 0, "delivered") != 3.0 || a.str("data", 0, "reason") != "why" || a.str("data", 0, "consumer") != "scanner-notifications" {
		t.Errorf("the newest: %s", a.raw)
	}
	w.do("GET", "/dead?service=*", nil).refused(422, "validation_error", "service")
	w.do("GET", "/dead?service=admin&cursor="+url.QueryEscape(a.str("pagination", "next_cursor")), nil).want(200)
	w.do("GET", "/dead?cursor="+url.QueryEscape(a.str("pagination", "next_cursor")), nil).refused(422, "validation_error", "cursor")
	w.do("POST", "/dead/"+ids[0]+"/replay", nil).refused(409, "dead_letter_not_replayable")

	w.do("DELETE", "/dead/"+ids[1], nil).want(200)
	w.do("DELETE", "/dead/"+ids[1], nil).want(200)
	w.do("POST", "/dead/"+ids[1]+"/replay", nil).refused(404, "resource_dead_letter_not_found")
	if a := w.do("GET", "/dead?limit=100", nil).want(200); len(a.at("data").([]any)) != 5 {
		t.Errorf("after the deletion: %s", a.raw)
	}
}

func TestReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subject := w.bus.Subject("notification", "c")
	// Headers that told the broker what to do the first time would make it refuse, or drop it, the second.
	header := map[string][]string{"ce-type": {"x"}, "Nats-Msg-Id": {"first"}, "Nats-Expected-Last-Subject-Sequence": {"99"}}
	_, err := w.bus.Publish(t.Context(), bus.Message{Subject: subject, Data: []byte("once"), ID: "first"})
	must(t, err)
	id := w.bury(event.Dead{Subject: subject, Header: header, Data: []byte("again")})
	var both sync.WaitGroup
	for range 4 { // at the same time: one message
		both.Go(func() {
			if a := w.do("POST", "/dead/"+id+"/replay", nil); a.status != 200 && a.status != 404 {
				t.Errorf("%d %s", a.status, a.raw)
			}
		})
	}
	both.Wait()
	if got := w.messages(topology.Notifications, subject); strings.Join(got, " ") != "once again" {
		t.Errorf("published: %v", got)
	}
	if a := w.do("GET", "/dead", nil).want(200); len(a.at("data").([]any)) != 0 {
		t.Errorf("still dead: %s", a.raw)
	}
	w.do("POST", "/dead/"+id+"/replay", nil).refused(404, "resource_dead_letter_not_found")

	for name, d := range map[string]event.Dead{
		"another deployment": {Subject: "other.notification.c"}, "a record": {Subject: "$KV.t-keys.x"}, "a wildcard": {Subject: w.bus.Subject("notification", "*")},
		"a letter": {Subject: w.bus.Subject("dead", "a", "b")}, "cut": {Subject: subject, Cut: true},
	} {
		if a := w.do("POST", "/dead/"+w.bury(d)+"/replay", nil); a.status != 409 {
			t.Errorf("%s: %d", name, a.status)
		}
	}
}

// What could not be read as a command may be one that carries credentials.
func TestDeadCommandsShowNoBody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.bury(event.Dead{Subject: w.bus.Subject("command", "connector", "create"), Data: []byte(`{"aws_secret_access_key": PLANTED`)})
	if a := w.do("GET", "/dead", nil).want(200); a.at("data", 0, "data") != nil || strings.Contains(string(a.raw), "PLANTED") {
		t.Errorf("%s", a.raw)
	}
	w.bury(event.Dead{Subject: w.bus.Subject("notification", "c"), Data: []byte(strings.Repeat("é", 5000))})
	if a := w.do("GET", "/dead", nil).want(200); len(a.str("data", 0, "data")) != 2048 {
		t.Errorf("%d bytes are shown", len(a.str("data", 0, "data")))
	}
	w.bury(event.Dead{Subject: w.bus.Subject("notification", "c"), Data: []byte{0xff, 0xfe}})
	if a := w.do("GET", "/dead", nil).want(200); a.at("data", 0, "data") != nil || a.at("data", 0, "data_bytes") != 2.0 {
		t.Errorf("%s", a.raw)
	}
}
