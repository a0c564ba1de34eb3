package webhooks

import (
	"context"

	"millrace/services/run"
	"millrace/shared/secret"
	"millrace/shared/service"
)

// Description says what the service is for.
const Description = "Tell others: events become signed requests to webhooks."

// Command are the flags of a process with this service alone.
type Command struct {
	run.Split `embed:""`
	run.Endpoints
	SecretsKey     string `help:"File with the key that seals secrets; all services of a deployment share it. Made at the first start." placeholder:"FILE"`
	SecretsKeyData string `help:"The content of such a file; see millrace secrets key." placeholder:"KEY" secret:"yes"`
}

// Run runs the service until ctx ends.
func (c *Command) Run(ctx context.Context) error {
	return c.Split.Run(ctx, "webhooks", false, func(_ context.Context, _ *run.Host, env service.Env) (service.Service, error) {
		keeper, err := secret.From(c.SecretsKey, c.SecretsKeyData)
		if err != nil {
			return nil, err
		}
		return New(Config{AllowEndpoints: c.AllowEndpoint}, env, keeper)
	})
}
