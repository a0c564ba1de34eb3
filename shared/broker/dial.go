package broker

import (
	"context"
	"errors"
	"fmt"
	neturl "net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// MinVersion is the oldest server that can carry Millrace: the first with one-shot message schedules.
const MinVersion = "2.14"

const minMajor, minMinor = 2, 14

// The question whether JetStream is there is asked until checkTimeout, time enough for a cluster that is electing
// on a busy machine, and again every checkRetry: an answer that is refused to us does not come as an error but not at all.
const (
	checkTimeout = 30 * time.Second
	checkRetry   = 500 * time.Millisecond
)

// Errors of Dial, to be held with errors.Is.
var (
	// ErrTooOld: the server is older than MinVersion.
	ErrTooOld = errors.New("broker too old")
	// ErrNoJetStream: the server, or the account of the connection, has JetStream turned off.
	ErrNoJetStream = errors.New("broker without JetStream")
)

// Dial connects to a running broker under a name that monitoring shows; url may list several nodes, separated by
// commas. It fails when none of them can be reached now, with ErrTooOld, or with ErrNoJetStream. Once made, a
// connection is kept: it reconnects for ever, and what is written meanwhile is buffered up to 8 MB. Options given
// override the defaults.
func Dial(url, name string, opts ...nats.Option) (*nats.Conn, error) {
	nc, err := nats.Connect(url, append(clientOptions(name), opts...)...)
	if err != nil {
		if parse := new(neturl.Error); errors.As(err, &parse) {
			err = parse.Err // without the URL, which may carry credentials
		}
		return nil, fmt.Errorf("broker: connect %s: %w (is a broker running there? choose another with --nats-url)", redact(url), err)
	}
	if err := errors.Join(CheckVersion(nc), checkJetStream(nc)); err != nil {
		nc.Close()
		return nil, fmt.Errorf("broker: %s: %w", redact(url), err)
	}
	return nc, nil
}

// clientOptions are what every connection of ours has in common.
func clientOptions(name string) []nats.Option {
	return []nats.Option{
		nats.Name(name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		// Not all at once, when a node comes back to a hundred services.
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
		// A dead peer is noticed after 20 to 30 s instead of minutes; leases are of that order.
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		// A token that is being exchanged must not end the connection for good.
		nats.IgnoreAuthErrorAbort(),
		// The room that each synchronous subscription gets at once, and so each direct get, whose answer has no more than
		// 1,024 messages. The client's default is half a megabyte of it.
		nats.SyncQueueLen(4096),
	}
}

// CheckVersion returns nil when the server nc is connected to is at least MinVersion, else ErrTooOld with both
// versions. In a cluster it speaks for that one node. A connection that is down at the moment is an error, too.
func CheckVersion(nc *nats.Conn) error {
	v := nc.ConnectedServerVersion()
	if v == "" {
		return errors.New("version of the broker unknown: not connected")
	}
	return checkVersion(v)
}

// checkVersion compares major and minor only: a release candidate of MinVersion has what we need.
func checkVersion(v string) error {
	major, rest, ok := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	maj, err := strconv.ParseUint(major, 10, 31)
	mnr, err2 := strconv.ParseUint(minor, 10, 31)
	if !ok || err != nil || err2 != nil {
		return fmt.Errorf("broker: unreadable server version %q: %s or later is needed", v, MinVersion)
	}
	if maj < minMajor || maj == minMajor && mnr < minMinor {
		return fmt.Errorf("%w: nats-server %s found, %s or later is needed", ErrTooOld, v, MinVersion)
	}
	return nil
}

func checkJetStream(nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	ask := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), checkRetry)
		defer cancel()
		_, err := js.AccountInfo(ctx)
		switch {
		case err == nil:
		case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
			return fmt.Errorf("%w: %w", ErrNoJetStream, err)
		case errors.Is(nc.LastError(), nats.ErrPermissionViolation):
			// A worker with the least privileges may not ask; binding its consumer will tell it the truth.
		default:
			<-ctx.Done() // an error that came at once, such as "no leader yet", is no reason to ask again at once
			return fmt.Errorf("ask for JetStream: %w", err)
		}
		return nil
	}
	for deadline := time.Now().Add(checkTimeout); ; {
		err := ask()
		if err == nil || errors.Is(err, ErrNoJetStream) || time.Now().After(deadline) {
			return err
		}
	}
}

// redact takes what may be credentials out of a list of URLs. Parsing is no help: what does not parse is what ends up
// in an error.
func redact(urls string) string {
	list := strings.Split(urls, ",")
	for i, u := range list {
		at := strings.LastIndex(u, "@")
		if at < 0 {
			continue
		}
		scheme := ""
		if s, _, ok := strings.Cut(u[:at], "://"); ok {
			scheme = s + "://"
		}
		list[i] = scheme + "[redacted]@" + u[at+1:]
	}
	return strings.Join(list, ",")
}
