// Command scanner runs the scanner service alone, on a broker of your own.
package main

import (
	"os"

	"millrace/services/scanner"
	"millrace/services/run"
)

func main() { os.Exit(run.Parse(&scanner.Command{}, "scanner", scanner.Description, os.Args[1:])) }
