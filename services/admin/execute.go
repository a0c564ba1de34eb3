package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// execution is what a run is to be, as clients ask for it.
type execution struct {
	Prompt               string    `json:"prompt_id"`
	Target               runTarget `json:"target"`
	VideoSegmentation    string    `json:"video_segmentation_type,omitempty" enum:"smart,fixed,content_aware" default:"smart"`
	AudioSegmentation    string    `json:"audio_segmentation_type,omitempty" enum:"fixed,content_aware" default:"content_aware"`
	VideoSegmentDuration *int      `json:"video_segment_duration,omitempty" doc:"seconds, 1 to 300; required when the type is fixed, else ignored"`
	AudioSegmentDuration *int      `json:"audio_segment_duration,omitempty" doc:"seconds, 1 to 300; required when the type is fixed, else ignored"`
	ProcessingModel      string    `json:"processing_model,omitempty" maxLength:"200"`
	EnableTranscription  *bool     `json:"enable_transcription,omitempty" default:"true"`
	EnableImageEmbedding *bool     `json:"enable_image_embedding,omitempty" default:"true"`
}

// runTarget says which media.
type runTarget struct {
	Type   string   `json:"type" enum:"index,videos,playground"`
	Index  *string  `json:"index_id,omitempty" nullable:"true" doc:"required for index; for videos: the index they are all in"`
	Videos []string `json:"video_ids,omitempty" nullable:"true" doc:"required for videos"`
}

type executeRun struct {
	Body execution
}

type estimate struct {
	Estimated  float64        `json:"estimated_mt"`
	Breakdown  map[string]any `json:"breakdown" nullable:"false"`
	Sufficient bool           `json:"sufficient_balance"`
	Balance    float64        `json:"current_balance_mt"`
	Available  bool           `json:"available" doc:"false: nothing is billed here and nothing is known of what executors cost, so the numbers are zero"`
	MediaCount *int           `json:"media_count" doc:"how many media the run would have; null when they are not counted before it is made"`
}

type rerunJob struct {
	ID   string `path:"job_id"`
	Body struct {
		Preset json.RawMessage `json:"prompt_preset,omitempty" doc:"as in an import automation. Default: that of the job"`
	}
}

// maxNamedMedia bounds the media that a request for a run names, so that it fits into a message.
const maxNamedMedia = 10_000

func (a *Admin) executeRoutes() {
	const tag = "Prompt runs"
	register(a, route{
		method: "POST", path: "/prompt-runs/execute", scope: write, status: http.StatusAccepted, tag: tag, summary: "Start a prompt run",
		about: fmt.Sprintf("On all media of an index, or on up to %d by id. Answers at once, pending; poll the run. Counts of a run "+
			"on an index are zero until its list of media is made.", maxNamedMedia),
	}, a.executeRun)
	register(a, route{
		method: "POST", path: "/prompt-runs/estimate", scope: read, tag: tag, summary: "Estimate what a prompt run costs",
		about: "Checks the request like execute and starts nothing. Nothing is billed here: available is false and all amounts are zero.",
	}, a.estimateRun)
	register(a, route{
		method: "POST", path: "/import-jobs/{job_id}/prompt-run", scope: write, status: http.StatusAccepted, tag: "Import jobs",
		summary: "Run a prompt on what an import job brought in", about: "Again, without importing anything, or for the first time. " +
			"Each call makes a new run. 400 when the job has not ended or imported nothing.",
	}, a.rerunJob)
}

// settings checks how a run is to go and returns it as a preset.
func (e execution) settings(f *fieldErrors) preset {
	p := preset{
		PromptID: e.Prompt, VideoSegmentation: e.VideoSegmentation, AudioSegmentation: e.AudioSegmentation,
		ProcessingModel: orNull(e.ProcessingModel), EnableTranscription: value(e.EnableTranscription, true),
		EnableImageEmbedding: value(e.EnableImageEmbedding, true),
	}
	duration := func(field, kind string, given *int) *int {
		if kind != segmentFixed {
			return nil
		}
		if given == nil || *given < minSegment || *given > maxSegment {
			f.add(field, "is required when the segmentation type is fixed: %d to %d seconds", minSegment, maxSegment)
		}
		return given
	}
	p.VideoSegmentDuration = duration("video_segment_duration", p.VideoSegmentation, e.VideoSegmentDuration)
	p.AudioSegmentDuration = duration("audio_segment_duration", p.AudioSegmentation, e.AudioSegmentDuration)
	return p
}

// planned is a run as it would be started.
type planned struct {
	prompt  store.Prompt
	request event.RunWanted
	record  store.Run
	counted bool // the record knows its media
}

// plan checks a request for a run against what there is. asked is the prompt, nil: the one that is named.
func (a *Admin) plan(ctx context.Context, asked *store.Prompt, e execution) (planned, error) {
	var f fieldErrors
	p := e.settings(&f)
	t := e.Target
	index := value(t.Index, "")
	switch {
	case t.Type == "playground":
		f.add("target.type", "must be index or videos: there is no playground here")
	case t.Type == "index" && index == "":
		f.add("target.index_id", "is required when target.type is index")
	case t.Type == "videos" && t.Index != nil && index == "":
		f.add("target.index_id", "must not be empty; leave it out for media of several indexes")
	case t.Type == "videos" && (len(t.Videos) == 0 || len(t.Videos) > maxNamedMedia):
		f.add("target.video_ids", "is required when target.type is videos: 1 to %d ids of media", maxNamedMedia)
	case t.Type == "videos" && slices.Contains(t.Videos, ""):
		f.add("target.video_ids", "must be ids of media; one of these is empty")
	}
	if err := f.err(); err != nil {
		return planned{}, err
	}
	if asked == nil {
		found, err := lookUp(ctx, a.prompts, "prompt", e.Prompt)
		if err != nil {
			return planned{}, err
		}
		asked = &found
	}
	if index != "" {
		if _, err := lookUp(ctx, a.indexes, "index", index); err != nil {
			return planned{}, err
		}
	}
	out, err := a.draft(ctx, *asked, p, event.RunWanted{Index: index})
	if err != nil {
		return out, err
	}
	if t.Type == "index" {
		return out, a.targetIndex(ctx, &out)
	}
	return out, a.targetVideos(ctx, &out, t.Videos)
}

// draft begins a run.
func (a *Admin) draft(ctx context.Context, asked store.Prompt, settings any, w event.RunWanted) (planned, error) {
	var err error
	if w.Preset, err = json.Marshal(settings); err != nil {
		return planned{}, err
	}
	w.Run, w.RequestedAt = newID(ctx, "run"), time.Now().UTC()
	return planned{prompt: asked, request: w, record: store.Run{
		ID: w.Run, Job: w.Job, Index: w.Index, Prompt: asked.ID, PromptName: asked.Name, Preset: w.Preset,
		Status: store.RunPending, Tallies: make(map[string]store.Tally), CreatedAt: w.RequestedAt,
	}}, nil
}

func (a *Admin) targetIndex(ctx context.Context, p *planned) error {
	state, err := a.bus.State(ctx, topology.Media)
	if err != nil {
		return err
	}
	first, _, err := a.ledger.Page(ctx, p.request.Index, 1, "")
	if err != nil {
		return err
	}
	if len(first) == 0 {
		return invalid("target.index_id", "must be an index with media; this one has none")
	}
	p.request.AsOf, p.record.Target = state.LastSeq, store.OfIndex
	return nil
}

func (a *Admin) targetVideos(ctx context.Context, p *planned, videos []string) error {
	media, err := a.media(ctx, videos)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(media))
	common := ""
	for i, m := range media {
		switch {
		case p.request.Index != "" && m.Index != p.request.Index:
			return invalid("target.video_ids", "must be media of the index %s; %s is in another one", p.request.Index, m.ID)
		case i == 0:
			common = m.Index
		case m.Index != common:
			common = ""
		}
		there[m.ID.String()] = true
		t := p.record.Tallies[m.MediaType]
		t.Total++
		p.record.Tallies[m.MediaType] = t
		p.record.Count++
		p.record.Seconds += m.Seconds
		p.request.Videos = append(p.request.Videos, m.ID.String())
	}
	for _, v := range videos {
		if !there[v] {
			return notFound("video", shortened(v))
		}
	}
	p.request.Index, p.record.Index, p.counted = common, common, true
	return nil
}

func (a *Admin) executeRun(ctx context.Context, in *executeRun) (*body[promptRun], error) {
	p, err := a.plan(ctx, nil, in.Body)
	if err != nil {
		return nil, err
	}
	return a.start(ctx, p)
}

// start asks for the run first and records it second: a record without a request would stay pending for ever, while a
// request without a record gets one from whoever makes the run.
func (a *Admin) start(ctx context.Context, p planned) (*body[promptRun], error) {
	was, made, err := madeBefore(ctx, a.runs, p.request.Run)
	if err != nil {
		return nil, err
	}
	if made {
		v, err := a.viewRun(ctx, was, maxRunMedia)
		return &body[promptRun]{v}, err
	}
	reports, err := a.bus.State(ctx, topology.Reports) // before anything can be reported about it
	if err != nil {
		return nil, err
	}
	p.record.ReportsFrom = reports.LastSeq + 1
	data, err := json.Marshal(p.request)
	if err != nil {
		return nil, err
	}
	_, err = a.bus.Publish(ctx, bus.Message{
		Subject: a.bus.Subject("run", "wanted", p.request.Run), Data: data,
		ID: "wanted-" + p.request.Run, // the id of the run alone is that of its request to executors, on the same stream
	})
	if err != nil {
		return nil, err
	}
	r, _, err := a.runs.Modify(ctx, p.request.Run, func(r *store.Run) error {
		if r.ID != "" { // it is being made already
			return store.ErrUnchanged
		}
		*r = p.record
		return nil
	})
	if err != nil {
		return nil, err
	}
	v, err := a.viewRun(ctx, r, maxRunMedia)
	if v.Context.VideoIDs == nil && len(p.request.Videos) <= maxRunMedia {
		v.Context.VideoIDs = p.request.Videos
	}
	return &body[promptRun]{v}, err
}

func (a *Admin) estimateRun(ctx context.Context, in *executeRun) (*body[estimate], error) {
	p, err := a.plan(ctx, nil, in.Body)
	if err != nil {
		return nil, err
	}
	out := estimate{Breakdown: make(map[string]any), Sufficient: true}
	if p.counted {
		out.MediaCount = &p.record.Count
	}
	return &body[estimate]{out}, nil
}

func (a *Admin) rerunJob(ctx context.Context, in *rerunJob) (*body[promptRun], error) {
	job, err := lookUp(ctx, a.jobs, "import_job", in.ID)
	if err != nil {
		return nil, err
	}
	refused := func(format string, args ...any) error {
		return newProblem(http.StatusBadRequest, "import_job_not_runnable", "The import job %s %s.", job.ID, fmt.Sprintf(format, args...)).
			with("job_id", job.ID).with("status", string(job.Status))
	}
	if len(in.Body.Preset) == 0 && (len(job.Preset) == 0 || string(job.Preset) == "null") {
		return nil, invalid("prompt_preset", "is required: the import job %s has none", job.ID)
	}
	raw := job.Preset
	if len(in.Body.Preset) > 0 {
		raw = in.Body.Preset
	}
	var f fieldErrors
	resolved, promptID := resolvePreset(raw, "prompt_preset", &f)
	if err := f.err(); err != nil {
		return nil, err
	}
	asked, err := lookUp(ctx, a.prompts, "prompt", promptID)
	if err != nil {
		return nil, err
	}
	switch {
	case !job.Status.Terminal():
		return nil, refused("is %s; a run starts when it has ended", job.Status)
	case job.Progress.Imported == 0:
		return nil, refused("imported nothing to run on")
	case job.Report == "":
		return nil, refused("has ended, and what it imported is being put together; try again in a moment")
	}
	p, err := a.draft(ctx, asked, resolved, event.RunWanted{Job: job.ID, Index: job.Index})
	if err != nil {
		return nil, err
	}
	p.record.Count = job.Progress.Imported
	return a.start(ctx, p)
}
