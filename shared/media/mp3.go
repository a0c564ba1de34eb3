package media

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"
)

const (
	maxTags     = 4        // ID3v2 tags skipped at the beginning
	nearSync    = 2 << 10  // bytes that nearly always hold the first frame
	syncSearch  = 64 << 10 // bytes searched for it
	sampleCount = 64       // frames looked at to estimate a bit rate
)

// errNoFrame says that no MPEG audio frame was found where one should be.
var errNoFrame = errors.New("no MPEG audio frame")

// frame is what the four bytes before each frame of MPEG audio say.
type frame struct {
	layer      int // 1–3
	mpeg1      bool
	mono       bool
	sampleRate int
	bitRate    int // bit/s
	samples    int
	size       int // bytes, header included
}

var (
	bitRates = [2][4][16]int{ // kbit/s; by MPEG-1 or not, layer, index
		{
			1: {0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256},
			2: {0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160},
			3: {0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160},
		},
		{
			1: {0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448},
			2: {0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384},
			3: {0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320},
		},
	}
	sampleRates = [4][4]int{ // by version bits: 2.5, reserved, 2, 1
		{11025, 12000, 8000}, {}, {22050, 24000, 16000}, {44100, 48000, 32000},
	}
)

// parseFrame reads a frame header. Free-format frames, which do not tell their size, are not recognised.
func parseFrame(h []byte) (f frame, ok bool) {
	if len(h) < 4 || h[0] != 0xFF || h[1]&0xE0 != 0xE0 {
		return frame{}, false
	}
	version := h[1] >> 3 & 3
	f.layer = 4 - int(h[1]>>1&3)
	f.mpeg1 = version == 3
	f.mono = h[3]>>6 == 3
	f.sampleRate = sampleRates[version][h[2]>>2&3]
	if f.layer == 4 || f.sampleRate == 0 {
		return frame{}, false
	}
	row := 0
	if f.mpeg1 {
		row = 1
	}
	f.bitRate = 1000 * bitRates[row][f.layer][h[2]>>4]
	if f.bitRate == 0 {
		return frame{}, false
	}
	padding := int(h[2] >> 1 & 1)
	switch {
	case f.layer == 1:
		f.samples = 384
		f.size = (12*f.bitRate/f.sampleRate + padding) * 4
	case f.layer == 3 && !f.mpeg1:
		f.samples = 576
		f.size = 72*f.bitRate/f.sampleRate + padding
	default:
		f.samples = 1152
		f.size = 144*f.bitRate/f.sampleRate + padding
	}
	return f, true
}

// sameStream reports whether two frames can follow each other.
func (f frame) sameStream(g frame) bool {
	return f.layer == g.layer && f.mpeg1 == g.mpeg1 && f.sampleRate == g.sampleRate
}

// parseMP3 reads MPEG audio of all layers. The duration comes from a Xing, Info or VBRI header, else from the bit
// rate of the first frames: exact when it is constant, an estimate when it is not.
func parseMP3(src *source, info *Info) error {
	off, err := skipID3(src)
	if err != nil {
		return err
	}
	// The tag is used before other formats too, and Sniff sees no further than the tag.
	h, err := src.peekUpTo(off, 4)
	switch {
	case err != nil:
		return err
	case len(h) < 4:
		return truncatedf("nothing after the ID3 tag")
	case string(h) == "fLaC":
		info.Container, info.ContentType = "flac", contentType("flac", Audio)
		return parseFLAC(src, off, info)
	case h[0] == 0xFF && h[1]&0xF6 == 0xF0:
		info.Container, info.ContentType = "aac", contentType("aac", Audio)
		return errNoDetails
	}

	off, first, err := firstFrame(src, off)
	if err != nil {
		return err
	}
	info.AudioCodec = [...]string{1: "mp1", 2: "mp2", 3: "mp3"}[first.layer]

	frames, err := headerFrames(src, off, first)
	if err != nil {
		return err
	}
	if frames > 0 {
		info.Duration = ticks(frames*uint64(first.samples), uint32(first.sampleRate))
		return nil
	}
	info.Duration, err = estimate(src, off)
	return err
}

// skipID3 returns where the ID3v2 tags at the beginning end.
func skipID3(src *source) (off int64, err error) {
	for range maxTags {
		h, err := src.peekUpTo(off, 10)
		if err != nil {
			return 0, err
		}
		if len(h) < 10 || !bytes.HasPrefix(h, []byte("ID3")) {
			return off, nil
		}
		off += 10 + (int64(h[6]&0x7F)<<21 | int64(h[7]&0x7F)<<14 | int64(h[8]&0x7F)<<7 | int64(h[9]&0x7F))
		if h[5]&0x10 != 0 { // with a footer
			off += 10
		}
		if off > src.size {
			return 0, truncatedf("the ID3 tag ends at byte %d, the file at %d", off, src.size)
		}
	}
	return off, nil
}

// firstFrame finds the first frame from off on that another one, or the end of the file, follows.
func firstFrame(src *source, off int64) (int64, frame, error) {
	for _, n := range []int64{nearSync, syncSearch} {
		b, err := src.load(off, min(n, src.size-off))
		if err != nil {
			return 0, frame{}, err
		}
		for i := range b {
			f, ok := parseFrame(b[i:])
			if !ok {
				continue
			}
			at := off + int64(i)
			next, err := src.peekUpTo(at+int64(f.size), 4)
			if err != nil {
				return 0, frame{}, err
			}
			g, ok := parseFrame(next)
			if ok && f.sameStream(g) || bytes.HasPrefix(next, []byte("TAG")) || at+int64(f.size) == src.size {
				return at, f, nil
			}
		}
	}
	return 0, frame{}, errNoFrame
}

// headerFrames is the number of frames that the first one, when it is a Xing, Info or VBRI header, says there are.
func headerFrames(src *source, off int64, f frame) (uint64, error) {
	b, err := src.peekUpTo(off, min(f.size, 64))
	if err != nil {
		return 0, err
	}
	xing := 4 + 32
	switch {
	case f.mpeg1 && f.mono, !f.mpeg1 && !f.mono:
		xing = 4 + 17
	case !f.mpeg1:
		xing = 4 + 9
	}
	const vbri = 4 + 32
	switch {
	case len(b) >= xing+12 && (string(b[xing:xing+4]) == "Xing" || string(b[xing:xing+4]) == "Info"):
		if b[xing+7]&1 != 0 { // flags: the number of frames is there
			return uint64(binary.BigEndian.Uint32(b[xing+8:])), nil
		}
	case len(b) >= vbri+18 && string(b[vbri:vbri+4]) == "VBRI":
		return uint64(binary.BigEndian.Uint32(b[vbri+14:])), nil
	}
	return 0, nil
}

// estimate is the duration from off to the end if the rest is as dense as the first frames.
func estimate(src *source, off int64) (time.Duration, error) {
	end := src.size
	if tag, err := src.peekUpTo(end-128, 3); err != nil {
		return 0, err
	} else if string(tag) == "TAG" { // ID3v1
		end -= 128
	}
	var bytes, samples, rate int
	for at := off; at < end && samples < sampleCount*1152; {
		h, err := src.peekUpTo(at, 4)
		if err != nil {
			return 0, err
		}
		f, ok := parseFrame(h)
		if !ok {
			break
		}
		bytes, samples, rate = bytes+f.size, samples+f.samples, f.sampleRate
		at += int64(f.size)
	}
	if bytes == 0 {
		return 0, errNoFrame
	}
	return seconds(float64(end-off) / float64(bytes) * float64(samples) / float64(rate)), nil
}
