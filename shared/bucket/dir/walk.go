package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"millrace/shared/bucket"
)

// list yields what lies below root in byte order of the full path.
func list(ctx context.Context, root *os.Root, opts bucket.ListOptions, yield func(bucket.Object, error) bool) {
	// The folder part of the prefix is where to begin. A path that cannot exist has nothing below it.
	start := folder(opts.Prefix)
	if start != "" && !valid(strings.TrimSuffix(start, "/")) {
		return
	}
	f, err := openFolder(root, start)
	if err != nil {
		if err = wrap("list", start, err); !errors.Is(err, bucket.ErrNotExist) {
			yield(bucket.Object{}, err)
		}
		return
	}
	w := walk{ctx: ctx, opts: opts, yield: yield}
	w.dir(f, start)
}

type walk struct {
	ctx   context.Context
	opts  bucket.ListOptions
	yield func(bucket.Object, error) bool
}

// entry is a name of a directory, with a "/" at its end if it is a directory itself: so spelled, sorting the names of
// each directory sorts the full paths of everything.
type entry string

// dir walks one directory, whose path is empty or ends in "/", and closes it. It reports whether to go on.
func (w *walk) dir(f *os.File, path string) bool {
	defer f.Close()
	entries, err := w.read(f, path)
	if err != nil {
		return w.failed(path, err)
	}
	for _, e := range entries {
		if err := w.ctx.Err(); err != nil {
			w.yield(bucket.Object{}, fmt.Errorf("list %q: %w", path, err))
			return false
		}
		name, isDir := strings.CutSuffix(string(e), "/")
		if !isDir {
			if !w.file(f, path, name) {
				return false
			}
			continue
		}
		sub, err := openAt(f, name, unix.O_DIRECTORY)
		if err != nil {
			if !w.failed(path+string(e), err) {
				return false
			}
			continue
		}
		if !w.dir(sub, path+string(e)) {
			return false
		}
	}
	return true
}

// failed reports a directory that could not be read. One that vanished has nothing in it.
func (w *walk) failed(path string, err error) bool {
	err = wrap("list", path, err)
	switch {
	case errors.Is(err, bucket.ErrNotExist):
		return true
	case errors.Is(err, bucket.ErrPermission) && path != "":
		return w.yield(bucket.Object{Path: path}, fmt.Errorf("%w: %w", bucket.ErrUnreadable, err))
	}
	w.yield(bucket.Object{}, err)
	return false
}

// read returns the sorted entries of a directory that can hold something to yield. It keeps names only: they are what
// sorting needs, and sizes would be stale by the time their turn comes.
func (w *walk) read(f *os.File, path string) ([]entry, error) {
	// A file opened in an os.Root looks at each name while it reads the directory. This one does not.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), path)
	defer d.Close()
	var entries []entry
	for {
		batch, err := d.ReadDir(1024)
		for _, b := range batch {
			switch t := b.Type(); {
			case t.IsRegular() && w.wantsFile(path+b.Name()):
				entries = append(entries, entry(b.Name()))
			case t.IsDir() && w.wantsDir(path+b.Name()+"/"):
				entries = append(entries, entry(b.Name()+"/"))
			}
		}
		if err == io.EOF {
			slices.Sort(entries)
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		if err := w.ctx.Err(); err != nil {
			return nil, err
		}
	}
}

func (w *walk) wantsFile(path string) bool {
	return strings.HasPrefix(path, w.opts.Prefix) && path > w.opts.StartAfter
}

// wantsDir reports whether something below path, which ends in "/", can be wanted.
func (w *walk) wantsDir(path string) bool {
	if path == tempDir+"/" {
		return false
	}
	if w.opts.Delimiter && len(path) > len(w.opts.Prefix) {
		return false
	}
	if !strings.HasPrefix(path, w.opts.Prefix) && !strings.HasPrefix(w.opts.Prefix, path) {
		return false
	}
	return path > w.opts.StartAfter || strings.HasPrefix(w.opts.StartAfter, path)
}

func (w *walk) file(dir *os.File, path, name string) bool {
	st, err := statAt(dir, name)
	if err != nil {
		if errors.Is(err, unix.ENOENT) { // gone since the directory was read
			return true
		}
		w.yield(bucket.Object{}, wrap("list", path+name, err))
		return false
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return true
	}
	return w.yield(newObject(path+name, st.Mtim.Nano(), st.Size), nil)
}
