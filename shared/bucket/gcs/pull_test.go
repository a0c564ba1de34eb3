package gcs_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace/shared/bucket"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/gcs/gcstest"
)

const (
	topic        = "projects/p/topics/t"
	subscription = "projects/p/subscriptions/s"
)

func startPubSub(t *testing.T) *pstest.Server {
	t.Helper()
	s := pstest.NewServer()
	t.Cleanup(func() { s.Close() })
	if _, err := s.GServer.CreateTopic(t.Context(), &pubsubpb.Topic{Name: topic}); err != nil {
		t.Fatal(err)
	}
	sub := &pubsubpb.Subscription{Name: subscription, Topic: topic, AckDeadlineSeconds: 60}
	if _, err := s.GServer.CreateSubscription(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPull(t *testing.T) {
	s := startPubSub(t)
	attributes := map[string]string{"eventType": "OBJECT_FINALIZE", "objectId": "a.mp4"}
	good := s.Publish(topic, []byte(`{"name":"a.mp4"}`), attributes)
	bad := s.Publish(topic, nil, attributes)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heard := make(chan gcs.Notification)
	ended := make(chan error)
	refused := errors.New("cannot take it")
	cfg := gcs.PullConfig{Subscription: subscription, Endpoint: s.Addr, MaxOutstanding: 4}
	go func() {
		ended <- gcs.Pull(ctx, cfg, func(_ context.Context, n gcs.Notification) error {
			heard <- n
			if n.ID == bad {
				return refused
			}
			return nil
		})
	}()
	times := map[string]int{}
	for times[good] == 0 || times[bad] < 3 { // what is given back comes again
		n := <-heard
		times[n.ID]++
		if n.Subscription != subscription || !maps.Equal(n.Attributes, attributes) || n.PublishTime.IsZero() {
			t.Errorf("heard %+v", n)
		}
		if n.ID == good && string(n.Data) != `{"name":"a.mp4"}` {
			t.Errorf("heard %q", n.Data)
		}
	}
	cancel()
	for {
		select {
		case <-heard:
			continue
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Pull: %v", err)
			}
		}
		break
	}
	if m := s.Message(good); m.Acks != 1 {
		t.Errorf("acknowledged %d times what was taken", m.Acks)
	}
	if m := s.Message(bad); m.Acks != 0 {
		t.Errorf("acknowledged %d times what was refused", m.Acks)
	}
}

// TestPullWaitsForCallbacks ends the context while a notification is in hand.
func TestPullWaitsForCallbacks(t *testing.T) {
	s := startPubSub(t)
	id := s.Publish(topic, []byte("x"), nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := false
	err := gcs.Pull(ctx, gcs.PullConfig{Subscription: subscription, Endpoint: s.Addr}, func(ctx context.Context, _ gcs.Notification) error {
		cancel()
		<-ctx.Done()
		done = true
		return nil
	})
	if !done || !errors.Is(err, context.Canceled) {
		t.Errorf("Pull: %v, with the callback done: %v", err, done)
	}
	if m := s.Message(id); m.Acks != 1 {
		t.Errorf("acknowledged %d times", m.Acks)
	}
}

func TestPullFails(t *testing.T) {
	never := func(context.Context, gcs.Notification) error { t.Error("heard something"); return nil }
	s := startPubSub(t)
	for _, name := range []string{"", "s", "projects/p/topics/t", "projects//subscriptions/s"} {
		err := gcs.Pull(t.Context(), gcs.PullConfig{Subscription: name, Endpoint: s.Addr}, never)
		if !errors.Is(err, bucket.ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	err := gcs.Pull(t.Context(), gcs.PullConfig{Subscription: "projects/p/subscriptions/none", Endpoint: s.Addr}, never)
	if !errors.Is(err, gcs.ErrNoSubscription) {
		t.Errorf("no subscription: %v", err)
	}
	for code, want := range map[codes.Code]error{
		codes.PermissionDenied: bucket.ErrPermission, codes.Unauthenticated: bucket.ErrCredentials,
	} {
		err := gcs.Pull(t.Context(), gcs.PullConfig{Subscription: subscription, Endpoint: refusing(t, code)}, never)
		if !errors.Is(err, want) {
			t.Errorf("%v: %v", code, err)
		}
	}

	storage := gcstest.Start(t)
	key := storage.Credentials(t)
	storage.Revoke()
	for name, key := range map[string][]byte{"revoked": key, "malformed": []byte("{")} {
		err := gcs.Pull(t.Context(), gcs.PullConfig{Subscription: subscription, CredentialsJSON: key}, never)
		if !errors.Is(err, bucket.ErrCredentials) {
			t.Errorf("%s key: %v", name, err)
		}
	}
}

// refusing runs a Pub/Sub that refuses everything.
func refusing(t *testing.T, code codes.Code) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		return status.Error(code, "refused")
	}))
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func TestEnvelope(t *testing.T) {
	n := gcs.Notification{
		Subscription: subscription, ID: "17", Data: []byte("hi"), Attributes: map[string]string{"objectId": "a.mp4"},
		PublishTime: time.Date(2026, 3, 1, 12, 0, 0, 5e6, time.FixedZone("", 3600)),
	}
	const want = `{"message":{"attributes":{"objectId":"a.mp4"},"data":"aGk=","messageId":"17",` +
		`"publishTime":"2026-03-01T11:00:00.005Z"},"subscription":"projects/p/subscriptions/s"}`
	if got, err := n.Envelope(); err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
	const empty = `{"message":{"attributes":{},"data":"","messageId":"","publishTime":"0001-01-01T00:00:00Z"},"subscription":""}`
	if got, err := (gcs.Notification{}).Envelope(); err != nil || string(got) != empty {
		t.Errorf("%s, %v", got, err)
	}
}
