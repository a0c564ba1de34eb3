package secret_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"millrace/shared/secret"
)

func rotate(t *testing.T, path string, step secret.Step, want bool) {
	t.Helper()
	changed, err := secret.Rotate(path, step)
	if err != nil || changed != want {
		t.Fatalf("%s: changed %v, %v", step, changed, err)
	}
}

// A keeper that runs meanwhile opens everything at each step, and seals with the new key from the moment it counts.
func TestRotate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret.key")
	k := load(t, path)
	seal := func() string {
		t.Helper()
		s, err := k.Seal([]byte("hush"), aad)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	opens := func(k *secret.Keeper, sealed ...string) {
		t.Helper()
		for i, s := range sealed {
			if got, err := k.Open(s, aad); err != nil || string(got) != "hush" {
				t.Errorf("secret %d: %q, %v", i, got, err)
			}
		}
	}
	derived := k.Derive("links")
	old := seal()
	other := load(t, path) // another process, which seals nothing
	for _, step := range []secret.Step{secret.Promote, secret.Drop} {
		rotate(t, path, step, false) // before there is a second key
	}
	rotate(t, path, secret.Add, true)
	rotate(t, path, secret.Add, false)
	if between := seal(); !k.Current(old) || !k.Current(between) {
		t.Error("a key that was only added is sealed with")
	}
	rotate(t, path, secret.Promote, true)
	rotate(t, path, secret.Promote, false)
	fresh := seal()
	opens(k, old, fresh)
	opens(other, fresh, old)
	if k.Current(old) || !k.Current(fresh) {
		t.Error("the new key is not the one that seals")
	}
	rotate(t, path, secret.Drop, true)
	rotate(t, path, secret.Drop, false)
	k, other = load(t, path), load(t, path)
	opens(k, fresh, seal())
	if _, err := other.Open(old, aad); !errors.Is(err, secret.ErrOpen) {
		t.Errorf("the old key opens after it was dropped: %v", err)
	}
	for _, k := range []*secret.Keeper{k, other} {
		if !bytes.Equal(k.Derive("links"), derived) {
			t.Error("what is derived has changed")
		}
	}
	content, err := secret.Content(path)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := secret.StateOf(content); err != nil || s != (secret.State{Keys: 1}) {
		t.Errorf("%+v, %v", s, err)
	}
	inMemory, err := secret.Parse(string(content))
	if err != nil {
		t.Fatal(err)
	}
	opens(inMemory, fresh)
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("beside the key file: %v, %v", left, err)
	}
}

// Secrets are sealed and opened all the while by several keepers; none ever fails to open.
func TestRotateUnderUse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret.key")
	load(t, path)
	var wg sync.WaitGroup
	sealed, done := make(chan string, 64), make(chan struct{})
	writer, reader := load(t, path), load(t, path)
	wg.Go(func() {
		defer close(sealed)
		for {
			select {
			case <-done:
				return
			default:
			}
			s, err := writer.Seal([]byte("hush"), aad)
			if err != nil {
				t.Error(err)
				return
			}
			sealed <- s
		}
	})
	wg.Go(func() {
		for s := range sealed {
			if _, err := reader.Open(s, aad); err != nil {
				t.Error(err)
			}
		}
	})
	for range 20 {
		for _, step := range []secret.Step{secret.Add, secret.Promote} {
			rotate(t, path, step, true)
		}
	}
	close(done)
	wg.Wait()
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"", "{}", "hush", `{"keyset":{},"root":""}`, `{"keyset":{"primaryKeyId":1,"key":[]},"root":"AAAA"}`} {
		if _, err := secret.Parse(content); !errors.Is(err, secret.ErrKeyFile) {
			t.Errorf("%q: %v", content, err)
		}
	}
}
