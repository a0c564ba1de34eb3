package media

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"time"
)

const (
	maxBoxes  = 20_000    // looked at in one file
	maxTracks = 64        // of one file that are kept; all others are ignored
	maxEntry  = 4 << 10   // bytes of a sample entry that are read
	maxRun    = 256 << 10 // bytes of a fragment's sample table that are read
	lastMoofs = 16        // fragments looked into for the end time
)

// box is one element of an ISO base media file, at [off, end) with its payload at [body, end).
type box struct {
	kind           string
	off, body, end int64
}

func (b box) size() int64 { return b.end - b.body }

// mp4File gathers what the boxes say. The reading is ours: half a dozen fixed layouts, against a library (the tests
// compare with it) that takes twenty times as long, makes an entry for each sample a box claims, and stops at boxes that
// end after the file where we must tell a cut file from bytes left behind.
type mp4File struct {
	src   *source
	boxes int

	timescale uint32 // of the movie
	duration  uint64 // of the movie, in timescale
	fragments uint64 // the duration the file announces for its fragments, in timescale

	tracks []mp4Track
	moofs  []box // the last ones

	moov, meta, mdat, fragmented bool
}

type mp4Track struct {
	id            uint32
	handler       string // vide, soun, …
	codec         string
	width, height int
	timescale     uint32
	duration      uint64
	sampleTicks   uint32 // default duration of a sample in a fragment
}

// parseMP4 reads MP4, QuickTime, 3GP and their fragmented forms.
func parseMP4(src *source, info *Info) error {
	f := &mp4File{src: src}
	if err := f.walk(); err != nil {
		return err
	}
	switch {
	case !f.moov:
		return truncatedf("no index (moov box): it was never written or is cut away")
	case f.fragmented && len(f.moofs) == 0:
		return truncatedf("no fragment follows the index")
	case !f.fragmented && !f.mdat:
		return truncatedf("no media data (mdat box)")
	}

	var video, audio, still *mp4Track
	for i := range f.tracks {
		t := &f.tracks[i]
		switch {
		case t.handler == "soun" && audio == nil:
			audio = t
		case t.handler == "vide" && (t.codec == "mjpeg" || t.codec == "png") && still == nil:
			still = t
		case t.handler == "vide" && t.codec != "mjpeg" && t.codec != "png" && video == nil:
			video = t
		}
	}
	if video == nil && (audio == nil || info.Kind == Video) {
		video = still // in an audio book that is the cover
	}
	switch {
	case video == nil && audio == nil:
		return damagedf("no video or audio track")
	case video == nil:
		info.tracks("", audio.codec)
	case audio == nil:
		info.tracks(video.codec, "")
	default:
		info.tracks(video.codec, audio.codec)
	}
	if video != nil {
		info.Width, info.Height = video.width, video.height
	}
	info.Duration = f.length()
	return nil
}

// length is the duration by the best source there is.
func (f *mp4File) length() time.Duration {
	d := ticks(f.duration, f.timescale)
	for _, t := range f.tracks {
		if d == 0 && (t.handler == "vide" || t.handler == "soun") {
			d = ticks(t.duration, t.timescale)
		}
	}
	if f.fragmented {
		d = max(d, ticks(f.fragments, f.timescale))
		if f.fragments == 0 {
			d = max(d, f.fragmentsEnd())
		}
	}
	return d
}

// walk visits the top-level boxes.
func (f *mp4File) walk() error {
	for off := int64(0); off < f.src.size; {
		b, err := f.next(off, f.src.size)
		if err != nil {
			return err
		}
		if b.end > f.src.size || b.body > b.end {
			if f.whole() && !topLevel[b.kind] {
				return nil // bytes that some tool left behind the file proper
			}
			if b.body > b.end {
				return damagedf("a box at offset %d that is smaller than its header", off)
			}
			return truncatedf("the %s box ends at byte %d, the file at %d", printable(b.kind), b.end, f.src.size)
		}
		switch b.kind {
		case "moov":
			f.moov = true
			err = f.each(b, f.movie)
		case "meta":
			f.meta = true
		case "moof":
			if len(f.moofs) == lastMoofs {
				f.moofs = slices.Delete(f.moofs, 0, 1)
			}
			f.moofs = append(f.moofs, b)
		case "mdat":
			f.mdat = true
		}
		if err != nil {
			return err
		}
		off = b.end
	}
	return nil
}

// topLevel are the boxes that may stand at the top of a file.
var topLevel = map[string]bool{
	"ftyp": true, "styp": true, "moov": true, "moof": true, "mdat": true, "meta": true, "mfra": true, "sidx": true,
	"ssix": true, "emsg": true, "prft": true, "pdin": true, "free": true, "skip": true, "wide": true, "uuid": true,
	"udta": true, "pnot": true, "PICT": true,
}

// whole reports whether what was seen makes a complete file.
func (f *mp4File) whole() bool { return f.mdat && (f.moov || f.meta) }

// next reads the header of the box at off. Its end may lie beyond limit: that is for the caller to judge.
func (f *mp4File) next(off, limit int64) (box, error) {
	if f.boxes++; f.boxes > maxBoxes {
		f.src.exhausted = true
		return box{}, errExhausted
	}
	h, err := f.src.peekUpTo(off, int(min(16, limit-off)))
	if err != nil {
		return box{}, err
	}
	if len(h) < 8 {
		return box{off: off, body: limit, end: limit + 1}, nil // not even a header
	}
	b := box{kind: string(h[4:8]), off: off, body: off + 8}
	switch n := binary.BigEndian.Uint32(h); {
	case n == 0:
		b.end = limit
	case n == 1 && len(h) < 16:
		b.body, b.end = limit, limit+1
	case n == 1:
		b.body = off + 16
		// A size beyond all reason only has to stay beyond the limit.
		b.end = off + int64(min(binary.BigEndian.Uint64(h[8:]), 1<<62))
	default:
		b.end = off + int64(n)
	}
	return b, nil
}

// each calls visit for the boxes in b.
func (f *mp4File) each(b box, visit func(box) error) error {
	for off := b.body; off+8 <= b.end; { // QuickTime may end a list with four zero bytes
		child, err := f.next(off, b.end)
		if err != nil {
			return err
		}
		if child.end > b.end || child.body > child.end {
			return damagedf("the %s box at offset %d does not fit into its %s box",
				printable(child.kind), off, printable(b.kind))
		}
		if err := visit(child); err != nil {
			return err
		}
		off = child.end
	}
	return nil
}

// payload returns the first n bytes of what is in b, to be used before anything else is read.
func (f *mp4File) payload(b box, n int) ([]byte, error) {
	if b.size() < int64(n) {
		return nil, damagedf("a %s box of %d bytes", printable(b.kind), b.size())
	}
	return f.src.peek(b.body, n)
}

// version is the first byte of boxes that come in two layouts: 0 has times of four bytes, 1 of eight.
func (f *mp4File) version(b box) (byte, error) {
	p, err := f.payload(b, 4)
	if err != nil {
		return 0, err
	}
	if p[0] > 1 {
		return 0, damagedf("a %s box of version %d", printable(b.kind), p[0])
	}
	return p[0], nil
}

// clock reads the time scale and the duration of mvhd and mdhd, which begin alike.
func (f *mp4File) clock(b box) (timescale uint32, duration uint64, err error) {
	version, err := f.version(b)
	if err != nil {
		return 0, 0, err
	}
	if version == 0 { // flags, created, modified
		p, err := f.payload(b, 20)
		if err != nil {
			return 0, 0, err
		}
		return binary.BigEndian.Uint32(p[12:]), known32(p[16:]), nil
	}
	p, err := f.payload(b, 32)
	if err != nil {
		return 0, 0, err
	}
	return binary.BigEndian.Uint32(p[20:]), known64(p[24:]), nil
}

// time reads the one time that follows version and flags in mehd and tfdt.
func (f *mp4File) time(b box) (uint64, error) {
	version, err := f.version(b)
	if err != nil {
		return 0, err
	}
	if version == 0 {
		p, err := f.payload(b, 8)
		if err != nil {
			return 0, err
		}
		return known32(p[4:]), nil
	}
	p, err := f.payload(b, 12)
	if err != nil {
		return 0, err
	}
	return known64(p[4:]), nil
}

// known32 reads a time; all ones, which mean that the writer did not know, are 0.
func known32(p []byte) uint64 {
	if t := binary.BigEndian.Uint32(p); t != 1<<32-1 {
		return uint64(t)
	}
	return 0
}

func known64(p []byte) uint64 {
	if t := binary.BigEndian.Uint64(p); t != 1<<64-1 {
		return t
	}
	return 0
}

// movie reads a child of moov.
func (f *mp4File) movie(b box) (err error) {
	switch b.kind {
	case "mvhd":
		f.timescale, f.duration, err = f.clock(b)
	case "trak":
		if len(f.tracks) == maxTracks {
			return nil
		}
		t := mp4Track{codec: unnamed}
		if err := f.each(b, func(b box) error { return f.track(b, &t) }); err != nil {
			return err
		}
		f.tracks = append(f.tracks, t)
	case "mvex":
		f.fragmented = true
		return f.each(b, f.extends)
	}
	return err
}

// extends reads a child of mvex: what holds for all fragments.
func (f *mp4File) extends(b box) (err error) {
	switch b.kind {
	case "mehd":
		f.fragments, err = f.time(b)
	case "trex": // flags, track, sample description, duration
		p, err := f.payload(b, 16)
		if err != nil {
			return err
		}
		if t := f.trackByID(binary.BigEndian.Uint32(p[4:])); t != nil {
			t.sampleTicks = binary.BigEndian.Uint32(p[12:])
		}
	}
	return err
}

func (f *mp4File) trackByID(id uint32) *mp4Track {
	for i := range f.tracks {
		if f.tracks[i].id == id {
			return &f.tracks[i]
		}
	}
	return nil
}

// track reads a descendant of trak.
func (f *mp4File) track(b box, t *mp4Track) (err error) {
	switch b.kind {
	case "mdia", "minf", "stbl":
		return f.each(b, func(b box) error { return f.track(b, t) })
	case "tkhd":
		return f.trackHeader(b, t)
	case "mdhd":
		t.timescale, t.duration, err = f.clock(b)
	case "hdlr":
		if t.handler != "" {
			return nil // QuickTime has a second one, in minf, that speaks of the storage
		}
		p, err := f.payload(b, 12)
		if err != nil {
			return err
		}
		t.handler = string(p[8:12])
	case "stsd":
		return f.samples(b, t)
	}
	return err
}

// trackHeader reads tkhd: the id, and the size at which pictures are shown.
func (f *mp4File) trackHeader(b box, t *mp4Track) error {
	version, err := f.version(b)
	if err != nil {
		return err
	}
	id, size := 12, 76
	if version == 1 {
		id, size = 20, 88
	}
	p, err := f.payload(b, size+8)
	if err != nil {
		return err
	}
	t.id = binary.BigEndian.Uint32(p[id:])
	t.width, t.height = int(binary.BigEndian.Uint16(p[size:])), int(binary.BigEndian.Uint16(p[size+4:]))
	return nil
}

// samples reads the first sample entry of stsd, which names the codec.
func (f *mp4File) samples(b box, t *mp4Track) error {
	b.body += 8 // version, flags, number of entries
	if b.size() < 8 {
		return nil
	}
	entry, err := f.next(b.body, b.end)
	if err != nil {
		return err
	}
	if entry.end > b.end || entry.body > entry.end {
		return damagedf("the sample entry at offset %d does not fit into its stsd box", entry.off)
	}
	payload, err := f.src.peekUpTo(entry.body, int(min(entry.size(), maxEntry)))
	if err != nil {
		return err
	}
	name := entry.kind
	if original, ok := inner(payload, "frma"); ok && len(original) >= 4 {
		name = string(original[:4]) // what an encrypted track (encv, enca) would be in clear
	}
	t.codec = codec(name)
	switch {
	case t.handler == "vide" && len(payload) >= 28:
		t.width, t.height = int(binary.BigEndian.Uint16(payload[24:])), int(binary.BigEndian.Uint16(payload[26:]))
	case t.handler == "soun" && name == "mp4a":
		t.codec = mpegAudio(payload)
	}
	return nil
}

// inner finds the payload of a box somewhere inside a sample entry. The tables around it differ between ISO and
// QuickTime; its four letters do not.
func inner(entry []byte, kind string) ([]byte, bool) {
	i := bytes.Index(entry, []byte(kind))
	if i < 4 {
		return nil, false
	}
	n := min(int(binary.BigEndian.Uint32(entry[i-4:])), len(entry)-i+4)
	if n < 8 {
		return nil, false
	}
	return entry[i+4 : i-4+n], true
}

// mpegAudio tells the codecs apart that all call themselves mp4a.
func mpegAudio(entry []byte) string {
	esds, _ := inner(entry, "esds")
	switch objectType(esds) {
	case 0x69, 0x6B:
		return "mp3"
	case 0xA5:
		return "ac3"
	case 0xA6:
		return "eac3"
	default:
		return "aac"
	}
}

// objectType reads the type of codec from the descriptors in an esds box; 0 when it is not where it belongs.
func objectType(esds []byte) byte {
	const stream, decoder = 3, 4
	if len(esds) < 4 {
		return 0
	}
	for b := esds[4:]; len(b) >= 2; { // version, flags
		tag := b[0]
		for b = b[1:]; len(b) > 0 && b[0]&0x80 != 0; b = b[1:] { // the size, which nobody needs
		}
		if len(b) < 5 {
			return 0
		}
		switch b = b[1:]; tag {
		case stream:
			if b[2]&0xE0 != 0 { // optional fields, never seen in files
				return 0
			}
			b = b[3:]
		case decoder:
			return b[0]
		default:
			return 0
		}
	}
	return 0
}

// fragmentsEnd is when the last fragments end. Fragments without a decode time tell nothing about it: 0.
func (f *mp4File) fragmentsEnd() time.Duration {
	var end time.Duration
	for _, moof := range f.moofs {
		// One broken fragment leaves the others' word.
		_ = f.each(moof, func(b box) error {
			if b.kind == "traf" {
				end = max(end, f.fragmentEnd(b))
			}
			return nil
		})
	}
	return end
}

// fragmentEnd is when one track's part of a fragment ends.
func (f *mp4File) fragmentEnd(traf box) time.Duration {
	var (
		track       *mp4Track
		sampleTicks uint32
		end         uint64
		timed       bool
	)
	err := f.each(traf, func(b box) (err error) {
		switch b.kind {
		case "tfhd":
			track, sampleTicks, err = f.fragmentHeader(b)
		case "tfdt":
			end, err = f.time(b)
			timed = true
		case "trun":
			var n uint64
			n, err = f.runTicks(b, sampleTicks)
			end += n
		}
		return err
	})
	if err != nil || track == nil || !timed || track.handler != "vide" && track.handler != "soun" {
		return 0
	}
	return ticks(end, track.timescale)
}

// fragmentHeader reads tfhd: whose samples these are and how long each lasts by default. track is nil when there is
// no such track.
func (f *mp4File) fragmentHeader(b box) (track *mp4Track, sampleTicks uint32, err error) {
	p, err := f.src.peekUpTo(b.body, int(min(b.size(), 24)))
	if err != nil || len(p) < 8 {
		return nil, 0, err
	}
	if track = f.trackByID(binary.BigEndian.Uint32(p[4:])); track != nil {
		sampleTicks = track.sampleTicks
	}
	const hasBase, hasDescription, hasDuration = 0x1, 0x2, 0x8
	flags, at := binary.BigEndian.Uint32(p), 8
	if flags&hasBase != 0 {
		at += 8
	}
	if flags&hasDescription != 0 {
		at += 4
	}
	if flags&hasDuration != 0 && len(p) >= at+4 {
		sampleTicks = binary.BigEndian.Uint32(p[at:])
	}
	return track, sampleTicks, nil
}

// runTicks is how long the samples of a trun box last.
func (f *mp4File) runTicks(trun box, sampleTicks uint32) (uint64, error) {
	b, err := f.src.load(trun.body, min(trun.size(), maxRun))
	if err != nil || len(b) < 8 {
		return 0, err
	}
	const (
		hasOffset, hasFirstFlags = 0x1, 0x4
		hasDuration, perSample   = 0x100, 0xF00
	)
	flags, count := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if flags&hasDuration == 0 {
		return uint64(count) * uint64(sampleTicks), nil
	}
	b = b[8:]
	b = b[min(4*bits.OnesCount32(flags&(hasOffset|hasFirstFlags)), len(b)):]
	stride := 4 * bits.OnesCount32(flags&perSample)
	var sum uint64
	for ; count > 0 && len(b) >= stride; count-- {
		sum += uint64(binary.BigEndian.Uint32(b)) // the duration stands first
		b = b[stride:]
	}
	return sum, nil
}

// parseHEIF reads the size of the largest picture in a HEIF file: its primary one, or the grid made of the others.
func parseHEIF(src *source, info *Info) error {
	f := &mp4File{src: src}
	if err := f.walk(); err != nil {
		return err
	}
	if !f.meta {
		return truncatedf("no index (meta box)")
	}
	var visit func(b box) error
	visit = func(b box) error {
		switch b.kind {
		case "meta":
			b.body = min(b.body+4, b.end) // version, flags
			return f.each(b, visit)
		case "iprp", "ipco":
			return f.each(b, visit)
		case "ispe":
			p, err := src.peekUpTo(b.body, int(min(12, b.size())))
			if err != nil || len(p) < 12 {
				return err
			}
			w, h := int64(binary.BigEndian.Uint32(p[4:])), int64(binary.BigEndian.Uint32(p[8:]))
			if w <= MaxDimension && h <= MaxDimension && w*h > int64(info.Width)*int64(info.Height) {
				info.Width, info.Height = int(w), int(h)
			}
		}
		return nil
	}
	return f.each(box{kind: "file", end: src.size}, visit)
}
