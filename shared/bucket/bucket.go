// Package bucket is storage as the pipeline needs it: reading a customer's bucket, and keeping our own library.
//
// The two are separate interfaces on purpose. Code that holds a Source cannot write to or delete from it. Drivers live
// in folders of their own (dir, gcs, ...) and pass the suite in buckettest; what all of them share stands here: the
// vocabulary of errors, checksums, a Reader that survives broken connections, a File for probing headers, metrics.
//
// # Retry law
//
// Every call may be repeated, by anybody, at any time: a read changes nothing, a Put or CopyFrom of the same key
// replaces the whole object or leaves what was there, a Delete of an absent key succeeds. What makes sense to repeat is
// what Permanent denies:
//
//   - Permanent errors are about the object or about rights: ErrNotExist, ErrChanged, ErrUnreadable, ErrArchived, ErrName,
//     ErrPermission, ErrCredentials, ErrNoBucket and errors.ErrUnsupported. Trying the same call again gives the same
//     answer until a person or the owner of the object does something.
//   - Everything else may pass: time-outs, ErrThrottled, ErrUnavailable, ErrStalled, ErrChecksum, ErrFull, a broken
//     connection, and whatever is unknown. Wait with backoff and jitter, no less than RetryAfter says.
//
// A driver repeats a request a few times at most and never longer than its context lives; patience beyond that belongs
// to the caller, which can see the queue. ClassOf names the class for metrics and records, and tells errors that every
// other object of the bucket would meet as well (Class.Bucketwide), which a circuit breaker wants to know.
//
// A cancelled context ends any call, also one that waits for bytes, with an error that wraps the context's.
package bucket

import (
	"context"
	"io"
	"iter"
	"time"
)

// Object is one file of a bucket at one version.
type Object struct {
	Path        string    // the full key; any bytes the provider allows, never cleaned or normalised
	Version     string    // changes when the content changes; opaque; compare with == only
	Size        int64     // bytes as stored (a compressed object is not unpacked)
	ModTime     time.Time // when this version came to be, by the provider's clock
	ContentType string    // as the provider has it; "" if it has none

	// CRC32C is the Castagnoli checksum of the bytes, base64 of the big-endian value as Google spells it, or "" where
	// the provider does not know it.
	CRC32C string

	// Order sorts the versions of one path in time by plain string comparison, or is "" where the provider has no such
	// thing. A folder's order is the file's modification time, which its owner can set: an older file moved over a
	// newer one sorts before it. Use it to drop what is certainly stale, and ask Stat when it matters.
	Order string
}

// ListOptions selects what List yields. The zero value means everything.
type ListOptions struct {
	// Prefix is the beginning of a key, not a folder: "cams/2026-0" and a whole key are both fine.
	Prefix string

	// StartAfter leaves out keys up to and including this one. It resumes a listing whose provider lists in byte order,
	// and all drivers here do.
	StartAfter string

	// Delimiter leaves out what lies below the next "/" after Prefix.
	Delimiter bool
}

// Source reads a bucket that belongs to somebody else. All methods are safe for concurrent use.
type Source interface {
	// List yields the objects by path, in byte order of the path, and holds no more than a page of them (a folder: the
	// names of one directory per level). It is not a snapshot: what appears behind the cursor is found by the next
	// listing.
	//
	// An error is the last pair, with one exception: an error wrapping ErrUnreadable that comes with an Object whose
	// Path ends in "/" is about that sub-folder alone, and the listing goes on if the loop does.
	List(ctx context.Context, opts ListOptions) iter.Seq2[Object, error]

	// Stat describes the live version. ErrNotExist: there is none.
	Stat(ctx context.Context, path string) (Object, error)

	// Open reads length bytes from offset of one version, or all that follow if length is negative. The empty version
	// means whichever is live, and all bytes of one reader come from one version in any case. An offset at or past the
	// end reads nothing.
	//
	// ErrChanged: that version is no longer there, another one is. ErrNotExist: no version is there. Both may come
	// from Open or from any Read, also from the one that would have returned io.EOF; bytes count as read once io.EOF
	// came. A connection that breaks ends a Read with some other error, or early; see Reader for one that carries on.
	Open(ctx context.Context, path, version string, offset, length int64) (io.ReadCloser, error)

	// Close releases what the driver holds. Readers that are still open stay usable.
	Close() error
}

// Library keeps imported bytes. Keys are chosen by us, see CheckKey. All methods are safe for concurrent use, and
// several processes may share one library.
type Library interface {
	// Put stores r under key, whole or not at all: while it runs, and after it failed, the key shows what it showed
	// before. An object that is there already is replaced in one step; of several Puts of one key at a time, one wins.
	//
	// Bytes are counted and hashed on the way and held against want. ErrChecksum: they do not agree, nothing was
	// stored. An error of r is returned wrapped, so its class is kept. The object may be recorded as stored only after
	// Sync.
	Put(ctx context.Context, key string, r io.Reader, want Want) (Stored, error)

	// CopyFrom stores one version of a source's object without moving its bytes through this process, where the two
	// storages can do that between them. Otherwise it returns an error wrapping errors.ErrUnsupported, nothing has
	// happened, and the caller opens the source and Puts. For the rest it behaves as Put with the object's own size
	// and checksum, and as Open where the version is gone. Stored.SHA256 may be empty.
	//
	// How far it is it tells in progress, which may be nil.
	CopyFrom(ctx context.Context, key string, src Source, obj Object, progress *Copying) (Stored, error)

	// Sync makes durable what Put, CopyFrom and Delete did under these keys before it was called; with no keys,
	// everything. Only then may it be recorded. One call for many keys costs little more than for one, and concurrent
	// calls share their work.
	//
	// When it fails, the bytes under these keys may be lost for good although they can still be read: they must be put
	// again, and until that happened Sync keeps failing for them.
	Sync(ctx context.Context, keys ...string) error

	// Open reads length bytes from offset, or all that follow if length is negative. ErrNotExist: no such key.
	Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// Stat describes what is stored. ErrNotExist: no such key. Object.Path is the key.
	Stat(ctx context.Context, key string) (Object, error)

	// Delete removes key. Nothing there is no error.
	Delete(ctx context.Context, key string) error

	// List yields everything that is stored whole, by key in byte order, to find what no record names.
	List(ctx context.Context) iter.Seq2[Object, error]

	// URI says where key lies, for people and for tools that read the storage themselves: file:///…, gs://….
	URI(key string) string

	// Close releases what the driver holds. Nothing else may be running.
	Close() error
}

// Copying is how far a CopyFrom is.
type Copying struct {
	// Mark is where the storage is, if it could go on from there. A CopyFrom of the same arguments that is given what
	// another one left here, in whichever process, does go on; if the storage has forgotten it, from the start.
	Mark string
	// Moved is called with the number of bytes that moved since it was last called, and Mark set, from one goroutine at a
	// time. It may be nil.
	Moved func(n int64)
}

// Report returns Moved, or what does nothing.
func (c *Copying) Report() func(n int64) {
	if c == nil || c.Moved == nil {
		return func(int64) {}
	}
	return c.Moved
}

// Want is what Put's bytes must turn out to be.
type Want struct {
	Size        int64  // bytes; negative if unknown
	CRC32C      string // as in Object; "" if unknown
	ContentType string // stored where the provider keeps one
}

// Want returns what the bytes of this object must turn out to be.
func (o Object) Want() Want {
	return Want{Size: o.Size, CRC32C: o.CRC32C, ContentType: o.ContentType}
}

// Stored is what Put stored.
type Stored struct {
	Key    string
	URI    string
	Size   int64  // bytes
	CRC32C string // as in Object
	SHA256 string // lower-case hex; "" if the bytes did not pass through this process
}

// Unwrapper is implemented by wrappers of a Source or a Library, so that a driver can see whether two storages are of
// its own kind.
type Unwrapper[T any] interface{ Unwrap() T }

// As finds a D in a Source or Library and whatever it wraps.
func As[D, T any](t T) (D, bool) {
	for {
		if d, ok := any(t).(D); ok {
			return d, true
		}
		w, ok := any(t).(Unwrapper[T])
		if !ok {
			var none D
			return none, false
		}
		t = w.Unwrap()
	}
}
