package media

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// confine puts the child into a process group of its own, killed as one, and with namespace into a network of its
// own that leads nowhere. It reports whether it asked for that.
func confine(cmd *exec.Cmd, namespace bool) bool {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if !namespace {
		return false
	}
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		// Others than root need a user namespace for it. Root must not have one: it would lose the right to read
		// what belongs to others.
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
	}
	return true
}

// noNamespace reports whether err, from starting the child, may be the system's refusal of a namespace.
func noNamespace(err error) bool {
	for _, refusal := range []error{unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENOSYS, unix.ENOSPC, unix.EUSERS} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

// limit sets what the child may use. It runs for an instant without: Go cannot set limits before the start. The CPU
// limit also ends a child whose parent was killed.
func limit(pid int, cpu time.Duration) {
	seconds := uint64(cpu/time.Second) + 1
	for resource, value := range map[int]uint64{
		unix.RLIMIT_AS:    2 << 30,
		unix.RLIMIT_CPU:   seconds,
		unix.RLIMIT_FSIZE: 0,
		unix.RLIMIT_CORE:  0,
	} {
		// A child that has already ended needs none.
		_ = unix.Prlimit(pid, resource, &unix.Rlimit{Cur: value, Max: value}, nil)
	}
}
