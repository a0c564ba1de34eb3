package s3_test

import (
	"testing"

	"millrace/shared/bucket/buckettest"
	"millrace/shared/bucket/s3"
	"millrace/shared/bucket/s3/s3test"
)

func TestSuite(t *testing.T) {
	t.Parallel()
	server := s3test.Gateway(t)
	buckettest.Suite{
		New: func(t *testing.T) buckettest.Fixture { return fixture(t, server) },
		// The server keeps objects as files, and shows names in XML, which has no place for control characters.
		Features: buckettest.Features{
			Files: true, Checksums: true, Copies: true, BriefListing: true, PlainNames: true, MergesSlash: true, Large: 10 << 20,
		},
	}.Run(t)
}

// A server that minds neither conditions nor checksums, and takes any name. Uploads in parts are tried with the other.
func TestSuiteOfACarelessServer(t *testing.T) {
	t.Parallel()
	server := s3test.Fake(t)
	buckettest.Suite{
		New:      func(t *testing.T) buckettest.Fixture { return fixture(t, server) },
		Features: buckettest.Features{Newlines: true, BriefListing: true, Large: 1 << 20},
	}.Run(t)
}

func fixture(t *testing.T, server *s3test.Server) buckettest.Fixture {
	name := s3test.BucketName(t)
	server.CreateBucket(t, name)
	server.CreateBucket(t, name+"-library")
	return buckettest.Fixture{
		Source:  source(t, server, name),
		Write:   func(t testing.TB, path string, data []byte) { server.Put(t, name, path, data) },
		Remove:  func(t testing.TB, path string) { server.Delete(t, name, path) },
		Library: library(t, server, s3.Config{Bucket: name + "-library", Prefix: "media"}),
	}
}

func access(s *s3test.Server, cfg s3.Config) s3.Config {
	cfg.Endpoint, cfg.AccessKeyID, cfg.SecretAccessKey = s.URL, s3test.AccessKeyID, s3test.SecretAccessKey
	return cfg
}

func source(t testing.TB, s *s3test.Server, name string) *s3.Source {
	t.Helper()
	src, err := s3.NewSource(t.Context(), access(s, s3.Config{Bucket: name}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func library(t testing.TB, s *s3test.Server, cfg s3.Config) *s3.Library {
	t.Helper()
	lib, err := s3.NewLibrary(t.Context(), access(s, cfg))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lib.Close() })
	return lib
}
