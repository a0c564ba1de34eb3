package topology_test

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/broker/brokertest"
	"millrace/shared/topology"
)

func connect(t *testing.T) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(brokertest.Connect(t, brokertest.Start(t)))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Applying is safe to repeat, changes what the table changed, and keeps the data.
func TestApply(t *testing.T) {
	t.Parallel()
	js := connect(t)
	top := topology.Topology{Prefix: "t"}
	if err := top.Apply(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), top.Subject("media", "i", "o", "v"), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), top.Stream(topology.Media))
	if err != nil {
		t.Fatal(err)
	}
	changed := s.CachedInfo().Config
	changed.Description, changed.Metadata = "older", nil
	if _, err := js.UpdateStream(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	if err := top.Apply(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil || info.Config.Description == "older" || info.State.Msgs != 1 {
		t.Errorf("after the second Apply: %q, %d messages (%v)", info.Config.Description, info.State.Msgs, err)
	}
	for _, c := range top.Consumers() {
		if _, err := top.Bind(t.Context(), js, c.Config.Durable); err != nil {
			t.Error(err)
		}
	}
	other := topology.Topology{Prefix: "other"}
	if _, err := other.Bind(t.Context(), js, topology.ImporterLive); !errors.Is(err, topology.ErrMissing) {
		t.Errorf("another prefix: %v", err)
	}
}

// What a newer program has written is neither read nor touched by an older one.
func TestDataOfANewerProgram(t *testing.T) {
	t.Parallel()
	js := connect(t)
	top := topology.Topology{Prefix: "t"}
	if err := top.Apply(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), top.Stream(topology.Media))
	if err != nil {
		t.Fatal(err)
	}
	newer := s.CachedInfo().Config
	newer.Description, newer.Metadata = "newer", map[string]string{"millrace.format": strconv.Itoa(topology.Format + 1)}
	if _, err := js.UpdateStream(t.Context(), newer); err != nil {
		t.Fatal(err)
	}
	if err := top.Apply(t.Context(), js); !errors.Is(err, topology.ErrNewer) {
		t.Errorf("applied: %v", err)
	}
	if err := top.Complete(t.Context(), js); !errors.Is(err, topology.ErrNewer) {
		t.Errorf("used: %v", err)
	}
	if info, err := s.Info(t.Context()); err != nil || info.Config.Description != "newer" {
		t.Errorf("%q (%v)", info.Config.Description, err)
	}
}

func TestApplyRefusesPrefixes(t *testing.T) {
	t.Parallel()
	for _, p := range []string{"", "a.b", "a*", "a b", strings.Repeat("x", 33)} {
		if err := (topology.Topology{Prefix: p}).Apply(t.Context(), nil); !errors.Is(err, topology.ErrPrefix) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

// Every row says why it is there, and no two rows share a name; subjects lie under the prefix.
func TestTable(t *testing.T) {
	t.Parallel()
	top := topology.Topology{Prefix: "pre"}
	names := map[string]bool{}
	for _, s := range top.Streams() {
		if s.Why == "" || names[s.Config.Name] {
			t.Errorf("stream %s", s.Config.Name)
		}
		names[s.Config.Name] = true
		for _, subject := range s.Config.Subjects {
			if !regexp.MustCompile(`^(pre\.|\$(KV|O)\.pre-)`).MatchString(subject) {
				t.Errorf("subject %s of stream %s", subject, s.Config.Name)
			}
		}
	}
	for _, c := range top.Consumers() {
		if c.Why == "" || names[c.Config.Durable] || !names[top.Stream(c.Stream)] || c.Config.MaxDeliver != -1 {
			t.Errorf("consumer %s of %s", c.Config.Durable, c.Stream)
		}
		names[c.Config.Durable] = true
	}
}

// What a process that is gone had in hand comes again at once, not when its lease has run out.
func TestReclaim(t *testing.T) {
	t.Parallel()
	js := connect(t)
	top := topology.Topology{Prefix: "t"}
	if err := top.Apply(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	const n = 10
	for i := range n {
		if _, err := js.Publish(t.Context(), top.Subject("task", "live", "job", fmt.Sprint(i)), nil); err != nil {
			t.Fatal(err)
		}
	}
	c, err := top.Bind(t.Context(), js, topology.ImporterLive)
	if err != nil {
		t.Fatal(err)
	}
	fetch := func() (got []jetstream.Msg) {
		t.Helper()
		batch, err := c.Fetch(n, jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		for m := range batch.Messages() {
			got = append(got, m)
		}
		return got
	}
	first := fetch()
	if len(first) != n {
		t.Fatalf("%d deliveries", len(first))
	}
	for _, m := range first[:3] {
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := top.Reclaim(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	batch, err := c.Fetch(n-3, jetstream.FetchMaxWait(10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	again := 0
	for range batch.Messages() {
		again++
	}
	if again != n-3 || time.Since(start) > 5*time.Second {
		t.Errorf("%d came again, after %s", again, time.Since(start))
	}
}
