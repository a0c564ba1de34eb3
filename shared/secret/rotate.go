package secret

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
	"golang.org/x/sys/unix"
)

// keys are what a key file holds.
type keys struct {
	handle *keyset.Handle
	aead   tink.AEAD
	mark   []byte // what everything that is sealed with the primary key begins with
	root   String // see Derive
}

// keyFile is a key file whose keys were rotated. One that never was is a keyset alone, and its root follows from its bytes.
type keyFile struct {
	Keyset json.RawMessage `json:"keyset"`
	Root   string          `json:"root"` // base64
}

func parse(content []byte) (*keys, error) {
	content, _, err := unwrap(context.Background(), content)
	if err != nil {
		return nil, err
	}
	var f keyFile
	if err := json.Unmarshal(content, &f); err != nil {
		return nil, fmt.Errorf("%w: not JSON", ErrKeyFile) // the error could quote it
	}
	set := content
	var root []byte
	if f.Keyset != nil {
		var err error
		if root, err = base64.StdEncoding.DecodeString(f.Root); err != nil || len(root) != sha256.Size {
			return nil, fmt.Errorf("%w: its root is missing or broken", ErrKeyFile)
		}
		set = f.Keyset
	} else {
		var err error
		if root, err = hkdf.Extract(sha256.New, content, nil); err != nil {
			return nil, err
		}
	}
	// The file holds the keys in the clear, as a private SSH key does: what protects it is its mode.
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(set)))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	a, err := aead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	const tinkPrefix = 1 // of ciphertexts that begin with the id of their key
	mark := binary.BigEndian.AppendUint32([]byte{tinkPrefix}, handle.KeysetInfo().GetPrimaryKeyId())
	return &keys{handle: handle, aead: a, mark: mark, root: NewString(string(root))}, nil
}

// NewKeys returns the content of a new key file.
func NewKeys() ([]byte, error) {
	// A random 192-bit nonce never repeats, however much is sealed; AES-GCM's 96 bits call for counting.
	handle, err := keyset.NewHandle(aead.XChaCha20Poly1305KeyTemplate())
	if err != nil {
		return nil, err
	}
	return marshal(handle)
}

func marshal(handle *keyset.Handle) ([]byte, error) {
	var buf bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&buf)); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// Step is one step of replacing the key that secrets are sealed with. Each may be repeated. Between two of them every
// process of a deployment must have got what the first one made: one that shares the file gets it by itself.
type Step string

// The steps, in order.
const (
	// Add adds a new key that only opens. There is nothing yet for it to open.
	Add Step = "add"
	// Promote has everything new sealed with the newest key. The others still open what was sealed before.
	Promote Step = "promote"
	// Drop removes all keys but the one that seals. What was sealed with another is lost.
	Drop Step = "drop"
)

// Take returns the content of a key file after a step, and whether that changed anything. What a key management service has
// encrypted is so again.
func (s Step) Take(content []byte) (_ []byte, changed bool, err error) {
	plain, uri, err := unwrap(context.Background(), content)
	if err != nil {
		return nil, false, err
	}
	k, err := parse(plain)
	if err != nil {
		return nil, false, err
	}
	info := k.handle.KeysetInfo()
	all, primary := info.GetKeyInfo(), info.GetPrimaryKeyId()
	newest := all[len(all)-1].GetKeyId()
	m := keyset.NewManagerFromHandle(k.handle)
	switch {
	case s == Add && newest == primary:
		_, err = m.Add(aead.XChaCha20Poly1305KeyTemplate())
	case s == Promote && newest != primary:
		err = m.SetPrimary(newest)
	case s == Drop && len(all) > 1:
		for _, key := range all {
			if key.GetKeyId() != primary {
				err = errors.Join(err, m.Delete(key.GetKeyId()))
			}
		}
	case !slices.Contains([]Step{Add, Promote, Drop}, s):
		return nil, false, fmt.Errorf("step %q: want add, promote or drop", s)
	default:
		return content, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("%s a key: %w", s, err)
	}
	handle, err := m.Handle()
	if err != nil {
		return nil, false, err
	}
	set, err := marshal(handle)
	if err != nil {
		return nil, false, err
	}
	out, err := json.Marshal(keyFile{Keyset: set, Root: base64.StdEncoding.EncodeToString([]byte(k.root.Reveal()))})
	if err == nil && uri != "" {
		out, err = Wrap(context.Background(), out, uri)
	}
	return out, true, err
}

// Rotate takes a step in the key file at path. The file is replaced in one piece that is on disk by then, so a crash
// leaves the one or the other. Of several at a time each takes its turn.
func Rotate(path string, step Step) (changed bool, err error) {
	dir := filepath.Dir(path)
	lock, err := os.Open(dir)
	if err != nil {
		return false, fmt.Errorf("rotate key file: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return false, fmt.Errorf("rotate key file %s: lock its folder: %w", path, err)
	}
	content, _, err := read(path)
	if err != nil {
		return false, fmt.Errorf("rotate key file %s: %w", path, err)
	}
	next, changed, err := step.Take(content)
	if err == nil && changed {
		err = write(dir, next, func(tmp string) error { return os.Rename(tmp, path) })
	}
	if err != nil {
		return false, fmt.Errorf("rotate key file %s: %w", path, err)
	}
	return changed, nil
}

// State is how far a rotation is.
type State struct {
	Keys    int  // how many there are
	Waiting bool // the newest key does not seal yet
}

// StateOf tells how far the rotation of keys is.
func StateOf(content []byte) (State, error) {
	k, err := parse(content)
	if err != nil {
		return State{}, err
	}
	info := k.handle.KeysetInfo()
	all := info.GetKeyInfo()
	return State{Keys: len(all), Waiting: all[len(all)-1].GetKeyId() != info.GetPrimaryKeyId()}, nil
}

// Content returns a key file as it is, for State and Step.
func Content(path string) ([]byte, error) {
	content, _, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("read key file %s: %w", path, err)
	}
	return content, nil
}
