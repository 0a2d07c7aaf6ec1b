package kubeinject

import (
	"cmp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// edit replaces lines: remove lines from the line at (from 0) on.
type edit struct {
	at, remove int
	insert     []string
}

// lines returns the lines of the text with their ends.
func (d *document) lines() []string { return strings.SplitAfter(d.text, "\n") }

// apply makes edits whose lines do not overlap. Edits at one line stay in their order.
func (d *document) apply(edits []edit) {
	lines, end := d.lines(), "\n"
	if strings.HasSuffix(lines[0], "\r\n") {
		end = "\r\n"
	}
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Compare(a.at, b.at) })
	var b strings.Builder
	next := 0
	for _, e := range edits {
		b.WriteString(strings.Join(lines[next:max(e.at, next)], ""))
		for _, line := range e.insert {
			b.WriteString(line + end)
		}
		next = max(next, e.at+e.remove)
	}
	d.text = b.String() + strings.Join(lines[next:], "")
}

// places are where the sidecar is added, and what they are in.
func (w *workload) places() []field {
	return []field{w.template, w.metadata, w.annotations, w.spec, w.initContainers, w.containers, w.volumes}
}

// inFlow reports whether a place to edit is in flow style. An empty list or mapping is
// none: it is removed as a whole.
func (w *workload) inFlow() bool {
	return slices.ContainsFunc(w.places(), func(f field) bool {
		return f.value != nil && len(f.value.Content) > 0 && f.value.Style&yaml.FlowStyle != 0
	})
}

// anchor returns the first place to edit that has an anchor; nil if none has.
func (w *workload) anchor() *yaml.Node {
	for _, f := range w.places() {
		if f.value != nil && f.value.Anchor != "" && w.skip == "" {
			return f.value
		}
	}
	return nil
}

// additions are the edits that add the sidecar.
func (w *workload) additions(s *Sidecar) (out []edit) {
	step := w.containers.value.Column - w.containers.key.Column // how lists are indented
	out = append(out, below(w.template, w.metadata, "metadata", w.annotations, "annotations", 2, s.annotations())...)
	out = append(out, below(w.template, w.spec, "spec", w.initContainers, "initContainers", step, s.container())...)
	return append(out, below(w.template, w.spec, "spec", w.volumes, "volumes", step, s.volumes())...)
}

// below adds lines at the beginning of the value of inner, a key of outer, a key of the
// template. Keys that are missing are added at the beginning of what they belong to.
func below(template, outer field, outerName string, inner field, innerName string, step int, lines []string) []edit {
	switch {
	case inner.value != nil:
		return []edit{{at: inner.key.Line, insert: indented(inner.value.Column-1, lines)}}
	case outer.value != nil:
		column := outer.value.Column - 1
		return []edit{{at: outer.key.Line, insert: append(indented(column, []string{innerName + ":"}), indented(column+step, lines)...)}}
	}
	column := template.value.Column - 1
	head := append(indented(column, []string{outerName + ":"}), indented(column+2, []string{innerName + ":"})...)
	return []edit{{at: template.key.Line, insert: append(head, indented(column+2+step, lines)...)}}
}

func indented(by int, lines []string) (out []string) {
	for _, line := range lines {
		if line != "" {
			line = strings.Repeat(" ", by) + line
		}
		out = append(out, line)
	}
	return out
}

// removals are the edits that remove what is ours.
func (w *workload) removals(lines []string) (out []edit) {
	isOurs := func(names ...string) func(*yaml.Node) bool {
		return func(n *yaml.Node) bool { return slices.Contains(names, text(n, "name")) }
	}
	out = append(out, withoutItems(lines, w.initContainers, isOurs(containerName))...)
	out = append(out, withoutItems(lines, w.volumes, isOurs(volumeNames...))...)
	rest := 0 // annotations that are the user's
	var ours []edit
	for i := 0; i < len(w.annotations.value.Content); i += 2 {
		key := w.annotations.value.Content[i]
		if key.Value != annotationInjected && key.Value != annotationConfig {
			rest++
			continue
		}
		ours = append(ours, cut(lines, key.Line-1, key.Column-1))
	}
	switch {
	case rest > 0:
		return append(out, ours...)
	case len(w.metadata.value.Content) > 2 || w.metadata.key == nil:
		return append(out, cut(lines, w.annotations.key.Line-1, w.annotations.key.Column-1))
	}
	return append(out, cut(lines, w.metadata.key.Line-1, w.metadata.key.Column-1))
}

// withoutItems removes items of a list, or the whole list if no item is left.
func withoutItems(lines []string, f field, isOurs func(*yaml.Node) bool) (out []edit) {
	for _, item := range items(f) {
		if isOurs(item) {
			out = append(out, cut(lines, dashOf(lines, item, f.value.Column-1), f.value.Column-1))
		}
	}
	if len(out) == 0 || len(out) < len(f.value.Content) {
		return out
	}
	last := out[len(out)-1]
	from := f.key.Line - 1
	return []edit{{at: from, remove: last.at + last.remove - from}}
}

// dashOf is the line of the dash of an item.
func dashOf(lines []string, item *yaml.Node, column int) int {
	at := item.Line - 1
	for at > 0 && (len(lines[at]) <= column || lines[at][column] != '-' || strings.TrimSpace(lines[at][:column]) != "") {
		at--
	}
	return at
}

// cut removes what begins at a line and a column: all lines that are indented more.
// Comments and blank lines after it belong to what follows.
func cut(lines []string, from, column int) edit {
	end := from + 1
	for i := end; i < len(lines); i++ {
		content := strings.TrimLeft(lines[i], " ")
		switch indent := len(lines[i]) - len(content); {
		case strings.TrimSpace(content) == "", content[0] == '#' && indent <= column:
		case indent > column:
			end = i + 1
		default:
			return edit{at: from, remove: end - from}
		}
	}
	return edit{at: from, remove: end - from}
}

// empties are the edits that remove keys whose value is empty and on their line.
func (w *workload) empties() (out []edit) {
	for _, f := range []field{w.metadata, w.annotations, w.initContainers, w.volumes} {
		if f.key != nil && len(f.value.Content) == 0 && f.key.Line == f.value.Line {
			out = append(out, edit{at: f.key.Line - 1, remove: 1})
		}
	}
	return out
}
