package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/event"
	"millrace/shared/store"
)

// promptRun is a store.Run as clients see it. Here an executor answers once per medium, so a medium counts as one
// segment.
type promptRun struct {
	ID         string     `json:"run_id"`
	Prompt     string     `json:"prompt_id"`
	PromptName string     `json:"prompt_name"`
	PromptType string     `json:"prompt_type"`
	ExecutedAt string     `json:"executed_at" format:"date-time"`
	ExecutedBy string     `json:"executed_by"`
	Executor   *string    `json:"executor" doc:"what carries runs out by default"`
	Status     string     `json:"status" enum:"pending,processing,completed,completed_with_failures,failed,cancelled"`
	Context    runContext `json:"run_context"`
	JobID      *string    `json:"job_id" doc:"the import job that the run followed"`

	TotalVideos     int `json:"total_videos"`
	CompletedVideos int `json:"completed_videos"`
	FailedVideos    int `json:"failed_videos"`
	PartialVideos   int `json:"partial_videos"`
	CancelledVideos int `json:"cancelled_videos"`
	TotalAudios     int `json:"total_audios"`
	CompletedAudios int `json:"completed_audios"`
	FailedAudios    int `json:"failed_audios"`
	PartialAudios   int `json:"partial_audios"`
	CancelledAudios int `json:"cancelled_audios"`
	TotalImages     int `json:"total_images"`
	CompletedImages int `json:"completed_images"`
	FailedImages    int `json:"failed_images"`
	PartialImages   int `json:"partial_images"`
	CancelledImages int `json:"cancelled_images"`

	TotalSegments            int   `json:"total_segments"`
	CompletedSegments        int   `json:"completed_segments"`
	FieldExtractionFailures  int   `json:"field_extraction_failures"`
	TranscriptionFailures    int   `json:"transcription_failures"`
	ImageEmbeddingFailures   int   `json:"image_embedding_failures"`
	FieldExtractionSucceeded *bool `json:"field_extraction_succeeded"`
	TranscriptionSucceeded   *bool `json:"transcription_succeeded"`
	ImageEmbeddingSucceeded  *bool `json:"image_embedding_succeeded"`

	VideoSegmentation    string  `json:"video_segmentation_type"`
	AudioSegmentation    string  `json:"audio_segmentation_type"`
	ImageSegmentation    string  `json:"image_segmentation_type"`
	VideoSegmentDuration *int    `json:"video_segment_duration"`
	AudioSegmentDuration *int    `json:"audio_segment_duration"`
	CreatedNewSegments   bool    `json:"created_new_segments"`
	ProcessingModel      *string `json:"processing_model"`
	TotalVideoSeconds    float64 `json:"total_video_seconds"`
	EnableTranscription  bool    `json:"enable_transcription"`
	EnableImageEmbedding bool    `json:"enable_image_embedding"`

	VideoLevelEnabled        bool `json:"video_level_enabled"`
	VideoLevelTotalItems     int  `json:"video_level_total_items"`
	VideoLevelCompletedItems int  `json:"video_level_completed_items"`
	VideoLevelFailedItems    int  `json:"video_level_failed_items"`
	VideoLevelPartialItems   int  `json:"video_level_partial_items"`

	BillingEstimated float64 `json:"billing_estimated_mt"`
	BillingActual    float64 `json:"billing_actual_mt"`
	BillingStatus    *string `json:"billing_status"`
	BillingError     *string `json:"billing_error"`

	ErrorMessage *string   `json:"error_message"`
	StartedAt    *string   `json:"started_at" format:"date-time"`
	CompletedAt  *string   `json:"completed_at" format:"date-time"`
	StopState    stopState `json:"stop_state"`
	Marker       marker    `json:"marker"`
}

type runContext struct {
	Type       string   `json:"type" enum:"videos,index"`
	Index      *string  `json:"index_id"`
	VideoIDs   []string `json:"video_ids,omitempty" nullable:"false" doc:"left out when there are many, or while the run is being made"`
	MediaCount int      `json:"media_count"`
}

type stopState struct {
	RequestedAt *string `json:"requested_at" format:"date-time"`
	RequestedBy *string `json:"requested_by"`
	Mode        *string `json:"mode"`
	ObservedAt  *string `json:"observed_at" format:"date-time"`
	CompletedAt *string `json:"completed_at" format:"date-time"`
}

// marker is a person's note on something; none are made here.
type marker struct {
	ID        *string `json:"marker_id"`
	Color     *string `json:"color"`
	Note      *string `json:"note"`
	UpdatedAt *string `json:"updated_at"`
}

type runPath struct {
	ID string `path:"run_id"`
}

type listRuns struct {
	Status string `query:"status" doc:"one status, in any case"`
	Index  string `query:"index_id"`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"200"`
}

type runsOfIndex struct {
	ID     string `path:"index_id"`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
	Cursor string `query:"cursor" maxLength:"512" doc:"pagination.next_cursor of the page before"`
}

// How many media a run_context lists: in the run itself, and in lists of runs.
const (
	maxRunMedia       = 1000
	maxListedRunMedia = 100
)

func (a *Admin) runRoutes() {
	const tag = "Prompt runs"
	register(a, route{
		method: "GET", path: "/prompt-runs", scope: read, tag: tag, summary: "List prompt runs",
		about: fmt.Sprintf("Newest first. run_context lists up to %d media here; get the run for more.", maxListedRunMedia),
	}, a.listRuns)
	register(a, route{
		method: "GET", path: "/prompt-runs/{run_id}", scope: read, tag: tag, summary: "Get a prompt run",
		about: fmt.Sprintf("run_context lists up to %d media; beyond that it has only media_count.", maxRunMedia),
	}, a.getRun)
	register(a, route{
		method: "GET", path: "/indexes/{index_id}/prompt-runs", scope: read, tag: tag, summary: "List the prompt runs of an index", about: "Newest first.",
	}, a.runsOfIndex)
	register(a, route{
		method: "POST", path: "/prompt-runs/{run_id}/cancel", scope: write, tag: tag, summary: "Cancel a prompt run",
		about: "Once this is answered nothing more is counted into the run, and executors stop. 400 when it has ended otherwise.",
	}, a.cancelRun)
}

func (a *Admin) listRuns(ctx context.Context, in *listRuns) (*body[[]promptRun], error) {
	status := store.RunStatus(strings.ToLower(in.Status))
	switch status {
	case "", store.RunPending, store.RunProcessing, store.RunCompleted, store.RunCompletedWithFailures, store.RunFailed, store.RunCancelled:
	default:
		return nil, invalid("status", "must be one of pending, processing, completed, completed_with_failures, failed, cancelled")
	}
	newest := newestOf[store.Run]{limit: in.Limit, created: runCreated}
	for r, err := range a.runs.All(ctx) {
		if err != nil {
			return nil, err
		}
		if (status == "" || r.Status == status) && (in.Index == "" || r.Index == in.Index) {
			newest.add(r)
		}
	}
	views, err := a.viewRuns(ctx, newest.sorted())
	return &body[[]promptRun]{views}, err
}

func (a *Admin) runsOfIndex(ctx context.Context, in *runsOfIndex) (*body[page[promptRun]], error) {
	if _, err := lookUp(ctx, a.indexes, "index", in.ID); err != nil {
		return nil, err
	}
	list := "prompt runs of " + in.ID
	position, err := openCursor(list, in.Cursor)
	if err != nil {
		return nil, err
	}
	behind, err := readRunPosition(position)
	if err != nil {
		return nil, err
	}
	newest := newestOf[store.Run]{limit: in.Limit + 1, created: runCreated}
	for r, err := range a.runs.All(ctx) {
		if err != nil {
			return nil, err
		}
		if r.Index == in.ID && behind.precedes(r) {
			newest.add(r)
		}
	}
	runs, next := newest.sorted(), ""
	if len(runs) > in.Limit {
		runs = runs[:in.Limit]
		next = positionOf(runs[in.Limit-1]).String()
	}
	views, err := a.viewRuns(ctx, runs)
	return &body[page[promptRun]]{newPage(views, in.Limit, sealCursor(list, next))}, err
}

// runPosition is a place in a list of runs, the newest first: behind the run of this id, created then.
type runPosition struct {
	created int64 // Unix time, in nanoseconds
	id      string
}

func positionOf(r store.Run) runPosition { return runPosition{r.CreatedAt.UnixNano(), r.ID} }

func (p runPosition) String() string { return strconv.FormatInt(p.created, 36) + "." + p.id }

// readRunPosition is the inverse of String; "" is the place before all.
func readRunPosition(s string) (runPosition, error) {
	if s == "" {
		return runPosition{}, nil
	}
	at, id, _ := strings.Cut(s, ".")
	created, err := strconv.ParseInt(at, 36, 64)
	if err != nil || !event.IsToken(id) {
		return runPosition{}, badCursor()
	}
	return runPosition{created, id}, nil
}

// precedes reports whether a run comes behind the position.
func (p runPosition) precedes(r store.Run) bool {
	return p.id == "" || cmp.Or(cmp.Compare(r.CreatedAt.UnixNano(), p.created), cmp.Compare(r.ID, p.id)) < 0
}

// viewRuns shows the runs of a list.
func (a *Admin) viewRuns(ctx context.Context, runs []store.Run) ([]promptRun, error) {
	views := make([]promptRun, len(runs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelReads)
	for i, r := range runs {
		g.Go(func() (err error) {
			views[i], err = a.viewRun(gctx, r, maxListedRunMedia)
			return err
		})
	}
	return views, g.Wait()
}

func (a *Admin) getRun(ctx context.Context, in *runPath) (*body[promptRun], error) {
	r, err := lookUp(ctx, a.runs, "prompt_run", in.ID)
	if err != nil {
		return nil, err
	}
	v, err := a.viewRun(ctx, r, maxRunMedia)
	return &body[promptRun]{v}, err
}

func (a *Admin) viewRun(ctx context.Context, r store.Run, maxMedia int) (promptRun, error) {
	p := defaultPreset()
	if len(r.Preset) > 0 {
		if err := json.Unmarshal(r.Preset, &p); err != nil {
			return promptRun{}, fmt.Errorf("decode the preset of %s: %w", r.ID, err)
		}
	}
	media, err := a.mediaOf(ctx, r, maxMedia)
	if err != nil {
		return promptRun{}, err
	}
	video, audio, image := r.Tallies["video"], r.Tallies["audio"], r.Tallies["image"]
	v := promptRun{
		ID: r.ID, Prompt: r.Prompt, PromptName: r.PromptName, PromptType: "custom",
		ExecutedAt: stamp(r.CreatedAt), ExecutedBy: owner, Executor: orNull(a.cfg.Executor), Status: string(r.Status),
		Context:     runContext{Type: "videos", Index: orNull(r.Index), VideoIDs: media, MediaCount: r.Count},
		JobID:       orNull(r.Job),
		TotalVideos: video.Total, CompletedVideos: video.Completed, FailedVideos: video.Failed,
		TotalAudios: audio.Total, CompletedAudios: audio.Completed, FailedAudios: audio.Failed,
		TotalImages: image.Total, CompletedImages: image.Completed, FailedImages: image.Failed,
		VideoSegmentation: p.VideoSegmentation, AudioSegmentation: p.AudioSegmentation, ImageSegmentation: "image",
		VideoSegmentDuration: p.VideoSegmentDuration, AudioSegmentDuration: p.AudioSegmentDuration,
		ProcessingModel: p.ProcessingModel, EnableTranscription: p.EnableTranscription, EnableImageEmbedding: p.EnableImageEmbedding,
		TotalVideoSeconds: r.Seconds, ErrorMessage: orNull(r.Error),
		StartedAt: stampOrNull(r.StartedAt), CompletedAt: stampOrNull(r.EndedAt),
	}
	for _, t := range r.Tallies {
		v.TotalSegments += t.Total
		v.CompletedSegments += t.Completed
		v.FieldExtractionFailures += t.Failed
	}
	if r.Status.Terminal() {
		ok := r.Status == store.RunCompleted
		v.FieldExtractionSucceeded = &ok
	}
	if r.Target == store.OfIndex {
		v.Context.Type = "index"
	}
	if r.Status == store.RunCancelled {
		v.CancelledVideos = video.Total - video.Completed - video.Failed
		v.CancelledAudios = audio.Total - audio.Completed - audio.Failed
		v.CancelledImages = image.Total - image.Completed - image.Failed
		at, by, mode := stampOrNull(r.EndedAt), owner, "cancel" // a run that is cancelled ends with that
		v.StopState = stopState{RequestedAt: at, RequestedBy: &by, Mode: &mode, ObservedAt: at, CompletedAt: at}
	}
	return v, nil
}

// mediaOf lists the media of a run, nil when there are more than limit.
func (a *Admin) mediaOf(ctx context.Context, r store.Run, limit int) ([]string, error) {
	if r.Count > limit || r.Media == "" {
		return nil, nil
	}
	ids := make([]string, 0, r.Count)
	for m, err := range store.ReadLines[event.RunMedium](ctx, a.documents, r.Media) {
		if errors.Is(err, store.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		ids = append(ids, m.Video)
	}
	return ids, nil
}

// cancelRun ends a run. Whoever counts reports leaves it alone from then on, and executors look at or watch its record.
func (a *Admin) cancelRun(ctx context.Context, in *runPath) (*body[promptRun], error) {
	if !event.IsToken(in.ID) {
		return nil, notFound("prompt_run", in.ID)
	}
	now := time.Now().UTC()
	r, _, err := a.runs.Modify(ctx, in.ID, func(r *store.Run) error {
		switch {
		case r.ID == "":
			return notFound("prompt_run", in.ID)
		case r.Status == store.RunCancelled:
			return store.ErrUnchanged
		case r.Status.Terminal():
			return newProblem(http.StatusBadRequest, "prompt_run_not_cancellable",
				"The prompt run %s is %s; only a pending or processing one can be cancelled.", in.ID, r.Status).
				with("run_id", in.ID).with("status", string(r.Status))
		}
		r.Status, r.EndedAt = store.RunCancelled, now
		return nil
	})
	if err != nil {
		return nil, err
	}
	v, err := a.viewRun(ctx, r, maxRunMedia)
	return &body[promptRun]{v}, err
}
