package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// videoResult is what an executor said about one medium as a whole. It answers once per medium, so this and the one
// segment of the medium say the same.
type videoResult struct {
	ResultType   string          `json:"result_type" enum:"video"`
	Run          string          `json:"run_id"`
	Prompt       string          `json:"prompt_id"`
	Video        string          `json:"video_id"`
	ExecutedAt   string          `json:"executed_at" format:"date-time"`
	Status       string          `json:"status" enum:"pending,processing,completed,failed,cancelled"`
	Metadata     json.RawMessage `json:"metadata" doc:"the result, an object; empty until there is one"`
	MetadataText string          `json:"metadata_text" doc:"the same as text"`
	ErrorMessage *string         `json:"error_message"`
}

type operationCounts struct {
	FieldExtraction int `json:"field_extraction"`
	Transcription   int `json:"transcription"`
	ImageEmbedding  int `json:"image_embedding"`
	Processing      int `json:"processing"`
}

type failedSegment struct {
	Segment      string  `json:"segment_id"`
	Video        string  `json:"video_id"`
	Status       string  `json:"status" enum:"failed"`
	StartTime    *string `json:"start_time"`
	EndTime      *string `json:"end_time"`
	CompletedAt  string  `json:"completed_at" format:"date-time"`
	ErrorMessage string  `json:"error_message"`
	FailureStage string  `json:"failure_stage" enum:"field_extraction"`
}

type failedVideo struct {
	Video    string          `json:"video_id"`
	Failed   int             `json:"failed_segments"`
	Counts   operationCounts `json:"operation_counts"`
	Segments []failedSegment `json:"segments" nullable:"false"`
}

type failureManifest struct {
	Run       string          `json:"run_id"`
	Status    string          `json:"status"`
	Failures  int             `json:"videos_with_failures"`
	Failed    int             `json:"failed_segments"`
	Counts    operationCounts `json:"operation_counts"`
	Videos    []failedVideo   `json:"videos" nullable:"false"`
	Truncated bool            `json:"truncated" doc:"there are more than are listed; the counts are of all"`
}

type segmentRetry struct {
	Run       string `json:"run_id"`
	Retry     string `json:"retry_id"`
	Status    string `json:"status"`
	Video     string `json:"video_id"`
	Segment   string `json:"segment_id"`
	CreatedAt string `json:"created_at" format:"date-time"`
	Message   string `json:"message"`
}

type runVideoPath struct {
	ID    string `path:"run_id"`
	Video string `path:"video_id"`
}

type runSegmentPath struct {
	ID      string `path:"run_id"`
	Video   string `path:"video_id"`
	Segment string `path:"segment_id"`
}

type runRetryPath struct {
	ID      string `path:"run_id"`
	Video   string `path:"video_id"`
	Segment string `path:"segment_id"`
	Retry   string `path:"retry_id"`
}

type runsOfIndex struct {
	ID     string `path:"index_id"`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
	Cursor string `query:"cursor" maxLength:"512" doc:"pagination.next_cursor of the page before"`
}

// maxListedFailures bounds the failed media that a manifest lists.
const maxListedFailures = 1000

func (a *Admin) runMoreRoutes() {
	const tag = "Prompt runs"
	register(a, route{
		method: "GET", path: "/indexes/{index_id}/prompt-runs", scope: read, tag: tag, summary: "List the prompt runs of an index", about: "Newest first.",
	}, a.runsOfIndex)
	register(a, route{
		method: "POST", path: "/prompt-runs/{run_id}/cancel", scope: write, tag: tag, summary: "Cancel a prompt run",
		about: "Once this is answered nothing more is counted into the run, and executors stop. 400 when it has ended otherwise.",
	}, a.cancelRun)
	register(a, route{
		method: "GET", path: "/prompt-runs/{run_id}/videos/{video_id}/video-result", scope: read, tag: tag,
		summary: "Get the result of one medium as a whole",
	}, a.videoResult)
	register(a, route{
		method: "GET", path: "/prompt-runs/{run_id}/failed-segments", scope: read, tag: tag, summary: "Get what failed",
		about: fmt.Sprintf("Lists up to %d media.", maxListedFailures),
	}, a.failedSegments)
	segment := "/prompt-runs/{run_id}/videos/{video_id}/segments/{segment_id}"
	register(a, route{
		method: "POST", path: segment + "/retry", scope: write, tag: tag, summary: "Retry a segment",
		about: "Always 400: segments are not retried one by one here. Start a run on the media that failed.",
	}, a.retrySegment)
	register(a, route{
		method: "GET", path: segment + "/retries/{retry_id}", scope: read, tag: tag, summary: "Get the retry of a segment", about: "Always 404, as there are none.",
	}, a.getRetry)
	register(a, route{
		method: "GET", path: "/prompt-runs/{run_id}/llm-calls", scope: read, tag: tag, summary: "List the model calls of a prompt run",
		about: "Always empty: executors do not tell of them.",
	}, a.llmCalls)
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

func (a *Admin) videoResult(ctx context.Context, in *runVideoPath) (*body[videoResult], error) {
	r, err := lookUp(ctx, a.runs, "prompt_run", in.ID)
	if err != nil {
		return nil, err
	}
	if _, err := event.ParseMediumID(in.Video); err != nil {
		return nil, notFound("video", in.Video)
	}
	reports, err := a.reports(ctx, a.reportSubject(r.ID, in.Video))
	if err != nil {
		return nil, err
	}
	for _, report := range reports {
		return &body[videoResult]{viewVideoResult(r, report)}, nil
	}
	part, err := a.partOf(ctx, r, in.Video)
	if err != nil {
		return nil, err
	}
	if !part {
		p := notFound("video", in.Video).with("run_id", r.ID)
		p.message = fmt.Sprintf("The prompt run %s has no medium %s.", r.ID, in.Video)
		return nil, p
	}
	return &body[videoResult]{viewVideoResult(r, event.Report{Video: in.Video, ReportedAt: r.CreatedAt})}, nil
}

func viewVideoResult(r store.Run, report event.Report) videoResult {
	metadata := objectOf(report.Result)
	v := videoResult{
		ResultType: "video", Run: r.ID, Prompt: r.Prompt, Video: report.Video, ExecutedAt: stamp(report.ReportedAt),
		Metadata: metadata, MetadataText: string(metadata),
	}
	switch {
	case report.State == event.Successful:
		v.Status = "completed"
	case report.State == event.Unsuccessful:
		v.Status, v.ErrorMessage = "failed", orNull(cmp.Or(report.Error, "failed"))
	case r.Status == store.RunCancelled:
		v.Status = "cancelled"
	case r.Status.Terminal():
		v.Status, v.ErrorMessage = "failed", orNull(cmp.Or(r.Error, "the run ended without a result"))
	case report.State == event.Processing:
		v.Status = "processing"
	default:
		v.Status = "pending"
	}
	return v
}

func (a *Admin) failedSegments(ctx context.Context, in *runPath) (*body[failureManifest], error) {
	r, err := lookUp(ctx, a.runs, "prompt_run", in.ID)
	if err != nil {
		return nil, err
	}
	out := failureManifest{Run: r.ID, Status: string(r.Status), Videos: make([]failedVideo, 0)}
	failed := make(map[string]bool) // a report that changes meanwhile comes twice
	for s, err := range a.bus.Scan(ctx, topology.Reports, a.reportSubject(r.ID, "*"), 0) {
		if err != nil {
			return nil, err
		}
		report, err := readReport(s)
		if err != nil {
			return nil, err
		}
		if report.State != event.Unsuccessful || failed[report.Video] {
			continue
		}
		failed[report.Video] = true
		if len(out.Videos) == maxListedFailures {
			out.Truncated = true
			continue
		}
		out.Videos = append(out.Videos, failedVideo{
			Video: report.Video, Failed: 1, Counts: operationCounts{FieldExtraction: 1},
			Segments: []failedSegment{{
				Segment: segmentOf(report.Video), Video: report.Video, Status: "failed", CompletedAt: stamp(report.ReportedAt),
				ErrorMessage: cmp.Or(report.Error, "failed"), FailureStage: "field_extraction",
			}},
		})
	}
	out.Failures, out.Failed, out.Counts.FieldExtraction = len(failed), len(failed), len(failed)
	return &body[failureManifest]{out}, nil
}

func (a *Admin) retrySegment(ctx context.Context, in *runSegmentPath) (*body[segmentRetry], error) {
	r, err := lookUp(ctx, a.runs, "prompt_run", in.ID)
	if err != nil {
		return nil, err
	}
	return nil, newProblem(http.StatusBadRequest, "prompt_run_segment_not_retryable",
		"Segments are not retried one by one here. Start a run on the media that failed with POST %s/prompt-runs/execute.", a.cfg.BasePath).
		with("run_id", r.ID)
}

func (a *Admin) getRetry(ctx context.Context, in *runRetryPath) (*body[segmentRetry], error) {
	r, err := lookUp(ctx, a.runs, "prompt_run", in.ID)
	if err != nil {
		return nil, err
	}
	return nil, newProblem(http.StatusNotFound, "resource_prompt_run_retry_not_found", "The prompt run %s has no retry %s.", r.ID, shortened(in.Retry)).
		with("run_id", r.ID).with("retry_id", shortened(in.Retry))
}

func (a *Admin) llmCalls(ctx context.Context, in *runPath) (*body[[]none], error) {
	if _, err := lookUp(ctx, a.runs, "prompt_run", in.ID); err != nil {
		return nil, err
	}
	return &body[[]none]{make([]none, 0)}, nil
}
