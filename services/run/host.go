// Package run makes processes of services: the flags they share, the connection to the broker, readiness, and an
// orderly end. The all-in-one and a single service are the same thing with another list.
package run

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"millrace/shared/bus"
	"millrace/shared/process"
	"millrace/shared/service"
	"millrace/shared/topology"
)

// Host is a process with a broker: what its services stand on, and what ends with them.
type Host struct {
	Topology topology.Topology
	Log      *slog.Logger
	Ops      *process.Ops
	// Instance names this process among those that compete for leases.
	Instance string

	connect  func(name string) (*nats.Conn, error)
	registry *prometheus.Registry
	services []named
	stack    *process.Stack
}

type named struct {
	name string
	service.Service
}

// stopTimeout bounds the end of a process once its services have returned.
const stopTimeout = 20 * time.Second

// NewHost returns a host whose connections come from connect. instance may be empty: then it is unlike any other.
func NewHost(connect func(name string) (*nats.Conn, error), t topology.Topology, instance string, log *slog.Logger) *Host {
	if instance == "" {
		host, _ := os.Hostname()
		instance = host + "-" + rand.Text()[:8]
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &Host{
		Topology: t, Log: log, Instance: instance, connect: connect, registry: registry,
		Ops:   process.NewOps(log, registry),
		stack: process.NewStack(log, stopTimeout),
	}
}

// Env opens what the service of that name stands on.
func (h *Host) Env(name string) (service.Env, error) {
	nc, err := h.connect(name)
	if err != nil {
		return service.Env{}, err
	}
	h.stack.Push("connection of "+name, func(context.Context) error { return closed(nc) })
	b, err := bus.New(nc, h.Topology, name, h.Log)
	if err != nil {
		return service.Env{}, err
	}
	return service.Env{
		Bus:      b,
		Log:      h.Log,
		Metrics:  prometheus.WrapRegistererWith(prometheus.Labels{"service": name}, h.registry),
		Connect:  h.connect,
		Instance: h.Instance,
	}, nil
}

// closed drains a connection, which sends what is still to be sent, and waits until it is closed.
func closed(nc *nats.Conn) error {
	done := make(chan struct{})
	nc.SetClosedHandler(func(*nats.Conn) { close(done) })
	if err := nc.Drain(); errors.Is(err, nats.ErrConnectionClosed) {
		return nil
	} else if err != nil {
		nc.Close()
	}
	<-done
	return nil
}

// Add adds a service to be run.
func (h *Host) Add(name string, s service.Service) {
	h.services = append(h.services, named{name, s})
	h.Ops.AddCheck(name, func(context.Context) error { return s.Ready() })
}

// OnStop adds a step to the end of the process; the last one added comes first.
func (h *Host) OnStop(name string, stop func(context.Context) error) { h.stack.Push(name, stop) }

// Run runs the services until ctx ends or one of them cannot go on, and then ends the process in order: not ready, the
// services with what they have in hand, then the steps of OnStop and the connections.
func (h *Host) Run(ctx context.Context) error {
	g := process.NewGroup(ctx)
	g.Go("stop", func(ctx context.Context) error {
		<-ctx.Done()
		h.Ops.Stopping()
		return nil
	})
	for _, s := range h.services {
		g.Go(s.name, s.Run)
	}
	return errors.Join(g.Wait(), h.Close())
}

// Close ends what Env and OnStop began, for a host that is not run.
func (h *Host) Close() error { return h.stack.Stop() }

// WaitReady returns when every service is ready, or with what was missing when ctx ended.
func (h *Host) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := h.Ops.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		}
	}
}

// Patiently repeats do while the topology is not there yet or does not answer: services of one deployment start in any
// order, and on a cluster what was just made has to find a leader first.
func Patiently(ctx context.Context, log *slog.Logger, patience time.Duration, do func() error) error {
	deadline := time.Now().Add(patience)
	for told := false; ; told = true {
		err := do()
		if !notYet(err) || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		if !told {
			log.Info("waiting for the topology", "patience", patience)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// notYet reports whether err is one that time may cure.
func notYet(err error) bool {
	return errors.Is(err, topology.ErrMissing) || errors.Is(err, topology.ErrNoLeader) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders)
}
