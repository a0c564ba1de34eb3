package scanner

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"millrace/shared/bucket/gcs"
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
	bucket, dir := store.Connector{Provider: "gcs", Bucket: "drop"}, store.Connector{Provider: "dir", Path: "/drop"}
	bad := errors.New("any other error")

	for _, c := range []struct {
		name      string
		connector store.Connector
		body      []byte
		want      event.Notification
		err       error // nil, errIgnored, or any other
	}{
		{"written", bucket, push("OBJECT_FINALIZE", "", pushedObject), full, nil},
		{"overwritten", bucket, push("OBJECT_FINALIZE", `,"overwroteGeneration":"17"`, pushedObject), full, nil},
		{"written, no payload", bucket, push("OBJECT_FINALIZE", "", ""), bare, nil},
		{"delete", bucket, push("OBJECT_DELETE", "", pushedObject), gone, nil},
		{"archive", bucket, push("OBJECT_ARCHIVE", "", ""), gone, nil},
		{"delete by an overwrite", bucket, push("OBJECT_DELETE", `,"overwrittenByGeneration":"18"`, ""), event.Notification{}, errIgnored},
		{"archive by an overwrite", bucket, push("OBJECT_ARCHIVE", `,"overwrittenByGeneration":"18"`, ""), event.Notification{}, errIgnored},
		{"metadata", bucket, push("OBJECT_METADATA_UPDATE", "", pushedObject), event.Notification{}, errIgnored},
		{"another bucket", store.Connector{Provider: "gcs", Bucket: "other"}, push("OBJECT_FINALIZE", "", ""), event.Notification{}, errIgnored},
		{"unknown event", bucket, push("OBJECT_TRANSFIGURED", "", ""), event.Notification{}, bad},
		{"object is not JSON", bucket, push("OBJECT_FINALIZE", "", "{"), event.Notification{}, bad},
		{"object of another generation", bucket, push("OBJECT_FINALIZE", "", `{"generation":"5","size":"1"}`), event.Notification{}, bad},
		{"size is not a number", bucket, push("OBJECT_FINALIZE", "", `{"size":"many"}`), event.Notification{}, bad},
		{"Pub/Sub for a folder", dir, push("OBJECT_FINALIZE", "", pushedObject), event.Notification{}, bad},
		{"ours for a folder", dir, []byte(`{"op":"created","path":"in/ü.mp4","version":"1-2","size":2}`), ours, nil},
		{"ours for a bucket", bucket, []byte(`{"op":"created","path":"in/ü.mp4","version":"1-2","size":2,"new":true}`), ours, nil},
		{"ours, deleted", dir, []byte(`{"op":"deleted","path":"a"}`), event.Notification{Op: event.Deleted, Path: "a"}, nil},
		{"unknown op", dir, []byte(`{"op":"renamed","path":"a"}`), event.Notification{}, bad},
		{"no path", dir, []byte(`{"op":"created"}`), event.Notification{}, bad},
		{"a path with a NUL", dir, []byte(`{"op":"created","path":"a\u0000b"}`), event.Notification{}, bad},
		{"a path without end", dir, []byte(`{"op":"created","path":"` + strings.Repeat("a", maxPath+1) + `"}`), event.Notification{}, bad},
		{"a negative size", dir, []byte(`{"op":"created","path":"a","size":-1}`), event.Notification{}, bad},
		{"both forms", bucket, []byte(`{"op":"created","path":"a","message":{}}`), event.Notification{}, bad},
		{"neither form", bucket, []byte(`{"Records":[]}`), event.Notification{}, bad},
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
		checkQuick(t, data)
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

// checkQuick holds what is read the short way against what encoding/json reads, and reports whether there is a short way.
func checkQuick(t *testing.T, data []byte) (message, object bool) {
	t.Helper()
	if !utf8.Valid(data) {
		return false, false
	}
	m, message := quickMessage(data)
	if message {
		var p struct {
			event.Notification
			pubsub
		}
		if err := json.Unmarshal(unwrapped(data), &p); err != nil || p.Notification != (event.Notification{}) || p.Message == nil ||
			p.Message.Attributes != m.Attributes || !bytes.Equal(p.Message.Data, m.Data) {
			t.Errorf("%q is %+v the short way and %+v, %v", data, m, p, err)
		}
		data = m.Data
	}
	o, object := quickObject(data)
	if object {
		var p pubsubObject
		if err := json.Unmarshal(data, &p); err != nil || p != o {
			t.Errorf("%q is %+v the short way and %+v, %v", data, o, p, err)
		}
	}
	return message, object
}

// What Pub/Sub sends is read the short way, and what only looks like it is not.
func TestDecodeQuick(t *testing.T) {
	t.Parallel()
	for _, name := range goldens(t) {
		data := readFile(t, name)
		if m, _ := checkQuick(t, data); !m && strings.Contains(name, "/gcs-") && bytes.Contains(data, []byte(`"messageId"`)) &&
			!bytes.Contains(data, []byte(`\`)) {
			t.Errorf("%s is not read the short way", name)
		}
	}
	own, err := gcs.Notification{ID: "1", Attributes: map[string]string{"objectId": "in/ü.mp4"}, Data: []byte(pushedObject)}.Envelope()
	must(t, err)
	for _, data := range [][]byte{own, push("OBJECT_FINALIZE", "", pushedObject)} {
		if m, o := checkQuick(t, data); !m || !o {
			t.Errorf("%s is not read the short way", data)
		}
	}
	for data, short := range map[string]bool{
		`{"message":{}}`: true,
		`{"message":{"data":""},"x":[1,"\n",{"a":null},[],true]}`:               true,
		`{"message":{},"message":{}}`:                                           false,
		`{"message":{},"Message":{}}`:                                           false,
		`{"message":{},"meſſage":{}}`:                                           false,
		`{"me\u0073sage":{}}`:                                                   false,
		`{"message":null}`:                                                      false,
		`{"message":{}}x`:                                                       false,
		`{"message":{},}`:                                                       false,
		`{"message":{},"a":01}`:                                                 false,
		`{"message":{},"a":"\u0026\uD800"}`:                                     true,
		`{"message":{},"a":"\u002g"}`:                                           false,
		`{"message":{},"a":1.}`:                                                 false,
		`{"message":{},"a":-}`:                                                  false,
		`{"message":{},"a":"	"}`:                                                false,
		`{"message":{},"a":"\x"}`:                                               false,
		"{\"message\":{\"data\":\"AAAA\nAAAA\"}}":                               false,
		`{"message":{"data":"AAA"}}`:                                            false,
		`{"message":{"data":"AA\u003d="}}`:                                      false,
		`{"message":{"attributes":{"objectId":"a","objectId":"b"}}}`:            false,
		`{"message":{"attributes":{"objectid":"a"}}}`:                           false,
		`{"message":{"attributes":{"objectId":null}}}`:                          false,
		`{"message":{"attributes":[]}}`:                                         false,
		`{"message":{},"op":"created"}`:                                         false,
		`{"message":{},"size":1}`:                                               false,
		`{"message":{},"specversion":"1.0","data":{"op":"created","path":"a"}}`: false,
		`{"message":{},"a":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`: false,
	} {
		if m, _ := checkQuick(t, []byte(data)); m != short {
			t.Errorf("%s is read the short way: %t", data, m)
		}
	}
	for data, short := range map[string]bool{
		`{"size":"5","generation":"7","timeCreated":"2026-03-01T08:12:44Z","metadata":{"size":5}}`: true,
		`{}`:                              true,
		`{"size":"05"}`:                   false,
		`{"size":"-0"}`:                   false,
		`{"size":5}`:                      false,
		`{"size":"99999999999999999999"}`: false,
		`{"timeCreated":"yesterday"}`:     false,
		`{"crc32c":"a","CRC32C":"b"}`:     false,
		`[]`:                              false,
		``:                                false,
	} {
		if _, o := checkQuick(t, []byte(data)); o != short {
			t.Errorf("%s is read the short way: %t", data, o)
		}
	}
}
