package importer

import (
	"context"

	"millrace/services/run"
	"millrace/services/storage"
	"millrace/shared/media"
	"millrace/shared/service"
)

// Description says what the service is for.
const Description = "Bring them in: tasks become media."

// Command are the flags of a process with this service alone.
type Command struct {
	run.Split `embed:""`
	storage.Sources
	storage.Library
	Workers     int       `help:"Objects imported at a time." default:"16"`
	BulkWorkers int       `help:"The same for one-time jobs." default:"8"`
	MaxSize     int64     `help:"Largest object imported, in bytes; 0: no limit." default:"0"`
	Bandwidth   Bandwidth `help:"What may be read from sources, such as 100MB/s; 0: no limit." default:"0" placeholder:"RATE"`
}

// Run runs the service until ctx ends.
func (c *Command) Run(ctx context.Context) error {
	return c.Split.Run(ctx, "importer", false, func(ctx context.Context, h *run.Host, env service.Env) (service.Service, error) {
		opener, _, err := c.Opener(ctx, env)
		if err != nil {
			return nil, err
		}
		library, err := c.Library.Open(ctx, c.Sources)
		if err != nil {
			return nil, err
		}
		if library != nil {
			h.OnStop("library", func(context.Context) error { return library.Close() })
		}
		cfg := Config{Workers: c.Workers, BulkWorkers: c.BulkWorkers, MaxSize: c.MaxSize, Bandwidth: c.Bandwidth}
		return New(cfg, env, opener, library, media.New(media.Config{FFprobe: media.FindFFprobe()}))
	})
}
