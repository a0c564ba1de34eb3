package admin

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
)

// page is a list with a cursor.
type page[T any] struct {
	Data       []T        `json:"data" nullable:"false"`
	Pagination pagination `json:"pagination"`
}

type pagination struct {
	Limit      int     `json:"limit"`
	HasMore    bool    `json:"has_more"`
	NextCursor *string `json:"next_cursor" doc:"for the next request, with the same filters; null when there is no more"`
}

func newPage[T any](data []T, limit int, next string) page[T] {
	return page[T]{Data: data, Pagination: pagination{Limit: limit, HasMore: next != "", NextCursor: orNull(next)}}
}

// sealCursor binds a position to the list it is a position in, so that it is not taken for one of another list. It is
// a check against mistakes, not against malice: a cursor gives access to nothing.
func sealCursor(list, position string) string {
	if position == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(cursorMark(list) + position))
}

// openCursor returns the position in this list, "" for the empty cursor.
func openCursor(list, cursor string) (string, error) {
	if cursor == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	position, ok := strings.CutPrefix(string(raw), cursorMark(list))
	if err != nil || !ok || position == "" {
		return "", badCursor()
	}
	return position, nil
}

func badCursor() error {
	return invalid("cursor", "must be the next_cursor of a page of this very list, or left out")
}

func cursorMark(list string) string {
	sum := sha256.Sum256([]byte(list))
	return string(sum[:6])
}
