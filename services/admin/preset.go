package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
)

// preset is the execution settings of a run: those of an automation's prompt_preset, and of a run.
type preset struct {
	PromptID             string  `json:"prompt_id"`
	VideoSegmentation    string  `json:"video_segmentation_type"`
	AudioSegmentation    string  `json:"audio_segmentation_type"`
	VideoSegmentDuration *int    `json:"video_segment_duration"`
	AudioSegmentDuration *int    `json:"audio_segment_duration"`
	ProcessingModel      *string `json:"processing_model"`
	EnableTranscription  bool    `json:"enable_transcription"`
	EnableImageEmbedding bool    `json:"enable_image_embedding"`
}

const (
	segmentSmart   = "smart"
	segmentFixed   = "fixed"
	segmentContent = "content_aware"
)

func defaultPreset() preset {
	return preset{VideoSegmentation: segmentSmart, AudioSegmentation: segmentContent, EnableTranscription: true, EnableImageEmbedding: true}
}

// resolvePreset checks the members of a preset and fills in the defaults, so that later changes of defaults do not
// change what was configured. Members it does not know are kept. Errors name their field below at.
func resolvePreset(raw json.RawMessage, at string, f *fieldErrors) (resolved json.RawMessage, promptID string) {
	members := make(map[string]any)
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&members); err != nil || members == nil {
		f.add(at, "must be an object with prompt_id, or null to import only")
		return nil, ""
	}
	m := memberReader{members: members, at: at, errs: f}
	p := defaultPreset()
	m.str("prompt_id", &p.PromptID)
	if p.PromptID == "" && !m.has("prompt_id") {
		f.add(at+".prompt_id", "is required: the id of a prompt (or make %s null to import only)", at)
	}
	m.oneOf("video_segmentation_type", &p.VideoSegmentation, segmentSmart, segmentFixed, segmentContent)
	m.oneOf("audio_segmentation_type", &p.AudioSegmentation, segmentFixed, segmentContent)
	p.VideoSegmentDuration = m.duration("video_segment_duration", p.VideoSegmentation == segmentFixed, "video_segmentation_type")
	p.AudioSegmentDuration = m.duration("audio_segment_duration", p.AudioSegmentation == segmentFixed, "audio_segmentation_type")
	if m.has("processing_model") {
		p.ProcessingModel = new(string)
		m.str("processing_model", p.ProcessingModel)
	}
	m.boolean("enable_transcription", &p.EnableTranscription)
	m.boolean("enable_image_embedding", &p.EnableImageEmbedding)

	known, err := json.Marshal(p)
	if err == nil {
		err = json.Unmarshal(known, &members)
	}
	if err == nil {
		resolved, err = json.Marshal(members)
	}
	if err != nil {
		f.add(at, "cannot be stored: %s", err)
	}
	return resolved, p.PromptID
}

// memberReader reads members of a decoded object. Absent and null leave the default.
type memberReader struct {
	members map[string]any
	at      string
	errs    *fieldErrors
}

func (m memberReader) has(name string) bool { return m.members[name] != nil }

func (m memberReader) bad(name, format string, args ...any) {
	m.errs.add(m.at+"."+name, "%s", fmt.Sprintf(format, args...))
}

func (m memberReader) str(name string, to *string) {
	if !m.has(name) {
		return
	}
	s, ok := m.members[name].(string)
	if !ok || s == "" {
		m.bad(name, "must be a non-empty string")
		return
	}
	*to = s
}

func (m memberReader) oneOf(name string, to *string, allowed ...string) {
	if !m.has(name) {
		return
	}
	s, ok := m.members[name].(string)
	if !ok || !slices.Contains(allowed, s) {
		m.bad(name, "must be one of %s", strings.Join(allowed, ", "))
		return
	}
	*to = s
}

func (m memberReader) boolean(name string, to *bool) {
	if !m.has(name) {
		return
	}
	b, ok := m.members[name].(bool)
	if !ok {
		m.bad(name, "must be true or false")
		return
	}
	*to = b
}

// Limits of a segment, in seconds.
const (
	minSegment = 1
	maxSegment = 300
)

func (m memberReader) duration(name string, required bool, typ string) *int {
	if !m.has(name) {
		if required {
			m.bad(name, "is required when %s is fixed: %d to %d seconds", typ, minSegment, maxSegment)
		}
		return nil
	}
	n, ok := m.members[name].(json.Number)
	seconds, err := n.Float64()
	if !ok || err != nil || seconds != math.Trunc(seconds) || seconds < minSegment || seconds > maxSegment {
		m.bad(name, "must be an integer from %d to %d, in seconds", minSegment, maxSegment)
		return nil
	}
	whole := int(seconds)
	return &whole
}
