package bus

import (
	"errors"
	"fmt"
	"time"
)

// A handler says what is to become of its message by the error it returns, and never touches the message itself:
//
//	nil                 done: acknowledged
//	RetryAfter(d, err)  not now: delivered again after d
//	Poison(err)         never: moved to the dead stream with the reason, then terminated
//	any other error     may pass: delivered again after Backoff of the delivery count, and dead after the
//	                    consumer's MaxAttempts
//
// See Outcome, the only place where this is decided.

// RetryError is an error that says when the next try makes sense.
type RetryError struct {
	After time.Duration
	Err   error
}

func (e *RetryError) Error() string { return fmt.Sprintf("retry after %s: %v", e.After, e.Err) }

// Unwrap returns the cause.
func (e *RetryError) Unwrap() error { return e.Err }

// RetryAfter asks for another delivery no sooner than after, however many there have been. The broker counts such
// deliveries too, so whoever waits out long troubles with RetryAfter counts attempts of its own.
func RetryAfter(after time.Duration, err error) error { return &RetryError{After: after, Err: err} }

// PoisonError is an error that no repetition can cure.
type PoisonError struct{ Err error }

func (e *PoisonError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *PoisonError) Unwrap() error { return e.Err }

// Poison marks err as final: the message goes to the dead stream with err as its reason.
func Poison(err error) error { return &PoisonError{Err: err} }

// Action is what happens to a message after its handler returned.
type Action int

// The actions.
const (
	Ack  Action = iota // done
	Nak                // again, after Verdict.Delay
	Dead               // to the dead stream, then terminated
)

// Verdict is the outcome of one delivery.
type Verdict struct {
	Action Action
	Delay  time.Duration // of a Nak
	Reason string        // of a Dead
}

// Outcome turns what a handler returned into what becomes of the message. delivered counts this delivery (the first
// is 1); maxAttempts ≤ 0 means no limit.
func Outcome(err error, delivered, maxAttempts int) Verdict {
	var (
		poison *PoisonError
		retry  *RetryError
	)
	switch {
	case err == nil:
		return Verdict{Action: Ack}
	case errors.As(err, &poison):
		return Verdict{Action: Dead, Reason: err.Error()}
	case errors.As(err, &retry):
		return Verdict{Action: Nak, Delay: retry.After}
	case maxAttempts > 0 && delivered >= maxAttempts:
		return Verdict{Action: Dead, Reason: fmt.Sprintf("gave up after %d deliveries: %v", delivered, err)}
	default:
		return Verdict{Action: Nak, Delay: Backoff(delivered)}
	}
}

// Backoff is the pause before delivery n+1 of a message whose n-th delivery failed: 1 s doubling up to 2 minutes.
// It has no jitter: redeliveries of one message do not meet each other, and the broker spreads the rest.
func Backoff(n int) time.Duration {
	return min(2*time.Minute, time.Second<<min(max(n-1, 0), 7))
}
