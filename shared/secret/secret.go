// Package secret keeps credentials: sealed while they are stored (Keeper), unprintable while they are in memory
// (String), and API keys as hashes (NewKey, HashKey).
package secret

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// Errors, to be held with errors.Is. A key file that is not there is an fs.ErrNotExist.
var (
	// ErrPermissions: others than the owner can get at the key file.
	ErrPermissions = errors.New("key file is open to others")
	// ErrKeyFile: the key file is not one.
	ErrKeyFile = errors.New("not a key file")
	// ErrOpen: the sealed text was changed, was sealed with other associated data, or with a key that is not in the
	// key file. Which of these it is cannot be told.
	ErrOpen = errors.New("cannot open sealed secret")
)

// sealedPrefix marks the format, so that another may follow.
const sealedPrefix = "s1."

// Keeper seals and opens secrets with the keys of one key file. Its methods may be called concurrently.
type Keeper struct {
	aead tink.AEAD
	root String // the key file, see Derive
}

// Load reads the key file at path; when there is none and create is set, it makes one (mode 0600) that is on disk when
// Load returns. Processes that create it at the same time end up with the same file.
//
// The file is the only thing that opens what was sealed with it: create must be false where sealed secrets exist
// already, or losing the file is noticed one secret at a time. It belongs into backups, apart from the data.
func Load(path string, create bool) (*Keeper, error) {
	k, err := read(path)
	if create && errors.Is(err, fs.ErrNotExist) {
		if err := generate(path); err != nil {
			return nil, fmt.Errorf("create key file %s: %w", path, err)
		}
		k, err = read(path)
	}
	if err != nil {
		return nil, fmt.Errorf("load key file %s: %w", path, err)
	}
	return k, nil
}

func read(path string) (*Keeper, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("%w: mode %04o, want 0600", ErrPermissions, perm)
	}
	root, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	// The file holds the key in the clear, as a private SSH key does: what protects it is its mode.
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(root)))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	a, err := aead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	return &Keeper{aead: a, root: NewString(string(root))}, nil
}

// generate writes a new key file under another name and links it to path, which fails when somebody was faster: then
// theirs is the one.
func generate(path string) error {
	// A random 192-bit nonce never repeats, however much is sealed; AES-GCM's 96 bits call for counting.
	handle, err := keyset.NewHandle(aead.XChaCha20Poly1305KeyTemplate())
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&buf)); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".key-*") // 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(buf.Bytes())
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a new name in dir survive a power cut. A key that is gone after secrets were sealed with it is the
// worst that can happen here.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Seal encrypts plaintext and binds it to aad, see AAD. The result is URL-safe text, different each time.
func (k *Keeper) Seal(plaintext []byte, aad string) (string, error) {
	sealed, err := k.aead.Encrypt(plaintext, []byte(aad))
	if err != nil {
		return "", fmt.Errorf("seal secret: %w", err)
	}
	return sealedPrefix + base64.RawURLEncoding.EncodeToString(sealed), nil
}

// Open returns what was sealed with the same aad, else ErrOpen.
func (k *Keeper) Open(sealed, aad string) ([]byte, error) {
	text, ok := strings.CutPrefix(sealed, sealedPrefix)
	if !ok {
		return nil, fmt.Errorf("%w: unknown format", ErrOpen)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: not base64", ErrOpen)
	}
	plaintext, err := k.aead.Decrypt(raw, []byte(aad))
	if err != nil {
		return nil, fmt.Errorf("%w: changed, moved, or sealed with another key", ErrOpen)
	}
	return plaintext, nil
}

// AAD spells the place a sealed secret belongs to, such as a connector's id and the name of the field, so that one
// secret cannot be put in the place of another. Different places never have the same spelling.
func AAD(place ...string) string {
	var b strings.Builder
	for _, p := range place {
		b.WriteString(strconv.Quote(p))
	}
	return b.String()
}
