package event_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"millrace/schemas"
	"millrace/shared/event"
	"millrace/shared/topology"
)

// contracts is every message on the bus by the name of its schema.
var contracts = map[string]any{
	"notification":  event.Notification{},
	"arrival":       event.Arrival{},
	"timer":         event.Timer{},
	"job_requested": event.JobRequested{},
	"task":          event.Task{},
	"file":          event.File{},
	"medium":        event.Medium{},
	"run_requested": event.RunRequested{},
	"run_wanted":    event.RunWanted{},
	"report":        event.Report{},
	"import_job":    event.JobEvent{},
	"media":         event.MediaEvent{},
	"processing":    event.ProcessingEvent{},
	"prompt_run":    event.RunEvent{},
	"drift":         event.DriftEvent{},
	"dead":          event.Dead{},

	"deletion_requested": event.DeletionRequested{},
	"export_requested":   event.ExportRequested{},
	"export":             event.ExportEvent{},
	"delivery":           event.Delivery{},
	"envelope":           event.Envelope{},
	"command":            event.Command{},
	"command_event":      event.CommandEvent{},
}

// vocabularies is every closed list by the schemas and properties that carry it.
var vocabularies = map[string][]string{
	"notification.op":           texts(event.Created, event.Deleted),
	"arrival.found":             texts(event.ByNotification, event.ByScan, event.ByImporter),
	"job_requested.lane":        texts(event.Live, event.Bulk),
	"job_requested.import_mode": texts(event.All, event.NewOnly),
	"task.lane":                 texts(event.Live, event.Bulk),
	"task.import_mode":          texts(event.All, event.NewOnly),
	"file.state":                texts(fileStates...),
	"file.reason":               texts(skipReasons...),
	"medium.state": texts(event.MediumImported, event.MediumFailed, event.MediumSkipped, event.MediumDeleted,
		event.MediumBaseline),
	"report.state": texts(event.Processing, event.Successful, event.Unsuccessful),
	"delivery.status": texts(event.DeliveryPending, event.DeliveryProcessing, event.DeliveryRetrying, event.DeliveryDelivered,
		event.DeliveryFailed),
	"dead.stage": {"receive", "decode", "handle", "panic", "deliver"},

	"export_requested.export_type":  texts(event.ExportOfIndex, event.ExportOfRun, event.ExportOfJob),
	"export_requested.result_scope": texts(event.AllResults, event.OnlyMatches),
	"export_requested.format":       texts(event.FormatJSON, event.FormatLines, event.FormatCSV),
	"export.export_type":            texts(event.ExportOfIndex, event.ExportOfRun, event.ExportOfJob),
}

func texts[S ~string](values ...S) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

func TestEveryFileIsAContract(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"v1", "examples"} {
		entries, err := fs.ReadDir(schemas.Files, dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != len(contracts) {
			t.Errorf("%s has %d files, the test knows %d messages", dir, len(entries), len(contracts))
		}
		for _, e := range entries {
			if _, ok := contracts[strings.TrimSuffix(e.Name(), ".json")]; !ok {
				t.Errorf("%s/%s belongs to no message", dir, e.Name())
			}
		}
	}
	if _, _, ok := schemas.Lookup("io.millrace.v1.nothing"); ok {
		t.Error("a message that does not exist was found")
	}
	if _, _, ok := schemas.Lookup("arrival"); ok {
		t.Error("a message was found without its version")
	}
}

func TestContracts(t *testing.T) {
	t.Parallel()
	for name, zero := range contracts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw, example, ok := schemas.Lookup(schemas.Prefix + name)
			if !ok {
				t.Fatalf("no schema or no example of %s", schemas.Prefix+name)
			}
			var schema map[string]any
			parse(t, raw, &schema)

			for key, want := range map[string]any{
				"$schema": "https://json-schema.org/draft/2020-12/schema",
				"$id":     "urn:millrace:v1:" + name,
				"title":   schemas.Prefix + name,
				"x-type":  schemas.Prefix + name,
			} {
				if schema[key] != want {
					t.Errorf("%s is %v, want %v", key, schema[key], want)
				}
			}
			typ := reflect.TypeOf(zero)
			sameMembers(t, name, schema, typ)

			compiled := compile(t, raw)
			doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(example))
			if err != nil {
				t.Fatal(err)
			}
			if err := compiled.Validate(doc); err != nil {
				t.Errorf("the example: %v", err)
			}

			// Go → JSON → Go unchanged, and nothing in the example that the type does not know.
			v := reflect.New(typ)
			dec := json.NewDecoder(bytes.NewReader(example))
			dec.DisallowUnknownFields()
			if err := dec.Decode(v.Interface()); err != nil {
				t.Fatalf("decode the example: %v", err)
			}
			back, err := json.Marshal(v.Elem().Interface())
			if err != nil {
				t.Fatal(err)
			}
			var want, got any
			parse(t, example, &want)
			parse(t, back, &got)
			if !reflect.DeepEqual(want, got) {
				t.Errorf("the example comes back as\n%s", back)
			}

			// A version may grow: a member nobody knows is no error for a reader.
			grown := doc.(map[string]any)
			grown["member_of_tomorrow"] = true
			if err := compiled.Validate(grown); err != nil {
				t.Errorf("closed to new members: %v", err)
			}
		})
	}
}

// The zero value is written with exactly the required members.
func TestOmittedMembersAreOptional(t *testing.T) {
	t.Parallel()
	for name, zero := range contracts {
		raw, _, _ := schemas.Lookup(schemas.Prefix + name)
		var schema map[string]any
		parse(t, raw, &schema)
		out, err := json.Marshal(zero)
		if err != nil {
			t.Fatal(err)
		}
		var members map[string]any
		parse(t, out, &members)
		if want, got := required(schema), sortedKeys(members); !slices.Equal(want, got) {
			t.Errorf("%s: the zero value has members %v, required are %v", name, got, want)
		}
	}
}

func TestVocabulariesAreClosed(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for name := range contracts {
		raw, _, _ := schemas.Lookup(schemas.Prefix + name)
		var schema map[string]any
		parse(t, raw, &schema)
		for prop, s := range properties(schema) {
			list, ok := s["enum"]
			if !ok {
				continue
			}
			at := name + "." + prop
			seen[at] = true
			var got []string
			for _, v := range list.([]any) {
				got = append(got, v.(string))
			}
			if want := vocabularies[at]; !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
				t.Errorf("%s is one of %v, in Go of %v", at, got, want)
			}
		}
	}
	for at := range vocabularies {
		if !seen[at] {
			t.Errorf("%s has no enum", at)
		}
	}
}

// sameMembers holds the members of a struct against the properties of a schema, and goes into objects and arrays.
func sameMembers(t *testing.T, at string, schema map[string]any, typ reflect.Type) {
	t.Helper()
	if closed, ok := schema["additionalProperties"]; ok && closed == false {
		t.Errorf("%s is closed to new members", at)
	}
	props := properties(schema)
	var must []string
	members := membersOf(typ)
	for name, m := range members {
		prop, ok := props[name]
		if !ok {
			t.Errorf("%s.%s is not in the schema", at, name)
			continue
		}
		if !m.optional {
			must = append(must, name)
		}
		switch m.typ.Kind() {
		case reflect.Struct:
			if _, text := reflect.New(m.typ).Interface().(json.Marshaler); !text && prop["type"] == "object" {
				sameMembers(t, at+"."+name, prop, m.typ)
			}
		case reflect.Slice:
			if items, ok := prop["items"].(map[string]any); ok && m.typ.Elem().Kind() == reflect.Struct {
				sameMembers(t, at+"."+name+"[]", items, m.typ.Elem())
			}
		}
		if want := jsonType(m.typ); want != "" && prop["type"] != want {
			t.Errorf("%s.%s is a %v, in Go a %v", at, name, prop["type"], want)
		}
	}
	sentence := regexp.MustCompile(`^[A-Z][^\n]*[^.]\.$`)
	for name, prop := range props {
		if _, ok := members[name]; !ok {
			t.Errorf("%s.%s is not in the Go type", at, name)
		}
		if d, _ := prop["description"].(string); !sentence.MatchString(d) {
			t.Errorf("%s.%s: %q is not a sentence", at, name, d)
		}
	}
	slices.Sort(must)
	if got := required(schema); !slices.Equal(must, got) {
		t.Errorf("%s requires %v, without omitempty are %v", at, got, must)
	}
}

type member struct {
	typ      reflect.Type
	optional bool
}

func membersOf(typ reflect.Type) map[string]member {
	out := make(map[string]member)
	for _, f := range reflect.VisibleFields(typ) {
		if f.Anonymous || !f.IsExported() {
			continue
		}
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		out[name] = member{typ: f.Type, optional: strings.Contains(opts, "omitempty") || strings.Contains(opts, "omitzero")}
	}
	return out
}

// jsonType is what a Go type becomes, "" when it may become several things.
func jsonType(typ reflect.Type) string {
	switch typ.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return "integer"
	case reflect.Float64:
		return "number"
	}
	if typ == reflect.TypeFor[event.MediumID]() {
		return "string"
	}
	return ""
}

func properties(schema map[string]any) map[string]map[string]any {
	out := make(map[string]map[string]any)
	props, _ := schema["properties"].(map[string]any)
	for name, p := range props {
		out[name] = p.(map[string]any)
	}
	return out
}

func required(schema map[string]any) []string {
	var out []string
	list, _ := schema["required"].([]any)
	for _, r := range list {
		out = append(out, r.(string))
	}
	slices.Sort(out)
	return out
}

func sortedKeys(m map[string]any) []string {
	out := []string{}
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func parse(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

func compile(t *testing.T, raw []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	c.AssertContent()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asyncAPI is what this test reads of the map.
type asyncAPI struct {
	AsyncAPI string             `yaml:"asyncapi"`
	Channels map[string]channel `yaml:"channels"`
	// Operations by name; those of durable consumers carry the consumer's.
	Operations map[string]struct {
		Action  string `yaml:"action"`
		Channel ref    `yaml:"channel"`
	} `yaml:"operations"`
	Components struct {
		Parameters map[string]any `yaml:"parameters"`
		Messages   map[string]struct {
			Payload struct {
				Format string `yaml:"schemaFormat"`
				Schema ref    `yaml:"schema"`
			} `yaml:"payload"`
		} `yaml:"messages"`
	} `yaml:"components"`
}

type channel struct {
	Address    string         `yaml:"address"`
	Parameters map[string]ref `yaml:"parameters"`
	Messages   map[string]ref `yaml:"messages"`
}

type ref struct {
	Ref string `yaml:"$ref"`
}

func loadMap(t *testing.T) (doc asyncAPI, tree any) {
	t.Helper()
	raw, err := schemas.Files.ReadFile("asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(raw, &tree); err != nil {
		t.Fatal(err)
	}
	return doc, tree
}

var parameter = regexp.MustCompile(`\{(\w+)\}`)

func TestMapHoldsTogether(t *testing.T) {
	t.Parallel()
	doc, tree := loadMap(t)
	if doc.AsyncAPI != "3.0.0" {
		t.Errorf("asyncapi is %q", doc.AsyncAPI)
	}

	used := make(map[string]bool) // targets of references
	var follow func(at string, v any)
	follow = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				if target, ok := e.(string); ok && k == "$ref" {
					used[target] = true
					if !resolves(tree, target) {
						t.Errorf("%s refers to %s, which is not there", at, target)
					}
					continue
				}
				follow(at+"/"+k, e)
			}
		case []any:
			for _, e := range v {
				follow(at, e)
			}
		}
	}
	follow("#", tree)

	for name := range contracts {
		if !used["./v1/"+name+".json"] {
			t.Errorf("v1/%s.json is not on the map", name)
		}
	}
	for name, m := range doc.Components.Messages {
		if !used["#/components/messages/"+name] {
			t.Errorf("message %s is in no channel", name)
		}
		if m.Payload.Format != "application/schema+json;version=2020-12" || !strings.HasPrefix(m.Payload.Schema.Ref, "./v1/") {
			t.Errorf("message %s does not refer to a schema of v1", name)
		}
	}
	for name := range doc.Components.Parameters {
		if !used["#/components/parameters/"+name] {
			t.Errorf("parameter %s is in no channel", name)
		}
	}

	actions := make(map[string]map[string]bool)
	for name, op := range doc.Operations {
		if op.Action != "send" && op.Action != "receive" {
			t.Errorf("operation %s: action %q", name, op.Action)
		}
		if actions[op.Channel.Ref] == nil {
			actions[op.Channel.Ref] = make(map[string]bool)
		}
		actions[op.Channel.Ref][op.Action] = true
	}
	for name, c := range doc.Channels {
		if len(c.Messages) == 0 {
			t.Errorf("channel %s carries no message", name)
		}
		if !actions["#/channels/"+name]["send"] {
			t.Errorf("nobody sends to channel %s", name)
		}
		var inAddress []string
		for _, m := range parameter.FindAllStringSubmatch(c.Address, -1) {
			inAddress = append(inAddress, m[1])
		}
		var declared []string
		for p := range c.Parameters {
			declared = append(declared, p)
		}
		slices.Sort(inAddress)
		slices.Sort(declared)
		if !slices.Equal(inAddress, declared) {
			t.Errorf("channel %s: address has parameters %v, declared are %v", name, inAddress, declared)
		}
	}
}

func resolves(tree any, target string) bool {
	file, pointer, _ := strings.Cut(target, "#")
	if file != "" {
		_, err := fs.Stat(schemas.Files, path.Clean(file))
		return err == nil && pointer == ""
	}
	for _, token := range strings.Split(strings.TrimPrefix(pointer, "/"), "/") {
		m, ok := tree.(map[string]any)
		if !ok {
			return false
		}
		if tree, ok = m[token]; !ok {
			return false
		}
	}
	return true
}

// covers reports whether each subject that narrow matches is matched by wide too.
func covers(wide, narrow string) bool {
	w, n := strings.Split(wide, "."), strings.Split(narrow, ".")
	for i, token := range w {
		switch {
		case token == ">":
			return len(n) > i
		case i >= len(n) || n[i] == ">":
			return false
		case token != "*" && token != n[i]:
			return false
		}
	}
	return len(w) == len(n)
}

func TestAddressesAreTheSubjectsOfTheTopology(t *testing.T) {
	t.Parallel()
	doc, _ := loadMap(t)
	top := topology.Topology{Prefix: "millrace"}

	addresses := make(map[string]string) // as subject, by channel
	for name, c := range doc.Channels {
		addresses[name] = parameter.ReplaceAllString(c.Address, "*")
	}

	var subjects []string
	for _, s := range top.Streams() {
		if strings.HasPrefix(s.Config.Name, "KV_") || strings.HasPrefix(s.Config.Name, "OBJ_") {
			continue
		}
		subjects = append(subjects, s.Config.Subjects...)
	}
	for name, a := range addresses {
		if !slices.ContainsFunc(subjects, func(s string) bool { return covers(s, a) }) {
			t.Errorf("channel %s: no stream takes %s", name, a)
		}
	}
	for _, s := range subjects {
		found := false
		for _, a := range addresses {
			// A stream of everything below a token is the sum of several addresses.
			found = found || a == s || strings.HasSuffix(s, ".>") && covers(s, a)
		}
		if !found {
			t.Errorf("no channel has the address of stream subject %s", s)
		}
	}

	for _, c := range top.Consumers() {
		op, ok := doc.Operations[c.Config.Durable]
		if !ok || op.Action != "receive" {
			t.Errorf("consumer %s is no receiving operation", c.Config.Durable)
			continue
		}
		a := addresses[strings.TrimPrefix(op.Channel.Ref, "#/channels/")]
		for _, f := range c.Config.FilterSubjects {
			if !covers(a, f) {
				t.Errorf("consumer %s takes %s, its operation receives %s", c.Config.Durable, f, a)
			}
		}
	}
}

func TestEveryEventHasAChannel(t *testing.T) {
	t.Parallel()
	doc, tree := loadMap(t)
	top := topology.Topology{Prefix: "millrace"}
	types := []event.Type{
		event.JobStarted, event.JobProgress, event.JobCompleted, event.JobPartialCompleted, event.JobFailed, event.MediaCreated,
		event.ProcessingStarted, event.ProcessingCompleted, event.ProcessingFailed,
		event.RunStarted, event.RunProgress, event.RunCompleted, event.RunPartialCompleted, event.RunFailed, event.RunCancelled, event.ScanDrift,
		event.ExportReady, event.ExportFailed,
		event.CommandCompleted, event.CommandFailed,
	}
	for _, typ := range types {
		subject := top.Subject("event", string(typ), "i", "s")
		found := false
		for name, c := range doc.Channels {
			if name == "events" { // the sum of the others
				continue
			}
			a := c.Address
			if p := c.Parameters["outcome"].Ref; p != "" {
				name := p[strings.LastIndex(p, "/")+1:]
				values := tree.(map[string]any)["components"].(map[string]any)["parameters"].(map[string]any)[name].(map[string]any)["enum"].([]any)
				outcome := string(typ)[strings.LastIndexByte(string(typ), '.')+1:]
				if !slices.Contains(values, any(outcome)) {
					continue
				}
			}
			found = found || covers(parameter.ReplaceAllString(a, "*"), subject)
		}
		if !found {
			t.Errorf("no channel carries %s", typ)
		}
	}
}
