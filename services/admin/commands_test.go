package admin_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"millrace/services/admin"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// outcome is a command.* event.
type outcome struct {
	id, correlation, typ, subject string
	event.CommandEvent
}

// commander publishes commands and hears of outcomes.
type commander struct {
	*natsDoor
	w        *world
	outcomes chan outcome
}

func (w *world) commander() *commander {
	w.t.Helper()
	c := &commander{natsDoor: w.natsDoor(), w: w, outcomes: make(chan outcome, 1000)}
	_, err := c.nc.Subscribe("t.event.command.>", func(m *nats.Msg) {
		o := outcome{id: m.Header.Get("ce-id"), correlation: m.Header.Get("ce-correlationid"), typ: m.Header.Get("ce-type"), subject: m.Subject}
		if err := json.Unmarshal(m.Data, &o.CommandEvent); err != nil {
			w.t.Error(err)
		}
		c.outcomes <- o
	})
	must(w.t, err)
	must(w.t, c.nc.Flush())
	return c
}

// publish publishes a command and returns when it is stored; without an id when id is "".
func (c *commander) publish(name, id, body string) {
	c.t.Helper()
	m := &nats.Msg{Subject: "t.command." + name, Data: []byte(body), Header: nats.Header{}}
	if id != "" {
		m.Header.Set("Nats-Msg-Id", id)
	}
	ack, err := c.nc.RequestMsg(m, 10*time.Second)
	if err == nil && !strings.Contains(string(ack.Data), `"seq"`) {
		err = fmt.Errorf("not stored: %s", ack.Data)
	}
	must(c.t, err)
}

func (c *commander) next() outcome {
	c.t.Helper()
	select {
	case o := <-c.outcomes:
		if o.correlation != o.Correlation || !strings.Contains(o.subject, "."+o.Command) || "t.event."+o.typ != o.subject[:len("t.event."+o.typ)] {
			c.t.Errorf("event %+v", o)
		}
		return o
	case <-time.After(30 * time.Second):
		c.t.Fatal("no outcome")
		return outcome{}
	}
}

// later forgets what the broker remembers of message ids, as two minutes do.
func (c *commander) later() {
	c.t.Helper()
	js := c.w.bus.JetStream()
	s, err := js.Stream(c.t.Context(), c.w.bus.Stream(topology.Commands))
	must(c.t, err)
	cfg := s.CachedInfo().Config
	cfg.Duplicates = 100 * time.Millisecond // the least there is
	_, err = js.UpdateStream(c.t.Context(), cfg)
	must(c.t, err)
}

func (c *commander) dead() []event.Dead {
	c.t.Helper()
	var letters []event.Dead
	for m, err := range c.w.bus.Scan(c.t.Context(), topology.DeadLetters, "t.dead.admin.admin-commands", 0) {
		must(c.t, err)
		var d event.Dead
		must(c.t, json.Unmarshal(m.Data, &d))
		letters = append(letters, d)
	}
	return letters
}

func (c *commander) settled() {
	c.t.Helper()
	eventually(c.t, "all commands are settled", func() bool {
		st, err := c.w.bus.State(c.t.Context(), topology.Commands)
		return err == nil && st.Msgs == 0
	})
}

func (w *world) count(what string) int {
	list, _ := w.do("GET", "/"+what, nil).want(200).body.([]any)
	return len(list)
}

func TestCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	c := w.commander()
	c.later()

	// Done, told under its id, and not done again by a repetition long after.
	c.publish("indexes.create", "order 1", `{"name": "Yard"}`)
	first := c.next()
	if first.typ != "command.completed" || first.correlation != "order 1" || first.Status != 201 || first.IDs["index_id"] == "" {
		t.Fatalf("%+v", first)
	}
	w.do("GET", "/indexes/"+first.IDs["index_id"], nil).want(200)
	indexes := w.count("indexes")
	var again outcome
	eventually(t, "the repetition is stored as a message of its own", func() bool {
		c.publish("indexes.create", "order 1", ` {"name": "Yard"} `)
		select {
		case again = <-c.outcomes:
			return true
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
	if again.id != first.id || again.IDs["index_id"] != first.IDs["index_id"] {
		t.Errorf("%+v after %+v", again, first)
	}
	if n := w.count("indexes"); n != indexes {
		t.Errorf("%d indexes, want %d", n, indexes)
	}

	// Another command under that id.
	c.settled()
	for len(c.outcomes) > 0 {
		<-c.outcomes
	}
	eventually(t, "another command under the id is stored", func() bool {
		c.publish("indexes.create", "order 1", `{"name": "Garden"}`)
		select {
		case again = <-c.outcomes:
			return again.typ == "command.failed"
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
	if again.Status != 409 || again.Code != "idempotency_request_mismatch" || again.correlation != "order 1" {
		t.Errorf("%+v", again)
	}

	// Without an id each message is a command of its own.
	c.settled()
	for len(c.outcomes) > 0 {
		<-c.outcomes
	}
	c.publish("indexes.create", "", `{"name": "Twice"}`)
	c.publish("indexes.create", "", `{"name": "Twice"}`)
	x, y := c.next(), c.next()
	if x.Command == y.Command || x.correlation != x.Command || x.IDs["index_id"] == y.IDs["index_id"] {
		t.Errorf("%+v %+v", x, y)
	}

	// Refused for what there is: told, and no dead letter. Then the reason is gone, and the id is good for another try.
	c.publish("automations.pause", "pause", `{"index_id": "`+x.IDs["index_id"]+`"}`)
	if o := c.next(); o.typ != "command.failed" || o.Code != "resource_import_automation_not_found" || !strings.Contains(o.subject, x.IDs["index_id"]) {
		t.Errorf("%+v", o)
	}
	w.do("PUT", "/indexes/"+x.IDs["index_id"]+"/automations/import", obj{"connector_id": f.connector, "debounce_interval": "5m", "prompt_preset": nil}).want(200)
	eventually(t, "the command is tried again", func() bool {
		c.publish("automations.pause", "pause", `{"index_id": "`+x.IDs["index_id"]+`"}`)
		select {
		case o := <-c.outcomes:
			return o.typ == "command.completed" && o.IDs["automation_id"] != ""
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
	c.settled()
	if d := c.dead(); len(d) != 0 {
		t.Errorf("dead letters: %+v", d)
	}
}

func TestMalformedCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fixture()
	c := w.commander()
	for _, bad := range []struct{ name, body, code string }{
		{"indexes.create", `{"name":`, "request_malformed"},
		{"indexes.create", `[]`, "request_malformed"},
		{"indexes.create", `{"name": ""}`, "validation_error"},
		{"import-jobs.cancel", `{}`, "validation_error"},
		{"nothing.create", `{}`, "command_not_found"},
	} {
		before := len(c.dead())
		c.publish(bad.name, "", bad.body)
		o := c.next()
		if o.typ != "command.failed" || o.Code != bad.code || o.Name != bad.name || o.Message == "" {
			t.Errorf("%+v: %+v", bad, o)
		}
		c.settled()
		letters := c.dead()
		if len(letters) != before+1 {
			t.Fatalf("%+v: %d dead letters", bad, len(letters)-before)
		}
		if d := letters[before]; string(d.Data) != bad.body || d.Subject != "t.command."+bad.name || !strings.Contains(d.Reason, o.Message) || d.Delivered != 1 {
			t.Errorf("%+v", d)
		}
	}
	// What only looks is no command; what takes secrets is not either, and is kept nowhere.
	letters := len(c.dead())
	for _, name := range []string{"indexes.get", "connectors.browse", "connectors.create-gcs"} {
		c.publish(name, "", `{"credentials_file": "PLANTED"}`)
		if o := c.next(); o.Code != "command_not_available" || strings.Contains(o.Message, "PLANTED") {
			t.Errorf("%s: %+v", name, o)
		}
	}
	c.settled()
	if n := len(c.dead()); n != letters {
		t.Errorf("%d dead letters of what is no command", n-letters)
	}
}

// Whatever is done before a crash, the redelivery does the rest: the outcome is recorded but was not told, or the
// message is in the hands of a process that died.
func TestCommandsAfterACrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fixture()
	records := register[store.Command](w, topology.CommandRecords)
	// Stored while no admin runs.
	nc, err := w.env.Connect("client")
	must(t, err)
	defer nc.Close()
	send := func(id, body string) time.Time {
		m := &nats.Msg{Subject: "t.command.indexes.create", Data: []byte(body), Header: nats.Header{"Nats-Msg-Id": {id}}}
		_, err := nc.RequestMsg(m, 10*time.Second)
		must(t, err)
		var stored time.Time
		for m, err := range w.bus.Scan(t.Context(), topology.Commands, "t.command.>", 0) {
			must(t, err)
			stored = m.Time
		}
		return stored
	}
	at := send("told", `{"name": "A"}`)
	done := event.CommandEvent{Command: event.CommandID("told"), Correlation: "told", Name: "indexes.create", Status: 201, IDs: map[string]string{"index_id": "idx_1"}}
	must(t, records.Put(t.Context(), done.Command, store.Command{ID: done.Command, Message: at, TakenAt: at, Outcome: &done, Index: "idx_1", EndedAt: at}))
	at = send("taken", `{"name": "B"}`)
	must(t, records.Put(t.Context(), event.CommandID("taken"), store.Command{ID: event.CommandID("taken"), Message: at, TakenAt: time.Now()}))
	send("late", `{"name": "C"}`)
	// In the hands of another message, whose process died so long ago that the claim is about to end.
	must(t, records.Put(t.Context(), event.CommandID("late"), store.Command{ID: event.CommandID("late"), Message: at.Add(-time.Hour), TakenAt: time.Now().Add(-admin.TakenFor + time.Second)}))

	indexes := w.count("indexes")
	c := w.commander()
	c.settled()
	if n := c.told(); n != 3 {
		t.Errorf("%d outcomes were told, want 3", n)
	}
	if n := w.count("indexes"); n != indexes+2 {
		t.Errorf("%d new indexes, want 2", n-indexes)
	}
	for _, id := range []string{"told", "taken", "late"} {
		rec, _, err := records.Get(t.Context(), event.CommandID(id))
		must(t, err)
		if rec.Outcome == nil || rec.Outcome.Status != 201 || rec.Outcome.Correlation != id || rec.Outcome.IDs["index_id"] == "" {
			t.Errorf("%+v", rec)
		}
	}
	if d := c.dead(); len(d) != 0 {
		t.Errorf("dead letters: %+v", d)
	}
}

// told counts the outcomes of commands that were carried out.
func (c *commander) told() (n int) {
	for m, err := range c.w.bus.Scan(c.t.Context(), topology.Events, "t.event.command.>", 0) {
		must(c.t, err)
		if strings.HasPrefix(m.Subject, "t.event.command.completed.") {
			n++
		}
	}
	return n
}

// Many at once, the same ones among them from several publishers, are each done once.
func TestManyCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fixture()
	c := w.commander()
	indexes := w.count("indexes")
	const different, publishers = 20, 3
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for i := range different {
				c.publish("indexes.create", fmt.Sprintf("many-%d", (i+p)%different), fmt.Sprintf(`{"name": "n %d"}`, (i+p)%different))
			}
		})
	}
	wg.Wait()
	for range different {
		if o := c.next(); o.typ != "command.completed" {
			t.Errorf("%+v", o)
		}
	}
	c.settled()
	if n := w.count("indexes") - indexes; n != different {
		t.Errorf("%d new indexes, want %d", n, different)
	}
}
