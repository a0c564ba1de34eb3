package admin

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// router finds the handler of a path, segment by segment: a literal before a parameter, whatever was registered first.
// http.ServeMux would not do: it refuses pairs such as /webhooks/{id}/deliveries and /webhooks/deliveries/{id}, and it
// answers unclean paths and trailing slashes with redirects, which clients do not follow.
type router struct {
	root       node
	notFound   http.HandlerFunc
	notAllowed http.HandlerFunc // the Allow header is set
}

type node struct {
	literals map[string]*node
	param    *node
	methods  map[string]endpoint
}

type endpoint struct {
	pattern string
	params  []string // names, in the order of the path
	handle  http.HandlerFunc
}

// HandleFunc registers a handler for "METHOD /path/{param}". Registering one twice replaces it.
func (rt *router) HandleFunc(pattern string, handle func(http.ResponseWriter, *http.Request)) {
	method, path, _ := strings.Cut(pattern, " ")
	e := endpoint{pattern: pattern, handle: handle}
	n := &rt.root
	for segment := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if name, ok := strings.CutPrefix(segment, "{"); ok {
			e.params = append(e.params, strings.TrimSuffix(name, "}"))
			if n.param == nil {
				n.param = new(node)
			}
			n = n.param
			continue
		}
		if n.literals == nil {
			n.literals = make(map[string]*node)
		}
		if n.literals[segment] == nil {
			n.literals[segment] = new(node)
		}
		n = n.literals[segment]
	}
	if n.methods == nil {
		n.methods = make(map[string]endpoint)
	}
	n.methods[method] = e
}

// ServeHTTP calls the handler of the path as it was sent, never of a cleaned one.
func (rt *router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := finder{method: r.Method, allowed: make(map[string]struct{})}
	if segments, ok := split(r.URL.EscapedPath()); ok {
		s.walk(&rt.root, segments)
	}
	switch {
	case s.found:
		r.Pattern = s.endpoint.pattern
		for i, name := range s.endpoint.params {
			r.SetPathValue(name, s.values[i])
		}
		s.endpoint.handle(w, r)
	case len(s.allowed) > 0:
		w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(s.allowed)), ", "))
		rt.notAllowed(w, r)
	default:
		rt.notFound(w, r)
	}
}

func split(path string) ([]string, bool) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return nil, false
	}
	segments := strings.Split(rest, "/")
	for i, s := range segments {
		plain, err := url.PathUnescape(s)
		if err != nil || plain == "" {
			return nil, false
		}
		segments[i] = plain
	}
	return segments, true
}

type finder struct {
	method   string
	values   []string
	allowed  map[string]struct{} // methods of the nodes that match the path but not the method
	endpoint endpoint
	found    bool
}

func (s *finder) walk(n *node, segments []string) {
	if len(segments) == 0 {
		s.arrive(n)
		return
	}
	if next := n.literals[segments[0]]; next != nil {
		s.walk(next, segments[1:])
	}
	if n.param == nil || s.found {
		return
	}
	s.values = append(s.values, segments[0])
	s.walk(n.param, segments[1:])
	if !s.found {
		s.values = s.values[:len(s.values)-1]
	}
}

func (s *finder) arrive(n *node) {
	e, ok := n.methods[s.method]
	if !ok && s.method == http.MethodHead {
		e, ok = n.methods[http.MethodGet]
	}
	if ok {
		s.endpoint, s.found = e, true
		return
	}
	for m := range n.methods {
		s.allowed[m] = struct{}{}
	}
}
