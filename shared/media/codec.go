package media

import "strings"

// codecs maps what containers call a codec to what everybody else does (ffprobe's names). MP4 has four characters,
// Matroska a path of which the longest known prefix counts.
var codecs = map[string]string{
	// ISO base media and QuickTime, video
	"avc1": "h264", "avc2": "h264", "avc3": "h264", "avc4": "h264",
	"hvc1": "hevc", "hev1": "hevc", "dvh1": "hevc", "dvhe": "hevc",
	"vvc1": "vvc", "vvi1": "vvc",
	"vp08": "vp8", "vp09": "vp9", "av01": "av1",
	"mp4v": "mpeg4", "s263": "h263", "h263": "h263",
	"jpeg": "mjpeg", "mjpa": "mjpeg", "mjpb": "mjpegb", "png ": "png",
	"apch": "prores", "apcn": "prores", "apcs": "prores", "apco": "prores", "ap4h": "prores", "ap4x": "prores",
	"AVdh": "dnxhd", "AVdn": "dnxhd",
	"dvc ": "dvvideo", "dvcp": "dvvideo", "dvpp": "dvvideo",
	// ISO base media and QuickTime, audio
	"mp4a": "aac", ".mp3": "mp3", "ac-3": "ac3", "ec-3": "eac3", "ac-4": "ac4",
	"Opus": "opus", "fLaC": "flac", "alac": "alac",
	"samr": "amr_nb", "sawb": "amr_wb", "dtsc": "dts", "dtsh": "dts", "dtsl": "dts", "dtse": "dts",
	"sowt": "pcm_s16le", "twos": "pcm_s16be", "in24": "pcm_s24be", "in32": "pcm_s32be", "fl32": "pcm_f32be",
	"lpcm": "pcm", "ipcm": "pcm", "fpcm": "pcm", "ulaw": "pcm_mulaw", "alaw": "pcm_alaw",

	// Matroska
	"V_MPEG4/ISO/AVC": "h264", "V_MPEGH/ISO/HEVC": "hevc", "V_MPEGI/ISO/VVC": "vvc",
	"V_VP8": "vp8", "V_VP9": "vp9", "V_AV1": "av1",
	"V_MPEG1": "mpeg1video", "V_MPEG2": "mpeg2video", "V_MPEG4": "mpeg4",
	"V_MJPEG": "mjpeg", "V_THEORA": "theora", "V_PRORES": "prores", "V_FFV1": "ffv1", "V_UNCOMPRESSED": "rawvideo",
	"A_AAC": "aac", "A_OPUS": "opus", "A_VORBIS": "vorbis", "A_FLAC": "flac", "A_ALAC": "alac",
	"A_MPEG/L1": "mp1", "A_MPEG/L2": "mp2", "A_MPEG/L3": "mp3",
	"A_AC3": "ac3", "A_EAC3": "eac3", "A_DTS": "dts", "A_TRUEHD": "truehd",
	"A_PCM/INT/LIT": "pcm", "A_PCM/INT/BIG": "pcm", "A_PCM/FLOAT/IEEE": "pcm",
}

// unnamed stands for the codec of a track that does not say. It is not empty, so that it still says that there is one.
const unnamed = "unknown"

// codec returns the common name of a container's codec, or the container's own in lower case.
func codec(name string) string {
	for n := name; n != ""; {
		if known, ok := codecs[n]; ok {
			return known
		}
		i := strings.LastIndexByte(n, '/')
		n = n[:max(i, 0)]
	}
	return printable(name)
}

// printable keeps what may stand in a log, a database and a page: the bytes are the uploader's.
func printable(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_', r == '-', r == '.', r == '/':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return -1
	}, name[:min(len(name), 32)])
	if name == "" {
		return unnamed
	}
	return name
}
