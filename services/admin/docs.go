package admin

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed docs.html
var docsHTML string

var docsTemplate = template.Must(template.New("docs").Parse(docsHTML))

// manual is the OpenAPI document as the page at /docs shows it.
type manual struct {
	*huma.Info
	Base    string
	Prefix  string // of NATS subjects
	Groups  []manualGroup
	Problem []manualMember
}

type manualGroup struct {
	Tag        string
	Operations []manualOperation
}

type manualOperation struct {
	*huma.Operation
	Subject string // on NATS, without the prefix; "": only HTTP
	Command bool   // also as a command
	Members []manualMember
	Status  string // of success
	Answer  []manualMember
}

// manualMember is one member of a request or an answer. Members of members are spelled a.b, those of lists a[].b.
type manualMember struct {
	Name, In, Type, About string
	Required              bool
}

// serveDocs renders the page once, for the first who asks: it is complete in itself, without scripts, so it works offline.
func (a *Admin) serveDocs() http.HandlerFunc {
	rendered := sync.OnceValue(func() []byte {
		doc := a.api.OpenAPI()
		m := manual{Info: doc.Info, Base: a.cfg.BasePath, Prefix: a.bus.Prefix, Groups: a.manualGroups(doc)}
		m.Problem = membersIn(doc.Components.Schemas, doc.Components.Schemas.Schema(reflect.TypeFor[envelope](), true, "Error"), "", 0)
		var page bytes.Buffer
		if err := docsTemplate.Execute(&page, m); err != nil {
			panic(err) // plain data
		}
		return page.Bytes()
	})
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		_, _ = w.Write(rendered()) // a client that has gone away does not mind
	}
}

func (a *Admin) manualGroups(doc *huma.OpenAPI) []manualGroup {
	onNATS := make(map[*huma.Operation]offer)
	for _, o := range a.offers {
		onNATS[o.doc] = o
	}
	groups := make(map[string][]manualOperation)
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		item := doc.Paths[path]
		for _, op := range []*huma.Operation{item.Post, item.Get, item.Put, item.Patch, item.Delete} {
			if op == nil {
				continue
			}
			o, ok := onNATS[op]
			view := manualOperation{Operation: op, Subject: o.subject, Command: ok && o.commanded()}
			for _, p := range op.Parameters {
				if p.In == "path" || p.In == "query" {
					about := cmp.Or(p.Description, p.Schema.Description)
					view.Members = append(view.Members, manualMember{p.Name, p.In, typeOf(doc.Components.Schemas, p.Schema), about, p.Required})
				}
			}
			if op.RequestBody != nil {
				for _, kind := range slices.Sorted(maps.Keys(op.RequestBody.Content)) {
					for _, member := range membersIn(doc.Components.Schemas, op.RequestBody.Content[kind].Schema, "", 0) {
						if member.In = "body"; kind == formType {
							member.In = "form"
						}
						view.Members = append(view.Members, member)
					}
				}
			}
			for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
				if !strings.HasPrefix(status, "2") {
					continue
				}
				view.Status = status
				for _, c := range op.Responses[status].Content {
					view.Answer = membersIn(doc.Components.Schemas, c.Schema, "", 0)
				}
			}
			tag := cmp.Or(append(slices.Clone(op.Tags), "Other")...)
			groups[tag] = append(groups[tag], view)
		}
	}
	var out []manualGroup
	for _, tag := range slices.Sorted(maps.Keys(groups)) {
		out = append(out, manualGroup{tag, groups[tag]})
	}
	return out
}

// maxDepth is how far the page goes into a schema; one may refer to itself.
const maxDepth = 4

// membersIn lists the members of an object, or of the objects in a list, the required ones first.
func membersIn(components huma.Registry, s *huma.Schema, in string, depth int) []manualMember {
	if s = resolved(components, s); s == nil || depth > maxDepth {
		return nil
	}
	if s.Type == huma.TypeArray {
		return membersIn(components, s.Items, in+"[]", depth)
	}
	names := slices.SortedFunc(maps.Keys(s.Properties), func(x, y string) int {
		required := func(name string) int {
			if slices.Contains(s.Required, name) {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(required(x), required(y)), cmp.Compare(x, y))
	})
	var out []manualMember
	for _, name := range names {
		p := s.Properties[name]
		full := strings.TrimPrefix(in+"."+name, ".")
		about := p.Description
		if r := resolved(components, p); r != nil {
			about = cmp.Or(about, r.Description)
		}
		out = append(out, manualMember{Name: full, Type: typeOf(components, p), About: about, Required: slices.Contains(s.Required, name)})
		out = append(out, membersIn(components, p, full, depth+1)...)
	}
	return out
}

func resolved(components huma.Registry, s *huma.Schema) *huma.Schema {
	for s != nil && s.Ref != "" {
		s = components.SchemaFromRef(s.Ref)
	}
	return s
}

// typeOf says in a few words what a value may be.
func typeOf(components huma.Registry, s *huma.Schema) string {
	if s = resolved(components, s); s == nil {
		return "any"
	}
	words := []string{cmp.Or(s.Type, "any")}
	if s.Type == huma.TypeArray {
		words[0] = "list of " + typeOf(components, s.Items)
	}
	if s.Format != "" {
		words = append(words, s.Format)
	}
	if len(s.Enum) > 0 {
		values := make([]string, len(s.Enum))
		for i, v := range s.Enum {
			values[i] = fmt.Sprint(v)
		}
		words = append(words, "one of "+strings.Join(values, ", "))
	}
	if s.Nullable {
		words = append(words, "or null")
	}
	bound := func(what string, v any) { words = append(words, fmt.Sprintf("%s %v", what, v)) }
	if s.Minimum != nil {
		bound("from", *s.Minimum)
	}
	if s.Maximum != nil {
		bound("to", *s.Maximum)
	}
	if s.MinLength != nil {
		bound("at least", *s.MinLength)
	}
	if s.MaxLength != nil {
		bound("at most", *s.MaxLength)
	}
	if s.Default != nil {
		bound("default", s.Default)
	}
	return strings.Join(words, " ")
}
