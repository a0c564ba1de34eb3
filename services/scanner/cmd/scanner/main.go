// Command scanner runs the scanner service alone, on a broker of your own.
package main

import (
	"os"

	"millrace/services/run"
	"millrace/services/scanner"
)

func main() { os.Exit(run.Parse(&scanner.Command{}, "scanner", scanner.Description, os.Args[1:])) }
