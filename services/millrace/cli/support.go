package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"millrace/services/millrace/client"
)

type explainCommand struct {
	shown     `embed:""`
	Connector string `arg:"" help:"The connector."`
	Path      string `arg:"" help:"The path of the object in it."`
}

// Run tells the story of an object.
func (c *explainCommand) Run(ctx context.Context) error {
	query := url.Values{"connector_id": {c.Connector}, "path": {c.Path}}
	var raw json.RawMessage
	if err := c.dial().Get(ctx, "/explain?"+query.Encode(), &raw); err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(raw)
	}
	return tellStory(os.Stdout, raw)
}

// tellStory prints an explanation for people: the answer, who wants the object, and what happened.
func tellStory(w io.Writer, raw json.RawMessage) error {
	var story struct {
		Verdict     string `json:"verdict"`
		Automations []struct {
			Index   string `json:"index_id"`
			Matches bool   `json:"matches"`
			Reason  string `json:"reason"`
		} `json:"automations"`
		Steps []struct {
			At   time.Time `json:"at"`
			Step string    `json:"step"`
			Text string    `json:"text"`
		} `json:"steps"`
		StorageError  *string    `json:"storage_error"`
		SearchedSince *time.Time `json:"notifications_searched_since"`
	}
	if err := json.Unmarshal(raw, &story); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	fmt.Fprintf(w, "%s\n", printable(story.Verdict))
	if len(story.Automations) > 0 {
		fmt.Fprintln(w)
	}
	for _, a := range story.Automations {
		wants := "does not want it"
		if a.Matches {
			wants = "wants it"
		}
		fmt.Fprintf(w, "  %s %s: %s\n", a.Index, wants, printable(a.Reason))
	}
	if len(story.Steps) > 0 {
		fmt.Fprintln(w)
	}
	for _, s := range story.Steps {
		fmt.Fprintf(w, "  %s  %-12s  %s\n", s.At.Local().Format("2006-01-02 15:04:05"), s.Step, printable(s.Text))
	}
	if story.StorageError != nil {
		fmt.Fprintf(w, "\nThe storage could not be asked: %s\n", printable(*story.StorageError))
	}
	if story.SearchedSince != nil {
		fmt.Fprintf(w, "\nNotifications before %s were not looked at; there are too many.\n", story.SearchedSince.Local().Format("2006-01-02 15:04:05"))
	}
	return nil
}

type deadCommand struct {
	Ls     deadList   `cmd:"" help:"List messages that could not be handled, the newest first."`
	Replay deadReplay `cmd:"" help:"Publish a message again to where it came from."`
	Rm     deadRemove `cmd:"" help:"Throw a message away."`
}

var (
	deadColumns = []column{{"LETTER", "dead_id"}, {"AT", "at"}, {"CONSUMER", "consumer"}, {"REASON", "reason"}}
	deadWide    = []column{{"SUBJECT", "subject"}, {"STAGE", "stage"}, {"TRIED", "delivered"}, {"DATA", "data"}}
)

type deadList struct {
	shown   `embed:""`
	Service string `help:"Only what this service gave up." placeholder:"NAME"`
	Limit   int    `help:"The most to list; 0: all." default:"100" placeholder:"N"`
}

// Run lists letters.
func (c *deadList) Run(ctx context.Context) error {
	return c.pages(ctx, "/dead", optional("service", c.Service), c.Limit, deadColumns, deadWide)
}

// ofLetter is a letter that is meant.
type ofLetter struct {
	shown `embed:""`
	ID    string `arg:"" help:"The letter."`
}

func (c ofLetter) path(verb string) string { return "/dead/" + url.PathEscape(c.ID) + verb }

type deadReplay struct{ ofLetter }

// Run replays a letter.
func (c *deadReplay) Run(ctx context.Context) error {
	return c.post(ctx, c.path("/replay"), nil, []column{{"LETTER", "dead_id"}, {"SUBJECT", "subject"}, {"MESSAGE", "message"}}, nil)
}

type deadRemove struct{ ofLetter }

// Run throws a letter away.
func (c *deadRemove) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, c.path(""), nil, messageColumns, nil)
}

type eventsCommand struct {
	shown  `embed:""`
	Follow bool     `short:"f" help:"Accepted for those who are used to it: events are always followed."`
	Type   []string `help:"Only these types, such as import_job.* or media.created." placeholder:"LIST"`
	Index  string   `help:"Only events of this index." placeholder:"ID"`
	After  string   `help:"Go on behind the event that had this id on the stream." placeholder:"ID"`
}

// Run prints events as they come, until it is interrupted.
func (c *eventsCommand) Run(ctx context.Context) error { return c.follow(ctx, c.print) }

// comeBack is how long it takes to ask again when a stream has broken off.
const comeBack = 2 * time.Second

// follow passes on events until ctx ends. A stream that breaks off goes on where that was, also when the server is away
// for a while; what fails is the first connection, a refusal, and each.
func (c *eventsCommand) follow(ctx context.Context, each func(data string) error) error {
	query := optional("type", strings.Join(c.Type, ","), "index_id", c.Index)
	connected := false
	for last := c.After; ; {
		var unshown error
		err := c.dial().Stream(ctx, "/events?"+query.Encode(), last, func(body io.Reader) error {
			connected = true
			unshown = readEvents(body, &last, each)
			return unshown
		})
		var refused *client.Problem
		lasting := !connected || unshown != nil || errors.As(err, &refused) && refused.Status < http.StatusInternalServerError
		if err != nil && ctx.Err() == nil && lasting {
			return err
		}
		select {
		case <-time.After(comeBack):
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *eventsCommand) print(data string) error {
	if c.Output == "json" {
		_, err := fmt.Println(data)
		return err
	}
	var e struct {
		Time    time.Time       `json:"time"`
		Type    string          `json:"type"`
		Index   string          `json:"index_id"`
		Subject string          `json:"subject"`
		Data    json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return fmt.Errorf("decode event: %w", err)
	}
	line := fmt.Sprintf("%s  %-28s  %s  %s", e.Time.Local().Format("2006-01-02 15:04:05"), e.Type, e.Index, e.Subject)
	if c.Output == "wide" {
		line += "  " + string(e.Data)
	}
	_, err := fmt.Println(line)
	return err
}

// readEvents reads server-sent events, notes the id of each in last, and passes on its data.
func readEvents(body io.Reader, last *string, each func(data string) error) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 16<<20)
	id, data := "", ""
	for lines.Scan() {
		switch name, value, _ := strings.Cut(lines.Text(), ":"); {
		case name == "id":
			id = strings.TrimPrefix(value, " ")
		case name == "data":
			data = strings.TrimPrefix(value, " ")
		case lines.Text() == "" && data != "":
			if err := each(data); err != nil {
				return err
			}
			*last, data = id, ""
		}
	}
	return nil // how a stream breaks off says nothing; the next one goes on behind the last event
}
