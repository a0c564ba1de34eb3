package s3_test

import (
	"bytes"
	"cmp"
	"context"
	"net/url"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"millrace/shared/bucket/buckettest"
	"millrace/shared/bucket/s3"
)

// MILLRACE_TEST_S3=s3://BUCKET?region=REGION, and endpoint=URL for another server, with the credentials of the environment.
func TestCloud(t *testing.T) {
	t.Parallel()
	features := buckettest.Features{Checksums: true, Copies: true, BriefListing: true}
	buckettest.Cloud(t, "MILLRACE_TEST_S3", features, func(t *testing.T, place *url.URL) buckettest.Fixture {
		name, endpoint := place.Host, place.Query().Get("endpoint")
		loaded, err := config.LoadDefaultConfig(t.Context(), config.WithRegion(cmp.Or(place.Query().Get("region"), "us-east-1")))
		if err != nil {
			t.Fatal(err)
		}
		owner := sdk.NewFromConfig(loaded, func(o *sdk.Options) {
			if endpoint != "" {
				o.BaseEndpoint, o.UsePathStyle = &endpoint, true
			}
		})
		keys, err := loaded.Credentials.Retrieve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		cfg := s3.Config{
			Bucket: name, Region: loaded.Region, Endpoint: endpoint, PathStyle: endpoint != "",
			AccessKeyID: keys.AccessKeyID, SecretAccessKey: keys.SecretAccessKey,
		}
		if keys.SessionToken != "" { // which the driver takes from the environment alone
			cfg.AccessKeyID, cfg.SecretAccessKey = "", ""
		}
		src, err := s3.NewSource(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Prefix = "library"
		lib, err := s3.NewLibrary(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close(); lib.Close() })
		return buckettest.Fixture{
			Source: src, Library: lib,
			Write: func(t testing.TB, path string, data []byte) {
				_, err := owner.PutObject(context.Background(), &sdk.PutObjectInput{
					Bucket: &name, Key: &path, Body: bytes.NewReader(data), ContentType: aws.String("video/mp4"), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
				})
				if err != nil {
					t.Fatalf("put %q: %v", path, err)
				}
			},
			Remove: func(t testing.TB, path string) {
				if _, err := owner.DeleteObject(context.Background(), &sdk.DeleteObjectInput{Bucket: &name, Key: &path}); err != nil {
					t.Fatalf("delete %q: %v", path, err)
				}
			},
		}
	})
}
