package control

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/topology"
)

// stillAfter is how much longer than a handler may take a consumer can stand still before watch asks for it to go on:
// longer than what a handler puts off at once.
const stillAfter = 5 * time.Minute

// watch has the broker deliver again what it has given out and then forgotten. That is the broker's own task, at the end of
// the ack wait, and we have seen it fail: over several changes of a consumer's leader, with connections cut, one message
// stayed unacknowledged and was not given out again for as long as the brokers ran (nats-server 2.15.2).
//
// Whatever else is in hand then comes twice, which handlers are made for.
func (in *intake) watch(ctx context.Context, after time.Duration) {
	look := time.NewTicker(after / 4)
	defer look.Stop()
	v := vigil{since: time.Now()}
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		info, err := in.look(ctx)
		if err != nil {
			continue // a broker that does not answer has no idea of what it gave out either
		}
		if v.still(info, time.Now()) < after {
			continue
		}
		v.since = time.Now()
		in.sub.log.Warn("the broker has not delivered again what nobody has acknowledged; asking for all of it",
			"unacknowledged", info.NumAckPending, "stream_sequence", info.AckFloor.Stream, "error", in.reset(ctx))
	}
}

// vigil is since when the oldest unacknowledged message of a consumer has been the same.
type vigil struct {
	oldest uint64
	since  time.Time
}

// still says for how long the consumer has stood still. It does not while any of what is unacknowledged was delivered
// again: then the broker does its task, and the message may be one that fails, whose count of deliveries a reset would take
// back to the first.
func (v *vigil) still(info *jetstream.ConsumerInfo, now time.Time) time.Duration {
	if floor := info.AckFloor.Consumer; info.NumAckPending == 0 || info.NumRedelivered > 0 || floor != v.oldest {
		v.oldest, v.since = floor, now
	}
	return now.Sub(v.since)
}

func (in *intake) look(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return in.Info(ctx)
}

func (in *intake) reset(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return topology.Reset(ctx, in.sub.nc, in.stream, in.name)
}
