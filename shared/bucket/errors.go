package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// What can go wrong, in the words of every driver. Test with errors.Is; drivers wrap them with the operation and the
// provider's own message.
var (
	// ErrNotExist: no object has that path, or no longer.
	ErrNotExist = errors.New("object does not exist")

	// ErrChanged: the version asked for was replaced, or changed while it was being read.
	ErrChanged = errors.New("object has changed")

	// ErrUnreadable: the object is there and will not be served: encrypted with a key we do not have, a folder closed
	// to us.
	ErrUnreadable = errors.New("object cannot be read")

	// ErrArchived: the object lies in cold storage (S3 Glacier, the archive tier of Azure) and has to be restored by its
	// owner before anybody can read it.
	ErrArchived = errors.New("object is archived: restore it, then import it again")

	// ErrName: the provider, or CheckKey, refuses the name.
	ErrName = errors.New("name not allowed")

	// ErrPermission: the credentials are good, and do not allow this.
	ErrPermission = errors.New("permission denied")

	// ErrCredentials: the credentials are malformed, expired, revoked or unknown.
	ErrCredentials = errors.New("credentials refused")

	// ErrNoBucket: the bucket, container or root folder does not exist.
	ErrNoBucket = errors.New("bucket does not exist")

	// ErrChecksum: the bytes that arrived are not the bytes that were promised, by number or by checksum.
	ErrChecksum = errors.New("checksum mismatch")

	// ErrStalled: no byte arrived for the stall time-out.
	ErrStalled = errors.New("no bytes arrived in time")

	// ErrThrottled: the provider asks to slow down. See RetryAfter.
	ErrThrottled = errors.New("storage asks to slow down")

	// ErrUnavailable: the provider cannot serve anybody right now.
	ErrUnavailable = errors.New("storage is unavailable")

	// ErrFull: the storage, or our share of it, is used up.
	ErrFull = errors.New("no space left in storage")

	// ErrLost: the storage failed to make durable what it had accepted. Put it again.
	ErrLost = errors.New("stored bytes were not made durable")
)

// ThrottledError is an ErrThrottled or ErrUnavailable whose provider said how long to wait.
type ThrottledError struct {
	RetryAfter time.Duration
	Err        error
}

func (e *ThrottledError) Error() string {
	return fmt.Sprintf("%v (retry after %s)", e.Err, e.RetryAfter)
}

// Unwrap returns the cause.
func (e *ThrottledError) Unwrap() error { return e.Err }

// RetryAfter returns how long the provider asked to wait, or 0 if it did not say.
func RetryAfter(err error) time.Duration {
	var t *ThrottledError
	if errors.As(err, &t) {
		return t.RetryAfter
	}
	return 0
}

// ClockOff says so if the clock of this machine is further from that of a server than most, going by the headers of an
// answer: what was signed by it then looks like a forgery.
func ClockOff(answer http.Header, most time.Duration) string {
	theirs, err := http.ParseTime(answer.Get("Date"))
	if off := time.Since(theirs).Round(time.Minute); err == nil && off.Abs() > most {
		return fmt.Sprintf("the clock of this machine is %s off: set it right", off)
	}
	return ""
}

// Class is what an error is about, as a word for metrics and records. The list is closed.
type Class string

// The classes.
const (
	ClassNone        Class = ""            // no error
	ClassNotExist    Class = "not_exist"   // permanent
	ClassChanged     Class = "changed"     // permanent
	ClassUnreadable  Class = "unreadable"  // permanent
	ClassArchived    Class = "archived"    // permanent
	ClassName        Class = "name"        // permanent
	ClassUnsupported Class = "unsupported" // permanent
	ClassPermission  Class = "permission"  // permanent
	ClassCredentials Class = "credentials" // permanent, bucket-wide
	ClassNoBucket    Class = "no_bucket"   // permanent, bucket-wide
	ClassChecksum    Class = "checksum"    // may pass
	ClassStalled     Class = "stalled"     // may pass
	ClassThrottled   Class = "throttled"   // may pass, bucket-wide
	ClassUnavailable Class = "unavailable" // may pass, bucket-wide: 5xx, and a network that does not connect
	ClassFull        Class = "full"        // may pass, bucket-wide
	ClassTimeout     Class = "timeout"     // may pass
	ClassBroken      Class = "broken"      // may pass: a connection ended early
	ClassCancelled   Class = "cancelled"   // may pass: the caller gave up
	ClassOther       Class = "other"       // may pass, for want of knowledge
)

// classes holds the sentinels in the order in which they are looked for: an error that wraps two (a bucket that is
// missing, seen through an object that is missing) has the class of the first.
var classes = []struct {
	err   error
	class Class
}{
	{ErrNoBucket, ClassNoBucket},
	{ErrCredentials, ClassCredentials},
	{ErrPermission, ClassPermission},
	{ErrChanged, ClassChanged},
	{ErrNotExist, ClassNotExist},
	{ErrArchived, ClassArchived},
	{ErrUnreadable, ClassUnreadable},
	{ErrName, ClassName},
	{errors.ErrUnsupported, ClassUnsupported},
	{ErrChecksum, ClassChecksum},
	{ErrStalled, ClassStalled},
	{ErrThrottled, ClassThrottled},
	{ErrFull, ClassFull},
	{ErrUnavailable, ClassUnavailable},
	{context.Canceled, ClassCancelled},
	{context.DeadlineExceeded, ClassTimeout},
	{io.ErrUnexpectedEOF, ClassBroken},
	{net.ErrClosed, ClassBroken},
}

// ClassOf returns the class of err.
func ClassOf(err error) Class {
	if err == nil {
		return ClassNone
	}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.class
		}
	}
	// A refused connection and a name that does not resolve come before any byte; anything else the network says
	// happened to a connection that once worked.
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return ClassUnavailable
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return ClassUnavailable
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return ClassTimeout
	}
	if op != nil {
		return ClassBroken
	}
	return ClassOther
}

// Permanent reports whether the same call will fail the same way until somebody changes something.
func (c Class) Permanent() bool {
	switch c {
	case ClassNotExist, ClassChanged, ClassUnreadable, ClassArchived, ClassName, ClassUnsupported,
		ClassPermission, ClassCredentials, ClassNoBucket:
		return true
	}
	return false
}

// Bucketwide reports whether other objects of the same bucket would meet the same error now.
func (c Class) Bucketwide() bool {
	switch c {
	case ClassCredentials, ClassNoBucket, ClassThrottled, ClassUnavailable, ClassFull:
		return true
	}
	return false
}

// Permanent reports whether repeating the call that returned err is pointless. See the retry law.
func Permanent(err error) bool { return ClassOf(err).Permanent() }

// maxKey is what every provider allows (Google Cloud Storage and S3: 1,024 bytes) less room for a library's prefix.
const maxKey = 512

// CheckKey returns an error wrapping ErrName unless key can name an object of any library: segments of the ASCII
// letters, digits, "-", "_" and ".", separated by single slashes, none longer than 255 bytes, starting with a dot, or
// empty; 512 bytes in all.
func CheckKey(key string) error {
	if key == "" || len(key) > maxKey {
		return fmt.Errorf("library key of %d bytes: %w", len(key), ErrName)
	}
	for segment := range strings.SplitSeq(key, "/") {
		if segment == "" || segment[0] == '.' || len(segment) > 255 {
			return fmt.Errorf("library key %q: segment %q: %w", key, segment, ErrName)
		}
	}
	for i := range len(key) {
		switch c := key[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-', c == '_', c == '.', c == '/':
		default:
			return fmt.Errorf("library key %q: byte %d: %w", key, i, ErrName)
		}
	}
	return nil
}
