// Package processtest starts programs for tests: servers that must not outlive the test that wanted them.
package processtest

import (
	"os/exec"
	"runtime"
)

// Start starts cmd and waits for it in the background: exited is closed once it is gone and cmd.ProcessState is set. On
// Linux the program is killed when the test process ends, also when that panics or times out and so never cleans up; on
// other systems it is then left to be killed by hand.
func Start(cmd *exec.Cmd) (exited <-chan struct{}, err error) {
	started, gone := make(chan error), make(chan struct{})
	go func() {
		// On Linux the program dies with the thread that started it. That thread must be its alone, and live as long: one that
		// any goroutine may lock and then leave ends earlier.
		runtime.LockOSThread()
		defer close(gone)
		dieWithParent(cmd)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	return gone, <-started
}
