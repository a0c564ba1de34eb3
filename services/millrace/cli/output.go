package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"millrace/services/millrace/client"
)

// shown are the flags of commands that show what the server answered.
type shown struct {
	server `embed:""`
	Output string `short:"o" help:"How to show it: json, table or wide." enum:"json,table,wide" default:"table"`
}

// column is one column of a table: its head, and the member it shows, as names with dots between.
type column struct{ head, member string }

// show prints an answer: as JSON as it came, or as a table, to which wide adds columns.
func (s shown) show(raw json.RawMessage, columns, wide []column) error {
	if s.Output == "json" {
		return printJSON(raw)
	}
	if s.Output == "wide" {
		columns = append(slices.Clone(columns), wide...)
	}
	return printTable(os.Stdout, raw, columns)
}

// do sends a request and shows the answer.
func (s shown) do(ctx context.Context, method, path string, in any, columns, wide []column) error {
	var raw json.RawMessage
	if err := s.dial().Do(ctx, method, path, in, &raw); err != nil {
		return err
	}
	return s.show(raw, columns, wide)
}

// pages shows up to limit things of a list with pages, 0: all.
func (s shown) pages(ctx context.Context, path string, query url.Values, limit int, columns, wide []column) error {
	rows := make([]json.RawMessage, 0, 100)
	query.Set("limit", "100")
	for row, err := range client.All[json.RawMessage](ctx, s.dial(), path, query) {
		if err != nil {
			return err
		}
		if rows = append(rows, row); len(rows) == limit {
			break
		}
	}
	return s.showAll(rows, columns, wide)
}

// showAll shows a list that was gathered from several answers, or out of one.
func (s shown) showAll(list any, columns, wide []column) error {
	raw, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return s.show(raw, columns, wide)
}

// printTable prints an object, or an array of objects, as a table. Nothing to show prints nothing but the heads.
func printTable(w io.Writer, raw json.RawMessage, columns []column) error {
	var rows []map[string]any
	if len(raw) > 0 && raw[0] == '[' {
		if err := json.Unmarshal(raw, &rows); err != nil {
			return fmt.Errorf("decode answer: %w", err)
		}
	} else {
		var one map[string]any
		if err := json.Unmarshal(raw, &one); err != nil {
			return fmt.Errorf("decode answer: %w", err)
		}
		rows = append(rows, one)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	cells := make([]string, len(columns))
	for i, c := range columns {
		cells[i] = c.head
	}
	fmt.Fprintln(t, strings.Join(cells, "\t"))
	for _, row := range rows {
		for i, c := range columns {
			cells[i] = cell(row, c.member)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	return t.Flush()
}

// cell is a member as text; what is not there is "-".
func cell(row map[string]any, member string) string {
	var v any = row
	for name := range strings.SplitSeq(member, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return text(v)
}

func text(v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case string:
		if v == "" {
			return "-"
		}
		if at, err := time.Parse(time.RFC3339, v); err == nil {
			return at.Local().Format("2006-01-02 15:04:05")
		}
		return printable(v)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case bool:
		return map[bool]string{true: "yes", false: "no"}[v]
	case []any:
		texts := make([]string, len(v))
		for i := range v {
			texts[i] = text(v[i])
		}
		return strings.Join(texts, ",")
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return string(raw)
}

// printable shows what a name can have and a terminal would obey, or not show, by its escape: a name must neither break a
// table, nor pass for another, nor write a title.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// post sends a command about one thing and shows the answer.
func (s shown) post(ctx context.Context, path string, in any, columns, wide []column) error {
	return s.do(ctx, http.MethodPost, path, in, columns, wide)
}

// optional is a query of names and values in turn, without those that are empty.
func optional(pairs ...string) url.Values {
	query := make(url.Values)
	for pair := range slices.Chunk(pairs, 2) {
		if pair[1] != "" {
			query.Set(pair[0], pair[1])
		}
	}
	return query
}
