package gcs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bucket/gcs"
	"millrace/shared/bucket/gcs/gcstest"
)

// small goes out in one request, large in pieces.
var sizes = map[string]int{"small": 1000, "large": 2_500_000}

func TestPutWhoseAnswerIsLost(t *testing.T) {
	for name, size := range sizes {
		s := gcstest.Start(t, "l")
		lib := library(t, s, gcs.Config{Bucket: "l"})
		body := data(size, 1)
		last := func(r *http.Request) bool {
			return gcstest.Uploads(r) && !strings.HasSuffix(r.Header.Get("Content-Range"), "/*") &&
				(name == "small" || gcstest.Pieces(r))
		}
		s.Inject(1, last, gcstest.Lost)
		stored, err := lib.Put(t.Context(), "aa/bb", bytes.NewReader(body), want(body))
		if err != nil || stored.CRC32C != sum(body) {
			t.Errorf("%s: %+v, %v", name, stored, err)
		}
	}
}

func TestPutOvertaken(t *testing.T) {
	for name, size := range sizes {
		body := data(size, 1)
		for _, tt := range []struct {
			name  string
			other []byte
			want  bucket.Want
			ok    bool
		}{
			{"by the same", body, want(body), true},
			{"by the same, unannounced", body, bucket.Want{Size: -1}, true},
			{"by other bytes", data(size, 2), want(body), false},
			{"by other bytes, unannounced", data(size, 2), bucket.Want{Size: -1}, false},
		} {
			s := gcstest.Start(t, "l")
			lib := library(t, s, gcs.Config{Bucket: "l"})
			s.Inject(1, gcstest.Uploads, gcstest.Before(func() { s.Put("l", "aa/bb", tt.other) }))
			stored, err := lib.Put(t.Context(), "aa/bb", bytes.NewReader(body), tt.want)
			if (err == nil) != tt.ok || bucket.Permanent(err) {
				t.Errorf("%s %s: %v", name, tt.name, err)
			}
			if err == nil && (stored.Size != int64(size) || stored.CRC32C != sum(body)) {
				t.Errorf("%s %s: %+v", name, tt.name, stored)
			}
			if got, _, _ := s.Get("l", "aa/bb"); !bytes.Equal(got, tt.other) {
				t.Errorf("%s %s: the other's bytes were replaced", name, tt.name)
			}
			if !tt.ok { // it may be put again
				if _, err := lib.Put(t.Context(), "aa/bb", bytes.NewReader(body), tt.want); err != nil {
					t.Errorf("%s %s: once more: %v", name, tt.name, err)
				}
			}
		}
	}
}

// TestPutCorrupted changes bytes on their way to the server, which has to notice by our checksum.
func TestPutCorrupted(t *testing.T) {
	for name, size := range sizes {
		for _, announced := range []bool{true, false} {
			s := gcstest.Start(t, "l")
			lib := library(t, s, gcs.Config{Bucket: "l"})
			body := bytes.Repeat([]byte("swordfish"), size/9)
			s.Inject(-1, gcstest.Uploads, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				sent, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(bytes.Replace(sent, []byte("swordfish"), []byte("SWORDFISH"), 1)))
				next.ServeHTTP(w, r)
			})
			w := want(body)
			if !announced {
				w = bucket.Want{Size: w.Size}
			}
			_, err := lib.Put(t.Context(), "aa/bb", bytes.NewReader(body), w)
			if !errors.Is(err, bucket.ErrChecksum) {
				t.Errorf("%s, announced %v: %v", name, announced, err)
			}
			if _, _, ok := s.Get("l", "aa/bb"); ok {
				t.Errorf("%s, announced %v: it was stored", name, announced)
			}
		}
	}
}

func TestPutRepeatsPieces(t *testing.T) {
	s := gcstest.Start(t, "l")
	lib := library(t, s, gcs.Config{Bucket: "l"})
	body := data(sizes["large"], 1)
	s.Inject(2, gcstest.Pieces, gcstest.Status(503, "backendError", ""))
	if _, err := lib.Put(t.Context(), "aa/bb", bytes.NewReader(body), want(body)); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := s.Get("l", "aa/bb"); !bytes.Equal(got, body) {
		t.Errorf("stored %d other bytes", len(got))
	}

	before := s.Requests(gcstest.Pieces)
	s.Inject(-1, gcstest.Pieces, gcstest.Broken)
	_, err := lib.Put(t.Context(), "aa/cc", bytes.NewReader(body), want(body))
	if err == nil || bucket.Permanent(err) || s.Requests(gcstest.Pieces)-before > 3 {
		t.Errorf("%v after %d attempts", err, s.Requests(gcstest.Pieces)-before)
	}
	if err != nil && strings.Contains(err.Error(), "upload_id") {
		t.Errorf("the error gives away the upload: %v", err)
	}
	s.Heal()
	s.Inject(-1, gcstest.Uploads, gcstest.Busy(429, 5*time.Second))
	_, err = lib.Put(t.Context(), "aa/cc", bytes.NewReader(body), want(body))
	if !errors.Is(err, bucket.ErrThrottled) || bucket.RetryAfter(err) != 5*time.Second {
		t.Errorf("throttled: %v", err)
	}
	s.Heal()
	s.Inject(-1, gcstest.Uploads, gcstest.Status(403, "forbidden", "no"))
	if _, err = lib.Put(t.Context(), "aa/cc", bytes.NewReader(body), want(body)); !errors.Is(err, bucket.ErrPermission) {
		t.Errorf("not allowed: %v", err)
	}
}

func TestLibraryPrefix(t *testing.T) {
	s := gcstest.Start(t, "l")
	s.Put("l", "media2/x", nil)
	s.Put("l", "media/not a key", nil)
	lib := library(t, s, gcs.Config{Bucket: "l", Prefix: "/media/"})
	stored, err := lib.Put(t.Context(), "aa/bb", strings.NewReader("x"), bucket.Want{Size: 1, ContentType: "video/mp4"})
	if err != nil || stored.URI != "gs://l/media/aa/bb" {
		t.Errorf("%+v, %v", stored, err)
	}
	for obj, err := range lib.List(t.Context()) {
		if err != nil || obj.Path != "aa/bb" || obj.ContentType != "video/mp4" {
			t.Errorf("lists %+v, %v", obj, err)
		}
	}
}

func TestCopyFromElsewhere(t *testing.T) {
	s, other := gcstest.Start(t, "b", "l"), gcstest.Start(t, "b")
	other.Put("b", "a.mp4", []byte("x"))
	s.Put("b", "a.mp4", []byte("x"))
	lib := library(t, s, gcs.Config{Bucket: "l"})
	far := source(t, other, gcs.Config{Bucket: "b"})
	if _, err := lib.CopyFrom(t.Context(), "aa/bb", far, stat(t, far, "a.mp4"), nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("from another endpoint: %v", err)
	}
	near := source(t, s, gcs.Config{Bucket: "b"})
	obj := stat(t, near, "a.mp4")
	for name, match := range map[string]gcstest.Match{"may not read": gcstest.Stats, "may not copy": gcstest.Rewrites} {
		s.Heal()
		s.Inject(-1, match, gcstest.Status(403, "forbidden", "no"))
		_, err := lib.CopyFrom(t.Context(), "aa/bb", near, obj, nil)
		if bucket.ClassOf(err) != bucket.ClassUnsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCopyFromRaces(t *testing.T) {
	s := gcstest.Start(t, "b", "l")
	body, key := data(1000, 1), "aa/bb"
	s.Put("b", "a.mp4", body)
	src, lib := source(t, s, gcs.Config{Bucket: "b"}), library(t, s, gcs.Config{Bucket: "l"})
	obj := stat(t, src, "a.mp4")
	copyFrom := func() (int64, error) {
		moved := int64(0)
		_, err := lib.CopyFrom(t.Context(), key, src, obj, &bucket.Copying{Moved: func(n int64) { moved += n }})
		return moved, err
	}

	s.Inject(1, gcstest.Rewrites, gcstest.Lost)
	if _, err := copyFrom(); err != nil {
		t.Errorf("after a lost answer: %v", err)
	}
	s.Inject(1, gcstest.Rewrites, gcstest.Status(503, "backendError", ""))
	if moved, err := copyFrom(); err != nil || moved != 1000 {
		t.Errorf("over an existing copy: %d bytes, %v", moved, err)
	}
	s.Inject(1, gcstest.Rewrites, gcstest.Before(func() { s.Put("l", key, []byte("other")) }))
	if _, err := copyFrom(); err == nil || bucket.Permanent(err) {
		t.Errorf("overtaken: %v", err)
	}
	s.Inject(1, gcstest.Rewrites, gcstest.Before(func() { s.Put("b", "a.mp4", data(1000, 2)) }))
	if _, err := copyFrom(); !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("overwritten meanwhile: %v", err)
	}
	obj = stat(t, src, "a.mp4")
	s.Inject(1, gcstest.Rewrites, gcstest.Before(func() { s.Delete("b", "a.mp4") }))
	if _, err := copyFrom(); !errors.Is(err, bucket.ErrNotExist) {
		t.Errorf("deleted meanwhile: %v", err)
	}
	if got, _, _ := s.Get("l", key); string(got) != "other" {
		t.Errorf("the library holds %d bytes", len(got))
	}
}

// A copy that takes several requests goes on where another process was killed, and starts again where the storage has
// forgotten it.
func TestCopyGoesOn(t *testing.T) {
	s := gcstest.Start(t, "b", "l")
	s.Rewrites = 4
	body := data(1_000_000, 1)
	s.Put("b", "a.mp4", body)
	src := source(t, s, gcs.Config{Bucket: "b"})
	obj := stat(t, src, "a.mp4")

	killed, kill := context.WithCancel(t.Context())
	first := &bucket.Copying{Moved: func(int64) { kill() }}
	if _, err := library(t, s, gcs.Config{Bucket: "l"}).CopyFrom(killed, "aa/bb", src, obj, first); !errors.Is(err, context.Canceled) || first.Mark == "" {
		t.Fatalf("killed at %q: %v", first.Mark, err)
	}
	moved := int64(0)
	second := &bucket.Copying{Mark: first.Mark, Moved: func(n int64) { moved += n }}
	if _, err := library(t, s, gcs.Config{Bucket: "l"}).CopyFrom(t.Context(), "aa/bb", src, obj, second); err != nil || moved != obj.Size {
		t.Errorf("%d bytes, %v", moved, err)
	}
	if n, begun := s.Requests(gcstest.Rewrites), s.Requests(gcstest.Begun); n != 4 || begun != 1 {
		t.Errorf("%d requests, %d of them from the start", n, begun)
	}
	s.Forget()
	if _, err := library(t, s, gcs.Config{Bucket: "l"}).CopyFrom(t.Context(), "aa/cc", src, obj, &bucket.Copying{Mark: first.Mark}); err != nil {
		t.Errorf("forgotten: %v", err)
	}
	for _, key := range []string{"aa/bb", "aa/cc"} {
		if got, _, _ := s.Get("l", key); !bytes.Equal(got, body) {
			t.Errorf("%s has %d bytes", key, len(got))
		}
	}
}
