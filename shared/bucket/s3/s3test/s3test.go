// Package s3test runs S3 servers to test against, over real HTTP and behind a layer that can be told to fail.
//
// There are two. Gateway is versitygw, a server for production in a process of its own, which checks signatures and
// checksums and keeps objects as files. Fake is gofakes3 in the test's own process, which takes any name, and minds no
// conditions of reads and no checksums, as some servers in the wild.
package s3test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"millrace/shared/bucket/faulttest"
)

// The credentials and the region of every server here.
const (
	AccessKeyID     = "millrace"
	SecretAccessKey = "a secret of the tests"
	Region          = "us-east-1"
)

// Server is a running storage. What its methods do goes past the layer of faults.
type Server struct {
	// URL is what goes into s3.Config.Endpoint: http://127.0.0.1:port.
	URL string

	*faulttest.Layer
	owner *s3.Client
}

// serve puts a server on the network, behind a layer.
func serve(t testing.TB, next http.Handler) *Server {
	t.Helper()
	layer := faulttest.New(next)
	front, back := httptest.NewServer(layer), httptest.NewServer(next)
	t.Cleanup(func() {
		for _, s := range []*httptest.Server{front, back} {
			s.CloseClientConnections()
			s.Close()
		}
	})
	owner := s3.New(s3.Options{
		Region: Region, BaseEndpoint: aws.String(back.URL), UsePathStyle: true,
		Credentials:                credentials.NewStaticCredentialsProvider(AccessKeyID, SecretAccessKey, ""),
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
	})
	return &Server{URL: front.URL, Layer: layer, owner: owner}
}

// CreateBucket makes a bucket that keeps nothing but the live version of each object.
func (s *Server) CreateBucket(t testing.TB, name string) {
	t.Helper()
	if _, err := s.owner.CreateBucket(context.Background(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("create bucket %s: %v", name, err)
	}
}

// KeepVersions has a bucket keep old versions from now on.
func (s *Server) KeepVersions(t testing.TB, name string) {
	t.Helper()
	_, err := s.owner.PutBucketVersioning(context.Background(), &s3.PutBucketVersioningInput{
		Bucket: &name, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	})
	if err != nil {
		t.Fatalf("keep versions in %s: %v", name, err)
	}
}

// Put uploads an object, replacing the one that was there, and returns its version id, "" for none.
func (s *Server) Put(t testing.TB, bucket, key string, data []byte) string {
	t.Helper()
	return s.PutSummed(t, bucket, key, data, types.ChecksumAlgorithmCrc32c)
}

// PutSummed is Put with another checksum.
func (s *Server) PutSummed(t testing.TB, bucket, key string, data []byte, sum types.ChecksumAlgorithm) string {
	t.Helper()
	out, err := s.owner.PutObject(context.Background(), &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: bytes.NewReader(data), ContentType: aws.String("video/mp4"),
		ChecksumAlgorithm: sum,
	})
	if err != nil {
		t.Fatalf("put %q into %s: %v", key, bucket, err)
	}
	return aws.ToString(out.VersionId)
}

// Delete removes an object. Nothing there is no error.
func (s *Server) Delete(t testing.TB, bucket, key string) {
	t.Helper()
	_, err := s.owner.DeleteObject(context.Background(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &key})
	var answer smithy.APIError
	if err != nil && !(errors.As(err, &answer) && answer.ErrorCode() == "NoSuchKey") {
		t.Fatalf("delete %q from %s: %v", key, bucket, err)
	}
}

// Get returns an object's bytes, and whether there is one.
func (s *Server) Get(t testing.TB, bucket, key string) ([]byte, bool) {
	t.Helper()
	out, err := s.owner.GetObject(context.Background(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return nil, false
	}
	defer out.Body.Close()
	var data bytes.Buffer
	if _, err := data.ReadFrom(out.Body); err != nil {
		t.Fatalf("get %q from %s: %v", key, bucket, err)
	}
	return data.Bytes(), true
}

// Uploads returns how many uploads in parts are under way in a bucket.
func (s *Server) Uploads(t testing.TB, bucket string) int {
	t.Helper()
	out, err := s.owner.ListMultipartUploads(context.Background(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		t.Fatalf("list the uploads of %s: %v", bucket, err)
	}
	return len(out.Uploads)
}

// BucketName makes a bucket's name of a test's.
func BucketName(t testing.TB) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(t.Name()))
	return strings.Trim(name[max(0, len(name)-50):], "-")
}
