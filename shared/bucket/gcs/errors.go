package gcs

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

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"

	"millrace/shared/bucket"
)

// wrap says in the bucket's words what the client said.
func wrap(ctx context.Context, op, path string, err error) error {
	if err == nil {
		return nil
	}
	err = translate(err)
	if right := rights[op]; right != "" && denied(err) {
		err = fmt.Errorf("%w: the permission %s is needed", err, right)
	}
	if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
		err = fmt.Errorf("%w: %w", ended, err)
	}
	return fmt.Errorf("%s %q: %w", op, path, err)
}

// denied reports whether the server denies something that the account may be given. Otherwise its address is not one that
// requests may go to, or whoever asks has to pay.
func denied(err error) bool {
	var answer *answerError
	return errors.Is(err, bucket.ErrPermission) && errors.As(err, &answer) && answer.answer.Code == http.StatusForbidden
}

// rights are what operations need. Google's own words say it too, but for where bytes are asked for.
var rights = map[string]string{
	"list": "storage.objects.list", "stat": "storage.objects.get", "open": "storage.objects.get", "read": "storage.objects.get",
	"upload": "storage.objects.create", "write": "storage.objects.create", "delete": "storage.objects.delete",
}

// wrap is wrap for what is asked about one object.
func (c *client) wrap(ctx context.Context, op, path string, err error) error {
	if statusOf(err) == http.StatusNotFound && c.noBucket(ctx, messageOf(err)) {
		err = fmt.Errorf("%w: %w", bucket.ErrNoBucket, translate(err))
	}
	return wrap(ctx, op, path, err)
}

// noBucket reports whether it is the bucket that a 404 misses, not the object. The answers differ in their text alone,
// and a wrong guess would put it on record that every object is gone; so where the text is unknown, we ask.
func (c *client) noBucket(ctx context.Context, message string) bool {
	switch {
	case strings.Contains(message, noBucketMessage):
		return true
	case strings.HasPrefix(message, "No such object"):
		return false
	}
	query := &storage.Query{Projection: storage.ProjectionNoACL}
	if err := query.SetAttrSelection([]string{"Name"}); err != nil {
		return false
	}
	it := c.bucket.Objects(ctx, query)
	it.PageInfo().MaxSize = 1
	_, err := it.Next()
	return errors.Is(err, storage.ErrBucketNotExist)
}

const noBucketMessage = "bucket does not exist"

// wrapWrite is wrap for what is sent to be stored.
func wrapWrite(ctx context.Context, op, key string, err error) error {
	says := err
	switch message := messageOf(err); statusOf(err) {
	case http.StatusBadRequest:
		if strings.Contains(strings.ToLower(message), "crc32c") {
			says = fmt.Errorf("%w: %q", bucket.ErrChecksum, message)
		}
	case http.StatusNotFound: // of a write, there is but one other thing that can be missing
		if says = fmt.Errorf("%w: the server has forgotten the upload", bucket.ErrUnavailable); strings.Contains(message, noBucketMessage) {
			says = bucket.ErrNoBucket
		}
	default:
		if says = translate(err); errors.Is(says, bucket.ErrUnreadable) {
			says = fmt.Errorf("%w: %v", bucket.ErrPermission, says) //nolint:errorlint // about the library's own key: the one or the other
		}
	}
	return wrap(ctx, op, key, says)
}

// translate returns an error without what the client adds to it: the address of a request can be as good as a password
// (a resumable upload), and the body of an answer is for whoever configured the endpoint to read, not for our records.
func translate(err error) error {
	var answer *googleapi.Error
	if errors.As(err, &answer) {
		return &answerError{answer: answer, says: meaning(answer)}
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
	answer *googleapi.Error
	says   error // one of the bucket's
}

func (e *answerError) Error() string {
	s := fmt.Sprintf("%v: %d %s", e.says, e.answer.Code, http.StatusText(e.answer.Code))
	if m := e.answer.Message; m != "" {
		const longest = 200
		if len(m) > longest {
			m = m[:longest] + "…"
		}
		s += fmt.Sprintf(": %q", m)
	}
	return s
}

func (e *answerError) Unwrap() error { return e.says }

// errRefused is an answer that no one thought of.
var errRefused = errors.New("request refused")

// meaning of an answer, for an operation about an object. What a 404 and a 412 are about depends on the operation.
func meaning(answer *googleapi.Error) error {
	switch code := answer.Code; {
	case code == http.StatusUnauthorized:
		return bucket.ErrCredentials
	case hasReason(answer, "encrypt", "kms"):
		return bucket.ErrUnreadable // with a key we do not have, or one that was switched off
	case code == http.StatusTooManyRequests,
		code == http.StatusForbidden && hasReason(answer, "ratelimit", "quotaexceeded"):
		return retryAfter(answer, bucket.ErrThrottled)
	case code == http.StatusForbidden:
		return bucket.ErrPermission
	case code == http.StatusBadRequest && strings.Contains(strings.ToLower(answer.Message), "requester pays"):
		return fmt.Errorf("%w: the requester pays, so the connector has to name the project that does, as user_project", bucket.ErrPermission)
	case code == http.StatusNotFound:
		return bucket.ErrNotExist
	case code == http.StatusPreconditionFailed:
		return bucket.ErrChanged
	case code == http.StatusRequestTimeout,
		code == http.StatusGone, // an upload or a rewrite that took so long that it was forgotten
		code >= 500:
		return retryAfter(answer, bucket.ErrUnavailable)
	}
	return errRefused
}

func hasReason(answer *googleapi.Error, parts ...string) bool {
	for _, item := range answer.Errors {
		for _, part := range parts {
			if strings.Contains(strings.ToLower(item.Reason), part) {
				return true
			}
		}
	}
	return false
}

// retryAfter adds what the server said about when to come back.
func retryAfter(answer *googleapi.Error, err error) error {
	after := answer.Header.Get("Retry-After")
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

// repeatable reports whether the client may repeat a request at once: for what an overloaded or restarting server does
// to some requests, not for what it says to all.
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
	var answer *googleapi.Error
	if errors.As(err, &answer) {
		return answer.Code
	}
	return 0
}

func messageOf(err error) string {
	var answer *googleapi.Error
	if errors.As(err, &answer) {
		return answer.Message
	}
	return ""
}
