package bench

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"millrace/shared/media/samples"
)

// allKinds are the samples that files are made of, and how each takes bytes behind its end.
var allKinds = []string{"photo.jpg", "photo.png", "video.mp4", "audio.mp3"}

// writeFiles writes n media files of these kinds (none named: all) into folders of a thousand. Each is a sample with bytes
// behind it, of which no two files have the same; size is that of the whole file, 0 for as little as possible. It returns
// the sum of sizes.
func writeFiles(dir string, n int, size int, kinds ...string) (int64, error) {
	if len(kinds) == 0 {
		kinds = allKinds
	}
	bases := make([][]byte, len(kinds))
	for i, name := range kinds {
		var err error
		if bases[i], err = samples.FS.ReadFile(name); err != nil {
			return 0, err
		}
	}
	var sum atomic.Int64
	var g errgroup.Group
	g.SetLimit(readers)
	for i := range n {
		g.Go(func() error {
			base, kind := bases[i%len(bases)], kinds[i%len(kinds)]
			pad := make([]byte, max(size-len(base), 16))
			_, _ = rand.Read(pad[8:]) // never fails
			box(pad)
			folder := filepath.Join(dir, fmt.Sprintf("%03d", i/1000))
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
			sum.Add(int64(len(base) + len(pad)))
			data := append(bytes.Clone(base), pad...)
			return writeFile(filepath.Join(folder, fmt.Sprintf("%06d%s", i, filepath.Ext(kind))), bytes.NewReader(data))
		})
	}
	err := g.Wait()
	return sum.Load(), err
}

// box makes padding a box that players of MP4 skip. To the other kinds bytes behind the end are bytes behind the end.
func box(pad []byte) {
	binary.BigEndian.PutUint32(pad, uint32(len(pad)))
	copy(pad[4:8], "free")
}

func writeFile(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// writeLarge writes a video of size bytes.
func writeLarge(path string, size int64) error {
	base, err := samples.FS.ReadFile("video.mp4")
	if err != nil {
		return err
	}
	head := make([]byte, 8)
	binary.BigEndian.PutUint32(head, uint32(size-int64(len(base))))
	copy(head[4:], "free")
	fill := io.LimitReader(rand.Reader, size-int64(len(base)+len(head)))
	return writeFile(path, io.MultiReader(bytes.NewReader(base), bytes.NewReader(head), fill))
}

// writeLarges writes largeFiles videos of size bytes.
func writeLarges(dir string, size int64) (int64, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	for i := range largeFiles {
		if err := writeLarge(filepath.Join(dir, fmt.Sprintf("large-%d.mp4", i)), size); err != nil {
			return 0, err
		}
	}
	return largeFiles * size, nil
}

// readers is how many files are read at a time where a plain read is the yardstick.
const readers = 16

// readAll reads every file below dir and returns how many there are.
func readAll(dir string) (int, error) {
	var n atomic.Int64
	var g errgroup.Group
	g.SetLimit(readers)
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		g.Go(func() error {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			n.Add(1)
			_, err = io.Copy(io.Discard, f)
			return err
		})
		return nil
	})
	if werr := g.Wait(); err == nil {
		err = werr
	}
	return int(n.Load()), err
}
