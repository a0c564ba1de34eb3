package secret

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"regexp"
)

// KeyPattern is the form of an API key, as a regular expression. Clients check it before they send a key.
const KeyPattern = `^sk_live_[0-9a-f]{48}$`

var keyForm = regexp.MustCompile(KeyPattern)

// NewKey returns a new API key with 192 random bits.
func NewKey() string {
	b := make([]byte, 24)
	_, _ = rand.Read(b) // never fails: it ends the process when the system has no randomness
	return "sk_live_" + hex.EncodeToString(b)
}

// ValidKey reports whether key has the form of an API key.
func ValidKey(key string) bool { return keyForm.MatchString(key) }

// HashKey is what is stored of an API key, and looked up by: its SHA-256 in hex. A key is random and long, so the slow
// and salted hashes that passwords need would only make each request slow.
func HashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// KeyMatches reports whether hash is HashKey of key, in a time that does not depend on where they differ.
func KeyMatches(key, hash string) bool {
	return subtle.ConstantTimeCompare([]byte(HashKey(key)), []byte(hash)) == 1
}
