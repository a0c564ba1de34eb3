package secret

import (
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// Redacted is what a String shows of itself.
const Redacted = "[redacted]"

// String is a secret in memory. However it is printed, logged or marshalled it shows Redacted, or nothing when it is
// empty; only Reveal gives it away. It decodes from text, so it may stand in a configuration. Do not compare with ==,
// see Equal.
type String struct {
	// Behind a pointer: fmt reaches past the methods of a type when it stands in an unexported field, but prints a
	// pointer there as an address.
	value *string
}

// NewString wraps a secret.
func NewString(s string) String {
	if s == "" {
		return String{}
	}
	return String{&s}
}

// Reveal returns the secret itself.
func (s String) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports whether there is no secret.
func (s String) IsZero() bool { return s.value == nil }

// Equal compares two secrets, in a time that does not depend on where they differ.
func (s String) Equal(t String) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(t.Reveal())) == 1
}

// String returns Redacted, or nothing when there is no secret.
func (s String) String() string {
	if s.IsZero() {
		return ""
	}
	return Redacted
}

// Format implements fmt.Formatter: every verb prints what String returns.
func (s String) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue implements slog.LogValuer.
func (s String) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements encoding.TextMarshaler, which JSON and YAML use.
func (s String) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: text is the secret.
func (s *String) UnmarshalText(text []byte) error {
	*s = NewString(string(text))
	return nil
}
