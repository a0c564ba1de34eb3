// Command importer runs the importer service alone, on a broker of your own.
package main

import (
	"os"

	"millrace/services/importer"
	"millrace/services/run"
)

func main() { os.Exit(run.Parse(&importer.Command{}, "importer", importer.Description, os.Args[1:])) }
