// Command millrace is everything: the all-in-one, each service by name, and the client.
package main

import (
	"os"

	"millrace/services/millrace/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
