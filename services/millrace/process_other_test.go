//go:build !linux

package millrace_test

import (
	"errors"
	"syscall"
)

// dieWithParent: other systems have no such signal; a test that panics leaves its processes to be killed by hand.
func dieWithParent(*syscall.SysProcAttr) {}

func mountSmall(string) error { return errors.New("small disks are for Linux") }

func unmount(string) {}
