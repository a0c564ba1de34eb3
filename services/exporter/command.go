package exporter

import (
	"context"
	"time"

	"millrace/services/run"
	"millrace/services/storage"
	"millrace/shared/service"
)

// Description says what the service is for.
const Description = "Where to? Results become files, for download or in a bucket."

// Command are the flags of a process with this service alone.
type Command struct {
	run.Split `embed:""`
	storage.Sources
	KeepExports time.Duration `help:"How long exports can be downloaded." default:"720h"`
}

// Run runs the service until ctx ends.
func (c *Command) Run(ctx context.Context) error {
	return c.Split.Run(ctx, "exporter", false, func(ctx context.Context, _ *run.Host, env service.Env) (service.Service, error) {
		opener, _, err := c.Opener(ctx, env)
		if err != nil {
			return nil, err
		}
		return New(Config{Keep: c.KeepExports}, env, opener)
	})
}
