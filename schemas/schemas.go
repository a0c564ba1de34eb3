// Package schemas holds the contracts of the bus: a JSON Schema and a golden example per message, and the AsyncAPI map of
// who sends what where.
package schemas

import (
	"embed"
	"strings"
)

// Files are v1/<message>.json, examples/<message>.json and asyncapi.yaml.
//
//go:embed v1/*.json examples/*.json asyncapi.yaml
var Files embed.FS

// Prefix starts the type name of each message, which its schema carries as title and as x-type:
// "io.millrace.v1.arrival".
const Prefix = "io.millrace.v1."

// Lookup returns the schema and the golden example of a message by its type name, and whether there is one.
func Lookup(typ string) (schema, example []byte, ok bool) {
	name, ok := strings.CutPrefix(typ, Prefix)
	if !ok {
		return nil, nil, false
	}
	schema, err := Files.ReadFile("v1/" + name + ".json")
	if err != nil {
		return nil, nil, false
	}
	example, err = Files.ReadFile("examples/" + name + ".json")
	return schema, example, err == nil
}
