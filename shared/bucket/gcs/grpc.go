package gcs

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/api/googleapi"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"millrace/shared/bucket"
)

// maxMessage is what one message may have: Google sends objects in parts of 2 MiB.
const maxMessage = 16 << 20

// answerTimeout is how long a server that was asked all may stay silent.
var answerTimeout = 2 * time.Minute

// pool is the connections of a bucket over gRPC, opened when they are needed and used in turn: what one carries is bounded,
// as it is over HTTP. They are ours, not the library's, so that they lead where the transport may go and nowhere else,
// carry the driver's own tokens, and fail in its words. What the library would dial by itself inside Google's network
// (DirectPath) it finds by ways that no transport guards.
type pool struct {
	conns []*grpc.ClientConn
	next  atomic.Uint32
	token func(context.Context) (string, error) // nil: none
	// undialled is why the last connection could not be opened; nil if it could. A status says it in words alone.
	undialled atomic.Pointer[error]
}

func newPool(cfg Config, endpoint string, transport http.RoundTripper) (*pool, error) {
	where, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	p := &pool{}
	if a, ok := transport.(*authorized); ok {
		p.token = a.token
	}
	opts := []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithStatsHandler(observer{}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: grpcbackoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: 5 * time.Second,
			},
			MinConnectTimeout: 20 * time.Second,
		}),
		// A connection that leads nowhere any more would be noticed by nobody: a call that times out leaves it open.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	}
	secured := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.Transport != nil {
		t, ok := cfg.Transport.(*http.Transport)
		if !ok || t.DialContext == nil {
			return nil, errors.New("gRPC needs a transport that dials")
		}
		t = t.Clone() // which also waits for another request to have set it up
		if t.TLSClientConfig != nil {
			secured = t.TLSClientConfig
		}
		opts = append(opts, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := t.DialContext(ctx, "tcp", addr)
			if err != nil {
				p.undialled.Store(&err)
				return nil, err
			}
			p.undialled.Store(nil)
			return conn, nil
		}))
	}
	port := "443"
	if where.Scheme == "http" {
		port = "80"
		opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	} else {
		opts = append(opts, grpc.WithTransportCredentials(credentials.NewTLS(secured)))
	}
	// Names are for the dialer to resolve.
	target := "passthrough:///" + net.JoinHostPort(where.Hostname(), cmp.Or(where.Port(), port))
	for range streams {
		conn, err := grpc.NewClient(target, opts...)
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		p.conns = append(p.conns, conn)
	}
	return p, nil
}

// Conn and the rest are what the library asks of a pool.
func (p *pool) Conn() *grpc.ClientConn { return p.conns[int(p.next.Add(1))%len(p.conns)] }

// Num is the number of connections.
func (p *pool) Num() int { return len(p.conns) }

// Close closes them.
func (p *pool) Close() (err error) {
	for _, conn := range p.conns {
		err = errors.Join(err, conn.Close())
	}
	return err
}

// Invoke makes a call of one question and one answer.
func (p *pool) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	c, ctx, err := p.begin(ctx)
	if err != nil {
		return err
	}
	return c.said(ctx, p.Conn().Invoke(ctx, method, args, reply, opts...))
}

// NewStream begins a call of several.
func (p *pool) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	c, ctx, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stream{call: c, ctx: ctx, cancel: cancel}
	if s.ClientStream, err = p.Conn().NewStream(ctx, desc, method, opts...); err != nil {
		err = c.said(ctx, err)
		cancel(err)
		return nil, err
	}
	s.late = time.AfterFunc(answerTimeout, func() { cancel(errSilent) })
	s.late.Stop()
	return s, nil
}

var errSilent = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

// call is one call on its way.
type call struct {
	pool           *pool
	sent, answered atomic.Bool // to a server, and with a status of its own
}

type callKey struct{}

// begin gets a call its token. A caller that has given up asks nothing any more, as a question may be one that cannot be
// taken back.
func (p *pool) begin(ctx context.Context) (*call, context.Context, error) {
	if p.token != nil {
		token, err := p.token(ctx)
		if err != nil {
			return nil, nil, err
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	c := &call{pool: p}
	return c, context.WithValue(ctx, callKey{}, c), ctx.Err()
}

// said is what a call ended with, in the words of the JSON API.
func (c *call) said(ctx context.Context, err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	var says error
	why := c.pool.undialled.Load()
	switch {
	case c.answered.Load():
		return asAnswer(s)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case s.Code() == codes.DeadlineExceeded: // the library's own, for one call
		says = errSilent
	case c.sent.Load():
		says = fmt.Errorf("%s: %w", s.Message(), io.ErrUnexpectedEOF)
	case why != nil:
		says = *why
	default:
		says = fmt.Errorf("%w: %s", bucket.ErrUnavailable, s.Message())
	}
	return &url.Error{Op: "call", Err: says} // as http.Client calls what is no answer
}

// observer tells calls how far they came, which an error alone does not.
type observer struct{}

func (observer) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (observer) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (observer) HandleConn(context.Context, stats.ConnStats)                       {}

func (observer) HandleRPC(ctx context.Context, event stats.RPCStats) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return
	}
	switch event.(type) {
	case *stats.OutHeader:
		c.sent.Store(true)
	case *stats.InTrailer:
		c.answered.Store(true)
	}
}

// stream is a call of several messages.
type stream struct {
	grpc.ClientStream
	call   *call
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu             sync.Mutex
	asked, waiting bool        // we have sent all; we wait for a message
	late           *time.Timer // runs while both hold
}

func (s *stream) SendMsg(m any) error {
	if err := s.ctx.Err(); err != nil { // what was given up must not be completed, however fast the rest is sent
		return err
	}
	return s.ClientStream.SendMsg(m)
}

func (s *stream) CloseSend() error {
	s.clock(func() { s.asked = true })
	return s.ClientStream.CloseSend()
}

func (s *stream) RecvMsg(m any) error {
	s.clock(func() { s.waiting = true })
	err := s.ClientStream.RecvMsg(m)
	s.clock(func() { s.waiting = false })
	if err == nil {
		return nil
	}
	err = s.call.said(s.ctx, err)
	s.cancel(nil)
	return err
}

// clock starts or stops the clock after a change.
func (s *stream) clock(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.late.Stop()
	if s.asked && s.waiting {
		s.late.Reset(answerTimeout)
	}
}

// asAnswer is the status of a server as the JSON API would say it.
func asAnswer(s *status.Status) *googleapi.Error {
	answer := &googleapi.Error{Code: httpStatus(s), Message: s.Message(), Header: http.Header{}}
	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			answer.Errors = append(answer.Errors, googleapi.ErrorItem{Reason: strings.ReplaceAll(d.GetReason(), "_", "")})
		case *errdetails.RetryInfo:
			if wait := d.GetRetryDelay().AsDuration(); wait > 0 {
				answer.Header.Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
			}
		}
	}
	return answer
}

// httpStatus is what Google maps codes to.
func httpStatus(s *status.Status) int {
	switch s.Code() {
	case codes.FailedPrecondition:
		if !strings.Contains(strings.ToLower(s.Message()), "requester pays") {
			return http.StatusPreconditionFailed // a condition on a generation
		}
		return http.StatusBadRequest
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.OutOfRange:
		return http.StatusRequestedRangeNotSatisfiable
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.AlreadyExists, codes.Aborted:
		return http.StatusConflict
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Unimplemented:
		return http.StatusNotImplemented
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// message makes one of google.storage.v2, whose package is internal to the library.
func message(name protoreflect.Name, fields map[protoreflect.Name]any) (protoreflect.Message, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("google.storage.v2").Append(name))
	if err != nil {
		return nil, err
	}
	m := kind.New()
	for field, value := range fields {
		m.Set(m.Descriptor().Fields().ByName(field), protoreflect.ValueOf(value))
	}
	return m, nil
}

// field looks a field up, and those of a message that is one.
func field(m protoreflect.Message, names ...protoreflect.Name) (value protoreflect.Value, ok bool) {
	for i, name := range names {
		fd := m.Descriptor().Fields().ByName(name)
		ok, value = m.Has(fd), m.Get(fd)
		if i < len(names)-1 {
			m = value.Message()
		}
	}
	return value, ok
}

// openGRPC is open over gRPC, without the library's own Reader for one more reason: a message that ends with its bytes, as it
// may, has it reach beyond its buffers.
func (c *client) openGRPC(ctx context.Context, path string, generation, offset, length int64) (*reader, error) {
	if length > math.MaxInt64-offset {
		length = -1
	}
	name := "projects/_/buckets/" + c.name
	ask, err := message("ReadObjectRequest", map[protoreflect.Name]any{
		"bucket": name, "object": path, "generation": generation, "read_offset": offset, "read_limit": max(length, 0),
	})
	if err != nil {
		return nil, err
	}
	md := []string{"x-goog-request-params", "bucket=" + url.QueryEscape(name)}
	if c.project != "" {
		md = append(md, "x-goog-user-project", c.project)
	}
	calling, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, md...))
	body := &parts{cancel: cancel}
	if body.stream, err = c.grpc.NewStream(calling, &grpc.StreamDesc{ServerStreams: true}, "/google.storage.v2.Storage/ReadObject"); err == nil {
		if err = body.stream.SendMsg(ask.Interface()); err == nil || errors.Is(err, io.EOF) { // of which the answer says more
			err = errors.Join(body.stream.CloseSend(), body.next())
		}
	}
	r := &reader{ctx: ctx, path: path, body: body, left: length}
	if err == nil {
		if err = body.check(r, generation, offset); err == nil {
			return r, nil
		}
	}
	cancel()
	if statusOf(err) == http.StatusRequestedRangeNotSatisfiable { // the generation is there, and ends before
		r.body = http.NoBody
		return r, nil
	}
	return nil, c.wrap(ctx, "open", path, err)
}

// parts is a body that comes in messages.
type parts struct {
	stream grpc.ClientStream
	cancel context.CancelFunc
	msg    protoreflect.Message
	data   []byte // of msg, not read yet
	owed   int64  // bytes still to come
}

// next waits for a message, and holds its bytes against their checksum.
func (b *parts) next() (err error) {
	if b.msg, err = message("ReadObjectResponse", nil); err != nil {
		return err
	}
	if err = b.stream.RecvMsg(b.msg.Interface()); err != nil {
		return err
	}
	data, _ := field(b.msg, "checksummed_data", "content")
	b.data = data.Bytes()
	sum, ok := field(b.msg, "checksummed_data", "crc32c")
	if got := crc32.Checksum(b.data, castagnoli); ok && sum.Uint() != uint64(got) {
		return fmt.Errorf("crc32c %08x of a part instead of %08x: %w", got, sum.Uint(), bucket.ErrChecksum)
	}
	return nil
}

// check holds the first message against the question.
func (b *parts) check(r *reader, generation, offset int64) error {
	if got, _ := field(b.msg, "metadata", "generation"); generation != live && got.Int() != generation {
		return fmt.Errorf("asked for generation %d and got %d: %w", generation, got.Int(), bucket.ErrChanged)
	}
	size, _ := field(b.msg, "metadata", "size")
	start, end := int64(0), size.Int()
	if part, ok := field(b.msg, "content_range"); ok {
		from, _ := field(part.Message(), "start")
		to, _ := field(part.Message(), "end")
		start, end = from.Int(), to.Int()
	}
	if start != offset {
		return fmt.Errorf("asked for bytes from %d and got them from %d: %w", offset, start, bucket.ErrUnavailable)
	}
	b.owed = end - start
	if sum, ok := field(b.msg, "object_checksums", "crc32c"); ok && start == 0 && end == size.Int() {
		r.want = bucket.EncodeCRC32C(uint32(sum.Uint()))
	}
	return nil
}

func (b *parts) Read(p []byte) (int, error) {
	for len(b.data) == 0 {
		err := b.next()
		if errors.Is(err, io.EOF) && b.owed > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
	}
	n := copy(p, b.data)
	b.data, b.owed = b.data[n:], b.owed-int64(n)
	return n, nil
}

func (b *parts) Close() error {
	b.cancel()
	return nil
}
