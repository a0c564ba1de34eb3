// Command exporter runs the exporter service alone, on a broker of your own.
package main

import (
	"os"

	"millrace/services/exporter"
	"millrace/services/run"
)

func main() {
	os.Exit(run.Parse(&exporter.Command{}, "exporter", exporter.Description, os.Args[1:]))
}
