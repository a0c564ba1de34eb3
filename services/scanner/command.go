package scanner

import (
	"context"
	"time"

	"millrace/services/run"
	"millrace/services/storage"
	"millrace/shared/service"
)

// Description says what the service is for.
const Description = "Which files? Notifications and listings become arrivals; jobs become tasks."

// Command are the flags of a process with this service alone.
type Command struct {
	run.Split `embed:""`
	storage.Sources
	ScanInterval time.Duration `help:"How often an automation's prefix is listed to find what no notification told." default:"1h"`
}

// Run runs the service until ctx ends.
func (c *Command) Run(ctx context.Context) error {
	return c.Split.Run(ctx, "scanner", false, func(ctx context.Context, h *run.Host, env service.Env) (service.Service, error) {
		opener, _, err := c.Opener(ctx, env)
		if err != nil {
			return nil, err
		}
		return New(Config{ScanInterval: c.ScanInterval, Transport: opener.Transport()}, env, opener)
	})
}
