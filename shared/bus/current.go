package bus

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// A direct get is answered by any replica of the stream, also by one that has not yet stored what the leader has
// acknowledged (NATS ADR-31). Reads that decide something must not miss that, so on a cluster each answer is held against
// what the leader knows, and asked for again until a replica has come that far. Such a read costs a request or two to the
// leader more; on a single broker, which has no replica, it costs nothing.

// clustered reports whether streams may have replicas.
func (b *Bus) clustered() bool { return b.nc.ConnectedClusterName() != "" }

// errLate says that no replica has reached the leader in time.
var errLate = errors.New("the replicas of the stream lag behind its leader")

// lateness paces the questions to replicas that lag.
type lateness struct {
	since time.Time
	pause time.Duration
}

// wait returns when it is time to ask again, or errLate when nothing has moved on for too long.
func (l *lateness) wait(ctx context.Context, moved bool) error {
	if moved || l.since.IsZero() {
		l.since, l.pause = time.Now(), time.Millisecond
	}
	if time.Since(l.since) > readTimeout {
		return errLate
	}
	select {
	case <-time.After(l.pause):
		l.pause = min(2*l.pause, 100*time.Millisecond)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// getCurrent is get for last messages, of a replica that had everything which the leader had when it was called.
func (b *Bus) getCurrent(ctx context.Context, stream string, q query) (answer, error) {
	s, err := b.js.Stream(ctx, stream)
	if err != nil {
		return answer{}, err
	}
	floor := max(s.CachedInfo().State.LastSeq, q.reached)
	for late := (lateness{}); ; {
		a, err := b.get(ctx, stream, q)
		if err != nil || a.upTo >= floor {
			return a, err
		}
		// A replica that finds nothing does not tell how far it is.
		if len(a.msgs) == 0 && a.upTo == 0 {
			if none, err := b.none(ctx, stream, q.Last, q.Seq); err != nil || none {
				return a, err
			}
		}
		if err := late.wait(ctx, false); err != nil {
			return answer{}, err
		}
	}
}

// none reports whether the leader has no message of any of the subjects, from sequence from on.
func (b *Bus) none(ctx context.Context, stream string, subjects []string, from uint64) (bool, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	errSome := errors.New("there are some")
	for _, subject := range subjects {
		g.Go(func() error {
			seq, err := b.newest(ctx, stream, subject)
			if err == nil && seq > 0 && seq >= from {
				return errSome
			}
			return err
		})
	}
	err := g.Wait()
	if errors.Is(err, errSome) {
		return false, nil
	}
	return err == nil, err
}

// codeNoMessage is the server's error code for a message that is not there.
const codeNoMessage = 10037

// newest asks the leader of a stream for the sequence of the last message whose subject matches filter, 0 when there is
// none.
func (b *Bus) newest(ctx context.Context, stream, filter string) (uint64, error) {
	m, err := b.lastOfLeader(ctx, stream, filter)
	return m.Sequence, err
}

// lastOfLeader returns the last message whose subject matches filter as the leader of the stream has it; its sequence is
// 0 when there is none. While the stream has no leader it asks again.
func (b *Bus) lastOfLeader(ctx context.Context, stream, filter string) (Stored, error) {
	return b.ofLeader(ctx, stream, map[string]any{"last_by_subj": filter})
}

// Next returns the first message, from sequence from on, whose subject matches filter, of a stream given by the broker's
// name and as its leader has it; its sequence is 0 when there is none.
func (b *Bus) Next(ctx context.Context, stream, filter string, from uint64) (Stored, error) {
	return b.ofLeader(ctx, stream, map[string]any{"next_by_subj": filter, "seq": max(from, 1)})
}

func (b *Bus) ofLeader(ctx context.Context, stream string, q map[string]any) (Stored, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return Stored{}, err
	}
	for late := (lateness{}); ; {
		m, err := b.askLeader(ctx, stream, body)
		if !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errNoLeader) || ctx.Err() != nil {
			return m, err
		}
		if werr := late.wait(ctx, false); werr != nil {
			return m, fmt.Errorf("%w (%w)", werr, err)
		}
	}
}

// errNoLeader says that a stream has nobody now who could say what is current.
var errNoLeader = errors.New("the stream has no leader")

// leaderTimeout bounds one question to a leader, which answers in no time or is gone.
const leaderTimeout = 2 * time.Second

func (b *Bus) askLeader(ctx context.Context, stream string, body []byte) (Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, body)
	if err != nil {
		return Stored{}, err
	}
	head, data, tail := cutData(m.Data)
	var said struct {
		Error   *jetstream.APIError
		Message struct {
			Subject string
			Seq     uint64
			Time    time.Time
		}
	}
	switch err := json.Unmarshal(append(head, tail...), &said); {
	case err != nil:
		return Stored{}, err
	case said.Error == nil:
		raw := make([]byte, base64.StdEncoding.DecodedLen(len(data)))
		n, err := base64.StdEncoding.Decode(raw, data)
		return Stored{Subject: said.Message.Subject, Sequence: said.Message.Seq, Time: said.Message.Time, Data: raw[:n]}, err
	case said.Error.ErrorCode == codeNoMessage:
		return Stored{}, nil
	case said.Error.Code == 503:
		return Stored{}, fmt.Errorf("%w: %w", errNoLeader, said.Error)
	}
	return Stored{}, said.Error
}

// cutData takes the data of a message out of the answer with it, which encoding/json would look at three times. head is of
// its own.
func cutData(answer []byte) (head, data, tail []byte) {
	const name = `"data":"` // never part of a string, where quotes have a backslash
	head, rest, ok := bytes.Cut(answer, []byte(name))
	end := bytes.IndexByte(rest, '"')
	if !ok || end < 0 {
		return bytes.Clone(answer), nil, nil
	}
	return append(bytes.Clone(head), name...), rest[:end], rest[end:]
}
