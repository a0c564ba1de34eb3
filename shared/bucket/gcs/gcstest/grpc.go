package gcstest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "cloud.google.com/go/storage" // registers google.storage.v2
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"
)

// front speaks google.storage.v2 before a Server: it makes a request of each call, of the same objects and through the same
// faults, and a status of what comes back.
type front struct {
	server  *Server
	service protoreflect.ServiceDescriptor
	http    *http.Client
	conns   sync.Map // *frames by remote address

	mu      sync.Mutex
	uploads map[string]*session // by upload id
}

// session is an upload in pieces, as far as the server has it.
type session struct {
	where string
	size  int
}

// GRPC has the server speak gRPC, too, and returns what goes into gcs.Config.Endpoint for that. Requests of that kind are
// matched, counted and met by faults as those that the JSON API has in their place.
func (s *Server) GRPC(t testing.TB) string {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grpc != "" {
		return s.grpc
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName("google.storage.v2.Storage")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &front{
		server: s, service: d.(protoreflect.ServiceDescriptor), uploads: map[string]*session{},
		http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}, // one request, one attempt
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(f.serve), grpc.MaxRecvMsgSize(16<<20))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener{l, f}) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	s.grpc = "http://" + l.Addr().String()
	return s.grpc
}

func (f *front) serve(_ any, stream grpc.ServerStream) error {
	name, _ := grpc.MethodFromServerStream(stream)
	c := &call{front: f, ServerStream: stream, method: f.service.Methods().ByName(protoreflect.Name(path.Base(name)))}
	serve, ok := map[string]func(request) error{
		"GetObject": c.get, "ListObjects": c.list, "DeleteObject": c.remove, "ReadObject": c.read, "RewriteObject": c.rewrite,
		"StartResumableWrite": c.start, "QueryWriteStatus": c.query, "BidiWriteObject": c.write,
	}[path.Base(name)]
	if !ok {
		return status.Error(codes.Unimplemented, name)
	}
	req, err := c.receive()
	if err != nil {
		return err
	}
	return serve(req)
}

// request is any of them. Numbers are those of queries, in decimal.
type request struct {
	Parent, Prefix, Delimiter, LexicographicStart, PageToken string
	PageSize                                                 int

	Bucket, Object, Generation, IfGenerationMatch, ReadOffset, ReadLimit string

	SourceBucket, SourceObject, SourceGeneration, RewriteToken, DestinationBucket, DestinationName string
	Destination                                                                                    object

	WriteObjectSpec *struct {
		Resource          object
		IfGenerationMatch string
	}
	UploadID        string
	WriteOffset     int `json:",string"`
	ChecksummedData struct {
		Content []byte
		Crc32c  uint32
	}
	ObjectChecksums    struct{ Crc32c *uint32 }
	Flush, FinishWrite bool
}

// object is what a request says of one.
type object struct {
	Bucket      string `json:"bucket,omitempty"`
	Name        string `json:"name,omitempty"`
	ContentType string `json:"contentType,omitempty"`
	Crc32c      string `json:"crc32c,omitempty"`
}

// call is one call being answered.
type call struct {
	*front
	grpc.ServerStream
	method protoreflect.MethodDescriptor
}

// message makes one. Their package is internal to the client, so the type is that of the registry.
func message(d protoreflect.MessageDescriptor) (protoreflect.Message, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		return nil, err
	}
	return kind.New(), nil
}

// contentOf takes the bytes out of a message, as JSON is slow at them.
func contentOf(m protoreflect.Message) []byte {
	field := m.Descriptor().Fields().ByName("checksummed_data")
	if field == nil || !m.Has(field) {
		return nil
	}
	m = m.Get(field).Message()
	content := m.Descriptor().Fields().ByName("content")
	defer m.Clear(content)
	return m.Get(content).Bytes()
}

func (c *call) receive() (req request, err error) {
	m, err := message(c.method.Input())
	if err == nil {
		err = c.RecvMsg(m.Interface())
	}
	if err != nil {
		return req, err
	}
	if mask := c.method.Input().Fields().ByName("read_mask"); mask != nil {
		m.Clear(mask) // "*", which JSON cannot say
	}
	content := contentOf(m)
	b, err := protojson.Marshal(m.Interface())
	if err == nil {
		err = json.Unmarshal(b, &req)
	}
	req.ChecksummedData.Content = content
	return req, err
}

func (c *call) answer(v map[string]any) error { return c.deliver(v, nil) }

// deliver is answer with bytes.
func (c *call) deliver(v map[string]any, content []byte) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	m, err := message(c.method.Output())
	if err == nil {
		err = protojson.Unmarshal(b, m.Interface())
	}
	if err != nil {
		return err
	}
	if len(content) > 0 {
		data := m.Mutable(m.Descriptor().Fields().ByName("checksummed_data")).Message()
		data.Set(data.Descriptor().Fields().ByName("content"), protoreflect.ValueOfBytes(content))
	}
	return c.SendMsg(m.Interface())
}

// ask makes a request of the JSON API. What broke there is broken off here.
func (c *call) ask(method, where string, query, header map[string]string, body []byte) (*http.Response, error) {
	if !strings.HasPrefix(where, "http:") {
		where = c.server.URL + where
	}
	u, err := url.Parse(where)
	if err != nil {
		return nil, err
	}
	md, _ := metadata.FromIncomingContext(c.Context())
	q := u.Query()
	for key, value := range query {
		if value != "" {
			q.Set(key, value)
		}
	}
	if project := md.Get("x-goog-user-project"); len(project) > 0 {
		q.Set("userProject", project[0])
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(c.Context(), method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for key, value := range header {
		req.Header.Set(key, value)
	}
	req.Header["Authorization"] = md.Get("authorization")
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.breakOff()
	}
	if res.StatusCode >= 300 {
		defer res.Body.Close()
		return nil, refusal(res)
	}
	return res, nil
}

// tell is ask for an answer in JSON.
func (c *call) tell(method, where string, query, header map[string]string, body []byte, into any) error {
	res, err := c.ask(method, where, query, header, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return c.breakOff()
	}
	if len(b) == 0 {
		return nil
	}
	return json.Unmarshal(b, into)
}

func at(bucket, object string) string {
	where := "/b/" + url.PathEscape(path.Base(bucket)) + "/o" // projects/_/buckets/B
	if object != "" {
		where += "/" + url.PathEscape(object)
	}
	return where
}

// resource is an object as the JSON API has it.
type resource struct{ Name, Bucket, Generation, Size, ContentType, ContentEncoding, Crc32c, TimeCreated string }

func (r resource) v2() map[string]any {
	o := map[string]any{"bucket": "projects/_/buckets/" + r.Bucket, "checksums": checksums(r.Crc32c)}
	for key, value := range map[string]string{
		"name": r.Name, "generation": r.Generation, "size": r.Size, "contentType": r.ContentType,
		"contentEncoding": r.ContentEncoding, "createTime": r.TimeCreated,
	} {
		if value != "" {
			o[key] = value
		}
	}
	return o
}

func checksums(crc string) map[string]any {
	b, err := base64.StdEncoding.DecodeString(crc)
	if err != nil || len(b) != 4 {
		return map[string]any{}
	}
	return map[string]any{"crc32c": binary.BigEndian.Uint32(b)}
}

func encode(crc *uint32) string {
	if crc == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, *crc))
}

func (c *call) get(req request) error {
	var o resource
	query := map[string]string{"generation": req.Generation}
	if err := c.tell(http.MethodGet, "/storage/v1"+at(req.Bucket, req.Object), query, nil, nil, &o); err != nil {
		return err
	}
	return c.answer(o.v2())
}

func (c *call) remove(req request) error {
	query := map[string]string{"generation": req.Generation, "ifGenerationMatch": req.IfGenerationMatch}
	if err := c.tell(http.MethodDelete, "/storage/v1"+at(req.Bucket, req.Object), query, nil, nil, nil); err != nil {
		return err
	}
	return c.answer(nil)
}

func (c *call) list(req request) error {
	query := map[string]string{
		"prefix": req.Prefix, "delimiter": req.Delimiter, "startOffset": req.LexicographicStart, "pageToken": req.PageToken,
		"maxResults": strconv.Itoa(req.PageSize),
	}
	var page struct {
		Items         []resource
		Prefixes      []string
		NextPageToken string
	}
	if err := c.tell(http.MethodGet, "/storage/v1"+at(req.Parent, ""), query, nil, nil, &page); err != nil {
		return err
	}
	objects := make([]any, len(page.Items))
	for i, o := range page.Items {
		objects[i] = o.v2()
	}
	return c.answer(map[string]any{"objects": objects, "prefixes": page.Prefixes, "nextPageToken": page.NextPageToken})
}

func (c *call) rewrite(req request) error {
	query := map[string]string{
		"sourceGeneration": req.SourceGeneration, "ifGenerationMatch": req.IfGenerationMatch, "rewriteToken": req.RewriteToken,
	}
	where := "/storage/v1" + at(req.SourceBucket, req.SourceObject) + "/rewriteTo" + at(req.DestinationBucket, req.DestinationName)
	body, err := json.Marshal(req.Destination)
	if err != nil {
		return err
	}
	var part struct {
		Done                            bool
		RewriteToken                    string
		ObjectSize, TotalBytesRewritten json.RawMessage
		Resource                        resource
	}
	if err := c.tell(http.MethodPost, where, query, nil, body, &part); err != nil {
		return err
	}
	said := map[string]any{
		"done": part.Done, "rewriteToken": part.RewriteToken,
		"objectSize": part.ObjectSize, "totalBytesRewritten": part.TotalBytesRewritten,
	}
	if part.Done {
		said["resource"] = part.Resource.v2()
	}
	return c.answer(said)
}

func (c *call) read(req request) error {
	header := map[string]string{"Accept-Encoding": "gzip"} // as it is stored
	offset, _ := strconv.ParseInt(req.ReadOffset, 10, 64)
	limit, _ := strconv.ParseInt(req.ReadLimit, 10, 64)
	switch {
	case limit > 0:
		header["Range"] = fmt.Sprintf("bytes=%d-%d", offset, offset+limit-1)
	case offset > 0:
		header["Range"] = fmt.Sprintf("bytes=%d-", offset)
	}
	query := map[string]string{"alt": "media", "generation": req.Generation}
	res, err := c.ask(http.MethodGet, "/storage/v1"+at(req.Bucket, req.Object), query, header, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, crc, _ := strings.Cut(res.Header.Get("X-Goog-Hash"), "crc32c=")
	crc, _, _ = strings.Cut(crc, ",")
	o := resource{
		Name: req.Object, Bucket: path.Base(req.Bucket), Generation: res.Header.Get("X-Goog-Generation"),
		Size: strconv.FormatInt(res.ContentLength, 10), Crc32c: crc,
	}
	message := map[string]any{}
	var first, last, size int64
	if n, _ := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); n == 3 {
		o.Size = strconv.FormatInt(size, 10)
		message["contentRange"] = map[string]any{"start": first, "end": last + 1, "completeLength": size}
	}
	message["metadata"], message["objectChecksums"] = o.v2(), checksums(crc)
	for buf := make([]byte, 128<<10); ; message = map[string]any{} {
		n, err := res.Body.Read(buf)
		if n > 0 || len(message) > 0 {
			message["checksummedData"] = map[string]any{"crc32c": crc32.Checksum(buf[:n], castagnoli)}
			if err := c.deliver(message, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.breakOff()
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (c *call) start(req request) error {
	o := req.WriteObjectSpec.Resource
	o.Bucket = path.Base(o.Bucket)
	o.Crc32c = encode(req.ObjectChecksums.Crc32c)
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	query := map[string]string{"uploadType": "resumable", "name": o.Name, "ifGenerationMatch": req.WriteObjectSpec.IfGenerationMatch}
	header := map[string]string{"Content-Type": "application/json"}
	res, err := c.ask(http.MethodPost, "/upload/storage/v1"+at(o.Bucket, ""), query, header, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	id := fmt.Sprintf("upload-%d", len(c.uploads)+1)
	c.uploads[id] = &session{where: res.Header.Get("Location")}
	return c.answer(map[string]any{"uploadId": id})
}

func (c *call) session(id string) (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u := c.uploads[id]; u != nil {
		return u, nil
	}
	return nil, status.Error(codes.NotFound, "Not Found")
}

func (c *call) query(req request) error {
	u, err := c.session(req.UploadID)
	if err != nil {
		return err
	}
	return c.answer(map[string]any{"persistedSize": u.size})
}

// write takes the messages of an upload up to each flush, or to the end, to be one piece.
func (c *call) write(req request) error {
	var (
		spec  = req.WriteObjectSpec // of one that comes at once
		u     = &session{}
		piece []byte
		err   error
	)
	if spec == nil {
		if u, err = c.session(req.UploadID); err != nil {
			return err
		}
	}
	for ; ; req, err = c.receive() {
		data := req.ChecksummedData
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case req.WriteOffset != u.size+len(piece):
			return status.Errorf(codes.OutOfRange, "written at %d of %d", req.WriteOffset, u.size+len(piece))
		case data.Crc32c != crc32.Checksum(data.Content, castagnoli):
			return status.Error(codes.InvalidArgument, "crc32c of a part")
		}
		piece = append(piece, data.Content...)
		if !req.FinishWrite && (spec != nil || !req.Flush) {
			continue
		}
		var o resource
		crc := encode(req.ObjectChecksums.Crc32c)
		if spec != nil {
			spec.Resource.Bucket, spec.Resource.Crc32c = path.Base(spec.Resource.Bucket), crc
			err = c.putWhole(spec.Resource, spec.IfGenerationMatch, piece, &o)
		} else {
			err = c.putPiece(u, piece, req.FinishWrite, crc, &o)
		}
		if err != nil {
			return err
		}
		if req.FinishWrite {
			return c.answer(map[string]any{"resource": o.v2()})
		}
		u.size += len(piece)
		if err := c.answer(map[string]any{"persistedSize": u.size}); err != nil {
			return err
		}
		piece = piece[:0]
	}
}

func (c *call) putWhole(o object, match string, data []byte, into *resource) error {
	about, err := json.Marshal(o)
	if err != nil {
		return err
	}
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for _, part := range []struct {
		kind string
		data []byte
	}{{"application/json", about}, {o.ContentType, data}} {
		pw, err := w.CreatePart(textproto.MIMEHeader{"Content-Type": {part.kind}})
		if err != nil {
			return err
		}
		if _, err := pw.Write(part.data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	query := map[string]string{"uploadType": "multipart", "name": o.Name, "ifGenerationMatch": match}
	header := map[string]string{"Content-Type": "multipart/related; boundary=" + w.Boundary()}
	return c.tell(http.MethodPost, "/upload/storage/v1"+at(o.Bucket, ""), query, header, body.Bytes(), into)
}

func (c *call) putPiece(u *session, data []byte, last bool, crc string, into *resource) error {
	part, total := "*", "*"
	if len(data) > 0 {
		part = fmt.Sprintf("%d-%d", u.size, u.size+len(data)-1)
	}
	header := map[string]string{"X-GUploader-No-308": "yes"}
	if last {
		total = strconv.Itoa(u.size + len(data))
		header["X-Goog-Hash"] = "crc32c=" + crc
	}
	header["Content-Range"] = "bytes " + part + "/" + total
	return c.tell(http.MethodPut, u.where, nil, header, data, into)
}

// refusal is an answer of the JSON API as a status.
func refusal(res *http.Response) error {
	var said struct {
		Error struct {
			Message string
			Errors  []struct{ Reason string }
		}
	}
	_ = json.NewDecoder(res.Body).Decode(&said) // what it says of bytes is XML
	code, ok := map[int]codes.Code{
		400: codes.InvalidArgument, 401: codes.Unauthenticated, 403: codes.PermissionDenied, 404: codes.NotFound,
		412: codes.FailedPrecondition, 416: codes.OutOfRange, 429: codes.ResourceExhausted, 500: codes.Internal,
	}[res.StatusCode]
	if !ok {
		code = codes.Unavailable
	}
	var details []protoadapt.MessageV1
	for _, e := range said.Error.Errors {
		details = append(details, &errdetails.ErrorInfo{Reason: e.Reason, Domain: "googleapis.com"})
	}
	if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Duration(seconds) * time.Second)})
	}
	s, err := status.New(code, said.Error.Message).WithDetails(details...)
	if err != nil {
		return err
	}
	return s.Err()
}

// breakOff ends the connection of a call after what was sent.
func (c *call) breakOff() error {
	p, _ := peer.FromContext(c.Context())
	if conn, ok := c.conns.Load(p.Addr.String()); ok {
		conn.(*frames).cut.Store(true)
	}
	return status.Error(codes.Unavailable, "never said")
}

// listener knows its connections.
type listener struct {
	net.Listener
	front *front
}

func (l listener) Accept() (net.Conn, error) {
	tcp, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &frames{TCPConn: tcp.(*net.TCPConn)}
	l.front.conns.Store(tcp.RemoteAddr().String(), c)
	return c, nil
}

// frames is a connection that breaks where the next call would end.
type frames struct {
	*net.TCPConn
	cut  atomic.Bool
	left []byte // the beginning of a frame
}

// Write writes whole frames of HTTP/2: length, type, flags, stream, and so many bytes.
func (c *frames) Write(p []byte) (int, error) {
	const head, headers, endStream = 9, 1, 1
	c.left = append(c.left, p...)
	for len(c.left) >= head {
		n := head + int(c.left[0])<<16 + int(c.left[1])<<8 + int(c.left[2])
		if len(c.left) < n {
			break
		}
		if c.cut.Load() && c.left[3] == headers && c.left[4]&endStream != 0 {
			return 0, errors.Join(net.ErrClosed, c.CloseWrite())
		}
		if _, err := c.TCPConn.Write(c.left[:n]); err != nil {
			return 0, err
		}
		c.left = c.left[n:]
	}
	return len(p), nil
}
