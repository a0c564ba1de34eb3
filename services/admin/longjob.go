package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"millrace/shared/event"
	"millrace/shared/store"
)

// The answer about a job of very many files is written while its report is read: once, and again for an array of which there
// is more than is kept meanwhile, so that it takes the same memory whatever the number of files. It has the bytes that the
// answer about a short one would have.

// longJob answers with a job and its three arrays.
func (a *Admin) longJob(ctx context.Context, j store.Job) (*huma.StreamResponse, error) {
	if j.Report == "" {
		// Entries of a job that has not ended are gone once it has: they are read whole before anything is said of them.
		lists, err := a.liveLists(ctx, j)
		if err != nil {
			return nil, err
		}
		now, _, err := a.jobs.Get(ctx, j.ID)
		if err != nil || now.Report == "" {
			v := viewJob(j)
			v.Progress = settledProgress(j, v.Progress, lists.counts)
			return a.streamed(func(_ context.Context, w io.Writer) error { return writeJob(w, v, lists.write) }), err
		}
		j = now
	}
	v := viewJob(j)
	v.Progress = settledProgress(j, v.Progress, jobProgress{})
	doc, err := a.documents.Find(ctx, j.Report)
	if errors.Is(err, store.ErrNotFound) {
		a.log.Warn("the report of a job is gone", "job_id", j.ID, "report", j.Report)
		v.FilesOmitted = true
		raw, err := spelled(v)
		return answered(raw), err
	}
	if err != nil {
		return nil, err
	}
	return a.streamed(func(ctx context.Context, w io.Writer) error {
		r := report{doc: doc, job: j}
		return writeJob(w, v, func(w io.Writer, list fileList) error { return r.write(ctx, w, list) })
	}), nil
}

// streamBuffer is how much of an answer is held back: until there is more, what goes wrong is still answered as an error.
const streamBuffer = 64 << 10

// streamed is a JSON answer that is written piece by piece, for as long as its client goes on reading. When it cannot be
// written to its end the connection is closed, so that nobody takes the beginning for all of it.
func (a *Admin) streamed(write func(context.Context, io.Writer) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		r, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", jsonType)
		begun := &begun{Writer: patientWriter{w, http.NewResponseController(w)}}
		out := bufio.NewWriterSize(begun, streamBuffer)
		err := write(r.Context(), out)
		if err == nil {
			err = out.Flush()
		}
		switch {
		case err == nil:
		case !begun.yet:
			a.fail(w, r, err)
		default:
			if r.Context().Err() == nil {
				a.log.Warn("an answer broke off", "request_id", requestID(r.Context()), "error", err)
			}
			panic(http.ErrAbortHandler)
		}
	}}
}

// spelled is a JSON answer.
func spelled(v any) ([]byte, error) {
	var b bytes.Buffer
	err := jsonFormat.Marshal(&b, v)
	return b.Bytes(), err
}

// answered is a JSON answer that is there already.
func answered(raw []byte) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", jsonType)
		w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
		_, _ = w.Write(raw) // a client that has gone away does not mind
	}}
}

// begun knows whether anything was written.
type begun struct {
	io.Writer
	yet bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.yet = true
	return b.Writer.Write(p)
}

// emptyLists is what encoding/json makes of the three arrays of a job when they are empty. It cannot be part of a string.
const emptyLists = `"video_ids":[],"failed_files":[],"skipped_files":[]`

// writeJob writes a job whose arrays are empty, with what list writes between their brackets.
func writeJob(w io.Writer, v importJob, list func(io.Writer, fileList) error) error {
	all, err := spelled(v)
	if err != nil {
		return err
	}
	head, tail, ok := bytes.Cut(all, []byte(emptyLists))
	if !ok {
		return errors.New("a job has no place for its arrays")
	}
	parts := []struct {
		before string
		list   fileList
	}{{`"video_ids":[`, importedFiles}, {`],"failed_files":[`, failedFiles}, {`],"skipped_files":[`, skippedFiles}}
	if _, err := w.Write(head); err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := io.WriteString(w, p.before); err != nil {
			return err
		}
		if err := list(w, p.list); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(w, "]"); err != nil {
		return err
	}
	_, err = w.Write(tail)
	return err
}

// appendElement appends an element of an array, behind a comma unless it is the first.
func appendElement(to []byte, first bool, list fileList, path, text string) []byte {
	if !first {
		to = append(to, ',')
	}
	switch list {
	case failedFiles:
		return append(appendString(append(appendString(append(to, `{"error":`...), text), `,"path":`...), path), '}')
	case skippedFiles:
		return append(appendString(append(appendString(append(to, `{"path":`...), path), `,"reason":`...), text), '}')
	}
	return appendString(to, text)
}

// appendString appends a string as jsonFormat writes it.
func appendString(to []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			var b bytes.Buffer
			_ = jsonFormat.Marshal(&b, s) // no string fails
			return append(to, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
		}
	}
	return append(append(append(to, '"'), s...), '"')
}

// jobLists are the arrays of a job that has not ended, without their brackets.
type jobLists struct {
	of     [skippedFiles + 1][]byte
	counts jobProgress
}

func (a *Admin) liveLists(ctx context.Context, j store.Job) (*jobLists, error) {
	l := new(jobLists)
	for f, err := range a.files(ctx, j) {
		if err != nil {
			return nil, err
		}
		list, text := fateOf(j, f)
		l.counts.count(list)
		if list != noFiles && (list != importedFiles || text != "") {
			l.of[list] = appendElement(l.of[list], len(l.of[list]) == 0, list, f.Path, text)
		}
	}
	return l, nil
}

func (l *jobLists) write(w io.Writer, list fileList) error {
	_, err := w.Write(l.of[list])
	return err
}

// report writes the arrays of a job that has ended, without their brackets. The first is written while all of the report is
// read; what there is for the others is kept meanwhile while it is little, else it is read again for them.
type report struct {
	doc  store.Document
	job  store.Job
	kept [skippedFiles + 1][]byte
	many [skippedFiles + 1]bool // more than is kept
}

// keptElements is how many bytes of an array are kept.
const keptElements = 256 << 10

func (r *report) write(ctx context.Context, w io.Writer, list fileList) error {
	if list != importedFiles && !r.many[list] {
		_, err := w.Write(r.kept[list])
		return err
	}
	var element []byte
	first := true
	for line, err := range r.doc.Lines(ctx) {
		if err != nil {
			return err
		}
		is, path, text, err := r.read(line)
		switch {
		case err != nil:
			return err
		case is == noFiles, is == importedFiles && text == "":
		case is == list:
			element = appendElement(element[:0], first, list, path, text)
			if _, err := w.Write(element); err != nil {
				return err
			}
			first = false
		case list == importedFiles && !r.many[is]:
			if r.kept[is] = appendElement(r.kept[is], len(r.kept[is]) == 0, is, path, text); len(r.kept[is]) > keptElements {
				r.kept[is], r.many[is] = nil, true
			}
		}
	}
	return nil
}

// read says what a line of the report is. Of what was imported it reads no more than it must, which makes it many times as
// fast as decoding: its marks stand in no string, where quotes have a backslash.
func (r *report) read(line []byte) (list fileList, path, text string, err error) {
	if bytes.Contains(line, importedMark) {
		if _, rest, ok := bytes.Cut(line, videoMark); ok {
			if id, _, ok := bytes.Cut(rest, []byte(`"`)); ok && !bytes.Contains(id, []byte(`\`)) {
				return importedFiles, "", string(id), nil
			}
		}
	}
	var f event.File
	if err := json.Unmarshal(line, &f); err != nil {
		return noFiles, "", "", fmt.Errorf("decode report %s: %w", r.job.Report, err)
	}
	list, text = fateOf(r.job, f)
	return list, f.Path, text, nil
}

var importedMark, videoMark = []byte(`"state":"imported"`), []byte(`"video_id":"`)
