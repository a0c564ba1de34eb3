package scanner

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"millrace/shared/event"
	"millrace/shared/store"
)

// gridEvent is an event in either of the two schemas of Azure Event Grid: its own, and CloudEvents 1.0.
type gridEvent struct {
	SpecVersion string    `json:"specversion"` // CloudEvents
	Type        string    `json:"type"`        // CloudEvents
	EventType   string    `json:"eventType"`   // Event Grid
	Source      string    `json:"source"`      // CloudEvents
	Topic       string    `json:"topic"`       // Event Grid
	Time        time.Time `json:"time"`        // CloudEvents
	EventTime   time.Time `json:"eventTime"`   // Event Grid
	Subject     string    `json:"subject"`

	Data gridData `json:"data"`
}

type gridData struct {
	API            string `json:"api"`
	ETag           string `json:"eTag"`
	ContentLength  int64  `json:"contentLength"`
	URL            string `json:"url"`
	DestinationURL string `json:"destinationUrl"` // of a rename
	Sequencer      string `json:"sequencer"`
}

// decodeGrid reads what a connector of Azure Blob Storage gets.
func decodeGrid(c store.Connector, data []byte) ([]event.Notification, error) {
	data = unwrapped(data)
	var list []json.RawMessage
	if json.Unmarshal(data, &list) == nil && len(list) == 1 { // Event Grid sends lists, and our own API takes them apart
		data = list[0]
	}
	var e gridEvent
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, err
	}
	switch e.SpecVersion {
	case "":
	case "1.0":
		e.EventType, e.Topic, e.EventTime = e.Type, e.Source, e.Time
	default:
		return nil, fmt.Errorf("CloudEvents %q: want 1.0", clip(e.SpecVersion))
	}
	if e.EventType == "" {
		return decodeOwn(c, data)
	}
	n, err := e.decode(c)
	if err != nil {
		return nil, err
	}
	return []event.Notification{n}, nil
}

// early holds the operations that begin a file which is written bit by bit. What ends it (FlushWithClose, SftpCommit) is
// told as well.
var early = map[string]bool{"CreateFile": true, "SftpCreate": true}

// decode reads an event of a storage account. A deletion says neither of which version nor, in a way that could be
// compared with a listing, when: the storage is asked before it is believed.
func (e gridEvent) decode(c store.Connector) (event.Notification, error) {
	var n event.Notification
	kind, ok := strings.CutPrefix(e.EventType, "Microsoft.Storage.")
	if !ok {
		if strings.HasPrefix(e.EventType, "Microsoft.") {
			return n, errIgnored // a handshake, or of another service on the same topic
		}
		return n, fmt.Errorf("unknown event type %q", clip(e.EventType))
	}
	address := e.Data.URL
	switch kind {
	case "BlobCreated":
		if early[e.Data.API] {
			return n, errIgnored
		}
		n.Op = event.Created
	case "BlobRenamed":
		n.Op, address = event.Created, e.Data.DestinationURL // where it was it is gone, which the importer sees
	case "BlobDeleted":
		n.Op = event.Deleted
	default:
		return n, errIgnored // folders, tiers, inventories
	}
	if account := accountOf(e.Topic); account != "" && !strings.EqualFold(account, c.StorageAccount) {
		return n, errIgnored
	}
	container, path, sure := blobOf(e.Subject, address)
	if container == "" || path == "" {
		return n, fmt.Errorf("no blob in the subject %q or the url %q", clip(e.Subject), clip(address))
	}
	if container != c.Container {
		return n, errIgnored
	}
	n.Path = path
	if kind == "BlobCreated" && sure {
		if e.Data.ContentLength < 0 || e.Data.ETag == "" {
			return n, errors.New("an upload without eTag or contentLength")
		}
		n.Version, n.Order = strings.Trim(e.Data.ETag, `"`), e.Data.Sequencer
		n.Size, n.ModTime = e.Data.ContentLength, e.EventTime
	}
	return n, nil
}

// accountOf finds the storage account in the topic or source of an event: …/storageAccounts/NAME.
func accountOf(topic string) string {
	segments := strings.Split(topic, "/")
	for i, s := range segments[:len(segments)-1] {
		if strings.EqualFold(s, "storageAccounts") {
			return segments[i+1]
		}
	}
	return ""
}

// blobOf says which blob an event is about. The subject has its name as it is; the url was seen with names as they are
// and with names that are escaped. sure is false where the name may not be the blob's: it is looked up then.
func blobOf(subject, address string) (container, path string, sure bool) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(subject, "/"), "blobServices/default/containers/")
	if ok {
		if container, path, ok = strings.Cut(rest, "/blobs/"); ok && path != "" {
			// Event Grid is known to lose characters beyond U+FFFF, and puts this in their place.
			lost := strings.ContainsRune(path, utf8.RuneError)
			_, raw := pathOf(address)
			escaped, err := url.PathUnescape(raw)
			return container, path, !lost && (err != nil || raw != path || escaped == raw)
		}
	}
	container, raw := pathOf(address)
	path, err := url.PathUnescape(raw)
	if err != nil || strings.ContainsAny(raw, "?# ") { // cannot be escaped as it is
		path = raw
	}
	return container, path, path == raw && !strings.ContainsRune(path, utf8.RuneError)
}

// pathOf cuts https://host/container/path apart without reading it as a URL, which its name may break. The address of an
// emulator has the account in front of the container.
func pathOf(address string) (container, path string) {
	_, rest, _ := strings.Cut(address, "://")
	host, rest, _ := strings.Cut(rest, "/")
	if host, _, port := strings.Cut(host, ":"); port || host == "localhost" {
		_, rest, _ = strings.Cut(rest, "/")
	}
	container, path, _ = strings.Cut(rest, "/")
	return container, path
}
