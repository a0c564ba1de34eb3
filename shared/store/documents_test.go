package store_test

import (
	"context"
	"log/slog"
	"testing"
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
