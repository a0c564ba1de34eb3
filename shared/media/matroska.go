package media

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"time"
)

// The elements of Matroska (RFC 9559) that matter here.
const (
	idEBML          = 0x1A45DFA3
	idSegment       = 0x18538067
	idInfo          = 0x1549A966
	idTimestampUnit = 0x2AD7B1
	idDuration      = 0x4489
	idTracks        = 0x1654AE6B
	idTrackEntry    = 0xAE
	idTrackNumber   = 0xD7
	idTrackType     = 0x83
	idCodecID       = 0x86
	idFrameDuration = 0x23E383
	idVideo         = 0xE0
	idPixelWidth    = 0xB0
	idPixelHeight   = 0xBA
	idCluster       = 0x1F43B675
	idTimestamp     = 0xE7
	idSimpleBlock   = 0xA3
	idBlockGroup    = 0xA0
	idBlock         = 0xA1
	idCRC32         = 0xBF
	idVoid          = 0xEC
)

const (
	maxElements = 20_000  // looked at in one file
	maxTail     = 6 << 20 // searched, from the end, for the last cluster
)

// element is one EBML element. end is unknownEnd for one that a live writer left open.
type element struct {
	id        uint32
	body, end int64
}

const unknownEnd = math.MaxInt64

// mkvFile gathers what the elements say. The reading is ours, not a library's, because live recordings need it: they
// have open-ended elements and no duration, so the end is looked for from behind.
type mkvFile struct {
	src      *source
	elements int

	unit     uint64 // nanoseconds per timestamp
	duration float64

	tracks []mkvTrack
}

type mkvTrack struct {
	number        uint64
	kind          uint64 // 1 video, 2 audio
	codec         string
	width, height int
	frame         uint64 // nanoseconds, 0 unknown
}

// parseMatroska reads Matroska and WebM.
func parseMatroska(src *source, info *Info) error {
	f := &mkvFile{src: src, unit: 1_000_000}
	clusters, err := f.headers()
	if err != nil {
		return err
	}

	var video, audio *mkvTrack
	for i := range f.tracks {
		switch t := &f.tracks[i]; {
		case t.kind == 1 && video == nil:
			video = t
		case t.kind == 2 && audio == nil:
			audio = t
		}
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
	if info.Duration = seconds(f.duration * float64(f.unit) / 1e9); info.Duration == 0 {
		info.Duration = f.lastTimestamp(clusters)
	}
	return nil
}

// headers reads up to the first cluster, and returns where that begins.
func (f *mkvFile) headers() (clusters int64, err error) {
	e, err := f.next(0, f.src.size)
	if err != nil {
		return 0, err
	}
	if e.id != idEBML || e.end > f.src.size {
		return 0, truncatedf("the EBML header is incomplete")
	}
	segment, err := f.next(e.end, f.src.size)
	if err != nil {
		return 0, err
	}
	if segment.id != idSegment {
		return 0, damagedf("no segment after the EBML header")
	}
	limit := f.src.size
	if segment.end != unknownEnd {
		if segment.end > f.src.size {
			return 0, truncatedf("the segment ends at byte %d, the file at %d", segment.end, f.src.size)
		}
		limit = segment.end
	}

	for off := segment.body; off < limit; {
		e, err := f.next(off, limit)
		if err != nil {
			return 0, err
		}
		switch {
		case e.id == idCluster && f.tracks != nil:
			return off, nil
		case e.end > limit:
			return 0, truncatedf("an element at byte %d reaches beyond the end", off)
		case e.id == idInfo:
			err = f.each(e, f.info)
		case e.id == idTracks:
			err = f.each(e, func(e element) error {
				if e.id != idTrackEntry || len(f.tracks) == maxTracks {
					return nil
				}
				t := mkvTrack{codec: unnamed}
				err := f.each(e, func(e element) error { return f.track(e, &t) })
				f.tracks = append(f.tracks, t)
				return err
			})
		}
		if err != nil {
			return 0, err
		}
		off = e.end
	}
	if f.tracks == nil {
		return 0, truncatedf("no tracks")
	}
	return 0, truncatedf("no media data (cluster)")
}

// next reads the header of the element at off. Its end may lie beyond limit: that is for the caller to judge.
func (f *mkvFile) next(off, limit int64) (element, error) {
	if f.elements++; f.elements > maxElements {
		f.src.exhausted = true
		return element{}, errExhausted
	}
	h, err := f.src.peekUpTo(off, int(min(12, limit-off)))
	if err != nil {
		return element{}, err
	}
	if len(h) == 0 {
		return element{}, truncatedf("no element header at byte %d", off)
	}
	n := bits.LeadingZeros8(h[0]) + 1
	if n > 4 {
		return element{}, damagedf("no element at byte %d", off)
	}
	if len(h) <= n {
		return element{}, truncatedf("half an element header at byte %d", off)
	}
	var id uint32
	for _, b := range h[:n] {
		id = id<<8 | uint32(b)
	}
	size, m := vint(h[n:])
	if m == 0 {
		if h[n] == 0 {
			return element{}, damagedf("no element size at byte %d", off)
		}
		return element{}, truncatedf("half an element header at byte %d", off)
	}
	e := element{id: id, body: off + int64(n+m), end: unknownEnd}
	if size != 1<<(7*m)-1 { // all ones: unknown
		e.end = e.body + int64(size)
	}
	return e, nil
}

// vint reads a variable-length number of up to 56 bits and says how many bytes it took; 0 when b ends before.
func vint(b []byte) (v uint64, n int) {
	if len(b) == 0 || b[0] == 0 {
		return 0, 0
	}
	n = bits.LeadingZeros8(b[0]) + 1
	if len(b) < n {
		return 0, 0
	}
	v = uint64(b[0]) & (1<<(8-n) - 1)
	for _, c := range b[1:n] {
		v = v<<8 | uint64(c)
	}
	return v, n
}

// each calls visit for the elements in e.
func (f *mkvFile) each(e element, visit func(element) error) error {
	for off := e.body; off < e.end; {
		child, err := f.next(off, e.end)
		if err != nil {
			return err
		}
		if child.end > e.end {
			return damagedf("the element at byte %d does not fit into its parent", off)
		}
		if err := visit(child); err != nil {
			return err
		}
		off = child.end
	}
	return nil
}

// info reads a child of Info.
func (f *mkvFile) info(e element) (err error) {
	switch e.id {
	case idTimestampUnit:
		var unit uint64
		if unit, err = f.uint(e); unit > 0 {
			f.unit = unit
		}
	case idDuration:
		f.duration, err = f.float(e)
	}
	return err
}

// track reads a descendant of TrackEntry.
func (f *mkvFile) track(e element, t *mkvTrack) (err error) {
	switch e.id {
	case idTrackNumber:
		t.number, err = f.uint(e)
	case idTrackType:
		t.kind, err = f.uint(e)
	case idFrameDuration:
		t.frame, err = f.uint(e)
	case idCodecID:
		var name []byte
		name, err = f.src.peek(e.body, int(min(e.end-e.body, 64)))
		t.codec = codec(string(bytes.TrimRight(name, "\x00")))
	case idVideo:
		return f.each(e, func(e element) error { return f.track(e, t) })
	case idPixelWidth:
		t.width, err = f.pixels(e)
	case idPixelHeight:
		t.height, err = f.pixels(e)
	}
	return err
}

func (f *mkvFile) uint(e element) (uint64, error) {
	n := e.end - e.body
	if n > 8 {
		return 0, damagedf("a number of %d bytes", n)
	}
	b, err := f.src.peek(e.body, int(n))
	var v uint64
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v, err
}

func (f *mkvFile) pixels(e element) (int, error) {
	v, err := f.uint(e)
	return int(min(v, MaxDimension+1)), err
}

func (f *mkvFile) float(e element) (float64, error) {
	v, err := f.uint(e)
	switch e.end - e.body {
	case 4:
		return float64(math.Float32frombits(uint32(v))), err
	case 8:
		return math.Float64frombits(v), err
	default:
		return 0, err
	}
}

// lastTimestamp is the duration of a recording that does not say it: when the last block of the last cluster ends, to
// within a frame. 0 when that cluster is not within maxTail of the end.
func (f *mkvFile) lastTimestamp(clusters int64) time.Duration {
	const chunk = 64 << 10
	f.elements = 0
	signature := binary.BigEndian.AppendUint32(nil, idCluster)
	buf := make([]byte, min(chunk, f.src.size-clusters))
	floor := max(clusters, f.src.size-maxTail)
	for end := f.src.size; end > floor; {
		start := max(floor, end-int64(len(buf)))
		b := buf[:end-start]
		if _, err := f.src.ReadAt(b, start); err != nil {
			return 0
		}
		for {
			i := bytes.LastIndex(b, signature)
			if i < 0 {
				break
			}
			if last, ok := f.clusterEnd(start + int64(i)); ok {
				return last
			}
			b = b[:i+len(signature)-1]
		}
		if start == floor {
			break
		}
		end = start + int64(len(signature)) - 1 // one that lies across the border
	}
	return 0
}

// clusterEnd is the end of the latest block from the cluster at off to the end of the file. A recording may break off
// anywhere, so what cannot be read ends the search. ok is false when there is no cluster at off.
func (f *mkvFile) clusterEnd(off int64) (last time.Duration, ok bool) {
	var now, latest uint64 // nanoseconds
	for off < f.src.size {
		e, err := f.next(off, f.src.size)
		if err != nil {
			break
		}
		off = e.end
		switch e.id {
		case idCluster, idBlockGroup:
			off = e.body // step in
		case idTimestamp:
			v, err := f.uint(e)
			if err != nil || v > uint64(MaxDuration)/max(f.unit, 1) {
				return 0, false
			}
			now, ok = v*f.unit, true
			latest = max(latest, now)
		case idSimpleBlock, idBlock:
			if ok {
				latest = max(latest, f.blockEnd(e, now))
			}
		case idCRC32, idVoid:
		default:
			if !ok {
				return 0, false // a cluster begins with its timestamp
			}
		}
	}
	return seconds(float64(latest) / 1e9), ok
}

// blockEnd is when a block ends in a cluster that begins at now.
func (f *mkvFile) blockEnd(e element, now uint64) uint64 {
	h, err := f.src.peekUpTo(e.body, 10)
	if err != nil {
		return 0
	}
	track, n := vint(h)
	if n == 0 || len(h) < n+2 {
		return 0
	}
	end := int64(now) + int64(int16(binary.BigEndian.Uint16(h[n:])))*int64(min(f.unit, 1<<40))
	for _, t := range f.tracks {
		if t.number == track && t.frame < uint64(time.Minute) {
			end += int64(t.frame)
		}
	}
	return uint64(max(end, 0))
}
