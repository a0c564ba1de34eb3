package webhooks

import (
	"time"

	"millrace/shared/event"
	"millrace/shared/webhook"
)

// After is the delivery once an attempt brought a, under the default schedule, for whoever drives it without a receiver,
// as the simulation does (services/sim).
func After(d event.Delivery, a webhook.Answer, now time.Time) event.Delivery {
	none := func(time.Duration) time.Duration { return 0 }
	d, _ = policy{schedule: DefaultSchedule(), maxRetryAfter: 24 * time.Hour, jitter: none}.after(d, a, now)
	return d
}
