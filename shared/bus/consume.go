package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/event"
)

// Delivery is one message in the hands of a handler.
type Delivery struct {
	Subject   string
	Header    nats.Header
	Data      []byte
	Sequence  uint64    // in its stream
	Stored    time.Time // when the broker stored it: the same at each delivery
	Delivered int       // 1 at the first delivery

	msg      jetstream.Msg
	consumer *consuming
}

// Tokens are the parts of the subject behind the prefix of the deployment.
func (d *Delivery) Tokens() []string { return strings.Split(d.Subject, ".")[1:] }

// Decode reads the body into v; what is not such a message is poison.
func (d *Delivery) Decode(v any) error {
	if err := json.Unmarshal(d.Data, v); err != nil {
		return Poison(fmt.Errorf("decode %s: %w", d.Subject, err))
	}
	return nil
}

// ErrLater is what a Work handler returns when somebody else, such as a committer, will call Settle. Until then the
// lease is kept.
var ErrLater = errors.New("settled later")

// Settle turns err into ack, nak or dead letter (see Outcome). Only for deliveries whose handler returned ErrLater.
func (d *Delivery) Settle(ctx context.Context, err error) { d.consumer.settle(ctx, d, err) }

// Options of a consumer.
type Options struct {
	// MaxAttempts is how often an ordinary error is tried before the message is dead. 0: for ever.
	MaxAttempts int
	// Batch is the most messages of one ConsumeBatch call. Default 500.
	Batch int
	// Workers is how many handlers of Work run at a time. Default 1.
	Workers int
	// Unsettled bounds deliveries whose handler returned ErrLater. Default 1,000.
	Unsettled int
}

// consuming is one running consumer: the deliveries in hand, whose leases it keeps.
type consuming struct {
	bus  *Bus
	name string
	opts Options
	wait time.Duration // of the lease

	mu     sync.Mutex
	inHand map[*Delivery]struct{}
	empty  sync.Cond
	room   chan struct{} // signalled when something was taken up or settled
}

func (b *Bus) bind(ctx context.Context, name string, opts Options) (*consuming, jetstream.Consumer, error) {
	cons, err := b.Bind(ctx, b.js, name)
	if err != nil {
		return nil, nil, err
	}
	c := &consuming{bus: b, name: name, opts: opts, wait: cons.CachedInfo().Config.AckWait, inHand: make(map[*Delivery]struct{}), room: make(chan struct{}, 1)}
	c.empty.L = &c.mu
	return c, cons, nil
}

func (c *consuming) take(msg jetstream.Msg) *Delivery {
	d := &Delivery{Subject: msg.Subject(), Header: msg.Headers(), Data: msg.Data(), Delivered: 1, msg: msg, consumer: c}
	if md, err := msg.Metadata(); err == nil {
		d.Sequence, d.Stored, d.Delivered = md.Sequence.Stream, md.Timestamp, int(md.NumDelivered)
	}
	c.mu.Lock()
	c.inHand[d] = struct{}{}
	c.mu.Unlock()
	return d
}

// keepLeases renews what is in hand three times per lease, until ctx ends. A handler that hangs is not its business:
// every effect has a deadline or a stall time of its own.
func (c *consuming) keepLeases(ctx context.Context) {
	tick := time.NewTicker(c.wait / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.mu.Lock()
			held := make([]*Delivery, 0, len(c.inHand))
			for d := range c.inHand {
				held = append(held, d)
			}
			c.mu.Unlock()
			for _, d := range held {
				_ = d.msg.InProgress() // a lost connection costs the lease, which every handler survives
			}
		}
	}
}

func (c *consuming) settle(ctx context.Context, d *Delivery, err error) {
	defer func() {
		c.mu.Lock()
		delete(c.inHand, d)
		if len(c.inHand) == 0 {
			c.empty.Broadcast()
		}
		c.mu.Unlock()
		c.stir()
	}()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		// Shutting down says nothing about the message, not even on its last attempt: the next may have it.
		c.giveBack(d.msg)
		return
	}
	v := Outcome(err, d.Delivered, c.opts.MaxAttempts)
	switch v.Action {
	case Ack:
		err = d.msg.Ack()
	case Nak:
		c.bus.log.Warn("delivery failed, will be tried again", "consumer", c.name, "subject", d.Subject,
			"delivered", d.Delivered, "again_in", v.Delay, "error", err)
		err = d.msg.NakWithDelay(v.Delay)
	case Dead:
		err = c.bury(ctx, d, v.Reason)
	}
	c.logLost(d.msg, err)
}

// giveBackDelay is how long a message that is given back stays away, so that it does not come to a pull of ours that is
// just ending, and then has to wait for its lease to run out.
const giveBackDelay = 500 * time.Millisecond

// giveBack returns a message that this process will not handle any more.
func (c *consuming) giveBack(msg jetstream.Msg) { c.logLost(msg, msg.NakWithDelay(giveBackDelay)) }

// logLost notes a verdict that did not reach the broker. Nothing is lost by it.
func (c *consuming) logLost(msg jetstream.Msg, err error) {
	if err != nil {
		c.bus.log.Warn("verdict was not delivered, the message comes again", "consumer", c.name, "subject", msg.Subject(), "error", err)
	}
}

// bury moves a message to the dead stream: only what is safe there is terminated here.
func (c *consuming) bury(ctx context.Context, d *Delivery, reason string) error {
	err := c.bus.Bury(ctx, event.Dead{
		Consumer: c.name, Stream: streamOf(d.msg), Subject: d.Subject, Reason: reason, Stage: "handle",
		Delivered: d.Delivered, Header: d.Header, Data: d.Data,
	})
	if err != nil {
		return errors.Join(err, d.msg.NakWithDelay(Backoff(d.Delivered)))
	}
	return d.msg.TermWithReason("dead letter")
}

func streamOf(msg jetstream.Msg) string {
	if md, err := msg.Metadata(); err == nil {
		return md.Stream
	}
	return ""
}

// letterRoom is what a letter needs beside its JSON: headers, and the note that it was cut.
const letterRoom = 1 << 10

// Bury stores a dead letter. Service and time are filled in. A body that does not fit, as a letter is larger than the
// message it is about, is cut short, and the reason says so.
func (b *Bus) Bury(ctx context.Context, dead event.Dead) error {
	dead.Service, dead.At = b.service, time.Now().UTC()
	data, err := json.Marshal(dead)
	if over := len(data) + letterRoom - int(b.nc.MaxPayload()); err == nil && over > 0 {
		dead.Reason = fmt.Sprintf("%s (of %d bytes of data, what fits is kept)", dead.Reason, len(dead.Data))
		dead.Data = dead.Data[:max(0, len(dead.Data)-over)] // base64 takes more than a byte for each
		dead.Cut = true
		data, err = json.Marshal(dead)
	}
	if err != nil {
		return fmt.Errorf("encode dead letter: %w", err)
	}
	// Whatever stops the handler must not stop the dead letter.
	_, err = b.Publish(context.WithoutCancel(ctx), Message{Subject: b.Subject("dead", b.service, dead.Consumer), Data: data})
	if err == nil {
		b.log.Error("message is dead", "consumer", dead.Consumer, "subject", dead.Subject, "reason", dead.Reason)
	}
	return err
}

// waitEmpty returns when nothing is in hand any more.
func (c *consuming) waitEmpty() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.inHand) > 0 {
		c.empty.Wait()
	}
}

// linger is how long ConsumeBatch waits for company once it has a message.
const linger = 5 * time.Millisecond

// ConsumeBatch calls handle with what has arrived, up to opts.Batch messages at a time and one call at a time, and
// settles each message by its error; a nil slice means all is well. It returns when ctx ended and the last batch is
// settled, or when the consumer cannot be bound. Deliveries still unhandled then come again.
func (b *Bus) ConsumeBatch(ctx context.Context, consumer string, opts Options, handle func(context.Context, []*Delivery) []error) error {
	if opts.Batch <= 0 {
		opts.Batch = 500
	}
	c, cons, err := b.bind(ctx, consumer, opts)
	if err != nil {
		return err
	}
	in := make(chan jetstream.Msg, opts.Batch)
	cc, err := cons.Consume(func(m jetstream.Msg) {
		if ctx.Err() == nil {
			select {
			case in <- m:
				return
			case <-ctx.Done():
			}
		}
		c.giveBack(m)
	}, jetstream.PullMaxMessages(2*opts.Batch), jetstream.ConsumeErrHandler(c.logError))
	if err != nil {
		return fmt.Errorf("consume %s: %w", consumer, err)
	}
	defer c.handBack(cc, in)
	b.countBound(consumer, 1)
	defer b.countBound(consumer, -1)
	ctxLease, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go c.keepLeases(ctxLease)

	for {
		batch := collect(ctx, in, opts.Batch)
		if len(batch) == 0 {
			return nil
		}
		ds := make([]*Delivery, len(batch))
		for i, m := range batch {
			ds[i] = c.take(m)
		}
		errs := handle(ctx, ds)
		for i, d := range ds {
			var err error
			if errs != nil {
				err = errs[i]
			}
			c.settle(ctx, d, err)
		}
	}
}

// handBackTime bounds handBack when the broker is gone.
const handBackTime = time.Second

// handBack ends a Consume and returns what it had prefetched, whose lease would else have to run out first.
func (c *consuming) handBack(cc jetstream.ConsumeContext, in <-chan jetstream.Msg) {
	cc.Drain()
	late := time.NewTimer(handBackTime)
	defer late.Stop()
	select {
	case <-cc.Closed():
	case <-late.C:
	}
	for {
		select {
		case m := <-in:
			c.giveBack(m)
		default:
			return
		}
	}
}

// collect waits for a message and takes what follows within linger. It returns nothing when ctx has ended.
func collect(ctx context.Context, in <-chan jetstream.Msg, most int) []jetstream.Msg {
	var batch []jetstream.Msg
	select {
	case <-ctx.Done():
		return nil
	case m := <-in:
		batch = append(batch, m)
	}
	late := time.NewTimer(linger)
	defer late.Stop()
	for len(batch) < most {
		select {
		case m := <-in:
			batch = append(batch, m)
		case <-late.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

func (c *consuming) logError(_ jetstream.ConsumeContext, err error) {
	if errors.Is(err, nats.ErrConnectionClosed) {
		return
	}
	c.bus.log.Warn("pulling messages", "consumer", c.name, "error", err)
}

// Work calls handle for each message in opts.Workers goroutines and keeps the lease of all that is in hand. It takes no
// more from the broker than its workers will begin soon, so that a second process gets its share. It returns when ctx ended
// and everything in hand is settled, or when the consumer cannot be bound.
func (b *Bus) Work(ctx context.Context, consumer string, opts Options, handle func(context.Context, *Delivery) error) error {
	opts.Workers = max(opts.Workers, 1)
	if opts.Unsettled <= 0 {
		opts.Unsettled = 1000
	}
	c, cons, err := b.bind(ctx, consumer, opts)
	if err != nil {
		return err
	}
	b.countBound(consumer, 1)
	defer b.countBound(consumer, -1)
	ctxLease, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go c.keepLeases(ctxLease)

	work := make(chan *Delivery, 2*opts.Workers)
	var workers sync.WaitGroup
	for range opts.Workers {
		workers.Go(func() {
			for d := range work {
				c.stir()
				err := handle(ctx, d)
				if !errors.Is(err, ErrLater) {
					c.settle(ctx, d, err)
				}
			}
		})
	}
	for ctx.Err() == nil {
		c.awaitRoom(ctx, work)
		if err := c.fetch(ctx, cons, cap(work)-len(work), work); err != nil && ctx.Err() == nil {
			b.log.Warn("pulling messages", "consumer", consumer, "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
	close(work)
	workers.Wait()
	c.waitEmpty()
	return nil
}

func (c *consuming) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.inHand)
}

// awaitRoom returns when it is worth asking for more: workers would run dry soon, and committers keep up.
func (c *consuming) awaitRoom(ctx context.Context, work chan *Delivery) {
	for len(work) > c.opts.Workers || c.count() >= c.opts.Unsettled {
		select {
		case <-c.room:
		case <-ctx.Done():
			return
		}
	}
}

// stir wakes awaitRoom.
func (c *consuming) stir() {
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// fetchWait is how long one pull stays open: an idle consumer costs two messages per period.
const fetchWait = 30 * time.Second

// fetchGrace is how long a pull stays open once ctx ended: what is on its way when it is cut off has to wait for its lease
// to run out, and a backlog is always on its way.
const fetchGrace = 100 * time.Millisecond

// fetch moves up to n messages to work, which has room for them.
func (c *consuming) fetch(ctx context.Context, cons jetstream.Consumer, n int, work chan<- *Delivery) error {
	stop := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchWait)
	defer cancel()
	defer context.AfterFunc(stop, func() { time.AfterFunc(fetchGrace, cancel) })()
	batch, err := cons.Fetch(n, jetstream.FetchContext(ctx))
	if err != nil {
		return err
	}
	for m := range batch.Messages() {
		work <- c.take(m)
	}
	if err := batch.Error(); err != nil && ctx.Err() == nil && !errors.Is(err, nats.ErrTimeout) {
		return err
	}
	return nil
}
