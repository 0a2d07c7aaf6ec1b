package kubeinject

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"
)

// The annotations.
const (
	// annotationInject with the value "disabled", at a workload or its pod template,
	// keeps it unchanged.
	annotationInject = "ambassador/inject"
	// annotationInjected marks a pod template whose sidecar is ours.
	annotationInjected = "ambassador/injected"
	// annotationConfig holds the configuration of Sidecar.Config.
	annotationConfig = "ambassador/config"
)

// Result says what was done with one manifest.
type Result struct {
	Manifest string // "deployment/web"
	Action   string // "injected", "removed", "unchanged" or "skipped"
	Why      string // why it was skipped; else empty
}

const (
	actionInjected  = "injected"
	actionRemoved   = "removed"
	actionUnchanged = "unchanged"
	actionSkipped   = "skipped"
)

// String is one line.
func (r Result) String() string {
	if r.Why != "" {
		return r.Manifest + ": " + r.Action + ": " + r.Why
	}
	return r.Manifest + ": " + r.Action
}

// Inject adds the sidecar to every pod template in source, and replaces one that it
// added before. The errors have a line each, FILE:LINE:COLUMN: TEXT.
func Inject(file string, source []byte, s Sidecar) ([]byte, []Result, error) {
	if err := s.check(); err != nil {
		return nil, nil, err
	}
	return each(file, source, func(d *document) error { return d.inject(&s) })
}

// Uninject removes what Inject added. The errors are those of Inject.
func Uninject(file string, source []byte) ([]byte, []Result, error) {
	return each(file, source, (*document).uninject)
}

// separator begins a document. In YAML no text of a document can look like it.
var separator = regexp.MustCompile(`^---(\s|$)`)

// each edits every document of source.
func each(file string, source []byte, change func(*document) error) (out []byte, results []Result, err error) {
	var mistakes []error
	for _, d := range split(file, string(source)) {
		if err := d.parse(); err != nil {
			return nil, nil, err // what follows could be part of it
		}
		err := d.checkRendered(d.root)
		if err == nil {
			err = change(d)
		}
		if err != nil {
			mistakes = append(mistakes, err)
		}
		out, results = append(out, d.text...), append(results, d.results...)
	}
	if err := errors.Join(mistakes...); err != nil {
		return nil, nil, err
	}
	return out, results, nil
}

// document is one YAML document of a file.
type document struct {
	file    string
	first   int    // lines of the file before it
	text    string // from its separator on
	root    *yaml.Node
	results []Result
	anchor  *yaml.Node // a place to edit that has an anchor, in text as it was read; nil: none
}

func split(file, source string) (out []*document) {
	lines, first := strings.SplitAfter(source, "\n"), 0
	for i, line := range lines {
		if i > first && separator.MatchString(line) {
			out = append(out, &document{file: file, first: first, text: strings.Join(lines[first:i], "")})
			first = i
		}
	}
	return append(out, &document{file: file, first: first, text: strings.Join(lines[first:], "")})
}

// parse reads the text; root is nil if there is nothing in it.
func (d *document) parse() error {
	var doc yaml.Node
	loader, err := yaml.NewLoader(strings.NewReader(d.text))
	if err == nil {
		err = loader.Load(&doc)
	}
	var syntax *yaml.LoadError
	switch {
	case errors.Is(err, io.EOF): // comments alone
	case errors.As(err, &syntax):
		return d.fail(&yaml.Node{Line: syntax.Mark.Line, Column: syntax.Mark.Column}, "no YAML: %s; a template must be rendered first, as by `helm template`", syntax.Message)
	case err != nil:
		return d.fail(&yaml.Node{}, "%v", err)
	}
	d.root = nil
	if len(doc.Content) > 0 && doc.Content[0].Tag != "!!null" {
		d.root = doc.Content[0]
	}
	return nil
}

// helmOnly are expressions that only Helm evaluates. Other text in {{ }} can be meant for the
// program in a container.
var helmOnly = regexp.MustCompile(`\{\{[^}]*\.(Values|Release|Chart|Capabilities)\b|\{\{-?\s*(include|tpl)\s`)

// checkRendered returns an error at the first expression of a template that was not
// rendered. A block of text may hold one: it is a file for others.
func (d *document) checkRendered(n *yaml.Node) error {
	if n == nil {
		return nil
	}
	unquoted := n.Kind == yaml.MappingNode && len(n.Content) > 0 && n.Content[0].Kind == yaml.MappingNode
	if unquoted || n.Kind == yaml.ScalarNode && n.Style&yaml.LiteralStyle == 0 && helmOnly.MatchString(n.Value) {
		return d.fail(n, "a template that is not rendered; render it first, as by `helm template`")
	}
	for _, c := range n.Content {
		if err := d.checkRendered(c); err != nil {
			return err
		}
	}
	return nil
}

// fail returns an error at a node.
func (d *document) fail(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d:%d: %s", d.file, d.first+max(n.Line, 1), max(n.Column, 1), fmt.Sprintf(format, args...))
}

// inject adds the sidecar to the pod templates of the document.
func (d *document) inject(s *Sidecar) error {
	before := d.text
	if err := d.prepare(); err != nil {
		return err
	}
	workloads, err := d.workloads()
	if err != nil {
		return err
	}
	clean, edits := d.text, []edit(nil)
	for _, w := range workloads {
		if err := d.checkRoom(w); err != nil { // what was beside a sidecar of ours
			return err
		}
		r := w.result()
		d.results = append(d.results, r)
		if r.Action == actionInjected {
			edits = append(edits, w.additions(s)...)
		}
	}
	if len(edits) == 0 {
		d.text = before
		return nil
	}
	d.apply(edits)
	if d.text == before {
		d.sayUnchanged()
	}
	return d.verify(clean)
}

// sayUnchanged corrects the results of an injection that changed no byte.
func (d *document) sayUnchanged() {
	for i := range d.results {
		if r := &d.results[i]; r.Action == actionInjected {
			r.Action = actionUnchanged
		}
	}
}

// prepare brings the document into the form in which sidecars are added: block style,
// without ours, and without empty lists in their place.
func (d *document) prepare() error {
	workloads, err := d.workloads()
	if err != nil {
		return err
	}
	for _, w := range workloads {
		if err := d.checkRoom(w); err != nil {
			return err
		}
		d.anchor = cmp.Or(d.anchor, w.anchor())
	}
	if err := d.flatten(workloads); err != nil {
		return err
	}
	return d.strip(true)
}

// verify returns an error if the sidecar cannot be removed again from the text, which is
// then not what was meant. It leaves the text as it is.
func (d *document) verify(clean string) error {
	out := *d
	err := out.parse()
	if err == nil {
		err = out.strip(true)
	}
	if err == nil && out.text == clean {
		return nil
	}
	if d.anchor == nil {
		return d.fail(&yaml.Node{Line: 1, Column: 1}, "the document is written in a way that cannot be edited; write it in plain block style, as `kubectl create --dry-run=client -o yaml` does")
	}
	return d.fail(d.anchor, "remove the anchor &%s: the sidecar is added to what it names", d.anchor.Anchor)
}

// uninject removes the sidecar from the pod templates of the document.
func (d *document) uninject() error {
	workloads, err := d.workloads()
	if err != nil {
		return err
	}
	ours := false
	for _, w := range workloads {
		action := actionUnchanged
		if w.injected {
			action, ours = actionRemoved, true
		}
		d.results = append(d.results, Result{w.String(), action, ""})
	}
	if !ours {
		return nil
	}
	if err := d.flatten(workloads); err != nil {
		return err
	}
	return d.strip(false)
}

// strip removes what Inject added. Before something is added again, it leaves out what
// must stay unchanged, and removes lists and mappings that are empty, too: adding makes
// them anew.
func (d *document) strip(adding bool) error {
	workloads, err := d.workloads()
	if err != nil {
		return err
	}
	lines, edits := d.lines(), []edit(nil)
	for _, w := range workloads {
		switch {
		case w.template.value == nil, adding && w.skip != "":
		case w.injected:
			edits = append(edits, w.removals(lines)...)
		case adding:
			edits = append(edits, w.empties()...)
		}
	}
	if len(edits) == 0 {
		return nil
	}
	d.apply(edits)
	if err := d.parse(); err != nil {
		return err
	}
	if adding {
		return d.strip(true) // what is empty now
	}
	return nil
}

// flatten writes the document in block style if a place to edit is in flow style.
func (d *document) flatten(workloads []*workload) error {
	flow := false
	for _, w := range workloads {
		flow = flow || w.template.value != nil && w.skip == "" && w.inFlow()
	}
	if !flow {
		return nil
	}
	var doc yaml.Node
	if err := yaml.Load([]byte(d.text), &doc); err != nil {
		return err
	}
	toBlock(&doc)
	text, err := yaml.Dump(&doc, yaml.WithIndent(2), yaml.WithLineWidth(-1))
	if err != nil {
		return err
	}
	if separator.MatchString(d.text) {
		text = append([]byte("---\n"), text...)
	}
	d.text = string(text)
	return d.parse()
}

// toBlock clears the flow style. Quotes stay: other parsers of YAML read a plain yes as a
// boolean.
func toBlock(n *yaml.Node) {
	if len(n.Content) > 0 {
		n.Style &^= yaml.FlowStyle
	}
	for _, c := range n.Content {
		toBlock(c)
	}
}
