package admin

import (
	"context"
	"fmt"

	"millrace/services/run"
	"millrace/services/storage"
	"millrace/shared/service"
)

// Description says what the service is for.
const Description = "See and steer: HTTP, NATS requests and commands. Applies the topology to the broker."

// Command are the flags of a process with this service alone.
type Command struct {
	run.Split `embed:""`
	storage.Sources
	HTTP   string `name:"http" help:"Where the API listens." default:"127.0.0.1:8080" placeholder:"HOST:PORT"`
	APIKey string `name:"api-key" help:"Key that clients use. Without one a key is made at the first start and shown once." placeholder:"KEY" secret:"yes"`
	Limits
	ExtraDebounceIntervals []string `help:"Debounce intervals allowed beside 5m, 10m, 1h and 1d, such as 2s,30s." placeholder:"LIST"`
}

// Run runs the service until ctx ends.
func (c *Command) Run(ctx context.Context) error {
	return c.Split.Run(ctx, "admin", true, func(ctx context.Context, h *run.Host, env service.Env) (service.Service, error) {
		opener, keeper, err := c.Opener(ctx, env)
		if err != nil {
			return nil, err
		}
		a, err := New(Config{Addr: c.HTTP, ExtraIntervals: c.ExtraDebounceIntervals, Limits: c.Limits, AllowEndpoints: c.AllowEndpoint, MachineCredentials: c.MachineCredentials}, env,
			Deps{Sources: opener, Sealer: keeper, Ops: h.Ops, LinkKey: keeper.Derive(LinkKey)})
		if err != nil {
			return nil, err
		}
		key, err := a.EnsureKey(ctx, c.APIKey)
		if err == nil && key != "" {
			fmt.Println("API key, shown this once:", key)
		}
		return a, err
	})
}
