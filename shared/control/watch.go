package control

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// stillAfter is how much longer than a handler may take a consumer can stand still before watch asks for it to go on:
// longer than the longest back-off of a message that fails.
const stillAfter = 5 * time.Minute

// watch has the broker deliver again what it has given out and then forgotten. That is the broker's own task, at the end of
// the ack wait, and we have seen it fail: over several changes of a consumer's leader, with connections cut, one message
// stayed unacknowledged and was not given out again for as long as the brokers ran (nats-server 2.15.2).
//
// A consumer that stands still has unacknowledged messages, and the oldest of them stays the same for longer than any handler
// takes. Whatever else is in hand then comes twice, which handlers are made for; so does a message that is to be tried
// much later, and is told again that it is too early.
func (in *intake) watch(ctx context.Context, after time.Duration) {
	look := time.NewTicker(max(after/4, time.Millisecond))
	defer look.Stop()
	oldest, since := uint64(0), time.Now()
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
		if floor := info.AckFloor.Consumer; info.NumAckPending == 0 || floor != oldest {
			oldest, since = floor, time.Now()
			continue
		}
		if time.Since(since) < after {
			continue
		}
		since = time.Now()
		in.sub.log.Warn("the broker has not delivered again what nobody has acknowledged; asking for all of it",
			"unacknowledged", info.NumAckPending, "stream_sequence", info.AckFloor.Stream, "error", in.reset(ctx))
	}
}

func (in *intake) look(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return in.Info(ctx)
}

// reset takes the consumer back to its first unacknowledged message (server 2.14).
func (in *intake) reset(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	answer, err := in.sub.nc.RequestWithContext(ctx, "$JS.API.CONSUMER.RESET."+in.stream+"."+in.name, nil)
	if err != nil {
		return err
	}
	var said struct{ Error *jetstream.APIError }
	if err := json.Unmarshal(answer.Data, &said); err != nil {
		return fmt.Errorf("answer to a reset: %w", err)
	}
	if said.Error != nil {
		return said.Error
	}
	return nil
}
