package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

type webhookCommand struct {
	Ls         webhookList       `cmd:"" help:"List webhooks."`
	Create     webhookCreate     `cmd:"" help:"Have events sent to a URL. The secret that signs them is shown this once."`
	Get        webhookGet        `cmd:"" help:"Show a webhook."`
	Test       webhookTest       `cmd:"" help:"Send a test delivery now, and fail if it is not taken."`
	Pause      webhookPause      `cmd:"" help:"Send nothing before resume. Events during a pause are not sent later."`
	Resume     webhookResume     `cmd:"" help:"End a pause, or enable a webhook that the server disabled."`
	Rotate     webhookRotate     `cmd:"" help:"Give a webhook a new secret, shown this once."`
	Rm         webhookRemove     `cmd:"" help:"Delete a webhook with its deliveries."`
	Events     webhookEvents     `cmd:"" help:"List the events there are."`
	Deliveries webhookDeliveries `cmd:"" help:"List deliveries to a webhook, the newest first."`
	Retry      webhookRetry      `cmd:"" help:"Send a delivery again that failed or waits for its next attempt."`
}

var (
	webhookColumns = []column{{"WEBHOOK", "webhook_id"}, {"NAME", "name"}, {"URL", "url"}, {"STATUS", "status"}, {"FAILURES", "failure_count"}}
	webhookWide    = []column{
		{"EVENTS", "events"}, {"INDEXES", "index_ids"}, {"LAST SUCCESS", "last_success_at"}, {"LAST FAILURE", "last_failure_at"},
	}
	deliveryColumns = []column{
		{"DELIVERY", "delivery_id"}, {"EVENT", "event_type"}, {"STATUS", "status"}, {"TRIED", "attempts"}, {"CODE", "response_status_code"},
		{"NEXT", "next_retry_at"}, {"ERROR", "error_message"},
	}
	deliveryWide = []column{{"CREATED", "created_at"}, {"LAST", "last_attempt_at"}, {"ENDED", "completed_at"}, {"BODY", "response_body"}}
)

type webhookList struct {
	shown `embed:""`
}

// Run lists webhooks.
func (c *webhookList) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/webhooks", nil, webhookColumns, webhookWide)
}

type webhookCreate struct {
	shown `embed:""`
	To    string   `arg:"" name:"url" help:"Where to send them; https."`
	Name  string   `help:"What to call it (default: the URL's host)." placeholder:"NAME"`
	Event []string `help:"What to tell, such as import_job.completed; millrace webhook events lists all. Repeatable." required:"" placeholder:"LIST"`
	Index []string `help:"Only events of these indexes. Repeatable." placeholder:"ID"`
}

// Run makes a webhook.
func (c *webhookCreate) Run(ctx context.Context) error {
	if c.Name == "" {
		c.Name = c.To
		if u, err := url.Parse(c.To); err == nil && u.Host != "" {
			c.Name = u.Host
		}
	}
	body := map[string]any{"name": c.Name, "url": c.To, "events": c.Event}
	if len(c.Index) > 0 {
		body["index_ids"] = c.Index
	}
	return c.post(ctx, "/webhooks", body, []column{{"WEBHOOK", "webhook_id"}, {"NAME", "name"}, {"STATUS", "status"}, {"SECRET", "secret"}}, webhookWide)
}

type ofWebhook struct {
	shown `embed:""`
	ID    string `arg:"" help:"The webhook."`
}

func (c ofWebhook) path(verb string) string { return "/webhooks/" + url.PathEscape(c.ID) + verb }

func (c ofWebhook) patch(ctx context.Context, status string) error {
	return c.do(ctx, http.MethodPatch, c.path(""), map[string]any{"status": status}, webhookColumns, webhookWide)
}

type webhookGet struct{ ofWebhook }

// Run shows a webhook.
func (c *webhookGet) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, c.path(""), nil, webhookColumns, webhookWide)
}

type webhookTest struct{ ofWebhook }

// Run sends a test delivery.
func (c *webhookTest) Run(ctx context.Context) error {
	var raw json.RawMessage
	if err := c.dial().Do(ctx, http.MethodPost, c.path("/test"), nil, &raw); err != nil {
		return err
	}
	var said struct {
		Success bool    `json:"success"`
		Error   *string `json:"error"`
	}
	if err := json.Unmarshal(raw, &said); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	if err := c.show(raw, []column{{"SUCCESS", "success"}, {"CODE", "status_code"}, {"ERROR", "error"}}, nil); err != nil {
		return err
	}
	if !said.Success {
		if said.Error == nil {
			return errors.New("the test delivery was not taken")
		}
		return errors.New("the test delivery was not taken: " + *said.Error)
	}
	return nil
}

type webhookPause struct{ ofWebhook }

// Run pauses a webhook.
func (c *webhookPause) Run(ctx context.Context) error { return c.patch(ctx, "paused") }

type webhookResume struct{ ofWebhook }

// Run resumes a webhook.
func (c *webhookResume) Run(ctx context.Context) error { return c.patch(ctx, "active") }

type webhookRotate struct{ ofWebhook }

// Run rotates a secret.
func (c *webhookRotate) Run(ctx context.Context) error {
	return c.post(ctx, c.path("/rotate-secret"), nil, []column{{"WEBHOOK", "webhook_id"}, {"NEW SECRET", "new_secret"}}, nil)
}

type webhookRemove struct{ ofWebhook }

// Run deletes a webhook.
func (c *webhookRemove) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, c.path(""), nil, messageColumns, nil)
}

type webhookEvents struct {
	shown `embed:""`
}

// Run lists events.
func (c *webhookEvents) Run(ctx context.Context) error {
	var names []string
	if err := c.dial().Get(ctx, "/webhooks/events", &names); err != nil {
		return err
	}
	if c.Output == "json" {
		return showJSON(names)
	}
	for _, name := range names {
		fmt.Println(name)
	}
	return nil
}

type webhookDeliveries struct {
	ofWebhook
	Status string `help:"Only those in this state: pending, processing, retrying, delivered or failed." placeholder:"STATUS"`
	Limit  int    `help:"The most to list, up to 100." default:"50" placeholder:"N"`
}

// Run lists deliveries.
func (c *webhookDeliveries) Run(ctx context.Context) error {
	query := optional("status", c.Status, "limit", fmt.Sprint(c.Limit))
	return c.do(ctx, http.MethodGet, c.path("/deliveries?"+query.Encode()), nil, deliveryColumns, deliveryWide)
}

type webhookRetry struct {
	shown `embed:""`
	ID    string `arg:"" help:"The delivery, as millrace webhook deliveries shows it."`
}

// Run retries a delivery.
func (c *webhookRetry) Run(ctx context.Context) error {
	return c.post(ctx, "/webhooks/deliveries/"+url.PathEscape(c.ID)+"/retry", nil, deliveryColumns, deliveryWide)
}
