package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v4"

	"ambassador/cmd/ambassador/internal/output"
)

// Problem is one mistake in a configuration.
type Problem struct {
	File         string
	Line, Column int
	// Path is the key's: "listeners.front.listen". Empty: the file as a whole.
	Path string
	// Text is what is wrong, and how to fix it.
	Text string
}

// String is FILE:LINE:COLUMN: PATH: TEXT.
func (p Problem) String() string {
	s := p.File
	if p.Line > 0 {
		s += fmt.Sprintf(":%d:%d", p.Line, p.Column)
	}
	if p.Path != "" {
		s += ": " + p.Path
	}
	return output.Visible(s + ": " + p.Text)
}

// Error is every mistake of a configuration, in the file's order.
type Error struct{ Problems []Problem }

// Error is one line a problem.
func (e *Error) Error() string {
	var lines []string
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

// field is one key of a section: what the decoder, its errors and the schema
// know of it. Schema makes a new map for each call: a file may have thousands of
// sections, and none of them needs it.
type field struct {
	key, doc string
	schema   func() map[string]any
	decode   func(d *decoder, n *yaml.Node, path string)
	// to is where the value goes: a *string, *bool, *int, *int64, *float64 or *time.Duration; nil:
	// somewhere else, and there is no default.
	to any
	// def is the value where the key is not given, of to's type; nil: doc says what is
	// then, or nothing is.
	def  any
	note string // what follows the default in the description
}

// or gives the key a default: the value is set, and schema and description have it. Note
// follows it in the description.
func (f field) or(def any, note ...string) field {
	f.def, f.note = def, strings.Join(note, "")
	switch to := f.to.(type) {
	case *string:
		*to = def.(string)
	case *bool:
		*to = def.(bool)
	case *int:
		*to = def.(int)
	case *int64:
		*to = def.(int64)
	case *float64:
		*to = def.(float64)
	case *time.Duration:
		*to = def.(time.Duration)
	default:
		panic("config: internal error: " + f.key + " cannot have a default")
	}
	return f
}

// description is the doc, with the default.
func (f field) description() string {
	if f.def == nil {
		return f.doc
	}
	text := fmt.Sprint(f.defaultValue())
	if s, ok := f.def.(string); ok && (s[0] < 'a' || s[0] > 'z') {
		text = strconv.Quote(s)
	}
	return strings.TrimPrefix(f.doc+" Default "+text+f.note+".", " ")
}

// defaultValue is the default as JSON and a file have it.
func (f field) defaultValue() any {
	switch v := f.def.(type) {
	case time.Duration:
		text, found := strings.CutSuffix(v.String(), "m0s")
		if found {
			text += "m"
		}
		return text
	case int64:
		return formatSize(v)
	}
	return f.def
}

// decoder reads a YAML tree strictly and collects every mistake.
type decoder struct {
	file     string
	env      func(string) (string, bool)
	at       map[string]*yaml.Node    // the value of each path that was read
	flagOf   func(path string) string // the flag that a key was made of; nil: a file has the keys
	doc      yaml.Node                // the document, with its comments
	hidden   map[*yaml.Node]string    // what is printed instead of a value
	problems []Problem
}

// maxProblems bounds the mistakes that are told.
const maxProblems = 200

// full says whether no more mistakes are told, so that nothing more is looked for.
func (d *decoder) full() bool { return len(d.problems) >= maxProblems }

// parseYAML gives the root mapping of the one document in source; nil if there
// is none, or if its aliases stand for too much.
func (d *decoder) parseYAML(source []byte) *yaml.Node {
	if d.refuseControls(source) {
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(source))
	if err != nil {
		d.problems = append(d.problems, Problem{File: d.file, Text: err.Error()})
		return nil
	}
	var second yaml.Node
	doc := &d.doc
	err = loader.Load(doc)
	var syntax *yaml.LoadError
	switch {
	case errors.Is(err, io.EOF):
		d.problems = append(d.problems, Problem{File: d.file, Line: 1, Column: 1, Text: "the file is empty, or all of it is comments; remove the # before the lines that you need, or begin with `ambassador print config` or `ambassador forward … --print-config`"})
		return nil
	case errors.As(err, &syntax):
		d.problems = append(d.problems, d.noYAML(source, syntax))
		return nil
	case err != nil:
		d.problems = append(d.problems, Problem{File: d.file, Line: 1, Column: 1, Text: err.Error()})
		return nil
	}
	if err := loader.Load(&second); !errors.Is(err, io.EOF) {
		d.fail(&second, "", "a second document; a configuration is one document: remove the line ---")
	}
	if len(doc.Content) == 0 || !d.weighAliases(doc.Content[0]) {
		return nil
	}
	return resolveAlias(doc.Content[0])
}

// refuseControls says whether source has a character that changes how it is shown, which
// YAML allows: a control, a line separator, or a change of direction. The configuration
// is printed as it was written.
func (d *decoder) refuseControls(source []byte) bool {
	line, column := 1, 0
	for _, r := range string(source) {
		column++
		switch {
		case r == '\n':
			line, column = line+1, 0
		case r == '\t' || r == '\r':
		case unicode.IsControl(r), r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			d.fail(&yaml.Node{Line: line, Column: column}, "", "the character %U, which cannot be seen; remove it, or write it in double quotes as \"\\u%04x\"", r, r)
			return true
		}
	}
	return false
}

// noYAML is the mistake of a text that cannot be read as YAML.
func (d *decoder) noYAML(source []byte, syntax *yaml.LoadError) Problem {
	lines := bytes.Split(bytes.TrimRight(source, "\n"), []byte("\n"))
	line := min(max(syntax.Mark.Line, 1), len(lines))
	text := "no YAML: " + syntax.Message
	indent := lines[line-1][:len(lines[line-1])-len(bytes.TrimLeft(lines[line-1], " \t"))]
	if bytes.Contains(indent, []byte("\t")) {
		text += "; indent with spaces: this line has a tab"
	}
	return Problem{File: d.file, Line: line, Column: max(syntax.Mark.Column, 1), Text: text}
}

func resolveAlias(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}

// fail notes a mistake at a node.
func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	if d.full() {
		return
	}
	p := Problem{File: d.file, Path: clip(path, 200), Text: clip(fmt.Sprintf(format, args...), 2000)}
	if n != nil {
		p.Line, p.Column = max(n.Line, 1), max(n.Column, 1)
	}
	d.problems = append(d.problems, p)
}

// failAt notes a mistake at a path that was read, or at the nearest above it.
func (d *decoder) failAt(path, format string, args ...any) {
	for at := path; ; {
		if n := d.at[at]; n != nil {
			d.fail(n, path, format, args...)
			return
		}
		i := strings.LastIndexAny(at, ".[")
		if i < 0 {
			d.fail(d.at[""], path, format, args...)
			return
		}
		at = at[:i]
	}
}

// clip takes the middle out of a text of more bytes than most: the end of a mistake is
// its fix.
func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most/2], "") + "…" + strings.ToValidUTF8(s[len(s)-most/2:], "")
}

// ErrorOf is nil, or a *Error with the problems in the file's order.
func ErrorOf(problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	err := &Error{problems}
	err.sort()
	return err
}

func (e *Error) sort() {
	slices.SortStableFunc(e.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// mapping calls each with every key of a mapping, once.
func (d *decoder) mapping(n *yaml.Node, path string, each func(key, value *yaml.Node, path string)) {
	n = resolveAlias(n)
	d.at[path] = n
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "%s where a section is needed; write keys below it", describe(n))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content) && !d.full(); i += 2 {
		key, value := resolveAlias(n.Content[i]), n.Content[i+1]
		at := joinPath(path, key.Value)
		if seen[key.Value] {
			d.fail(key, at, "given twice; remove one")
			continue
		}
		seen[key.Value] = true
		each(key, value, at)
	}
}

func joinPath(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// section reads a mapping with known keys.
func (d *decoder) section(n *yaml.Node, path string, fields []field) {
	d.mapping(n, path, func(key, value *yaml.Node, at string) {
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key.Value })
		if i < 0 {
			d.fail(key, at, "unknown key; %s", suggestKey(key.Value, fields))
			return
		}
		value = resolveAlias(value)
		d.at[at] = value
		fields[i].decode(d, value, at)
	})
}

// suggestKey suggests a key that was probably meant.
func suggestKey(key string, fields []field) string {
	var all []string
	best, least := "", 3
	for _, f := range fields {
		all = append(all, f.key)
		if len(key) >= len(f.key)+least { // so much would have to be taken away
			continue
		}
		if d := output.Distance(key, f.key); d < least {
			best, least = f.key, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return "there are " + strings.Join(all, ", ")
}

// named reads a mapping of sections whose names are the user's.
func (d *decoder) named(n *yaml.Node, path string, each func(name string, value *yaml.Node, path string)) {
	d.mapping(n, path, func(key, value *yaml.Node, at string) {
		if !namePattern.MatchString(key.Value) {
			d.fail(key, at, "%q is no name; use at most 63 of a-z, 0-9, - and _", key.Value)
			return
		}
		each(key.Value, value, at)
	})
}

var namePattern = regexp.MustCompile(`^[a-z0-9_-]{1,63}$`)

// scalar is the text of a value, its variables expanded. False: it was a
// mistake, and is noted.
func (d *decoder) scalar(n *yaml.Node, path, kind string) (string, bool) {
	n = resolveAlias(n)
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		d.fail(n, path, "%s where %s is needed", describe(n), kind)
		return "", false
	}
	text, err := expand(n.Value, d.env)
	if err != nil {
		d.fail(n, path, "%v", err)
		return "", false
	}
	return text, true
}

func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a section"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	}
	return strconv.Quote(n.Value)
}

var variablePattern = regexp.MustCompile(`\$?\$\{([^}]*)\}`)

// expand replaces ${NAME} by the variable's value, and $${ by ${.
func expand(s string, env func(string) (string, bool)) (string, error) {
	var missing error
	out := variablePattern.ReplaceAllStringFunc(s, func(m string) string {
		if rest, literal := strings.CutPrefix(m, "$$"); literal {
			return "$" + rest
		}
		name := m[2 : len(m)-1]
		value, ok := env(name)
		if !ok && missing == nil {
			missing = fmt.Errorf("the environment has no variable %s; set it, or write $${ for a literal ${", name)
		}
		return value
	})
	return out, missing
}

// schemaWith gives a schema of these keys and values.
func schemaWith(pairs ...any) func() map[string]any {
	return func() map[string]any {
		m := map[string]any{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i].(string)] = pairs[i+1]
		}
		return m
	}
}

// The kinds of field. Check, where there is one, says what is wrong with a
// value, and how to fix it.

func textField(key, doc string, to *string, check func(string) error) field {
	return field{key: key, doc: doc, to: to, schema: schemaWith("type", "string"), decode: func(d *decoder, n *yaml.Node, path string) {
		s, ok := d.scalar(n, path, "a text")
		if !ok {
			return
		}
		if check != nil {
			if err := check(s); err != nil {
				d.fail(n, path, "%v", err)
				return
			}
		}
		*to = s
	}}
}

func enumField(key, doc string, to *string, values ...string) field {
	f := textField(key, doc, to, func(s string) error {
		if slices.Contains(values, s) {
			return nil
		}
		return fmt.Errorf("%q is none of %s", s, strings.Join(values, ", "))
	})
	f.schema = schemaWith("enum", values)
	return f
}

func boolField(key, doc string, to *bool) field {
	return field{key: key, doc: doc, to: to, schema: schemaWith("type", "boolean"), decode: func(d *decoder, n *yaml.Node, path string) {
		s, ok := d.scalar(n, path, "true or false")
		switch {
		case !ok:
		case s == "true" || s == "false":
			*to = s == "true"
		default:
			d.fail(n, path, "%q is neither true nor false", s)
		}
	}}
}

// durationField is a duration of Go's form, at least least.
func durationField(key, doc string, to *time.Duration, least time.Duration) field {
	schema := schemaWith("type", []string{"string", "integer"}, "pattern", `^(0|([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+|.*\$\{.*)$`)
	return field{key: key, doc: doc, to: to, schema: schema, decode: func(d *decoder, n *yaml.Node, path string) {
		s, ok := d.scalar(n, path, "a duration")
		if !ok {
			return
		}
		v, err := time.ParseDuration(s)
		switch {
		case err != nil:
			d.fail(n, path, "%q is no duration; write one like 500ms, 10s or 1h30m", s)
		case v < least:
			d.fail(n, path, "%s is too short; the least is %s", s, least)
		default:
			*to = v
		}
	}}
}

// sizes are the units of a size.
var sizes = []struct {
	unit  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}}

// parseSize reads a number of bytes: "512KiB", "64MiB", "1048576".
func parseSize(s string) (int64, error) {
	number, unit := s, int64(1)
	for _, u := range sizes {
		if n, ok := strings.CutSuffix(s, u.unit); ok {
			number, unit = n, u.bytes
			break
		}
	}
	v, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	if err != nil || v < 0 || v > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is no size; write one like 512KiB, 64MiB or 1GiB", s)
	}
	return v * unit, nil
}

// formatSize is what parseSize reads, in the largest unit that is exact.
func formatSize(v int64) string {
	for _, u := range []int{2, 1, 0} {
		if v >= sizes[u].bytes && v%sizes[u].bytes == 0 {
			return strconv.FormatInt(v/sizes[u].bytes, 10) + sizes[u].unit
		}
	}
	return strconv.FormatInt(v, 10)
}

// sizeField is a number of bytes.
func sizeField(key, doc string, to *int64, least, most int64) field {
	schema := schemaWith("type", []string{"string", "integer"}, "pattern", `^([0-9]+ ?(B|KiB|MiB|GiB)?|.*\$\{.*)$`)
	return field{key: key, doc: doc, to: to, schema: schema, decode: func(d *decoder, n *yaml.Node, path string) {
		s, ok := d.scalar(n, path, "a size")
		if !ok {
			return
		}
		v, err := parseSize(s)
		switch {
		case err != nil:
			d.fail(n, path, "%s", err)
		case v < least || v > most:
			d.fail(n, path, "%s is not from %s to %s", s, formatSize(least), formatSize(most))
		default:
			*to = v
		}
	}}
}

func intField(key, doc string, to *int, least, most int) field {
	schema := schemaWith("type", []string{"integer", "string"}, "minimum", least, "maximum", most, "pattern", `^([0-9]+|.*\$\{.*)$`)
	return field{key: key, doc: doc, to: to, schema: schema, decode: func(d *decoder, n *yaml.Node, path string) {
		s, ok := d.scalar(n, path, "a number")
		if !ok {
			return
		}
		v, err := strconv.Atoi(s)
		if err != nil || v < least || v > most {
			d.fail(n, path, "%q is no whole number from %d to %d", s, least, most)
			return
		}
		*to = v
	}}
}

// shareField is a part of a whole, from 0 to 1.
func shareField(key, doc string, to *float64) field {
	schema := schemaWith("type", []string{"number", "string"}, "minimum", 0, "maximum", 1, "pattern", `^([01]|1\.0+|0?\.[0-9]+|.*\$\{.*)$`)
	return field{key: key, doc: doc, to: to, schema: schema, decode: func(d *decoder, n *yaml.Node, path string) {
		s, ok := d.scalar(n, path, "a number")
		if !ok {
			return
		}
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || !(v >= 0 && v <= 1) { // not NaN
			d.fail(n, path, "%q is no number from 0 to 1; 0.01 is one in a hundred", s)
			return
		}
		*to = v
	}}
}

// listField is a list of texts; a single text stands for a list of one.
func listField(key, doc string, to *[]string, check func(string) error) field {
	schema := schemaWith("type", "array", "items", map[string]any{"type": "string"})
	return field{key: key, doc: doc, schema: schema, decode: func(d *decoder, n *yaml.Node, path string) {
		if n.Kind != yaml.SequenceNode {
			d.fail(n, path, "%s where a list is needed; write it in [brackets]", describe(n))
			return
		}
		for i, item := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			item = resolveAlias(item)
			d.at[at] = item
			s, ok := d.scalar(item, at, "a text")
			if !ok {
				continue
			}
			if check != nil {
				if err := check(s); err != nil {
					d.fail(item, at, "%v", err)
				}
			}
			*to = append(*to, s)
		}
	}}
}

// severalField is a text, or a list of them that is not empty. Item is the schema of
// one.
func severalField(key, doc string, item map[string]any, to *[]string, check func(string) error) field {
	list := listField(key, doc, to, check)
	schema := func() map[string]any {
		return map[string]any{"anyOf": []any{item, map[string]any{"type": "array", "items": item, "minItems": 1}}}
	}
	return field{key: key, doc: doc, schema: schema, decode: func(d *decoder, n *yaml.Node, path string) {
		if n.Kind != yaml.SequenceNode {
			var one string
			textField(key, doc, &one, check).decode(d, n, path)
			*to = append(*to, one)
			return
		}
		if len(n.Content) == 0 {
			d.fail(n, path, "empty; give at least one, or remove it")
		}
		list.decode(d, n, path)
	}}
}

func sectionField(key, doc string, fields []field) field {
	return field{key: key, doc: doc, schema: func() map[string]any { return sectionSchema(fields) }, decode: func(d *decoder, n *yaml.Node, path string) { d.section(n, path, fields) }}
}

// namedField is a mapping of sections whose names are the user's. Item gives the
// fields of a new one.
func namedField(key, doc string, item func(name string) []field) field {
	schema := func() map[string]any {
		return map[string]any{"type": "object", "propertyNames": map[string]any{"pattern": namePattern.String()},
			"additionalProperties": sectionSchema(item(""))} // no section has an empty name
	}
	return field{key: key, doc: doc, schema: schema, decode: func(d *decoder, n *yaml.Node, path string) {
		d.named(n, path, func(name string, value *yaml.Node, at string) { d.section(value, at, item(name)) })
	}}
}
