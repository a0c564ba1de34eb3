package broker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// lockName is the file in the data folder that a running broker holds. It stays behind when the broker is gone: what
// locks is the kernel's lock on it, which ends with the process however that ends.
const lockName = "LOCK"

// lockDir takes the exclusive lock of dir and writes our process id into it, for the one who is refused. Closing the
// file releases the lock. The file is not removed: a second process could hold the removed one, and a third the new.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is held by %s", ErrInUse, dir, holder(f))
		}
		return nil, fmt.Errorf("lock data folder %s: %w", dir, err)
	}
	// Padded: a shorter id over a longer one must not leave digits behind, in whatever moment somebody reads it.
	if _, err := fmt.Fprintf(io.NewOffsetWriter(f, 0), "%-10d\n", os.Getpid()); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write lock of %s: %w", dir, err)
	}
	return f, nil
}

// holder describes the process that wrote f, which may not have got to it yet.
func holder(f *os.File) string {
	buf := make([]byte, 32)
	n, _ := f.ReadAt(buf, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return "another process"
	}
	return fmt.Sprintf("process %d", pid)
}

// freeBytes is what an unprivileged process may still write to the volume of dir.
func freeBytes(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // types differ between systems
}
