package scanner

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bucket/dir"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/s3"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
)

// leaseSources is the lease under which one scanner follows the storage of all connectors. Two would publish every
// notification twice, which changes nothing further on.
const leaseSources = "scanner-sources"

// followers writes what storage says about itself to the notifications stream: one follower per connector that an
// enabled automation is about, whatever the number of automations.
type followers struct {
	bus     *bus.Bus
	config  *config
	scans   *scans
	leases  *store.Leases
	sources Sources
	pubsub  string // address of an emulator

	transport http.RoundTripper // to queues
	metrics   metrics
	log       *slog.Logger
}

// run follows while it holds the lease, until ctx ends.
func (f *followers) run(ctx context.Context) {
	f.leases.Keep(ctx, leaseSources, func(err error) { f.log.Warn("following sources, will begin anew", "error", err) }, f.lead)
}

// follower is one connector being followed.
type follower struct {
	connector store.Connector
	stop      context.CancelFunc
	stopped   chan struct{}
}

// sameSource reports whether a follower of a need not be replaced for b.
func sameSource(a, b store.Connector) bool {
	return a.Provider == b.Provider && a.Path == b.Path && a.Poll == b.Poll && a.Mount == b.Mount && a.Bucket == b.Bucket &&
		a.EndpointURL == b.EndpointURL && a.Region == b.Region && a.Credentials == b.Credentials && a.Subscription == b.Subscription
}

// lead keeps the followers as the configuration wants them.
func (f *followers) lead(ctx context.Context) error {
	changed, quiet := f.config.onChange()
	defer quiet()
	running := make(map[string]*follower)
	for {
		want := f.config.followable()
		for id, r := range running {
			if c, ok := want[id]; !ok || !sameSource(r.connector, c) {
				r.stop()
				<-r.stopped
				delete(running, id)
			}
		}
		for id, c := range want {
			if running[id] == nil {
				running[id] = f.start(ctx, c)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			for _, r := range running { // their contexts have ended with ours
				<-r.stopped
			}
			return nil
		}
	}
}

func (f *followers) start(ctx context.Context, c store.Connector) *follower {
	ctx, stop := context.WithCancel(ctx)
	r := &follower{connector: c, stop: stop, stopped: make(chan struct{})}
	following := f.metrics.following.WithLabelValues(c.Provider)
	following.Inc()
	go func() {
		defer close(r.stopped)
		defer following.Dec()
		f.follow(ctx, c)
	}()
	return r
}

// Pauses between two attempts to follow a connector.
const (
	followPause    = time.Second
	followMaxPause = time.Minute
)

// follow follows one connector until ctx ends, again and again.
func (f *followers) follow(ctx context.Context, c store.Connector) {
	for pause := followPause; ; pause = min(2*pause, followMaxPause) {
		start := time.Now()
		err := f.once(ctx, c)
		if ctx.Err() != nil {
			return
		}
		if time.Since(start) > followMaxPause {
			pause = followPause
		}
		f.log.Warn("connector is not being followed", "connector", c.ID, "again_in", pause, "error", err)
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
			return
		}
	}
}

// once follows a connector until that fails.
func (f *followers) once(ctx context.Context, c store.Connector) error {
	if _, _, err := f.sources.Source(ctx, c.ID); err != nil {
		return err // also: this folder is not for us to look at
	}
	if c.Provider == "dir" {
		return f.watch(ctx, c)
	}
	return f.pull(ctx, c)
}

// watch follows a folder. What happened there while nobody watched is found by scans, once the watch stands, so that
// nothing falls between the two.
func (f *followers) watch(ctx context.Context, c store.Connector) error {
	g, ctx := errgroup.WithContext(ctx)
	changes := make(chan said, 4*publishBatch)
	missed := make(chan struct{}, 1)
	miss := func() {
		select {
		case missed <- struct{}{}:
		default:
		}
	}
	g.Go(func() error {
		return dir.Watch(ctx, c.Path, dir.WatchOptions{Ready: miss, Log: f.log, Poll: c.Poll, Mount: c.Mount}, func(ch dir.Change) {
			if ch.Op == dir.Overflow {
				f.metrics.overflows.Inc()
				miss()
				return
			}
			n, ok := notificationOf(ch)
			if !ok {
				return
			}
			data, err := json.Marshal(n)
			if err != nil {
				f.log.Error("encode notification", "path", n.Path, "error", err)
				return
			}
			select {
			case changes <- said{data: data}:
			case <-ctx.Done():
			}
		})
	})
	g.Go(func() error { return f.publish(ctx, c.ID, changes) })
	g.Go(func() error {
		for {
			select {
			case <-missed:
				if err := f.catchUp(ctx, c.ID); err != nil {
					return err
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

// notificationOf turns a change of a folder into a notification. The end of a whole folder tells no names, and names
// that are not UTF-8 cannot travel; both are left to the importer and the scans.
func notificationOf(ch dir.Change) (event.Notification, bool) {
	o := objectOf(ch.Object)
	if strings.HasSuffix(o.Path, "/") || !utf8.ValidString(o.Path) {
		return event.Notification{}, false
	}
	op := event.Created
	if ch.Op == dir.Deleted {
		op = event.Deleted
	}
	return event.Notification{
		Op: op, Path: o.Path, Version: o.Version, Order: o.Order, Size: o.Size, ModTime: o.ModTime, CRC32C: o.CRC32C,
	}, true
}

// pull follows a subscription. What is not stored is not acknowledged, so nothing is missed while nobody pulls.
func (f *followers) pull(ctx context.Context, c store.Connector) error {
	key, err := f.sources.Credentials(c)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	heard := make(chan said, publishBatch)
	g.Go(func() error { return f.publish(ctx, c.ID, heard) })
	g.Go(func() error {
		if c.Provider == "s3" {
			return f.pullQueue(ctx, c, key, heard)
		}
		cfg := gcs.PullConfig{
			Subscription: c.Subscription, CredentialsJSON: key, Endpoint: f.pubsub, MaxOutstanding: 2 * publishBatch,
		}
		if key != nil { // it names the place that gives tokens; the machine's own come from where its operator says
			cfg.Transport = f.transport
		}
		return gcs.Pull(ctx, cfg, func(ctx context.Context, n gcs.Notification) error {
			data, err := n.Envelope()
			if err != nil {
				return err
			}
			return hand(ctx, heard, data)
		})
	})
	return g.Wait()
}

// pullQueue hands on what a queue of SQS holds, until ctx ends or that fails.
func (f *followers) pullQueue(ctx context.Context, c store.Connector, key []byte, heard chan<- said) error {
	var keys store.S3Credentials // none: the machine's own
	if len(key) > 0 {
		if err := json.Unmarshal(key, &keys); err != nil {
			return errors.New("credentials are not a pair of keys") // the decoder's words could quote them
		}
	}
	return s3.Pull(ctx, s3.PullConfig{
		Queue: c.Subscription, Region: c.Region, Transport: f.transport,
		AccessKeyID: keys.AccessKeyID, SecretAccessKey: keys.SecretAccessKey, Receivers: 8,
	}, func(ctx context.Context, body []byte) error { return hand(ctx, heard, body) })
}

// said is a notification on its way to the stream.
type said struct {
	data   []byte
	stored chan<- error // told once; nil: nobody waits
}

// hand passes a notification on and waits until it is stored.
func hand(ctx context.Context, to chan<- said, data []byte) error {
	stored := make(chan error, 1)
	select {
	case to <- said{data, stored}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-stored:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// publishBatch is how many notifications are written at a time, and publishTries how often before the follower starts
// over.
const (
	publishBatch = 500
	publishTries = 10
)

// publish writes what comes, together what came together.
func (f *followers) publish(ctx context.Context, connector string, in <-chan said) error {
	subject := f.bus.Subject("notification", connector)
	for {
		batch := take(ctx, in)
		if len(batch) == 0 {
			return nil
		}
		msgs := make([]bus.Message, len(batch))
		for i, s := range batch {
			msgs[i] = bus.Message{Subject: subject, Data: s.data}
		}
		err := f.write(ctx, msgs)
		for _, s := range batch {
			if s.stored != nil {
				s.stored <- err
			}
		}
		if err != nil {
			return err
		}
	}
}

// take waits for one and takes with it what is there already. It returns nothing when ctx has ended.
func take(ctx context.Context, in <-chan said) (batch []said) {
	select {
	case s := <-in:
		batch = append(batch, s)
	case <-ctx.Done():
		return nil
	}
	for len(batch) < publishBatch {
		select {
		case s := <-in:
			batch = append(batch, s)
		default:
			return batch
		}
	}
	return batch
}

// write writes messages in order, for as long as that makes sense. Writing one twice does no harm.
func (f *followers) write(ctx context.Context, msgs []bus.Message) error {
	for try := 1; ; try++ {
		_, errs := f.bus.PublishAll(ctx, msgs)
		err := errors.Join(errs...)
		if err == nil || ctx.Err() != nil || try == publishTries {
			return err
		}
		f.log.Warn("publishing notifications", "again_in", bus.Backoff(try), "error", errs[0])
		select {
		case <-time.After(bus.Backoff(try)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// catchUp has all automations of a connector scanned.
func (f *followers) catchUp(ctx context.Context, connector string) error {
	var g errgroup.Group
	g.SetLimit(sweepers)
	for _, a := range f.config.ofConnector(connector) {
		g.Go(func() error { return f.scans.ring(ctx, a.ID, scanCatchUp, "") })
	}
	return g.Wait()
}
