// Package servicetest is what tests of services stand on: a broker in the process with the topology applied, a service
// that runs until the test ends, and waiting for facts instead of for time.
package servicetest

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/broker"
	"millrace/shared/broker/brokertest"
	"millrace/shared/bus"
	"millrace/shared/service"
	"millrace/shared/topology"
)

// Prefix of the deployments that Env makes.
const Prefix = "t"

// Env starts a broker in the process and returns what a service stands on. Each service of a test needs a registry of
// its own, see Run.
func Env(t testing.TB) service.Env {
	t.Helper()
	return EnvOn(t, brokertest.Start(t))
}

// EnvOn is Env on a broker that is there.
func EnvOn(t testing.TB, b *broker.Broker) service.Env {
	t.Helper()
	connect := func(name string) (*nats.Conn, error) { return b.Connect(name) }
	nc, err := connect("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	msgs, err := bus.New(nc, topology.Topology{Prefix: Prefix}, "test", log)
	if err != nil {
		t.Fatal(err)
	}
	if err := msgs.Apply(t.Context(), msgs.JetStream()); err != nil {
		t.Fatal(err)
	}
	return service.Env{Bus: msgs, Log: log, Metrics: prometheus.NewRegistry(), Connect: connect, Instance: t.Name()}
}

// Cluster starts a cluster of three brokers with three copies of everything and returns a bus on each.
func Cluster(t testing.TB) []*bus.Bus {
	t.Helper()
	nodes := brokertest.Cluster(t, 3)
	buses := make([]*bus.Bus, 3)
	for i := range buses {
		nc, err := broker.Dial(nodes.NodeURL(i), t.Name())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		top := topology.Topology{Prefix: Prefix, Replicas: 3}
		if buses[i], err = bus.New(nc, top, "test", slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	}
	b := buses[0]
	// A cluster on a busy machine may not answer in time; services are patient as well.
	Eventually(t, "the topology is applied", func() error { return b.Apply(t.Context(), b.JetStream()) })
	Eventually(t, "all streams have leaders", func() error { return b.Complete(t.Context(), b.JetStream()) })
	return buses
}

// Run runs a service until the test ends or stop is called, and returns when it is ready.
func Run(t testing.TB, s service.Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("run:", err)
		}
	})
	t.Cleanup(stop)
	Eventually(t, "the service is ready", s.Ready)
	return stop
}

// patience is how long a fact may take on a machine that is busy with other tests.
const patience = 30 * time.Second

// Eventually waits until fact returns nil, and fails the test with its last error if that takes too long.
func Eventually(t testing.TB, what string, fact func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fact()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}
