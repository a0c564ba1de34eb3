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
	"sync"
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

// Keeper seals and opens secrets with the keys of one key file. Its methods may be called concurrently. When the file
// is replaced, see Rotate, the keeper goes over to it: before it seals anything, and when something does not open.
type Keeper struct {
	path string // "": the keys came by other ways and stay as they are
	held *held
}

type held struct {
	mu   sync.Mutex
	file fs.FileInfo // as it was read
	keys *keys
}

// Load reads the key file at path; when there is none and create is set, it makes one (mode 0600) that is on disk when
// Load returns. Processes that create it at the same time end up with the same file.
//
// The file is the only thing that opens what was sealed with it: create must be false where sealed secrets exist
// already, or losing the file is noticed one secret at a time. It belongs into backups, apart from the data.
func Load(path string, create bool) (*Keeper, error) {
	k := &Keeper{path: path, held: new(held)}
	err := k.reload()
	if create && errors.Is(err, fs.ErrNotExist) {
		if err := generate(path); err != nil {
			return nil, fmt.Errorf("create key file %s: %w", path, err)
		}
		err = k.reload()
	}
	if err != nil {
		return nil, fmt.Errorf("load key file %s: %w", path, err)
	}
	return k, nil
}

// Parse returns a keeper of keys that are not in a file: the content of one, from an environment variable for instance.
func Parse(content string) (*Keeper, error) {
	keys, err := parse([]byte(content))
	if err != nil {
		return nil, err
	}
	return &Keeper{held: &held{keys: keys}}, nil
}

// From returns a keeper of the keys that a process was given: the path of a file, which is made if there is none, or the
// content of one.
func From(path, content string) (*Keeper, error) {
	switch {
	case path != "" && content != "":
		return nil, errors.New("--secrets-key is for a file, --secrets-key-data for its content: give one of them")
	case content != "":
		k, err := Parse(content)
		if err != nil {
			return nil, fmt.Errorf("--secrets-key-data: %w", err)
		}
		return k, nil
	case path != "":
		return Load(path, true)
	}
	return nil, errors.New("--secrets-key: required; all services of a deployment share one file")
}

// reload reads the key file if it is another than was read last. Of a file that cannot be read the keys of the last one
// are kept.
func (k *Keeper) reload() error {
	if k.path == "" {
		return nil
	}
	h := k.held
	h.mu.Lock()
	defer h.mu.Unlock()
	info, err := os.Stat(k.path)
	if err != nil {
		return err
	}
	if h.file != nil && os.SameFile(h.file, info) && h.file.ModTime().Equal(info.ModTime()) && h.file.Size() == info.Size() {
		return nil
	}
	content, info, err := read(k.path)
	if err != nil {
		return err
	}
	keys, err := parse(content)
	if err != nil {
		return err
	}
	h.file, h.keys = info, keys
	return nil
}

func (k *Keeper) current() *keys {
	k.held.mu.Lock()
	defer k.held.mu.Unlock()
	return k.held.keys
}

// read returns a key file that nobody but its owner can get at.
func read(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, nil, fmt.Errorf("%w: mode %04o, want 0600", ErrPermissions, perm)
	}
	content, err := io.ReadAll(f)
	return content, info, err
}

// generate writes a new key file under another name and links it to path, which fails when somebody was faster: then
// theirs is the one.
func generate(path string) error {
	content, err := NewKeys()
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return write(dir, content, func(tmp string) error {
		if err := os.Link(tmp, path); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	})
}

// write has a new file of this content, which is on disk and open to nobody else, put in its place in dir.
func write(dir string, content []byte, place func(tmp string) error) error {
	tmp, err := os.CreateTemp(dir, ".key-*") // 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(content)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := place(tmp.Name()); err != nil {
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
	if err := k.reload(); err != nil {
		return "", fmt.Errorf("seal secret: key file %s: %w", k.path, err)
	}
	sealed, err := k.current().aead.Encrypt(plaintext, []byte(aad))
	if err != nil {
		return "", fmt.Errorf("seal secret: %w", err)
	}
	return sealedPrefix + base64.RawURLEncoding.EncodeToString(sealed), nil
}

// Open returns what was sealed with the same aad, else ErrOpen.
func (k *Keeper) Open(sealed, aad string) ([]byte, error) {
	raw, err := unpack(sealed)
	if err != nil {
		return nil, err
	}
	keys := k.current()
	plaintext, err := keys.aead.Decrypt(raw, []byte(aad))
	if err != nil && k.reload() == nil && k.current() != keys {
		plaintext, err = k.current().aead.Decrypt(raw, []byte(aad))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: changed, moved, or sealed with another key", ErrOpen)
	}
	return plaintext, nil
}

// Current reports whether a sealed text names the key that new secrets are sealed with.
func (k *Keeper) Current(sealed string) bool {
	raw, err := unpack(sealed)
	return err == nil && k.reload() == nil && bytes.HasPrefix(raw, k.current().mark)
}

func unpack(sealed string) ([]byte, error) {
	text, ok := strings.CutPrefix(sealed, sealedPrefix)
	if !ok {
		return nil, fmt.Errorf("%w: unknown format", ErrOpen)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: not base64", ErrOpen)
	}
	return raw, nil
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
