// Package client speaks to a Millrace server over HTTP.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client speaks to a server's API.
type Client struct {
	base string
	key  string
	http *http.Client
}

// New returns a client of the server at base (http://HOST:PORT, or that of its API, which ends in /api/v2).
func New(base, key string) *Client {
	base = strings.TrimSuffix(strings.TrimSuffix(base, "/"), "/api/v2")
	return &Client{base: base + "/api/v2", key: key, http: &http.Client{Timeout: time.Minute}}
}

// Problem is an error that the server answered.
type Problem struct {
	Status  int
	Code    string `json:"code"`
	Message string `json:"message"`
	Details struct {
		Fields []struct{ Field, Message string } `json:"fields"`
	} `json:"details"`
}

func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Message)
	for _, f := range p.Details.Fields {
		if !strings.Contains(p.Message, f.Message) {
			fmt.Fprintf(&b, "; %s: %s", f.Field, f.Message)
		}
	}
	return b.String()
}

// Get reads path into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.Do(ctx, http.MethodGet, path, nil, out)
}

// Do sends in as JSON, when not nil, and reads the answer into out, when not nil. It fails with *Problem when the
// server refuses.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	if in == nil {
		return c.send(ctx, method, path, "", nil, out)
	}
	data, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	return c.send(ctx, method, path, "application/json", data, out)
}

// PostForm sends a form: fields, each with all its values, and one file, if content is not nil. It
// reads the answer as Do does.
func (c *Client) PostForm(ctx context.Context, path string, fields map[string][]string, file string, content []byte, out any) error {
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	for name, values := range fields {
		for _, v := range values {
			if err := form.WriteField(name, v); err != nil {
				return fmt.Errorf("encode request: %w", err)
			}
		}
	}
	var err error
	if content != nil {
		var part io.Writer
		if part, err = form.CreateFormFile(file, file); err == nil {
			_, err = part.Write(content)
		}
	}
	if err = errors.Join(err, form.Close()); err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	return c.send(ctx, http.MethodPost, path, form.FormDataContentType(), b.Bytes(), out)
}

func (c *Client) send(ctx context.Context, method, path, contentType string, in []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(in))
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", c.key)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if res.StatusCode >= 300 {
		return problem(res, method, path, data)
	}
	if out == nil || len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("decode answer of %s %s: %w", method, path, err)
	}
	return nil
}

// Stream reads what has no end known beforehand: events behind the one with the id last ("": from now on), or a file.
// It passes the body on, and fails with *Problem when the server refuses; how long that lasts is up to ctx and to the
// server.
func (c *Client) Stream(ctx context.Context, path, last string, each func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", c.key)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	res, err := new(http.Client).Do(req) // no timeout: it has no end
	if err != nil {
		return c.unreachable(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 300 {
		data, err := io.ReadAll(res.Body)
		if err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		return problem(res, http.MethodGet, path, data)
	}
	return each(res.Body)
}

// unreachable says what to do about a server that does not answer.
func (c *Client) unreachable(ctx context.Context, err error) error {
	var u *url.Error
	if errors.As(err, &u) && ctx.Err() == nil {
		return fmt.Errorf("no answer from %s: %w: is `millrace up` running there? (--url, or MILLRACE_URL in the environment)", c.base, u.Err)
	}
	return err
}

func problem(res *http.Response, method, path string, data []byte) error {
	p := &Problem{Status: res.StatusCode}
	if json.Unmarshal(data, &struct{ Error *Problem }{p}) != nil || p.Message == "" {
		p.Message = fmt.Sprintf("%s %s: %s", method, path, res.Status)
	}
	if p.Status == http.StatusUnauthorized {
		p.Message += " (--api-key, or MILLRACE_API_KEY in the environment)"
	}
	return p
}

// The parts of the API's objects that the client shows.
type (
	// Job is an import job.
	Job struct {
		ID        string     `json:"job_id"`
		Index     string     `json:"target_index_id"`
		Connector string     `json:"connector_id"`
		Status    string     `json:"status"`
		Error     *string    `json:"error_message"`
		Created   time.Time  `json:"created_at"`
		Ended     *time.Time `json:"completed_at"`
		Progress  struct {
			Total    int     `json:"total_files"`
			Imported int     `json:"imported"`
			Failed   int     `json:"failed"`
			Skipped  int     `json:"skipped"`
			Bytes    int64   `json:"bytes_transferred"`
			Current  *string `json:"current_file"`
		} `json:"progress"`
		Videos  []string            `json:"video_ids"`
		Failed  []map[string]string `json:"failed_files"`
		Skipped []map[string]string `json:"skipped_files"`
	}
	// Video is a medium.
	Video struct {
		ID       string   `json:"video_id"`
		Title    string   `json:"title"`
		URI      string   `json:"video_uri"`
		Type     string   `json:"media_type"`
		Duration *float64 `json:"duration_seconds"`
	}
	// Run is a prompt run.
	Run struct {
		ID      string `json:"run_id"`
		Prompt  string `json:"prompt_name"`
		Status  string `json:"status"`
		Context struct {
			Index  string   `json:"index_id"`
			Videos []string `json:"video_ids"`
		} `json:"run_context"`
		Error *string `json:"error_message"`
	}
	// Automation is an import automation.
	Automation struct {
		ID           string     `json:"automation_id"`
		Paused       bool       `json:"paused"`
		PendingSince *time.Time `json:"pending_since"`
		NextFireAt   *time.Time `json:"next_fire_at"`
		LastJob      *string    `json:"last_job_id"`
		LastRun      *string    `json:"last_run_id"`
		LastError    *string    `json:"last_error"`
	}
)

// Done reports whether the job has ended.
func (j Job) Done() bool {
	return j.Status == "completed" || j.Status == "failed" || j.Status == "cancelled"
}

// Done reports whether the run has ended.
func (r Run) Done() bool { return r.Status != "pending" && r.Status != "processing" }

// Page is one page of a list.
type Page[T any] struct {
	Data       []T `json:"data"`
	Pagination struct {
		HasMore bool    `json:"has_more"`
		Next    *string `json:"next_cursor"`
	} `json:"pagination"`
}

// All yields what is on all the pages of a list. The query is that of each request; an error is the last of all.
func All[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		asked := make(url.Values)
		maps.Copy(asked, query)
		for {
			var p Page[T]
			if err := c.Get(ctx, path+"?"+asked.Encode(), &p); err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, v := range p.Data {
				if !yield(v, nil) {
					return
				}
			}
			if !p.Pagination.HasMore || p.Pagination.Next == nil {
				return
			}
			asked.Set("cursor", *p.Pagination.Next)
		}
	}
}

// Videos returns all media of an index, newest first.
func (c *Client) Videos(ctx context.Context, index string) ([]Video, error) {
	var all []Video
	for v, err := range All[Video](ctx, c, "/indexes/"+index+"/videos", url.Values{"limit": {"100"}}) {
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}
