package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// video is an imported medium as clients see it: also audio and images.
type video struct {
	ID               string      `json:"video_id"`
	Title            string      `json:"title"`
	URI              string      `json:"video_uri" doc:"where the bytes are kept. A medium kept on this server's own disk is millrace://<index_id>/<video_id>: never a path of this machine, and never a credential"`
	Status           string      `json:"status" enum:"not_processed,processing,processed,failed"`
	MediaType        string      `json:"media_type" enum:"video,audio,image"`
	Duration         *float64    `json:"duration_seconds"`
	MetadataKeys     []string    `json:"metadata_keys"`
	ProcessingStatus []runStatus `json:"processing_status" doc:"the run that followed the import; null when there was none"`
	Marker           marker      `json:"marker"`
	CreatedAt        string      `json:"created_at" format:"date-time"`
	UpdatedAt        string      `json:"updated_at" format:"date-time"`

	Index       string  `json:"index_id"`
	Connector   string  `json:"source_connector_id"`
	Path        string  `json:"source_path" doc:"the object's key in the connector"`
	Version     string  `json:"source_version"`
	Job         string  `json:"job_id" doc:"the job that imported it"`
	SizeBytes   int64   `json:"size_bytes"`
	SHA256      *string `json:"sha256"`
	ContentType *string `json:"content_type"`
	Width       *int    `json:"width"`
	Height      *int    `json:"height"`
}

// runStatus is where one medium stands in one run.
type runStatus struct {
	Run        string  `json:"run_id"`
	Prompt     *string `json:"prompt_id"`
	Status     string  `json:"status"`
	Total      int     `json:"total_segments"`
	Pending    int     `json:"pending_segments"`
	Processing int     `json:"processing_segments"`
	Successful int     `json:"successful_segments"`
	Failed     int     `json:"failed_segments"`
	Segments   []none  `json:"segments" nullable:"false"`
	CreatedAt  *string `json:"created_at" format:"date-time"`
	UpdatedAt  *string `json:"updated_at" format:"date-time"`
	AttemptID  *string `json:"attempt_id"`
}

type videoPath struct {
	ID string `path:"video_id"`
}

func (a *Admin) videoRoutes() {
	register(a, route{method: "GET", path: "/videos/{video_id}", scope: read, tag: "Media", summary: "Get a medium"}, a.getVideo)
}

func (a *Admin) getVideo(ctx context.Context, in *videoPath) (*body[video], error) {
	id, err := event.ParseMediumID(in.ID)
	if err != nil {
		return nil, notFound("video", in.ID)
	}
	found, err := a.ledger.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, e := range found {
		if e.State != event.MediumImported {
			continue
		}
		views, err := a.viewVideos(ctx, []event.Medium{e.Medium})
		if err != nil {
			return nil, err
		}
		return &body[video]{views[0]}, nil
	}
	return nil, notFound("video", in.ID)
}

// viewVideos shows media with where they stand in the run that followed their import.
func (a *Admin) viewVideos(ctx context.Context, media []event.Medium) ([]video, error) {
	runs := make(map[string]*store.Run)
	subjects := make([]string, 0, len(media))
	for _, m := range media {
		id := event.RunOfJob(m.Job)
		if _, asked := runs[id]; !asked {
			r, _, err := a.runs.Get(ctx, id)
			switch {
			case errors.Is(err, store.ErrNotFound):
				runs[id] = nil
			case err != nil:
				return nil, err
			default:
				runs[id] = &r
			}
		}
		if runs[id] != nil {
			subjects = append(subjects, a.bus.Subject("run", "report", id, m.ID.String()))
		}
	}
	reports := make(map[string]event.Report, len(subjects)) // by medium
	for s, err := range a.bus.Last(ctx, topology.Reports, subjects...) {
		if err != nil {
			return nil, err
		}
		var r event.Report
		if err := json.Unmarshal(s.Data, &r); err != nil {
			return nil, fmt.Errorf("decode %s: %w", s.Subject, err)
		}
		reports[r.Video] = r
	}
	views := make([]video, 0, len(media))
	for _, m := range media {
		views = append(views, viewVideo(m, runs[event.RunOfJob(m.Job)], reports[m.ID.String()]))
	}
	return views, nil
}

func viewVideo(m event.Medium, run *store.Run, report event.Report) video {
	v := video{
		ID: m.ID.String(), Title: path.Base(m.Path), URI: publicURI(m), Status: "not_processed", MediaType: m.MediaType,
		CreatedAt: stamp(m.CreatedAt), UpdatedAt: stamp(m.CreatedAt),
		Index: m.Index, Connector: m.Connector, Path: m.Path, Version: m.Version, Job: m.Job, SizeBytes: m.Size,
		SHA256: orNull(m.SHA256), ContentType: orNull(m.ContentType),
	}
	if m.Seconds > 0 {
		v.Duration = &m.Seconds
	}
	if m.Width > 0 && m.Height > 0 {
		v.Width, v.Height = &m.Width, &m.Height
	}
	if run == nil {
		return v
	}
	s := runStatus{
		Run: run.ID, Prompt: orNull(run.Prompt), Total: 1, Segments: make([]none, 0),
		CreatedAt: stampOrNull(run.CreatedAt), UpdatedAt: stampOrNull(report.ReportedAt),
	}
	switch {
	case report.State == event.Successful:
		v.Status, s.Status, s.Successful = "processed", "completed", 1
	case report.State == event.Unsuccessful:
		v.Status, s.Status, s.Failed = "failed", "failed", 1
	case report.State == event.Processing:
		v.Status, s.Status, s.Processing = "processing", "processing", 1
	case run.Status.Terminal():
		s.Status, s.Pending = string(run.Status), 1
	default:
		v.Status, s.Status, s.Pending = "processing", "pending", 1
	}
	v.ProcessingStatus = []runStatus{s}
	return v
}

// publicURI is where a medium is kept, for clients: the object's own address in a cloud's bucket, else a name that only
// this server can resolve.
func publicURI(m event.Medium) string {
	u, err := url.Parse(m.URI)
	switch {
	case strings.HasPrefix(m.URI, "gs://"), strings.HasPrefix(m.URI, "s3://"):
		return m.URI
	case err == nil && u.Scheme == "https" && u.User == nil && u.RawQuery == "": // a query can be a signature
		return m.URI
	}
	return "millrace://" + m.Index + "/" + m.ID.String()
}
