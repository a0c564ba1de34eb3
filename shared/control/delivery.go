package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/bus"
)

// delivery is one delivery of one message. It is the jetstream.Msg that watermill-nats holds, with every way to settle
// it overridden: whatever watermill-nats calls, the verdict decides, once.
type delivery struct {
	jetstream.Msg // the broker's
	in            *intake
	message       Message
	unreadable    error // set when the broker's message has no proper metadata

	leaseCtx  context.Context // ends the lease
	endLease  context.CancelFunc
	leaseDone chan struct{}
	lost      chan struct{} // closed when the lease is given up

	mu        sync.Mutex
	verdict   *bus.Verdict
	cancel    context.CancelCauseFunc // of the handler's context; nil until handed over
	settled   bool
	abandoned bool
}

// errNacked stands for the error of a reader who did not give one.
var errNacked = errors.New("not acknowledged by its reader")

func newDelivery(in *intake, raw jetstream.Msg) *delivery {
	d := &delivery{Msg: raw, in: in, leaseDone: make(chan struct{}), lost: make(chan struct{})}
	d.leaseCtx, d.endLease = context.WithCancel(context.Background())
	d.message = Message{
		Subject: raw.Subject(),
		Header:  sanitised(raw.Headers()),
		Data:    raw.Data(),
	}
	d.message.ID, d.message.Named = idOf(raw)
	meta, err := raw.Metadata()
	if err != nil {
		d.unreadable = fmt.Errorf("read metadata: %w", err)
		return d
	}
	d.message.Delivered = int(meta.NumDelivered)
	d.message.Stored = meta.Timestamp
	d.message.Sequence = meta.Sequence.Stream
	return d
}

func (d *delivery) letter(reason, stage string) Letter {
	return Letter{
		Stream:    d.in.stream,
		Consumer:  d.in.name,
		Subject:   d.message.Subject,
		ID:        d.message.ID,
		Stage:     stage,
		Reason:    reason,
		Delivered: d.message.Delivered,
		Header:    maps.Clone(d.message.Header),
		Data:      d.message.Data,
		Sequence:  d.message.Sequence,
	}
}

// The overridden part of jetstream.Msg. The argument of settle counts only when nobody judged the delivery, which is
// when the Subscriber is used without a Router.

func (d *delivery) Ack() error                       { return d.settle(bus.Verdict{Action: bus.Ack}) }
func (d *delivery) DoubleAck(context.Context) error  { return d.Ack() }
func (d *delivery) Nak() error                       { return d.settle(bus.Outcome(errNacked, d.message.Delivered, 0)) }
func (d *delivery) NakWithDelay(time.Duration) error { return d.Nak() }
func (d *delivery) Term() error                      { return d.Nak() }
func (d *delivery) TermWithReason(string) error      { return d.Nak() }

// judged sets the verdict.
func (d *delivery) judged(v bus.Verdict) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.verdict = &v
}

func (d *delivery) judgement() (bus.Verdict, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.verdict == nil {
		return bus.Verdict{}, false
	}
	return *d.verdict, true
}

// settle tells the broker the verdict. A repeat does nothing.
func (d *delivery) settle(unjudged bus.Verdict) error {
	d.mu.Lock()
	if d.settled || d.abandoned {
		d.mu.Unlock()
		return nil
	}
	d.settled = true
	v := unjudged
	switch {
	case d.verdict != nil:
		v = *d.verdict
	case d.cancel == nil: // nobody has seen it
		v = bus.Verdict{Action: bus.Nak, Delay: giveBack}
	}
	d.mu.Unlock()

	// The last renewal must be out before the verdict: one that came after a nak would replace its delay by the ack
	// wait.
	d.endLease()
	<-d.leaseDone

	err := d.tell(v)
	if err != nil {
		d.in.sub.hooks.settleFailed()
		return fmt.Errorf("settle message %d of %s: %w", d.message.Sequence, d.in.stream, err)
	}
	return nil
}

func (d *delivery) tell(v bus.Verdict) error {
	switch v.Action {
	case bus.Ack:
		ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
		defer cancel()
		return d.Msg.DoubleAck(ctx)
	case bus.Dead:
		return d.Msg.Term()
	}
	select {
	case <-d.lost: // already on its way to somebody else; a nak would send it out once more
		return nil
	default:
	}
	if v.Delay <= 0 {
		return d.Msg.Nak()
	}
	return d.Msg.NakWithDelay(v.Delay)
}

// keepLease renews the lease every third of the ack wait until the delivery is settled, and gives it up after limit,
// so that a handler that hangs does not hold its message for ever, or when the broker has confirmed no renewal for a
// whole ack wait.
func (d *delivery) keepLease(limit time.Duration) {
	defer close(d.leaseDone)
	every := d.in.ackWait / 3
	tick := time.NewTicker(every)
	defer tick.Stop()
	overdue := time.NewTimer(limit)
	defer overdue.Stop()

	renewed := time.Now()
	for {
		select {
		case <-d.leaseCtx.Done():
			return
		case <-overdue.C:
			d.lose(ErrTimeout)
			return
		case <-tick.C:
		}
		begin := time.Now()
		if d.renew(every) {
			renewed = begin
		} else if d.leaseCtx.Err() == nil && time.Since(renewed) >= d.in.ackWait {
			d.lose(ErrLeaseLost)
			return
		}
	}
}

// renew extends the lease and reports whether the broker confirmed it; jetstream's own InProgress does not ask.
func (d *delivery) renew(patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(d.leaseCtx, patience)
	defer cancel()
	_, err := d.in.sub.nc.RequestWithContext(ctx, d.Reply(), []byte("+WPI"))
	return err == nil
}

func (d *delivery) lose(cause error) {
	close(d.lost)
	d.in.sub.hooks.leaseLost()
	d.in.sub.log.Error("lease given up, the message will be delivered again while its handler may still run",
		"subject", d.message.Subject, "id", d.message.ID, "sequence", d.message.Sequence, "cause", cause)
	d.interrupt(cause)
}

// handOver prepares m for its reader: a context that carries the delivery and that we can cancel. It says no when the
// lease is lost already.
func (d *delivery) handOver(m *message.Message) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.lost:
		return false
	default:
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(m.Context(), deliveryKey{}, d))
	d.cancel = cancel
	m.SetContext(ctx)
	return true
}

// takeBack undoes handOver for a message nobody received.
func (d *delivery) takeBack() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cancel(ErrStopping)
	d.cancel = nil
}

// interrupt cancels the handler's context.
func (d *delivery) interrupt(cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cancel != nil {
		d.cancel(cause)
	}
}

// abandon leaves the delivery to its ack wait: its handler still runs, so handing the message to somebody else at once
// would be wrong. It says no when the delivery is being settled.
func (d *delivery) abandon() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.settled || d.verdict != nil {
		return false
	}
	d.abandoned = true
	return true
}

// end releases what the delivery holds. One that nobody has seen goes back.
func (d *delivery) end() {
	d.mu.Lock()
	unread := d.cancel == nil
	d.mu.Unlock()
	if unread {
		_ = d.settle(bus.Verdict{}) // a failure is counted, and the ack wait brings the message back
	}
	d.endLease()
	<-d.leaseDone
	d.interrupt(context.Canceled)
}

type deliveryKey struct{}

// deliveryOf returns the delivery behind a message of a Subscriber.
func deliveryOf(m *message.Message) *delivery {
	return m.Context().Value(deliveryKey{}).(*delivery)
}

// isBrokers says whether a header is an instruction to, or a remark by, the broker.
func isBrokers(header string) bool {
	const prefix = "Nats-"
	return len(header) >= len(prefix) && strings.EqualFold(header[:len(prefix)], prefix)
}

// sanitised copies h without the broker's headers.
func sanitised(h nats.Header) nats.Header {
	out := make(nats.Header, len(h))
	for key, values := range h {
		if !isBrokers(key) {
			out[key] = append([]string(nil), values...)
		}
	}
	return out
}

// firstValue returns the first value of a header, whatever the case of its name, or "".
func firstValue(h nats.Header, name string) string {
	if v := h.Get(name); v != "" {
		return v
	}
	for key, values := range h {
		if strings.EqualFold(key, name) && len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

func idOf(raw jetstream.Msg) (id string, named bool) {
	for _, name := range []string{jetstream.MsgIDHeader, "ce-id"} {
		if id := firstValue(raw.Headers(), name); id != "" {
			return id, true
		}
	}
	h := sha256.New()
	h.Write([]byte(raw.Subject()))
	h.Write([]byte{0}) // subjects have none, so no two pairs run together
	h.Write(raw.Data())
	return hex.EncodeToString(h.Sum(nil)[:16]), false
}
