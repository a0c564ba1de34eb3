package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"millrace/services/millrace"
	"millrace/services/run"
	"millrace/shared/process"
)

type upCommand struct {
	millrace.Options `embed:""`
	PrintConfig      bool `help:"Print the resulting configuration without secrets, and exit."`
	Quickstart       bool `help:"Watch ./inbox: make a connector, an index, a prompt and an automation at the first start."`
}

// startTimeout is how long everything may take to be ready before the start counts as failed.
const startTimeout = 60 * time.Second

// Run runs everything until a signal comes.
func (c *upCommand) Run(ctx context.Context) error {
	if c.PrintConfig {
		return run.Print(os.Stdout, c.Options)
	}
	log, err := process.NewLogger(c.LogFormat, c.LogLevel, os.Stderr)
	if err != nil {
		return err
	}
	if c.Quickstart {
		if err := quickstart(&c.Options); err != nil {
			return err
		}
	}
	app, err := millrace.New(ctx, c.Options, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()

	ready, stop := context.WithTimeout(ctx, startTimeout)
	defer stop()
	waited := make(chan error, 1)
	go func() { waited <- app.WaitReady(ready) }()
	select {
	case err := <-ended:
		return err
	case err := <-waited:
		if err == nil {
			err = c.greet(ctx, app)
		}
		if err != nil && ctx.Err() == nil {
			cancel()
			return errors.Join(err, <-ended)
		}
	}
	return <-ended
}

// greet says where everything is, and shows a new key once.
func (c *upCommand) greet(ctx context.Context, app *millrace.App) error {
	fmt.Printf("\nmillrace %s is ready.\n\n  API       %s/api/v2   (OpenAPI: %s/openapi.json)\n  data      %s\n", process.Version(), app.URL(), app.URL(), c.Data)
	if app.Key != "" {
		fmt.Printf("  API key   %s\n            shown this once; only its hash is kept\n", app.Key)
	}
	if c.Quickstart {
		return welcome(ctx, app)
	}
	fmt.Println()
	return nil
}
