package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// segmentResult is what an executor said about one medium.
type segmentResult struct {
	SegmentID     string          `json:"segment_id"`
	ResultType    string          `json:"result_type" enum:"segment"`
	Run           string          `json:"run_id"`
	Prompt        string          `json:"prompt_id"`
	Video         string          `json:"video_id"`
	ExecutedAt    string          `json:"executed_at" format:"date-time"`
	Metadata      json.RawMessage `json:"metadata" doc:"the result, an object"`
	MetadataText  string          `json:"metadata_text" doc:"the same as text"`
	Extracted     bool            `json:"field_extraction_succeeded" doc:"false: error_message says why there is no result"`
	ErrorMessage  *string         `json:"error_message"`
	ThumbnailSeen bool            `json:"thumbnail_available"`
	GIFSeen       bool            `json:"gif_available"`
}

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
	Segment      string   `json:"segment_id"`
	Video        string   `json:"video_id"`
	Status       string   `json:"status" enum:"failed"`
	StartTime    *float64 `json:"start_time"`
	EndTime      *float64 `json:"end_time"`
	CompletedAt  string   `json:"completed_at" format:"date-time"`
	ErrorMessage string   `json:"error_message"`
	FailureStage string   `json:"failure_stage" enum:"field_extraction"`
	Failure      string   `json:"failure_message" doc:"the same as error_message"`
	Operations   []string `json:"failed_operations" nullable:"false" enum:"field_extraction"`
	Retryable    bool     `json:"retryable" doc:"false: segments are not retried one by one here"`
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

type runResults struct {
	ID     string `path:"run_id"`
	Video  string `query:"video_id" required:"true"`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
	Cursor string `query:"cursor" maxLength:"512" doc:"pagination.next_cursor of the page before"`
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

// maxListedFailures bounds the failed media that a manifest lists.
const maxListedFailures = 1000

func (a *Admin) runResultRoutes() {
	const tag = "Prompt runs"
	register(a, route{
		method: "GET", path: "/prompt-runs/{run_id}/results", scope: read, tag: tag, summary: "Get the results of one medium",
		about: "Complete once the run has ended.",
	}, a.runResults)
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

func (a *Admin) runResults(ctx context.Context, in *runResults) (*body[page[segmentResult]], error) {
	r, err := lookUp(ctx, a.runs, "prompt_run", in.ID)
	if err != nil {
		return nil, err
	}
	if _, err := event.ParseMediumID(in.Video); err != nil {
		return nil, invalid("video_id", "must be the id of a medium, such as vid_…")
	}
	if _, err := openCursor("results", in.Cursor); err != nil {
		return nil, err
	}
	reports, err := a.reports(ctx, a.reportSubject(r.ID, in.Video))
	if err != nil {
		return nil, err
	}
	results := make([]segmentResult, 0, 1)
	for _, report := range reports {
		if report.State != event.Processing {
			results = append(results, viewResult(r, report))
		}
	}
	return &body[page[segmentResult]]{newPage(results, in.Limit, "")}, nil
}

func viewResult(r store.Run, report event.Report) segmentResult {
	metadata := resultOf(report)
	v := segmentResult{
		SegmentID: segmentOf(report.Video), ResultType: "segment",
		Run: r.ID, Prompt: r.Prompt, Video: report.Video, ExecutedAt: stamp(report.ReportedAt),
		Metadata: metadata, MetadataText: string(metadata), Extracted: report.State == event.Successful,
	}
	if !v.Extracted {
		v.ErrorMessage = orNull(cmp.Or(report.Error, "failed"))
	}
	return v
}

// segmentOf is the one segment of a medium.
func segmentOf(video string) string { return "seg_" + strings.TrimPrefix(video, "vid_") }

// resultOf is the result of a report as clients see it.
func resultOf(report event.Report) json.RawMessage {
	return event.ResultObject(unescaped(report.Result))
}

func (a *Admin) videoResult(ctx context.Context, in *runVideoPath) (*body[videoResult], error) {
	r, err := lookUp(ctx, a.runs, "prompt_run", in.ID)
	if err != nil {
		return nil, err
	}
	if _, err := event.ParseMediumID(in.Video); err != nil {
		return nil, notFound("video", in.Video)
	}
	subject := a.reportSubject(r.ID, in.Video)
	reports, err := a.reports(ctx, subject)
	if err != nil {
		return nil, err
	}
	if report, ok := reports[subject]; ok {
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
	metadata := resultOf(report)
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
		report, ok := readReport(s)
		if !ok || report.State != event.Unsuccessful || failed[report.Video] {
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
				ErrorMessage: cmp.Or(report.Error, "failed"), FailureStage: "field_extraction", Failure: cmp.Or(report.Error, "failed"), Operations: []string{"field_extraction"},
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
