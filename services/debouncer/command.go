package debouncer

import (
	"context"

	"millrace/services/run"
	"millrace/shared/service"
)

// Description says what the service is for.
const Description = "When? Arrivals become windows, windows become jobs."

// Command are the flags of a process with this service alone.
type Command struct {
	run.Split `embed:""`
}

// Run runs the service until ctx ends.
func (c *Command) Run(ctx context.Context) error {
	return c.Split.Run(ctx, "debouncer", false, func(ctx context.Context, h *run.Host, env service.Env) (service.Service, error) {
		return New(Config{}, env)
	})
}
