// Package service is what every service stands on. A service is a value with New, Run and Ready; the same constructor
// serves the all-in-one, the split binary and the tests, and no code asks which one it is in.
package service

import (
	"context"
	"log/slog"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/shared/bus"
)

// Env is what a service is given by whoever starts it.
type Env struct {
	Bus     *bus.Bus
	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Connect opens another connection to the broker, for those that close what they are given.
	Connect func(name string) (*nats.Conn, error)
	// Instance names this process among those that compete for leases.
	Instance string
}

// Service is a running part.
type Service interface {
	// Run works until ctx ends and what was in hand is settled. An error before that means that it cannot go on.
	Run(ctx context.Context) error
	// Ready returns nil when the service holds its consumers and can work.
	Ready() error
}
