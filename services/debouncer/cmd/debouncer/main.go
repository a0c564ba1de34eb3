// Command debouncer runs the debouncer service alone, on a broker of your own.
package main

import (
	"os"

	"millrace/services/debouncer"
	"millrace/services/run"
)

func main() {
	os.Exit(run.Parse(&debouncer.Command{}, "debouncer", debouncer.Description, os.Args[1:]))
}
