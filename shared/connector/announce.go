package connector

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"millrace/shared/bucket"
	"millrace/shared/bucket/gcs"
	"millrace/shared/store"
)

// Announcements is what has the storage of a connector tell of its changes.
type Announcements struct {
	// Subscription is what the connector is to pull from once all steps are done; "": nothing, or what a step tells.
	Subscription string
	Steps        []bucket.Step
}

// Done reports whether nothing is left to do.
func (a Announcements) Done() bool {
	for _, s := range a.Steps {
		if !s.Done {
			return false
		}
	}
	return true
}

// Announce says what has the storage of a connector tell of its changes. With create it is set up with the connector's
// credentials, where that can be done from here: in Google Cloud. The name is that of what is made, "" for one with the
// connector's id. ErrName: it is none, or the record has some that a shell would take for something else.
func (o *Opener) Announce(ctx context.Context, c store.Connector, name string, create bool) (Announcements, error) {
	name = cmp.Or(name, "millrace-"+strings.ReplaceAll(c.ID, "_", "-"))
	var (
		steps []bucket.Step
		err   error
	)
	switch c.Provider {
	case "gcs":
		return o.announceGCS(ctx, c, name, create)
	case "s3":
		if steps, err = announceS3(c, name), bucket.CheckAnnounced(c.ID, name, c.Bucket); c.Region != "" && err == nil {
			err = bucket.CheckAnnounced(c.Region)
		}
	case "azure":
		steps, err = announceAzure(c, name), bucket.CheckAnnounced(c.ID, name, c.StorageAccount, c.Container)
	}
	if err != nil {
		return Announcements{}, err
	}
	return Announcements{Steps: steps}, nil // a folder needs none: the kernel tells
}

func (o *Opener) announceGCS(ctx context.Context, c store.Connector, name string, create bool) (Announcements, error) {
	set := gcs.Announcements{Bucket: gcs.Config{Bucket: c.Bucket}, Project: c.Project, Name: name, PubSubEndpoint: o.cfg.PubSubEndpoint}
	steps, err := set.Steps()
	if err == nil && create {
		if set.Bucket, err = o.gcsConfig(c); err == nil {
			steps, err = set.SetUp(ctx)
		}
	}
	if err != nil {
		return Announcements{}, err
	}
	return Announcements{Subscription: set.Subscription(), Steps: append(steps, pulled(c, set.Subscription()))}, nil
}

// pulled is the last step of storage whose notifications are pulled.
func pulled(c store.Connector, from string) bucket.Step {
	return bucket.Step{
		What:    "the connector pulls from there",
		Command: fmt.Sprintf("millrace connector notify %s --subscription %s", c.ID, from),
		Done:    c.Subscription != "" && c.Subscription == from,
	}
}

// announceS3 leads from a bucket to a queue of SQS, or, at another server than Amazon's, to our own door.
func announceS3(c store.Connector, name string) []bucket.Step {
	if c.EndpointURL != "" {
		alias := strings.ReplaceAll(name, ".", "-")
		return []bucket.Step{
			{
				What:    "access with the server's own tool; these commands are MinIO's, other servers tell a webhook or NATS in their own ways",
				Command: fmt.Sprintf("mc alias set %s %s", alias, bucket.ShellWord(c.EndpointURL)),
			},
			{
				What: "a webhook to this server; MILLRACE_URL is where the storage reaches it",
				Command: fmt.Sprintf("mc admin config set %s notify_webhook:%s endpoint=%s auth_token=%s && mc admin service restart %[1]s",
					alias, name, door(c), key(name)),
			},
			{
				What:    "the notifications of the bucket",
				Command: fmt.Sprintf("mc event add %s/%s arn:minio:sqs::%s:webhook --event put,delete", alias, c.Bucket, name),
			},
		}
	}
	region := ""
	if c.Region != "" {
		region = " --region " + c.Region
	}
	// "$ARN" is arn:PARTITION:sqs:REGION:ACCOUNT:NAME, and so tells the partition of other names as well.
	policy := `'{"Policy": "{\"Version\": \"2012-10-17\", \"Statement\": [{\"Effect\": \"Allow\", ` +
		`\"Principal\": {\"Service\": \"s3.amazonaws.com\"}, \"Action\": \"sqs:SendMessage\", \"Resource\": \"'"$ARN"'\", ` +
		`\"Condition\": {\"ArnEquals\": {\"aws:SourceArn\": \"'"${ARN%%:sqs:*}:s3:::` + c.Bucket + `"'\"}}}]}"}'`
	return []bucket.Step{
		{
			What: "the queue " + name,
			Command: fmt.Sprintf("QUEUE=$(aws sqs create-queue%s --queue-name %s --attributes MessageRetentionPeriod=1209600 "+
				"--query QueueUrl --output text) && ARN=$(aws sqs get-queue-attributes%[1]s --queue-url \"$QUEUE\" "+
				"--attribute-names QueueArn --query Attributes.QueueArn --output text)", region, strings.ReplaceAll(name, ".", "-")),
		},
		{
			What:    "the right of the bucket to send to it",
			Command: fmt.Sprintf("aws sqs set-queue-attributes%s --queue-url \"$QUEUE\" --attributes %s", region, policy),
		},
		{
			What: "the right of the connector's user to receive from it; USER_NAME is that user",
			Command: `aws iam put-user-policy --user-name "$USER_NAME" --policy-name ` + name + ` --policy-document ` +
				`'{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["sqs:ReceiveMessage", "sqs:DeleteMessage"], ` +
				`"Resource": "'"$ARN"'"}]}'`,
		},
		{
			What: "the notifications of the bucket; this replaces those it has, which `aws s3api get-bucket-notification-configuration --bucket " +
				c.Bucket + "` shows",
			Command: fmt.Sprintf("aws s3api put-bucket-notification-configuration%s --bucket %s --notification-configuration "+
				`'{"QueueConfigurations": [{"QueueArn": "'"$ARN"'", "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}]}'`, region, c.Bucket),
		},
		pulled(c, `"$QUEUE"`),
	}
}

// announceAzure has Event Grid tell our door.
func announceAzure(c store.Connector, name string) []bucket.Step {
	return []bucket.Step{
		{
			What: "a container for what cannot be delivered: without one Event Grid drops it",
			Command: fmt.Sprintf(`ACCOUNT_ID=$(az storage account show --name %s --query id --output tsv) && `+
				`az storage container create --account-name %[1]s --name undelivered --auth-mode login`, c.StorageAccount),
		},
		{
			What: "an Event Grid subscription to this server; MILLRACE_URL is its public address, with https",
			Command: fmt.Sprintf(`az eventgrid event-subscription create --name %s --source-resource-id "$ACCOUNT_ID" --endpoint %s `+
				`--delivery-attribute-mapping X-API-Key static %s true `+
				`--included-event-types Microsoft.Storage.BlobCreated Microsoft.Storage.BlobDeleted Microsoft.Storage.BlobRenamed `+
				`--subject-begins-with /blobServices/default/containers/%s/ `+
				`--deadletter-endpoint "$ACCOUNT_ID/blobServices/default/containers/undelivered"`,
				strings.ReplaceAll(name, ".", "-"), door(c), key(name), c.Container),
		},
	}
}

// door is where notifications come in, and key makes one for whoever brings them.
func door(c store.Connector) string {
	return `"${MILLRACE_URL:?}/api/v2/notifications/` + c.ID + `"`
}

func key(name string) string { return `"$(millrace key create ` + name + ` --scope write)"` }
