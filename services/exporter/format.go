package exporter

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"

	"millrace/shared/event"
	"millrace/shared/store"
)

// row is a result or a file.
type row interface {
	cells() []string // in the order of the columns
}

// format spells an export: groups, and the rows of each.
type format interface {
	// group begins the rows of what head describes, and ends those of the one before.
	group(head any) error
	row(r row) error
	// close ends the export. What was begun and not closed is not an export.
	close() error
}

// newFormat returns the format of x. In JSON, outer and inner are what the lists of groups and of rows are called; in
// CSV columns are the heading.
func newFormat(w io.Writer, x store.Export, outer, inner string, columns []string) format {
	buf := bufio.NewWriterSize(w, 64<<10)
	switch x.Format {
	case event.FormatLines:
		return &lines{w: buf, enc: plain(buf)}
	case event.FormatCSV:
		return &table{w: csv.NewWriter(buf), buf: buf, columns: columns}
	}
	return &document{w: buf, export: x, outer: outer, inner: inner}
}

// plain encodes JSON with the characters as they are, a value per line.
func plain(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc
}

type lines struct {
	w   *bufio.Writer
	enc *json.Encoder
}

func (*lines) group(any) error   { return nil }
func (l *lines) row(r row) error { return l.enc.Encode(r) }
func (l *lines) close() error    { return l.w.Flush() }

type table struct {
	w       *csv.Writer
	buf     *bufio.Writer
	columns []string
	begun   bool
}

func (*table) group(any) error { return nil }

func (t *table) heading() error {
	if t.begun {
		return nil
	}
	t.begun = true
	return t.w.Write(t.columns)
}

func (t *table) row(r row) error {
	if err := t.heading(); err != nil {
		return err
	}
	return t.w.Write(r.cells())
}

func (t *table) close() error {
	if err := t.heading(); err != nil {
		return err
	}
	t.w.Flush()
	if err := t.w.Error(); err != nil {
		return err
	}
	return t.buf.Flush()
}

// document is one JSON object:
//
//	{"export_id":…, "runs":[{"run_id":…, "results":[{…}, …]}, …]}
type document struct {
	w            *bufio.Writer
	export       store.Export
	outer, inner string
	groups, rows int
	buf          bytes.Buffer
}

// documentHead are the members of the whole.
type documentHead struct {
	Export    string           `json:"export_id"`
	Type      event.ExportType `json:"export_type"`
	Target    string           `json:"target_id"`
	CreatedAt *string          `json:"created_at"`
}

// open writes an object up to the begin of a list that is its last member.
func (d *document) open(head any, list string) error {
	if err := d.encode(head); err != nil {
		return err
	}
	object := bytes.TrimSuffix(d.buf.Bytes(), []byte("}\n"))
	_, err := fmt.Fprintf(d.w, "%s,%q:[", object, list)
	return err
}

func (d *document) encode(v any) error {
	d.buf.Reset()
	return plain(&d.buf).Encode(v)
}

func (d *document) begin() error {
	if d.groups > 0 {
		return nil
	}
	x := d.export
	return d.open(documentHead{x.ID, x.Type, x.Target, stamp(x.CreatedAt)}, d.outer)
}

func (d *document) group(head any) error {
	if err := d.begin(); err != nil {
		return err
	}
	if d.groups > 0 {
		if _, err := d.w.WriteString("\n]},"); err != nil {
			return err
		}
	}
	d.groups++
	d.rows = 0
	if err := d.w.WriteByte('\n'); err != nil {
		return err
	}
	return d.open(head, d.inner)
}

func (d *document) row(r row) error {
	if d.rows > 0 {
		if err := d.w.WriteByte(','); err != nil {
			return err
		}
	}
	d.rows++
	if err := d.encode(r); err != nil {
		return err
	}
	if err := d.w.WriteByte('\n'); err != nil {
		return err
	}
	_, err := d.w.Write(bytes.TrimSuffix(d.buf.Bytes(), []byte("\n")))
	return err
}

func (d *document) close() error {
	end := "\n]}\n"
	if err := d.begin(); err != nil {
		return err
	}
	if d.groups > 0 {
		end = "\n]}" + end
	}
	if _, err := d.w.WriteString(end); err != nil {
		return err
	}
	return d.w.Flush()
}
