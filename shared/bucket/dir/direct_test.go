package dir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"millrace/shared/bucket"
)

// TestPutLong writes files of lengths at which pieces and blocks of the disk end, before them and behind them.
func TestPutLong(t *testing.T) {
	t.Parallel()
	data := make([]byte, directFrom+directPiece+diskBlock)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	root := t.TempDir()
	lib := newLibrary(t, root)
	for _, size := range []int{directFrom, directFrom + 1, directFrom + diskBlock, directFrom + directPiece - 1, len(data)} {
		key := fmt.Sprintf("aa/%d", size)
		hash := bucket.NewHash()
		hash.Write(data[:size])
		stored, err := lib.Put(t.Context(), key, bytes.NewReader(data[:size]), bucket.Want{Size: int64(size), CRC32C: hash.CRC32C()})
		if err != nil {
			t.Fatal(err)
		}
		if stored.Size != int64(size) || stored.SHA256 != hash.SHA256() || stored.CRC32C != hash.CRC32C() {
			t.Errorf("%d bytes are said to be %+v", size, stored)
		}
		if err := lib.Sync(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(root, key))
		if err != nil || !bytes.Equal(got, data[:size]) {
			t.Errorf("of %d bytes other %d came: %v", size, len(got), err)
		}
	}
}

func TestPutLongThatFails(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	lib := newLibrary(t, root)
	broken := errors.New("broken")
	for name, r := range map[string]io.Reader{
		"short":  bytes.NewReader(make([]byte, directFrom)),
		"long":   bytes.NewReader(make([]byte, directFrom+2*directPiece)),
		"broken": io.MultiReader(bytes.NewReader(make([]byte, directPiece+1)), readerFunc(func([]byte) (int, error) { return 0, broken })),
	} {
		_, err := lib.Put(t.Context(), "aa/bb", r, bucket.Want{Size: directFrom + directPiece})
		if want := map[bool]error{true: broken, false: bucket.ErrChecksum}[name == "broken"]; !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, _ := listed(t, newSource(t, root), ""); len(left) != 0 {
		t.Errorf("left %q", left)
	}
}

// TestDirectAsFarAsItGoes begins where no disk would take a piece.
func TestDirectAsFarAsItGoes(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	w := newDirectWriter(f)
	if w == nil {
		t.Skip("this file system has no way past the page cache")
	}
	want := []byte("x")
	for i := range 3 {
		piece := w.Buffer()
		for j := range piece {
			piece[j] = byte(i + 1)
		}
		if _, err := w.Write(piece); err != nil {
			t.Fatal(err)
		}
		want = append(want, bytes.Repeat([]byte{byte(i + 1)}, directPiece)...)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came, other than the %d that were written: %v", len(got), len(want), err)
	}
}
