package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"millrace/services/millrace/bench"
)

// benchCommand measures. What it starts for that, itself as another process, are its hidden commands.
type benchCommand struct {
	All    benchRun    `cmd:"" default:"withargs" help:"Measure every figure beside its yardstick."`
	Figure benchFigure `cmd:"" hidden:"" help:"Measure one figure in this process and print it as JSON."`
	Broker benchBroker `cmd:"" hidden:"" help:"Start the broker of a data folder alone and print how that went as JSON."`
}

type benchRun struct {
	Only   []string    `help:"Figures to measure, such as small,large; see --list." placeholder:"NAMES"`
	List   bool        `help:"Print the figures and exit."`
	Scale  bench.Scale `help:"full, or small: that shows only that the bench works." default:"full" enum:"small,full"`
	Dir    string      `help:"Folder on the disk to measure (default: the system's temporary folder)." type:"existingdir" placeholder:"DIR"`
	Out    string      `help:"Report to write (default: docs/bench.md after a full run of all figures)." type:"path" placeholder:"FILE"`
	Strict bool        `help:"Fail when a target is missed or a figure was skipped."`
}

// benchReport is where the results of a whole run go.
const benchReport = "docs/bench.md"

// Run measures and prints the table.
func (c *benchRun) Run(ctx context.Context) error {
	if c.List {
		bench.List(os.Stdout)
		return nil
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if c.Out == "" && c.Scale == bench.Full && len(c.Only) == 0 {
		c.Out = benchReport
	}
	rows, err := bench.Run(ctx, bench.Config{
		Only: c.Only, Scale: c.Scale, Dir: c.Dir, Out: c.Out, Table: os.Stdout, Progress: os.Stderr, Program: program,
	})
	if err == nil && c.Strict {
		for _, r := range rows {
			if !r.Met() {
				err = errors.Join(err, fmt.Errorf("%s: target not reached", r.What))
			}
		}
	}
	return err
}

type benchFigure struct {
	Name  string      `arg:""`
	Dir   string      `required:""`
	Scale bench.Scale `required:""`
}

// Run measures one figure.
func (c *benchFigure) Run(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	return bench.Measure(ctx, c.Name, c.Dir, c.Scale, program, os.Stdout)
}

type benchBroker struct {
	Data string `arg:""`
}

// Run starts the broker and stops it.
func (c *benchBroker) Run(ctx context.Context) error {
	return bench.BrokerAlone(ctx, c.Data, os.Stdout)
}
