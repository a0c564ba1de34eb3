package scanner

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// What Event Grid sends, in both of its schemas, is read as what happened.
func TestDecodeEventGrid(t *testing.T) {
	c := store.Connector{Provider: "azure", StorageAccount: "drops", Container: "cams"}
	created := func(path string) event.Notification {
		return event.Notification{
			Op: event.Created, Path: path, Version: "0x8D4BCC2E4835CD0", Order: "00000000000004420000000000028963", Size: 73400320,
			ModTime: time.Date(2026, 3, 1, 8, 12, 44, 932446200, time.UTC),
		}
	}
	looked := func(op event.Op, path string) event.Notification { return event.Notification{Op: op, Path: path} }
	tests := map[string]struct {
		want event.Notification
		err  error
	}{
		"put-blob.json":                   {want: created("in/a.mp4")},
		"put-block-list.cloudevents.json": {want: created("in/a.mp4")},
		"copy-blob.json":                  {want: created("in/a.mp4")},
		"create-file.json":                {err: errIgnored},
		"flush-with-close.json":           {want: created("in/a.mp4")},
		"sftp-create.json":                {err: errIgnored},
		"sftp-commit.json":                {want: created("in/a.mp4")},
		"escaped-url.json":                {want: created("in/a b#%.mp4")},
		"plain-url.json":                  {want: created("in/a b#%.mp4")},
		"ambiguous.json":                  {want: looked(event.Created, "in/a%20b.mp4")},
		"lost-characters.json":            {want: looked(event.Created, "in/\ufffd\ufffd.mp4")},
		"url-alone.cloudevents.json":      {want: looked(event.Created, "in/a b.mp4")},
		"delete-blob.json":                {want: looked(event.Deleted, "in/a.mp4")},
		"delete-file.cloudevents.json":    {want: looked(event.Deleted, "in/a.mp4")},
		"rename-file.json":                {want: looked(event.Created, "in/new.mp4")},
		"tier-changed.json":               {err: errIgnored},
		"directory-created.json":          {err: errIgnored},
		"directory-renamed.json":          {err: errIgnored},
		"another-account.json":            {err: errIgnored},
		"another-container.json":          {err: errIgnored},
		"validation.json":                 {err: errIgnored},
		"own.cloudevents.json":            {want: event.Notification{Op: event.Created, Path: "in/a.mp4", Version: "0x8D4BCC2E4835CD0", Size: 7}},
	}
	files, err := filepath.Glob("testdata/eventgrid/*.json")
	if err != nil || len(files) != len(tests) {
		t.Errorf("%d payloads and %d tests, %v", len(files), len(tests), err)
	}
	for name, tt := range tests {
		data, err := os.ReadFile("testdata/eventgrid/" + name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(c, data)
		if !errors.Is(err, tt.err) || err == nil && got != tt.want {
			t.Errorf("%s: %+v, %v; want %+v, %v", name, got, err, tt.want, tt.err)
		}
		if _, err := decode(store.Connector{Provider: "gcs", Bucket: "cams"}, data); err == nil && got != (event.Notification{}) && tt.want.Size != 7 {
			t.Errorf("%s: taken for a notification of Google's", name)
		}
	}
	for name, body := range map[string]string{
		"another version":      `{"specversion":"0.3","type":"Microsoft.Storage.BlobCreated"}`,
		"no blob":              `{"eventType":"Microsoft.Storage.BlobCreated","subject":"/blobServices/default/containers/cams","data":{}}`,
		"an unknown publisher": `{"eventType":"Acme.Storage.BlobCreated","data":{}}`,
		"no eTag":              `{"eventType":"Microsoft.Storage.BlobCreated","subject":"/blobServices/default/containers/cams/blobs/a","data":{"contentLength":1}}`,
		"a size that is none":  `{"eventType":"Microsoft.Storage.BlobCreated","subject":"/blobServices/default/containers/cams/blobs/a","data":{"eTag":"x","contentLength":-1}}`,
		"two at once":          `[{"eventType":"Microsoft.Storage.BlobCreated"},{"eventType":"Microsoft.Storage.BlobCreated"}]`,
		"a path with a NUL":    `{"eventType":"Microsoft.Storage.BlobDeleted","subject":"/blobServices/default/containers/cams/blobs/a\u0000b","data":{}}`,
	} {
		if n, err := decode(c, []byte(body)); err == nil || errors.Is(err, errIgnored) {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
}
