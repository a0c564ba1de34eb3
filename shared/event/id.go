package event

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"regexp"
	"time"
)

// Every id that stands for something outside of us is a function of what it is about: asked twice, it is the same
// twice, on any process, after any restart. Only what a person creates (connector, index, prompt) has a random id.
//
// An id is a prefix and lower-case base32hex digits, so that it can be a subject token, a KV key, a file name and a
// URL segment without escaping.

var digits = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// NewID returns a random id of 80 bits: prefix, "_", 16 digits.
func NewID(prefix string) string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return prefix + "_" + digits.EncodeToString(b[:])
}

// DerivedID returns an id with as many digits as one of NewID that is a function of parts.
func DerivedID(prefix string, parts ...string) string {
	return prefix + "_" + hash(10, append([]string{prefix}, parts...)...)
}

// hash digests length-prefixed parts, so that no two lists of parts collide by concatenation; n is the number of bytes
// kept.
func hash(n int, parts ...string) string {
	h := sha256.New()
	var l [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(l[:], uint64(len(p)))
		h.Write(l[:])
		h.Write([]byte(p))
	}
	return digits.EncodeToString(h.Sum(nil)[:n])
}

var token = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// IsToken reports whether s can stand for one token of a subject, as all ids can: what somebody else calls an id may be
// a wildcard on the bus.
func IsToken(s string) bool { return token.MatchString(s) }

// ObjectHash stands for one path of one connector in subjects of arrivals, tasks and files.
func ObjectHash(connector, path string) string { return hash(16, "object", connector, path) }

// JobOfWindow is the job of one window of an automation.
func JobOfWindow(automation, epoch string) string {
	return "job_" + hash(16, "window", automation, epoch)
}

// RunOfJob is the run that follows a job.
func RunOfJob(job string) string { return "run_" + hash(16, "run", job) }

// DeletionOf is the deletion of a medium or an index, by its id: there is one.
func DeletionOf(id string) string { return "del_" + hash(10, "deletion", id) }

// AutomationOfIndex is the import automation of an index: there is at most one.
func AutomationOfIndex(index string) string { return "auto_" + hash(10, "automation", index) }

// MediumID names one imported item: an object at one version in one index. Under mode "all" each job makes an item of
// its own, so the job counts as part of the version; pass "" otherwise.
type MediumID struct {
	Object  string // hash of index, connector and path
	Version string // hash of version and job
}

// NewMediumID returns the id of version of path in index.
func NewMediumID(index, connector, path, version, job string) MediumID {
	return MediumID{
		Object:  hash(16, "medium", index, connector, path),
		Version: hash(10, "version", version, job),
	}
}

func (id MediumID) String() string { return "vid_" + id.Object + "_" + id.Version }

// Sums returns the two hashes as numbers, the larger part first. ok is false for what is no id.
func (id MediumID) Sums() (object, version [2]uint64, ok bool) {
	var o [17]byte
	var v [10]byte
	if len(id.Object) != 26 || len(id.Version) != 16 {
		return object, version, false
	}
	_, oerr := digits.Decode(o[:], []byte(id.Object))
	_, verr := digits.Decode(v[:], []byte(id.Version))
	object = [2]uint64{binary.BigEndian.Uint64(o[:]), binary.BigEndian.Uint64(o[8:])}
	version = [2]uint64{binary.BigEndian.Uint64(v[:]), uint64(binary.BigEndian.Uint16(v[8:]))}
	return object, version, oerr == nil && verr == nil
}

var mediumID = regexp.MustCompile(`^vid_([0-9a-v]{26})_([0-9a-v]{16})$`)

// ParseMediumID is the inverse of MediumID.String.
func ParseMediumID(s string) (MediumID, error) {
	m := mediumID.FindStringSubmatch(s)
	if m == nil {
		return MediumID{}, fmt.Errorf("%q is not the id of a medium", s)
	}
	return MediumID{Object: m[1], Version: m[2]}, nil
}

// MarshalText spells the id as String does.
func (id MediumID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (id *MediumID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseMediumID(string(b))
	return err
}

// CommandID is the command that was published under a message id. Without one it is a function of the message.
func CommandID(messageID string) string { return "cmd_" + hash(16, "command", messageID) }

// UnnamedCommandID is the command of a message without an id, which is a command of its own each time it is published.
func UnnamedCommandID(subject string, data []byte, stored time.Time) string {
	return "cmd_" + hash(16, "unnamed command", subject, string(data), stored.UTC().Format(time.RFC3339Nano))
}

// IDOf is the id of the event that says typ about subject in index.
func IDOf(typ Type, index, subject string) string {
	return "evt_" + hash(16, "event", string(typ), index, subject)
}
