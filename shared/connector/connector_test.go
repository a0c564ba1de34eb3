package connector

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace/shared/bucket"
	"millrace/shared/store"
)

func TestCheckDir(t *testing.T) {
	root := t.TempDir()
	allowed, outside := filepath.Join(root, "drops"), filepath.Join(root, "secrets")
	for _, d := range []string{filepath.Join(allowed, "sub"), outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(allowed, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(allowed, "way-out")); err != nil {
		t.Fatal(err)
	}
	o, err := New(Config{AllowDirs: []string{allowed}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		allowed:                              nil,
		filepath.Join(allowed, "sub"):        nil,
		filepath.Join(allowed, "sub/.."):     nil,
		outside:                              ErrNotAllowed,
		filepath.Join(allowed, "../secrets"): ErrNotAllowed,
		filepath.Join(allowed, "way-out"):    ErrNotAllowed,
		filepath.Join(outside, "nothing"):    ErrNotAllowed,
		filepath.Join(allowed, "nothing"):    bucket.ErrNoBucket,
		filepath.Join(allowed, "file"):       bucket.ErrNoBucket,
		allowed + "-2":                       ErrNotAllowed,
		"/":                                  ErrNotAllowed,
	} {
		if _, err := o.CheckDir(path); !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if _, err := o.CheckDir("drops"); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("relative: %v", err)
	}
	if none, err := New(Config{}, nil); err != nil {
		t.Error(err)
	} else if _, err := none.CheckDir(allowed); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("without --allow-dir: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	o, err := New(Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Open(t.Context(), store.Connector{ID: "c", Provider: "ftp"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("unknown provider: %v", err)
	}
	for _, spec := range []string{
		"ftp://bucket", "gs://", "s3://", "s3://b?colour=red", "s3://b?path-style=perhaps", "az://", "az://account", "az://account/",
	} {
		if _, err := OpenLibrary(t.Context(), LibraryConfig{Spec: spec}); err == nil || !strings.Contains(err.Error(), spec) {
			t.Errorf("library %q: %v", spec, err)
		}
	}
	if lib, err := OpenLibrary(t.Context(), LibraryConfig{Spec: "none"}); lib != nil || err != nil {
		t.Errorf("library none: %v, %v", lib, err)
	}
}

// The machine's own credentials are the operator's: no connector reads with them.
func TestAzureWithoutCredentials(t *testing.T) {
	o, err := New(Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := store.Connector{ID: "c", Provider: "azure", StorageAccount: "a", Container: "c"}
	if _, err := o.Open(t.Context(), c); !errors.Is(err, bucket.ErrCredentials) {
		t.Errorf("open: %v", err)
	}
	if _, err := o.Writer(t.Context(), c); !errors.Is(err, bucket.ErrCredentials) {
		t.Errorf("write: %v", err)
	}
}
