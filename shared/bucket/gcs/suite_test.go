package gcs_test

import (
	"strings"
	"testing"

	"millrace/shared/bucket/buckettest"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/gcs/gcstest"
)

func TestSuite(t *testing.T) {
	// The fake goes through all objects to find one, and copies an object several times. Chunks are of 1 MiB here.
	features := buckettest.Features{Checksums: true, Copies: true, Many: 210, Large: 2_500_000}
	if overGRPC(t) {
		features.Many, features.Large = 110, 1_200_000
	}
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
		Features: features,
	}.Run(t)
}

// overGRPC reports whether a test is one of TestGRPC's.
func overGRPC(t testing.TB) bool { return strings.HasPrefix(t.Name(), "TestGRPC/") }

func source(t testing.TB, s *gcstest.Server, cfg gcs.Config) *gcs.Source {
	t.Helper()
	if cfg.Endpoint = s.URL; overGRPC(t) {
		cfg.GRPC, cfg.Endpoint = true, s.GRPC(t)
	}
	src, err := gcs.NewSource(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func library(t testing.TB, s *gcstest.Server, cfg gcs.Config) *gcs.Library {
	t.Helper()
	if cfg.Endpoint = s.URL; overGRPC(t) {
		cfg.GRPC, cfg.Endpoint = true, s.GRPC(t)
	}
	lib, err := gcs.NewLibrary(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lib.Close() })
	return lib
}
