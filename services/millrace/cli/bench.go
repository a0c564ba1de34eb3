package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"millrace/services/millrace/bench"
)

type benchCommand struct {
	Only    []string    `help:"Figures to measure, such as small,large; see --list." placeholder:"NAMES"`
	List    bool        `help:"Print the figures and exit."`
	Scale   bench.Scale `help:"full, or small: that shows only that the bench works." default:"full" enum:"small,full"`
	Dir     string      `help:"Folder on the disk to measure (default: the system's temporary folder)." type:"existingdir" placeholder:"DIR"`
	Out     string      `help:"Report to write (default: docs/bench.md after a full run of all figures)." type:"path" placeholder:"FILE"`
	Strict  bool        `help:"Fail when a target is missed or a figure was skipped."`
	Against string      `help:"Fail when a ratio is worse than in this earlier report, by more than a noisy machine explains." type:"existingfile" placeholder:"FILE"`

	// What the bench starts this program for.
	Figure string `hidden:"" help:"Measure one figure in this process and print it as JSON."`
	Names  string `hidden:"" help:"List the bucket at this address, gcs+URL or s3+URL, as a scan does, a name per line."`
	Alone  string `hidden:"" help:"Start the broker of this data folder alone and print how that went as JSON." type:"path"`
}

// benchReport is where the results of a whole run go.
const benchReport = "docs/bench.md"

// Run measures and prints the table.
func (c *benchCommand) Run(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	switch {
	case c.List:
		bench.List(os.Stdout)
		return nil
	case c.Figure != "":
		return bench.Measure(ctx, c.Figure, c.Dir, c.Scale, program, os.Stdout)
	case c.Names != "":
		return bench.WriteNames(ctx, c.Names, os.Stdout)
	case c.Alone != "":
		return bench.BrokerAlone(ctx, c.Alone, os.Stdout)
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
	if err == nil && c.Against != "" {
		err = bench.Against(c.Against, rows)
	}
	return err
}
