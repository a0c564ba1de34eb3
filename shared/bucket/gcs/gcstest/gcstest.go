// Package gcstest runs a Google Cloud Storage to test against, in the test's own process and over real HTTP.
//
// It is fake-gcs-server behind a layer of our own, which adds what that server does not do and a driver must be able to
// rely on (conditions on every write, checksums of uploads in pieces, the words Google uses for what is missing), and
// which can be told to fail. See faulttest.
package gcstest

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"

	"github.com/fsouza/fake-gcs-server/fakestorage"

	"millrace/shared/bucket/faulttest"
)

// Server is a running storage.
type Server struct {
	// URL is what goes into gcs.Config.Endpoint: http://127.0.0.1:port.
	URL string

	// Page is how many objects stand on one page of a listing. To be set before the first request; Start sets it to
	// Google's 1000.
	Page int

	// Rewrites is in how many requests a copy comes to its end, as those of large objects to other places do. To be set
	// before the first request; 0: in one.
	Rewrites int

	*faulttest.Layer

	http *httptest.Server
	fake *fakestorage.Server

	writing sync.Mutex // one write at a time, so that a condition holds while its write happens

	mu      sync.Mutex
	uploads map[string]*upload // by upload id
	copies  map[string]part    // by token
	closed  bool               // only to bearers of a token
	revoked bool
	grpc    string // where gRPC is spoken, if it is
}

// Start runs a storage with these buckets until the test ends.
func Start(t testing.TB, buckets ...string) *Server {
	t.Helper()
	fake, err := fakestorage.NewServerWithOptions(fakestorage.Options{NoListener: true})
	if err != nil {
		t.Fatalf("start storage: %v", err)
	}
	s := &Server{Page: 1000, fake: fake, uploads: map[string]*upload{}, copies: map[string]part{}}
	s.Layer = faulttest.New(http.HandlerFunc(s.serve))
	s.http = httptest.NewServer(s.Layer)
	s.URL = s.http.URL
	for _, name := range buckets {
		s.CreateBucket(name)
	}
	t.Cleanup(func() {
		s.http.CloseClientConnections()
		s.http.Close()
		fake.Stop()
	})
	return s
}

// CreateBucket makes a bucket that keeps nothing but the live version of each object.
func (s *Server) CreateBucket(name string) {
	s.fake.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: name})
}

// CreateVersionedBucket makes a bucket that keeps the old versions of each object.
func (s *Server) CreateVersionedBucket(name string) {
	s.fake.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: name, VersioningEnabled: true})
}

// Object is what a bucket's owner uploads.
type Object struct {
	Bucket, Name    string
	Data            []byte
	ContentType     string // default video/mp4
	ContentEncoding string
}

// Put uploads an object, replacing the one that was there, and returns its generation.
func (s *Server) Put(bucket, name string, data []byte) int64 {
	return s.PutObject(Object{Bucket: bucket, Name: name, Data: data})
}

// PutObject is Put with more to say.
func (s *Server) PutObject(o Object) int64 {
	if o.ContentType == "" {
		o.ContentType = "video/mp4"
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	s.fake.CreateObject(fakestorage.Object{
		ObjectAttrs: fakestorage.ObjectAttrs{
			BucketName: o.Bucket, Name: o.Name, ContentType: o.ContentType, ContentEncoding: o.ContentEncoding,
		},
		Content: bytes.Clone(o.Data),
	})
	return s.generation(o.Bucket, o.Name)
}

// Delete removes an object. Nothing there is no error.
func (s *Server) Delete(bucket, name string) {
	s.writing.Lock()
	defer s.writing.Unlock()
	path := "/storage/v1/b/" + bucket + "/o/" + url.PathEscape(name)
	s.fake.HTTPHandler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodDelete, path, nil))
}

// Get returns an object's bytes, and whether there is one.
func (s *Server) Get(bucket, name string) (data []byte, contentEncoding string, ok bool) {
	o, err := s.fake.GetObject(bucket, name)
	return o.Content, o.ContentEncoding, err == nil
}

// generation is that of the live version, or 0.
func (s *Server) generation(bucket, name string) int64 {
	o, err := s.fake.GetObjectStreaming(bucket, name)
	if err != nil {
		return 0
	}
	defer o.Close()
	return o.Generation
}
