// Package dir is the bucket driver for folders, local or mounted.
//
// A path is the file's path below the root with "/" between segments. Only regular files are objects. No symbolic link
// below the root is ever followed: it is not an object, and nothing lies below it. A version is the modification time
// and the size, so a program that rewrites a file in place, to the same length, and sets the old time back, goes
// unnoticed. No version is told before the clock has moved on from its time, so two writes in quick succession never
// share one.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"millrace/shared/bucket"
)

// tempDir is where libraries write what is not whole yet. It is nobody's object.
const tempDir = ".millrace-tmp"

// Options say what cannot be seen of a folder. The zero value is fine for one on a disk of this machine.
type Options struct {
	// Poll says that others change the folder unheard, as on a network mount, which is also seen without it: what was
	// written a moment ago may still be growing, and is left out of listings.
	Poll bool
	// Mount says that the folder is a mount point. While nothing is mounted there it counts as gone, ErrNoBucket, and
	// not as empty.
	Mount bool
}

// Source reads a folder.
type Source struct {
	path   string
	root   atomic.Pointer[os.Root]
	mount  bool
	remote bool
}

var _ bucket.Source = (*Source)(nil)

// NewSource opens the folder at path for reading. ErrNoBucket: it is not there, or not a folder.
func NewSource(path string) (*Source, error) { return Open(path, Options{}) }

// Open is NewSource for a folder of which more is known.
func Open(path string, opts Options) (*Source, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open folder: %w", err)
	}
	s := &Source{path: path, mount: opts.Mount || IsMount(path), remote: opts.Poll}
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	s.root.Store(root)
	if kind, err := s.remoteName(); err == nil && kind != "" {
		s.remote = true
	}
	return s, nil
}

// open opens the folder that the path names now.
func (s *Source) open() (*os.Root, error) {
	if s.mount && !isMount(s.path) {
		return nil, fmt.Errorf("folder %q: nothing is mounted there: %w", s.path, bucket.ErrNoBucket)
	}
	return openRoot(s.path)
}

// IsMount reports whether another file system is mounted at path.
func IsMount(path string) bool { return isMount(path) }

// isMount is replaced by tests that cannot mount.
var isMount = func(path string) bool {
	var here, above unix.Stat_t
	if unix.Stat(path, &here) != nil || unix.Stat(filepath.Dir(path), &above) != nil {
		return false
	}
	return here.Dev != above.Dev
}

func openRoot(path string) (*os.Root, error) {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, rootError(path, err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, rootError(path, err)
	}
	return root, nil
}

func rootError(path string, err error) error {
	err = wrap("open folder", path, err)
	if errors.Is(err, bucket.ErrNotExist) {
		return fmt.Errorf("%w: %w", bucket.ErrNoBucket, err)
	}
	return err
}

// refresh makes sure that the folder we hold is the one the path names now. A network mount that appeared after we
// started would otherwise stay hidden behind the empty folder below it, for good.
func (s *Source) refresh() (moved bool, err error) {
	now, err := os.Stat(s.path)
	if err != nil {
		return false, rootError(s.path, err)
	}
	held, err := s.root.Load().Stat(".")
	if err == nil && os.SameFile(now, held) {
		return false, nil
	}
	if errors.Is(err, os.ErrClosed) {
		return false, fmt.Errorf("folder %q: %w", s.path, err)
	}
	root, err := s.open()
	if err != nil {
		return false, err
	}
	s.root.Store(root) // the old one closes itself once the last walk has let go of it
	return true, nil
}

// List implements bucket.Source.
func (s *Source) List(ctx context.Context, opts bucket.ListOptions) iter.Seq2[bucket.Object, error] {
	return func(yield func(bucket.Object, error) bool) {
		if _, err := s.refresh(); err != nil {
			yield(bucket.Object{}, err)
			return
		}
		list(ctx, s.root.Load(), opts, func(obj bucket.Object, err error) bool {
			if err == nil && s.remote && growing(obj) {
				return true
			}
			return yield(obj, err)
		})
	}
}

// young is how long a file on a folder that is polled has to stand still before it is listed.
const young = 10 * time.Second

// growing reports whether a file may not be whole yet: nothing tells when its writer closes it.
func growing(obj bucket.Object) bool {
	age := time.Since(obj.ModTime)
	return age >= 0 && age < young // a time in the future is another machine's idea of now
}

// Stat implements bucket.Source.
func (s *Source) Stat(ctx context.Context, path string) (bucket.Object, error) {
	if err := ctx.Err(); err != nil {
		return bucket.Object{}, fmt.Errorf("stat %q: %w", path, err)
	}
	obj, err := stat(s.root.Load(), path)
	if errors.Is(err, bucket.ErrNotExist) {
		if moved, rerr := s.refresh(); rerr != nil {
			err = rerr
		} else if moved {
			obj, err = stat(s.root.Load(), path)
		}
	}
	return obj, err
}

// Open implements bucket.Source.
func (s *Source) Open(ctx context.Context, path, version string, offset, length int64) (io.ReadCloser, error) {
	r, err := open(ctx, s.root.Load(), path, version, offset, length)
	if errors.Is(err, bucket.ErrNotExist) {
		if moved, rerr := s.refresh(); rerr != nil {
			err = rerr
		} else if moved {
			r, err = open(ctx, s.root.Load(), path, version, offset, length)
		}
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Close implements bucket.Source.
func (s *Source) Close() error { return s.root.Load().Close() }

// valid reports whether a file can have this path at all. Anything else does not exist: it is never handed to the
// operating system, which would tidy it up first.
func valid(path string) bool {
	if path == "" || strings.IndexByte(path, 0) >= 0 || path == tempDir || strings.HasPrefix(path, tempDir+"/") {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
	}
	return true
}

func stat(root *os.Root, path string) (bucket.Object, error) {
	if !valid(path) {
		return bucket.Object{}, fmt.Errorf("stat %q: %w", path, bucket.ErrNotExist)
	}
	f, err := openFolder(root, folder(path))
	if err != nil {
		return bucket.Object{}, wrap("stat", path, err)
	}
	defer f.Close()
	st, err := statAt(f, path[len(folder(path)):])
	if err != nil {
		return bucket.Object{}, wrap("stat", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return bucket.Object{}, fmt.Errorf("stat %q: not a regular file: %w", path, bucket.ErrNotExist)
	}
	return newObject(path, st.Mtim.Nano(), st.Size), nil
}

// tick is how far apart two writes must be to get different times: kernels stamp files by a clock that moves once per
// timer interrupt, which is 10 ms at CONFIG_HZ=100, the slowest in use. (Linux has finer stamps since 6.13, but only for
// files that somebody looked at between the writes.)
const tick = 10 * time.Millisecond

// settle waits until a file that is written from now on gets a later time than t, and reports whether that took waiting.
func settle(t time.Time) bool {
	age := time.Since(t)
	if age < 0 || age > tick { // a time in the future was set by its owner
		return false
	}
	time.Sleep(tick - age)
	return true
}

// statAt looks at one name of a folder, and once more if its time was not over yet. A file that changes in between is
// still being written, and will be heard of again.
func statAt(folder *os.File, name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(int(folder.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && settle(time.Unix(0, st.Mtim.Nano())) {
		err = unix.Fstatat(int(folder.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	return st, err
}

func newObject(path string, mtime, size int64) bucket.Object {
	return bucket.Object{
		Path:    path,
		Version: version(mtime, size),
		Size:    size,
		ModTime: time.Unix(0, mtime).UTC(),
		Order:   fmt.Sprintf("%020d", max(mtime, 0)),
	}
}

func version(mtime, size int64) string {
	b := make([]byte, 0, 40)
	b = strconv.AppendInt(b, mtime, 10)
	b = append(b, '-')
	return string(strconv.AppendInt(b, size, 10))
}

func versionOf(info fs.FileInfo) string { return version(info.ModTime().UnixNano(), info.Size()) }

// open returns the file, held against the version when it is opened and once more when its last byte was read.
func open(ctx context.Context, root *os.Root, path, want string, offset, length int64) (*reader, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	if offset < 0 {
		return nil, fmt.Errorf("open %q at %d: %w", path, offset, syscall.EINVAL)
	}
	f, info, err := openRegular(root, path)
	if err != nil {
		return nil, err
	}
	have := versionOf(info)
	if want != "" && have != want {
		f.Close()
		return nil, fmt.Errorf("open %q: version %s is now %s: %w", path, want, have, bucket.ErrChanged)
	}
	left := max(info.Size()-offset, 0)
	if length >= 0 {
		left = min(left, length)
	}
	if offset > 0 && left > 0 {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			f.Close()
			return nil, wrap("open", path, err)
		}
	}
	return &reader{ctx: ctx, f: f, path: path, version: have, left: left}, nil
}

// openRegular opens a regular file, and is neither led elsewhere by a link nor held up by a pipe.
func openRegular(root *os.Root, path string) (*os.File, fs.FileInfo, error) {
	if !valid(path) {
		return nil, nil, fmt.Errorf("open %q: %w", path, bucket.ErrNotExist)
	}
	parent, err := openFolder(root, folder(path))
	if err != nil {
		return nil, nil, wrap("open", path, err)
	}
	defer parent.Close()
	f, err := openAt(parent, path[len(folder(path)):], 0)
	if err != nil {
		return nil, nil, wrap("open", path, err)
	}
	info, err := f.Stat()
	if err == nil && settle(info.ModTime()) {
		info, err = f.Stat()
	}
	if err == nil && !info.Mode().IsRegular() {
		err = syscall.ENOENT
	}
	if err != nil {
		f.Close()
		return nil, nil, wrap("open", path, err)
	}
	return f, info, nil
}

// folder returns the part of a path up to its last "/".
func folder(path string) string { return path[:strings.LastIndexByte(path, '/')+1] }

// openFolder opens the folder at path, which is empty for the root or ends in "/". It goes down from the root one
// segment at a time and never through a link, so that a folder which is moved or replaced meanwhile cannot lead out.
func openFolder(root *os.Root, path string) (*os.File, error) {
	f, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	for path != "" {
		name, rest, _ := strings.Cut(path, "/")
		next, err := openAt(f, name, unix.O_DIRECTORY)
		f.Close()
		if err != nil {
			return nil, err
		}
		f, path = next, rest
	}
	return f, nil
}

// openAt opens one name of a folder for reading.
func openAt(parent *os.File, name string, flags int) (*os.File, error) {
	flags |= unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	for {
		fd, err := unix.Openat(int(parent.Fd()), name, flags, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if err != unix.EINTR {
			return nil, err
		}
	}
}

type reader struct {
	ctx     context.Context
	f       *os.File
	path    string
	version string
	left    int64
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, fmt.Errorf("read %q: %w", r.path, err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.left <= 0 {
		return 0, r.end()
	}
	n, err := r.f.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	switch {
	case err == io.EOF:
		return n, fmt.Errorf("read %q: it became shorter: %w", r.path, bucket.ErrChanged)
	case err != nil:
		return n, wrap("read", r.path, err)
	}
	return n, nil
}

// end is io.EOF if what was read is the version that was opened.
func (r *reader) end() error {
	info, err := r.f.Stat()
	if err != nil {
		return wrap("read", r.path, err)
	}
	if have := versionOf(info); have != r.version {
		return fmt.Errorf("read %q: version %s became %s: %w", r.path, r.version, have, bucket.ErrChanged)
	}
	return io.EOF
}

func (r *reader) Close() error { return r.f.Close() }

// wrap says in the bucket's words what the operating system said.
func wrap(op, path string, err error) error {
	if err == nil {
		return nil
	}
	var (
		pathError *fs.PathError
		linkError *os.LinkError
		says      error
	)
	switch {
	case errors.As(err, &pathError):
		err = pathError.Err // the path is said once, quoted
	case errors.As(err, &linkError):
		err = linkError.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG),
		errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EINVAL) && op != "read" && op != "copy":
		says = bucket.ErrNotExist
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		says = bucket.ErrPermission
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		says = bucket.ErrFull
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.EHOSTDOWN),
		errors.Is(err, syscall.ENOTCONN):
		says = bucket.ErrUnavailable
	default:
		return fmt.Errorf("%s %q: %w", op, path, err)
	}
	return fmt.Errorf("%s %q: %w: %w", op, path, says, err)
}
