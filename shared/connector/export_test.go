package connector

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace/shared/secret"
	"millrace/shared/store"
)

// Whatever provider a connector may have, it can be read and written.
func TestEveryProvider(t *testing.T) {
	dir := t.TempDir()
	keeper, err := secret.Load(filepath.Join(dir, "key"), true)
	if err != nil {
		t.Fatal(err)
	}
	o, err := New(Config{AllowDirs: []string{dir}, Keeper: keeper, MachineCredentials: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, provider := range []string{"dir", "gcs", "s3", "azure"} {
		c := store.Connector{ID: "c", Provider: provider, Path: dir, Bucket: "b", Region: "eu-central-1", StorageAccount: "a", Container: "c"}
		switch provider {
		case "gcs":
			c.EndpointURL = "http://127.0.0.1:1" // or it would look for the machine's own credentials
		case "azure":
			if c.Credentials, err = keeper.Seal([]byte(`{"account_key":"a2V5"}`), "c/credentials"); err != nil {
				t.Fatal(err)
			}
		}
		if src, err := o.Open(t.Context(), c); err != nil {
			t.Errorf("read %s: %v", provider, err)
		} else {
			_ = src.Close()
		}
		if w, err := o.Writer(t.Context(), c); err != nil {
			t.Errorf("write %s: %v", provider, err)
		} else {
			_ = w.Close()
		}
	}
	if _, err := o.Writer(t.Context(), store.Connector{ID: "c", Provider: "ftp"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("unknown provider: %v", err)
	}
}

// What tries to write leaves nothing behind, and says what is in its way.
func TestTryWriting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o, err := New(Config{AllowDirs: []string{dir}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := store.Connector{ID: "c", Provider: "dir", Path: dir, ExportBasePath: "out/here"}
	key, left, err := o.TryWriting(t.Context(), c)
	if err != nil || left || !strings.HasPrefix(key, "out/here/millrace-test-") {
		t.Errorf("%q, left %v, %v", key, left, err)
	}
	if files, err := os.ReadDir(filepath.Join(dir, "out/here")); err != nil || len(files) != 0 {
		t.Errorf("there are %v, %v", files, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.ExportBasePath = "file"
	if _, _, err := o.TryWriting(t.Context(), c); err == nil {
		t.Error("below a file there is room")
	}
}
