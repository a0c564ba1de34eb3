package media

import (
	"bytes"
	"encoding/binary"
)

const (
	maxStreams  = 16      // of one Ogg file
	maxOggPage  = 65307   // bytes, by its format
	oggTailHint = 8 << 10 // the last page is nearly always within this many bytes
	oggHeader   = 27      // of a page, before its segment table
	oggMagic    = "OggS\x00"
)

// oggStream is one logical stream.
type oggStream struct {
	serial uint32
	rate   uint32 // granules per second; 0 when they are not a plain count of samples
	skip   uint64 // granules before the sound begins
}

// parseOgg reads the identification headers at the beginning and the position of the last page.
func parseOgg(src *source, info *Info) error {
	var (
		audio        *oggStream
		video, sound string
		off          int64
	)
	for range maxStreams {
		h, err := src.peekUpTo(off, oggHeader+255+64)
		if err != nil {
			return err
		}
		if len(h) < oggHeader {
			return truncatedf("half a page header at byte %d", off)
		}
		if !bytes.HasPrefix(h, []byte(oggMagic)) {
			return damagedf("no page at byte %d", off)
		}
		if h[5]&2 == 0 {
			break // no beginning of a stream any more
		}
		segments := int(h[26])
		if len(h) < oggHeader+segments {
			return truncatedf("half a page header at byte %d", off)
		}
		packet := h[oggHeader+segments:]
		stream := oggStream{serial: binary.LittleEndian.Uint32(h[14:])}
		switch {
		case bytes.HasPrefix(packet, []byte("\x01vorbis")) && len(packet) >= 16:
			sound, stream.rate = "vorbis", binary.LittleEndian.Uint32(packet[12:])
		case bytes.HasPrefix(packet, []byte("OpusHead")) && len(packet) >= 12:
			sound, stream.rate = "opus", 48000 // whatever it was before
			stream.skip = uint64(binary.LittleEndian.Uint16(packet[10:]))
		case bytes.HasPrefix(packet, []byte("\x7FFLAC")) && len(packet) >= 31:
			sound, stream.rate = "flac", binary.BigEndian.Uint32(packet[26:])>>12
		case bytes.HasPrefix(packet, []byte("Speex   ")) && len(packet) >= 40:
			sound, stream.rate = "speex", binary.LittleEndian.Uint32(packet[36:])
		case bytes.HasPrefix(packet, []byte("\x80theora")) && len(packet) >= 20:
			video = "theora"
			info.Width = int(packet[14])<<16 | int(packet[15])<<8 | int(packet[16])
			info.Height = int(packet[17])<<16 | int(packet[18])<<8 | int(packet[19])
		}
		if audio == nil && stream.rate > 0 {
			audio = &stream
		}
		off += int64(oggHeader + segments)
		for _, n := range h[oggHeader : oggHeader+segments] {
			off += int64(n)
		}
		if off > src.size {
			return truncatedf("the first page is incomplete")
		}
		if off == src.size {
			return truncatedf("nothing after the stream headers")
		}
	}
	if video == "" && sound == "" {
		return errNoDetails // some codec that we do not know
	}
	info.tracks(video, sound)
	if audio == nil {
		return nil
	}
	last, err := lastGranule(src, audio.serial)
	if err != nil {
		return err
	}
	info.Duration = ticks(last-min(last, audio.skip), audio.rate)
	return nil
}

// lastGranule is the position of the last page of a stream that has one; 0 when there is none near the end.
func lastGranule(src *source, serial uint32) (uint64, error) {
	for _, n := range []int64{oggTailHint, 2 * maxOggPage} {
		n = min(n, src.size)
		b, err := src.load(src.size-n, n)
		if err != nil {
			return 0, err
		}
		for {
			i := bytes.LastIndex(b, []byte(oggMagic))
			if i < 0 {
				break
			}
			if page := b[i:]; len(page) >= oggHeader && binary.LittleEndian.Uint32(page[14:]) == serial {
				if granule := binary.LittleEndian.Uint64(page[6:]); granule < 1<<63 { // not "none", -1
					return granule, nil
				}
			}
			b = b[:i]
		}
	}
	return 0, nil
}
