package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"millrace/shared/store"
)

// prompt is a store.Prompt as clients see it.
type prompt struct {
	ID          string          `json:"prompt_id"`
	UserID      string          `json:"user_id"`
	Name        string          `json:"name"`
	Description string          `json:"description"`
	Text        string          `json:"prompt_text"`
	JSONSchema  json.RawMessage `json:"json_schema"`
	IsActive    bool            `json:"is_active"`
	CreatedAt   string          `json:"created_at" format:"date-time"`
	VideoLevel  json.RawMessage `json:"video_level" doc:"an object or null"`
	PromptExtra
}

// PromptExtra is what is kept with a prompt for executors and clients, and means nothing here. Exported, as huma
// looks into embedded types only if they are.
type PromptExtra struct {
	SemanticIndexing json.RawMessage `json:"semantic_indexing,omitempty" doc:"an object"`
	ExecutionConfig  json.RawMessage `json:"execution_config,omitempty" doc:"an object"`
	SelectionFilter  json.RawMessage `json:"selection_filter,omitempty" doc:"an object"`
}

// storedExtra is how store.Prompt.Extra is spelled.
type storedExtra struct {
	VideoLevel json.RawMessage `json:"video_level,omitempty"`
	PromptExtra
}

type newPrompt struct {
	Body struct {
		Name        string          `json:"name" minLength:"3" maxLength:"100"`
		Text        string          `json:"prompt_text" minLength:"10" maxLength:"5000"`
		JSONSchema  json.RawMessage `json:"json_schema" doc:"a JSON Schema whose root type is object"`
		Description string          `json:"description,omitempty" maxLength:"500"`
		VideoLevel  json.RawMessage `json:"video_level,omitempty" doc:"instructions_text (1 to 12000 characters), included_segment_fields, json_schema"`
		PromptExtra
	}
}

type promptPath struct {
	ID string `path:"prompt_id"`
}

type listPrompts struct {
	ActiveOnly      bool `query:"active_only" doc:"leave out those that are not active"`
	IncludeDefaults bool `query:"include_defaults" default:"true" doc:"has no effect: there are no shared prompts here"`
}

type promptList struct {
	Prompts     []prompt `json:"prompts" nullable:"false"`
	TotalCount  int      `json:"total_count"`
	ActiveCount int      `json:"active_count"`
}

func (a *Admin) promptRoutes() {
	const tag = "Prompts"
	register(a, route{method: "POST", path: "/prompts", scope: write, status: http.StatusCreated, tag: tag, summary: "Create a prompt"}, a.createPrompt)
	register(a, route{method: "GET", path: "/prompts", scope: read, tag: tag, summary: "List prompts", about: "In order of creation."}, a.listPrompts)
	register(a, route{method: "GET", path: "/prompts/{prompt_id}", scope: read, tag: tag, summary: "Get a prompt"}, a.getPrompt)
}

func viewPrompt(p store.Prompt) (prompt, error) {
	var extra storedExtra
	if len(p.Extra) > 0 {
		if err := json.Unmarshal(unescaped(p.Extra), &extra); err != nil {
			return prompt{}, err
		}
	}
	v := prompt{
		ID: p.ID, UserID: owner, Name: p.Name, Description: p.Description, Text: p.Text, JSONSchema: unescaped(p.JSONSchema),
		IsActive: p.Active, CreatedAt: stamp(p.CreatedAt), VideoLevel: extra.VideoLevel, PromptExtra: extra.PromptExtra,
	}
	if len(v.VideoLevel) == 0 {
		v.VideoLevel = json.RawMessage("null")
	}
	return v, nil
}

func (a *Admin) createPrompt(ctx context.Context, in *newPrompt) (*body[prompt], error) {
	b := in.Body
	var f fieldErrors
	if !isObject(b.JSONSchema) || rootType(b.JSONSchema) != "object" {
		f.add("json_schema", `must be a JSON Schema object whose root "type" is "object"`)
	}
	checkVideoLevel(&f, &b.VideoLevel)
	b.PromptExtra.check(&f)
	if err := f.err(); err != nil {
		return nil, err
	}
	extra, err := json.Marshal(storedExtra{VideoLevel: b.VideoLevel, PromptExtra: b.PromptExtra})
	if err != nil {
		return nil, err
	}
	p := store.Prompt{
		ID: newID(ctx, "prm"), Name: b.Name, Description: b.Description, Text: b.Text, JSONSchema: b.JSONSchema,
		Extra: extra, Active: true, CreatedAt: time.Now().UTC(),
	}
	if p, err = create(ctx, a.prompts, p.ID, p); err != nil {
		return nil, err
	}
	v, err := viewPrompt(p)
	return &body[prompt]{v}, err
}

func isObject(raw json.RawMessage) bool { return bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) }

func rootType(schema json.RawMessage) string {
	var s struct {
		Type any `json:"type"`
	}
	_ = json.Unmarshal(schema, &s) // it is valid JSON
	t, _ := s.Type.(string)
	return t
}

// checkVideoLevel also gives it the list of fields that official clients want there, as it may be left out here.
func checkVideoLevel(f *fieldErrors, given *json.RawMessage) {
	raw := *given
	if len(raw) == 0 {
		return
	}
	var v struct {
		Instructions string          `json:"instructions_text"`
		Fields       []string        `json:"included_segment_fields"`
		JSONSchema   json.RawMessage `json:"json_schema"`
	}
	if !isObject(raw) || json.Unmarshal(raw, &v) != nil {
		f.add("video_level", "must be an object with instructions_text (string), included_segment_fields (strings) and json_schema (object)")
		return
	}
	if n := len([]rune(v.Instructions)); n < 1 || n > 12000 {
		f.add("video_level.instructions_text", "is required: 1 to 12000 characters")
	}
	if !isObject(v.JSONSchema) || rootType(v.JSONSchema) != "object" {
		f.add("video_level.json_schema", `must be a JSON Schema object whose root "type" is "object"`)
	}
	if v.Fields == nil {
		*given = withLists(raw, true, "included_segment_fields")
	}
}

// withLists returns an object in which the named lists are no null: empty, or with missing also where they are not there.
func withLists(object json.RawMessage, missing bool, names ...string) json.RawMessage {
	members := make(map[string]json.RawMessage)
	if json.Unmarshal(object, &members) != nil {
		return object
	}
	changed := false
	for _, name := range names {
		if value, there := members[name]; there && string(value) == "null" || !there && missing {
			members[name], changed = json.RawMessage("[]"), true
		}
	}
	if !changed {
		return object
	}
	out, err := json.Marshal(members)
	if err != nil {
		return object
	}
	return out
}

func (a *Admin) listPrompts(ctx context.Context, in *listPrompts) (*body[promptList], error) {
	found, err := all(ctx, a.prompts)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(x, y store.Prompt) int {
		return cmp.Or(x.CreatedAt.Compare(y.CreatedAt), cmp.Compare(x.ID, y.ID))
	})
	list := promptList{Prompts: make([]prompt, 0, len(found)), TotalCount: len(found)}
	for _, p := range found {
		if p.Active {
			list.ActiveCount++
		} else if in.ActiveOnly {
			continue
		}
		v, err := viewPrompt(p)
		if err != nil {
			return nil, err
		}
		list.Prompts = append(list.Prompts, v)
	}
	return &body[promptList]{list}, nil
}

func (a *Admin) getPrompt(ctx context.Context, in *promptPath) (*body[prompt], error) {
	p, err := lookUp(ctx, a.prompts, "prompt", in.ID)
	if err != nil {
		return nil, err
	}
	v, err := viewPrompt(p)
	return &body[prompt]{v}, err
}
