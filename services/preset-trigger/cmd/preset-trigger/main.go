// Command preset-trigger runs the preset-trigger service alone, on a broker of your own.
package main

import (
	"os"

	presettrigger "millrace/services/preset-trigger"
	"millrace/services/run"
)

func main() {
	os.Exit(run.Parse(&presettrigger.Command{}, "preset-trigger", presettrigger.Description, os.Args[1:]))
}
