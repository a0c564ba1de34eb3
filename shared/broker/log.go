package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"
)

// serverLog is the server's logger on top of slog. Notices go to debug: for the one who runs Millrace the embedded
// broker is a part and not a program, and one line of our own says that it runs.
type serverLog struct {
	log *slog.Logger

	mu       sync.Mutex
	fatalMsg string
}

func (l *serverLog) Tracef(format string, v ...any)  { l.line(slog.LevelDebug, format, v) }
func (l *serverLog) Debugf(format string, v ...any)  { l.line(slog.LevelDebug, format, v) }
func (l *serverLog) Noticef(format string, v ...any) { l.line(slog.LevelDebug, format, v) }
func (l *serverLog) Warnf(format string, v ...any)   { l.line(slog.LevelWarn, format, v) }
func (l *serverLog) Errorf(format string, v ...any)  { l.line(slog.LevelError, format, v) }

// Fatalf does not end the process, as the server's own logger does: the server returns after it, and Start turns the
// first message into its error.
func (l *serverLog) Fatalf(format string, v ...any) {
	l.line(slog.LevelError, format, v)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fatalMsg == "" {
		l.fatalMsg = fmt.Sprintf(format, v...)
	}
}

func (l *serverLog) line(level slog.Level, format string, v []any) {
	ctx := context.Background()
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, fmt.Sprintf(format, v...)) //nolint:sloglint // the server composes its lines
	}
}

func (l *serverLog) fatal() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fatalMsg
}

// LogEvents makes a connection log what happens to it: lost, back, closed for good, and errors that no caller is
// waiting for, such as a slow consumer or a refused permission.
func LogEvents(logger *slog.Logger) nats.Option {
	return func(o *nats.Options) error {
		log := logger.With("connection", o.Name)
		o.DisconnectedErrCB = func(_ *nats.Conn, err error) {
			if err != nil { // nil: we closed it
				log.Warn("connection to the broker lost", "err", err)
			}
		}
		o.ReconnectedCB = func(nc *nats.Conn) {
			log.Info("connection to the broker is back", "server", nc.ConnectedServerName())
			// A cluster may have a node that was left behind by an upgrade.
			if err := CheckVersion(nc); err != nil {
				log.Error("unsuitable broker", "err", err)
			}
		}
		o.AsyncErrorCB = func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			log.Error("broker connection", "subject", subject, "err", err)
		}
		return nil
	}
}
