package scanner

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// push is a message as Pub/Sub pushes it.
func push(eventType, attributes, object string) []byte {
	data := ""
	if object != "" {
		data = fmt.Sprintf(`"data":%q,`, base64.StdEncoding.EncodeToString([]byte(object)))
	}
	return fmt.Appendf(nil, `{"message":{"attributes":{"notificationConfig":"projects/_/buckets/drop/notificationConfigs/1",
		"eventType":%q,"payloadFormat":"JSON_API_V1","bucketId":"drop","objectId":"in/a.mp4","objectGeneration":"1709280764000000",
		"eventTime":"2026-03-01T08:12:44Z"%s},%s"messageId":"1","publishTime":"2026-03-01T08:12:44Z"},
		"subscription":"projects/p/subscriptions/s"}`, eventType, attributes, data)
}

const pushedObject = `{"kind":"storage#object","id":"drop/in/a.mp4/1709280764000000","name":"in/a.mp4","bucket":"drop",
	"generation":"1709280764000000","metageneration":"1","contentType":"video/mp4","timeCreated":"2026-03-01T08:12:44.001Z",
	"updated":"2026-03-01T08:12:44.001Z","size":"73400320","crc32c":"AAAAAA=="}`

func TestDecode(t *testing.T) {
	full := event.Notification{
		Op: event.Created, Path: "in/a.mp4", Version: "1709280764000000", Order: "00001709280764000000",
		Size: 73400320, CRC32C: "AAAAAA==", ModTime: time.Date(2026, 3, 1, 8, 12, 44, 1e6, time.UTC),
	}
	bare := event.Notification{Op: event.Created, Path: full.Path, Version: full.Version, Order: full.Order}
	gone := bare
	gone.Op = event.Deleted
	ours := event.Notification{Op: event.Created, Path: "in/ü.mp4", Version: "1-2", Size: 2}
	gcs, dir := store.Connector{Provider: "gcs", Bucket: "drop"}, store.Connector{Provider: "dir", Path: "/drop"}
	bad := errors.New("any other error")

	for _, c := range []struct {
		name      string
		connector store.Connector
		body      []byte
		want      event.Notification
		err       error // nil, errIgnored, or any other
	}{
		{"written", gcs, push("OBJECT_FINALIZE", "", pushedObject), full, nil},
		{"overwritten", gcs, push("OBJECT_FINALIZE", `,"overwroteGeneration":"17"`, pushedObject), full, nil},
		{"written, no payload", gcs, push("OBJECT_FINALIZE", "", ""), bare, nil},
		{"delete", gcs, push("OBJECT_DELETE", "", pushedObject), gone, nil},
		{"archive", gcs, push("OBJECT_ARCHIVE", "", ""), gone, nil},
		{"delete by an overwrite", gcs, push("OBJECT_DELETE", `,"overwrittenByGeneration":"18"`, ""), event.Notification{}, errIgnored},
		{"archive by an overwrite", gcs, push("OBJECT_ARCHIVE", `,"overwrittenByGeneration":"18"`, ""), event.Notification{}, errIgnored},
		{"metadata", gcs, push("OBJECT_METADATA_UPDATE", "", pushedObject), event.Notification{}, errIgnored},
		{"another bucket", store.Connector{Provider: "gcs", Bucket: "other"}, push("OBJECT_FINALIZE", "", ""), event.Notification{}, errIgnored},
		{"unknown event", gcs, push("OBJECT_TRANSFIGURED", "", ""), event.Notification{}, bad},
		{"object is not JSON", gcs, push("OBJECT_FINALIZE", "", "{"), event.Notification{}, bad},
		{"object of another generation", gcs, push("OBJECT_FINALIZE", "", `{"generation":"5","size":"1"}`), event.Notification{}, bad},
		{"size is not a number", gcs, push("OBJECT_FINALIZE", "", `{"size":"many"}`), event.Notification{}, bad},
		{"Pub/Sub for a folder", dir, push("OBJECT_FINALIZE", "", pushedObject), event.Notification{}, bad},
		{"ours for a folder", dir, []byte(`{"op":"created","path":"in/ü.mp4","version":"1-2","size":2}`), ours, nil},
		{"ours for a bucket", gcs, []byte(`{"op":"created","path":"in/ü.mp4","version":"1-2","size":2,"new":true}`), ours, nil},
		{"ours, deleted", dir, []byte(`{"op":"deleted","path":"a"}`), event.Notification{Op: event.Deleted, Path: "a"}, nil},
		{"unknown op", dir, []byte(`{"op":"renamed","path":"a"}`), event.Notification{}, bad},
		{"no path", dir, []byte(`{"op":"created"}`), event.Notification{}, bad},
		{"a path with a NUL", dir, []byte(`{"op":"created","path":"a\u0000b"}`), event.Notification{}, bad},
		{"a path without end", dir, []byte(`{"op":"created","path":"` + strings.Repeat("a", maxPath+1) + `"}`), event.Notification{}, bad},
		{"a negative size", dir, []byte(`{"op":"created","path":"a","size":-1}`), event.Notification{}, bad},
		{"both forms", gcs, []byte(`{"op":"created","path":"a","message":{}}`), event.Notification{}, bad},
		{"neither form", gcs, []byte(`{"Records":[]}`), event.Notification{}, bad},
		{"not UTF-8", dir, []byte("{\"op\":\"created\",\"path\":\"a\xff\"}"), event.Notification{}, bad},
		{"not JSON", dir, []byte("hello"), event.Notification{}, bad},
		{"empty", dir, nil, event.Notification{}, bad},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := decode(c.connector, c.body)
			switch {
			case c.err == nil && err != nil, c.err != nil && err == nil:
				t.Fatalf("error %v, want %v", err, c.err)
			case errors.Is(c.err, errIgnored) != errors.Is(err, errIgnored):
				t.Fatalf("error %v, want %v", err, c.err)
			case err == nil && (len(got) != 1 || got[0] != c.want):
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(push("OBJECT_FINALIZE", "", pushedObject))
	f.Add([]byte(`{"op":"created","path":"a"}`))
	for _, name := range goldens(f) {
		f.Add(readFile(f, name))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for provider := range forms {
			list, err := decode(store.Connector{Provider: provider, Bucket: "drop", Container: "drop"}, data)
			if err == nil && len(list) == 0 {
				t.Errorf("%q says nothing and is not ignored", data)
			}
			for _, n := range list {
				if err == nil && (n.Path == "" || n.Op != event.Created && n.Op != event.Deleted) {
					t.Errorf("%q was taken for %+v", data, n)
				}
			}
		}
	})
}
