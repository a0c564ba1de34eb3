// Command webhooks runs the webhooks service alone, on a broker of your own.
package main

import (
	"os"

	"millrace/services/run"
	"millrace/services/webhooks"
)

func main() {
	os.Exit(run.Parse(&webhooks.Command{}, "webhooks", webhooks.Description, os.Args[1:]))
}
