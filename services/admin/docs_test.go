package admin_test

import (
	"html"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// hidden are the routes that are in no document: API keys are the operator's, and only the command line makes them.
var hidden = regexp.MustCompile(` /api/v2/api-keys(/|$)`)

// TestDocumentIsTheRoutes holds the OpenAPI document against what is routed, in both directions.
func TestDocumentIsTheRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	doc := w.do("GET", "//openapi.json", nil, request{key: "-"})
	var documented []string
	for path, methods := range doc.at("paths").(map[string]any) {
		for method := range methods.(map[string]any) {
			documented = append(documented, strings.ToUpper(method)+" "+base+path)
		}
	}
	slices.Sort(documented)
	routed := slices.DeleteFunc(w.admin.Patterns(), func(p string) bool {
		method, path, below := strings.Cut(p, " "+base)
		// What is not in this product may be routed only to say so.
		return !below || hidden.MatchString(p) || !slices.Contains(documented, p) && w.do(method, path, obj{}).status == http.StatusNotFound
	})
	if !slices.Equal(documented, routed) {
		t.Errorf("documented are\n%s\nrouted are\n%s", strings.Join(documented, "\n"), strings.Join(routed, "\n"))
	}
}

func TestDocs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rec := httptest.NewRecorder()
	w.admin.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/docs", nil))
	page := html.UnescapeString(rec.Body.String())
	if rec.Code != http.StatusOK || rec.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%d %v", rec.Code, rec.Header())
	}
	// It loads nothing.
	if found := regexp.MustCompile(`(?i)<(script|link|img|iframe|object)|@import|url\(|(src|href)="?(https?:)?//`).FindString(page); found != "" {
		t.Errorf("the page has %s", found)
	}
	if csp := rec.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("policy %q", csp)
	}
	doc := w.do("GET", "//openapi.json", nil, request{key: "-"})
	for path, methods := range doc.at("paths").(map[string]any) {
		for method, op := range methods.(map[string]any) {
			o := op.(map[string]any)
			for _, want := range []string{
				`<span class="verb">` + strings.ToUpper(method) + `</span> ` + base + path, `id="` + o["operationId"].(string) + `"`,
				o["summary"].(string), o["description"].(string),
			} {
				if !strings.Contains(page, want) {
					t.Errorf("%s %s: nothing of %q", method, path, want)
				}
			}
		}
	}
	for _, want := range []string{"t.api.import-jobs.create", "t.command.import-jobs.create", "<code>progress.total_files</code>", "one of import, export", "<code>error.code</code>"} {
		if !strings.Contains(page, want) {
			t.Errorf("nothing of %q", want)
		}
	}
	if strings.Contains(page, "t.command.connectors.create-gcs") {
		t.Error("a command that takes credentials")
	}
}
