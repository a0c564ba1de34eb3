package worker

import (
	"context"
	"time"

	"millrace/services/run"
	"millrace/shared/service"
)

// Command are the flags of a process with a worker alone.
type Command struct {
	run.Split `embed:""`
	Exec      string        `help:"Command run for each medium, by sh -c: the medium is $1, the prompt JSON on standard input, the result JSON on standard output." required:"" placeholder:"CMD"`
	Parallel  int           `help:"Commands at a time (default: one per CPU)." default:"0"`
	Timeout   time.Duration `help:"Longest run of one command." default:"10m"`
	MediaDir  []string      `help:"Local folder that media lie in, such as the library: they are passed as paths. Repeatable." placeholder:"DIR"`
}

// Run runs the worker until ctx ends.
func (c *Command) Run(ctx context.Context) error {
	return c.Split.Run(ctx, "worker", false, func(_ context.Context, _ *run.Host, env service.Env) (service.Service, error) {
		folders, err := NewFolders(c.MediaDir...)
		if err != nil {
			return nil, err
		}
		return New(Config{Command: c.Exec, Parallel: c.Parallel, Timeout: c.Timeout}, env, folders)
	})
}
