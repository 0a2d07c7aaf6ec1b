package config

import (
	"strings"

	"go.yaml.in/yaml/v4"

	"ambassador/cmd/ambassador/internal/output"
)

// hiddenText stands for a secret wherever the configuration is printed.
const hiddenText = "***"

// secretField is a text that may have a secret in it.
func secretField(key, doc string, to *string) field {
	return hiddenField(textField(key, doc, to, nil), func(string) string { return hiddenText })
}

// queryField is the path of a URL whose query may have a secret in it.
func queryField(key, doc string, to *string, check func(string) error) field {
	return hiddenField(textField(key, doc, to, check), HideQuery)
}

// HideQuery takes the query out of a URL, or its path.
func HideQuery(s string) string {
	if path, _, ok := strings.Cut(s, "?"); ok {
		return path + "?" + hiddenText
	}
	return s
}

// hiddenField is f, of whose value, as it is in the file, shown is printed.
func hiddenField(f field, shown func(string) string) field {
	decode := f.decode
	f.decode = func(d *decoder, n *yaml.Node, path string) {
		decode(d, n, path)
		if to := shown(n.Value); to != n.Value && n.Kind == yaml.ScalarNode {
			if d.hidden == nil {
				d.hidden = map[*yaml.Node]string{}
			}
			d.hidden[n] = to
		}
	}
	return f
}

// withoutSecrets is the text that was decoded: source itself, or, where it has secrets,
// the same document without them. On a mistake of ours nothing is printed.
func (d *decoder) withoutSecrets(source []byte) []byte {
	if len(d.hidden) == 0 {
		return source
	}
	was := map[*yaml.Node]yaml.Node{}
	for n, text := range d.hidden {
		was[n] = *n
		n.Value, n.Style, n.Tag = text, 0, "!!str"
	}
	out, err := yaml.Dump(&d.doc, yaml.WithIndent(2), yaml.WithLineWidth(-1))
	for n, old := range was {
		*n = old
	}
	if err != nil {
		return []byte("# this configuration cannot be printed: " + output.Visible(err.Error()) + "\n")
	}
	return out
}
