package gcs_test

import (
	"errors"
	"strings"
	"testing"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"

	"millrace/shared/bucket"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/gcs/gcstest"
)

// Setting up may be repeated, and ends with the first step that fails, which says why and how to do it by hand.
func TestSetUpAnnouncements(t *testing.T) {
	t.Parallel()
	s, ps := gcstest.Start(t, "drops"), startPubSub(t)
	a := gcs.Announcements{
		Bucket:  gcs.Config{Bucket: "drops", Endpoint: s.URL, CredentialsJSON: s.Credentials(t)},
		Project: "project-1", Name: "millrace-conn-1", PubSubEndpoint: ps.Addr,
	}
	for range 2 {
		steps, err := a.SetUp(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range steps {
			if !step.Done || step.Error != "" {
				t.Errorf("%+v", step)
			}
		}
	}
	sub, err := ps.GServer.GetSubscription(t.Context(), &pubsubpb.GetSubscriptionRequest{Subscription: a.Subscription()})
	if err != nil || sub.GetTopic() != a.Topic() || sub.GetExpirationPolicy() == nil {
		t.Errorf("%v, %v", sub, err)
	}
	if n := s.Requests(gcstest.NewNotifications); n != 1 {
		t.Errorf("%d notifications were made", n)
	}
	a.Bucket.Bucket = "nowhere"
	steps, err := a.SetUp(t.Context())
	if err != nil || !steps[2].Done || steps[3].Done || steps[3].Error == "" ||
		!strings.HasPrefix(steps[3].Command, "gcloud storage buckets notifications create gs://nowhere ") {
		t.Errorf("%+v, %v", steps, err)
	}
	for _, name := range []string{"", "a b", "$(x)", "x;y", "-x"} {
		a.Name = name
		if _, err := a.Steps(); !errors.Is(err, bucket.ErrName) {
			t.Errorf("name %q: %v", name, err)
		}
	}
}
