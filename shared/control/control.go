// Package control is the control plane: one handler per durable consumer, run by watermill's router over
// watermill-nats, for work that comes one message at a time: due windows, commands, job events, run dispatch, webhook
// delivery. Batches and file transfers do not belong here.
//
// A handler returns an error and never touches its message. What the error means is decided by bus.Outcome; what then
// happens is always the same, in this order:
//
//	                                ┌─ ack   confirmed by the broker
//	pull one ─▶ handler ─▶ verdict ─┼─ nak   with the verdict's delay
//	   └─ lease kept meanwhile ─┘   └─ dead  Config.Dead, and only when that is stored: term
//
// Crash at any line of it and the message comes back, so every handler has to be safe to repeat.
//
// Streams and consumers are made elsewhere. A handler whose consumer is missing or unfit keeps the router from
// starting, and one whose consumer is deleted while it runs stops the router.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/bus"
)

// Errors of this package. Those marked (cause) are found with context.Cause on a handler's context.
var (
	ErrNotRunning = errors.New("control: not running")
	ErrStarted    = errors.New("control: already started")
	ErrClosed     = errors.New("control: closed")
	// ErrConsumer: the consumer is missing, was deleted, or is not one this package can work with.
	ErrConsumer = errors.New("control: unusable consumer")
	// ErrAbandoned: handlers outlived the grace period of a shutdown; their messages come back after the ack wait.
	ErrAbandoned = errors.New("control: handlers abandoned")
	// ErrTimeout (cause): the handler ran longer than Handler.Timeout.
	ErrTimeout = errors.New("control: handler timed out")
	// ErrLeaseLost (cause): the broker has not confirmed the lease for one ack wait, so the message may by now be in
	// other hands.
	ErrLeaseLost = errors.New("control: lease lost")
	// ErrStopping (cause): the grace period of a shutdown is over.
	ErrStopping = errors.New("control: stopping")
)

// Defaults of the optional fields.
const (
	DefaultTimeout = 30 * time.Second
	DefaultGrace   = 30 * time.Second
)

// deadTimeout bounds one call of Config.Dead, settleTimeout the wait for the broker to confirm an ack,
// bindTimeout that for a consumer to be there for us, lastCall what a
// handler gets to return in after its context was cancelled by a shutdown.
const (
	deadTimeout   = 10 * time.Second
	settleTimeout = 5 * time.Second
	bindTimeout   = 30 * time.Second
	lastCall      = time.Second
)

// Config is what a Router needs of its surroundings.
type Config struct {
	// Connect opens a connection of its own for every handler; the router drains and closes it when the handler has
	// ended. It should reconnect for ever: a connection that gives up stops the router. Required.
	Connect func(name string) (*nats.Conn, error)

	// Dead stores a dead letter and returns nil only when it is durable, which means after the broker's ack. It is
	// called again when it failed, or when the process died before the message was terminated, so it should
	// deduplicate. It has 10 seconds. Required.
	Dead func(ctx context.Context, l Letter) error

	// Grace is how long handlers may finish in after Run's context ended. Then their contexts are cancelled, and a
	// second later they are abandoned. Default 30 s.
	Grace time.Duration

	Logger  *slog.Logger          // default slog.Default()
	Metrics prometheus.Registerer // default: counted, not registered
}

// Validate reports everything that is wrong with c.
func (c Config) Validate() error {
	var m mistakes
	m.add(c.Connect == nil, "Connect", "is required")
	m.add(c.Dead == nil, "Dead", "is required")
	m.add(c.Grace < 0, "Grace", "is negative")
	return wrap("control: config", errors.Join(m...))
}

// Handler is one durable consumer and what is done with its messages.
type Handler struct {
	// Name is the handler's label in logs and metrics, and part of its connection's name. Unique in a router.
	Name string

	// Stream and Consumer name an existing durable pull consumer with explicit acks, without BackOff (the delay is in
	// the verdict), and with a MaxDeliver, if any, above MaxAttempts (else the broker would drop a message in silence
	// before it is dead-lettered).
	Stream, Consumer string

	// Concurrency is how many messages are worked on at once, and also how many are ever in hand: nothing is fetched
	// ahead of a free worker. Default 1.
	Concurrency int

	// Timeout is when Handle's context is cancelled. Up to then (and a little longer, for the verdict) the lease is
	// renewed, so it may exceed the consumer's AckWait. A Handle that ignores its context loses the lease, but keeps
	// its worker until it returns. Default 30 s.
	Timeout time.Duration

	// MaxAttempts is the delivery at which an ordinary error becomes final; ≤ 0 means never. See bus.Outcome.
	MaxAttempts int

	// Handle does the work. It runs Concurrency times in parallel and must be safe to repeat. Its context carries the
	// trace and the Correlation of the message, and is not cancelled by a shutdown before Config.Grace is over.
	Handle func(ctx context.Context, m *Message) error
}

// Validate reports everything that is wrong with h.
func (h Handler) Validate() error {
	var m mistakes
	m.add(h.Name == "", "Name", "is required")
	m.add(h.Stream == "", "Stream", "is required")
	m.add(h.Consumer == "", "Consumer", "is required")
	m.add(h.Handle == nil, "Handle", "is required")
	m.add(h.Concurrency < 0, "Concurrency", "is negative")
	m.add(h.Timeout < 0, "Timeout", "is negative")
	return wrap(fmt.Sprintf("control: handler %q", h.Name), errors.Join(m...))
}

// mistakes collects what is wrong with the fields of a struct.
type mistakes []error

func (m *mistakes) add(wrong bool, field, how string) {
	if wrong {
		*m = append(*m, fmt.Errorf("%s %s", field, how))
	}
}

// Message is one delivery of a message, as a handler sees it.
type Message struct {
	Subject string

	// Header is a copy without the broker's own Nats-* headers: those of a fired timer would, published again, purge a
	// live one. Values of a repeated header are all there.
	Header nats.Header

	Data []byte

	// ID is the Nats-Msg-Id, else the ce-id, else a hash of subject and data (a fired timer arrives without an id, and
	// the same timer fired twice is the same message).
	ID string

	// Named: the ID is the publisher's. Otherwise equal messages have equal ones.
	Named bool

	Delivered int       // counts deliveries including this one: 1 is the first
	Stored    time.Time // when the stream stored it; the same at every delivery
	Sequence  uint64    // in the stream; not an identity, it can be handed out again after a restore
}

// Letter is a message that will not be delivered again, with the reason.
type Letter struct {
	Stream, Consumer string // where it was
	Subject          string
	ID               string // as Message.ID
	Stage            string // how far it came: one of the Stage constants
	Reason           string // why, for people
	Delivered        int
	Header           nats.Header // as Message.Header, so it can be published again as it is
	Data             []byte
	Sequence         uint64
}

// How far a dead letter came.
const (
	StageReceive = "receive" // it was not a proper JetStream message
	StageDecode  = "decode"  // its body was not what the handler takes
	StageHandle  = "handle"  // the handler failed, or refused it
	StagePanic   = "panic"   // the handler panicked
)

// Router runs handlers. Add them, then Run.
type Router struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	running chan struct{}

	mu       sync.Mutex
	handlers []Handler
	subs     []*Subscriber
	started  bool
	stopping bool
}

// New returns a router without handlers. It opens nothing.
func New(cfg Config) (*Router, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("control: register metrics: %w", err)
	}
	return &Router{
		cfg:     cfg,
		log:     cfg.Logger.With("component", "control"),
		metrics: m,
		running: make(chan struct{}),
	}, nil
}

// Add adds a handler. It fails for a handler that is not valid, whose name or consumer another one has, and with
// ErrStarted once Run was called.
func (r *Router) Add(h Handler) error {
	if err := h.Validate(); err != nil {
		return err
	}
	if h.Concurrency == 0 {
		h.Concurrency = 1
	}
	if h.Timeout == 0 {
		h.Timeout = DefaultTimeout
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started {
		return fmt.Errorf("add handler %q: %w", h.Name, ErrStarted)
	}
	for _, other := range r.handlers {
		if other.Name == h.Name {
			return fmt.Errorf("control: handler %q exists", h.Name)
		}
		// Two handlers of one consumer would each see some of its messages.
		if other.Stream == h.Stream && other.Consumer == h.Consumer {
			return fmt.Errorf("control: handlers %q and %q share consumer %q of stream %q",
				other.Name, h.Name, h.Consumer, h.Stream)
		}
	}
	r.handlers = append(r.handlers, h)
	r.metrics.announce(h.Name)
	return nil
}

// Run handles messages until ctx ends or a handler cannot go on. It returns when all handlers have ended, their
// messages are settled and their connections closed: nil after an orderly stop, ErrAbandoned when handlers outlived
// the grace period, ErrConsumer when a consumer is missing (all that are, at once) or was deleted, else what went
// wrong. It can be called once.
func (r *Router) Run(ctx context.Context) error {
	handlers, err := r.start()
	if err != nil {
		return err
	}
	defer r.stop()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	subs, err := r.open(ctx, handlers, stop)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // told to stop before it had begun
	}
	if err != nil {
		return err
	}
	// By the time watermill is told to stop, a handler that still runs has been abandoned: nothing to wait for.
	wm, err := message.NewRouter(message.RouterConfig{CloseTimeout: lastCall}, watermillLogger(r.log))
	if err != nil {
		return errors.Join(err, closeAll(subs))
	}
	for i, h := range handlers {
		wm.AddConsumerHandler(h.Name, h.Name, subs[i], handle(h)).AddMiddleware(r.middleware(h)...)
	}
	go func() {
		select {
		case <-wm.Running():
			close(r.running)
		case <-ctx.Done():
		}
		<-ctx.Done()
		r.stop() // not ready from the moment a stop begins
	}()

	err = wm.Run(ctx)
	var failed *failure
	switch {
	case errors.As(context.Cause(ctx), &failed):
		err = failed.err
	case ctx.Err() != nil:
		err = nil // we were told to stop
	}
	stop(nil)
	errs := []error{err, closeAll(subs)}
	for i, sub := range subs {
		if n := sub.abandoned.Load(); n > 0 {
			errs = append(errs, fmt.Errorf("handler %q, %d messages: %w", handlers[i].Name, n, ErrAbandoned))
		}
	}
	return errors.Join(errs...)
}

// failure is the cause of a stop that a handler's subscription brought about.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }

// Running is closed when every handler has its subscription.
func (r *Router) Running() <-chan struct{} { return r.running }

// Ready returns nil while all handlers run and are connected, else why not: ErrNotRunning before that and from the
// moment a stop begins.
func (r *Router) Ready() error {
	select {
	case <-r.running:
	default:
		return ErrNotRunning
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopping {
		return ErrNotRunning
	}
	var errs []error
	for i, sub := range r.subs {
		if !sub.nc.IsConnected() {
			errs = append(errs, fmt.Errorf("handler %q: not connected", r.handlers[i].Name))
		}
	}
	return errors.Join(errs...)
}

func (r *Router) start() ([]Handler, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started {
		return nil, ErrStarted
	}
	if len(r.handlers) == 0 {
		return nil, errors.New("control: no handlers")
	}
	r.started = true
	return slices.Clone(r.handlers), nil
}

func (r *Router) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopping = true
}

// open connects every handler and looks at its consumer before any of them takes a message: watermill's router, when
// a later subscription fails, returns without waiting for the handlers it has started.
func (r *Router) open(ctx context.Context, handlers []Handler, stop context.CancelCauseFunc) ([]*Subscriber, error) {
	var (
		subs []*Subscriber
		errs []error
	)
	for _, h := range handlers {
		sub, err := NewSubscriber(SubscriberConfig{
			Connect:     r.cfg.Connect,
			Name:        "control-" + h.Name,
			Bind:        func(string) (string, string) { return h.Stream, h.Consumer },
			Concurrency: h.Concurrency,
			Timeout:     h.Timeout,
			Grace:       r.cfg.Grace,
			Logger:      r.log.With("handler", h.Name),
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("handler %q: %w", h.Name, err))
			continue
		}
		sub.maxAttempts = h.MaxAttempts
		sub.hooks = r.metrics.hooks(h.Name)
		sub.hooks.failed = func(err error) { stop(&failure{fmt.Errorf("handler %q: %w", h.Name, err)}) }
		subs = append(subs, sub)
		if _, err := sub.lookup(ctx, h.Stream, h.Consumer); err != nil {
			errs = append(errs, fmt.Errorf("handler %q: %w", h.Name, err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(append(errs, closeAll(subs))...)
	}
	r.mu.Lock()
	r.subs = subs
	r.mu.Unlock()
	return subs, nil
}

// handle is the innermost step: from watermill's message to ours.
func handle(h Handler) message.NoPublishHandlerFunc {
	return func(m *message.Message) error {
		d := deliveryOf(m)
		if d.unreadable != nil {
			return bus.Poison(&stageError{StageReceive, d.unreadable})
		}
		// A copy of its own: the delivery's is still needed for the verdict and a dead letter.
		own := d.message
		own.Header = sanitised(own.Header)
		return h.Handle(m.Context(), &own)
	}
}

// closeAll closes side by side, so that a stop is bounded by one grace period and not by their sum.
func closeAll(subs []*Subscriber) error {
	errs := make([]error, len(subs))
	var wg sync.WaitGroup
	for i, sub := range subs {
		wg.Go(func() { errs[i] = sub.Close() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// fit says why a consumer cannot carry a handler.
func fit(c jetstream.ConsumerConfig, maxAttempts int) error {
	var errs []error
	if c.Durable == "" {
		errs = append(errs, errors.New("it is not durable"))
	}
	if c.DeliverSubject != "" {
		errs = append(errs, errors.New("it is a push consumer"))
	}
	if c.AckPolicy != jetstream.AckExplicitPolicy {
		errs = append(errs, fmt.Errorf("its ack policy is %s, not explicit", c.AckPolicy))
	}
	if len(c.BackOff) > 0 {
		errs = append(errs, errors.New("it has a BackOff, which overrides the ack wait"))
	}
	if c.MaxDeliver > 0 && c.MaxDeliver <= maxAttempts {
		errs = append(errs, fmt.Errorf("its MaxDeliver %d does not exceed MaxAttempts %d: "+
			"messages would be dropped before they are dead-lettered", c.MaxDeliver, maxAttempts))
	}
	return errors.Join(errs...)
}

// watermillLogger keeps watermill's chatter, a line per message on info, out of ours.
func watermillLogger(log *slog.Logger) watermill.LoggerAdapter {
	return watermill.NewSlogLoggerWithLevelMapping(log, map[slog.Level]slog.Level{
		slog.LevelInfo:  slog.LevelDebug,
		slog.LevelDebug: watermill.LevelTrace,
	})
}

// wrap adds what failed to err, and nothing to nil.
func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
