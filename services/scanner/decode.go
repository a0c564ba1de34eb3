package scanner

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"millrace/shared/event"
	"millrace/shared/store"
)

// maxPath bounds a path: Google Cloud Storage and S3 allow 1,024 bytes, Linux 4,096.
const maxPath = 4096

// errIgnored says that a notification is well formed and not about a change of one of the connector's objects.
var errIgnored = errors.New("not about a change of an object here")

// payload is every shape a notification may have. Which one it is shows in its members; whether it may have that shape
// depends on the provider.
type payload struct {
	event.Notification
	pubsub
}

// pubsub is what Pub/Sub pushes to an HTTP endpoint, and what our own subscriber writes.
type pubsub struct {
	Message *struct {
		Attributes struct {
			EventType     string `json:"eventType"`
			BucketID      string `json:"bucketId"`
			ObjectID      string `json:"objectId"`
			Generation    string `json:"objectGeneration"`
			OverwrittenBy string `json:"overwrittenByGeneration"`
		} `json:"attributes"`
		Data []byte `json:"data"`
	} `json:"message"`
}

// decode reads a notification for a connector. errIgnored means that there is nothing to do; any other error that it is
// not what the connector's provider sends.
func decode(c store.Connector, data []byte) (event.Notification, error) {
	var p payload
	if !utf8.Valid(data) {
		return p.Notification, errors.New("decode notification: not valid UTF-8")
	}
	if n, ok, err := decodeGrid(c, data); ok {
		if err != nil {
			return n, err
		}
		return n, check(n)
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return event.Notification{}, fmt.Errorf("decode notification: %w", err)
	}
	n := p.Notification
	switch {
	case n.Op != "" && p.Message != nil:
		return n, errors.New("decode notification: it is of two forms at once")
	case n.Op != "":
	case p.Message != nil && c.Provider == "gcs":
		var err error
		if n, err = p.decode(c.Bucket); err != nil {
			return n, err
		}
	default:
		return n, fmt.Errorf("decode notification: not of a form that a %s connector sends", c.Provider)
	}
	return n, check(n)
}

func check(n event.Notification) error {
	switch {
	case n.Op != event.Created && n.Op != event.Deleted:
		return fmt.Errorf("decode notification: unknown op %q", clip(string(n.Op)))
	case n.Path == "" || len(n.Path) > maxPath || strings.ContainsRune(n.Path, 0):
		return fmt.Errorf("decode notification: path of %d bytes is not a path", len(n.Path))
	case n.Size < 0:
		return fmt.Errorf("decode notification: size %d", n.Size)
	}
	return nil
}

// decode reads the attributes that Google Cloud Storage sets. An overwrite is announced twice: as the new version, and
// as the end of the old one, which is no deletion of the object.
func (p pubsub) decode(bucket string) (event.Notification, error) {
	a := p.Message.Attributes
	n := event.Notification{Path: a.ObjectID}
	switch a.EventType {
	case "OBJECT_FINALIZE":
		n.Op = event.Created
	case "OBJECT_DELETE", "OBJECT_ARCHIVE":
		if a.OverwrittenBy != "" {
			return n, errIgnored
		}
		n.Op = event.Deleted
	case "OBJECT_METADATA_UPDATE":
		return n, errIgnored
	default:
		return n, fmt.Errorf("decode notification: unknown event type %q", clip(a.EventType))
	}
	if a.BucketID != bucket {
		return n, errIgnored
	}
	generation, err := strconv.ParseInt(a.Generation, 10, 64)
	if err != nil || generation <= 0 {
		return n, fmt.Errorf("decode notification: generation %q", clip(a.Generation))
	}
	n.Version, n.Order = a.Generation, fmt.Sprintf("%020d", generation)
	if n.Op == event.Created && len(p.Message.Data) > 0 {
		err = describe(&n, p.Message.Data)
	}
	return n, err
}

func clip(s string) string { return s[:min(len(s), 64)] }

// describe adds what the payload in format JSON_API_V1 tells. A subscription may be set up without it.
func describe(n *event.Notification, data []byte) error {
	var o struct {
		Size       int64     `json:"size,string"`
		CRC32C     string    `json:"crc32c"`
		Generation string    `json:"generation"`
		Created    time.Time `json:"timeCreated"`
	}
	if err := json.Unmarshal(data, &o); err != nil {
		return fmt.Errorf("decode notification: its object: %w", err)
	}
	if o.Generation != "" && o.Generation != n.Version {
		return fmt.Errorf("decode notification: generation %s of the object is not %s", clip(o.Generation), n.Version)
	}
	n.Size, n.CRC32C, n.ModTime = o.Size, o.CRC32C, o.Created
	return nil
}
