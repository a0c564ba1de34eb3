package cli

import (
	"os"

	"millrace/services/run"
	"millrace/shared/topology"
)

type accountsCommand struct {
	run.Names
	Passwords bool `help:"Print passwords.conf instead, with new random passwords."`
}

// Run prints the configuration.
func (c accountsCommand) Run() error {
	if c.Passwords {
		return c.Topology().WritePasswords(os.Stdout)
	}
	return c.Topology().WriteAccounts(os.Stdout, topology.PasswordsFile)
}
