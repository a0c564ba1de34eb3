package presettrigger

import (
	"context"

	"millrace/services/run"
	"millrace/shared/service"
)

// Description says what the service is for.
const Description = "What next? Jobs become prompt runs."

// Command are the flags of a process with this service alone.
type Command struct {
	run.Split `embed:""`
}

// Run runs the service until ctx ends.
func (c *Command) Run(ctx context.Context) error {
	return c.Split.Run(ctx, "preset-trigger", false, func(ctx context.Context, h *run.Host, env service.Env) (service.Service, error) {
		return New(Config{}, env)
	})
}
