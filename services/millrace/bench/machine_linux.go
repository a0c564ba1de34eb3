package bench

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func hardware() (cpu string, memory int64, kernel string, err error) {
	cpu = "unknown CPU" // not every architecture names it
	if name, err := field("/proc/cpuinfo", "model name"); err == nil {
		cpu = name
	}
	total, err := field("/proc/meminfo", "MemTotal")
	if err != nil {
		return "", 0, "", err
	}
	kib, err := strconv.ParseInt(strings.TrimSuffix(total, " kB"), 10, 64)
	if err != nil {
		return "", 0, "", err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", 0, "", err
	}
	return cpu, kib << 10, unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:]), nil
}

// field returns the value of a "name : value" line of a file.
func field(path, name string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v), nil
		}
	}
	return "", fmt.Errorf("%s has no %q", path, name)
}

var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.RAMFS_MAGIC: "ramfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.NFS_SUPER_MAGIC: "nfs", 0x2fc12fc1: "zfs",
}

func fileSystem(dir string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", err
	}
	if name, ok := fileSystems[int64(st.Type)]; ok { //nolint:unconvert // its type differs between architectures
		return name, nil
	}
	return fmt.Sprintf("type 0x%x", st.Type), nil
}

// freeSpace is how many bytes fit on the volume of dir.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// syncVolume waits until everything on the volume of dir is on disk: what `sync -f` does.
func syncVolume(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return unix.Syncfs(int(d.Fd()))
}

// resident is the memory of a process: now, and at its peak.
func resident(pid int) (now, peak float64, err error) {
	for name, mb := range map[string]*float64{"VmRSS": &now, "VmHWM": &peak} {
		v, err := field(fmt.Sprintf("/proc/%d/status", pid), name)
		if err != nil {
			return 0, 0, err
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(v, " kB"), 10, 64)
		if err != nil {
			return 0, 0, err
		}
		*mb = float64(kib<<10) / 1e6
	}
	return now, peak, nil
}

// forgetPeak makes what a process has resident now its peak.
func forgetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) // see proc(5)
}

// tick is the unit in which Linux tells CPU time to programs, on every architecture Go runs on.
const tick = 10 * time.Millisecond

// cpuTime is what a process has used, in user and kernel mode.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, which is in parentheses, may hold anything; utime and stime are the 12th and 13th behind it.
	rest := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(rest) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(rest))
	}
	var sum int64
	for _, s := range rest[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}
