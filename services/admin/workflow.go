package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// workflowProcess starts a run in one request: with a prompt that is there or with words of the moment, and with the
// settings of either client.
type workflowProcess struct {
	Body struct {
		Prompt      string    `json:"prompt_id,omitempty" doc:"this or prompt_instruction"`
		Instruction string    `json:"prompt_instruction,omitempty" doc:"10 to 5000 characters, made a prompt of its own; this or prompt_id"`
		Index       string    `json:"index_id,omitempty" doc:"the run is on all of it, unless video_ids are given"`
		IndexName   string    `json:"index_name,omitempty" doc:"in place of index_id: the name of one index, exactly"`
		Videos      oneOrMore `json:"video_ids,omitempty" doc:"ids of media, or one id alone"`

		VideoSegmentation    string `json:"video_segmentation_type,omitempty" enum:"smart,fixed,content_aware"`
		AudioSegmentation    string `json:"audio_segmentation_type,omitempty" enum:"fixed,content_aware"`
		VideoSegmentDuration *int   `json:"video_segment_duration,omitempty"`
		AudioSegmentDuration *int   `json:"audio_segment_duration,omitempty"`
		ProcessingModel      string `json:"processing_model,omitempty" maxLength:"200"`
		EnableTranscription  *bool  `json:"enable_transcription,omitempty"`
		EnableImageEmbedding *bool  `json:"enable_image_embedding,omitempty"`

		Segmentation   string `json:"segmentation_mode,omitempty" enum:"smart,fixed,content_aware" doc:"where the types are not given"`
		FixedDuration  *int   `json:"fixed_segment_duration_seconds,omitempty" doc:"where the durations are not given; default 10 with segmentation_mode fixed"`
		Transcription  *bool  `json:"advanced_transcription,omitempty" doc:"where enable_transcription is not given"`
		ImageEmbedding *bool  `json:"create_image_embeddings,omitempty" doc:"where enable_image_embedding is not given"`
	}
}

// defaultSegment is how many seconds a segment has when a client says that segments are fixed and not how long.
const defaultSegment = 10

// oneOrMore is a list of ids, which the official Python client lets be one id alone.
type oneOrMore []string

// UnmarshalJSON takes both.
func (l *oneOrMore) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte(`"`)) {
		*l = make(oneOrMore, 1)
		return json.Unmarshal(data, &(*l)[0])
	}
	return json.Unmarshal(data, (*[]string)(l))
}

// Schema is for huma.
func (oneOrMore) Schema(huma.Registry) *huma.Schema {
	id := &huma.Schema{Type: huma.TypeString}
	return &huma.Schema{OneOf: []*huma.Schema{{Type: huma.TypeArray, Items: id}, id}}
}

type workflowRun struct {
	ID            string    `json:"run_id"`
	Run           promptRun `json:"run"`
	Prompt        prompt    `json:"prompt"`
	StatusURL     string    `json:"status_url" doc:"path on this server"`
	ResultsURL    string    `json:"results_url" doc:"path on this server"`
	CreatedInline bool      `json:"prompt_created_inline"`
}

type workflowResults struct {
	ID         string `path:"run_id"`
	Level      string `query:"result_level" enum:"segment,video" default:"segment"`
	View       string `query:"view" enum:"filtered,unfiltered,both" default:"both" doc:"has no effect: selection filters are not applied here"`
	Limit      int    `query:"limit" minimum:"1" maximum:"50" default:"50"`
	Filtered   string `query:"filtered_cursor" maxLength:"512"`
	Unfiltered string `query:"unfiltered_cursor" maxLength:"512" doc:"unfiltered.pagination.next_cursor of the page before"`
	Video      string `query:"video_id" doc:"only the results of this medium"`
}

type workflowPage struct {
	Run        string     `json:"run_id"`
	Status     string     `json:"status"`
	Level      string     `json:"result_level"`
	Selection  *none      `json:"selection_summary" doc:"null: selection filters are not applied here"`
	Filtered   *page[any] `json:"filtered" doc:"null: selection filters are not applied here"`
	Unfiltered page[any]  `json:"unfiltered"`
}

func (a *Admin) workflowRoutes() {
	const tag = "Workflow"
	register(a, route{
		method: "POST", path: "/workflow/process", scope: write, status: http.StatusAccepted, tag: tag, summary: "Start a prompt run in one request",
		about: "With a prompt by id, or with an instruction that becomes a prompt of its own.",
	}, a.workflowProcess)
	register(a, route{
		method: "GET", path: "/workflow/runs/{run_id}/results", scope: read, tag: tag, summary: "List the results of a prompt run",
		about: "Of all its media, in the order in which they came. Complete once the run has ended.",
	}, a.workflowResults)
}

func (a *Admin) workflowProcess(ctx context.Context, in *workflowProcess) (*body[workflowRun], error) {
	b := in.Body
	var f fieldErrors
	if (b.Prompt == "") == (b.Instruction == "") {
		f.add("prompt_id", "is required, or else prompt_instruction; not both")
	}
	if n := len([]rune(b.Instruction)); b.Instruction != "" && (n < 10 || n > 5000) {
		f.add("prompt_instruction", "must have 10 to 5000 characters")
	}
	switch {
	case b.Index != "" && b.IndexName != "":
		f.add("index_name", "must be left out when index_id is given")
	case b.Index == "" && b.IndexName == "" && len(b.Videos) == 0:
		f.add("index_id", "is required, or else index_name or video_ids: there is no playground here")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if b.IndexName != "" {
		var err error
		if b.Index, err = a.indexNamed(ctx, b.IndexName); err != nil {
			return nil, err
		}
	}
	if b.Segmentation == segmentFixed && b.FixedDuration == nil {
		b.FixedDuration = new(int)
		*b.FixedDuration = defaultSegment
	}
	audio := b.Segmentation
	if audio == segmentSmart { // of which audio has none
		audio = ""
	}
	e := execution{
		Prompt:               b.Prompt,
		Target:               runTarget{Type: "index", Index: orNull(b.Index)},
		VideoSegmentation:    cmp.Or(b.VideoSegmentation, b.Segmentation, segmentSmart),
		AudioSegmentation:    cmp.Or(b.AudioSegmentation, audio, segmentContent),
		VideoSegmentDuration: cmp.Or(b.VideoSegmentDuration, b.FixedDuration),
		AudioSegmentDuration: cmp.Or(b.AudioSegmentDuration, b.FixedDuration),
		ProcessingModel:      b.ProcessingModel,
		EnableTranscription:  cmp.Or(b.EnableTranscription, b.Transcription),
		EnableImageEmbedding: cmp.Or(b.EnableImageEmbedding, b.ImageEmbedding),
	}
	if len(b.Videos) > 0 {
		e.Target.Type, e.Target.Videos = "videos", b.Videos
	}
	var inline *store.Prompt
	if b.Prompt == "" {
		inline = &store.Prompt{
			ID: newID(ctx, "prm"), Name: titleOf(b.Instruction), Text: b.Instruction, JSONSchema: json.RawMessage(`{"type":"object"}`),
			Active: true, CreatedAt: time.Now().UTC(),
		}
		e.Prompt = inline.ID
	}
	p, err := a.plan(ctx, inline, e)
	if err != nil {
		return nil, err
	}
	if inline != nil {
		if _, err := create(ctx, a.prompts, inline.ID, *inline); err != nil {
			return nil, err
		}
	}
	run, err := a.start(ctx, p)
	if err != nil {
		return nil, err
	}
	v, err := viewPrompt(p.prompt)
	return &body[workflowRun]{workflowRun{
		ID: run.Body.ID, Run: run.Body, Prompt: v, CreatedInline: inline != nil,
		StatusURL:  a.cfg.BasePath + "/prompt-runs/" + run.Body.ID,
		ResultsURL: a.cfg.BasePath + "/workflow/runs/" + run.Body.ID + "/results",
	}}, err
}

// indexNamed returns the id of the one index with a name.
func (a *Admin) indexNamed(ctx context.Context, name string) (id string, err error) {
	for x, err := range a.indexes.All(ctx) {
		switch {
		case err != nil:
			return "", err
		case x.Name != name || x.ID == id:
		case id != "":
			return "", invalid("index_name", "must be the name of one index; several are called %q: give index_id", shortened(name))
		default:
			id = x.ID
		}
	}
	if id == "" {
		p := notFound("index", shortened(name))
		p.message = fmt.Sprintf("No index has the name %s.", shortened(name))
		return "", p
	}
	return id, nil
}

// titleOf names a prompt by the beginning of its text.
func titleOf(text string) string {
	const most = 60
	words := []rune(strings.Join(strings.Fields(text), " "))
	if len(words) > most {
		words = append(words[:most], '…')
	}
	return "Inline: " + string(words)
}

func (a *Admin) workflowResults(ctx context.Context, in *workflowResults) (*body[workflowPage], error) {
	r, err := lookUp(ctx, a.runs, "prompt_run", in.ID)
	if err != nil {
		return nil, err
	}
	video := "*"
	if in.Video != "" {
		if _, err := event.ParseMediumID(in.Video); err != nil {
			return nil, invalid("video_id", "must be the id of a medium, such as vid_…")
		}
		video = in.Video
	}
	list := strings.Join([]string{"results of", r.ID, video, in.Level}, " ")
	if _, err := openCursor("filtered "+list, in.Filtered); err != nil {
		return nil, err
	}
	position, err := openCursor(list, in.Unfiltered)
	if err != nil {
		return nil, err
	}
	from, err := readSequence(position)
	if err != nil {
		return nil, err
	}
	results, next := make([]any, 0, in.Limit), ""
	for s, err := range a.bus.Scan(ctx, topology.Reports, a.reportSubject(r.ID, video), from) {
		if err != nil {
			return nil, err
		}
		report, ok := readReport(s)
		if !ok || report.State == event.Processing {
			continue
		}
		if len(results) == in.Limit {
			next = strconv.FormatUint(s.Sequence, 36)
			break
		}
		if in.Level == "video" {
			results = append(results, viewVideoResult(r, report))
		} else {
			results = append(results, viewResult(r, report))
		}
	}
	return &body[workflowPage]{workflowPage{
		Run: r.ID, Status: string(r.Status), Level: in.Level, Unfiltered: newPage(results, in.Limit, sealCursor(list, next)),
	}}, nil
}

// readSequence reads a position in a stream; "" is its beginning.
func readSequence(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 36, 64)
	if err != nil {
		return 0, badCursor()
	}
	return n, nil
}
