package azure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"millrace/shared/bucket"
)

// wrap says in the bucket's words what the client said.
func wrap(ctx context.Context, op, path string, err error) error {
	if err == nil {
		return nil
	}
	err = translate(err)
	if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
		err = fmt.Errorf("%w: %w", ended, err)
	}
	return fmt.Errorf("%s %q: %w", op, path, err)
}

// wrap is wrap for what is asked about one blob. Some servers say no more than 404 to a HEAD, and a wrong guess would put
// it on record that every object is gone; so where the container may be meant, we ask.
func (c *client) wrap(ctx context.Context, op, path string, err error) error {
	var answer *azcore.ResponseError
	if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound &&
		answer.ErrorCode != string(bloberror.BlobNotFound) && c.noContainer(ctx) {
		err = fmt.Errorf("%w: %w", bucket.ErrNoBucket, translate(err))
	}
	return wrap(ctx, op, path, err)
}

func (c *client) noContainer(ctx context.Context) bool {
	_, err := c.blobs.NewListBlobsFlatPager(&listOne).NextPage(ctx)
	return bloberror.HasCode(err, bloberror.ContainerNotFound)
}

// translate returns an error without what the client adds to it: the address of a request can be as good as a password
// (a shared access signature), and the body of an answer is for whoever configured the endpoint to read, not for our
// records.
func translate(err error) error {
	var token *tokenError
	if errors.As(err, &token) {
		return token.error
	}
	var answer *azcore.ResponseError
	if errors.As(err, &answer) {
		return newAnswerError(answer)
	}
	var request *url.Error
	if errors.As(err, &request) {
		if errors.Is(request.Err, io.EOF) { // which means something else to readers
			return fmt.Errorf("no answer: %w", io.ErrUnexpectedEOF)
		}
		return request.Err
	}
	return err
}

// answerError is an answer of the server.
type answerError struct {
	status int
	code   string
	hint   string // what to do about it; may be ""
	says   error  // one of the bucket's
}

func (e *answerError) Error() string {
	s := fmt.Sprintf("%v: %d %s", e.says, e.status, e.code)
	if e.code == "" { // as in the answer to a HEAD of some servers
		s = fmt.Sprintf("%v: %d %s", e.says, e.status, http.StatusText(e.status))
	}
	if e.hint != "" {
		s += ": " + e.hint
	}
	return s
}

func (e *answerError) Unwrap() error { return e.says }

// errRefused is what we know of an answer of which we know nothing.
var errRefused = errors.New("request refused")

// meaning is what a code of Azure's says, and what to do about it.
type meaning struct {
	says error
	hint string
}

// meanings holds the codes that say more than their status does.
var meanings = map[bloberror.Code]meaning{
	bloberror.AuthenticationFailed:            {bucket.ErrCredentials, "the key or the signature is wrong, or has expired"},
	bloberror.NoAuthenticationInformation:     {bucket.ErrCredentials, ""},
	"InvalidAuthenticationInfo":               {bucket.ErrCredentials, ""},
	"KeyBasedAuthenticationNotPermitted":      {bucket.ErrCredentials, "the account takes no keys: use a service principal"},
	bloberror.AuthorizationPermissionMismatch: {bucket.ErrPermission, missingRole},
	bloberror.InsufficientAccountPermissions:  {bucket.ErrPermission, missingRole},
	bloberror.AuthorizationFailure: {bucket.ErrPermission, "the signature does not allow this, or the firewall of the " +
		"storage account does not let this machine in"},
	bloberror.AuthorizationSourceIPMismatch:     {bucket.ErrPermission, "the signature is for other addresses"},
	bloberror.AuthorizationProtocolMismatch:     {bucket.ErrPermission, "the signature is for https alone"},
	bloberror.AuthorizationServiceMismatch:      {bucket.ErrPermission, "the signature is not for blobs"},
	bloberror.AuthorizationResourceTypeMismatch: {bucket.ErrPermission, "the signature must be for containers and objects"},
	bloberror.AccountIsDisabled:                 {bucket.ErrPermission, "the storage account is disabled"},

	bloberror.BlobArchived:                        {bucket.ErrArchived, "move it to the tier Hot, Cool or Cold, which takes hours, and retry it"},
	bloberror.BlobBeingRehydrated:                 {bucket.ErrArchived, "it is on its way out of the archive: retry it when it is"},
	bloberror.BlobUsesCustomerSpecifiedEncryption: {bucket.ErrUnreadable, "it is encrypted with a key that its owner keeps"},

	bloberror.ContainerNotFound:      {bucket.ErrNoBucket, ""},
	bloberror.ContainerBeingDeleted:  {bucket.ErrNoBucket, ""},
	bloberror.InvalidResourceName:    {bucket.ErrName, ""},
	bloberror.ServerBusy:             {bucket.ErrThrottled, ""},
	bloberror.MD5Mismatch:            {bucket.ErrChecksum, ""},
	bloberror.CRC64Mismatch:          {bucket.ErrChecksum, ""},
	bloberror.InvalidBlockList:       {errOvertaken, ""},
	bloberror.InvalidBlobOrBlock:     {errOvertaken, ""},
	bloberror.CannotVerifyCopySource: {bucket.ErrPermission, "the account of the library may not read the source"},
}

const missingRole = "give the principal the role Storage Blob Data Reader on the container, or Storage Blob Data Contributor " +
	"where it has to write; that takes some minutes to hold"

func newAnswerError(answer *azcore.ResponseError) error {
	e := &answerError{status: answer.StatusCode, code: clip(answer.ErrorCode)}
	said, known := meanings[bloberror.Code(answer.ErrorCode)]
	if e.says, e.hint = said.says, said.hint; !known {
		e.says = meaningOf(answer.StatusCode)
	}
	if res := answer.RawResponse; res != nil && errors.Is(e.says, bucket.ErrCredentials) {
		e.hint = cmp.Or(bucket.ClockOff(res.Header, maxSkew), e.hint)
	}
	if wait := retryAfter(answer.RawResponse); wait > 0 && (errors.Is(e.says, bucket.ErrThrottled) || errors.Is(e.says, bucket.ErrUnavailable)) {
		return &bucket.ThrottledError{RetryAfter: wait, Err: e}
	}
	return e
}

// meaningOf is for codes that we do not know.
func meaningOf(status int) error {
	switch status {
	case http.StatusUnauthorized:
		return bucket.ErrCredentials
	case http.StatusForbidden:
		return bucket.ErrPermission
	case http.StatusNotFound:
		return bucket.ErrNotExist
	case http.StatusPreconditionFailed:
		return bucket.ErrChanged
	case http.StatusTooManyRequests:
		return bucket.ErrThrottled
	case http.StatusInsufficientStorage:
		return bucket.ErrFull
	case http.StatusRequestTimeout:
		return bucket.ErrUnavailable
	}
	if status >= 500 {
		return bucket.ErrUnavailable
	}
	return errRefused
}

// maxSkew is how far off a clock may be before Azure refuses what it signed: 15 minutes, less a margin.
const maxSkew = 14 * time.Minute

// retryAfter is what the server said about when to come back.
func retryAfter(res *http.Response) time.Duration {
	if res == nil {
		return 0
	}
	after := res.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(after, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(after); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// repeatable reports whether the client may repeat a request at once: for what an overloaded or restarting server does
// to some requests, not for what it says to all.
func repeatable(res *http.Response, err error) bool {
	if err == nil {
		return res.StatusCode >= 500 && retryAfter(res) == 0 && res.Header.Get("X-Ms-Error-Code") != string(bloberror.ServerBusy)
	}
	var request *url.Error
	unanswered := errors.As(err, &request)
	err = translate(err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	switch bucket.ClassOf(err) {
	case bucket.ClassUnavailable:
		var dns *net.DNSError
		return !errors.As(err, &dns) // an account that does not exist has no address
	case bucket.ClassBroken:
		return true
	case bucket.ClassOther: // a stream that was reset, a connection that was closed while idle
		return unanswered
	}
	return false
}

func clip(s string) string { return s[:min(len(s), 64)] }
