package gcs_test

import (
	"context"
	"errors"
	"net/url"
	"testing"

	"cloud.google.com/go/storage"
	"google.golang.org/api/option"

	"millrace/shared/bucket/buckettest"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/gcs/gcstest"
)

// MILLRACE_TEST_GCS=gs://BUCKET, with the application default credentials.
func TestCloud(t *testing.T) {
	buckettest.Cloud(t, "MILLRACE_TEST_GCS", buckettest.Features{Checksums: true, Copies: true}, func(t *testing.T, place *url.URL) buckettest.Fixture {
		s := &gcstest.Server{URL: place.Query().Get("endpoint")}
		var opts []option.ClientOption
		if s.URL != "" {
			opts = append(opts, option.WithEndpoint(s.URL+"/storage/v1/"), option.WithoutAuthentication())
		}
		owner, err := storage.NewClient(t.Context(), opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { owner.Close() })
		object := func(path string) *storage.ObjectHandle {
			return owner.Bucket(place.Host).Object(path).Retryer(storage.WithPolicy(storage.RetryAlways))
		}
		return buckettest.Fixture{
			Source:  source(t, s, gcs.Config{Bucket: place.Host}),
			Library: library(t, s, gcs.Config{Bucket: place.Host, Prefix: "library"}),
			Write: func(t testing.TB, path string, data []byte) {
				w := object(path).NewWriter(context.Background())
				w.ContentType = "video/mp4"
				_, err := w.Write(data)
				if err := errors.Join(err, w.Close()); err != nil {
					t.Fatalf("put %q: %v", path, err)
				}
			},
			Remove: func(t testing.TB, path string) {
				if err := object(path).Delete(context.Background()); err != nil && !errors.Is(err, storage.ErrObjectNotExist) {
					t.Fatalf("delete %q: %v", path, err)
				}
			},
		}
	})
}
