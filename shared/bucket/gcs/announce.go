package gcs

import (
	"context"
	"fmt"
	"strings"

	"cloud.google.com/go/iam/apiv1/iampb"
	pubsub "cloud.google.com/go/pubsub/v2/apiv1"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/storage"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace/shared/bucket"
)

// Announcements is what has a bucket tell of its changes: a topic that it publishes to, and a subscription to pull from.
type Announcements struct {
	Bucket  Config
	Project string // of topic and subscription, and of the bucket
	Name    string // of both

	PubSubEndpoint string // host:port of an emulator, which may know no permissions
}

// Topic is the full name.
func (a Announcements) Topic() string { return "projects/" + a.Project + "/topics/" + a.Name }

// Subscription is the full name.
func (a Announcements) Subscription() string {
	return "projects/" + a.Project + "/subscriptions/" + a.Name
}

// told are the events that matter. Deletions take back what has not been imported yet.
var told = []string{storage.ObjectFinalizeEvent, storage.ObjectDeleteEvent, storage.ObjectArchiveEvent}

const (
	publisher    = "roles/pubsub.publisher"
	scopeControl = "https://www.googleapis.com/auth/devstorage.full_control"
	weekSeconds  = 7 * 24 * 60 * 60
)

// Steps says what is to be set up, in order. ErrName: the names are none, or would mean something to a shell.
func (a Announcements) Steps() ([]bucket.Step, error) {
	if err := bucket.CheckAnnounced(a.Project, a.Name, a.Bucket.Bucket); err != nil {
		return nil, err
	}
	return []bucket.Step{
		{What: "the topic " + a.Topic(), Command: fmt.Sprintf("gcloud pubsub topics create %s --project=%s", a.Name, a.Project)},
		{
			What: "the right of Cloud Storage to publish to it",
			Command: fmt.Sprintf(`gcloud pubsub topics add-iam-policy-binding %s --project=%s --role=%s `+
				`--member="serviceAccount:$(gcloud storage service-agent --project=%[2]s)"`, a.Name, a.Project, publisher),
		},
		{
			What: "the subscription " + a.Subscription(),
			Command: fmt.Sprintf("gcloud pubsub subscriptions create %s --project=%s --topic=%[1]s --ack-deadline=60 "+
				"--expiration-period=never --message-retention-duration=7d", a.Name, a.Project),
		},
		{
			What: "the notifications of the bucket",
			Command: fmt.Sprintf("gcloud storage buckets notifications create gs://%s --topic=%s --payload-format=json --event-types=%s",
				a.Bucket.Bucket, a.Topic(), strings.Join(told, ",")),
		},
	}, nil
}

// SetUp takes the steps. What is there stays as it is, so it may be repeated. It ends with the first step that fails,
// which says why; an error means that none could be begun.
func (a Announcements) SetUp(ctx context.Context) ([]bucket.Step, error) {
	steps, err := a.Steps()
	if err != nil {
		return nil, err
	}
	cfg := a.Bucket
	cfg.GRPC = false // which has none of these calls
	store, err := newClient(ctx, cfg, scopeControl)
	if err != nil {
		return nil, fmt.Errorf("announcements: %w", err)
	}
	defer func() { _ = store.close() }()
	creds, opts, err := pullOptions(PullConfig{
		CredentialsJSON: a.Bucket.CredentialsJSON, Transport: a.Bucket.Transport, Endpoint: a.PubSubEndpoint,
	})
	if err != nil {
		return nil, fmt.Errorf("announcements: %w", err)
	}
	if creds != nil { // asked for here a refusal can be told from an outage
		if _, err := creds.Token(ctx); err != nil {
			return nil, fmt.Errorf("announcements: %w", tokenError(err))
		}
	}
	topics, err := pubsub.NewTopicAdminClient(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("announcements: %w", err)
	}
	defer func() { _ = topics.Close() }()
	subscriptions, err := pubsub.NewSubscriptionAdminClient(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("announcements: %w", err)
	}
	defer func() { _ = subscriptions.Close() }()

	for i, take := range []func() error{
		func() error {
			_, err := topics.CreateTopic(ctx, &pubsubpb.Topic{Name: a.Topic()})
			return unlessThere(err)
		},
		func() error { return a.grant(ctx, store, topics) },
		func() error {
			_, err := subscriptions.CreateSubscription(ctx, &pubsubpb.Subscription{
				Name: a.Subscription(), Topic: a.Topic(), AckDeadlineSeconds: 60,
				ExpirationPolicy:         &pubsubpb.ExpirationPolicy{}, // never: nobody may pull for as long as nothing happens
				MessageRetentionDuration: &durationpb.Duration{Seconds: weekSeconds},
			})
			return unlessThere(err)
		},
		func() error { return a.notify(ctx, store) },
	} {
		if err := take(); err != nil {
			steps[i].Error = shortly(err)
			break
		}
		steps[i].Done = true
	}
	return steps, nil
}

func unlessThere(err error) error {
	if status.Code(err) == codes.AlreadyExists {
		return nil
	}
	return err
}

// grant lets the account that Cloud Storage publishes as do so.
func (a Announcements) grant(ctx context.Context, store *client, topics *pubsub.TopicAdminClient) error {
	policy, err := topics.GetIamPolicy(ctx, &iampb.GetIamPolicyRequest{Resource: a.Topic()})
	if a.PubSubEndpoint != "" && status.Code(err) == codes.Unimplemented { // the emulator lets anybody publish
		return nil
	}
	if err != nil {
		return err
	}
	agent, err := store.storage.ServiceAccount(ctx, a.Project)
	if err != nil {
		return translate(err)
	}
	member := "serviceAccount:" + agent
	for _, b := range policy.GetBindings() {
		for _, m := range b.GetMembers() {
			if b.GetRole() == publisher && m == member {
				return nil
			}
		}
	}
	policy.Bindings = append(policy.Bindings, &iampb.Binding{Role: publisher, Members: []string{member}})
	_, err = topics.SetIamPolicy(ctx, &iampb.SetIamPolicyRequest{Resource: a.Topic(), Policy: policy}) // with its etag
	return err
}

// notify has the bucket publish to the topic, unless it does.
func (a Announcements) notify(ctx context.Context, store *client) error {
	there, err := store.bucket.Notifications(ctx)
	if err != nil {
		return store.wrap(ctx, "list notifications of", store.name, err)
	}
	for _, n := range there {
		if n.TopicProjectID == a.Project && n.TopicID == a.Name {
			return nil
		}
	}
	_, err = store.bucket.AddNotification(ctx, &storage.Notification{
		TopicProjectID: a.Project, TopicID: a.Name, EventTypes: told, PayloadFormat: storage.JSONPayload,
	})
	return store.wrap(ctx, "add a notification to", store.name, err)
}

// shortly is what a provider said, cut to what people read.
func shortly(err error) string {
	const longest = 300
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return s
}
