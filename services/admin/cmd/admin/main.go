// Command admin runs the admin service alone, on a broker of your own.
package main

import (
	"os"

	"millrace/services/admin"
	"millrace/services/run"
)

func main() { os.Exit(run.Parse(&admin.Command{}, "admin", admin.Description, os.Args[1:])) }
