package admin

import (
	"context"
	"errors"
	"net/url"
	"path"
	"slices"
	"strings"

	"millrace/shared/bus"
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
	ProcessingStatus []runStatus `json:"processing_status" doc:"the run that followed the import, and the newest others that have come to it; null when there are none"`
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

// Video is a video that can be embedded: huma looks into embedded types only if they are exported.
type Video = video

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
	m, err := a.medium(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	views, err := a.viewVideos(ctx, []event.Medium{m})
	if err != nil {
		return nil, err
	}
	return &body[video]{views[0]}, nil
}

// maxShownRuns is the most runs that media are shown with, besides the one that followed their import.
const maxShownRuns = 10

// viewVideos shows media with where they stand in the run that followed their import, and in the newest of those that
// somebody asked for and that have come to them.
func (a *Admin) viewVideos(ctx context.Context, media []event.Medium) ([]video, error) {
	followed := make(map[string]*store.Run) // by id
	var indexes []string
	for _, m := range media {
		if !slices.Contains(indexes, m.Index) {
			indexes = append(indexes, m.Index)
		}
		id := event.RunOfJob(m.Job)
		if _, asked := followed[id]; asked {
			continue
		}
		r, _, err := a.runs.Get(ctx, id)
		switch {
		case errors.Is(err, store.ErrNotFound):
			followed[id] = nil
		case err != nil:
			return nil, err
		default:
			followed[id] = &r
		}
	}
	asked, err := a.runBook.of(ctx, maxShownRuns, indexes...)
	if err != nil {
		return nil, err
	}
	slices.Reverse(asked) // the newest last
	var subjects []string
	for _, m := range media {
		if r := followed[event.RunOfJob(m.Job)]; r != nil {
			subjects = append(subjects, a.reportSubject(r.ID, m.ID.String()))
		}
		for _, r := range asked {
			subjects = append(subjects, a.reportSubject(r.ID, m.ID.String()))
		}
	}
	reports, err := a.reports(ctx, subjects...)
	if err != nil {
		return nil, err
	}
	views := make([]video, 0, len(media))
	for _, m := range media {
		v := viewVideo(m)
		if r := followed[event.RunOfJob(m.Job)]; r != nil {
			v.stands(*r, reports[a.reportSubject(r.ID, v.ID)])
		}
		for _, r := range asked {
			if report, ok := reports[a.reportSubject(r.ID, v.ID)]; ok {
				v.stands(r, report)
			}
		}
		views = append(views, v)
	}
	return views, nil
}

func (a *Admin) reportSubject(run, video string) string {
	return a.bus.Subject("run", "report", run, video)
}

// reports returns the report of each subject that has one.
func (a *Admin) reports(ctx context.Context, subjects ...string) (map[string]event.Report, error) {
	reports := make(map[string]event.Report, len(subjects))
	for s, err := range a.bus.Last(ctx, topology.Reports, subjects...) {
		if err != nil {
			return nil, err
		}
		if r, ok := readReport(s); ok {
			reports[s.Subject] = r
		}
	}
	return reports, nil
}

// readReport returns a report, and false for one that is malformed: whoever counts reports has buried it, so it is as
// if nothing had been said.
func readReport(s bus.Stored) (event.Report, bool) {
	r, err := event.ReadReport(s.Subject, s.Data, s.Time)
	return r, err == nil
}

func viewVideo(m event.Medium) video {
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
	return v
}

// stands adds where a medium stands in a run; report is zero when there is none. The last run that has something to say
// decides over the status.
func (v *video) stands(run store.Run, report event.Report) {
	s := runStatus{
		Run: run.ID, Prompt: orNull(run.Prompt), Total: 1, Segments: make([]none, 0),
		CreatedAt: stampOrNull(run.CreatedAt), UpdatedAt: stampOrNull(report.ReportedAt),
	}
	switch {
	case report.State == event.Successful:
		v.Status, s.Status, s.Successful = "processed", "completed", 1
	case report.State == event.Unsuccessful:
		v.Status, s.Status, s.Failed = "failed", "failed", 1
	case run.Status.Terminal():
		s.Status, s.Pending = string(run.Status), 1
	case report.State == event.Processing:
		v.Status, s.Status, s.Processing = "processing", "processing", 1
	default:
		v.Status, s.Status, s.Pending = "processing", "pending", 1
	}
	v.ProcessingStatus = append(v.ProcessingStatus, s)
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
