package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/shared/bus"
	"millrace/shared/control"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Commands are operations that nobody waits for: published on <prefix>.command.<resource>.<verb>, kept by the broker
// until they are carried out, by the same handlers as requests. A command's id is its Nats-Msg-Id.
//
//	claim ─▶ carry out ─▶ record the outcome ─▶ tell it as an event ─▶ ack, or dead letter
//
// A crash at any line brings the message back. Before the record it is carried out again, with its id as Idempotency-Key;
// behind it only what is missing is done. A second message with the id of a command that succeeded is told the outcome of
// the first; one that failed may be tried again under the same id.

// Times and numbers of the command handler.
const (
	commandWorkers  = 16
	commandTimeout  = browseTimeout + requestTimeout
	commandAttempts = 5 // for what may pass; a broker that is away does not count
	// takenFor is how long a claim counts that is not renewed: longer than any handler runs.
	takenFor = 2 * commandTimeout
	// askAgain is when a message looks again whose command another message has in hand.
	askAgain = 2 * time.Second
)

// commanded reports whether an operation can be a command: it changes something, and neither takes nor tells a secret,
// as messages are stored and outcomes are public.
func (o offer) commanded() bool { return o.writes && !o.secret }

var secretMember = regexp.MustCompile(`(^|_)(secret|password|credentials?|token|sas|connection_string|(access|account|private|api)_key)(_|$)|^key$`)

// hasSecrets reports whether one of the members looks like a secret by its name.
func hasSecrets(members []manualMember) bool {
	return slices.ContainsFunc(members, func(m manualMember) bool {
		return secretMember.MatchString(m.Name[strings.LastIndex(m.Name, ".")+1:])
	})
}

// commandDoor makes the router that takes commands.
func (a *Admin) commandDoor() (*control.Router, error) {
	r, err := a.env.Router()
	if err != nil {
		return nil, err
	}
	return r, r.Add(control.Handler{
		Name: "commands", Stream: a.bus.Stream(topology.Commands), Consumer: topology.AdminCommands,
		Concurrency: commandWorkers, Timeout: commandTimeout, Handle: a.command,
	})
}

// command carries one command out.
func (a *Admin) command(ctx context.Context, m *control.Message) error {
	name := strings.TrimPrefix(m.Subject, a.bus.Subject("command")+".")
	told := event.CommandEvent{Command: event.CommandID(m.ID), Correlation: m.ID, Name: name}
	if !m.Named {
		told.Command = event.UnnamedCommandID(m.Subject, m.Data, m.Stored)
		told.Correlation = told.Command
	}
	rec, err := a.claim(ctx, told.Command, contentOf(m), m.Stored)
	switch {
	case errors.Is(err, errOtherCommand):
		// Not recorded: the record is of the command that has this id.
		told = failed(told, http.StatusConflict, "idempotency_request_mismatch", "Another command was published with this Nats-Msg-Id.")
		return a.tell(ctx, store.Command{ID: told.Command, Message: m.Stored, EndedAt: m.Stored, Outcome: &told})
	case err != nil:
		return err
	case rec.Outcome == nil:
		if rec, err = a.carryOut(ctx, rec, told, m); err != nil {
			return err
		}
	}
	if err := a.tell(ctx, rec); err != nil {
		return err
	}
	if rec.Dead != "" {
		return bus.Poison(errors.New(rec.Dead))
	}
	return nil
}

// contentOf tells commands apart that have the same id.
func contentOf(m *control.Message) string {
	sum := sha256.Sum256(append([]byte(m.Subject+"\x00"), bytes.TrimSpace(m.Data)...))
	return hex.EncodeToString(sum[:16])
}

var (
	errOtherCommand = errors.New("another command has this id")
	errInHand       = errors.New("the command is in hand already")
)

// claim takes a command for the message that was stored at a time. It returns the record without an outcome when the
// command is to be carried out, with the outcome when it was, and errOtherCommand when the id is taken.
func (a *Admin) claim(ctx context.Context, id, content string, message time.Time) (store.Command, error) {
	now := time.Now().UTC()
	rec, _, err := a.commandRecords.Modify(ctx, id, func(c *store.Command) error {
		same := c.Message.Equal(message)
		switch {
		case c.Outcome != nil && same: // what is missing behind the record
			return store.ErrUnchanged
		case c.Done() && c.Content != content:
			return errOtherCommand
		case c.Done():
			return store.ErrUnchanged
		case c.ID != "" && c.Outcome == nil && !same && now.Sub(c.TakenAt) < takenFor:
			return bus.RetryAfter(askAgain, errInHand)
		case same:
			c.TakenAt = now
			return nil
		}
		*c = store.Command{ID: id, Content: content, Message: message, TakenAt: now}
		return nil
	})
	return rec, err
}

// carryOut calls the operation and records its outcome. An error means that the outcome is open.
func (a *Admin) carryOut(ctx context.Context, rec store.Command, told event.CommandEvent, m *control.Message) (store.Command, error) {
	var dead string
	if o, ok := a.commanded[told.Name]; ok {
		header := http.Header{"Idempotency-Key": {repetitionKey(told)}}
		for _, name := range passedOn[1:] {
			header.Set(name, m.Header.Get(strings.ToLower(name)))
		}
		w := a.call(ctx, o, m.Data, header, 0)
		told.Status = w.status
		if w.failed() {
			var e envelope
			_ = json.Unmarshal(w.body.Bytes(), &e) // every error of ours is one
			told.Code, told.Message = e.Error.Code, e.Error.Message
		} else {
			told.IDs = idsIn(w.body.Bytes())
		}
		reason := fmt.Sprintf("%d %s: %s", w.status, told.Code, told.Message)
		switch {
		case ctx.Err() != nil:
			return rec, context.Cause(ctx) // what the handler made of it says nothing about the command
		case w.status == http.StatusServiceUnavailable, w.status == http.StatusTooManyRequests:
			seconds, _ := strconv.Atoi(w.header.Get("Retry-After"))
			return rec, bus.RetryAfter(time.Duration(max(seconds, 1))*time.Second, errors.New(reason))
		case w.status >= http.StatusInternalServerError:
			if rec.Attempts++; rec.Attempts < commandAttempts {
				return rec, errors.Join(errors.New(reason), a.record(ctx, rec))
			}
			dead = fmt.Sprintf("gave up after %d attempts: %s", rec.Attempts, reason)
		case malformed[told.Code]:
			dead = reason
		}
	} else if slices.ContainsFunc(a.offers, func(o offer) bool { return o.subject == told.Name }) {
		told = failed(told, http.StatusBadRequest, "command_not_available",
			told.Name+" is no command, as it only looks, or takes or tells a secret: send it as a request.")
	} else {
		told = failed(told, http.StatusNotFound, "command_not_found", "There is no command "+told.Name+".")
		dead = told.Message
	}
	rec.Outcome, rec.EndedAt, rec.Dead = &told, time.Now().UTC(), dead
	rec.Index = cmp.Or(told.IDs["index_id"], told.IDs["target_index_id"], indexIn(m.Data))
	return rec, a.record(ctx, rec)
}

func failed(told event.CommandEvent, status int, code, message string) event.CommandEvent {
	told.Status, told.Code, told.Message = status, code, message
	return told
}

// malformed are the errors of commands that can never be carried out as they are.
var malformed = map[string]bool{"request_malformed": true, "request_too_large": true, "validation_error": true}

// record stores where a command stands, unless another message has it by now.
func (a *Admin) record(ctx context.Context, rec store.Command) error {
	_, _, err := a.commandRecords.Modify(ctx, rec.ID, func(c *store.Command) error {
		if !c.Message.Equal(rec.Message) {
			return bus.RetryAfter(askAgain, errInHand)
		}
		*c = rec
		return nil
	})
	return err
}

// noIndex stands where the subject of an event names an index and there is none.
const noIndex = "-"

// tell publishes the outcome. Its id is the same for every repetition, and another for a later try under the same id.
func (a *Admin) tell(ctx context.Context, rec store.Command) error {
	typ := event.CommandCompleted
	if rec.Outcome.Status >= http.StatusBadRequest {
		typ = event.CommandFailed
	}
	e, err := bus.NewEvent(typ, cmp.Or(rec.Index, noIndex), rec.ID, rec.EndedAt, rec.Outcome)
	if err != nil {
		return err
	}
	e.ID = event.IDOf(typ, e.Index, rec.ID+"/"+rec.Message.UTC().Format(time.RFC3339Nano))
	msg := a.bus.EventMessage(e)
	msg.Header.Set("ce-correlationid", rec.Outcome.Correlation)
	_, err = a.bus.Publish(ctx, msg)
	return err
}

var opaque = regexp.MustCompile(`^[[:graph:]]{1,255}$`)

// repetitionKey is the given id, so that the same request over another door is known as a repetition.
func repetitionKey(told event.CommandEvent) string {
	if opaque.MatchString(told.Correlation) {
		return told.Correlation
	}
	return told.Command
}

// idsIn finds the ids in an answer. Nothing else of it is passed on.
func idsIn(answer []byte) map[string]string {
	var members map[string]any
	if json.Unmarshal(answer, &members) != nil {
		return nil // a list
	}
	ids := make(map[string]string)
	for name, v := range members {
		if s, ok := v.(string); ok && strings.HasSuffix(name, "_id") && event.IsToken(s) {
			ids[name] = s
		}
	}
	return ids
}

// indexIn is the index that a command names, if any.
func indexIn(body []byte) string {
	var named struct {
		Index string `json:"index_id"`
	}
	if json.Unmarshal(body, &named) != nil || !event.IsToken(named.Index) {
		return ""
	}
	return named.Index
}
