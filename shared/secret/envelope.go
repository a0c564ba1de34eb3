package secret

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"millrace/shared/secret/kms"
)

// envelope is a key file that a key of a key management service has encrypted. Whoever may decrypt with that key can use
// the file; without, it is worth nothing.
type envelope struct {
	KMS  string `json:"kms"`  // which key, see kms.Open
	Keys []byte `json:"keys"` // a key file
}

// kmsTime bounds a look at the service, with its repetitions.
const kmsTime = 40 * time.Second

// Wrap returns the content of a key file encrypted with a key of a key management service, which kms.Open knows by uri. Of
// one that is encrypted already, the key changes.
func Wrap(ctx context.Context, content []byte, uri string) ([]byte, error) {
	plain, _, err := unwrap(ctx, content)
	if err != nil {
		return nil, err
	}
	key, err := kms.Open(uri)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, kmsTime)
	defer cancel()
	sealed, err := key.Encrypt(ctx, plain)
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope{KMS: uri, Keys: sealed})
}

// unwrap returns the content of a key file in the clear, and the key that it was encrypted with, if any.
func unwrap(ctx context.Context, content []byte) (plain []byte, uri string, err error) {
	var e envelope
	if err := json.Unmarshal(content, &e); err != nil || e.KMS == "" {
		return content, "", nil // parse will say what is wrong with it
	}
	key, err := kms.Open(e.KMS)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	ctx, cancel := context.WithTimeout(ctx, kmsTime)
	defer cancel()
	plain, err = key.Decrypt(ctx, e.Keys)
	return plain, e.KMS, err
}
