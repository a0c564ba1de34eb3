package dir

import (
	"errors"
	"os"
	"sync"
	"syscall"
)

// directWriter writes a long file past the page cache: that takes a quarter of the processor's time, starts the disk at
// once, hears of each failure where it happens, and does not push out of memory what was there. While one piece is on its
// way to the disk the next is read and hashed.
type directWriter struct {
	f      *os.File
	pieces [2]*[directPiece]byte
	at     int        // the piece to be filled next
	busy   bool       // the other one is being written
	done   chan error // how that ended
}

const (
	// directPiece is how much goes to the disk at a time.
	directPiece = 1 << 20
	// directFrom is the size from which on a file is worth it. Shorter ones are left to the kernel: it places many small
	// ones better when it sees them together.
	directFrom = 8 << 20
	// diskBlock is what places in memory and in the file are multiples of. Disks want 512 or 4096.
	diskBlock = 4096
)

// directPieces are at the start of a page, as Go places everything so large.
var directPieces = sync.Pool{New: func() any { return new([directPiece]byte) }}

// newDirectWriter returns nil where the file system has no such way. The caller closes it before the file.
func newDirectWriter(f *os.File) *directWriter {
	if setDirect(f, true) != nil {
		return nil
	}
	w := &directWriter{f: f, done: make(chan error, 1)}
	for i := range w.pieces {
		w.pieces[i] = directPieces.Get().(*[directPiece]byte)
	}
	return w
}

// Buffer is where the next piece is to be read to; all of it, unless it is the last.
func (w *directWriter) Buffer() []byte { return w.pieces[w.at][:] }

// Write begins to write what was read to Buffer. An error may be about the piece before.
func (w *directWriter) Write(p []byte) (int, error) {
	if err := w.wait(); err != nil {
		return 0, err
	}
	w.busy, w.at = true, 1-w.at
	go func() { w.done <- w.write(p) }()
	return len(p), nil
}

func (w *directWriter) write(p []byte) error {
	n := 0
	if len(p)%diskBlock == 0 {
		var err error
		if n, err = w.f.Write(p); !errors.Is(err, syscall.EINVAL) {
			return wrapWrite(err)
		}
	}
	// The end of a file that ends within a block, or a disk that wants something else than we thought.
	if err := setDirect(w.f, false); err != nil {
		return wrapWrite(err)
	}
	_, err := w.f.Write(p[n:])
	return wrapWrite(err)
}

// wait returns how the piece that is on its way has fared.
func (w *directWriter) wait() error {
	if !w.busy {
		return nil
	}
	w.busy = false
	return <-w.done
}

// Close waits for the last piece.
func (w *directWriter) Close() error {
	err := w.wait()
	for _, p := range w.pieces {
		directPieces.Put(p)
	}
	return err
}
