package webhooks

import (
	"math/rand/v2"
	"time"

	"millrace/shared/event"
	"millrace/shared/webhook"
)

// outcome is what came of an attempt.
type outcome string

const (
	delivered outcome = "delivered"
	failed    outcome = "failed"    // and it is tried again
	exhausted outcome = "exhausted" // and it was the last of the schedule
	gone      outcome = "gone"      // and the receiver does not want to be asked again
)

// policy is when to send again.
type policy struct {
	schedule      []time.Duration
	maxRetryAfter time.Duration
	jitter        func(time.Duration) time.Duration // what is added to a pause
}

// spread is up to a fifth of a pause, so that what failed together does not come back together.
func spread(pause time.Duration) time.Duration { return rand.N(pause/5 + 1) }

// after is the delivery once an attempt brought a, and what that was.
func (p policy) after(d event.Delivery, a webhook.Answer, now time.Time) (event.Delivery, outcome) {
	d.Attempts++
	d.Tries++
	d.LastAt, d.Code, d.Body, d.Error = a.At, a.Code, a.Body, a.Error
	d.DueAt = time.Time{}
	switch {
	case a.Delivered():
		d.State, d.EndedAt = event.DeliveryDelivered, now
		return d, delivered
	case a.Code == 410:
		d.State, d.EndedAt = event.DeliveryFailed, now
		return d, gone
	case d.Tries > len(p.schedule):
		d.State, d.EndedAt = event.DeliveryFailed, now
		return d, exhausted
	}
	pause := p.schedule[d.Tries-1]
	pause = max(pause+p.jitter(pause), min(a.RetryAfter, p.maxRetryAfter))
	d.State, d.DueAt = event.DeliveryRetrying, now.Add(pause)
	return d, failed
}

// merge is after for a delivery that was changed while the attempt was under way, as when a person had it tried again:
// a success counts, and a failure leaves it where it stands now.
func (p policy) merge(d event.Delivery, a webhook.Answer, now time.Time) event.Delivery {
	if a.Delivered() {
		d, _ = p.after(d, a, now)
		return d
	}
	d.Attempts++
	d.LastAt, d.Code, d.Body, d.Error = a.At, a.Code, a.Body, a.Error
	return d
}
