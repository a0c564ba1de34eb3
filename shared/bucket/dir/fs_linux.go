package dir

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// remote holds the file systems that live elsewhere: other machines change them without our kernel hearing of it, and
// syncing them as a whole is not something they all do.
var remote = map[uint32]string{
	unix.NFS_SUPER_MAGIC:   "nfs",
	unix.SMB_SUPER_MAGIC:   "smb",
	unix.CIFS_SUPER_MAGIC:  "cifs",
	unix.SMB2_SUPER_MAGIC:  "smb2",
	unix.FUSE_SUPER_MAGIC:  "fuse",
	unix.V9FS_MAGIC:        "9p",
	unix.CEPH_SUPER_MAGIC:  "ceph",
	unix.AFS_SUPER_MAGIC:   "afs",
	unix.CODA_SUPER_MAGIC:  "coda",
	unix.NCP_SUPER_MAGIC:   "ncp",
	unix.OCFS2_SUPER_MAGIC: "ocfs2",
	0x01161970:             "gfs2",
	0x0bd00bd0:             "lustre",
	0x47504653:             "gpfs",
	0x786f4256:             "vboxsf",
	0x013111a8:             "ibrix",
}

// remoteName returns the kind of a file system that lives elsewhere, or "".
func remoteName(dir *os.File) string {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return "unknown"
	}
	return remote[uint32(st.Type)]
}

// syncsWhole reports whether syncWhole may stand for syncing each file.
func syncsWhole(dir *os.File) bool { return remoteName(dir) == "" }

func syncWhole(dir *os.File) error {
	for {
		if err := unix.Syncfs(int(dir.Fd())); err != unix.EINTR {
			return os.NewSyscallError("syncfs", err)
		}
	}
}

// startWriteback asks the kernel to begin writing a piece of f. It promises nothing, so nothing is checked.
func startWriteback(f *os.File, offset, length int64) {
	_ = unix.SyncFileRange(int(f.Fd()), offset, length, unix.SYNC_FILE_RANGE_WRITE)
}

// setDirect has writes to f go past the page cache, or through it. Not all file systems can do the former.
func setDirect(f *os.File, on bool) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if flags &^= unix.O_DIRECT; on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
	return err
}

// shareBlocks makes out, which is empty, have the content of in without copying it.
func shareBlocks(out, in *os.File) error {
	err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
	switch err {
	case unix.EOPNOTSUPP, unix.EXDEV, unix.ENOTTY, unix.ENOSYS, unix.EINVAL, unix.EPERM:
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return err
}

// links returns how many names a file has.
func links(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink) //nolint:unconvert // its type differs between architectures
	}
	return 1
}
