package webhooks

import (
	"testing"
	"time"

	"millrace/shared/event"
	"millrace/shared/webhook"
)

func TestAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	p := policy{
		schedule: []time.Duration{10 * time.Second, time.Minute}, maxRetryAfter: time.Hour,
		jitter: func(d time.Duration) time.Duration { return d / 10 },
	}
	fail := webhook.Answer{Code: 500, Error: "receiver answered 500", At: now}
	busy := func(after time.Duration) webhook.Answer {
		return webhook.Answer{Code: 503, Error: "x", RetryAfter: after, At: now}
	}
	for name, c := range map[string]struct {
		tries int
		a     webhook.Answer
		state event.DeliveryState
		what  outcome
		due   time.Duration // after now; 0: never
	}{
		"success":                        {0, webhook.Answer{Code: 299, At: now}, event.DeliveryDelivered, delivered, 0},
		"success at last":                {2, webhook.Answer{Code: 200, At: now}, event.DeliveryDelivered, delivered, 0},
		"first failure":                  {0, fail, event.DeliveryRetrying, failed, 11 * time.Second},
		"second failure":                 {1, fail, event.DeliveryRetrying, failed, 66 * time.Second},
		"last failure":                   {2, fail, event.DeliveryFailed, exhausted, 0},
		"no answer":                      {0, webhook.Answer{Error: "x", At: now}, event.DeliveryRetrying, failed, 11 * time.Second},
		"redirect":                       {0, webhook.Answer{Code: 302, Error: "x", At: now}, event.DeliveryRetrying, failed, 11 * time.Second},
		"gone":                           {0, webhook.Answer{Code: 410, Error: "x", At: now}, event.DeliveryFailed, gone, 0},
		"asks for longer":                {0, busy(10 * time.Minute), event.DeliveryRetrying, failed, 10 * time.Minute},
		"asks for less":                  {1, busy(time.Second), event.DeliveryRetrying, failed, 66 * time.Second},
		"asks for ever":                  {0, busy(1000 * time.Hour), event.DeliveryRetrying, failed, time.Hour},
		"asks for longer, but was last":  {2, busy(10 * time.Minute), event.DeliveryFailed, exhausted, 0},
		"tried again by hand, and fails": {0, fail, event.DeliveryRetrying, failed, 11 * time.Second},
	} {
		d := event.Delivery{State: event.DeliveryPending, Attempts: c.tries + 5, Tries: c.tries, DueAt: now.Add(-time.Second)}
		got, what := p.after(d, c.a, now)
		due := time.Time{}
		if c.due > 0 {
			due = now.Add(c.due)
		}
		if got.State != c.state || what != c.what || !got.DueAt.Equal(due) || got.State.Final() == got.EndedAt.IsZero() ||
			got.Attempts != c.tries+6 || got.Tries != c.tries+1 || got.Code != c.a.Code || got.Error != c.a.Error || !got.LastAt.Equal(now) {
			t.Errorf("%s: %s %+v", name, what, got)
		}
	}
}

// A delivery that a person had tried again while an attempt was under way keeps its place in the queue if that failed.
func TestMerge(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	p := policy{schedule: []time.Duration{time.Minute}, jitter: spread}
	queued := event.Delivery{State: event.DeliveryPending, Attempts: 3}
	got := p.merge(queued, webhook.Answer{Code: 500, Error: "x", At: now}, now)
	if got.State != event.DeliveryPending || got.Attempts != 4 || got.Tries != 0 || !got.DueAt.IsZero() {
		t.Errorf("%+v", got)
	}
	if got = p.merge(queued, webhook.Answer{Code: 200, At: now}, now); got.State != event.DeliveryDelivered {
		t.Errorf("%+v", got)
	}
	// Two senders for a moment: what one of them brought home stays there.
	home := event.Delivery{State: event.DeliveryDelivered, Attempts: 1, EndedAt: now}
	if got = p.merge(home, webhook.Answer{Code: 500, Error: "x", At: now}, now); got.State != event.DeliveryDelivered || !got.DueAt.IsZero() || got.Attempts != 2 {
		t.Errorf("%+v", got)
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	for range 1000 {
		if s := spread(time.Minute); s < 0 || s > 12*time.Second {
			t.Fatal(s)
		}
	}
}
