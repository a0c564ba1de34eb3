package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"sync"

	"millrace/shared/bucket"
)

// Library keeps objects as files below a folder, each at its key.
//
// A file is written below .millrace-tmp and renamed into place when it is whole, so a crash at any line leaves the key
// as it was. What such a crash leaves behind is removed by the next process that opens the library. Put leaves it to the
// kernel when to write; Sync waits for the disk, once for everything that asks at the same time.
type Library struct {
	path string
	root *os.Root
	temp *temp
	sync *syncer

	close   func() error
	folders sync.Map // string → struct{}: key folders that were there when we last looked
	foreign sync.Map // *Source → struct{}: shares no blocks with us
}

var _ bucket.Library = (*Library)(nil)

// LibraryConfig says where a library is. Only Path is required.
type LibraryConfig struct {
	Path string       // created if it is not there
	Log  *slog.Logger // default: discard
}

// NewLibrary opens a library and removes what crashed writers left in it.
func NewLibrary(cfg LibraryConfig) (*Library, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	where, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open library: %w", err)
	}
	if err := os.MkdirAll(where, 0o755); err != nil {
		return nil, rootError(where, err)
	}
	root, err := openRoot(where)
	if err != nil {
		return nil, err
	}
	temp, err := newTemp(root, cfg.Log)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open library: %w", wrap("write", where, err))
	}
	syncer, err := newSyncer(root)
	if err != nil {
		temp.close()
		root.Close()
		return nil, fmt.Errorf("open library: %w", wrap("open", where, err))
	}
	l := &Library{path: where, root: root, temp: temp, sync: syncer}
	l.close = sync.OnceValue(func() error { return errors.Join(temp.close(), syncer.close(), root.Close()) })
	return l, nil
}

// Close removes our part of .millrace-tmp. Closing twice is fine.
func (l *Library) Close() error { return l.close() }

// bufSize is the unit in which bytes move. Smaller costs more calls; larger measured worse on ext4, 1 MiB up to three
// times, because the kernel then looks for memory in pieces as large.
const bufSize = 128 << 10

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// Put implements bucket.Library. It returns before the bytes are on disk.
func (l *Library) Put(ctx context.Context, key string, r io.Reader, want bucket.Want) (bucket.Stored, error) {
	hash := bucket.NewHash()
	return l.store(key, hash, func(f *os.File) error {
		if w := l.direct(f, want.Size); w != nil {
			return errors.Join(hash.Copy(ctx, w, r, nil, want), w.Close())
		}
		buf := buffers.Get().(*[bufSize]byte)
		defer buffers.Put(buf)
		return hash.Copy(ctx, &earlyWriter{f: f}, r, buf[:], want)
	})
}

// direct returns what writes a file of this size past the page cache, or nil. A disk that is elsewhere is not written to
// in pieces that are waited for.
func (l *Library) direct(f *os.File, size int64) *directWriter {
	if size < directFrom || l.sync.syncWhole == nil {
		return nil
	}
	return newDirectWriter(f)
}

// CopyFrom implements bucket.Library for folders on one file system that can share blocks between files, such as XFS
// and Btrfs: no bytes are written. Elsewhere the kernel could copy as well, but since the bytes have to be read back for
// their checksum that measured slower than Put. The checksum is of the bytes as the library has them.
func (l *Library) CopyFrom(
	ctx context.Context, key string, src bucket.Source, obj bucket.Object, progress *bucket.Copying,
) (bucket.Stored, error) {
	from, ok := bucket.As[*Source](src)
	if !ok {
		return bucket.Stored{}, fmt.Errorf("copy %q: source is not a folder: %w", obj.Path, errors.ErrUnsupported)
	}
	if _, ok := l.foreign.Load(from); ok {
		return bucket.Stored{}, fmt.Errorf("copy %q: folders share no blocks: %w", obj.Path, errors.ErrUnsupported)
	}
	opened, err := from.Open(ctx, obj.Path, obj.Version, 0, -1)
	if err != nil {
		return bucket.Stored{}, fmt.Errorf("copy to %q: %w", key, err)
	}
	in := opened.(*reader)
	defer in.Close()
	hash := bucket.NewHash()
	stored, err := l.store(key, hash, func(f *os.File) error {
		if err := shareBlocks(f, in.f); err != nil {
			return wrap("copy", obj.Path, err)
		}
		if err := in.end(); !errors.Is(err, io.EOF) { // it changed before it was copied
			return err
		}
		buf := buffers.Get().(*[bufSize]byte)
		defer buffers.Put(buf)
		r := movedReader{f, progress.Report()}
		return hash.Copy(ctx, io.Discard, r, buf[:], obj.Want())
	})
	if errors.Is(err, errors.ErrUnsupported) {
		l.foreign.Store(from, struct{}{})
	}
	return stored, err
}

type movedReader struct {
	io.Reader
	moved func(int64)
}

func (r movedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.moved(int64(n))
	}
	return n, err
}

// store creates the file, has it filled, and moves it to its key.
func (l *Library) store(key string, hash *bucket.Hash, fill func(*os.File) error) (bucket.Stored, error) {
	failed := func(err error) (bucket.Stored, error) {
		return bucket.Stored{}, fmt.Errorf("store %q: %w", key, err)
	}
	if err := bucket.CheckKey(key); err != nil {
		return failed(err)
	}
	epoch := l.sync.start()
	f, name, err := l.temp.create()
	if err != nil {
		return failed(err)
	}
	err = fill(f)
	if cerr := f.Close(); err == nil {
		err = wrapWrite(cerr)
	}
	if err == nil {
		err = wrapWrite(l.rename(name, key))
	}
	if err != nil {
		l.temp.remove(name)
		return failed(err)
	}
	if err := l.sync.stored(key, epoch); err != nil {
		return failed(err)
	}
	return bucket.Stored{
		Key: key, URI: l.URI(key), Size: hash.Size(), CRC32C: hash.CRC32C(), SHA256: hash.SHA256(),
	}, nil
}

// rename moves a temporary file to its key, making the key's folder if need be.
func (l *Library) rename(name, key string) error {
	folder := path.Dir(key)
	_, known := l.folders.Load(folder)
	for {
		if !known {
			if err := l.root.MkdirAll(folder, 0o755); err != nil {
				return err
			}
			l.folders.Store(folder, struct{}{})
		}
		err := l.root.Rename(name, key)
		if known && errors.Is(err, os.ErrNotExist) { // somebody removed the folder
			known = false
			continue
		}
		return err
	}
}

// wrapWrite is wrap for our own files, which have no business not to exist.
func wrapWrite(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("write: %w: %w", bucket.ErrUnavailable, err)
	}
	return wrap("write", "library", err)
}

// Sync implements bucket.Library.
func (l *Library) Sync(ctx context.Context, keys ...string) error { return l.sync.wait(ctx, keys) }

// Open implements bucket.Library.
func (l *Library) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := open(ctx, l.root, key, "", offset, length)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Stat implements bucket.Library.
func (l *Library) Stat(ctx context.Context, key string) (bucket.Object, error) {
	if err := ctx.Err(); err != nil {
		return bucket.Object{}, fmt.Errorf("stat %q: %w", key, err)
	}
	return stat(l.root, key)
}

// Delete implements bucket.Library. Folders that became empty stay.
func (l *Library) Delete(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	if err := bucket.CheckKey(key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	// Remove would take an empty folder as well.
	if _, err := stat(l.root, key); errors.Is(err, bucket.ErrNotExist) {
		return nil
	}
	epoch := l.sync.start()
	err := l.root.Remove(key)
	if err = wrap("delete", key, err); err != nil && !errors.Is(err, bucket.ErrNotExist) {
		return err
	}
	return l.sync.stored(key, epoch)
}

// List implements bucket.Library.
func (l *Library) List(ctx context.Context) iter.Seq2[bucket.Object, error] {
	return func(yield func(bucket.Object, error) bool) { list(ctx, l.root, bucket.ListOptions{}, yield) }
}

// URI implements bucket.Library.
func (l *Library) URI(key string) string {
	u := url.URL{Scheme: "file", Path: l.path + "/" + key}
	return u.String()
}

// earlyWriter has the kernel begin to write long files while they are still coming in, so that the disk does not stand
// idle until Sync and then has everything to do at once.
type earlyWriter struct {
	f              *os.File
	written, begun int64
}

// earlyPiece is how much comes together before it is sent to disk; with it, four files of 512 MiB took three quarters of
// the time. Files shorter than this are left to the kernel: it places many small ones better when it sees them together.
const earlyPiece = 8 << 20

func (w *earlyWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.written += int64(n)
	if w.written-w.begun >= earlyPiece {
		startWriteback(w.f, w.begun, w.written-w.begun)
		w.begun = w.written
	}
	return n, wrapWrite(err)
}
