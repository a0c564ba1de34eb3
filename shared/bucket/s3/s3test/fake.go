package s3test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// Fake runs gofakes3 with these buckets until the test ends. Of its own a listing cannot show every name; here it does so
// as S3 does, in the encoding of forms.
func Fake(t testing.TB, buckets ...string) *Server {
	t.Helper()
	fake := gofakes3.New(encoding{s3mem.New()}).Server()
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header { // it would take these for metadata, and show them again as if it knew
			if strings.HasPrefix(name, "X-Amz-Checksum-") || strings.HasPrefix(name, "X-Amz-Sdk-") {
				r.Header.Del(name)
			}
		}
		rec := httptest.NewRecorder()
		fake.ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		if r.URL.Query().Get("encoding-type") == "url" && r.URL.Query().Has("list-type") {
			body = bytes.Replace(body, []byte("<MaxKeys>"), []byte("<EncodingType>url</EncodingType><MaxKeys>"), 1)
		}
		for key, values := range rec.Header() {
			w.Header()[key] = values
		}
		if r.Method != http.MethodHead {
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
	}))
	for _, name := range buckets {
		s.CreateBucket(t, name)
	}
	return s
}

// encoding lists names as they look in a form.
type encoding struct{ *s3mem.Backend }

func (e encoding) ListBucket(name string, prefix *gofakes3.Prefix, page gofakes3.ListBucketPage) (*gofakes3.ObjectList, error) {
	list, err := e.Backend.ListBucket(name, prefix, page)
	if err != nil {
		return nil, err
	}
	for i, o := range list.Contents {
		encoded := *o
		encoded.Key = url.QueryEscape(o.Key)
		list.Contents[i] = &encoded
	}
	for i, p := range list.CommonPrefixes {
		list.CommonPrefixes[i].Prefix = url.QueryEscape(p.Prefix)
	}
	return list, nil
}
