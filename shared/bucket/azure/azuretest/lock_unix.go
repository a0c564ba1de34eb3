//go:build unix

package azuretest

import (
	"os"

	"golang.org/x/sys/unix"
)

// exclusive waits until no other program holds the lock of this name. It goes with its holder.
func exclusive(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
