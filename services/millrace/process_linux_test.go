package millrace_test

import "syscall"

// dieWithParent keeps a test that panics or times out, and so never cleans up, from leaving its processes behind.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }
