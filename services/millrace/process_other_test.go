//go:build !linux

package millrace_test

import "syscall"

// dieWithParent: other systems have no such signal; a test that panics leaves its processes to be killed by hand.
func dieWithParent(*syscall.SysProcAttr) {}
