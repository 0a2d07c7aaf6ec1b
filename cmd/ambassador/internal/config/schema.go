package config

import (
	_ "embed"
)

// Schema is the JSON Schema of the configuration file; a test keeps it
// current with File.fields.
//
//go:embed schema.json
var Schema []byte

// configSchema makes the schema (draft 2020-12) from the fields.
func configSchema() map[string]any {
	s := sectionSchema((&File{}).fields())
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["$id"] = "urn:ambassador:configuration"
	s["title"] = "ambassador configuration"
	s["description"] = "Durations are written like 500ms, 10s or 1h30m. ${NAME} is replaced by an environment variable. Relative paths start at the file's folder."
	s["required"] = []string{"listeners", "upstreams"}
	relate(s)
	return s
}

// sectionSchema is a mapping with exactly these keys.
func sectionSchema(fields []field) map[string]any {
	properties := map[string]any{}
	for _, f := range fields {
		p := map[string]any{"description": f.description()}
		if f.def != nil {
			p["default"] = f.defaultValue()
		}
		for k, v := range f.schema() {
			p[k] = v
		}
		properties[f.key] = p
	}
	return map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
}
