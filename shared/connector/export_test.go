package connector

import (
	"errors"
	"path/filepath"
	"testing"

	"millrace/shared/secret"
	"millrace/shared/store"
)

// What a record says of its driver holds for writing too.
func TestWriterHasDriver(t *testing.T) {
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
		w, err := o.Writer(t.Context(), c)
		if err == nil {
			_ = w.Close()
		}
		if unsupported := errors.Is(err, errors.ErrUnsupported); unsupported == c.HasDriver() || (err != nil) != unsupported {
			t.Errorf("%s: has a driver %v, opening it: %v", provider, c.HasDriver(), err)
		}
	}
}
