package media

import (
	"bytes"
	"encoding/binary"
	"errors"
	"image"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"

	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"
	"golang.org/x/image/webp"
)

// parseImage reads dimensions, and for JPEG, PNG and WebP looks whether the end is there. No pixel is decoded.
func parseImage(src *source, info *Info) error {
	var (
		config image.Config
		err    error
	)
	switch info.Container {
	case "jpeg":
		if config, err = jpeg.DecodeConfig(src); err == nil {
			err = jpegEnds(src)
		}
	case "png":
		if config, err = png.DecodeConfig(src); err == nil {
			err = pngEnds(src)
		}
	case "webp":
		if config, err = webp.DecodeConfig(src); err == nil {
			err = webpEnds(src)
		}
	case "gif":
		config, err = gif.DecodeConfig(src)
	case "bmp":
		config, err = bmp.DecodeConfig(src)
	case "tiff":
		config, err = tiff.DecodeConfig(src)
	}
	var (
		jpegVariant jpeg.UnsupportedError
		pngVariant  png.UnsupportedError
		tiffVariant tiff.UnsupportedError
	)
	if errors.Is(err, bmp.ErrUnsupported) || errors.As(err, &jpegVariant) || errors.As(err, &pngVariant) ||
		errors.As(err, &tiffVariant) {
		return errNoDetails // a variant that Go does not decode is no damage
	}
	info.Width, info.Height = config.Width, config.Height
	return err
}

// jpegEnds looks for the end marker. It need not stand at the end of the file: phones append films. Within the
// picture its two bytes occur nowhere else, but embedded previews before it have one of their own.
func jpegEnds(src *source) error {
	scan, err := jpegScan(src)
	if err != nil {
		return err
	}
	const chunk = 16 << 10
	// Nearly always it stands at the very end. Otherwise the picture is read through, as far as MaxRead allows.
	if tail, err := src.peekUpTo(max(scan, src.size-chunk), chunk); err != nil || bytes.Contains(tail, jpegEOI) {
		return err
	}
	for off := scan; off < src.size; off += chunk - 1 {
		b, err := src.peekUpTo(off, chunk)
		if errors.Is(err, errExhausted) {
			return nil // a large picture; what was seen of it is sound
		}
		if err != nil || bytes.Contains(b, jpegEOI) {
			return err
		}
	}
	return truncatedf("the picture has no end")
}

var jpegEOI = []byte{0xFF, 0xD9}

// jpegScan returns where the first scan begins.
func jpegScan(src *source) (int64, error) {
	off := int64(2)
	for range maxChunks {
		h, err := src.peek(off, 4)
		if err != nil {
			return 0, err
		}
		switch marker := h[1]; {
		case h[0] != 0xFF || marker == 0xFF: // padding
			off++
		case marker == 0xDA:
			return off, nil
		case marker == 0x01 || marker >= 0xD0 && marker <= 0xD8: // these stand alone
			off += 2
		default:
			off += 2 + int64(binary.BigEndian.Uint16(h[2:]))
		}
	}
	return off, nil
}

// pngEnds looks for the IEND chunk.
func pngEnds(src *source) error {
	const iend = "IEND\xAEB\x60\x82"
	tail, err := src.peekUpTo(max(0, src.size-1024), 1024)
	if err != nil || bytes.Contains(tail, []byte(iend)) {
		return err
	}
	for off, n := int64(8), 0; ; n++ { // something was appended: walk
		h, err := src.peekUpTo(off, 8)
		if errors.Is(err, errExhausted) || n == maxBoxes {
			return nil // a large picture; what was seen of it is sound
		}
		if err != nil {
			return err
		}
		if len(h) < 8 {
			return truncatedf("the picture has no end")
		}
		off += 12 + int64(binary.BigEndian.Uint32(h))
		if string(h[4:8]) == "IEND" && off <= src.size {
			return nil
		}
	}
}

// webpEnds compares the length that the header states with the file's.
func webpEnds(src *source) error {
	h, err := src.peek(0, 12)
	if err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint32(h[4:]); int64(n)+8 > src.size {
		return truncatedf("%d of %d bytes", src.size, int64(n)+8)
	}
	return nil
}

var _ io.ReaderAt = (*source)(nil) // tiff reads a copy of everything from a source that is not
