package media

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/gabriel-vasile/mimetype"
)

// SniffLen is how many of a file's first bytes Sniff wants. Fewer will do when the file is shorter; more are ignored.
const SniffLen = 4096

// types maps what the content looks like to what we import. Every other type is unsupported, relatives of these
// (AVIF, animations of HEIC, Motion JPEG 2000) included.
var types = map[string]Type{
	"video/mp4":       {Video, "video/mp4", "mp4"},
	"video/x-m4v":     {Video, "video/mp4", "mp4"},
	"audio/mp4":       {Audio, "audio/mp4", "mp4"},
	"audio/x-m4a":     {Audio, "audio/mp4", "mp4"},
	"video/quicktime": {Video, "video/quicktime", "mov"},
	"video/3gpp":      {Video, "video/3gpp", "3gp"},
	"video/3gpp2":     {Video, "video/3gpp", "3gp"},
	"video/matroska":  {Video, "video/x-matroska", "matroska"},
	"video/webm":      {Video, "video/webm", "webm"},
	"video/x-msvideo": {Video, "video/x-msvideo", "avi"},
	"audio/mpeg":      {Audio, "audio/mpeg", "mp3"},
	"audio/aac":       {Audio, "audio/aac", "aac"},
	"audio/wav":       {Audio, "audio/wav", "wav"},
	"audio/flac":      {Audio, "audio/flac", "flac"},
	"audio/ogg":       {Audio, "audio/ogg", "ogg"},
	"application/ogg": {Audio, "audio/ogg", "ogg"},
	"video/ogg":       {Video, "video/ogg", "ogg"},
	"image/jpeg":      {Image, "image/jpeg", "jpeg"},
	"image/png":       {Image, "image/png", "png"},
	"image/apng":      {Image, "image/png", "png"},
	"image/gif":       {Image, "image/gif", "gif"},
	"image/webp":      {Image, "image/webp", "webp"},
	"image/bmp":       {Image, "image/bmp", "bmp"},
	"image/tiff":      {Image, "image/tiff", "tiff"},
	"image/heic":      {Image, "image/heic", "heif"},
	"image/heif":      {Image, "image/heif", "heif"},
}

// contentTypes are those of containers that hold either kind; see contentType.
var contentTypes = map[string][2]string{ // video, audio
	"mp4":      {"video/mp4", "audio/mp4"},
	"mov":      {"video/quicktime", "video/quicktime"}, // nobody registered an audio one
	"3gp":      {"video/3gpp", "audio/3gpp"},
	"matroska": {"video/x-matroska", "audio/x-matroska"},
	"webm":     {"video/webm", "audio/webm"},
	"ogg":      {"video/ogg", "audio/ogg"},
	"avi":      {"video/x-msvideo", "video/x-msvideo"},
	"mp3":      {"audio/mpeg", "audio/mpeg"},
	"aac":      {"audio/aac", "audio/aac"},
	"flac":     {"audio/flac", "audio/flac"},
	"wav":      {"audio/wav", "audio/wav"},
}

func contentType(container string, kind Kind) string {
	if kind == Video {
		return contentTypes[container][0]
	}
	return contentTypes[container][1]
}

// Sniff tells from a file's first bytes, and from nothing else, what it is. Containers that hold either kind get the
// one their brand suggests; Probe knows better. The error wraps ErrUnsupported and names what was found, for instance
// "unsupported type: text/plain".
func Sniff(head []byte) (Type, error) {
	if len(head) == 0 {
		return Type{}, fmt.Errorf("%w: empty file", ErrUnsupported)
	}
	head = head[:min(len(head), SniffLen)]
	if isRIFF(head, "AVI ") { // also when padding precedes the header list
		return types["video/x-msvideo"], nil
	}
	found, _, _ := strings.Cut(mimetype.Detect(head).String(), ";")
	typ, ok := types[found]
	if !ok {
		return Type{}, fmt.Errorf("%w: %s", ErrUnsupported, found)
	}
	return typ, nil
}

func isRIFF(head []byte, form string) bool {
	return len(head) >= 12 && bytes.HasPrefix(head, []byte("RIFF")) && string(head[8:12]) == form
}
