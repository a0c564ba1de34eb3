package admin_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"millrace/shared/store"
)

// PUT is partial: only what is sent changes, null is absent, an empty description is a value.
func TestEditPrompt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	level := obj{"instructions_text": "x", "included_segment_fields": []string{"a"}, "json_schema": obj{"type": "object"}}
	id := w.do("POST", "/prompts", obj{"name": "Log", "prompt_text": "0123456789", "json_schema": json.RawMessage(schema), "description": "d",
		"video_level": level, "selection_filter": obj{"b": 1}, "execution_config": obj{"c": 1}}).want(201).str("prompt_id")
	path := "/prompts/" + id
	before := w.do("GET", path, nil).want(200)
	if a := w.do("PUT", path, obj{"name": nil, "json_schema": nil, "description": nil}).want(200); string(a.raw) != string(before.raw) {
		t.Errorf("nothing changes: %s", a.raw)
	}
	a := w.do("PUT", path, obj{"name": "New", "description": "", "clear_video_level": true, "execution_config": obj{"<": 2}}).want(200)
	if a.str("name") != "New" || a.at("description") != "" || a.at("video_level") != nil || a.at("execution_config", "<") != 2.0 ||
		a.at("selection_filter", "b") != 1.0 || a.str("prompt_text") != "0123456789" || a.str("created_at") != before.str("created_at") {
		t.Errorf("%s", a.raw)
	}
	if again := w.do("PUT", path, obj{"name": "New", "description": "", "clear_video_level": true, "execution_config": obj{"<": 2}}).want(200); string(again.raw) != string(a.raw) {
		t.Errorf("a repetition: %s", again.raw)
	}
	a = w.do("PUT", path, obj{"clear_selection_filter": true, "video_level": level, "clear_video_level": true, "json_schema": obj{"type": "object", "properties": obj{"a": obj{}, "b": obj{}}}}).want(200)
	if _, there := a.body.(map[string]any)["selection_filter"]; there || a.str("video_level", "instructions_text") != "x" {
		t.Errorf("%s", a.raw)
	}
	if got := w.do("GET", path, nil).want(200); string(got.raw) != string(a.raw) {
		t.Errorf("%s", got.raw)
	}
	if u := w.do("GET", path+"/usage", nil).want(200); u.at("schema_properties_count") != 2.0 || u.at("is_in_use") != false || u.str("name") != "New" {
		t.Errorf("usage: %s", u.raw)
	}
}

// Lists of fields are lists in every answer, whatever was sent: official clients take nothing else.
func TestPromptLists(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	schema := obj{"type": "object"}
	for _, level := range []obj{{"instructions_text": "<x>", "json_schema": schema}, {"instructions_text": "<x>", "json_schema": schema, "included_segment_fields": nil}} {
		a := w.do("POST", "/prompts", obj{"name": "Log", "prompt_text": "0123456789", "json_schema": schema, "video_level": level,
			"semantic_indexing": obj{"disabled_segment_fields": nil, "more": 1}}).want(201)
		edited := w.do("PUT", "/prompts/"+a.str("prompt_id"), obj{"video_level": level, "semantic_indexing": obj{"disabled_video_level_fields": nil}}).want(200)
		for _, a := range []answer{a, edited} { // of which every null list has been an error already
			if l, ok := a.at("video_level", "included_segment_fields").([]any); !ok || len(l) > 0 || a.str("video_level", "instructions_text") != "<x>" {
				t.Errorf("%s", a.raw)
			}
		}
	}
	w.do("POST", "/prompts", obj{"name": "Log", "prompt_text": "0123456789", "json_schema": schema, "semantic_indexing": obj{"disabled_segment_fields": "a"}}).
		refused(422, "validation_error", "disabled_segment_fields")
}

// A prompt that something asks stays, unless it is forced; deleted is deleted, however often it is said.
func TestDeletePrompt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	list := func() (total, active float64, n int) {
		a := w.do("GET", "/prompts", nil).want(200)
		return a.at("total_count").(float64), a.at("active_count").(float64), len(a.at("prompts").([]any))
	}
	w.do("DELETE", "/prompts/"+f.prompt, nil).refused(409, "prompt_in_use", "auto_", "force=true")
	if u := w.do("GET", "/prompts/"+f.prompt+"/usage", nil).want(200); u.at("is_in_use") != true {
		t.Errorf("%s", u.raw)
	}
	must(t, w.runs.Put(t.Context(), "run_1", store.Run{ID: "run_1", Prompt: f.doomedPrompt, Status: store.RunPending, CreatedAt: time.Now()}))
	w.do("DELETE", "/prompts/"+f.doomedPrompt+"?force=false", nil).refused(409, "prompt_in_use", "run_1")
	must(t, w.runs.Put(t.Context(), "run_1", store.Run{ID: "run_1", Prompt: f.doomedPrompt, Status: store.RunFailed, CreatedAt: time.Now()}))
	if total, active, n := list(); total != 2 || active != 2 || n != 2 {
		t.Errorf("%v, %v, %d", total, active, n)
	}
	w.do("DELETE", "/prompts/"+f.prompt+"?force=true", nil).want(200)
	w.do("DELETE", "/prompts/"+f.doomedPrompt, nil).want(200)
	for _, id := range []string{f.prompt, f.doomedPrompt} {
		w.do("GET", "/prompts/"+id, nil).refused(404, "resource_prompt_not_found")
		w.do("PUT", "/prompts/"+id, obj{"name": "back"}).refused(404, "resource_prompt_not_found")
		w.do("DELETE", "/prompts/"+id, nil).want(200)
	}
	if total, active, n := list(); total != 0 || active != 0 || n != 0 {
		t.Errorf("%v, %v, %d", total, active, n)
	}
}

func TestTestSchema(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, c := range map[string]struct {
		schema, sample any
		valid          bool
		says           string
	}{
		"valid":      {obj{"type": "object", "required": []string{"a"}}, obj{"a": 1, "b": "<"}, true, "matches"},
		"null":       {obj{"type": "null"}, nil, true, "matches"},
		"not valid":  {obj{"type": "object", "required": []string{"a"}}, obj{}, false, "does not match"},
		"no schema":  {obj{"type": 5}, obj{}, false, "cannot be used"},
		"pattern":    {obj{"pattern": "("}, "x", false, "cannot be used"},
		"a file":     {obj{"$ref": "file:///etc/passwd"}, obj{}, false, "not followed"},
		"a server":   {obj{"$ref": "http://127.0.0.1:1/x.json"}, obj{}, false, "not followed"},
		"metaschema": {obj{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"}, obj{}, true, "matches"},
		"draft 7":    {obj{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}, []int{}, false, "does not match"},
		"itself":     {obj{"$ref": "#/$defs/x", "$defs": obj{"x": obj{"type": "object", "properties": obj{"y": obj{"$ref": "#/$defs/x"}}}}}, obj{"y": obj{"y": 1}}, false, "does not match"},
	} {
		a := w.do("POST", "/prompts/test-schema", obj{"json_schema": c.schema, "sample_data": c.sample}).want(200)
		if a.at("valid") != c.valid || !strings.Contains(string(a.raw), c.says) || (a.at("error") == nil) != c.valid || strings.Contains(string(a.raw), "root:") {
			t.Errorf("%s: %s", name, a.raw)
		}
		want, _ := json.Marshal(c.sample)
		if got, _ := json.Marshal(a.at("validated_data")); c.valid && string(got) != string(want) {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
}

// The document has the members of embedded types: huma leaves them out, without a word, when such a type is not exported.
func TestEmbeddedMembersAreDocumented(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	doc := w.do("GET", "//openapi.json", nil, request{key: "-"}).want(200)
	for schema, name := range map[string]string{
		"Prompt": "semantic_indexing", "NewPromptBody": "execution_config", "EditPromptBody": "selection_filter",
		"IndexDeletion": "status", "VideoDeletion": "status", "VideoDetails": "video_id", "NewIndexExportBody": "format",
	} {
		if doc.at("components", "schemas", schema, "properties", name) == nil {
			t.Errorf("%s has no %s", schema, name)
		}
	}
}
