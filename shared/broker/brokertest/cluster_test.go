package brokertest_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/shared/broker/brokertest"
)

// One node at a time is killed, frozen and brought back; what was acknowledged before is there on three replicas.
func TestCluster(t *testing.T) {
	c := brokertest.Cluster(t, 3)
	nc := c.Connect()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "s", Subjects: []string{"s"}, Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	sent := 0
	publish := func() {
		t.Helper()
		for range 10 {
			for {
				attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
				_, err := js.Publish(attempt, "s", nil)
				cancel()
				if err == nil {
					sent++
					break
				}
				if ctx.Err() != nil {
					t.Fatal(err)
				}
			}
		}
	}
	publish()

	leader := c.MetaLeader()
	if leader < 0 {
		t.Fatal("a ready cluster has no leader")
	}
	c.Kill(leader)
	publish()
	c.Restart(leader)
	c.WaitReady()

	// Not the one we are connected to: it would take the client a while to notice, which is not what is tested here.
	other := (c.Index(nc.ConnectedServerName()) + 1) % 3
	c.Stop(other)
	publish()
	c.Cont(other)
	c.WaitReady()

	s, err := js.Stream(ctx, "s")
	if err != nil {
		t.Fatal(err)
	}
	// At least: a publish that was repeated because its answer was lost counts twice.
	if info := s.CachedInfo(); info.State.Msgs < uint64(sent) || len(info.Cluster.Replicas) != 2 {
		t.Errorf("%d messages on %d followers, want %d on 2", info.State.Msgs, len(info.Cluster.Replicas), sent)
	}
}
