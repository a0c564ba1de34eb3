package bucket

import (
	"fmt"
	"regexp"
	"strings"
)

// Step is one thing to be done so that a storage tells of its changes.
type Step struct {
	What    string `json:"what" doc:"for people"`
	Command string `json:"command" doc:"does it by hand, in a shell where the steps before were done"`
	Done    bool   `json:"done" doc:"it is there, by us or by whoever"`
	Error   string `json:"error,omitempty" doc:"why it could not be done from here"`
}

// shellSafe are names that mean nothing to a shell, nor within JSON.
var shellSafe = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,254}$`)

// CheckAnnounced returns ErrName for names that could not stand in the command of a Step.
func CheckAnnounced(names ...string) error {
	for _, name := range names {
		if !shellSafe.MatchString(name) {
			return fmt.Errorf("announcements: %q: %w", name, ErrName)
		}
	}
	return nil
}

// ShellWord is s as one word of a shell's command.
func ShellWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
