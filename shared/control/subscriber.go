package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmjetstream "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/jetstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// SubscriberConfig is what a Subscriber needs. A Router makes its own; this is for watermill without one.
type SubscriberConfig struct {
	// Connect opens the subscriber's own connection; Close drains and closes it. Required.
	Connect func(name string) (*nats.Conn, error)

	// Name is the connection's.
	Name string

	// Bind names the stream and the durable pull consumer of a topic; see Handler for what it must be like. Required.
	Bind func(topic string) (stream, consumer string)

	Concurrency int           // messages in hand per Subscribe, none of them fetched ahead; default 1
	Timeout     time.Duration // how long a message is kept from redelivery without an answer; default 30 s
	Grace       time.Duration // how long messages in hand may be answered after a close; default 30 s

	Logger *slog.Logger // default slog.Default()
}

// nudge is how long an iterator gets to be idle again, see next. giveBack is the delay of a message nobody has seen,
// long enough that it does not come back to the one who is stopping.
const (
	nudge    = 50 * time.Millisecond
	giveBack = 250 * time.Millisecond
)

// Subscriber is a message.Subscriber that works on existing consumers.
//
// Messages of one Subscribe come Concurrency at a time. An Ack is confirmed by the broker; a Nack brings the message
// back after bus.Backoff. When a subscription ends (its context, Close, or the consumer is gone) no more is fetched,
// messages nobody has read go back at once, those in hand may still be answered for Grace and then see their context
// cancelled, and only then is the channel closed.
type Subscriber struct {
	cfg SubscriberConfig
	log *slog.Logger
	nc  *nats.Conn
	js  jetstream.JetStream

	maxAttempts int           // set by the Router, to judge consumers
	still       time.Duration // for how long the consumer may stand still
	margin      time.Duration // how much longer than Timeout a lease is kept: the time to store a dead letter
	hooks       hooks
	abandoned   atomic.Int64

	mu      sync.Mutex
	closing chan struct{}
	closed  bool
	intakes sync.WaitGroup

	closeOnce sync.Once
	closeErr  error
}

var _ message.Subscriber = (*Subscriber)(nil)

// hooks tell the Router what happens below it.
type hooks struct {
	deadFailed   func()
	settleFailed func()
	leaseLost    func()
	failed       func(error) // a subscription cannot go on
}

// NewSubscriber connects.
func NewSubscriber(cfg SubscriberConfig) (*Subscriber, error) {
	if cfg.Connect == nil || cfg.Bind == nil {
		return nil, errors.New("control: subscriber config: Connect and Bind are required")
	}
	cfg.Concurrency = max(cfg.Concurrency, 1)
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Grace <= 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	nc, err := cfg.Connect(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("connect subscriber %q: %w", cfg.Name, err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("subscriber %q: %w", cfg.Name, err)
	}
	nop := func() {}
	return &Subscriber{
		cfg:     cfg,
		log:     cfg.Logger,
		nc:      nc,
		js:      js,
		still:   cfg.Timeout + deadTimeout + stillAfter,
		margin:  deadTimeout,
		hooks:   hooks{deadFailed: nop, settleFailed: nop, leaseLost: nop, failed: func(error) {}},
		closing: make(chan struct{}),
	}, nil
}

// Subscribe starts to deliver a topic's messages. It fails with ErrConsumer when the consumer is missing or unfit, and
// with ErrClosed after Close.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}

	stream, name := s.cfg.Bind(topic)
	in := &intake{sub: s, stream: stream, name: name, inHand: map[*message.Message]*delivery{}}
	in.pulling, in.stopPulling = context.WithCancel(context.Background())

	inner, err := wmjetstream.NewSubscriber(wmjetstream.SubscriberConfig{
		Conn:   s.nc,
		Logger: watermillLogger(s.log),
		ResourceInitializer: func(context.Context, jetstream.JetStream, string) (
			jetstream.Consumer, func(context.Context, watermill.LoggerAdapter), error,
		) {
			return in, nil, in.bind(ctx)
		},
		Unmarshaler: in,
		// Its own ack timer would let go of a message whose handler still runs. The lease is ours.
		AckWaitTimeout: math.MaxInt64,
	})
	if err != nil {
		in.stopPulling()
		return nil, fmt.Errorf("subscribe %s: %w", topic, err)
	}

	// watermill-nats answers a cancelled context by dropping what is in hand and closing its channel under callbacks
	// that may be sending on it. So it gets one that ends when no callback is left. For the same reason its Close is
	// never called: it would do the same, and drain the connection under the handlers.
	innerCtx, closeInner := context.WithCancel(context.WithoutCancel(ctx))
	from, err := inner.Subscribe(innerCtx, topic)
	if err != nil {
		in.stopPulling()
		closeInner()
		return nil, fmt.Errorf("subscribe %s: %w", topic, err)
	}
	to := make(chan *message.Message)
	s.intakes.Add(1)
	go func() {
		select {
		case <-ctx.Done():
		case <-s.closing:
		case <-in.pulling.Done(): // the consumer is gone
		}
		in.shut(s.cfg.Grace)
		closeInner()
	}()
	go func() {
		defer s.intakes.Done()
		in.forward(from, to)
	}()
	return to, nil
}

// Close ends all subscriptions, drains the connection and waits until it is closed.
func (s *Subscriber) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closed = true
		close(s.closing)
		s.mu.Unlock()
		s.intakes.Wait()
		s.closeErr = wrap(fmt.Sprintf("close subscriber %q", s.cfg.Name), drain(s.nc))
	})
	return s.closeErr
}

// lookup finds a consumer and judges it. It never makes one.
func (s *Subscriber) lookup(ctx context.Context, stream, name string) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, bindTimeout)
	defer cancel()
	what := fmt.Sprintf("bind consumer %q of stream %q", name, stream)
	c, err := s.ask(ctx, stream, name)
	// A cluster that is electing does not answer at all, and answers the next question.
	for errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		c, err = s.ask(ctx, stream, name)
	}
	if err != nil {
		if missing(err) || errors.Is(err, jetstream.ErrNotPullConsumer) {
			err = fmt.Errorf("%w: %w", ErrConsumer, err)
		}
		return nil, wrap(what, err)
	}
	if err := fit(c.CachedInfo().Config, s.maxAttempts); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, ErrConsumer, err)
	}
	return c, nil
}

func (s *Subscriber) ask(ctx context.Context, stream, name string) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return s.js.Consumer(ctx, stream, name)
}

func missing(err error) bool {
	return errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) ||
		errors.Is(err, jetstream.ErrConsumerDeleted)
}

// intake is one subscription: the consumer, and between it and watermill-nats the workers, each of which pulls one
// message, keeps its lease while watermill-nats has it, and pulls the next when it is settled.
//
// To watermill-nats it is the consumer (the embedded one, with Consume of our own), that Consume's context, and the
// unmarshaler.
type intake struct {
	jetstream.Consumer
	sub          *Subscriber
	stream, name string
	ackWait      time.Duration

	pulling     context.Context // ends when no more is to be fetched
	stopPulling context.CancelFunc
	workers     sync.WaitGroup
	asking      sync.Mutex // one worker at a time: each that asks in vain has a heartbeat sent to it every 5 s

	mu        sync.Mutex
	stopped   bool
	callbacks sync.WaitGroup // running; none begins once stopped is set
	inHand    map[*message.Message]*delivery
}

func (in *intake) bind(ctx context.Context) (err error) {
	in.Consumer, err = in.sub.lookup(ctx, in.stream, in.name)
	if err != nil {
		return err
	}
	in.ackWait = in.CachedInfo().Config.AckWait
	return nil
}

// Consume starts the workers. The options are watermill-nats' and do not matter: each worker has one message at most.
func (in *intake) Consume(callback jetstream.MessageHandler, _ ...jetstream.PullConsumeOpt) (
	jetstream.ConsumeContext, error,
) {
	for range in.sub.cfg.Concurrency {
		// An iterator asks for a message only when Next is called, so that with a size of one nothing waits in a
		// buffer while its ack wait runs out. A missed heartbeat tells of a request the broker has forgotten.
		it, err := in.Messages(jetstream.PullMaxMessages(1), jetstream.PullExpiry(30*time.Second),
			jetstream.PullHeartbeat(5*time.Second))
		if err != nil {
			in.stopPulling()
			return nil, fmt.Errorf("pull from consumer %q of stream %q: %w", in.name, in.stream, err)
		}
		context.AfterFunc(in.pulling, it.Drain)
		in.workers.Go(func() { in.work(it, callback) })
	}
	go in.watch(in.pulling, in.sub.still)
	return in, nil
}

// Stop, Drain and Closed make the intake the jetstream.ConsumeContext of its Consume.

func (in *intake) Stop()  { in.stopPulling() }
func (in *intake) Drain() { in.stopPulling() }

// Closed is not used by watermill-nats; it tells when no more is fetched.
func (in *intake) Closed() <-chan struct{} { return in.pulling.Done() }

func (in *intake) work(it jetstream.MessagesContext, callback jetstream.MessageHandler) {
	for {
		in.asking.Lock() // the next asks as soon as this one has something to do
		msg, err := next(it)
		in.asking.Unlock()
		switch {
		case err == nil && in.begin():
			in.deliver(msg, callback)
			in.callbacks.Done()
		case err == nil:
			_ = msg.NakWithDelay(giveBack) // it was under way when we stopped; if this fails, the ack wait brings it back
		case errors.Is(err, jetstream.ErrMsgIteratorClosed) && in.pulling.Err() != nil:
			return
		case errors.Is(err, jetstream.ErrNoHeartbeat):
			if err := in.exists(); err != nil {
				in.fail(err)
				return
			}
		case in.pulling.Err() == nil:
			in.fail(err)
			return
		}
	}
}

// next waits for one message. It asks twice: the iterator of nats.go 1.55 sends no request while it is still busy with
// the one before, which a quick handler can be ahead of, and then waits for a message nobody asked for until it misses
// the heartbeats. The second call finds it idle. It has to be without limit, for every call starts the heartbeats anew.
func next(it jetstream.MessagesContext) (jetstream.Msg, error) {
	msg, err := it.Next(jetstream.NextMaxWait(nudge))
	if errors.Is(err, nats.ErrTimeout) {
		return it.Next()
	}
	return msg, err
}

// begin admits one callback.
func (in *intake) begin() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stopped {
		return false
	}
	in.callbacks.Add(1)
	return true
}

// exists returns an error only when the broker says that the consumer is gone; a broker that does not answer will.
func (in *intake) exists() error {
	if _, err := in.look(in.pulling); missing(err) {
		return err
	}
	return nil
}

// fail ends the subscription.
func (in *intake) fail(err error) {
	if missing(err) {
		err = fmt.Errorf("%w: %w", ErrConsumer, err)
	}
	err = fmt.Errorf("consumer %q of stream %q: %w", in.name, in.stream, err)
	in.sub.log.Error("subscription ended", "error", err)
	in.sub.hooks.failed(err)
	in.stopPulling()
}

// deliver has one message handled and settled.
func (in *intake) deliver(raw jetstream.Msg, callback jetstream.MessageHandler) {
	d := newDelivery(in, raw)
	go d.keepLease(in.sub.cfg.Timeout + in.sub.margin)
	defer d.end()
	defer in.forget(d)
	// watermill-nats panics when its channel is closed under a callback. We close it after the last one, so this is
	// for what we do not know of: better one message delivered again than all of them.
	defer func() {
		if p := recover(); p != nil {
			in.sub.log.Error("delivery panicked", "subject", raw.Subject(), "panic", p)
		}
	}()
	callback(d)
}

// Unmarshal never fails: watermill-nats would go on with a nil message. What is wrong with a message is the handler's
// first error, so it is dead-lettered like any other poison.
func (in *intake) Unmarshal(msg jetstream.Msg) (*message.Message, error) {
	d := msg.(*delivery) // Consume hands out nothing else
	m := message.NewMessage(d.message.ID, d.message.Data)
	for key, values := range d.message.Header {
		if len(values) > 0 {
			m.Metadata.Set(key, values[0])
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.inHand[m] = d
	return m, nil
}

func (in *intake) forget(d *delivery) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for m, other := range in.inHand {
		if other == d {
			delete(in.inHand, m)
		}
	}
}

// forward passes messages on with their delivery in the context. It reads until watermill-nats closes its channel, so
// that no callback is ever stuck in a send.
func (in *intake) forward(from <-chan *message.Message, to chan<- *message.Message) {
	defer close(to)
	for m := range from {
		in.mu.Lock()
		d := in.inHand[m]
		in.mu.Unlock()
		if in.pulling.Err() != nil || !d.handOver(m) {
			m.Nack()
			continue
		}
		select {
		case to <- m:
			continue
		case <-in.pulling.Done():
		case <-d.lost:
		}
		d.takeBack()
		m.Nack()
	}
}

// shut returns when no callback is left: after those in hand are answered, at the latest when they are given up.
func (in *intake) shut(grace time.Duration) {
	in.mu.Lock()
	in.stopped = true
	in.mu.Unlock()
	in.stopPulling()
	defer waitFor(&in.workers, lastCall) // what was under way goes back before the connection does

	if waitFor(&in.callbacks, grace) {
		return
	}
	in.each(func(_ *message.Message, d *delivery) { d.interrupt(ErrStopping) })
	if waitFor(&in.callbacks, lastCall) {
		return
	}
	in.each(func(m *message.Message, d *delivery) {
		if d.abandon() {
			in.sub.abandoned.Add(1)
			in.sub.log.Error("handler abandoned, its message will be delivered again",
				"subject", d.message.Subject, "id", d.message.ID, "sequence", d.message.Sequence)
			m.Nack() // lets the callback go
		}
	})
	in.callbacks.Wait()
}

func (in *intake) each(f func(*message.Message, *delivery)) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for m, d := range in.inHand {
		f(m, d)
	}
}

// waitFor waits for wg, but not longer than limit, and says whether wg was done.
func waitFor(wg *sync.WaitGroup, limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
