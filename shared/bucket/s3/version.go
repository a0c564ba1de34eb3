package s3

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"millrace/shared/bucket"
)

// version names one version of an object: by its id, or by what it is like.
type version struct {
	id   string // "": the bucket keeps no old versions
	etag string // without quotation marks
	size int64
}

const (
	idMark      = "id:"
	nullVersion = "null" // the id of what was written while the bucket kept no old versions
)

// Version returns what Object.Version is, from what a notification tells about it: "" if that is not enough.
func Version(id, etag string, size int64) string {
	etag = unquoted(etag)
	switch {
	case id != "" && id != nullVersion:
		return idMark + id
	case etag != "":
		return etag + "-" + strconv.FormatInt(size, 10)
	}
	return ""
}

func unquoted(etag string) string { return strings.Trim(etag, `"`) }

// live stands for whichever version is live.
var live = version{}

// parseVersion is the inverse of Version. What is not a version of ours never existed.
func parseVersion(s string) (version, error) {
	if s == "" {
		return live, nil
	}
	if id, ok := strings.CutPrefix(s, idMark); ok && id != "" {
		return version{id: id}, nil
	}
	i := strings.LastIndexByte(s, '-')
	if i > 0 {
		size, err := strconv.ParseInt(s[i+1:], 10, 64)
		if err == nil && size >= 0 && !strings.ContainsAny(s, "\"\r\n") {
			return version{etag: s[:i], size: size}, nil
		}
	}
	return version{}, fmt.Errorf("version %q: %w", s, bucket.ErrChanged)
}

// is reports whether an object's version is this one.
func (v version) is(id, etag string, size int64) bool {
	if v.id != "" {
		return v.id == id
	}
	return v.etag == unquoted(etag) && v.size == size
}

// valid reports whether an object can have this name at all. Anything else does not exist, and is not sent where it might
// be understood as something else.
func valid(path string) bool {
	return path != "" && len(path) <= 1024 && utf8.ValidString(path) && !strings.ContainsRune(path, 0) && !climbs(path)
}

// climbs reports whether path has a segment that programs on the way, and servers that keep objects as files, make
// another path of. Amazon's own client refuses some of these too.
func climbs(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}
