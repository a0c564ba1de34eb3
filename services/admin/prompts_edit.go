package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"millrace/shared/event"
	"millrace/shared/store"
)

type editPrompt struct {
	ID   string `path:"prompt_id"`
	Body struct {
		Name           *string         `json:"name,omitempty" minLength:"3" maxLength:"100"`
		Text           *string         `json:"prompt_text,omitempty" minLength:"10" maxLength:"5000"`
		JSONSchema     json.RawMessage `json:"json_schema,omitempty" doc:"a JSON Schema whose root type is object"`
		Description    *string         `json:"description,omitempty" maxLength:"500" doc:"empty is a value"`
		VideoLevel     json.RawMessage `json:"video_level,omitempty"`
		ClearVideo     bool            `json:"clear_video_level,omitempty" doc:"removes video_level"`
		ClearSelection bool            `json:"clear_selection_filter,omitempty" doc:"removes selection_filter"`
		PromptExtra
	}
}

type deletePrompt struct {
	ID    string `path:"prompt_id"`
	Force bool   `query:"force" doc:"delete it although it is in use"`
}

type promptUsage struct {
	ID         string `json:"prompt_id"`
	Name       string `json:"name"`
	IsActive   bool   `json:"is_active"`
	IsInUse    bool   `json:"is_in_use" doc:"an automation or an unfinished run asks it"`
	CreatedAt  string `json:"created_at" format:"date-time"`
	Properties int    `json:"schema_properties_count"`
}

type testSchema struct {
	Body struct {
		JSONSchema json.RawMessage `json:"json_schema" doc:"a JSON Schema"`
		Sample     json.RawMessage `json:"sample_data" doc:"any JSON value"`
	}
}

type schemaTest struct {
	Valid     bool            `json:"valid"`
	Validated json.RawMessage `json:"validated_data" doc:"the sample, when it is valid; else null"`
	Error     *string         `json:"error"`
	Message   string          `json:"message"`
}

func (a *Admin) promptEditRoutes() {
	const tag = "Prompts"
	register(a, route{
		method: "PUT", path: "/prompts/{prompt_id}", scope: write, tag: tag, summary: "Change a prompt",
		about: "Only the members that are sent change. Runs that were made before keep what they asked.",
	}, a.editPrompt)
	register(a, route{
		method: "DELETE", path: "/prompts/{prompt_id}", scope: admin, tag: tag, summary: "Delete a prompt",
		about: "409 while it is in use, unless force is true; then the runs of automations that ask it fail.",
	}, a.deletePrompt)
	register(a, route{method: "GET", path: "/prompts/{prompt_id}/usage", scope: read, tag: tag, summary: "Get whether a prompt is in use"}, a.promptUsage)
	register(a, route{
		method: "POST", path: "/prompts/test-schema", scope: write, tag: tag, keep: "sample_data", summary: "Try a JSON Schema on a sample",
		about: "200 whether the sample is valid or not. References to other documents are not followed.",
	}, a.testSchema)
}

func (a *Admin) editPrompt(ctx context.Context, in *editPrompt) (*body[prompt], error) {
	b := in.Body
	var f fieldErrors
	if len(b.JSONSchema) > 0 && (!isObject(b.JSONSchema) || rootType(b.JSONSchema) != "object") {
		f.add("json_schema", `must be a JSON Schema object whose root "type" is "object"`)
	}
	checkVideoLevel(&f, &b.VideoLevel)
	b.PromptExtra.check(&f)
	if err := f.err(); err != nil {
		return nil, err
	}
	if _, err := lookUp(ctx, a.prompts, "prompt", in.ID); err != nil {
		return nil, err
	}
	p, _, err := a.prompts.Modify(ctx, in.ID, func(p *store.Prompt) error {
		if p.ID == "" {
			return notFound("prompt", in.ID) // deleted meanwhile
		}
		p.Name, p.Text, p.Description = value(b.Name, p.Name), value(b.Text, p.Text), value(b.Description, p.Description)
		if len(b.JSONSchema) > 0 {
			p.JSONSchema = b.JSONSchema
		}
		var extra storedExtra
		if len(p.Extra) > 0 {
			if err := json.Unmarshal(p.Extra, &extra); err != nil {
				return fmt.Errorf("decode prompt %s: %w", p.ID, err)
			}
		}
		for _, c := range []struct {
			to    *json.RawMessage
			given json.RawMessage
			clear bool
		}{
			{&extra.VideoLevel, b.VideoLevel, b.ClearVideo},
			{&extra.SelectionFilter, b.SelectionFilter, b.ClearSelection},
			{&extra.SemanticIndexing, b.SemanticIndexing, false},
			{&extra.ExecutionConfig, b.ExecutionConfig, false},
		} {
			switch {
			case len(c.given) > 0:
				*c.to = c.given
			case c.clear:
				*c.to = nil
			}
		}
		var err error
		p.Extra, err = json.Marshal(extra)
		return err
	})
	if err != nil {
		return nil, err
	}
	v, err := viewPrompt(p)
	return &body[prompt]{v}, err
}

// check says which of these is no object, and what is no list of fields.
func (x *PromptExtra) check(f *fieldErrors) {
	for _, e := range []struct {
		name string
		raw  json.RawMessage
	}{
		{"semantic_indexing", x.SemanticIndexing}, {"execution_config", x.ExecutionConfig}, {"selection_filter", x.SelectionFilter},
	} {
		if len(e.raw) > 0 && !isObject(e.raw) {
			f.add(e.name, "must be an object")
		}
	}
	if !isObject(x.SemanticIndexing) {
		return
	}
	var fields struct { // clients take anything else for a broken prompt
		Segment []string `json:"disabled_segment_fields"`
		Video   []string `json:"disabled_video_level_fields"`
	}
	if json.Unmarshal(x.SemanticIndexing, &fields) != nil {
		f.add("semantic_indexing", "must have lists of strings as disabled_segment_fields and disabled_video_level_fields")
		return
	}
	x.SemanticIndexing = withLists(x.SemanticIndexing, false, "disabled_segment_fields", "disabled_video_level_fields")
}

// askedBy names what asks a prompt now: automations, and runs that have not ended.
func (a *Admin) askedBy(ctx context.Context, prompt string) ([]string, error) {
	users := make([]string, 0)
	for at, err := range a.automations.All(ctx) {
		if err != nil {
			return nil, err
		}
		var p preset
		if len(at.Preset) > 0 && json.Unmarshal(at.Preset, &p) == nil && p.PromptID == prompt {
			users = append(users, at.ID)
		}
	}
	for r, err := range a.runs.All(ctx) {
		if err != nil {
			return nil, err
		}
		if r.Prompt == prompt && !r.Status.Terminal() {
			users = append(users, r.ID)
		}
	}
	return users, nil
}

// deletePrompt answers a repetition like the first time.
func (a *Admin) deletePrompt(ctx context.Context, in *deletePrompt) (*body[message], error) {
	done := &body[message]{message{Message: "Prompt deleted."}}
	if !event.IsToken(in.ID) {
		return nil, notFound("prompt", in.ID)
	}
	if _, _, err := a.prompts.Get(ctx, in.ID); errors.Is(err, store.ErrNotFound) {
		was, err := a.prompts.Deleted(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		if !was {
			return nil, notFound("prompt", in.ID)
		}
		return done, nil
	} else if err != nil {
		return nil, err
	}
	if !in.Force {
		users, err := a.askedBy(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		if len(users) > 0 {
			return nil, newProblem(http.StatusConflict, "prompt_in_use", "The prompt %s is in use by %d automations and runs, such as %s. Delete it with force=true all the same.",
				in.ID, len(users), users[0]).with("prompt_id", in.ID).with("used_by", users[:min(len(users), 20)])
		}
	}
	if err := a.prompts.Delete(ctx, in.ID); err != nil {
		return nil, err
	}
	return done, nil
}

func (a *Admin) promptUsage(ctx context.Context, in *promptPath) (*body[promptUsage], error) {
	p, err := lookUp(ctx, a.prompts, "prompt", in.ID)
	if err != nil {
		return nil, err
	}
	users, err := a.askedBy(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	var schema struct {
		Properties map[string]json.RawMessage `json:"properties"`
	}
	_ = json.Unmarshal(p.JSONSchema, &schema) // what has no such properties has none
	return &body[promptUsage]{promptUsage{
		ID: p.ID, Name: p.Name, IsActive: p.Active, IsInUse: len(users) > 0, CreatedAt: stamp(p.CreatedAt), Properties: len(schema.Properties),
	}}, nil
}

// errRemote is why a reference of a tested schema does not resolve: following it would read files and ask servers here.
var errRemote = errors.New("references to other documents are not followed")

type noLoader struct{}

func (noLoader) Load(string) (any, error) { return nil, errRemote }

func (a *Admin) testSchema(_ context.Context, in *testSchema) (*body[schemaTest], error) {
	if !isObject(in.Body.JSONSchema) {
		return nil, invalid("json_schema", "must be a JSON Schema, an object")
	}
	if len(in.Body.Sample) == 0 {
		return nil, invalid("sample_data", "is required")
	}
	out := schemaTest{Validated: json.RawMessage("null")}
	if err := validates(in.Body.JSONSchema, in.Body.Sample); err != nil {
		text := shortened(err.Error())
		out.Error, out.Message = &text, "The sample does not match the schema."
		var bad *schemaError
		if errors.As(err, &bad) {
			out.Message = "The schema cannot be used."
		}
		return &body[schemaTest]{out}, nil
	}
	out.Valid, out.Validated, out.Message = true, in.Body.Sample, "The sample matches the schema."
	return &body[schemaTest]{out}, nil
}

// schemaError is about the schema, not the sample.
type schemaError struct{ error }

func (e *schemaError) Unwrap() error { return e.error }

func validates(schema, sample json.RawMessage) error {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return &schemaError{err}
	}
	const here = "schema:///tested"
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	if err := c.AddResource(here, doc); err != nil {
		return &schemaError{err}
	}
	compiled, err := c.Compile(here)
	if err != nil {
		return &schemaError{err}
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(sample))
	if err != nil {
		return err
	}
	return compiled.Validate(v)
}
