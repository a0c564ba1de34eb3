package gcs_test

import (
	"testing"

	"millrace/shared/bucket/buckettest"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/gcs/gcstest"
)

func TestSuite(t *testing.T) {
	buckettest.Suite{
		New: func(t *testing.T) buckettest.Fixture {
			s := gcstest.Start(t, "source", "library")
			s.Page = 100
			return buckettest.Fixture{
				Source:  source(t, s, gcs.Config{Bucket: "source"}),
				Write:   func(_ testing.TB, path string, data []byte) { s.Put("source", path, data) },
				Remove:  func(_ testing.TB, path string) { s.Delete("source", path) },
				Library: library(t, s, gcs.Config{Bucket: "library", Prefix: "media"}),
			}
		},
		// The fake goes through all objects to find one, and copies an object several times. Chunks are of 1 MiB here.
		Features: buckettest.Features{Checksums: true, Copies: true, Many: 210, Large: 2_500_000},
	}.Run(t)
}

func source(t testing.TB, s *gcstest.Server, cfg gcs.Config) *gcs.Source {
	t.Helper()
	cfg.Endpoint = s.URL
	src, err := gcs.NewSource(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func library(t testing.TB, s *gcstest.Server, cfg gcs.Config) *gcs.Library {
	t.Helper()
	cfg.Endpoint = s.URL
	lib, err := gcs.NewLibrary(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lib.Close() })
	return lib
}
