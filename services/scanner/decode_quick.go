package scanner

import (
	"bytes"
	"encoding/base64"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"millrace/shared/event"
)

// What Pub/Sub sends comes in thousands a second, and encoding/json reads a message six times over: twice to see whether a
// CloudEvent is around it, twice as itself, twice for the object in it. So it is read here in one pass, and what is found is
// what encoding/json would find. Whatever would take thinking (an escape, a name twice or in other letters, null) is not
// understood here, on purpose, and left to that.

// quickMessage reads what Pub/Sub sends; false: it is not understood here.
func quickMessage(data []byte) (*pubsubMessage, bool) {
	var m *pubsubMessage
	q := quick{data: data}
	ok := q.object(func(name []byte) bool {
		switch {
		case m == nil && string(name) == "message":
			m = new(pubsubMessage)
			return q.message(m)
		case among(outerNames, name) >= 0:
			return false
		}
		return q.skip(0)
	})
	return m, ok && m != nil && q.end()
}

// message reads the message itself.
func (q *quick) message(m *pubsubMessage) bool {
	var seen names
	return q.object(func(name []byte) bool {
		i := among(messageNames, name)
		if i < 0 {
			return q.skip(0)
		}
		if !seen.add(i) {
			return false
		}
		switch string(name) {
		case "data":
			return q.base64(&m.Data)
		case "attributes":
			return q.attributes(m)
		}
		return false // in other letters
	})
}

func (q *quick) attributes(m *pubsubMessage) bool {
	a := &m.Attributes
	var seen names
	return q.object(func(name []byte) bool {
		i := among(attributeNames, name)
		if i < 0 {
			return q.skip(0)
		}
		if !seen.add(i) {
			return false
		}
		switch string(name) {
		case "eventType":
			return q.text(&a.EventType)
		case "bucketId":
			return q.text(&a.BucketID)
		case "objectId":
			return q.text(&a.ObjectID)
		case "objectGeneration":
			return q.text(&a.Generation)
		case "overwrittenByGeneration":
			return q.text(&a.OverwrittenBy)
		}
		return false
	})
}

// quickObject reads the object of a message.
func quickObject(data []byte) (o pubsubObject, ok bool) {
	q := quick{data: data}
	var seen names
	ok = q.object(func(name []byte) bool {
		i := among(objectNames, name)
		if i < 0 {
			return q.skip(0)
		}
		var s string
		if !seen.add(i) || !q.text(&s) {
			return false
		}
		switch string(name) {
		case "size": // as a number that JSON could be
			n, err := strconv.ParseInt(s, 10, 64)
			o.Size = n
			return err == nil && strconv.FormatInt(n, 10) == s
		case "crc32c":
			o.CRC32C = s
		case "generation":
			o.Generation = s
		case "timeCreated":
			return o.Created.UnmarshalText([]byte(s)) == nil
		default:
			return false
		}
		return true
	})
	return o, ok && q.end()
}

// The names that encoding/json would look for, in whatever letters.
var (
	outerNames     = append(namesOf[event.Notification](), "message", "specversion")
	messageNames   = namesOf[pubsubMessage]()
	attributeNames = namesOf[pubsubAttributes]()
	objectNames    = namesOf[pubsubObject]()
)

func namesOf[T any]() []string {
	var names []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[T]()) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}

// among returns which of names name is, or would be taken for; -1: none.
func among(names []string, name []byte) int {
	for i, n := range names {
		if len(n) == len(name) && strings.EqualFold(n, string(name)) {
			return i
		}
	}
	return -1
}

// names are those that were met, by their place in a list.
type names uint32

// add reports whether one is met for the first time.
func (n *names) add(i int) bool {
	met := *n&(1<<i) != 0
	*n |= 1 << i
	return !met
}

// quick is a place in a JSON text. Its methods read what is there next, and return false for what is malformed, something
// else, or not simple.
type quick struct {
	data []byte
	at   int
}

func (q *quick) space() {
	for q.at < len(q.data) {
		switch q.data[q.at] {
		case ' ', '\t', '\r', '\n':
			q.at++
		default:
			return
		}
	}
}

// next takes a character, after what space there is.
func (q *quick) next(c byte) bool {
	if q.space(); q.at < len(q.data) && q.data[q.at] == c {
		q.at++
		return true
	}
	return false
}

func (q *quick) end() bool {
	q.space()
	return q.at == len(q.data)
}

// object reads an object whose names are plain ASCII. member reads the value of a name.
func (q *quick) object(member func(name []byte) bool) bool {
	if !q.next('{') {
		return false
	}
	if q.next('}') {
		return true
	}
	for {
		name, plain, ok := q.quoted()
		if !ok || !plain || !q.next(':') || !member(name) {
			return false
		}
		if q.next('}') {
			return true
		}
		if !q.next(',') {
			return false
		}
	}
}

// quoted reads a string without escapes; ascii says whether it is of printable ASCII.
func (q *quick) quoted() (s []byte, ascii, ok bool) {
	if !q.next('"') {
		return nil, false, false
	}
	from := q.at
	ascii = true
	for i, c := range q.data[from:] {
		switch {
		case c == '"':
			q.at = from + i + 1
			return q.data[from : from+i], ascii, true
		case c < ' ' || c == '\\':
			return nil, false, false
		case c >= 0x80:
			ascii = false
		}
	}
	return nil, false, false
}

// text reads such a string in UTF-8, which a message was found to be and an object need not be.
func (q *quick) text(to *string) bool {
	s, ascii, ok := q.quoted()
	*to = string(s)
	return ok && (ascii || utf8.Valid(s))
}

// base64 reads a string of base64. The characters are the decoder's to check, but for those it passes over.
func (q *quick) base64(to *[]byte) bool {
	if !q.next('"') {
		return false
	}
	length := bytes.IndexByte(q.data[q.at:], '"')
	if length < 0 {
		return false
	}
	s := q.data[q.at : q.at+length]
	q.at += length + 1
	if bytes.IndexByte(s, '\n') >= 0 || bytes.IndexByte(s, '\r') >= 0 {
		return false
	}
	b := make([]byte, base64.StdEncoding.DecodedLen(len(s)))
	n, err := base64.StdEncoding.Decode(b, s)
	*to = b[:n]
	return err == nil
}

// maxQuick is how deep what is skipped may be nested.
const maxQuick = 8

// skip passes over a value.
func (q *quick) skip(depth int) bool {
	if q.space(); q.at == len(q.data) || depth > maxQuick {
		return false
	}
	switch c := q.data[q.at]; {
	case c == '"':
		return q.skipString()
	case c == '{':
		return q.object(func([]byte) bool { return q.skip(depth + 1) })
	case c == '[':
		if q.at++; q.next(']') {
			return true
		}
		for q.skip(depth + 1) {
			if q.next(']') {
				return true
			}
			if !q.next(',') {
				return false
			}
		}
		return false
	case '1' <= c && c <= '9':
		for q.at < len(q.data) && '0' <= q.data[q.at] && q.data[q.at] <= '9' {
			q.at++
		}
		return true // what makes a fraction of it is no comma
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(q.data[q.at:], []byte(word)) {
			q.at += len(word)
			return true
		}
	}
	return false
}

// skipString passes over a string, which may be of any characters and have escapes.
func (q *quick) skipString() bool {
	for i := q.at + 1; i < len(q.data); i++ {
		switch c := q.data[i]; {
		case c == '"':
			q.at = i + 1
			return true
		case c < ' ':
			return false
		case c == '\\':
			if i++; i+4 < len(q.data) && q.data[i] == 'u' && hexadecimal(q.data[i+1:i+5]) {
				i += 4
			} else if i == len(q.data) || strings.IndexByte(`"\/bfnrt`, q.data[i]) < 0 {
				return false
			}
		}
	}
	return false
}

func hexadecimal(digits []byte) bool {
	for _, c := range digits {
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'f') {
			return false
		}
	}
	return true
}
