package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/propagation"

	"millrace/shared/bus"
)

// middleware is what happens to every message, outermost first. None of it waits: a retry that slept in here would
// use up the lease and a worker, so a retry is a nak with delay.
func (r *Router) middleware(h Handler) []message.HandlerMiddleware {
	log := r.log.With("handler", h.Name)
	return []message.HandlerMiddleware{
		correlate,             // trace and ids of the message into the context
		r.metrics.measure(h),  // how long, with which verdict
		judge(h, log, r.bury), // error → verdict; a dead one is buried before it is terminated
		timeout(h.Timeout),    // bounds the handler by its context
		recoverer(log),        // panic → error
	}
}

// Correlation is what ties a handler's work to what caused it.
type Correlation struct {
	ID          string // of the message being handled, see Message.ID
	TraceParent string // W3C traceparent header, or empty
	TraceState  string // W3C tracestate header, or empty
}

type correlationKey struct{}

// CorrelationFrom returns the correlation of the message that is being handled under ctx.
func CorrelationFrom(ctx context.Context) (Correlation, bool) {
	c, ok := ctx.Value(correlationKey{}).(Correlation)
	return c, ok
}

// correlate puts the message's Correlation into the context, and its trace where OpenTelemetry finds it, so that spans
// started by the handler, and messages published with its context, belong to the same trace.
func correlate(next message.HandlerFunc) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		header := deliveryOf(m).message.Header
		c := Correlation{
			ID:          m.UUID,
			TraceParent: firstValue(header, "traceparent"),
			TraceState:  firstValue(header, "tracestate"),
		}
		ctx := propagation.TraceContext{}.Extract(m.Context(), propagation.MapCarrier{
			"traceparent": c.TraceParent,
			"tracestate":  c.TraceState,
		})
		m.SetContext(context.WithValue(ctx, correlationKey{}, c))
		return next(m)
	}
}

// judge turns what the handler returned into the verdict the delivery will be settled by.
func judge(h Handler, log *slog.Logger, bury func(context.Context, Letter) error) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			d := deliveryOf(m)
			_, err := next(m)
			v := bus.Outcome(err, d.message.Delivered, h.MaxAttempts)

			if cutShort(m.Context(), err) {
				v = bus.Verdict{Action: bus.Nak}
			}
			if v.Action == bus.Dead {
				// The context may have ended with the handler; the letter still has to go out.
				letter := d.letter(v.Reason, stageOf(err))
				if buryErr := bury(context.WithoutCancel(m.Context()), letter); buryErr != nil {
					err = fmt.Errorf("store dead letter: %w (of: %w)", buryErr, err)
					v = bus.Verdict{Action: bus.Nak, Delay: bus.Backoff(d.message.Delivered)}
					d.in.sub.hooks.deadFailed()
				}
			}
			d.judged(v)
			logVerdict(m.Context(), log, d, v, err)

			// The verdict is in its slot; an error from here would only make watermill log it a second time.
			return nil, nil
		}
	}
}

// cutShort says whether the handler failed because we took its message away: that is not a failed attempt.
func cutShort(ctx context.Context, err error) bool {
	var (
		poison *bus.PoisonError
		retry  *bus.RetryError
	)
	if err == nil || errors.As(err, &poison) || errors.As(err, &retry) {
		return false
	}
	cause := context.Cause(ctx)
	return errors.Is(cause, ErrStopping) || errors.Is(cause, ErrLeaseLost)
}

func (r *Router) bury(ctx context.Context, l Letter) error {
	ctx, cancel := context.WithTimeout(ctx, deadTimeout)
	defer cancel()
	return r.cfg.Dead(ctx, l)
}

func logVerdict(ctx context.Context, log *slog.Logger, d *delivery, v bus.Verdict, err error) {
	level, text := slog.LevelDebug, "handled"
	switch v.Action {
	case bus.Nak:
		level, text = slog.LevelWarn, "will be delivered again"
	case bus.Dead:
		level, text = slog.LevelError, "dead-lettered"
	}
	//nolint:sloglint // one of the three above
	log.Log(ctx, level, text, "subject", d.message.Subject, "id", d.message.ID, "sequence", d.message.Sequence,
		"delivered", d.message.Delivered, "delay", v.Delay, "error", err)
}

// timeout cancels the handler's context after limit, with ErrTimeout as the cause.
func timeout(limit time.Duration) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			outer := m.Context()
			ctx, cancel := context.WithTimeoutCause(outer, limit, ErrTimeout)
			defer cancel()
			m.SetContext(ctx)
			defer m.SetContext(outer) // what follows the handler is not bound by its limit
			return next(m)
		}
	}
}

// recoverer turns a panic into an error, so that it is tried again and ends as a dead letter.
func recoverer(log *slog.Logger) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) (_ []*message.Message, err error) {
			defer func() {
				if p := recover(); p != nil {
					log.Error("handler panicked", "id", m.UUID, "panic", p, "stack", string(debug.Stack()))
					err = &stageError{StagePanic, fmt.Errorf("panic: %v", p)}
				}
			}()
			return next(m)
		}
	}
}

// Handle makes a handler of a function that takes a T: the message's body, decoded from JSON. A body that is not a T
// is poison, with StageDecode. Unknown fields are skipped, so that a version of a message can grow.
func Handle[T any](fn func(ctx context.Context, v T, m *Message) error) func(context.Context, *Message) error {
	return func(ctx context.Context, m *Message) error {
		var v T
		if err := json.Unmarshal(m.Data, &v); err != nil {
			return bus.Poison(&stageError{StageDecode, fmt.Errorf("decode %T: %w", v, err)})
		}
		return fn(ctx, v, m)
	}
}

// stageError remembers how far a message came.
type stageError struct {
	stage string
	err   error
}

func (e *stageError) Error() string { return e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

func stageOf(err error) string {
	var staged *stageError
	if errors.As(err, &staged) {
		return staged.stage
	}
	return StageHandle
}
