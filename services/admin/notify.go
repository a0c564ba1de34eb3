package admin

import (
	"context"
	"errors"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/store"
)

type notifyConnector struct {
	ID   string `path:"connector_id"`
	Body struct {
		Create       bool   `json:"create,omitempty" doc:"set it up with the connector's credentials, where that can be done from here; else only say what is to be done"`
		Name         string `json:"name,omitempty" maxLength:"80" doc:"of what is made there (default: millrace- and the connector's id)"`
		Subscription string `json:"subscription,omitempty" maxLength:"1024" doc:"gcs, s3: pull from this one, which is there"`
	}
}

type notifyAnswer struct {
	Subscription *string       `json:"subscription" doc:"what the connector pulls from, or will; null: nothing"`
	Done         bool          `json:"done" doc:"no step is left"`
	Steps        []bucket.Step `json:"steps" nullable:"false"`
}

func (a *Admin) notifyRoute(tag string) {
	register(a, route{
		method: "POST", path: "/connectors/{connector_id}/notify", scope: admin, tag: tag, timeout: testTimeout + requestTimeout,
		summary: "Have a storage tell of its changes",
		about: "The steps that lead there, each with how to do it by hand. With create they are taken where that can be done from here, " +
			"which is Google Cloud: a topic, a subscription, and notifications of the bucket, in the project of the connector; what is " +
			"there stays as it is, and the connector pulls from the subscription when all is done. With subscription it pulls from that.",
	}, a.notify)
}

func (a *Admin) notify(ctx context.Context, in *notifyConnector) (*body[notifyAnswer], error) {
	c, err := lookUp(ctx, a.connectors, "connector", in.ID)
	if err != nil {
		return nil, err
	}
	if in.Body.Subscription != "" {
		var f fieldErrors
		checkSubscription(&f, c.Provider, in.Body.Subscription)
		if err := f.err(); err != nil {
			return nil, err
		}
		if err := a.subscribe(ctx, c.ID, in.Body.Subscription); err != nil {
			return nil, err
		}
		return &body[notifyAnswer]{notifyAnswer{Subscription: &in.Body.Subscription, Done: true, Steps: make([]bucket.Step, 0)}}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	set, err := a.deps.Sources.Announce(ctx, c, in.Body.Name, in.Body.Create)
	if errors.Is(err, bucket.ErrName) {
		return nil, invalid("name", "must be letters, digits and - . _, and so must be what the connector names")
	}
	if err != nil {
		return nil, storageUnavailable(c, err)
	}
	answer := notifyAnswer{Subscription: orNull(set.Subscription), Steps: append(make([]bucket.Step, 0), set.Steps...)}
	if last := len(answer.Steps) - 1; in.Body.Create && set.Subscription != "" && answer.Steps[last-1].Done {
		if err := a.subscribe(context.WithoutCancel(ctx), c.ID, set.Subscription); err != nil {
			return nil, err
		}
		answer.Steps[last].Done, set.Steps[last].Done = true, true
	}
	answer.Done = set.Done()
	return &body[notifyAnswer]{answer}, nil
}

// subscribe has a connector pull its notifications from there.
func (a *Admin) subscribe(ctx context.Context, id, subscription string) error {
	now := time.Now().UTC()
	_, _, err := a.connectors.Modify(ctx, id, func(c *store.Connector) error {
		if c.ID == "" {
			return notFound("connector", id) // deleted meanwhile
		}
		if c.Subscription == subscription {
			return store.ErrUnchanged
		}
		c.Subscription, c.UpdatedAt = subscription, now
		return nil
	})
	return err
}
