package secret

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
)

// Derive returns 32 bytes that follow from the key file and a purpose, and from which neither the file's keys nor what
// other purposes get can be learnt. Whoever has the file gets the same, so processes share a key without storing one.
// It stays the same when the keys are rotated.
func (k *Keeper) Derive(purpose string) []byte {
	key, err := hkdf.Expand(sha256.New, []byte(k.current().root.Reveal()), "millrace "+purpose, sha256.Size)
	if err != nil {
		panic(fmt.Sprintf("derive a key: %v", err)) // only a length that no hash has
	}
	return key
}
