package buckettest

import (
	"context"
	"net/url"
	"os"
	"testing"

	"millrace/shared/bucket"
)

// Cloud runs the suite against a real bucket, which an environment variable names: gs://BUCKET, with endpoint and region in
// the query where that is needed. The test is skipped if it is not set.
//
// The bucket has to be empty, and is again after each test; anything in it before is taken for somebody's, and left.
// Credentials are those of the environment. open is called once for each test.
func Cloud(t *testing.T, variable string, has Features, open func(t *testing.T, place *url.URL) Fixture) {
	spec := os.Getenv(variable)
	if spec == "" {
		t.Skipf("%s is not set: it names an empty bucket to test with", variable)
	}
	place, err := url.Parse(spec)
	if err != nil || place.Host == "" {
		t.Fatalf("%s=%q: want SCHEME://BUCKET", variable, spec)
	}
	Suite{Features: has, New: func(t *testing.T) Fixture {
		f := open(t, place)
		if found := paths(t, f.Source, bucket.ListOptions{}); len(found) > 0 {
			t.Fatalf("%s is not empty: it has %q. The tests want a bucket of their own", spec, found[0])
		}
		t.Cleanup(func() {
			for obj, err := range f.Source.List(context.Background(), bucket.ListOptions{}) {
				if err != nil {
					t.Fatalf("empty %s: %v", spec, err)
				}
				f.Remove(t, obj.Path)
			}
		})
		return f
	}}.Run(t)
}
