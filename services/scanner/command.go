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

// Listing are the flags of how sources are listed.
type Listing struct {
	ScanInterval time.Duration `help:"How often an automation's prefix is listed to find what no notification told." default:"1h"`
	ListRequests int           `help:"Requests for listings that one connector gets at a time." default:"16"`
	ListRate     float64       `help:"The same, per second." default:"200"`
}

// Set sets them.
func (l Listing) Set(c *Config) {
	c.ScanInterval, c.ListRequests, c.ListRate = l.ScanInterval, l.ListRequests, l.ListRate
}

// Command are the flags of a process with this service alone.
type Command struct {
	run.Split `embed:""`
	storage.Sources
	Listing
}

// Run runs the service until ctx ends.
func (c *Command) Run(ctx context.Context) error {
	return c.Split.Run(ctx, "scanner", false, func(ctx context.Context, h *run.Host, env service.Env) (service.Service, error) {
		opener, _, err := c.Opener(ctx, env)
		if err != nil {
			return nil, err
		}
		cfg := Config{PubSubEndpoint: c.PubSubEndpoint, Transport: opener.Transport()}
		c.Set(&cfg)
		return New(cfg, env, opener)
	})
}
