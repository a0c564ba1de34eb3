package secret_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"millrace/shared/secret"
)

// kmsServer speaks the Encrypt and Decrypt of AWS KMS and of Google's Cloud KMS, over TLS, to those that this process trusts it
// by, and hands out Google's tokens.
type kmsServer struct {
	*httptest.Server
	seal  cipher.AEAD
	fails atomic.Int32 // so many calls with a 503 first
	calls atomic.Int32
	deny  atomic.Bool
}

const (
	amazonKey = "arn:aws:kms:eu-central-1:111122223333:key/k"
	googleKey = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
)

func newKMS(t *testing.T) *kmsServer {
	t.Helper()
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	s := &kmsServer{}
	if s.seal, err = cipher.NewGCM(block); err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Close)
	was := http.DefaultTransport
	http.DefaultTransport = s.Client().Transport
	t.Cleanup(func() { http.DefaultTransport = was })

	t.Setenv("AWS_ACCESS_KEY_ID", "AKIA")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "swordfish")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "m@p.iam.gserviceaccount.com", "private_key_id": "1", "project_id": "p",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": s.URL + "/token",
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "account.json")
	if err := os.WriteFile(file, account, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
	return s
}

var signature = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=AKIA/\d{8}/eu-central-1/kms/aws4_request, SignedHeaders=[a-z0-9;-]*host;[a-z0-9;-]*x-amz-target, Signature=[0-9a-f]{64}$`)

func (s *kmsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"tok","token_type":"Bearer","expires_in":3600}`)
		return
	}
	var in struct {
		KeyID                                 string `json:"KeyId"`
		Plaintext, CiphertextBlob, Ciphertext []byte
		EncryptionContext                     map[string]string
		AdditionalAuthenticatedData           []byte
	}
	s.calls.Add(1)
	target, amazon := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	var bound []byte
	ok := json.NewDecoder(r.Body).Decode(&in) == nil
	if amazon {
		bound, _ = json.Marshal(in.EncryptionContext)
		ok = ok && in.KeyID == amazonKey && signature.MatchString(r.Header.Get("Authorization"))
	} else {
		bound = in.AdditionalAuthenticatedData
		_, target, _ = strings.Cut(r.URL.Path, googleKey+":")
		target = strings.ToUpper(target[:min(1, len(target))]) + target[min(1, len(target)):]
		ok = ok && r.Header.Get("Authorization") == "Bearer tok"
	}
	refuse := func(status int, google, aws, words string) {
		w.WriteHeader(status)
		if amazon {
			_ = json.NewEncoder(w).Encode(map[string]string{"__type": aws, "message": words})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": status, "status": google, "message": words}})
	}
	switch {
	case s.fails.Add(-1) >= 0:
		refuse(http.StatusServiceUnavailable, "UNAVAILABLE", "KMSInternalException", "later")
	case s.deny.Load():
		refuse(http.StatusForbidden, "PERMISSION_DENIED", "AccessDeniedException", "no right to use the key")
	case !ok || len(bound) == 0:
		refuse(http.StatusBadRequest, "INVALID_ARGUMENT", "ValidationException", "not understood")
	case target == "Encrypt":
		nonce := make([]byte, s.seal.NonceSize())
		_, _ = rand.Read(nonce)
		out := s.seal.Seal(nonce, nonce, in.Plaintext, bound)
		_ = json.NewEncoder(w).Encode(map[string]any{"CiphertextBlob": out, "ciphertext": out, "KeyId": amazonKey, "name": googleKey})
	default:
		sealed := slices.Concat(in.CiphertextBlob, in.Ciphertext)
		n := min(s.seal.NonceSize(), len(sealed))
		out, err := s.seal.Open(nil, sealed[:n], sealed[n:], bound)
		if err != nil {
			refuse(http.StatusBadRequest, "INVALID_ARGUMENT", "InvalidCiphertextException", "not of this key")
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"Plaintext": out, "plaintext": out})
	}
}

// A key file that a key management service has encrypted is as good as another, also when keys are replaced, for who may
// decrypt it.
func TestKMS(t *testing.T) {
	s := newKMS(t)
	for _, uri := range []string{
		"aws-kms://" + amazonKey + "?endpoint=" + s.URL, "gcp-kms://" + googleKey + "?endpoint=" + s.URL,
	} {
		plain, err := secret.NewKeys()
		if err != nil {
			t.Fatal(err)
		}
		s.fails.Store(2)
		content, err := secret.Wrap(t.Context(), plain, uri)
		if err != nil || bytes.Contains(content, []byte("primaryKeyId")) || !bytes.Contains(content, []byte(uri[:20])) {
			t.Fatalf("%s: %s, %v", uri, content, err)
		}
		path := filepath.Join(t.TempDir(), "secrets.key")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		k := load(t, path)
		sealed, err := k.Seal([]byte("hush"), aad)
		if err != nil {
			t.Fatal(err)
		}
		clear, err := secret.Parse(string(plain))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := clear.Open(sealed, aad); err != nil || string(got) != "hush" {
			t.Errorf("%s: the keys within are others: %q, %v", uri, got, err)
		}
		before := s.calls.Load()
		if _, err := k.Open(sealed, aad); err != nil || s.calls.Load() != before {
			t.Errorf("%s: %d calls to open a secret, %v", uri, s.calls.Load()-before, err)
		}
		rotate(t, path, secret.Add, true)
		rotate(t, path, secret.Promote, true)
		if now, err := os.ReadFile(path); err != nil || bytes.Contains(now, []byte("primaryKeyId")) {
			t.Errorf("%s: a rotation left the keys in the clear: %v", uri, err)
		}
		if fresh, err := k.Seal([]byte("hush"), aad); err != nil || k.Current(sealed) || !k.Current(fresh) {
			t.Errorf("%s: the new key does not seal: %v", uri, err)
		}
		s.deny.Store(true)
		_, err = secret.Load(path, false)
		if err == nil || !strings.Contains(err.Error(), "no right to use the key") || !strings.Contains(err.Error(), "decrypt with key "+uri) {
			t.Errorf("%s: without the right to: %v", uri, err)
		}
		if got, err := k.Open(sealed, aad); err != nil || string(got) != "hush" {
			t.Errorf("%s: who has the keys needs the service: %v", uri, err)
		}
		s.deny.Store(false)
	}
	for _, uri := range []string{
		"", "vault://k", "aws-kms://arn:aws:s3:::b", "gcp-kms://projects/p", "aws-kms://" + amazonKey + "?endpoint=ftp://x",
		"gcp-kms://" + googleKey + "?key=1",
	} {
		if _, err := secret.Wrap(t.Context(), []byte("{}"), uri); err == nil {
			t.Errorf("%q is the URI of a key", uri)
		}
	}
	if _, err := secret.Parse(`{"kms":"vault://k","keys":""}`); !errors.Is(err, secret.ErrKeyFile) {
		t.Errorf("an unknown service: %v", err)
	}
}
