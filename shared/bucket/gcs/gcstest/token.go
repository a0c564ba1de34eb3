package gcstest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"sync"
	"testing"
)

const (
	tokenPath = "/token"
	token     = "gcstest-access-token"
)

// privateKey is made once: it takes a while.
var privateKey = sync.OnceValues(func() ([]byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
})

// Credentials returns a service account key that this server gives tokens for. From now on it answers only those who
// bring one.
func (s *Server) Credentials(t testing.TB) []byte {
	t.Helper()
	key, err := privateKey()
	if err != nil {
		t.Fatalf("make a key: %v", err)
	}
	credentials, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "test", "private_key_id": "1", "private_key": string(key),
		"client_email": "reader@test.iam.gserviceaccount.com", "token_uri": s.URL + tokenPath,
	})
	if err != nil {
		t.Fatalf("write a key: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return credentials
}

// Revoke has the server give no more tokens, and take none.
func (s *Server) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = true
}

// Restore has it give tokens, and take them, again.
func (s *Server) Restore() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = false
}

func (s *Server) refuses(r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revoked || s.closed && r.Header.Get("Authorization") != "Bearer "+token
}

func (s *Server) serveToken(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if s.revoked {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 3600})
}
