package scanner

import (
	"bytes"
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

// errForm says that a notification is of no form that is known.
var errForm = errors.New("not of a form that such a connector gets")

// forms are what the storage systems of each provider send, beside our own form, which all of them may have, as it is or
// in a CloudEvent.
var forms = map[string]func(c store.Connector, data []byte) ([]event.Notification, error){
	"dir":   decodeOwn,
	"gcs":   decodePubSub,
	"s3":    decodeS3,
	"azure": decodeGrid,
}

// decode reads a notification for a connector: one change, or several. errIgnored means that there is nothing to do; any
// other error that it is not what the connector's provider sends.
func decode(c store.Connector, data []byte) ([]event.Notification, error) {
	form := forms[c.Provider]
	if form == nil {
		form = decodeOwn
	}
	if !utf8.Valid(data) {
		return nil, errors.New("decode notification: not valid UTF-8")
	}
	list, err := form(c, data)
	if errors.Is(err, errIgnored) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("decode notification for a connector of %s: %w", c.Provider, err)
	}
	for _, n := range list {
		if err := check(n); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// unwrapped returns what a CloudEvent holds that was made around our own form, by whatever can make one; else data.
func unwrapped(data []byte) []byte {
	if !bytes.Contains(data, []byte(`"specversion"`)) {
		return data
	}
	var e struct {
		SpecVersion string          `json:"specversion"`
		Data        json.RawMessage `json:"data"`
	}
	var own struct {
		Op event.Op `json:"op"`
	}
	if json.Unmarshal(data, &e) != nil || e.SpecVersion != "1.0" || json.Unmarshal(e.Data, &own) != nil || own.Op == "" {
		return data
	}
	return e.Data
}

// decodeOwn reads our own form.
func decodeOwn(_ store.Connector, data []byte) ([]event.Notification, error) {
	var n event.Notification
	if err := json.Unmarshal(unwrapped(data), &n); err != nil {
		return nil, err
	}
	if n.Op == "" {
		return nil, errForm
	}
	return []event.Notification{n}, nil
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

// pubsub is what Pub/Sub pushes to an HTTP endpoint, and what our own subscriber writes.
type pubsub struct {
	Message *pubsubMessage `json:"message"`
}

type pubsubMessage struct {
	Attributes pubsubAttributes `json:"attributes"`
	Data       []byte           `json:"data"`
}

type pubsubAttributes struct {
	EventType     string `json:"eventType"`
	BucketID      string `json:"bucketId"`
	ObjectID      string `json:"objectId"`
	Generation    string `json:"objectGeneration"`
	OverwrittenBy string `json:"overwrittenByGeneration"`
}

// pubsubObject is the payload in format JSON_API_V1, as far as it matters.
type pubsubObject struct {
	Size       int64     `json:"size,string"`
	CRC32C     string    `json:"crc32c"`
	Generation string    `json:"generation"`
	Created    time.Time `json:"timeCreated"`
}

// decodePubSub reads what a connector of Google Cloud Storage gets.
func decodePubSub(c store.Connector, data []byte) ([]event.Notification, error) {
	if m, ok := quickMessage(data); ok {
		n, err := m.decode(c.Bucket)
		if err != nil {
			return nil, err
		}
		return []event.Notification{n}, nil
	}
	var p struct {
		event.Notification
		pubsub
	}
	if err := json.Unmarshal(unwrapped(data), &p); err != nil {
		return nil, err
	}
	n := p.Notification
	switch {
	case n.Op != "" && p.Message != nil:
		return nil, errors.New("it is of two forms at once")
	case p.Message != nil:
		var err error
		if n, err = p.Message.decode(c.Bucket); err != nil {
			return nil, err
		}
	case n.Op == "":
		return nil, errForm
	}
	return []event.Notification{n}, nil
}

// decode reads the attributes that Google Cloud Storage sets. An overwrite is announced twice: as the new version, and
// as the end of the old one, which is no deletion of the object.
func (m *pubsubMessage) decode(bucket string) (event.Notification, error) {
	a := &m.Attributes
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
		return n, fmt.Errorf("unknown event type %q", clip(a.EventType))
	}
	if a.BucketID != bucket {
		return n, errIgnored
	}
	generation, err := strconv.ParseInt(a.Generation, 10, 64)
	if err != nil || generation <= 0 {
		return n, fmt.Errorf("generation %q", clip(a.Generation))
	}
	digits := strconv.FormatInt(generation, 10)
	n.Version, n.Order = a.Generation, "00000000000000000000"[len(digits):]+digits
	if n.Op == event.Created && len(m.Data) > 0 {
		err = describe(&n, m.Data)
	}
	return n, err
}

func clip(s string) string { return s[:min(len(s), 64)] }

// describe adds what the payload in format JSON_API_V1 tells. A subscription may be set up without it.
func describe(n *event.Notification, data []byte) error {
	o, ok := quickObject(data)
	if !ok {
		o = pubsubObject{}
		if err := json.Unmarshal(data, &o); err != nil {
			return fmt.Errorf("its object: %w", err)
		}
	}
	if o.Generation != "" && o.Generation != n.Version {
		return fmt.Errorf("generation %s of the object is not %s", clip(o.Generation), n.Version)
	}
	n.Size, n.CRC32C, n.ModTime = o.Size, o.CRC32C, o.Created
	return nil
}
