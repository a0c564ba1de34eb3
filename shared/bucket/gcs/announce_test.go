package gcs_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"cloud.google.com/go/iam/apiv1/iampb"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"millrace/shared/bucket"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/gcs/gcstest"
)

// iam keeps who may do what with the topics, as Google does: a change has to name the policy that it changes.
type iam struct {
	iampb.UnimplementedIAMPolicyServer
	denied atomic.Bool
	sets   atomic.Int32

	mu     sync.Mutex
	policy *iampb.Policy
}

func (s *iam) GetIamPolicy(_ context.Context, _ *iampb.GetIamPolicyRequest) (*iampb.Policy, error) {
	if s.denied.Load() {
		return nil, status.Error(codes.PermissionDenied, "Permission 'pubsub.topics.getIamPolicy' denied")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.policy == nil {
		s.policy = &iampb.Policy{Etag: []byte("0"), Bindings: []*iampb.Binding{{Role: "roles/owner", Members: []string{"user:somebody@example.com"}}}}
	}
	return proto.CloneOf(s.policy), nil
}

func (s *iam) SetIamPolicy(_ context.Context, in *iampb.SetIamPolicyRequest) (*iampb.Policy, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(in.GetPolicy().GetEtag()) != string(s.policy.GetEtag()) {
		return nil, status.Error(codes.Aborted, "the policy was changed meanwhile")
	}
	s.policy = proto.CloneOf(in.GetPolicy())
	s.policy.Etag = fmt.Append(nil, s.sets.Add(1))
	return s.policy, nil
}

// Setting up may be repeated, and ends with the first step that fails, which says why and how to do it by hand.
func TestSetUpAnnouncements(t *testing.T) {
	t.Parallel()
	s, rights := gcstest.Start(t, "drops"), &iam{}
	ps := pstest.NewServerWithCallback(0, func(g *grpc.Server) { iampb.RegisterIAMPolicyServer(g, rights) })
	t.Cleanup(func() { _ = ps.Close() })
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
	if sets := rights.sets.Load(); sets != 1 || len(rights.policy.GetBindings()) != 2 ||
		rights.policy.GetBindings()[1].GetRole() != "roles/pubsub.publisher" ||
		!slices.Equal(rights.policy.GetBindings()[1].GetMembers(), []string{"serviceAccount:" + gcstest.Agent}) {
		t.Errorf("after %d changes: %v", sets, rights.policy)
	}
	other := a
	other.Name = "millrace-conn-2"
	rights.denied.Store(true)
	denied, err := other.SetUp(t.Context())
	if err != nil || !denied[0].Done || denied[1].Done || !strings.Contains(denied[1].Error, "pubsub.topics.getIamPolicy") || denied[2].Done ||
		!strings.Contains(denied[1].Command, "add-iam-policy-binding millrace-conn-2 --project=project-1 --role=roles/pubsub.publisher") {
		t.Errorf("%+v, %v", denied, err)
	}
	rights.denied.Store(false)
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
