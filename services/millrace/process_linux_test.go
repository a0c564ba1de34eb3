package millrace_test

import "syscall"

// mountSmall puts a small disk in memory at a folder, for it to be filled up.
func mountSmall(dir string) error { return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512m") }

func unmount(dir string) { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }
