package s3

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// The client reads XML token by token, which takes most of the time of a long listing. Here the objects are taken out of an
// answer before it sees that, as long as it looks like what S3 writes; the client reads the rest, or else all of it.

// maxPage is more than the longest answer: a thousand names of 1,024 bytes, each of which takes five.
const maxPage = 32 << 20

// quick has the objects of a listing put into page, which stays nil if the client is to read them.
func quick(page *[]types.Object) func(*s3.Options) {
	take := middleware.DeserializeMiddlewareFunc("objects", func(
		ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler,
	) (middleware.DeserializeOutput, middleware.Metadata, error) {
		*page = nil // of an attempt before
		out, meta, err := next.HandleDeserialize(ctx, in)
		res, ok := out.RawResponse.(*smithyhttp.Response)
		if err != nil || !ok || res.StatusCode != http.StatusOK {
			return out, meta, err
		}
		body, err := io.ReadAll(io.LimitReader(res.Body, maxPage+1))
		if err == nil && len(body) > maxPage {
			err = errors.New("the answer to a listing has no end")
		}
		if cerr := res.Body.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return out, meta, err
		}
		if rest, objects, ok := takeObjects(body); ok {
			body, *page = rest, objects
		}
		res.Body = io.NopCloser(bytes.NewReader(body))
		return out, meta, nil
	})
	return s3.WithAPIOptions(func(stack *middleware.Stack) error {
		return stack.Deserialize.Insert(take, "OperationDeserializer", middleware.After)
	})
}

var contents, contentsEnd = []byte("<Contents>"), []byte("</Contents>")

// takeObjects returns the objects of a listing, and the listing without them. It is not ok if it has forms that are not
// looked for here.
func takeObjects(body []byte) (rest []byte, objects []types.Object, ok bool) {
	if bytes.Contains(body, []byte("<!")) || !utf8.Valid(body) { // comments, CDATA, what is no XML
		return nil, nil, false
	}
	objects = make([]types.Object, 0, 1000)
	for {
		before, after, found := bytes.Cut(body, contents)
		rest = append(rest, before...)
		if !found {
			return rest, objects, !bytes.Contains(rest, []byte("<Contents"))
		}
		one, after, found := bytes.Cut(after, contentsEnd)
		if !found {
			return nil, nil, false
		}
		o, ok := takeObject(one)
		if !ok {
			return nil, nil, false
		}
		objects, body = append(objects, o), after
	}
}

func takeObject(b []byte) (o types.Object, ok bool) {
	for {
		b = bytes.TrimLeft(b, " \t\r\n")
		if len(b) == 0 {
			return o, o.Key != nil
		}
		if b[0] != '<' {
			return o, false
		}
		tag, after, found := bytes.Cut(b[1:], []byte(">"))
		name := string(tag)
		if name, ok := strings.CutSuffix(name, "/"); found && ok && name != "" {
			b = after
			continue
		}
		text, after, closed := bytes.Cut(after, []byte("</"+name+">"))
		if !found || !closed || name == "" || strings.ContainsAny(name, " \t\r\n/<") {
			return o, false
		}
		b = after
		if name != "Key" && name != "ETag" && name != "Size" && name != "LastModified" {
			continue
		}
		s, ok := unescaped(text)
		if !ok {
			return o, false
		}
		switch name {
		case "Key":
			o.Key = &s
		case "ETag":
			o.ETag = &s
		case "Size":
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return o, false
			}
			o.Size = &n
		case "LastModified":
			t, err := time.Parse(time.RFC3339Nano, s)
			if err != nil {
				return o, false
			}
			o.LastModified = aws.Time(t)
		}
	}
}

// unescaped is the text of an element that holds nothing else.
func unescaped(b []byte) (string, bool) {
	switch {
	case !bytes.ContainsAny(b, "<&\r"):
		return string(b), true
	case bytes.IndexByte(b, '<') >= 0:
		return "", false
	}
	if s := strings.ReplaceAll(string(b), "&quot;", `"`); !strings.ContainsAny(s, "&\r") { // as all ETags have it
		return s, true
	}
	var s string
	err := xml.Unmarshal([]byte("<a>"+string(b)+"</a>"), &s)
	return s, err == nil
}
