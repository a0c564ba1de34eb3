package admin

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"golang.org/x/sync/errgroup"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// videoDetails is a video as the batch route shows it. No pictures are made of media here.
type videoDetails struct {
	Video
	GIF       *string `json:"gif_data"`
	Thumbnail *string `json:"first_thumbnail"`
}

type videoStatus struct {
	ID               string      `json:"video_id"`
	Status           string      `json:"status" enum:"not_processed,processing,processed,failed"`
	ProcessingStatus []runStatus `json:"processing_status"`
}

type videoSegments struct {
	Video    string  `json:"video_id"`
	Run      *string `json:"run_id"`
	Segments []none  `json:"segments" nullable:"false"`
}

type videoBatch struct {
	Body struct {
		Videos []string `json:"video_ids" minItems:"1" maxItems:"100"`
	}
}

type segmentBatch struct {
	Body struct {
		Videos  []string        `json:"video_ids,omitempty" maxItems:"50" nullable:"true" doc:"1 to 50; this or targets"`
		Targets []segmentTarget `json:"targets,omitempty" maxItems:"50" nullable:"true" doc:"1 to 50; this or video_ids"`
	}
}

type segmentTarget struct {
	Video string  `json:"video_id"`
	Run   *string `json:"run_id,omitempty" nullable:"true"`
}

type listSegments struct {
	ID        string `path:"video_id"`
	Run       string `query:"run_id"`
	LatestRun bool   `query:"latest_run"`
	Limit     int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
	Cursor    string `query:"cursor" maxLength:"512" doc:"pagination.next_cursor of the page before"`
}

type runsOfVideo struct {
	ID    string `path:"video_id"`
	Limit int    `query:"limit" minimum:"1" maximum:"200" default:"200"`
}

type signURL struct {
	Body struct {
		URI     string `json:"gcs_uri"`
		Refresh bool   `json:"force_refresh,omitempty"`
	}
}

type signedURL struct {
	URL       string `json:"signed_url"`
	ExpiresAt string `json:"expires_at" format:"date-time"`
}

type listPlayground struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
	Cursor string `query:"cursor" maxLength:"512"`
}

// noSegments is said wherever segments could be expected.
const noSegments = "Always empty: media are not cut into segments here. What executors said is in the results of runs."

func (a *Admin) mediaRoutes() {
	const tag = "Media"
	register(a, route{
		method: "POST", path: "/videos/batch", scope: read, tag: tag, summary: "Get media by id",
		about: "In the order they are asked for. What does not exist is left out.",
	}, a.batchVideos)
	register(a, route{
		method: "POST", path: "/videos/batch/status", scope: read, tag: tag, summary: "Get the status of media by id",
		about: "In the order they are asked for. What does not exist is left out.",
	}, a.batchStatus)
	register(a, route{method: "POST", path: "/videos/batch/segments", scope: read, tag: tag, summary: "Get the segments of media by id", about: noSegments}, a.batchSegments)
	register(a, route{method: "GET", path: "/videos/{video_id}/segments", scope: read, tag: tag, summary: "List the segments of a medium", about: noSegments}, a.listSegments)
	register(a, route{
		method: "GET", path: "/videos/{video_id}/prompt-runs", scope: read, tag: tag, summary: "List the prompt runs of a medium", about: "Newest first.",
	}, a.runsOfVideo)
	register(a, route{
		method: "POST", path: "/videos/signed-url", scope: read, tag: tag, summary: "Get a URL to download a medium from",
		about: "Always 422: media are not handed out here. video_uri says where they are kept.",
	}, func(context.Context, *signURL) (*body[signedURL], error) {
		return nil, invalid("gcs_uri", "is not a file that this server hands out: read it where video_uri says it is kept")
	})
	register(a, route{
		method: "GET", path: "/playground/videos", scope: read, tag: tag, summary: "List the media of the playground",
		about: "Always empty: there is no playground here.",
	}, func(_ context.Context, in *listPlayground) (*body[page[video]], error) {
		if _, err := openCursor("playground", in.Cursor); err != nil {
			return nil, err
		}
		return &body[page[video]]{newPage(make([]video, 0), in.Limit, "")}, nil
	})
}

// media returns those of the media asked for that are there, in that order, each once.
func (a *Admin) media(ctx context.Context, videos []string) ([]event.Medium, error) {
	ids := make([]event.MediumID, 0, len(videos))
	seen := make(map[event.MediumID]bool, len(videos))
	for _, v := range videos {
		if id, err := event.ParseMediumID(v); err == nil && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	found, err := a.ledger.Find(ctx, ids...)
	if err != nil {
		return nil, err
	}
	byID := make(map[event.MediumID]event.Medium, len(found))
	for _, e := range found {
		if e.State == event.MediumImported {
			byID[e.ID] = e.Medium
		}
	}
	media := make([]event.Medium, 0, len(byID))
	for _, id := range ids {
		if m, ok := byID[id]; ok {
			media = append(media, m)
		}
	}
	return media, nil
}

func (a *Admin) batchOf(ctx context.Context, videos []string) ([]video, error) {
	media, err := a.media(ctx, videos)
	if err != nil {
		return nil, err
	}
	return a.viewVideos(ctx, media)
}

func (a *Admin) batchVideos(ctx context.Context, in *videoBatch) (*body[[]videoDetails], error) {
	views, err := a.batchOf(ctx, in.Body.Videos)
	list := make([]videoDetails, len(views))
	for i, v := range views {
		list[i].Video = v
	}
	return &body[[]videoDetails]{list}, err
}

func (a *Admin) batchStatus(ctx context.Context, in *videoBatch) (*body[[]videoStatus], error) {
	views, err := a.batchOf(ctx, in.Body.Videos)
	list := make([]videoStatus, len(views))
	for i, v := range views {
		list[i] = videoStatus{ID: v.ID, Status: v.Status, ProcessingStatus: v.ProcessingStatus}
	}
	return &body[[]videoStatus]{list}, err
}

func (a *Admin) batchSegments(ctx context.Context, in *segmentBatch) (*body[[]videoSegments], error) {
	targets := in.Body.Targets
	if (len(targets) == 0) == (len(in.Body.Videos) == 0) {
		return nil, invalid("video_ids", "is required: 1 to 50 ids, or as many targets, and not both")
	}
	for _, v := range in.Body.Videos {
		targets = append(targets, segmentTarget{Video: v})
	}
	videos := make([]string, len(targets))
	for i, t := range targets {
		videos[i] = t.Video
	}
	media, err := a.media(ctx, videos)
	if err != nil {
		return nil, err
	}
	there := make(map[string]bool, len(media))
	for _, m := range media {
		there[m.ID.String()] = true
	}
	list := make([]videoSegments, 0, len(targets))
	for _, t := range targets {
		if there[t.Video] {
			list = append(list, videoSegments{Video: t.Video, Run: t.Run, Segments: make([]none, 0)})
		}
	}
	return &body[[]videoSegments]{list}, nil
}

func (a *Admin) listSegments(ctx context.Context, in *listSegments) (*body[page[none]], error) {
	if _, err := a.medium(ctx, in.ID); err != nil {
		return nil, err
	}
	if _, err := openCursor("segments of "+in.ID, in.Cursor); err != nil {
		return nil, err
	}
	return &body[page[none]]{newPage(make([]none, 0), in.Limit, "")}, nil
}

// maxSilentRuns is in how many of the newest runs that somebody asked for a medium is looked for.
const maxSilentRuns = 200

// runsOfVideo finds the runs of a medium by what was reported about it. Those that have come to nothing about it are
// the one that followed its import and some that somebody asked for; whether it is one of theirs is in their lists.
func (a *Admin) runsOfVideo(ctx context.Context, in *runsOfVideo) (*body[[]promptRun], error) {
	m, err := a.medium(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{event.RunOfJob(m.Job): true}
	for s, err := range a.bus.Last(ctx, topology.Reports, a.reportSubject("*", in.ID)) {
		if err != nil {
			return nil, err
		}
		ids[runOfReport(s.Subject)] = true
	}
	asked, err := a.runBook.of(ctx, maxSilentRuns, m.Index)
	if err != nil {
		return nil, err
	}
	silent := make([]bool, len(asked)) // and yet with this medium
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelReads)
	for i, r := range asked {
		if !ids[r.ID] && r.Status != store.RunCompleted { // which has come to all of its media
			g.Go(func() (err error) {
				silent[i], err = a.partOf(gctx, r, in.ID)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, r := range asked {
		if silent[i] {
			ids[r.ID] = true
		}
	}
	newest := newestOf[store.Run]{limit: in.Limit, created: runCreated}
	for id := range ids {
		r, _, err := a.runs.Get(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		newest.add(r)
	}
	views, err := a.viewRuns(ctx, newest.sorted())
	return &body[[]promptRun]{views}, err
}

// partOf reports whether a medium is one of a run's.
func (a *Admin) partOf(ctx context.Context, r store.Run, video string) (bool, error) {
	if r.Media == "" {
		return false, nil // it is being made
	}
	for m, err := range store.ReadLines[event.RunMedium](ctx, a.documents, r.Media) {
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		if err != nil || m.Video == video {
			return err == nil, err
		}
	}
	return false, nil
}

// outside lists what clients may ask for and what is no part of this product, where another route would claim the
// path. They want a 404, not to hear which methods it has.
var outside = []string{"POST /videos", "POST /videos/upload", "POST /videos/{id}/process", "POST /prompts/generate"}

func (a *Admin) outsideRoutes() {
	for _, pattern := range outside {
		method, path, _ := strings.Cut(pattern, " ")
		a.router.HandleFunc(method+" "+a.cfg.BasePath+path, func(w http.ResponseWriter, r *http.Request) {
			if err := a.authorize(r, anyKey); err != nil {
				a.fail(w, r, err)
				return
			}
			a.fail(w, r, newProblem(http.StatusNotFound, "feature_not_available",
				"%s is not part of this server: media come in through connectors and import jobs.", r.URL.Path))
		})
	}
}

// runOfReport is the run that a report is about, by its subject.
func runOfReport(subject string) string {
	tokens := strings.Split(subject, ".")
	return tokens[max(0, len(tokens)-2)]
}
