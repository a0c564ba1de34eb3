package media

import (
	"encoding/binary"
	"fmt"
	"math"
)

const (
	maxChunks = 1024 // RIFF chunks or FLAC metadata blocks looked at in one file

	// riffSlack is by how many bytes a RIFF size may point past the end of the file: writers forget a pad byte, or
	// count headers twice. More is a file that was cut.
	riffSlack = 64
)

// riffOpen reports whether a RIFF size means "until the end": a writer that could not go back left it so.
func riffOpen(size uint32) bool { return size == 0 || size >= 1<<31-1<<12 }

// parseWAV reads the format and the length of the data of a RIFF WAVE file.
func parseWAV(src *source, info *Info) error {
	var (
		bytesPerSecond uint32
		off            = int64(12)
	)
	for range maxChunks {
		h, err := src.peekUpTo(off, 8)
		if err != nil {
			return err
		}
		if len(h) < 8 {
			return truncatedf("no data chunk")
		}
		id, size := string(h[:4]), binary.LittleEndian.Uint32(h[4:])
		off += 8
		switch id {
		case "fmt ":
			f, err := src.peek(off, 16)
			if err != nil {
				return err
			}
			bytesPerSecond = binary.LittleEndian.Uint32(f[8:])
			format, bits := binary.LittleEndian.Uint16(f), binary.LittleEndian.Uint16(f[14:])
			if format == 0xFFFE && size >= 40 { // extensible: the format proper comes later
				if f, err = src.peek(off+24, 2); err != nil {
					return err
				}
				format = binary.LittleEndian.Uint16(f)
			}
			info.AudioCodec = wavCodec(format, bits)
		case "data":
			if bytesPerSecond == 0 {
				return damagedf("no usable fmt chunk before the data")
			}
			n := min(int64(size), src.size-off)
			switch {
			case riffOpen(size):
				n = src.size - off
			case int64(size) > src.size-off+riffSlack:
				return truncatedf("the data chunk has %d of its %d bytes", src.size-off, size)
			}
			info.Duration = ticks(uint64(n), bytesPerSecond)
			return nil
		}
		off += int64(size) + int64(size&1)
	}
	return damagedf("no data chunk among the first %d", maxChunks)
}

func wavCodec(format, bits uint16) string {
	switch format {
	case 1:
		if bits == 8 {
			return "pcm_u8"
		}
		return fmt.Sprintf("pcm_s%dle", bits)
	case 3:
		return fmt.Sprintf("pcm_f%dle", bits)
	case 2:
		return "adpcm_ms"
	case 6:
		return "pcm_alaw"
	case 7:
		return "pcm_mulaw"
	case 0x11:
		return "adpcm_ima_wav"
	case 0x55:
		return "mp3"
	}
	return unnamed
}

// parseFLAC reads the STREAMINFO block of the FLAC stream at off.
func parseFLAC(src *source, off int64, info *Info) error {
	info.AudioCodec = "flac"
	h, err := src.peek(off, 4+4+34)
	if err != nil {
		return err
	}
	if h[4]&0x7F != 0 {
		return damagedf("the first block is not STREAMINFO")
	}
	// 20 bits of sample rate, 3 of channels, 5 of bits per sample, 36 of samples
	packed := binary.BigEndian.Uint64(h[8+10:])
	rate, samples := uint32(packed>>44), packed&(1<<36-1)
	if rate == 0 {
		return damagedf("a sample rate of 0")
	}

	off += 4
	for range maxChunks {
		h, err := src.peek(off, 4)
		if err != nil {
			return err
		}
		last := h[0]&0x80 != 0
		if off += 4 + int64(binary.BigEndian.Uint32(h)&0xFFFFFF); off >= src.size {
			return truncatedf("no audio after the metadata")
		}
		if last {
			break
		}
	}
	if h, err = src.peek(off, 2); err != nil {
		return err
	}
	if h[0] != 0xFF || h[1]&0xFC != 0xF8 {
		return damagedf("no audio frame after the metadata")
	}
	info.Duration = ticks(min(samples, math.MaxInt64), rate)
	return nil
}
