package keyhelp

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"ambassador/cmd/ambassador/internal/output"
)

// Key is one key, as explain --json prints it.
type Key struct {
	Path        string `json:"path"`
	Type        string `json:"type"`
	Required    bool   `json:"required,omitempty"`
	Description string `json:"description,omitempty"`
	Default     any    `json:"default,omitempty"`
	Example     any    `json:"example,omitempty"`
	Values      []any  `json:"values,omitempty"`
	Keys        []Key  `json:"keys,omitempty"`
}

// node is what is used of a JSON Schema.
type node struct {
	Type        any             `json:"type"`
	Description string          `json:"description"`
	Default     any             `json:"default"`
	Examples    []any           `json:"examples"`
	Enum        []any           `json:"enum"`
	Properties  map[string]node `json:"properties"`
	Required    []string        `json:"required"`
	Items       *node           `json:"items"`
	AnyOf       []node          `json:"anyOf"`
	Additional  json.RawMessage `json:"additionalProperties"`
}

// Find returns the key of a path like upstreams.health.fall, or, as in a message of
// check, upstreams.orders_db.endpoints[0].weight. An empty path is the whole file. The
// error suggests a key.
func Find(schema []byte, path string) (*Key, error) {
	var at node
	if err := json.Unmarshal(schema, &at); err != nil {
		return nil, err
	}
	key, name, required := at, "", false
	named := false // name may be followed by a name of the user's
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '.' })
	for i, part := range parts {
		part, _, _ = strings.Cut(part, "[")
		section := key.section()
		next, ok := section.Properties[part]
		if !ok {
			if named && (i+1 < len(parts) || nearest(part, section) == "") {
				named = false
				name += ".NAME"
				continue
			}
			if near := elsewhere(at, parts); name == "" && nearest(part, section) == "" && len(near) > 0 {
				return nil, fmt.Errorf("the configuration has no key %q; did you mean %s?", path, strings.Join(near, " or "))
			}
			return nil, unknown(name, part, section)
		}
		required = slices.Contains(section.Required, part)
		if named && !strings.HasSuffix(name, ".NAME") {
			name += ".NAME"
		}
		if key.isList() {
			name += "[]"
		}
		name = strings.TrimPrefix(name+"."+part, ".")
		key, named = next, next.isNamed()
	}
	out := key.explain(name, required)
	section := key.section()
	for _, child := range slices.Sorted(maps.Keys(section.Properties)) {
		out.Keys = append(out.Keys, section.Properties[child].explain(child, slices.Contains(section.Required, child)))
	}
	return &out, nil
}

// unknown is the error for a key that is not there.
func unknown(at, part string, section node) error {
	where, have := "the configuration", slices.Sorted(maps.Keys(section.Properties))
	if at != "" {
		where = at
	}
	if len(have) == 0 {
		return fmt.Errorf("%s has no key %q: it has no keys", where, part)
	}
	if best := nearest(part, section); best != "" {
		return fmt.Errorf("%s has no key %q; did you mean %s?", where, part, strings.TrimPrefix(at+"."+best, "."))
	}
	return fmt.Errorf("%s has no key %q; it has %s", where, part, strings.Join(have, ", "))
}

// maxElsewhere bounds the paths that are suggested.
const maxElsewhere = 4

// elsewhere returns the paths in the file that end, but for a slip, with parts: of otlp it is
// tracing.otlp.
func elsewhere(file node, parts []string) (best []string) {
	least := 3
	var walk func(n node, above []string)
	walk = func(n node, above []string) {
		for _, k := range slices.Sorted(maps.Keys(n.section().Properties)) {
			path := append(slices.Clone(above), k)
			if d := slip(path, parts); d < least {
				best, least = nil, d
			}
			if slip(path, parts) == least && least < 3 && len(best) < maxElsewhere {
				best = append(best, strings.Join(path, "."))
			}
			walk(n.section().Properties[k], path)
		}
	}
	walk(file, nil)
	return best
}

// slip is how far the end of a path is from parts; 3 or more is no slip.
func slip(path, parts []string) (sum int) {
	if len(path) < len(parts) {
		return 3
	}
	for i, have := range path[len(path)-len(parts):] {
		d := output.Distance(parts[i], have)
		if 2*d > len(parts[i]) {
			return 3
		}
		sum += d
	}
	return sum
}

// nearest is the key of a section that was probably meant by part; empty if there is none.
func nearest(part string, section node) string {
	best, least := "", 3
	for _, k := range slices.Sorted(maps.Keys(section.Properties)) {
		if d := output.Distance(part, k); d < least && 2*d <= len(part) {
			best, least = k, d
		}
	}
	return best
}

// section is the node whose properties are the keys below n.
func (n node) section() node {
	if len(n.Properties) > 0 {
		return n
	}
	var named node
	if json.Unmarshal(n.Additional, &named) == nil && len(named.Properties) > 0 {
		return named
	}
	if n.Items != nil {
		return n.Items.section()
	}
	for _, one := range n.AnyOf {
		if s := one.section(); len(s.Properties) > 0 {
			return s
		}
	}
	return node{}
}

// isNamed reports whether the keys below n are names that the user chooses.
func (n node) isNamed() bool {
	var named node
	return json.Unmarshal(n.Additional, &named) == nil && len(named.Properties) > 0
}

func (n node) isList() bool { return n.Items != nil }

func (n node) explain(path string, required bool) Key {
	k := Key{Path: path, Type: n.kind(), Required: required, Description: n.Description, Default: n.Default, Values: n.Enum}
	if len(n.Examples) > 0 {
		k.Example = n.Examples[0]
	}
	return k
}

// kind is the type in words.
func (n node) kind() string {
	var words []string
	add := func(w string) {
		if !slices.Contains(words, w) {
			words = append(words, w)
		}
	}
	types, _ := n.Type.([]any)
	if one, ok := n.Type.(string); ok {
		types = []any{one}
	}
	switch {
	case len(n.Enum) > 0:
		return "one of its values"
	case n.isNamed():
		return "sections by name"
	case n.Items != nil && len(n.Items.section().Properties) > 0:
		return "list of sections"
	case n.Items != nil:
		return "list of " + n.Items.kind()
	}
	for _, t := range types {
		switch t {
		case "object":
			add("section")
		case "boolean":
			add("true or false")
		case "integer", "number":
			add("number")
		case "string":
			add("text")
		}
	}
	for _, one := range n.AnyOf {
		add(one.kind())
	}
	return strings.Join(words, " or ")
}

// Write prints the key for people.
func (k *Key) Write(w io.Writer) error {
	var r output.Report
	if k.Path == "" {
		r.Linef("The keys of the configuration file:")
	} else {
		head := k.Path + "  (" + k.Type
		if k.Required {
			head += ", required"
		}
		r.Linef("%s)", head)
		r.Linef("")
		r.Linef("  %s", k.Description)
	}
	if len(k.Values) > 0 {
		r.Linef("  values   %s", listed(k.Values))
	}
	if k.Default != nil {
		r.Linef("  default  %s", value(k.Default))
	}
	if k.Example != nil {
		r.Linef("  example  %s", value(k.Example))
	}
	if len(k.Keys) > 0 {
		r.Linef("")
		rows := [][]string{}
		for _, c := range k.Keys {
			first, _, _ := strings.Cut(c.Description, ". ")
			kind := c.Type
			if c.Required {
				kind += ", required"
			}
			rows = append(rows, []string{"  " + c.Path, kind, first})
		}
		r.Table(rows)
	}
	_, err := io.WriteString(w, r.String())
	return err
}

func listed(all []any) string {
	var out []string
	for _, v := range all {
		out = append(out, fmt.Sprint(v))
	}
	return strings.Join(out, ", ")
}

// value is a value as the file has it on one line.
func value(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}
