package topology

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// ErrMissing says that a stream or consumer is not there: nobody has applied the topology to this broker, or under
// another prefix.
var ErrMissing = errors.New("topology is not applied to this broker (start `millrace admin` or `millrace up` first, with the same --prefix)")

// ErrNoLeader says that a stream or consumer on a cluster has no leader now, and so answers nothing. That passes.
var ErrNoLeader = errors.New("no leader yet")

// ErrPrefix says that a prefix cannot be part of a subject.
var ErrPrefix = errors.New("prefix must be 1-32 letters, digits, - or _")

var prefix = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// digestKey marks what was applied, so that an unchanged row costs one look instead of an update. The server fills in
// defaults, so its idea of a configuration cannot be compared with ours.
const digestKey = "millrace.digest"

// Format is the version of what the streams hold. It is raised when an older program could not read what a newer one
// writes, or would spoil it; rows and members that an older one leaves alone do not count. A program reads all formats up to
// its own. What each brought: 2, packed documents.
const Format = 2

// formatKey marks a stream with the highest format that was ever written to it.
const formatKey = "millrace.format"

// ErrNewer says that a newer program has written to these streams what this one does not know. None of them was changed.
var ErrNewer = errors.New("the data are of a newer millrace: run that version, or go back to a copy of the data from before it")

// readable returns ErrNewer for a stream that only newer programs can read.
func readable(cfg jetstream.StreamConfig) error {
	if f, err := strconv.Atoi(cfg.Metadata[formatKey]); err == nil && f > Format {
		return fmt.Errorf("format %d, where this one knows up to %d: %w", f, Format, ErrNewer)
	}
	return nil
}

// Apply creates or updates every stream and consumer of the tables. It is safe to repeat, also at the same time, and
// never deletes. It fails with ErrNewer for streams of a newer program.
func (t Topology) Apply(ctx context.Context, js jetstream.JetStream) error {
	if !prefix.MatchString(t.Prefix) {
		return fmt.Errorf("prefix %q: %w", t.Prefix, ErrPrefix)
	}
	consumers := make(map[string][]Consumer)
	for _, c := range t.Consumers() {
		consumers[c.Stream] = append(consumers[c.Stream], c)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, row := range t.Streams() {
		g.Go(func() error {
			s, err := applyStream(ctx, js, row.Config)
			if err != nil {
				return fmt.Errorf("apply stream %s: %w", row.Config.Name, err)
			}
			for _, c := range consumers[row.Name] {
				if err := applyConsumer(ctx, s, c.Config); err != nil {
					return fmt.Errorf("apply consumer %s of stream %s: %w", c.Config.Durable, row.Config.Name, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func applyStream(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	cfg.Metadata = map[string]string{formatKey: strconv.Itoa(Format)}
	cfg.Metadata[digestKey] = digest(cfg)
	s, err := js.Stream(ctx, cfg.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return js.CreateOrUpdateStream(ctx, cfg)
	case err != nil:
		return nil, err
	}
	switch err := readable(s.CachedInfo().Config); {
	case err != nil:
		return nil, err
	case s.CachedInfo().Config.Metadata[digestKey] == cfg.Metadata[digestKey]:
		return s, nil
	}
	return js.UpdateStream(ctx, cfg)
}

func applyConsumer(ctx context.Context, s jetstream.Stream, cfg jetstream.ConsumerConfig) error {
	cfg.Metadata = map[string]string{digestKey: digest(cfg)}
	c, err := s.Consumer(ctx, cfg.Durable)
	if err == nil && c.CachedInfo().Config.Metadata[digestKey] == cfg.Metadata[digestKey] {
		return nil
	}
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return err
	}
	_, err = s.CreateOrUpdateConsumer(ctx, cfg)
	return err
}

// Reclaim gives back at once what processes that are gone had in hand; without it, their deliveries come again when their
// leases have run out. It is for those who know that nobody else uses the broker, as at the start of an embedded one:
// what a living process has in hand would be delivered a second time. Needs server 2.14.
func (t Topology) Reclaim(ctx context.Context, js jetstream.JetStream) error {
	for _, row := range t.Consumers() {
		stream, name := t.Stream(row.Stream), row.Config.Durable
		c, err := js.Consumer(ctx, stream, name)
		if err != nil {
			return fmt.Errorf("reclaim deliveries of %s: %w", name, err)
		}
		if c.CachedInfo().NumAckPending == 0 {
			continue
		}
		if err := Reset(ctx, js.Conn(), stream, name); err != nil {
			return fmt.Errorf("reclaim deliveries of %s: %w", name, err)
		}
	}
	return nil
}

// Reset takes a consumer, by the broker's names, back to its first unacknowledged message: all that is unacknowledged is
// delivered again. Needs server 2.14.
func Reset(ctx context.Context, nc *nats.Conn, stream, consumer string) error {
	answer, err := nc.RequestWithContext(ctx, "$JS.API.CONSUMER.RESET."+stream+"."+consumer, nil)
	if err != nil {
		return err
	}
	var result struct{ Error *jetstream.APIError }
	if err := json.Unmarshal(answer.Data, &result); err != nil {
		return err
	}
	if result.Error != nil {
		return result.Error
	}
	return nil
}

func digest(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Complete returns nil when every stream and consumer of the tables is there and has a leader. Otherwise it fails with
// ErrMissing, with ErrNoLeader, with ErrNewer, or, when nobody answers for one of them, with a timeout.
func (t Topology) Complete(ctx context.Context, js jetstream.JetStream) error {
	consumers := make(map[string][]Consumer)
	for _, c := range t.Consumers() {
		consumers[c.Stream] = append(consumers[c.Stream], c)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, row := range t.Streams() {
		g.Go(func() error {
			s, err := js.Stream(ctx, row.Config.Name)
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				err = ErrMissing
			}
			if err == nil {
				err = cmp.Or(readable(s.CachedInfo().Config), led(s.CachedInfo().Cluster))
			}
			if err = electing(err); err != nil {
				return fmt.Errorf("stream %s: %w", row.Config.Name, err)
			}
			for _, row := range consumers[row.Name] {
				c, err := t.Bind(ctx, js, row.Config.Durable)
				if err == nil {
					err = led(c.CachedInfo().Cluster)
				}
				if err = electing(err); err != nil {
					return fmt.Errorf("consumer %s: %w", row.Config.Durable, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// led tells whether one that a node answered for can be used: of what is just being made any node knows.
func led(c *jetstream.ClusterInfo) error {
	if c != nil && c.Leader == "" {
		return ErrNoLeader
	}
	return nil
}

// unavailable is what a node answers that does not know of a leader of the cluster (JSClusterNotAvailErr).
const unavailable jetstream.ErrorCode = 10008

// electing adds ErrNoLeader to what a node answers while the cluster as a whole has no leader.
func electing(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == unavailable {
		return fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	return err
}

// Bind returns a consumer of the table, or ErrMissing.
func (t Topology) Bind(ctx context.Context, js jetstream.JetStream, name string) (jetstream.Consumer, error) {
	for _, row := range t.Consumers() {
		if row.Config.Durable != name {
			continue
		}
		c, err := js.Consumer(ctx, t.Stream(row.Stream), name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, fmt.Errorf("bind consumer %s: %w", name, ErrMissing)
		}
		if err != nil {
			return nil, fmt.Errorf("bind consumer %s: %w", name, err)
		}
		return c, nil
	}
	return nil, fmt.Errorf("bind consumer %s: not in the topology", name)
}
