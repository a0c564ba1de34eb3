package gcstest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
)

// upload is one that comes in pieces.
type upload struct {
	declared string // crc32c, from the first request
	crc      uint32
	answer   *httptest.ResponseRecorder // to its last piece, given again to who asks again
}

// target is what a request of the API is about.
type target struct {
	bucket, object string
	from           *target // of a rewrite, whose target is where to
}

// parse reads the path of a request: /storage/v1/b/B/o/O, /upload/storage/v1/b/B/o, and …/o/O/rewriteTo/b/B/o/O.
func parse(r *http.Request) (target, bool) {
	path := strings.TrimPrefix(r.URL.EscapedPath(), "/upload")
	path, ok := strings.CutPrefix(path, "/storage/v1/b/")
	if !ok {
		return target{}, false
	}
	path, to, rewrite := strings.Cut(path, "/rewriteTo/b/")
	t := parseObject(path)
	if rewrite {
		from := t
		t = parseObject(to)
		t.from = &from
	}
	if name := r.URL.Query().Get("name"); name != "" {
		t.object = name
	}
	return t, true
}

func parseObject(path string) target {
	bucket, object, _ := strings.Cut(path, "/o/")
	bucket = strings.TrimSuffix(bucket, "/o")
	bucket, _ = url.PathUnescape(bucket)
	object, _ = url.PathUnescape(object)
	return target{bucket: bucket, object: object}
}

// Agent is the account that the storage publishes as.
const Agent = "service-1@gs-project-accounts.iam.gserviceaccount.com"

const notificationConfigs = "/notificationConfigs"

// serve answers as Google would where the fake does not.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == tokenPath {
		s.serveToken(w)
		return
	}
	if s.refuses(r) {
		answer(w, http.StatusUnauthorized, "authError", "Invalid Credentials")
		return
	}
	if strings.HasSuffix(r.URL.Path, notificationConfigs) {
		s.fake.HTTPHandler().ServeHTTP(w, r)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/serviceAccount") {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"kind": "storage#serviceAccount", "email_address": Agent})
		return
	}
	t, ok := parse(r)
	if !ok {
		answer(w, http.StatusNotFound, "notFound", "Not Found")
		return
	}
	if !s.hasBucket(t.bucket) {
		answer(w, http.StatusNotFound, "notFound", "The specified bucket does not exist.")
		return
	}
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodDelete:
		s.serveWrite(w, r, t)
	default:
		s.serveRead(w, r, t)
	}
}

func (s *Server) hasBucket(name string) bool {
	rec := httptest.NewRecorder()
	s.fake.HTTPHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/storage/v1/b/"+url.PathEscape(name), nil))
	return rec.Code == http.StatusOK
}

func (s *Server) serveRead(w http.ResponseWriter, r *http.Request, t target) {
	if t.object == "" { // a listing
		q := r.URL.Query()
		if n, err := strconv.Atoi(q.Get("maxResults")); err != nil || n <= 0 || n > s.Page {
			q.Set("maxResults", strconv.Itoa(s.Page))
			r.URL.RawQuery = q.Encode()
		}
	} else if !s.has(t, r.URL.Query().Get("generation")) {
		answer(w, http.StatusNotFound, "notFound", noSuch(t))
		return
	}
	s.fake.HTTPHandler().ServeHTTP(w, r)
}

func noSuch(t target) string { return "No such object: " + t.bucket + "/" + t.object }

// has reports whether a generation, or any if it is empty, can be read.
func (s *Server) has(t target, generation string) bool {
	if generation == "" {
		return s.generation(t.bucket, t.object) != 0
	}
	g, err := strconv.ParseInt(generation, 10, 64)
	if err != nil {
		return false
	}
	o, err := s.fake.GetObjectWithGenerationStreaming(t.bucket, t.object, g)
	if err != nil {
		return false
	}
	o.Close()
	return true
}

func (s *Server) serveWrite(w http.ResponseWriter, r *http.Request, t target) {
	s.writing.Lock()
	defer s.writing.Unlock()
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodDelete && !s.has(t, q.Get("generation")):
		answer(w, http.StatusNotFound, "notFound", noSuch(t))
		return
	case t.from != nil:
		if !s.has(*t.from, q.Get("sourceGeneration")) {
			answer(w, http.StatusNotFound, "notFound", noSuch(*t.from))
			return
		}
	}
	if t.from != nil && !s.rewrites(w, t, q.Get("rewriteToken")) {
		return
	}
	if u := s.upload(q.Get("upload_id")); u != nil && u.answer != nil {
		copyAnswer(w, u.answer)
		return
	}
	if want := q.Get("ifGenerationMatch"); want != "" && want != fmt.Sprint(s.generation(t.bucket, t.object)) {
		answer(w, http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	id := q.Get("upload_id")
	if id != "" && !s.piece(w, r, id, body) {
		return
	}
	// Recorded, because the client must not act on an answer before the lock is free.
	rec := httptest.NewRecorder()
	s.fake.HTTPHandler().ServeHTTP(rec, r)
	if q.Get("uploadType") == "resumable" && q.Get("upload_id") == "" {
		s.begin(rec.Header().Get("Location"), body)
	}
	if t.from != nil && rec.Code == http.StatusOK {
		s.replaceMetadata(t, body)
	}
	if u := s.upload(id); u != nil && rec.Code == http.StatusOK && lastPiece(r) {
		u.answer = rec
	}
	copyAnswer(w, rec)
}

// part is how far a copy is.
type part struct {
	from, to target
	done     int
}

// rewrites reports whether this is the last request of a copy. It has answered the others, and those whose token it does not
// know.
func (s *Server) rewrites(w http.ResponseWriter, t target, token string) bool {
	p := part{from: *t.from, to: target{bucket: t.bucket, object: t.object}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if had, ok := s.copies[token]; ok && had.from == p.from && had.to == p.to {
		p.done = had.done
	} else if token != "" {
		answer(w, http.StatusBadRequest, "invalid", "Invalid rewrite token.")
		return false
	}
	if p.done++; p.done >= s.Rewrites {
		return true
	}
	o, err := s.fake.GetObjectStreaming(t.from.bucket, t.from.object)
	if err != nil {
		answer(w, http.StatusNotFound, "notFound", noSuch(*t.from))
		return false
	}
	defer o.Close()
	next := fmt.Sprintf("token-%d", len(s.copies)+1)
	s.copies[next] = p
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": "storage#rewriteResponse", "done": false, "rewriteToken": next,
		"objectSize": fmt.Sprint(o.Size), "totalBytesRewritten": fmt.Sprint(o.Size * int64(p.done) / int64(s.Rewrites)),
	})
	return false
}

// Forget has the server know nothing of copies that are under way, as Google does after a week.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.copies)
}

func copyAnswer(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	for key, values := range rec.Header() {
		w.Header()[key] = values
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
}

func lastPiece(r *http.Request) bool { return !strings.HasSuffix(r.Header.Get("Content-Range"), "/*") }

func (s *Server) upload(id string) *upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uploads[id]
}

// begin notes what an upload in pieces declares. The fake forgets it with the first piece.
func (s *Server) begin(location string, body []byte) {
	u, err := url.Parse(location)
	if err != nil {
		return
	}
	var declared struct{ Crc32c string }
	_ = json.Unmarshal(body, &declared) // an object without attributes has no body
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uploads[u.Query().Get("upload_id")] = &upload{declared: declared.Crc32c}
}

// piece holds the last piece of an upload against its checksums, and reports whether it may go on.
func (s *Server) piece(w http.ResponseWriter, r *http.Request, id string, body []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uploads[id]
	if u == nil {
		answer(w, http.StatusNotFound, "notFound", "Not Found")
		return false
	}
	u.crc = crc32.Update(u.crc, crc32.MakeTable(crc32.Castagnoli), body)
	if !lastPiece(r) {
		return true
	}
	got := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, u.crc))
	sent := strings.TrimPrefix(r.Header.Get("X-Goog-Hash"), "crc32c=")
	for _, want := range []string{u.declared, sent} {
		if want != "" && want != got {
			answer(w, http.StatusBadRequest, "invalid", fmt.Sprintf("Provided CRC32C %q doesn't match calculated CRC32C %q.", want, got))
			return false
		}
	}
	return true
}

// replaceMetadata gives the target of a rewrite the attributes of the request and, if it names any, none of the source's.
func (s *Server) replaceMetadata(t target, body []byte) {
	var attrs struct{ ContentType, ContentEncoding string }
	if json.Unmarshal(body, &attrs) != nil || attrs.ContentType == "" {
		return
	}
	o, err := s.fake.GetObject(t.bucket, t.object)
	if err != nil {
		return
	}
	o.ContentType, o.ContentEncoding, o.Metadata = attrs.ContentType, attrs.ContentEncoding, nil
	s.fake.CreateObject(o) // the generation is that of o: changed in place
}

// answer is an error as the JSON API spells it.
func answer(w http.ResponseWriter, status int, reason, message string) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	item := map[string]string{"domain": "global", "reason": reason, "message": message}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"error": map[string]any{"code": status, "message": message, "errors": []any{item}},
	})
}
