// Package webhooks tells other people's HTTP servers what happens: it makes a delivery of each event for each webhook
// that wants it, and sends it until the receiver takes it or is given up.
//
//	event ──▶ fan-out ──▶ delivery.<webhook>.<delivery> = pending
//	                            │ due, and a place free at that webhook
//	                            ▼
//	                          send ──2xx──▶ delivered
//	                            │ anything else
//	                            ├──▶ retrying, due after the next pause of the schedule
//	                            └──▶ failed: the schedule is at its end, or the receiver said 410
//
// The id of a delivery is a function of webhook and event, and its record is asked before each attempt (but the first,
// of which its stream has just told) and written after it, so a crash at any line repeats an attempt at most. Any
// number of processes may make deliveries; one at a time sends.
package webhooks

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/bus"
	"millrace/shared/egress"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/webhook"
)

// Config of the service.
type Config struct {
	// AllowEndpoints are networks, addresses and hosts that webhooks may be at although they are not public; see
	// egress.New.
	AllowEndpoints []string
	// Schedule is the pauses between attempts, to which up to a fifth is added by chance; behind the last one a delivery
	// is given up. Default: DefaultSchedule.
	Schedule []time.Duration
	// MaxRetryAfter bounds what a receiver may ask for by Retry-After. Default 1 day.
	MaxRetryAfter time.Duration
	// Timeout bounds one attempt. Default 10 s.
	Timeout time.Duration
	// PerWebhook is how many deliveries are in flight to one webhook; to one whose last attempt failed it is one.
	// Default 8.
	PerWebhook int
	// Concurrency is how many are in flight in all. Default 1,024: a hundred receivers that answer nothing take a tenth.
	Concurrency int
	// DisableAfter is how many deliveries in a row are given up before a webhook is disabled. Default 20.
	DisableAfter int
	// MaxWait is how long a delivery waits for a webhook that is paused or disabled before it is given up. Default 7
	// days.
	MaxWait time.Duration
	// Roots are the authorities that receivers' certificates are held against. Default: the system's.
	Roots *x509.CertPool
}

// DefaultSchedule is nearly three days, so that a receiver may be down over a weekend. The contract recommends its
// first six pauses; the others cost a delivery three requests more.
func DefaultSchedule() []time.Duration {
	return []time.Duration{
		10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 6 * time.Hour,
		12 * time.Hour, 24 * time.Hour, 24 * time.Hour,
	}
}

func (c *Config) setDefaults() {
	if c.Schedule == nil {
		c.Schedule = DefaultSchedule()
	}
	c.MaxRetryAfter = cmp.Or(c.MaxRetryAfter, 24*time.Hour)
	c.Timeout = cmp.Or(c.Timeout, webhook.Timeout)
	c.PerWebhook = cmp.Or(c.PerWebhook, 8)
	c.Concurrency = cmp.Or(c.Concurrency, 1024)
	c.DisableAfter = cmp.Or(c.DisableAfter, 20)
	c.MaxWait = cmp.Or(c.MaxWait, 7*24*time.Hour)
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	c.setDefaults()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, d := range append([]time.Duration{c.MaxRetryAfter, c.Timeout, c.MaxWait}, c.Schedule...) {
		if d <= 0 {
			bad("pause %s: must be positive", d)
		}
	}
	if c.PerWebhook < 1 || c.Concurrency < 1 || c.DisableAfter < 1 {
		bad("per webhook %d, in all %d, disable after %d: must be at least 1", c.PerWebhook, c.Concurrency, c.DisableAfter)
	}
	if _, err := egress.New(c.AllowEndpoints); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Webhooks is the service. See New.
type Webhooks struct {
	cfg        Config
	env        service.Env
	metrics    metrics
	hooks      *hooks
	deliveries *store.Deliveries
	sender     *sender
	jobs       *store.Register[store.Job]
	runs       *store.Register[store.Run]
	documents  *store.Documents
}

// New returns the service; it has opened nothing yet.
func New(cfg Config, env service.Env, secrets webhook.Opener) (*Webhooks, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	cfg.setDefaults()
	guard, err := egress.New(cfg.AllowEndpoints)
	if err != nil {
		return nil, err
	}
	env.Log = env.Log.With("component", "webhooks")
	if len(cfg.AllowEndpoints) > 0 {
		env.Log.Info("webhooks may also be at addresses that are not public", "allowed", cfg.AllowEndpoints)
	}
	s := &Webhooks{cfg: cfg, env: env, metrics: newMetrics(env.Metrics), deliveries: store.NewDeliveries(env.Bus)}
	s.hooks = newHooks(env, s.metrics, cfg.DisableAfter)
	s.sender = &sender{
		cfg: cfg, env: env, metrics: s.metrics, hooks: s.hooks, deliveries: s.deliveries, secrets: secrets,
		reads: make(chan struct{}, readers), client: webhook.NewClient(guard, webhook.ClientConfig{Timeout: cfg.Timeout, Roots: cfg.Roots}),
	}
	return s, nil
}

// readers is how many records of deliveries are read at a time.
const readers = 16

// senderLease is the lease of whoever sends.
const senderLease = "webhooks-sender"

// fanOut is how many events are made deliveries at a time; their writes share fsyncs.
const fanOut = 8

// Run works until ctx ends and the attempts in flight are over. It fails when the topology is missing.
func (s *Webhooks) Run(ctx context.Context) error {
	leases, err := s.open(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.hooks.follow(ctx) })
	over := make(chan struct{}) // the last attempt
	g.Go(func() error { s.hooks.keepBooks(ctx, over); return nil })
	g.Go(func() error {
		if !s.hooks.wait(ctx) {
			return nil
		}
		return s.env.Bus.ConsumeBatch(ctx, topology.WebhooksEvents, bus.Options{Batch: 8 * fanOut}, s.tell)
	})
	g.Go(func() error {
		defer close(over)
		if s.hooks.wait(ctx) {
			s.sender.run(ctx, leases)
		}
		return nil
	})
	return g.Wait()
}

func (s *Webhooks) open(ctx context.Context) (leases *store.Leases, err error) {
	b := s.env.Bus
	if err := s.hooks.open(ctx); err != nil {
		return nil, err
	}
	if s.jobs, err = store.Open[store.Job](ctx, b, topology.JobRecords); err != nil {
		return nil, err
	}
	if s.runs, err = store.Open[store.Run](ctx, b, topology.RunRecords); err != nil {
		return nil, err
	}
	if s.documents, err = store.OpenDocuments(ctx, b); err != nil {
		return nil, err
	}
	return store.OpenLeases(ctx, b, s.env.Instance)
}

// Ready returns nil while events are being made deliveries.
func (s *Webhooks) Ready() error { return s.env.Bus.Consuming(topology.WebhooksEvents) }
