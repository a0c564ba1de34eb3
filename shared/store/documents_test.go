package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"millrace/shared/broker/brokertest"
	"millrace/shared/bus"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// Two writers of one document: a reader that began before the second had finished loses the chunks it is reading. It has
// to fail soon, or its handler hangs for as long as its context lives.
func TestReadOfAReplacedDocumentEnds(t *testing.T) {
	t.Parallel()
	top := topology.Topology{Prefix: "t"}
	b, err := bus.New(brokertest.Connect(t, brokertest.Start(t)), top, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Apply(t.Context(), b.JetStream()); err != nil {
		t.Fatal(err)
	}
	docs, err := store.OpenDocuments(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	lines := func(yield func(string, error) bool) { yield("line", nil) }
	if err := store.WriteLines(t.Context(), docs, "doc", lines); err != nil {
		t.Fatal(err)
	}
	s, err := b.JetStream().Stream(t.Context(), "OBJ_"+b.Bucket(topology.Documents))
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq < s.CachedInfo().State.LastSeq; seq++ { // the chunks, not what describes them
		if err := s.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	// The client waits for bytes as long as its context has, and handlers have many minutes.
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	start := time.Now()
	var failed error
	for _, err := range store.ReadLines[string](ctx, docs, "doc") {
		failed = err
	}
	if failed == nil || time.Since(start) > 15*time.Second {
		t.Errorf("after %s: %v", time.Since(start), failed)
	}
}

func documents(t *testing.T) *store.Documents {
	t.Helper()
	b, err := bus.New(brokertest.Connect(t, brokertest.Start(t)), topology.Topology{Prefix: "t"}, "test", slog.New(slog.DiscardHandler))
	if err == nil {
		err = b.Apply(t.Context(), b.JetStream())
	}
	if err != nil {
		t.Fatal(err)
	}
	docs, err := store.OpenDocuments(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

// Bytes come back as they went in, also when another document was written in between; a failed writer leaves what was
// there; what is replaced or deleted while it is read fails.
func TestDocumentBytes(t *testing.T) {
	t.Parallel()
	docs, ctx := documents(t), t.Context()
	write := func(name string, r io.Reader) int64 {
		t.Helper()
		n, err := docs.Write(ctx, name, r)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	find := func(name string) store.Document {
		t.Helper()
		d, err := docs.Find(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, size := range []int{0, 1, 32 << 10, 1<<20 + 7} {
		want := bytes.Repeat([]byte("Grüße, "), size/9+1)[:size]
		if n := write("doc", bytes.NewReader(want)); n != int64(size) {
			t.Errorf("wrote %d of %d bytes", n, size)
		}
		d := find("doc")
		half := make([]byte, size/2)
		r := d.Reader(ctx)
		if _, err := io.ReadFull(r, half); err != nil {
			t.Fatal(err)
		}
		write("other", strings.NewReader("in between"))
		rest, err := io.ReadAll(r)
		if got := slices.Concat(half, rest); err != nil || d.Size != int64(size) || !bytes.Equal(got, want) {
			t.Errorf("%d bytes came back as %d of %d: %v", size, len(got), d.Size, err)
		}
	}
	broken := errors.New("the source broke")
	if _, err := docs.Write(ctx, "doc", io.MultiReader(strings.NewReader("half"), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(ctx)
	stopping := readerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
	if _, err := docs.Write(gone, "doc", stopping); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	old := find("doc")
	if old.Size != 1<<20+7 {
		t.Errorf("a broken writer left %d bytes", old.Size)
	}
	reading := old.Reader(ctx)
	if _, err := io.ReadFull(reading, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	write("doc", strings.NewReader("new"))
	if _, err := io.ReadAll(reading); err == nil {
		t.Error("a reader of what was replaced came to its end")
	}
	for range 2 {
		if err := docs.Delete(ctx, "doc"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := docs.Find(ctx, "doc"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after Delete: %v", err)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Two that do the same work write the same document, and whoever reads it meanwhile need not know.
func TestLinesOfADocumentThatIsWrittenAgain(t *testing.T) {
	t.Parallel()
	docs, ctx := documents(t), t.Context()
	for name, write := range map[string]func(context.Context, *store.Documents, string, iter.Seq2[int, error]) error{
		"plain": store.WriteLines[int], "packed": store.WritePacked[int],
	} {
		again := func() error { return write(ctx, docs, name, func(yield func(int, error) bool) { yield(7, nil) }) }
		if err := again(); err != nil {
			t.Fatal(err)
		}
		written := make(chan error, 1)
		go func() {
			var err error
			for i := 0; i < 300 && err == nil; i++ {
				err = again()
			}
			written <- err
		}()
		for done := false; !done; {
			select {
			case err := <-written:
				if done = true; err != nil {
					t.Error(err)
				}
			default:
			}
			n := 0
			for v, err := range store.ReadLines[int](ctx, docs, name) {
				if n++; v != 7 || err != nil {
					t.Fatal(name, v, err)
				}
			}
			if n != 1 {
				t.Fatalf("%s: %d lines", name, n)
			}
		}
	}
}
