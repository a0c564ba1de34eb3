// Package samples carries small real media files, good and bad, for demos and for tests of other packages. make.sh
// makes them.
package samples

import "embed"

// FS holds every sample under its bare name.
//
//go:embed video.mp4 video.mov video.webm video.mkv audio.mp3 audio.wav audio.flac audio.ogg audio.m4a photo.jpg photo.png
//go:embed truncated.mp4 cut.mp4 text.mp4 playlist.mp4 empty.mp4 upload.mp4.part
var FS embed.FS

// Good names the samples that are imported.
var Good = []string{
	"video.mp4", "video.mov", "video.webm", "video.mkv",
	"audio.mp3", "audio.wav", "audio.flac", "audio.ogg", "audio.m4a",
	"photo.jpg", "photo.png",
}

// Bad says how each of the other samples ends, in the words of a job's file entries.
var Bad = map[string]string{
	"truncated.mp4":   "failed: unreadable_media",
	"cut.mp4":         "failed: unreadable_media",
	"text.mp4":        "skipped: unsupported_type",
	"playlist.mp4":    "skipped: unsupported_type",
	"empty.mp4":       "skipped: empty",
	"upload.mp4.part": "skipped: hidden_or_temporary",
}
