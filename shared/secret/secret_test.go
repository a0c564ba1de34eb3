package secret_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"millrace/shared/secret"
)

var aad = secret.AAD("conn_1", "service_account_key")

func load(t *testing.T, path string) *secret.Keeper {
	t.Helper()
	k, err := secret.Load(path, true)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "secret.key")
	k, again := load(t, path), load(t, path) // the second reads what the first created
	rapid.Check(t, func(t *rapid.T) {
		plain, aad := rapid.SliceOf(rapid.Byte()).Draw(t, "plain"), rapid.String().Draw(t, "aad")
		sealed, err := k.Seal(plain, aad)
		if err != nil {
			t.Fatal(err)
		}
		if len(plain) > 8 && strings.Contains(sealed, string(plain)) {
			t.Fatal("sealed text shows the secret")
		}
		got, err := again.Open(sealed, aad)
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("opened %q: %v", got, err)
		}
	})
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the key file: %v, %v", left, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	k := load(t, filepath.Join(t.TempDir(), "key"))
	sealed, err := k.Seal([]byte("hush"), aad)
	if err != nil {
		t.Fatal(err)
	}
	try := func(name string, k *secret.Keeper, sealed, aad string) {
		t.Helper()
		got, err := k.Open(sealed, aad)
		if !errors.Is(err, secret.ErrOpen) || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err != nil && strings.Contains(err.Error(), sealed) && sealed != "" {
			t.Errorf("%s: the error repeats the sealed text", name)
		}
	}
	for i := range sealed { // every character counts
		c := byte('A')
		if sealed[i] == c {
			c = 'B'
		}
		try(fmt.Sprintf("changed at %d", i), k, sealed[:i]+string(c)+sealed[i+1:], aad)
	}
	try("cut", k, sealed[:len(sealed)-4], aad)
	try("empty", k, "", aad)
	try("plain", k, "hush", aad)
	try("other connector", k, sealed, secret.AAD("conn_2", "service_account_key"))
	try("other field", k, sealed, secret.AAD("conn_1", "secret_access_key"))
	try("no aad", k, sealed, "")
	try("other key file", load(t, filepath.Join(t.TempDir(), "key")), sealed, aad)
}

func TestAADIsUnambiguous(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOf(rapid.StringMatching(`["\\|a]{0,3}`))
		a, b := parts.Draw(t, "a"), parts.Draw(t, "b")
		if same := fmt.Sprintf("%q", a) == fmt.Sprintf("%q", b); (secret.AAD(a...) == secret.AAD(b...)) != same {
			t.Fatalf("%q and %q", secret.AAD(a...), secret.AAD(b...))
		}
	})
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := secret.Load(filepath.Join(dir, "none"), false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	open := filepath.Join(dir, "open")
	load(t, open)
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := secret.Load(open, true); !errors.Is(err, secret.ErrPermissions) || !strings.Contains(err.Error(), open) {
		t.Errorf("readable by the group: %v", err)
	}
	for name, content := range map[string]string{"empty": "", "junk": "junk", "json": "{}"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		// create must not replace a file that may be a damaged key.
		if _, err := secret.Load(path, true); !errors.Is(err, secret.ErrKeyFile) {
			t.Errorf("%s: %v", name, err)
		}
		if got, _ := os.ReadFile(path); string(got) != content {
			t.Errorf("%s: was overwritten", name)
		}
	}
}

func TestCreateRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	keepers := make([]*secret.Keeper, 8)
	var wg sync.WaitGroup
	for i := range keepers {
		wg.Go(func() { keepers[i] = load(t, path) })
	}
	wg.Wait()
	sealed, err := keepers[0].Seal([]byte("x"), aad)
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range keepers {
		if _, err := k.Open(sealed, aad); err != nil {
			t.Errorf("keeper %d has another key: %v", i, err)
		}
	}
}

func TestStringNeverShows(t *testing.T) {
	const hush = "h\x00ush-4711"
	type config struct {
		Key    secret.String
		hidden secret.String
		Ptr    *secret.String
	}
	s := secret.NewString(hush)
	c := config{s, s, &s}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%t"} {
		fmt.Fprintf(&out, verb, s)
		fmt.Fprintf(&out, verb, c)
		fmt.Fprintf(&out, verb, &c)
		fmt.Fprintf(&out, verb, []any{s, c, map[secret.String]int{s: 1}})
	}
	fmt.Fprintln(&out, errors.New(fmt.Sprint(c)), fmt.Errorf("%v", s))
	for _, h := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		slog.New(h).Info("x", "s", s, "p", &s, "c", c, "any", slog.AnyValue(s), slog.Group("g", "s", s))
	}
	b, err := json.Marshal(map[string]any{"s": s, "c": c, "m": map[secret.String]int{s: 1}})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	for _, bad := range []string{"ush-4711", "7573682d34373131", "7573682D34373131"} { // also in hex
		if strings.Contains(out.String(), bad) {
			t.Fatalf("shows the secret:\n%s", out.String())
		}
	}
	if !strings.Contains(string(b), `"Key":"[redacted]"`) {
		t.Errorf("JSON: %s", b)
	}
	if s.Reveal() != hush || s.IsZero() || !s.Equal(secret.NewString(hush)) || s.Equal(secret.NewString("other")) {
		t.Error("the secret is not what was put in")
	}
	var zero secret.String
	if got := fmt.Sprint(zero); got != "" || !zero.IsZero() || zero.Reveal() != "" {
		t.Errorf("no secret prints as %q", got)
	}
	var in struct{ Key secret.String }
	if err := json.Unmarshal([]byte(`{"Key":"abc"}`), &in); err != nil || in.Key.Reveal() != "abc" {
		t.Errorf("decoded %q, %v", in.Key.Reveal(), err)
	}
}

func TestKeys(t *testing.T) {
	k := secret.NewKey()
	if !regexp.MustCompile(secret.KeyPattern).MatchString(k) || !secret.ValidKey(k) {
		t.Errorf("key %q does not match %s", k, secret.KeyPattern)
	}
	if secret.NewKey() == k {
		t.Error("the same key twice")
	}
	for _, bad := range []string{"", "sk_live_", k + "0", k[:len(k)-1], strings.ToUpper(k), " " + k, k + "\n"} {
		if secret.ValidKey(bad) {
			t.Errorf("%q passes for a key", bad)
		}
	}
	hash := secret.HashKey(k)
	if len(hash) != 64 || strings.Contains(hash, k[8:]) {
		t.Errorf("hash %q", hash)
	}
	if !secret.KeyMatches(k, hash) || secret.KeyMatches(k, "") || secret.KeyMatches("", hash) || secret.KeyMatches(secret.NewKey(), hash) {
		t.Error("key and hash do not match as they should")
	}
	// Stored hashes outlive versions of this program.
	if got := secret.HashKey("abc"); got != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("hash of abc is %s", got)
	}
}

// Processes that share the file share what is derived; purposes and files do not.
func TestDerive(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys")
	one, same, other := load(t, path), load(t, path), load(t, filepath.Join(t.TempDir(), "keys"))
	key := one.Derive("links")
	if len(key) != 32 || !bytes.Equal(key, same.Derive("links")) {
		t.Errorf("%x and %x", key, same.Derive("links"))
	}
	if bytes.Equal(key, one.Derive("other")) || bytes.Equal(key, other.Derive("links")) {
		t.Error("another purpose or another file gave the same")
	}
	if s := fmt.Sprintf("%v %+v %#v", one, *one, one); strings.Contains(s, "primaryKeyId") {
		t.Errorf("the key file is printed: %s", s)
	}
}
