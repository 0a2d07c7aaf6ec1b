package config

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// PolicyTest is one entry of a file of tests: a question for `check --explain`, with what
// is expected.
type PolicyTest struct {
	Question string
	Place    Problem // without a text
}

// maxPolicyTests bounds the tests of a file.
const maxPolicyTests = 10000

// ReadPolicyTests reads a file of tests: a list of questions, like
// {user: batch, dest: "db:5432", expect: allow}. The error is a *Error.
func ReadPolicyTests(path string) ([]PolicyTest, error) {
	text, err := (&Source{Path: path}).read()
	if err != nil {
		return nil, &Error{[]Problem{{File: path, Text: err.Error()}}}
	}
	d := &decoder{file: path, at: map[string]*yaml.Node{}}
	root := d.parseYAML(text)
	var tests []PolicyTest
	switch {
	case root == nil:
	case root.Kind != yaml.SequenceNode:
		d.fail(root, "", "%s where a list of tests is needed; write - {dest: \"db.internal:5432\", expect: allow}", describe(root))
	case len(root.Content) == 0:
		d.fail(root, "", "there is no test; write - {dest: \"db.internal:5432\", expect: allow}")
	case len(root.Content) > maxPolicyTests:
		d.fail(root, "", "%d tests; a file has at most %d: split it", len(root.Content), maxPolicyTests)
	default:
		for i, n := range root.Content {
			tests = append(tests, d.policyTest(resolveAlias(n), fmt.Sprintf("[%d]", i)))
		}
	}
	return tests, ErrorOf(d.problems)
}

// policyTest reads one test.
func (d *decoder) policyTest(n *yaml.Node, path string) PolicyTest {
	var parts []string
	expected := false
	d.mapping(n, path, func(key, value *yaml.Node, at string) {
		values := []*yaml.Node{value}
		if value = resolveAlias(value); value.Kind == yaml.SequenceNode {
			values = value.Content
		}
		var texts []string
		for _, v := range values {
			v = resolveAlias(v)
			switch {
			case v.Kind != yaml.ScalarNode || v.Tag == "!!null" || v.Value == "":
				d.fail(v, at, "%s where a text is needed", describe(v))
			case strings.ContainsAny(v.Value, " \t\n"):
				d.fail(v, at, "%q has a space; no question has one inside a value", v.Value)
			}
			texts = append(texts, v.Value)
		}
		expected = expected || key.Value == "expect"
		parts = append(parts, key.Value+"="+strings.Join(texts, ","))
	})
	if n.Kind == yaml.MappingNode && !expected {
		d.fail(n, path, "nothing is expected; add expect: allow, would_deny or deny")
	}
	slices.SortStableFunc(parts, func(a, b string) int { // expect is last
		return boolToInt(strings.HasPrefix(a, "expect=")) - boolToInt(strings.HasPrefix(b, "expect="))
	})
	return PolicyTest{Question: strings.Join(parts, " "), Place: Problem{File: d.file, Line: n.Line, Column: n.Column}}
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
