package dir

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// temp is one process's own folder for files that are not whole yet:
//
//	.millrace-tmp/<id>.lock   locked (flock) as long as the process lives
//	.millrace-tmp/<id>/1      its files
//
// Several processes may share a library. Whoever can take a lock knows that its owner is gone, and removes the folder
// and then the lock file. The lock comes before the folder and goes after it, so there is no folder of a living process
// without a lock somebody holds.
type temp struct {
	root *os.Root // the library
	id   string
	lock *os.File
	dir  *os.Root
	last atomic.Uint64
}

func newTemp(root *os.Root, log *slog.Logger) (*temp, error) {
	if err := root.Mkdir(tempDir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := sweepTemp(root, log); err != nil {
		return nil, err
	}
	t := &temp{root: root}
	for t.lock == nil {
		t.id = rand.Text()
		lock, err := root.OpenFile(t.path("")+".lock", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		// A file system without locks protects nobody, so nobody's files are swept there either: tryLock fails for all.
		locked, err := tryLock(lock)
		if !locked && err == nil || !stillThere(root, t.path("")+".lock", lock) {
			lock.Close() // a sweeper was between our two steps; it removes the file
			continue
		}
		t.lock = lock
	}
	if err := root.Mkdir(t.path(""), 0o755); err != nil {
		return nil, errors.Join(err, t.close())
	}
	dir, err := root.OpenRoot(t.path(""))
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	t.dir = dir
	return t, nil
}

// path returns the name of a file of ours as the library sees it; that of "" is our folder.
func (t *temp) path(name string) string { return path.Join(tempDir, t.id, name) }

// create opens a new file and returns its name as the library sees it.
func (t *temp) create() (f *os.File, name string, err error) {
	base := strconv.FormatUint(t.last.Add(1), 10)
	f, err = t.dir.OpenFile(base, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, "", wrapWrite(err)
	}
	return f, t.path(base), nil
}

// remove removes a file of ours; one that stays is swept later.
func (t *temp) remove(name string) { _ = t.root.Remove(name) }

func (t *temp) close() error {
	var errs []error
	if t.dir != nil {
		errs = append(errs, t.dir.Close())
	}
	errs = append(errs, t.root.RemoveAll(t.path("")), t.root.Remove(t.path("")+".lock"), t.lock.Close())
	return errors.Join(errs...)
}

// sweepTemp removes what processes left that are gone.
func sweepTemp(root *os.Root, log *slog.Logger) error {
	f, err := root.Open(tempDir)
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		return err
	}
	for _, name := range names {
		id, isLock := strings.CutSuffix(name, ".lock")
		lockName := path.Join(tempDir, id+".lock")
		if !isLock {
			if _, err := root.Lstat(lockName); errors.Is(err, os.ErrNotExist) {
				err = root.RemoveAll(path.Join(tempDir, name))
				log.Info("removed temporary files without an owner", "folder", name, "error", err)
			}
			continue
		}
		lock, err := root.OpenFile(lockName, os.O_RDWR, 0)
		if err != nil {
			continue // gone, or another user's
		}
		if locked, _ := tryLock(lock); locked && stillThere(root, lockName, lock) {
			err := errors.Join(root.RemoveAll(path.Join(tempDir, id)), root.Remove(lockName))
			log.Info("removed temporary files of a process that is gone", "folder", id, "error", err)
		}
		lock.Close()
	}
	return nil
}

// tryLock takes the lock on f if nobody has it.
func tryLock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		return false, nil
	}
	return err == nil, err
}

// stillThere reports whether name is still the file f. A lock on a file that was removed and made anew locks nothing.
func stillThere(root *os.Root, name string, f *os.File) bool {
	a, err := root.Lstat(name)
	if err != nil {
		return false
	}
	b, err := f.Stat()
	return err == nil && os.SameFile(a, b)
}
