package azure_test

import (
	"testing"

	"millrace/shared/bucket/azure"
	"millrace/shared/bucket/azure/azuretest"
	"millrace/shared/bucket/buckettest"
)

func TestSuite(t *testing.T) {
	buckettest.Suite{
		New: func(t *testing.T) buckettest.Fixture {
			s := azuretest.Start(t, "source", "library")
			s.Page = 100
			return buckettest.Fixture{
				Source:  source(t, s, azure.Config{Container: "source"}),
				Write:   func(_ testing.TB, path string, data []byte) { s.Put("source", path, data) },
				Remove:  func(_ testing.TB, path string) { s.Delete("source", path) },
				Library: library(t, s, azure.Config{Container: "library", Prefix: "media"}),
			}
		},
		// Blocks are of 1 MiB here.
		Features: buckettest.Features{Newlines: true, Slashes: true, Copies: true, Many: 210, Large: 2_500_000},
	}.Run(t)
}

func with(s *azuretest.Server, cfg azure.Config) azure.Config {
	cfg.Account, cfg.Endpoint = s.Account, s.URL
	if cfg.Credentials == (azure.Credentials{}) {
		cfg.Credentials.AccountKey = s.Key
	}
	return cfg
}

func source(t testing.TB, s *azuretest.Server, cfg azure.Config) *azure.Source {
	t.Helper()
	src, err := azure.NewSource(with(s, cfg))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func library(t testing.TB, s *azuretest.Server, cfg azure.Config) *azure.Library {
	t.Helper()
	lib, err := azure.NewLibrary(with(s, cfg))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lib.Close() })
	return lib
}
