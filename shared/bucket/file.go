package bucket

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	fileBlock  = 256 << 10 // what one request brings
	fileBlocks = 16        // what is kept
)

// File is random access to one version of an object: what a program that looks for a header at the start and an index
// at the end wants. It asks the storage for blocks of 256 KiB and keeps the last 16 of them, so small reads near each
// other cost one request. Broken connections are dealt with as in Reader.
//
// Errors are those of Reader, among them ErrChanged and ErrNotExist when the version is gone. ReadAt is safe for
// concurrent use; Read and Seek share one position and are for one goroutine.
type File struct {
	ctx  context.Context
	src  Source
	obj  Object
	opts ReaderOptions

	offset int64 // of Read and Seek

	mu     sync.Mutex
	blocks map[int64]*list.Element // by number
	recent *list.List              // of *block, the last used first
}

type block struct {
	number int64
	data   []byte
}

var (
	_ io.ReaderAt   = (*File)(nil)
	_ io.ReadSeeker = (*File)(nil)
)

// NewFile returns a File of one version of an object. It opens nothing before the first read and holds no connection
// between reads, so there is nothing to close. The context governs all reads. opts.OnProgress hears of every byte that
// came from the storage.
func NewFile(ctx context.Context, src Source, obj Object, opts ReaderOptions) *File {
	return &File{ctx: ctx, src: src, obj: obj, opts: opts, blocks: map[int64]*list.Element{}, recent: list.New()}
}

// Size returns the object's size in bytes.
func (f *File) Size() int64 { return f.obj.Size }

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("read %q at %d: %w", f.obj.Path, offset, errNegativeOffset)
	}
	total := 0
	for total < len(p) {
		if offset >= f.obj.Size {
			return total, io.EOF
		}
		data, err := f.block(offset / fileBlock)
		if err != nil {
			return total, err
		}
		n := copy(p[total:], data[offset%fileBlock:])
		total += n
		offset += int64(n)
	}
	return total, nil
}

// block returns one block whole. Holding the lock while it comes in keeps two readers from fetching the same one.
func (f *File) block(number int64) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e, ok := f.blocks[number]; ok {
		f.recent.MoveToFront(e)
		return e.Value.(*block).data, nil
	}
	start := number * fileBlock
	data := make([]byte, min(fileBlock, f.obj.Size-start))
	r := newRangeReader(f.ctx, f.src, f.obj, start, start+int64(len(data)), f.opts)
	defer r.Close()
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	if _, err := r.Read(make([]byte, 1)); !atEnd(err) { // the version holds only from here on
		return nil, err
	}
	if f.recent.Len() >= fileBlocks {
		oldest := f.recent.Back()
		f.recent.Remove(oldest)
		delete(f.blocks, oldest.Value.(*block).number)
	}
	f.blocks[number] = f.recent.PushFront(&block{number, data})
	return data, nil
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if f.offset >= f.obj.Size {
		return 0, io.EOF
	}
	// No more than the block at hand: a short read now is better than waiting for the next request.
	p = p[:min(int64(len(p)), fileBlock-f.offset%fileBlock, f.obj.Size-f.offset)]
	n, err := f.ReadAt(p, f.offset)
	f.offset += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += f.offset
	case io.SeekEnd:
		offset += f.obj.Size
	default:
		return 0, errors.New("seek: unknown whence")
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek %q to %d: %w", f.obj.Path, offset, errNegativeOffset)
	}
	f.offset = offset
	return offset, nil
}
