// Package strict reads answers of the API as the strictest of its official clients do (contract §20), for tests: every
// member that is promised is there, of its type, and null only where that is allowed. Beyond what any client checks it
// holds all ids, timestamps and enumerations to the one form in which they are written.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Check holds the body of a 2xx answer against the shape of its route. path is below the base path, without query.
func Check(method, path string, body []byte) error {
	want, ok := shapeOf(method, path)
	if !ok {
		return fmt.Errorf("%s %s: no shape is known of this route", method, path)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return fmt.Errorf("%s %s: not JSON: %w", method, path, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s %s: there is more behind the JSON", method, path)
	}
	r := new(reading)
	r.value("", want, v)
	if len(r.wrong) > 0 {
		return fmt.Errorf("%s %s: %w", method, path, errors.Join(r.wrong...))
	}
	return nil
}

// At walks into a body: by names, and by numbers into lists. Where there is nothing it ends with nil.
func At(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// shapeOf finds the route of a path: where a literal and a parameter both fit, the literal wins.
func shapeOf(method, path string) (want string, ok bool) {
	path, _, _ = strings.Cut(path, "?")
	best := -1
	for route, shape := range routes {
		m, template, _ := strings.Cut(route, " ")
		parts, given := strings.Split(template, "/"), strings.Split(path, "/")
		if m != method || len(parts) != len(given) {
			continue
		}
		literal, fits := 0, true
		for i, part := range parts {
			switch part {
			case "{}":
			case given[i]:
				literal++
			default:
				fits = false
			}
		}
		if fits && literal > best {
			best, want, ok = literal, shape, true
		}
	}
	return want, ok
}

type member struct {
	name, shape string
	optional    bool // may be left out; it is not null if it is there, unless its shape says so
}

type object struct {
	members []member
	closed  bool // it has no other member
}

// read makes a table of the text in shapes.go.
func read(text string) map[string]object {
	objects := make(map[string]object)
	name := ""
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case line[0] != '\t':
			name = words[0]
			objects[name] = object{closed: slices.Contains(words, "closed")}
		case words[0] == "+": // all of another
			o := objects[name]
			o.members = append(o.members, objects[words[1]].members...)
			objects[name] = o
		default:
			o := objects[name]
			shape := strings.Join(words[1:], " ")
			for one := range strings.SplitSeq(words[0], ",") {
				plain, optional := strings.CutSuffix(one, "-")
				o.members = append(o.members, member{plain, shape, optional})
			}
			objects[name] = o
		}
	}
	return objects
}

type reading struct{ wrong []error }

func (r *reading) fail(at, format string, args ...any) {
	r.wrong = append(r.wrong, fmt.Errorf("%s %s", strings.TrimPrefix(at, "."), fmt.Sprintf(format, args...)))
}

var (
	ids        = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	timestamps = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`)
	integers   = regexp.MustCompile(`^-?\d+$`)
)

// value holds v against a shape: see shapes.go.
func (r *reading) value(at, shape string, v any) {
	if inner, ok := strings.CutPrefix(shape, "page "); ok {
		r.page(at, inner, v)
		return
	}
	if inner, ok := strings.CutPrefix(shape, "[]"); ok {
		inner, nullable := strings.CutSuffix(inner, "?[]")
		list, ok := v.([]any)
		if !ok && (v != nil || !nullable) {
			r.fail(at, "is no array: %s", spelled(v))
		}
		for i, e := range list {
			r.value(fmt.Sprintf("%s[%d]", at, i), inner, e)
		}
		return
	}
	shape, nullable := strings.CutSuffix(shape, "?")
	if v == nil {
		if !nullable {
			r.fail(at, "is null")
		}
		return
	}
	kind, rest, _ := strings.Cut(shape, " ")
	if o, ok := objects[kind]; ok {
		r.object(at, kind, o, v)
		return
	}
	var good bool
	switch text, isText := v.(string); kind {
	case "any":
		good = true
	case "str":
		good = isText
	case "id":
		good = isText && ids.MatchString(text)
	case "ts":
		_, err := time.Parse(time.RFC3339Nano, text)
		good = err == nil && timestamps.MatchString(text)
	case "enum":
		good = isText && slices.Contains(strings.Fields(rest), text)
	case "bool":
		_, good = v.(bool)
	case "int":
		n, ok := v.(json.Number)
		good = ok && integers.MatchString(n.String())
	case "count":
		n, ok := v.(json.Number)
		good = ok && integers.MatchString(n.String()) && n.String()[0] != '-'
	case "num":
		_, good = v.(json.Number)
	case "obj":
		_, good = v.(map[string]any)
	case "strs":
		m, ok := v.(map[string]any)
		good = ok
		for name, e := range m {
			if _, isText := e.(string); !isText {
				r.fail(at+"."+name, "is no string: %s", spelled(e))
			}
		}
	default:
		r.fail(at, "has no shape that is known: %q", kind)
		return
	}
	if !good {
		r.fail(at, "is not %s: %s", shape, spelled(v))
	}
}

func spelled(v any) string {
	text, err := json.Marshal(v)
	if err != nil || len(text) > 80 {
		return fmt.Sprintf("%.80s…", text)
	}
	return string(text)
}

func (r *reading) page(at, inner string, v any) {
	r.value(at, "page", v)
	o, _ := v.(map[string]any)
	r.value(at+".data", "[]"+inner, o["data"])
	p, _ := o["pagination"].(map[string]any)
	next, _ := p["next_cursor"].(string)
	if more, _ := p["has_more"].(bool); more != (next != "") {
		r.fail(at, "has more: %t, and the cursor %q", more, next)
	}
}

func (r *reading) object(at, kind string, o object, v any) {
	have, ok := v.(map[string]any)
	if !ok {
		r.fail(at, "is no object: %s", spelled(v))
		return
	}
	for _, m := range o.members {
		value, there := have[m.name]
		switch {
		case there:
			r.value(at+"."+m.name, m.shape, value)
		case !m.optional:
			r.fail(at+"."+m.name, "is missing")
		}
	}
	for name := range have {
		if o.closed && !slices.ContainsFunc(o.members, func(m member) bool { return m.name == name }) {
			r.fail(at+"."+name, "must not be there")
		}
	}
	if rule := rules[kind]; rule != nil {
		for _, wrong := range rule(have) {
			r.fail(at, "%s", wrong)
		}
	}
}

// rules are what members must be to each other.
var rules = map[string]func(map[string]any) []string{
	"job":    jobRules,
	"file":   fileRules,
	"export": exportRules,
}

func jobRules(o map[string]any) (wrong []string) {
	p, _ := o["progress"].(map[string]any)
	n := func(name string) (i int64) {
		if x, ok := p[name].(json.Number); ok {
			i, _ = x.Int64()
		}
		return i
	}
	sum := n("imported") + n("failed") + n("skipped")
	if total := n("total_files"); sum > total || o["status"] == "completed" && sum != total {
		wrong = append(wrong, fmt.Sprintf("is %s, and %d of %d files are settled", o["status"], sum, total))
	}
	for list, member := range map[string]string{"failed_files": "error", "skipped_files": "reason"} {
		files, _ := o[list].([]any)
		for _, f := range files {
			if m, _ := f.(map[string]any); m["path"] == nil || m[member] == nil {
				wrong = append(wrong, fmt.Sprintf("%s has %s, without path or %s", list, spelled(f), member))
			}
		}
	}
	return wrong
}

func fileRules(o map[string]any) (wrong []string) {
	if e, _ := o["extension"].(string); e != strings.ToLower(e) || strings.HasPrefix(e, ".") {
		wrong = append(wrong, fmt.Sprintf("has the extension %q", e))
	}
	if p, _ := o["path"].(string); p[strings.LastIndex(p, "/")+1:] != o["name"] {
		wrong = append(wrong, fmt.Sprintf("is named %s and lies at %q", spelled(o["name"]), p))
	}
	return wrong
}

// exportRules are those of contract §17.2; one client refuses a list for one export that breaks them.
func exportRules(o map[string]any) (wrong []string) {
	toConnector := o["destination_type"] == "connector"
	if (o["destination_connector_id"] != nil) != toConnector {
		wrong = append(wrong, "destination_connector_id and destination_type disagree")
	}
	if toConnector && o["destination_uri"] != o["gcs_uri"] || !toConnector && o["destination_uri"] != nil {
		wrong = append(wrong, "destination_uri is not gcs_uri, or that of a download")
	}
	if n, _ := o["max_attempts"].(json.Number); n == "0" {
		wrong = append(wrong, "max_attempts is 0")
	}
	if o["gcs_uri"] == "" {
		wrong = append(wrong, "gcs_uri is empty")
	}
	if url, ok := o["download_url"].(string); ok {
		if toConnector || o["status"] != "completed" || o["queue_status"] != "succeeded" || o["gcs_uri"] == nil {
			wrong = append(wrong, "there is a download_url before there is a download")
		}
		if id, _ := o["export_id"].(string); url != "/api/v2/exports/"+id+"/download" {
			wrong = append(wrong, "download_url is "+url)
		}
	}
	params, _ := o["export_params"].(map[string]any)
	for _, name := range []string{"destination_connector_id", "destination_base_path", "destination_subpath"} {
		if given, ok := params[name]; ok && given != o[name] {
			wrong = append(wrong, "export_params."+name+" is another one")
		}
	}
	return wrong
}
