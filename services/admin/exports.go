package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"millrace/services/exporter"
	conn "millrace/shared/connector"
	"millrace/shared/event"
	"millrace/shared/store"
)

// export is a store.Export as clients see it. They check it member by member: all of them are always there, and there
// is no other (contract §17.2).
type export struct {
	ID           string        `json:"export_id"`
	Type         string        `json:"export_type" enum:"index,prompt_run,import_job"`
	Target       string        `json:"target_id"`
	Status       string        `json:"status" enum:"pending,processing,completed,failed"`
	QueueStatus  string        `json:"queue_status" enum:"queued,running,succeeded,failed,dead_letter" doc:"failed: no other attempt would have helped; dead_letter: given up after max_attempts"`
	Attempts     int           `json:"attempts"`
	MaxAttempts  int           `json:"max_attempts"`
	CreatedAt    *string       `json:"created_at" format:"date-time"`
	AvailableAt  *string       `json:"available_at" format:"date-time" doc:"when it is tried next"`
	StartedAt    *string       `json:"started_at" format:"date-time"`
	CompletedAt  *string       `json:"completed_at" format:"date-time"`
	UpdatedAt    *string       `json:"updated_at" format:"date-time"`
	Size         *int64        `json:"file_size_bytes"`
	ErrorMessage *string       `json:"error_message" doc:"why it failed"`
	LastError    *string       `json:"last_error" doc:"of the last attempt that failed"`
	Destination  string        `json:"destination_type" enum:"download,connector"`
	Connector    *string       `json:"destination_connector_id"`
	BasePath     *string       `json:"destination_base_path"`
	Subpath      *string       `json:"destination_subpath"`
	URI          *string       `json:"destination_uri" doc:"the same as gcs_uri; null for a download"`
	GCSURI       *string       `json:"gcs_uri" doc:"where the file is, in whatever storage; null until it is there, and again when a download has expired"`
	DownloadURL  *string       `json:"download_url" doc:"a path below this server, that needs a key"`
	Params       *exportParams `json:"export_params"`
}

// exportParams may have these members alone, the last three only where they say something.
type exportParams struct {
	Runs      []string `json:"prompt_run_ids" nullable:"true" doc:"null: all"`
	Connector *string  `json:"destination_connector_id,omitempty"`
	BasePath  *string  `json:"destination_base_path,omitempty"`
	Subpath   *string  `json:"destination_subpath,omitempty"`
}

func (a *Admin) viewExport(x store.Export) export {
	v := export{
		ID: x.ID, Type: string(x.Type), Target: x.Target, Status: string(x.Status), QueueStatus: queueStatus(x),
		Attempts: x.Attempts, MaxAttempts: max(x.MaxAttempts, 1), CreatedAt: stampOrNull(x.CreatedAt), AvailableAt: stampOrNull(x.AvailableAt),
		StartedAt: stampOrNull(x.StartedAt), CompletedAt: stampOrNull(x.EndedAt), UpdatedAt: stampOrNull(x.UpdatedAt),
		LastError: orNull(x.LastError), Destination: "download", GCSURI: orNull(x.URI), Params: &exportParams{Runs: x.Runs},
	}
	switch x.Status {
	case store.ExportCompleted:
		v.Size = &x.Size
	case store.ExportFailed:
		v.ErrorMessage = v.LastError
	}
	if x.Connector != "" {
		v.Destination, v.Connector, v.BasePath, v.Subpath = "connector", &x.Connector, orNull(x.BasePath), orNull(x.Subpath)
		v.Params.Connector, v.Params.BasePath, v.Params.Subpath, v.URI = v.Connector, v.BasePath, v.Subpath, v.GCSURI
	} else if x.Status == store.ExportCompleted && x.URI != "" {
		v.DownloadURL = orNull(a.downloadPath(x.ID))
	}
	return v
}

func queueStatus(x store.Export) string {
	switch {
	case x.Status == store.ExportProcessing:
		return "running"
	case x.Status == store.ExportCompleted:
		return "succeeded"
	case x.Status == store.ExportFailed && x.Attempts >= x.MaxAttempts:
		return "dead_letter"
	case x.Status == store.ExportFailed:
		return "failed"
	}
	return "queued"
}

func (a *Admin) downloadPath(id string) string {
	return a.cfg.BasePath + "/exports/" + url.PathEscape(id) + "/download"
}

// exportCreated is the whole answer to a request for an export.
type exportCreated struct {
	ID     string `json:"export_id"`
	Status string `json:"status"`
}

// ExportRequest is what may be said about any export. Exported, as huma looks into embedded types only if they are.
type ExportRequest struct {
	Connector string `json:"destination_connector_id,omitempty" doc:"a connector with the scope export; left out: for download"`
	Subpath   string `json:"destination_subpath,omitempty" doc:"where the file goes below the export_base_path of the connector"`
	Scope     string `json:"result_scope,omitempty" enum:"all,matches" default:"all" doc:"matches: only media for which the run has a result"`
	Format    string `json:"format,omitempty" enum:"json,jsonl,csv" default:"json" doc:"json: one document; jsonl: an object per line; csv: a table with a heading"`
}

type newIndexExport struct {
	Index string `path:"index_id"`
	Body  struct {
		ExportRequest
		Runs []string `json:"prompt_run_ids,omitempty" maxItems:"1000" nullable:"true" doc:"runs of the index; left out or empty: all of them"`
	}
}

type newRunExport struct {
	Run  string `path:"run_id"`
	Body ExportRequest
}

type newJobExport struct {
	Job  string `path:"job_id"`
	Body ExportRequest
}

type exportPath struct {
	ID string `path:"export_id"`
}

type listExports struct {
	Limit int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
	Type  string `query:"export_type" enum:"index,prompt_run,import_job" doc:"exports of this type; left out: of an index or a prompt run, as official clients know no other"`
}

func (a *Admin) exportRoutes() {
	const tag = "Exports"
	const about = " A file is made in the background: poll the export. As json it is one document with a list of runs, each with its results; " +
		"as jsonl or csv it is the results alone, one per run and medium."
	register(a, route{
		method: "POST", path: "/exports/index/{index_id}", scope: write, status: http.StatusAccepted, tag: tag,
		summary: "Export an index", about: "The results of the runs on the index, oldest run first." + about,
	}, a.exportIndex)
	register(a, route{
		method: "POST", path: "/exports/prompt-run/{run_id}", scope: write, status: http.StatusAccepted, tag: tag,
		summary: "Export a prompt run", about: "A result for each medium of the run, as it stands." + about,
	}, a.exportRun)
	register(a, route{
		method: "POST", path: "/exports/import-job/{job_id}", scope: write, status: http.StatusAccepted, tag: tag,
		summary: "Export what became of the files of an import job",
		about:   "One row per file; result_scope has no effect. 409 until the job has ended.",
	}, a.exportJob)
	register(a, route{
		method: "GET", path: "/exports", scope: read, tag: tag, summary: "List exports", about: "Newest first.",
	}, a.listExports)
	register(a, route{method: "GET", path: "/exports/{export_id}", scope: read, tag: tag, summary: "Get an export"}, a.getExport)
	register(a, route{
		method: "POST", path: "/exports/{export_id}/download-url", scope: read, tag: tag, summary: "Make a download link",
		about: fmt.Sprintf("Good for %s, without a key. download_url is null when there is nothing to download, and when this "+
			"server is not reached by https: then download with the key.", linkLife),
	}, a.downloadURL)
	register(a, route{
		method: "GET", path: "/exports/{export_id}/download", scope: read, tag: tag, auth: a.mayDownload,
		summary: "Download an export", about: "With a key, or with the token of a download link and no key.",
	}, a.download)
	a.documentDownload()
}

func (a *Admin) exportIndex(ctx context.Context, in *newIndexExport) (*body[exportCreated], error) {
	if _, err := exportSubpath(in.Body.Subpath); err != nil {
		return nil, err
	}
	if _, err := lookUp(ctx, a.indexes, "index", in.Index); err != nil {
		return nil, err
	}
	for i, id := range in.Body.Runs {
		run, err := lookUp(ctx, a.runs, "prompt_run", id)
		if err != nil {
			return nil, err
		}
		if run.Index != in.Index {
			return nil, invalid(fmt.Sprintf("prompt_run_ids[%d]", i), "%s is not a run on the index %s", id, in.Index)
		}
	}
	return a.requestExport(ctx, in.Body.ExportRequest, event.ExportRequested{
		Type: event.ExportOfIndex, Target: in.Index, Index: in.Index, Runs: slices.Clone(in.Body.Runs),
	})
}

func (a *Admin) exportRun(ctx context.Context, in *newRunExport) (*body[exportCreated], error) {
	if _, err := exportSubpath(in.Body.Subpath); err != nil {
		return nil, err
	}
	run, err := lookUp(ctx, a.runs, "prompt_run", in.Run)
	if err != nil {
		return nil, err
	}
	return a.requestExport(ctx, in.Body, event.ExportRequested{Type: event.ExportOfRun, Target: run.ID, Index: run.Index})
}

func (a *Admin) exportJob(ctx context.Context, in *newJobExport) (*body[exportCreated], error) {
	if _, err := exportSubpath(in.Body.Subpath); err != nil {
		return nil, err
	}
	job, err := lookUp(ctx, a.jobs, "import_job", in.Job)
	if err != nil {
		return nil, err
	}
	if job.Report == "" {
		return nil, newProblem(http.StatusConflict, "import_job_not_ended", "The import job %s is %s: export it when all its files are settled.", job.ID, job.Status).
			with("job_id", job.ID).with("status", string(job.Status))
	}
	return a.requestExport(ctx, in.Body, event.ExportRequested{Type: event.ExportOfJob, Target: job.ID, Index: job.Index})
}

func exportSubpath(given string) (string, error) {
	sub, err := conn.CheckExportPath(given)
	if err != nil {
		return "", invalid("destination_subpath", "%s", err)
	}
	return sub, nil
}

func (a *Admin) requestExport(ctx context.Context, b ExportRequest, req event.ExportRequested) (*body[exportCreated], error) {
	req.Export, req.RequestedAt = newID(ctx, "exp"), time.Now().UTC()
	req.Scope, req.Format = event.ResultScope(b.Scope), event.ExportFormat(b.Format)
	if b.Connector != "" {
		sub, err := exportSubpath(b.Subpath)
		if err != nil {
			return nil, err
		}
		base, err := a.exportable(ctx, b.Connector)
		if err != nil {
			return nil, err
		}
		req.Connector, req.BasePath, req.Subpath = b.Connector, base, sub
	}
	x, err := a.exports.Create(ctx, req)
	if err != nil {
		return nil, err
	}
	return &body[exportCreated]{exportCreated{ID: x.ID, Status: string(x.Status)}}, nil
}

// exportable returns the path below which exports to a connector go, or says why none may.
func (a *Admin) exportable(ctx context.Context, id string) (base string, err error) {
	c, err := lookUp(ctx, a.connectors, "connector", id)
	if err != nil {
		return "", err
	}
	switch {
	case c.Status == connectorDisabled:
		return "", disabled(id)
	case !c.HasScope(scopeExport):
		return "", newProblem(http.StatusConflict, "connector_scope_missing", "The connector %s lacks the scope export.", id).
			with("connector_id", id).with("required_scope", scopeExport)
	}
	if base, err = conn.CheckExportPath(c.ExportBasePath); err != nil {
		return "", newProblem(http.StatusConflict, "connector_export_path_invalid", "The export_base_path of the connector %s %s.", id, err).
			with("connector_id", id)
	}
	return base, nil
}

func (a *Admin) listExports(ctx context.Context, in *listExports) (*body[[]export], error) {
	newest := newestOf[store.Export]{limit: in.Limit, created: func(x store.Export) (time.Time, string) { return x.CreatedAt, x.ID }}
	for x, err := range a.exports.Records().All(ctx) {
		if err != nil {
			return nil, err
		}
		if string(x.Type) == in.Type || (in.Type == "" && x.Type != event.ExportOfJob) {
			newest.add(x)
		}
	}
	views := make([]export, 0, in.Limit)
	for _, x := range newest.sorted() {
		views = append(views, a.viewExport(x))
	}
	return &body[[]export]{views}, nil
}

func (a *Admin) getExport(ctx context.Context, in *exportPath) (*body[export], error) {
	x, err := lookUp(ctx, a.exports.Records(), "export", in.ID)
	if err != nil {
		return nil, err
	}
	return &body[export]{a.viewExport(x)}, nil
}

// downloadLink has these five members and no other (contract §17.3).
type downloadLink struct {
	ID          string  `json:"export_id"`
	Status      string  `json:"status" enum:"pending,processing,completed,failed"`
	Destination string  `json:"destination_type" enum:"download,connector"`
	Connector   *string `json:"destination_connector_id"`
	URL         *string `json:"download_url"`
}

type askDownloadURL struct {
	ID string `path:"export_id"`
	origin
}

func (a *Admin) downloadURL(ctx context.Context, in *askDownloadURL) (*body[downloadLink], error) {
	x, err := lookUp(ctx, a.exports.Records(), "export", in.ID)
	if err != nil {
		return nil, err
	}
	v := a.viewExport(x)
	link := downloadLink{ID: v.ID, Status: v.Status, Destination: v.Destination, Connector: v.Connector}
	if v.DownloadURL != nil && in.https != "" {
		u := in.https + *v.DownloadURL + "?token=" + a.links.sign(x.ID, time.Now().Add(linkLife))
		link.URL = &u
	}
	return &body[downloadLink]{link}, nil
}

// mayDownload lets a request through by its key, or by the token of a link if it comes without one.
func (a *Admin) mayDownload(r *http.Request) error {
	token := r.URL.Query().Get("token")
	if credential(r) != "" || token == "" {
		return a.authorize(r, read)
	}
	if !a.links.good(token, r.PathValue("export_id"), time.Now()) {
		a.metrics.refused.WithLabelValues(refusedKey).Inc()
		return newProblem(http.StatusUnauthorized, "authentication_invalid_api_key", "The download link is not valid, or no longer: make another one.")
	}
	return nil
}

type downloadExport struct {
	ID    string `path:"export_id"`
	Token string `query:"token" doc:"of a download link"`
}

// stall is how long a client may take to accept the next piece of a file.
const stall = 60 * time.Second

func (a *Admin) download(ctx context.Context, in *downloadExport) (*huma.StreamResponse, error) {
	x, err := lookUp(ctx, a.exports.Records(), "export", in.ID)
	if err != nil {
		return nil, err
	}
	switch {
	case x.Connector != "":
		return nil, newProblem(http.StatusConflict, "export_not_downloadable", "The export %s went to the connector %s: get it there.", x.ID, x.Connector).
			with("export_id", x.ID).with("destination_connector_id", x.Connector)
	case x.Status != store.ExportCompleted:
		return nil, newProblem(http.StatusConflict, "export_not_ready", "The export %s is %s.", x.ID, x.Status).
			with("export_id", x.ID).with("status", string(x.Status))
	case x.Document == "":
		return nil, expired(x)
	}
	doc, err := a.documents.Find(ctx, x.Document)
	if errors.Is(err, store.ErrNotFound) {
		return nil, expired(x)
	}
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		r, w := humago.Unwrap(hctx)
		h := w.Header()
		h.Set("Content-Type", exporter.ContentTypes[x.Format])
		h.Set("Content-Length", fmt.Sprint(doc.Size))
		h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", exporter.FileName(x)))
		w.WriteHeader(http.StatusOK)
		if r.Method == http.MethodHead {
			return
		}
		// What ends before the announced length is noticed by every client: the server closes the connection.
		if _, err := io.Copy(patientWriter{w, http.NewResponseController(w)}, doc.Reader(r.Context())); err != nil && r.Context().Err() == nil {
			a.log.Warn("a download broke off", "request_id", requestID(r.Context()), "export_id", x.ID, "error", err)
		}
	}}, nil
}

func expired(x store.Export) error {
	p := notFound("export", x.ID)
	p.message = fmt.Sprintf("The file of the export %s was kept for its time and is gone: make another export.", x.ID)
	return p
}

// patientWriter lets a download take as long as its client goes on reading.
type patientWriter struct {
	io.Writer
	control *http.ResponseController
}

func (w patientWriter) Write(p []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(stall)) // not every writer has one
	n, err := w.Writer.Write(p)
	_ = w.control.SetWriteDeadline(time.Time{})
	return n, err
}

// documentDownload says in the OpenAPI document what huma cannot know of a streamed answer.
func (a *Admin) documentDownload() {
	op := a.api.OpenAPI().Paths["/exports/{export_id}/download"].Get
	content := make(map[string]*huma.MediaType)
	for _, t := range exporter.ContentTypes {
		t, _, _ = strings.Cut(t, ";")
		content[t] = &huma.MediaType{Schema: &huma.Schema{Type: "string", Format: "binary"}}
	}
	op.Responses["200"] = &huma.Response{Description: "The file", Content: content}
}
