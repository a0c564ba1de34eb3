package admin

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/topology"
)

// deadLetter is an event.Dead as clients see it.
type deadLetter struct {
	ID        string  `json:"dead_id"`
	Service   string  `json:"service" doc:"that gave up"`
	Consumer  string  `json:"consumer"`
	Stream    string  `json:"stream"`
	Subject   string  `json:"subject" doc:"where the message came from, and goes when it is replayed"`
	Reason    string  `json:"reason"`
	Stage     string  `json:"stage" enum:"receive,decode,handle,panic,deliver"`
	Delivered int     `json:"delivered" doc:"how often it was tried"`
	At        string  `json:"at" format:"date-time"`
	Bytes     int     `json:"data_bytes"`
	Data      *string `json:"data" doc:"the beginning of the message, up to 2 KiB; null when it is no text, or may hold credentials"`
	Cut       bool    `json:"cut" doc:"the message was too large to be kept whole, and cannot be replayed"`
}

// maxShownData bounds how much of a dead message a list shows, in bytes.
const maxShownData = 2 << 10

func (a *Admin) viewDead(id string, d event.Dead) deadLetter {
	v := deadLetter{
		ID: id, Service: d.Service, Consumer: d.Consumer, Stream: d.Stream, Subject: d.Subject, Reason: d.Reason, Stage: d.Stage,
		Delivered: d.Delivered, At: stamp(d.At), Bytes: len(d.Data), Cut: d.Cut,
	}
	// A command that could not be read may hold anything, also what it was to seal.
	if text := d.Data; utf8.Valid(text) && !strings.HasPrefix(d.Subject, a.bus.Subject("command")+".") {
		shown := strings.ToValidUTF8(string(text[:min(len(text), maxShownData)]), "")
		v.Data = &shown
	}
	return v
}

// deadID names a letter by its place in the stream, and by what it says: after a restore the same place can hold
// another.
func deadID(seq uint64, data []byte) string {
	sum := sha256.Sum256(data)
	return fmt.Sprintf("dead_%s_%x", strconv.FormatUint(seq, 36), sum[:6])
}

var deadIDs = regexp.MustCompile(`^dead_([0-9a-z]{1,12})_[0-9a-f]{12}$`)

type deadPath struct {
	ID string `path:"dead_id"`
}

type listDead struct {
	Service string `query:"service" doc:"only what this service gave up"`
	Limit   int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
	Cursor  string `query:"cursor" maxLength:"512" doc:"pagination.next_cursor of the page before"`
}

type replayedDead struct {
	Message string `json:"message"`
	ID      string `json:"dead_id"`
	Subject string `json:"subject" doc:"where the message was published again"`
}

func (a *Admin) deadRoutes() {
	const tag = "Dead letters"
	register(a, route{
		method: "GET", path: "/dead", scope: read, tag: tag, summary: "List messages that could not be handled",
		about: "Newest first, with the reason. They are kept for 30 days.",
	}, a.listDead)
	register(a, route{
		method: "POST", path: "/dead/{dead_id}/replay", scope: write, tag: tag, summary: "Handle a dead message again",
		about: "Publishes the message once more to where it came from, and removes the letter. If it fails again there is a new one.",
	}, a.replayDead)
	register(a, route{method: "DELETE", path: "/dead/{dead_id}", scope: admin, tag: tag, summary: "Throw a dead message away"}, a.deleteDead)
}

func (a *Admin) listDead(ctx context.Context, in *listDead) (*body[page[deadLetter]], error) {
	service := "*"
	if in.Service != "" {
		if !event.IsToken(in.Service) {
			return nil, invalid("service", "must be the name of a service, such as scanner")
		}
		service = in.Service
	}
	list := "dead " + service
	position, err := openCursor(list, in.Cursor)
	if err != nil {
		return nil, err
	}
	var before uint64
	if position != "" {
		if before, err = strconv.ParseUint(position, 36, 64); err != nil || before == 0 {
			return nil, badCursor()
		}
	}
	letters, next, last := make([]deadLetter, 0, 16), "", uint64(0)
	for m, err := range a.bus.Back(ctx, topology.DeadLetters, a.bus.Subject("dead", service, "*"), before) {
		if err != nil {
			return nil, err
		}
		if len(letters) == in.Limit {
			next = strconv.FormatUint(last, 36)
			break
		}
		last = m.Sequence
		letters = append(letters, a.viewDead(deadID(m.Sequence, m.Data), readDead(m.Data, m.Subject)))
	}
	return &body[page[deadLetter]]{newPage(letters, in.Limit, sealCursor(list, next))}, nil
}

// readDead reads a letter. What is not one is shown for what it is.
func readDead(data []byte, subject string) event.Dead {
	var d event.Dead
	if err := json.Unmarshal(data, &d); err != nil || d.Subject == "" {
		tokens := strings.Split(subject, ".")
		return event.Dead{
			Service: tokens[len(tokens)-2], Consumer: tokens[len(tokens)-1], Subject: subject, Stage: "receive", Data: data, Cut: true,
			Reason: "this is no letter of ours: somebody else published it here",
		}
	}
	return d
}

// letter is a dead letter in its stream.
type letter struct {
	event.Dead
	seq uint64
}

var errGone = errors.New("the letter is gone")

// dead returns a letter by its id. errGone means that there was one and it was replayed, thrown away, or has expired.
func (a *Admin) dead(ctx context.Context, id string) (letter, jetstream.Stream, error) {
	m := deadIDs.FindStringSubmatch(id)
	if m == nil {
		return letter{}, nil, notFound("dead_letter", id)
	}
	seq, err := strconv.ParseUint(m[1], 36, 64)
	if err != nil || seq == 0 {
		return letter{}, nil, notFound("dead_letter", id)
	}
	s, err := a.bus.JetStream().Stream(ctx, a.bus.Stream(topology.DeadLetters))
	if err != nil {
		return letter{}, nil, err
	}
	raw, err := s.GetMsg(ctx, seq)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound) && seq <= s.CachedInfo().State.LastSeq:
		return letter{}, s, errGone
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return letter{}, nil, notFound("dead_letter", id)
	case err != nil:
		return letter{}, nil, err
	case deadID(seq, raw.Data) != id:
		return letter{}, nil, notFound("dead_letter", id)
	}
	return letter{readDead(raw.Data, raw.Subject), seq}, s, nil
}

// replayDead publishes first and removes the letter then, so that nothing is lost between the two. The message id lets
// the broker drop what a second replay of the letter publishes within two minutes, at the same time or after a crash
// between the two; later it comes twice, and every handler takes a repetition for one. After a crash behind the removal
// a request that is repeated hears that there is no such letter.
func (a *Admin) replayDead(ctx context.Context, in *deadPath) (*body[replayedDead], error) {
	d, s, err := a.dead(ctx, in.ID)
	if errors.Is(err, errGone) {
		return nil, notFound("dead_letter", in.ID)
	}
	if err != nil {
		return nil, err
	}
	if d.Cut || !a.ours(d.Subject) {
		return nil, newProblem(http.StatusConflict, "dead_letter_not_replayable",
			"The dead letter %s cannot be replayed: it is not whole, or did not come from a stream of this deployment.", in.ID).with("dead_id", in.ID)
	}
	header := make(nats.Header, len(d.Header))
	for k, v := range d.Header {
		if !strings.HasPrefix(strings.ToLower(k), "nats-") { // what told the broker where it was to go the first time
			header[k] = v
		}
	}
	if _, err := a.bus.Publish(ctx, bus.Message{Subject: d.Subject, Header: header, Data: d.Data, ID: "replay-" + in.ID}); err != nil {
		return nil, err
	}
	if err := remove(ctx, s, d.seq); err != nil {
		return nil, err
	}
	a.log.Info("dead letter replayed", "dead_id", in.ID, "subject", d.Subject)
	return &body[replayedDead]{replayedDead{Message: "Published again.", ID: in.ID, Subject: d.Subject}}, nil
}

// ours reports whether a subject belongs to a stream that carries messages of this deployment, and not to the dead.
func (a *Admin) ours(subject string) bool {
	return strings.HasPrefix(subject, a.bus.Subject()+".") && !strings.HasPrefix(subject, a.bus.Subject("dead")+".") &&
		!strings.ContainsAny(subject, "*> \t\r\n")
}

func (a *Admin) deleteDead(ctx context.Context, in *deadPath) (*body[message], error) {
	done := &body[message]{message{"Dead letter thrown away."}}
	d, s, err := a.dead(ctx, in.ID)
	if errors.Is(err, errGone) {
		return done, nil
	}
	if err != nil {
		return nil, err
	}
	return done, remove(ctx, s, d.seq)
}

// remove deletes a message; none there is no error.
func remove(ctx context.Context, s jetstream.Stream, seq uint64) error {
	err := s.DeleteMsg(ctx, seq)
	if err == nil {
		return nil
	}
	if _, gone := s.GetMsg(ctx, seq); errors.Is(gone, jetstream.ErrMsgNotFound) {
		return nil // somebody was faster
	}
	return err
}
