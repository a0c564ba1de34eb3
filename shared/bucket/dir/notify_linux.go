package dir

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"millrace/shared/bucket"
)

// What we ask inotify for. A file is complete when its writer closes it or moves it into place. Attributes matter
// because archivers set the modification time, which is half of our version, after they closed the file.
const (
	fileEvents = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_CREATE |
		unix.IN_ATTRIB
	watchMask = fileEvents | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF |
		unix.IN_ONLYDIR | unix.IN_DONT_FOLLOW | unix.IN_EXCL_UNLINK
)

// notifier watches a tree of folders with one inotify instance.
//
// inotify watches folders, not trees. A new folder is watched first and scanned second, so a file that comes in between
// is reported twice rather than never, and so are folders below it.
type notifier struct {
	src    *Source
	root   *os.Root // the folder that is watched, whatever the path names by now
	log    *slog.Logger
	report func(Change)
	fd     int
	file   *os.File // fd, for the runtime's poller

	folders map[int32]string // watch → path: "" for the root, else ends in "/"
	watches map[string]int32 // and back
}

// addWatch is replaced by a test that wants the kernel to run out of watches.
var addWatch = unix.InotifyAddWatch

// notify reports changes until ctx ends or the folder goes away. It returns errNoWatches if the kernel will not do it.
func notify(
	ctx context.Context, src *Source, check time.Duration, ready func(), log *slog.Logger, report func(Change),
) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("%w: inotify: %w", errNoWatches, err)
	}
	file := os.NewFile(uintptr(fd), "inotify")
	defer file.Close()
	stop := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Now()) })
	defer stop()
	n := &notifier{
		src: src, root: src.root.Load(), log: log, report: report, fd: fd, file: file,
		folders: map[int32]string{}, watches: map[string]int32{},
	}
	if err := n.add(ctx, "", nil); err != nil {
		return err
	}
	ready()
	return n.run(ctx, check)
}

// run reads events. When there are none it checks now and then that the folder is still the one its path names: inotify
// does not tell when something is mounted over it, nor when it is removed while we hold it open. All folders are checked at
// the same moments, so that a processor with nothing else to do is woken once for hundreds of them.
func (n *notifier) run(ctx context.Context, check time.Duration) error {
	check = min(check, 5*time.Second)
	buf := make([]byte, 64<<10)
	for {
		if err := n.file.SetReadDeadline(time.Now().Truncate(check).Add(check)); err != nil {
			return fmt.Errorf("inotify: %w", err)
		}
		if err := ctx.Err(); err != nil { // it may have ended just before the deadline was set
			return err
		}
		got, err := n.file.Read(buf)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := n.src.moved(n.root); err != nil {
				return err
			}
			continue
		case err != nil:
			return fmt.Errorf("inotify: %w", err)
		}
		for events := buf[:got]; len(events) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(events))
			mask := binary.NativeEndian.Uint32(events[4:])
			size := binary.NativeEndian.Uint32(events[12:])
			name := events[unix.SizeofInotifyEvent:][:size]
			events = events[unix.SizeofInotifyEvent+int(size):]
			if err := n.event(ctx, wd, mask, strings.TrimRight(string(name), "\x00")); err != nil {
				return err
			}
		}
	}
}

func (n *notifier) event(ctx context.Context, wd int32, mask uint32, name string) error {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		return n.overflow(ctx)
	}
	folder, ok := n.folders[wd]
	if !ok {
		return nil // of a watch we gave up
	}
	if mask&(unix.IN_IGNORED|unix.IN_UNMOUNT|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0 {
		if folder == "" {
			if err := n.src.moved(n.root); err != nil {
				return err
			}
			if mask&unix.IN_MOVE_SELF == 0 {
				return fmt.Errorf("folder %q: %w", n.src.path, bucket.ErrNoBucket)
			}
			return nil
		}
		if mask&unix.IN_IGNORED != 0 { // the last we hear of this watch
			n.forget(wd, folder)
		}
		return nil
	}
	file := folder + name
	if file == tempDir {
		return nil
	}
	switch {
	case mask&unix.IN_ISDIR != 0 && mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		return n.add(ctx, file+"/", n.report)
	case mask&unix.IN_ISDIR != 0 && mask&unix.IN_MOVED_FROM != 0:
		n.drop(file + "/")
		n.report(Change{Op: Deleted, Object: bucket.Object{Path: file + "/"}})
	case mask&unix.IN_ISDIR != 0:
		// Deleted: its files were, one by one, before it. Attributes of a folder are nobody's business.
	case mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0:
		n.report(Change{Op: Deleted, Object: bucket.Object{Path: file}})
	case mask&unix.IN_CREATE != 0:
		n.created(file, true)
	default:
		n.created(file, false)
	}
	return nil
}

// created reports a file that is there. A file that was only just created is still to be written, unless it is a second
// name of a file that exists: there is nothing more to hear about that one.
func (n *notifier) created(path string, onlyLinks bool) {
	if onlyLinks {
		info, err := n.root.Lstat(path)
		if err != nil || links(info) < 2 {
			return
		}
	}
	obj, err := stat(n.root, path)
	switch {
	case err == nil:
		n.report(Change{Op: Created, Object: obj})
	case errors.Is(err, bucket.ErrNotExist):
		// Gone again, or no regular file.
	default:
		n.log.Warn("cannot look at a file that changed", "path", path, "error", err)
	}
}

// add watches the folder at path and all below it, and then reports the files in them, unless report is nil.
func (n *notifier) add(ctx context.Context, folder string, report func(Change)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	mask := uint32(watchMask)
	if folder == "" {
		mask &^= unix.IN_DONT_FOLLOW // which folder the root is, is for its owner to say
	}
	wd, err := addWatch(n.fd, filepath.Join(n.src.path, folder), mask)
	switch {
	case err == nil:
	case oneOf(err, unix.ENOENT, unix.ENOTDIR, unix.ELOOP):
		if folder == "" {
			return rootError(n.src.path, err)
		}
		return nil // gone again
	case oneOf(err, unix.EACCES, unix.EPERM):
		if folder == "" {
			return rootError(n.src.path, err)
		}
		n.log.Warn("cannot watch a folder that is closed to us", "path", folder, "error", err)
		return nil
	case oneOf(err, unix.ENOSPC, unix.ENOMEM):
		return fmt.Errorf("%w: %d folders watched: %w", errNoWatches, len(n.folders), err)
	default:
		return wrap("watch", folder, err)
	}
	// The kernel watches the folder, whatever its name, and answers with the watch it had if it was moved.
	if old, ok := n.folders[int32(wd)]; ok && old != folder {
		delete(n.watches, old)
	}
	n.folders[int32(wd)], n.watches[folder] = folder, int32(wd)

	f, err := openFolder(n.root, folder)
	if err != nil {
		if err := wrap("list", folder, err); !errors.Is(err, bucket.ErrNotExist) {
			n.log.Warn("cannot list a folder that is watched", "path", folder, "error", err)
		}
		return nil
	}
	defer f.Close()
	for {
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			name := path.Join(folder, e.Name())
			switch {
			case name == tempDir:
			case e.IsDir():
				if err := n.add(ctx, name+"/", report); err != nil {
					return err
				}
			case e.Type().IsRegular() && report != nil:
				n.created(name, false)
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, os.ErrNotExist):
			return nil
		case err != nil:
			return wrap("list", folder, err)
		}
	}
}

// overflow watches what it may have missed and then says that files were missed.
func (n *notifier) overflow(ctx context.Context) error {
	n.log.Warn("more happened at once than inotify keeps: the folder is to be listed; raise " +
		"fs.inotify.max_queued_events if this comes often")
	old := n.folders
	n.folders, n.watches = map[int32]string{}, map[string]int32{}
	if err := n.add(ctx, "", nil); err != nil {
		return err
	}
	for wd := range old {
		if _, still := n.folders[wd]; !still { // moved out, unheard
			_, _ = unix.InotifyRmWatch(n.fd, uint32(wd))
		}
	}
	n.report(Change{Op: Overflow})
	return nil
}

// drop stops watching a folder that was moved away, and all below it.
func (n *notifier) drop(folder string) {
	for path, wd := range n.watches {
		if strings.HasPrefix(path, folder) {
			_, _ = unix.InotifyRmWatch(n.fd, uint32(wd)) // it may be gone already
			n.forget(wd, path)
		}
	}
}

func (n *notifier) forget(wd int32, folder string) {
	delete(n.folders, wd)
	if n.watches[folder] == wd {
		delete(n.watches, folder)
	}
}

func oneOf(err error, these ...error) bool {
	return slices.ContainsFunc(these, func(one error) bool { return errors.Is(err, one) })
}
