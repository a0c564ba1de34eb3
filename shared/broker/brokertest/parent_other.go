//go:build !linux

package brokertest

import "os/exec"

// dieWithParent: other systems have no such signal; a test that panics leaves its nodes to be killed by hand.
func dieWithParent(*exec.Cmd) {}
