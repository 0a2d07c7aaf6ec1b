package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v4"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4/outcome"
	"ambassador/l4/starttls"
)

// The manual must name everything that a user can encounter. This file lists those
// things from the code, and asserts that the manual documents each. It also generates
// the configuration reference, and tries the examples in the documents.

var updateDocs = flag.Bool("update-docs", false, "write the generated part of docs/configuration.md")

func chapter(t *testing.T, name string) string {
	t.Helper()
	text, ok := manual(name)
	if !ok {
		t.Fatalf("no topic %q", name)
	}
	return text
}

// mustHave asserts that a chapter contains the pattern for each of the names.
func mustHave(t *testing.T, chapterName, what, pattern string, names []string) {
	t.Helper()
	if len(names) == 0 {
		t.Errorf("no %s at all: the test looks in the wrong place", what)
	}
	text := chapter(t, chapterName)
	for _, name := range names {
		if !regexp.MustCompile(fmt.Sprintf(pattern, regexp.QuoteMeta(name))).MatchString(text) {
			t.Errorf("docs/%s.md does not document the %s %s: it has no match of %s", chapterName, what, name, fmt.Sprintf(pattern, name))
		}
	}
}

// rowFor matches a table row that begins with a name.
const rowFor = "(?m)^\\| `%s`"

func TestTopicsAreTheFiles(t *testing.T) {
	files, err := manualFiles.ReadDir("docs")
	if err != nil {
		t.Fatal(err)
	}
	var have, want []string
	for _, f := range files {
		have = append(have, strings.TrimSuffix(f.Name(), ".md"))
	}
	for _, topic := range topics() {
		want = append(want, topic.name)
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("topics() and the files of docs differ: %s", diff)
	}
}

func TestReasonsAreDocumented(t *testing.T) {
	sections := map[string]string{}
	reasons, _, _ := strings.Cut(chapter(t, "troubleshooting"), "\n## By error message")
	for _, part := range strings.Split(reasons, "\n#### `")[1:] {
		name, text, _ := strings.Cut(part, "`")
		sections[name], _, _ = strings.Cut(text, "\n### ")
	}
	for _, r := range outcome.Reasons() {
		cause, fix, ok := strings.Cut(sections[string(r)], "**Fix:**")
		if !ok || len(strings.TrimSpace(cause)) < 10 || len(strings.TrimSpace(fix)) < 10 {
			t.Errorf("docs/troubleshooting.md does not document the reason %s: it needs #### `%s`, a cause and a **Fix:**", r, r)
		}
		delete(sections, string(r))
	}
	for name := range sections {
		t.Errorf("docs/troubleshooting.md documents %s, which is no reason", name)
	}
	for _, s := range []outcome.Stage{outcome.StageAccept, outcome.StageAdmit, outcome.StageGreet, outcome.StageRoute, outcome.StagePermit, outcome.StageDial, outcome.StageProxy,
		outcome.StageStartTLS, outcome.StageTLS, outcome.StageAnswer, outcome.StageDialogue, outcome.StageRelay} {
		if !strings.Contains(reasons, "`"+string(s)+"`") {
			t.Errorf("docs/troubleshooting.md does not document the stage %s", s)
		}
	}
}

func TestProtocolsAreDocumented(t *testing.T) {
	mustHave(t, "starttls", "STARTTLS protocol", "(?m)^\\| [^|]+ \\| `%s` \\|", starttls.Names())
	for _, name := range starttls.AcceptNames() {
		if !strings.Contains(chapter(t, "identities"), "`starttls: "+name+"` of a listener") {
			t.Errorf("docs/identities.md does not document starttls: %s of a listener", name)
		}
	}
}

func TestRuleKeysAreDocumented(t *testing.T) {
	var keys []string
	for _, k := range allKeys(t) {
		if key, ok := strings.CutPrefix(k.path, "listeners.NAME.rules[]."); ok {
			keys = append(keys, key)
		}
	}
	mustHave(t, "egress", "rule key", rowFor, keys)
	mustHave(t, "egress", "key of a context", "`%s=", []string{"attempts", "timeout", "no_preconnect", "tag"})
}

func TestCommandsAreDocumented(t *testing.T) {
	var names []string
	for _, c := range (&app{}).rootCommand().Commands() {
		if !c.Hidden {
			names = append(names, c.CommandPath())
		}
	}
	mustHave(t, "operations", "command", rowFor, names)
}

func TestMetricsAreDocumented(t *testing.T) {
	all := metricsInSource(t)
	mustHave(t, "operations", "metric", "(?m)^\\| `%s", all)
	var names []string
	for _, d := range all {
		name, _, _ := strings.Cut(d, "{")
		names = append(names, name)
	}
	for _, topic := range topics() {
		for _, name := range regexp.MustCompile(`\bambassador_[a-z_]+`).FindAllString(chapter(t, topic.name), -1) {
			if !slices.Contains(names, name) {
				t.Errorf("docs/%s.md has %s, which is no metric", topic.name, name)
			}
		}
	}
}

// eachSource calls do with every source file of the binary.
func eachSource(t *testing.T, do func(*ast.File)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err == nil {
			do(file)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// textOf is the value of a string expression.
func textOf(e ast.Node) (string, bool) {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(literal.Value)
	return text, err == nil
}

// metricsInSource returns the metrics as NAME{LABEL,…}, from the calls that create them
// with name, help and labels. A metric that is created in another way has only its
// name.
func metricsInSource(t *testing.T) []string {
	t.Helper()
	found := map[string]string{}
	name := regexp.MustCompile(`^ambassador_[a-z_]+$`)
	eachSource(t, func(file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			if text, ok := textOf(n); ok && name.MatchString(text) && found[text] == "" {
				found[text] = text
			}
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			metric, ok := textOf(call.Args[0])
			if !ok || !name.MatchString(metric) {
				return true
			}
			var labels []string
			for _, arg := range call.Args[2:] {
				if label, ok := textOf(arg); ok {
					labels = append(labels, label)
				}
			}
			if len(labels) > 0 {
				found[metric] = metric + "{" + strings.Join(labels, ",") + "}"
			}
			return true
		})
	})
	return slices.Sorted(maps.Values(found))
}

// TestAdminPathsAreDocumented takes the paths from the source of the server and of the
// commands.
func TestAdminPathsAreDocumented(t *testing.T) {
	found := map[string]bool{}
	adminPath := regexp.MustCompile(`^/(livez|readyz|metrics|v1/[a-z/{}]+[a-z}])$`)
	eachSource(t, func(file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			if text, ok := textOf(n); ok && adminPath.MatchString(text) {
				found[text] = true
			}
			return true
		})
	})
	mustHave(t, "operations", "path", "(?m)^\\| `(?:GET|POST) %s`", slices.Sorted(maps.Keys(found)))
	if len(found) < 10 {
		t.Errorf("%d paths in the source: the test looks in the wrong place", len(found))
	}
}

// The table of the fields has each field, in the order of the record, with its type.
func TestFieldsOfRecordsAreDocumented(t *testing.T) {
	_, table, _ := strings.Cut(chapter(t, "operations"), "\n| key | type | meaning |\n|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) \\| \\S.* \\|$").FindAllStringSubmatch(table, -1)
	var got, want []string
	for _, row := range rows {
		got = append(got, row[1]+" "+row[2])
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[outcome.Record]()) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			want = append(want, name+" "+typeInJSON(f.Type))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the table of fields in docs/operations.md: %s", diff)
	}
}

// typeInJSON is what a field of a record is in JSON.
func typeInJSON(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[outcome.Seconds]():
		return "seconds"
	case t == reflect.TypeFor[time.Time]():
		return "time"
	case t.Kind() == reflect.String, t.Kind() == reflect.Array: // an array is an id, in hexadecimal
		return "text"
	case t.Kind() == reflect.Bool:
		return "true" // false is left out
	}
	return "number"
}

// The configuration reference.

// keyDoc is one key of the configuration.
type keyDoc struct {
	path    string // "upstreams.NAME.tls.ca"
	kind    string // the type in words
	byItem  bool   // a list whose items have keys themselves
	text    string
	without string // what applies if the key is not set
	keys    []keyDoc
}

// required are the keys that their section must have.
var required = []string{
	"identities.NAME.step.url", "identities.NAME.step.fingerprint", "identities.NAME.step.names",
	"identities.NAME.spiffe.socket", "listeners", "listeners.NAME.listen", "listeners.NAME.proxy_protocol.from", "upstreams",
	"upstreams.NAME.health.http.port",
}

func TestConfigurationReference(t *testing.T) {
	const (
		file  = "docs/configuration.md"
		begin = "<!-- generated: go test ./cmd/ambassador -run TestConfigurationReference -update-docs -->\n"
		end   = "<!-- end of the generated part -->\n"
	)
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(have), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no generated part, from %q to %q", file, begin, end)
	}
	examples := exampleKeys(t)
	var b strings.Builder
	for _, k := range configKeys(t) {
		writeSection(&b, k, examples)
	}
	want := before + begin + b.String() + "\n" + end + after
	if *updateDocs {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(have)); diff != "" {
		t.Errorf("%s is not current; run go test ./cmd/ambassador -run TestConfigurationReference -update-docs\n%s", file, diff)
	}
}

// TestKeysThatAreRequired removes each required key from the catalogue of keys, and
// expects an error.
func TestKeysThatAreRequired(t *testing.T) {
	text, err := os.ReadFile("docs/keys.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range required {
		var doc yaml.Node
		if err := yaml.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		if !removeKey(doc.Content[0], strings.Split(strings.ReplaceAll(path, "[]", ".[]"), ".")) {
			t.Errorf("docs/keys.yaml has no %s", path)
			continue
		}
		without, err := yaml.Marshal(&doc)
		if err != nil {
			t.Fatal(err)
		}
		if loads(t, without) == nil {
			t.Errorf("%s is not required", path)
		}
	}
}

// loads returns the error of a configuration text. It does not read the files that the
// text names.
func loads(t *testing.T, text []byte) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ambassador.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	errs := &strings.Builder{}
	if code := run(t.Context(), []string{"run", "-c", path, "--print-config"}, strings.NewReader(""), io.Discard, errs); code != 0 {
		return errors.New(errs.String())
	}
	return nil
}

// removeKey removes the first key at a path from a tree, and reports whether there was
// one. NAME stands for any key, [] for any item.
func removeKey(n *yaml.Node, path []string) bool {
	step := 2 // keys and their values
	if n.Kind == yaml.SequenceNode {
		step = 1
	}
	for i := 0; i+step-1 < len(n.Content); i += step {
		fits := path[0] == "NAME" && step == 2 || path[0] == "[]" && step == 1 || path[0] == n.Content[i].Value
		switch {
		case !fits:
		case len(path) == 1:
			n.Content = slices.Delete(n.Content, i, i+step)
			return true
		case removeKey(n.Content[i+step-1], path[1:]):
			return true
		}
	}
	return false
}

// configKeys returns the keys of the file, from the schema.
func configKeys(t *testing.T) []keyDoc {
	t.Helper()
	out, errs := &strings.Builder{}, &strings.Builder{}
	if code := run(t.Context(), []string{"schema"}, strings.NewReader(""), out, errs); code != 0 {
		t.Fatalf("schema: exit code %d: %s", code, errs)
	}
	var schema map[string]any
	if err := json.Unmarshal([]byte(out.String()), &schema); err != nil {
		t.Fatal(err)
	}
	return keysOf("", schema)
}

// allKeys returns the keys at all depths.
func allKeys(t *testing.T) (out []keyDoc) {
	t.Helper()
	var walk func([]keyDoc)
	walk = func(keys []keyDoc) {
		for _, k := range keys {
			out = append(out, k)
			walk(k.keys)
		}
	}
	walk(configKeys(t))
	return out
}

func keysOf(at string, section map[string]any) (out []keyDoc) {
	properties, _ := section["properties"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		p := properties[name].(map[string]any)
		k := keyDoc{path: below(at, name), kind: kindOf(p)}
		k.text, k.without = splitDefault(p)
		within := k.path
		for _, inner := range sectionsOf(p) {
			k.byItem = k.byItem || p["type"] == "array"
			if _, named := p["additionalProperties"].(map[string]any); named {
				within += ".NAME"
			} else if k.byItem {
				within += "[]"
			}
			k.keys = append(k.keys, keysOf(within, inner)...)
		}
		switch {
		case slices.Contains(required, k.path):
			k.without = "Required."
		case k.without == "" && k.kind == "true or false":
			k.without = "Default false."
		}
		out = append(out, k)
	}
	return out
}

// below is the path of a key in the section at; a key of the file itself has no prefix.
func below(at, key string) string { return strings.TrimPrefix(at+"."+key, ".") }

// sectionsOf returns the schemas with keys of a value, or of its items.
func sectionsOf(p map[string]any) (out []map[string]any) {
	if named, ok := p["additionalProperties"].(map[string]any); ok {
		return []map[string]any{named}
	}
	if p["properties"] != nil {
		return []map[string]any{p}
	}
	items, _ := p["items"].(map[string]any)
	if items["properties"] != nil {
		return []map[string]any{items}
	}
	choices, _ := items["anyOf"].([]any)
	own, _ := p["anyOf"].([]any)
	for _, c := range append(choices, own...) {
		if c := c.(map[string]any); c["properties"] != nil {
			out = append(out, c)
		}
	}
	return out
}

// kindOf describes the type of a value.
func kindOf(p map[string]any) string {
	pattern, _ := p["pattern"].(string)
	switch {
	case p["enum"] != nil:
		var all []string
		for _, v := range p["enum"].([]any) {
			all = append(all, "`"+fmt.Sprint(v)+"`")
		}
		return "one of " + strings.Join(all, ", ")
	case p["anyOf"] != nil && len(sectionsOf(p)) > 0:
		return kindOf(p["anyOf"].([]any)[0].(map[string]any)) + " or section"
	case p["anyOf"] != nil:
		return "one or a list"
	case p["type"] == "array":
		return "list"
	case p["type"] == "object":
		return "section"
	case p["type"] == "boolean":
		return "true or false"
	case strings.Contains(pattern, "µs"):
		return "duration"
	case strings.Contains(pattern, "KiB"):
		return "size"
	case p["maximum"] == nil:
		return "text"
	}
	low, high := p["minimum"].(float64), p["maximum"].(float64)
	if high >= 1<<30 {
		return fmt.Sprintf("number, %.0f or more", low)
	}
	return fmt.Sprintf("number, %.0f to %.0f", low, high)
}

var defaultSentence = regexp.MustCompile(` ?\bDefault:? (.*?)\.( |$)`)

// splitDefault removes the sentence about the default from a description.
func splitDefault(p map[string]any) (text, without string) {
	text, _ = p["description"].(string)
	found := defaultSentence.FindStringIndex(text)
	if found == nil {
		return text, ""
	}
	without = strings.TrimSpace(text[found[0]:found[1]])
	return strings.TrimSpace(text[:found[0]] + " " + text[found[1]:]), without
}

// writeSection writes a section with its keys, and then the sections below it.
func writeSection(b *strings.Builder, k keyDoc, examples map[string]string) {
	fmt.Fprintf(b, "\n### `%s`\n\n%s\n", headOf(k), sentence(k))
	if len(k.keys) > 0 {
		b.WriteString("\n")
	}
	for _, key := range k.keys {
		if key.kind == "section" && len(key.keys) > 0 {
			fmt.Fprintf(b, "- `%s`: section, see below.\n", lastOf(key.path))
			continue
		}
		fmt.Fprintf(b, "- `%s`: %s. %s\n", lastOf(key.path), key.kind, sentence(key))
		if example := examples[key.path]; example != "" {
			fmt.Fprintf(b, "  Example: `%s`\n", example)
		}
	}
	for _, key := range k.keys {
		if len(key.keys) > 0 {
			writeSection(b, key, examples)
		}
	}
}

// headOf is the common path of the keys of a section.
func headOf(k keyDoc) string {
	if len(k.keys) == 0 {
		return k.path
	}
	return strings.TrimSuffix(k.keys[0].path, "."+lastOf(k.keys[0].path))
}

func lastOf(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

// sentence says what a key does, and what applies if it is not set.
func sentence(k keyDoc) string { return strings.TrimSpace(k.text + " " + k.without) }

// exampleKeys returns the values of docs/keys.yaml by path, as YAML in one line.
func exampleKeys(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("docs/keys.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	collectExamples(t, out, "", doc.Content[0])
	return out
}

func collectExamples(t *testing.T, out map[string]string, at string, n *yaml.Node) {
	t.Helper()
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			path := below(at, key.Value)
			switch at {
			case "identities", "upstreams", "listeners":
				path = at + ".NAME"
			}
			if out[path] == "" && value.Kind != yaml.MappingNode {
				out[path] = oneLine(t, key, value)
			}
			collectExamples(t, out, path, value)
		}
	case yaml.SequenceNode:
		for _, item := range n.Content {
			collectExamples(t, out, at+"[]", item)
		}
	}
}

// oneLine returns a key with its value in flow style. It returns nothing for a list of
// rules.
func oneLine(t *testing.T, key, value *yaml.Node) string {
	t.Helper()
	if value.Kind == yaml.SequenceNode && value.Style&yaml.FlowStyle == 0 {
		return ""
	}
	b, err := yaml.Marshal(&yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{key, value}})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// TestEveryKeyHasAnExample also asserts that the catalogue of keys is a valid file.
func TestEveryKeyHasAnExample(t *testing.T) {
	text, err := os.ReadFile("docs/keys.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := loads(t, text); err != nil {
		t.Error(err)
	}
	examples := exampleKeys(t)
	for _, k := range allKeys(t) {
		if len(k.keys) == 0 && examples[k.path] == "" {
			t.Errorf("docs/keys.yaml has no %s", k.path)
		}
	}
}

// The examples in the documents.

// documents returns the manual and the README, by path relative to this folder.
func documents(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	paths, _ := filepath.Glob("docs/*.md")
	for _, path := range append(paths, "../../README.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out[path] = string(text)
	}
	return out
}

// blocks returns the fenced code blocks of a document in a language; "" selects blocks
// without a language.
func blocks(text, language string) (out []string) {
	for _, found := range regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		if found[1] == language {
			out = append(out, found[2])
		}
	}
	return out
}

func TestExamplesOfTheManualLoad(t *testing.T) {
	n := 0
	for path, text := range documents(t) {
		for _, block := range blocks(text, "yaml") {
			if !strings.Contains(block, "listeners:") {
				block += "\nlisteners: {l: {listen: \"127.0.0.1:0\", upstream: u}}\nupstreams: {u: {endpoints: [\"h:1\"]}}\n"
			} else if !strings.Contains(block, "upstreams:") {
				block += "\nupstreams: {u: {endpoints: [\"h:1\"]}}\n"
			}
			if err := loads(t, []byte(block)); err != nil {
				t.Errorf("%s: %v\nin\n%s", path, err, block)
			}
			n++
		}
	}
	if n < 5 {
		t.Errorf("%d examples: the test looks in the wrong place", n)
	}
}

// TestCommandLinesOfTheManual asserts that the command and the flags of each command
// line exist.
func TestCommandLinesOfTheManual(t *testing.T) {
	root, n := (&app{}).rootCommand(), 0
	for path, text := range documents(t) {
		for _, block := range blocks(text, "") {
			for line := range strings.SplitSeq(strings.ReplaceAll(block, "\\\n", " "), "\n") {
				words, ok := strings.CutPrefix(strings.TrimPrefix(line, "$ "), "ambassador ")
				if !ok {
					continue
				}
				n++
				if err := checkLine(root, strings.Fields(words)); err != nil {
					t.Errorf("%s: %s: %v", path, line, err)
				}
			}
		}
	}
	if n < 15 {
		t.Errorf("%d command lines: the test looks in the wrong place", n)
	}
}

func checkLine(root *cobra.Command, words []string) error {
	cmd, _, err := root.Find(words)
	switch {
	case err != nil:
		return err
	case cmd == root:
		return errors.New("no such command")
	}
	cmd.InitDefaultHelpFlag()
	for _, w := range words {
		if w == "--" || w == ">" || w == "&&" || strings.HasPrefix(w, "#") {
			return nil
		}
		if name, ok := strings.CutPrefix(w, "--"); ok && cmd.Flags().Lookup(name) == nil {
			return fmt.Errorf("%s has no flag %s", cmd.CommandPath(), w)
		}
		if name, ok := strings.CutPrefix(w, "-"); ok && len(name) == 1 && cmd.Flags().ShorthandLookup(name) == nil {
			return fmt.Errorf("%s has no flag %s", cmd.CommandPath(), w)
		}
	}
	return nil
}

func TestLinksOfTheManual(t *testing.T) {
	for from, text := range documents(t) {
		for _, found := range regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`).FindAllStringSubmatch(text, -1) {
			if strings.Contains(found[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(from), found[1])); err != nil {
				t.Errorf("%s: broken link: %v", from, err)
			}
		}
		for _, found := range regexp.MustCompile("`ambassador help (\\w+)`").FindAllStringSubmatch(text, -1) {
			if _, ok := manual(found[1]); !ok && found[1] != "TOPIC" {
				t.Errorf("%s: ambassador help %s: no such topic", from, found[1])
			}
		}
	}
}

// TestReadme asserts that the README is short and has the two commands of a first try,
// and that the files named in its recipes exist.
func TestReadme(t *testing.T) {
	text := documents(t)["../../README.md"]
	if n := strings.Count(text, "\n"); n > 200 {
		t.Errorf("README.md has %d lines; the most is 200: move text into docs", n)
	}
	for _, want := range []string{"go run ./cmd/ambassador demo\n", "`integration/test`"} {
		if !strings.Contains(text, want) {
			t.Errorf("README.md does not have %q", want)
		}
	}
	for _, topic := range topics() {
		if !strings.Contains(text, "(cmd/ambassador/docs/"+topic.name+".md)") {
			t.Errorf("README.md does not lead to the topic %s", topic.name)
		}
	}
	_, recipes, ok := strings.Cut(text, "\n## Change it\n")
	if !ok {
		t.Fatal("README.md has no section Change it")
	}
	all := regexp.MustCompile("`((?:cmd|l4|policy|certs|integration)/[\\w./-]+)`").FindAllStringSubmatch(recipes, -1)
	if len(all) < 10 {
		t.Errorf("%d files are named in the recipes: the test looks in the wrong place", len(all))
	}
	for _, found := range all {
		if strings.Contains(found[1], "NAME") {
			continue
		}
		if _, err := os.Stat(path.Join("../..", found[1])); err != nil {
			t.Errorf("README.md, Change it: %v", err)
		}
	}
	for _, found := range regexp.MustCompile(`\bTest\w+`).FindAllString(recipes, -1) {
		if !testExists(t, found) {
			t.Errorf("README.md, Change it: there is no %s", found)
		}
	}
}

// testExists reports whether the repository has a test with that name.
func testExists(t *testing.T, name string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != "../..":
			return filepath.SkipDir
		case found || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		found = strings.Contains(string(text), "\nfunc "+name+"(")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Help, the man page, and completion.

func TestHelpTopics(t *testing.T) {
	for _, topic := range topics() {
		out, errs := &strings.Builder{}, &strings.Builder{}
		if code := run(t.Context(), []string{"help", topic.name}, strings.NewReader(""), out, errs); code != 0 || out.String() != chapter(t, topic.name) {
			t.Errorf("help %s: exit code %d, %d bytes", topic.name, code, len(out.String()))
		}
		for _, line := range strings.Split(out.String(), "\n") {
			if strings.Contains(line, "@@") {
				t.Errorf("docs/%s.md has a gap: %s", topic.name, line)
			}
		}
	}
	out := &strings.Builder{}
	run(t.Context(), []string{"help"}, strings.NewReader(""), out, &strings.Builder{})
	if !strings.Contains(out.String(), topicList()) {
		t.Errorf("help does not list the topics:\n%s", out)
	}
	out = &strings.Builder{}
	run(t.Context(), []string{"help", "status"}, strings.NewReader(""), out, &strings.Builder{})
	if strings.Contains(out.String(), "Topics of the manual") {
		t.Errorf("the help of a command lists the topics:\n%s", out)
	}
}

// TestManPage asserts that the page has every command and flag, and no line that roff
// would mistake for a request.
func TestManPage(t *testing.T) {
	root := (&app{}).rootCommand()
	page := manPage(root)
	kube, _, _ := root.Find([]string{"kube", "inject"})
	for _, c := range append(root.Commands(), kube) {
		if !strings.Contains(page, "\n.SS "+escapeRoff(strings.TrimPrefix(c.CommandPath(), "ambassador "))) {
			t.Errorf("the man page has no %s", c.Name())
		}
		c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(page, escapeRoff("--"+f.Name)) {
				t.Errorf("the man page has no --%s of %s", f.Name, c.Name())
			}
		})
	}
	requests := regexp.MustCompile(`^\.(TH|SH|SS|TP|P|B|br|nf|fi)( |$)`)
	for line := range strings.SplitSeq(page, "\n") {
		if (strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'")) && !requests.MatchString(line) {
			t.Errorf("roff takes this for a request: %s", line)
		}
	}
	if got, want := escapeRoff(`.a-b\c…`), `\&.a\-b\ec\[u2026]`; got != want {
		t.Errorf("escapeRoff: %q, want %q", got, want)
	}
}

func TestCompletionOfValues(t *testing.T) {
	two := cmdtest.WriteConfig(t, "listeners: {front: {listen: 1, upstream: one}}\nupstreams: {one: {endpoints: [a:1]}, two: {endpoints: [b:1]}}\n")
	for line, want := range map[string]string{ // the lines of the answer, and its directive; the shell filters them
		"test -c " + two + " ":     "one\ntwo\n:4\n",
		"test -c " + two + " one ": "two\n:4\n",
		"test -c " + two + "x ":    ":4\n",
		"sessions --reason ":       "internal\n:4\n",
		"forward --starttls ":      strings.Join(starttls.Names(), "\n") + "\n:4\n",
		"run --log-level ":         "debug\ninfo\nwarn\nerror\n:4\n",
		"run --log-format ":        "auto\ntext\njson\n:4\n",
		"run --config ":            "yaml\nyml\n:8\n",
		"run ":                     ":0\n",
		"forward --listen ":        ":4\n",
		"forward --cert ":          ":0\n",
		"ca --storage ":            ":16\n",
		"status ":                  ":4\n",
		"help ":                    "egress\tSOCKS5, HTTP CONNECT and redirected programs; rules\n:4\n",
		"help f":                   "forward\tPut one plaintext listener before one TLS service, without a file\n:4\n",
		"help completion f":        "fish\tPrint the completion script for fish\n:4\n",
		"help forward ":            ":4\n",
	} {
		out := &strings.Builder{}
		args := append([]string{cobra.ShellCompRequestCmd}, strings.Split(line, " ")...)
		code := run(t.Context(), args, strings.NewReader(""), out, &strings.Builder{})
		lines, directive, _ := strings.Cut(want, ":")
		if code != 0 || !strings.Contains(out.String(), lines) || !strings.HasSuffix("\n"+out.String(), "\n:"+directive) {
			t.Errorf("completion of %q: exit code %d, %q, want %q", line, code, out, want)
		}
	}
}

// TestAddressesOfTheManual asserts that examples listen on loopback unless they have
// TLS: a pasted example must not be open to others.
func TestAddressesOfTheManual(t *testing.T) {
	for path, text := range documents(t) {
		for _, found := range regexp.MustCompile(`--listen ([\w.:\[\]]+:\d+)`).FindAllStringSubmatch(text, -1) {
			if host, _, _ := net.SplitHostPort(found[1]); host != "127.0.0.1" && host != "ca.internal" {
				t.Errorf("%s: --listen %s can be reached by others", path, found[1])
			}
		}
	}
}
