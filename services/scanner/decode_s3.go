package scanner

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"millrace/shared/bucket/s3"
	"millrace/shared/event"
	"millrace/shared/store"
)

// s3Payload is every shape in which S3 and the servers like it tell of changes. They come by way of SQS, SNS, EventBridge
// and HTTP, and directly over NATS, some of them wrapped into each other.
type s3Payload struct {
	event.Notification

	Records []s3Record `json:"Records"` // S3 itself; MinIO, RustFS and versitygw the same

	Event string `json:"Event"` // s3:TestEvent: sent when notifications are set up

	Type    string  `json:"Type"` // SNS: Notification
	Message *string `json:"Message"`

	DetailType string    `json:"detail-type"` // EventBridge
	Detail     *s3Detail `json:"detail"`
}

// s3Record is one event of a bucket's notification.
type s3Record struct {
	Time string `json:"eventTime"`
	Name string `json:"eventName"` // ObjectCreated:Put, also with "s3:" before it
	S3   struct {
		Bucket struct {
			Name string `json:"name"`
			ARN  string `json:"arn"`
		} `json:"bucket"`
		Object struct {
			Key       string `json:"key"` // as in the body of a form
			Size      int64  `json:"size"`
			ETag      string `json:"eTag"`
			VersionID string `json:"versionId"`
			Sequencer string `json:"sequencer"`
		} `json:"object"`
	} `json:"s3"`
}

// s3Detail is what EventBridge says of an object.
type s3Detail struct {
	Bucket struct {
		Name string `json:"name"`
	} `json:"bucket"`
	Object struct {
		Key       string `json:"key"` // as it is
		Size      int64  `json:"size"`
		ETag      string `json:"etag"`
		VersionID string `json:"version-id"`
		Sequencer string `json:"sequencer"`
	} `json:"object"`
	DeletionType string `json:"deletion-type"`
}

const s3TestEvent = "s3:TestEvent"

// decodeS3 reads what an S3 connector gets.
func decodeS3(c store.Connector, data []byte) ([]event.Notification, error) {
	p, err := s3Unwrapped(unwrapped(data))
	if err != nil {
		return nil, err
	}
	switch {
	case p.Op != "" && (p.Records != nil || p.Detail != nil):
		return nil, errors.New("it is of two forms at once")
	case p.Op != "":
		return []event.Notification{p.Notification}, nil
	case p.Event == s3TestEvent:
		return nil, errIgnored
	case p.Detail != nil:
		n, err := p.Detail.decode(c, p.DetailType)
		if err != nil {
			return nil, err
		}
		return []event.Notification{n}, nil
	case p.Type == "SubscriptionConfirmation":
		return nil, errors.New("SNS asks whether it may send here: open the SubscribeURL that is in this message, if you asked for it")
	case len(p.Records) == 0:
		return nil, errForm
	}
	return s3Records(c, p.Records)
}

// s3Unwrapped parses a payload, and takes it out of the envelope of SNS.
func s3Unwrapped(data []byte) (s3Payload, error) {
	var p s3Payload
	if err := json.Unmarshal(data, &p); err != nil {
		return p, err
	}
	if p.Type != "Notification" || p.Message == nil {
		return p, nil
	}
	var inner s3Payload
	if err := json.Unmarshal([]byte(*p.Message), &inner); err != nil {
		return inner, fmt.Errorf("the message that SNS passes on: %w", err)
	}
	return inner, nil
}

// s3Records reads the records that are about objects here. One that is malformed spoils the rest: nobody sends such.
func s3Records(c store.Connector, records []s3Record) ([]event.Notification, error) {
	var list []event.Notification
	for _, r := range records {
		n, err := r.decode(c)
		switch {
		case errors.Is(err, errIgnored):
		case err != nil:
			return nil, err
		default:
			list = append(list, n)
		}
	}
	if list == nil {
		return nil, errIgnored
	}
	return list, nil
}

func (r *s3Record) decode(c store.Connector) (event.Notification, error) {
	o := &r.S3.Object
	n := event.Notification{Path: formDecoded(o.Key), Order: s3Order(o.Sequencer)}
	if strings.HasPrefix(r.S3.Bucket.ARN, "arn:aws:s3:::/") { // versitygw, which puts the path there, and keys as they are
		n.Path = o.Key
	}
	kind, detail, _ := strings.Cut(strings.TrimPrefix(r.Name, "s3:"), ":")
	switch kind {
	case "ObjectCreated":
		n.Op = event.Created
	case "ObjectRestore":
		if detail != "Completed" {
			return n, errIgnored
		}
		n.Op = event.Created // it can be read now
	case "ObjectRemoved", "LifecycleExpiration":
		n.Op = event.Deleted
	case "ObjectAccessed", "ObjectTagging", "ObjectAcl", "ObjectRetention", "ObjectLegalHold", "Replication", "Scanner",
		"ReducedRedundancyLostObject", "LifecycleTransition", "IntelligentTiering", "ILM", "TestEvent":
		return n, errIgnored
	default:
		return n, fmt.Errorf("unknown event %q", clip(r.Name))
	}
	if n.Op == event.Created {
		n.ModTime, _ = time.Parse(time.RFC3339, r.Time) // near to what the storage will say
	}
	return s3Object(c, n, r.S3.Bucket.Name, o.VersionID, o.ETag, o.Size, detail == "DeleteMarkerCreated")
}

func (d *s3Detail) decode(c store.Connector, kind string) (event.Notification, error) {
	o := &d.Object
	n := event.Notification{Path: o.Key, Order: s3Order(o.Sequencer)}
	switch kind {
	case "Object Created", "Object Restore Completed":
		n.Op = event.Created
	case "Object Deleted":
		n.Op = event.Deleted
	case "":
		return n, errForm
	default: // of tags, tiers, rights
		return n, errIgnored
	}
	return s3Object(c, n, d.Bucket.Name, o.VersionID, o.ETag, o.Size, d.DeletionType == "Delete Marker Created")
}

// s3Object adds what is said of the object. A deletion that leaves the old version behind names a version of its own,
// and is of no version that we know.
func s3Object(c store.Connector, n event.Notification, bucket, id, etag string, size int64, marker bool) (event.Notification, error) {
	switch {
	case bucket == "":
		return n, errors.New("it names no bucket")
	case bucket != c.Bucket:
		return n, errIgnored
	case n.Op == event.Created:
		n.Version, n.Size = s3.Version(id, etag, size), size
	case !marker:
		n.Version = s3.Version(id, "", 0)
	}
	return n, nil
}

// formDecoded is a key that travels as the values of a form do. What is none, because the server does not mind, stands for
// itself.
func formDecoded(key string) string {
	if plain, err := url.QueryUnescape(key); err == nil && utf8.ValidString(plain) {
		return plain
	}
	return key
}

// s3Order makes plain comparison right for sequencers, which are compared as hexadecimal numbers that end alike. Those of
// S3 and MinIO are long, the others count from their last start.
func s3Order(sequencer string) string {
	const shortest, longest = 16, 32
	if len(sequencer) < shortest || len(sequencer) > longest || strings.Trim(sequencer, "0123456789abcdefABCDEF") != "" {
		return ""
	}
	return strings.ToUpper(sequencer) + strings.Repeat("0", longest-len(sequencer))
}
