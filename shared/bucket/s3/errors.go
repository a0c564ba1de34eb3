package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"millrace/shared/bucket"
)

// wrap says in the bucket's words what the client said about an operation, for which the credentials need the right to do
// action.
func wrap(ctx context.Context, op, action, path string, err error) error {
	if err == nil {
		return nil
	}
	err = translate(err)
	if lacksRight(err) {
		err = fmt.Errorf("%w: the action %s has to be allowed", err, action)
	}
	if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
		err = fmt.Errorf("%w: %w", ended, err)
	}
	return fmt.Errorf("%s %q: %w", op, path, err)
}

// lacksRight reports whether the server denies something. Otherwise its address is not one that requests may go to.
func lacksRight(err error) bool {
	var answer *answerError
	return errors.Is(err, bucket.ErrPermission) && errors.As(err, &answer)
}

// wrapWrite is wrap for what is sent to be stored.
func wrapWrite(ctx context.Context, op, action, key string, err error) error {
	err = wrap(ctx, op, action, key, err)
	if errors.Is(err, bucket.ErrNotExist) && !errors.Is(err, bucket.ErrNoBucket) {
		return fmt.Errorf("%w: the server has forgotten the upload: %v", bucket.ErrUnavailable, err) //nolint:errorlint // no longer about an object
	}
	if errors.Is(err, bucket.ErrUnreadable) { // about the library's own key
		return fmt.Errorf("%w: %v", bucket.ErrPermission, err) //nolint:errorlint // the one or the other
	}
	return err
}

// translate returns an error without what the client adds to it: signed addresses, and ids that help nobody here.
func translate(err error) error {
	if err == nil {
		return nil
	}
	var done *answerError
	if errors.As(err, &done) {
		return err
	}
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) && response.Response != nil && response.HTTPStatusCode() != 0 { // 0: there is no answer
		return newAnswerError(response.Response.Response, err)
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
	status        int
	code, message string
	says          error // one of the bucket's
}

func newAnswerError(res *http.Response, err error) *answerError {
	a := &answerError{status: res.StatusCode}
	var api smithy.APIError
	if errors.As(err, &api) {
		a.code, a.message = api.ErrorCode(), api.ErrorMessage()
	}
	a.says = a.meaning(res)
	return a
}

// signedFor returns the region that a request was signed for.
func signedFor(req *http.Request) string {
	if req == nil {
		return ""
	}
	_, scope, _ := strings.Cut(req.Header.Get("Authorization"), "Credential=") // KEY/DATE/REGION/SERVICE/aws4_request, …
	if parts := strings.Split(scope, "/"); len(parts) > 2 {
		return parts[2]
	}
	return ""
}

func (e *answerError) Error() string {
	s := fmt.Sprintf("%v: %d %s", e.says, e.status, http.StatusText(e.status))
	if e.code != "" && e.code != "UnknownError" {
		s += " " + clip(e.code)
	}
	if e.message != "" && e.message != "UnknownError" {
		s += fmt.Sprintf(": %q", clip(e.message))
	}
	return s
}

// clip bounds what is passed on of the server's own words, in bytes.
func clip(s string) string {
	const longest = 200
	if len(s) > longest {
		return strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return s
}

func (e *answerError) Unwrap() error { return e.says }

// errRefused is an answer that no one thought of.
var errRefused = errors.New("request refused")

// meanings of the codes that servers give. What has a meaning by its status alone is left out.
var meanings = map[string]error{
	"NoSuchBucket":  bucket.ErrNoBucket,
	"NoSuchKey":     bucket.ErrNotExist,
	"NoSuchVersion": bucket.ErrNotExist,
	"NoSuchUpload":  bucket.ErrNotExist,
	"NotFound":      bucket.ErrNotExist,

	"PreconditionFailed":         bucket.ErrChanged,
	"ConditionalRequestConflict": bucket.ErrUnavailable,

	"InvalidObjectState":                             bucket.ErrArchived,
	"KMS.DisabledException":                          bucket.ErrUnreadable,
	"KMS.KMSInvalidStateException":                   bucket.ErrUnreadable,
	"KMS.NotFoundException":                          bucket.ErrUnreadable,
	"ServerSideEncryptionConfigurationNotFoundError": bucket.ErrUnreadable,

	"InvalidAccessKeyId":          bucket.ErrCredentials,
	"SignatureDoesNotMatch":       bucket.ErrCredentials,
	"InvalidClientTokenId":        bucket.ErrCredentials,
	"UnrecognizedClientException": bucket.ErrCredentials,
	"ExpiredToken":                bucket.ErrCredentials,
	"ExpiredTokenException":       bucket.ErrCredentials,
	"InvalidToken":                bucket.ErrCredentials,
	"TokenRefreshRequired":        bucket.ErrCredentials,

	"SlowDown":               bucket.ErrThrottled,
	"SlowDownRead":           bucket.ErrThrottled,
	"SlowDownWrite":          bucket.ErrThrottled,
	"Throttling":             bucket.ErrThrottled,
	"ThrottlingException":    bucket.ErrThrottled,
	"RequestLimitExceeded":   bucket.ErrThrottled,
	"BandwidthLimitExceeded": bucket.ErrThrottled,
	"TooManyRequests":        bucket.ErrThrottled,

	"BadDigest":                   bucket.ErrChecksum,
	"InvalidDigest":               bucket.ErrChecksum,
	"IncompleteBody":              bucket.ErrChecksum,
	"XAmzContentSHA256Mismatch":   bucket.ErrChecksum,
	"XAmzContentChecksumMismatch": bucket.ErrChecksum,

	"QuotaExceeded":                  bucket.ErrFull,
	"XMinioStorageFull":              bucket.ErrFull,
	"XMinioAdminBucketQuotaExceeded": bucket.ErrFull,

	"InvalidBucketName":       bucket.ErrName,
	"KeyTooLongError":         bucket.ErrName,
	"InvalidURI":              bucket.ErrName,
	"XMinioInvalidObjectName": bucket.ErrName,

	"RequestTimeout": bucket.ErrUnavailable,
	"NotImplemented": errors.ErrUnsupported,
}

// meaning of an answer. What a missing object and a failed condition are about depends on the operation.
func (e *answerError) meaning(res *http.Response) error {
	h := res.Header
	right := h.Get("X-Amz-Bucket-Region")
	if right != "" && (e.elsewhere() || e.status == http.StatusBadRequest) && right != signedFor(res.Request) {
		return fmt.Errorf("%w in this region: it is in %s", bucket.ErrNoBucket, clip(right))
	}
	message := strings.ToLower(e.message)
	switch says := meanings[e.code]; {
	case e.code == "RequestTimeTooSkewed":
		return fmt.Errorf("%w: the clock of this machine is wrong, set it", bucket.ErrUnavailable)
	case e.code == "InvalidRequest" && strings.Contains(message, "server side encryption"):
		return fmt.Errorf("%w: it is encrypted with a key of its owner (SSE-C), which we do not have", bucket.ErrUnreadable)
	case e.code == "InvalidRequest" && strings.Contains(message, "checksum"):
		return bucket.ErrChecksum
	case e.status == http.StatusForbidden && strings.Contains(message, "kms:"):
		return fmt.Errorf("%w: its key in KMS is not ours to use", bucket.ErrUnreadable)
	case says != nil:
		return retryAfter(h, says)
	}
	switch {
	case e.elsewhere():
		return fmt.Errorf("%w at this endpoint and in this region", bucket.ErrNoBucket)
	case e.status == http.StatusUnauthorized:
		return bucket.ErrCredentials
	case e.status == http.StatusForbidden:
		return bucket.ErrPermission
	case e.status == http.StatusNotFound:
		return bucket.ErrNotExist
	case e.status == http.StatusPreconditionFailed:
		return bucket.ErrChanged
	case e.status == http.StatusTooManyRequests:
		return retryAfter(h, bucket.ErrThrottled)
	case e.status == http.StatusNotImplemented, e.status == http.StatusMethodNotAllowed:
		return errors.ErrUnsupported
	case e.status == http.StatusInsufficientStorage:
		return bucket.ErrFull
	case e.status == http.StatusRequestTimeout, e.status == http.StatusConflict, e.status >= 500:
		return retryAfter(h, bucket.ErrUnavailable)
	}
	return errRefused
}

// elsewhere reports whether the server says that the bucket is to be asked for at another address.
func (e *answerError) elsewhere() bool {
	switch e.code {
	case "PermanentRedirect", "TemporaryRedirect", "Redirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException":
		return true
	}
	return e.status == http.StatusMovedPermanently || e.status == http.StatusTemporaryRedirect
}

// retryAfter adds what the server said about when to come back.
func retryAfter(h http.Header, err error) error {
	after := h.Get("Retry-After")
	wait := time.Duration(0)
	if seconds, perr := strconv.ParseUint(after, 10, 31); perr == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, perr := http.ParseTime(after); perr == nil {
		wait = time.Until(at)
	}
	if wait <= 0 {
		return err
	}
	return &bucket.ThrottledError{RetryAfter: wait, Err: err}
}

// repeatable reports whether the client may repeat a request at once.
func repeatable(err error) bool {
	var request *url.Error
	unanswered := errors.As(err, &request)
	err = translate(err)
	if bucket.RetryAfter(err) > 0 || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	switch bucket.ClassOf(err) {
	case bucket.ClassUnavailable, bucket.ClassBroken:
		return true
	case bucket.ClassOther: // a stream that was reset, a connection that was closed while idle
		return unanswered
	}
	return false
}

func statusOf(err error) int {
	var answer *answerError
	if errors.As(err, &answer) {
		return answer.status
	}
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) && response.Response != nil {
		return response.HTTPStatusCode()
	}
	return 0
}
