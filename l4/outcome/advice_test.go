package outcome

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// declaredReasons reads the constants of type Reason from outcome.go, so that a
// new one without advice is noticed.
func declaredReasons(t *testing.T) []Reason {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "outcome.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []Reason
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.CONST {
			continue
		}
		for _, spec := range gen.Specs {
			v := spec.(*ast.ValueSpec)
			if typ, ok := v.Type.(*ast.Ident); !ok || typ.Name != "Reason" {
				continue
			}
			word, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, Reason(word))
		}
	}
	return out
}

func TestEveryReasonHasAdvice(t *testing.T) {
	declared := declaredReasons(t)
	if len(declared) < 20 {
		t.Fatalf("only %d reasons found in outcome.go", len(declared))
	}
	listed := Reasons()
	for _, r := range declared {
		if Advice(r) == "" {
			t.Errorf("no advice for %s", r)
		}
		if r != OK && !slices.Contains(listed, r) {
			t.Errorf("Reasons lacks %s", r)
		}
	}
	for _, r := range listed {
		if !slices.Contains(declared, r) {
			t.Errorf("Reasons has %s, which outcome.go has not", r)
		}
	}
	if len(listed) != len(declared)-1 {
		t.Errorf("%d reasons listed, %d declared besides ok", len(listed), len(declared)-1)
	}
}

func TestAdviceIsOneSentence(t *testing.T) {
	for _, r := range Reasons() {
		text := Advice(r)
		if !strings.HasSuffix(text, ".") || strings.Contains(text, ". ") || strings.ContainsAny(text, "\n\t") {
			t.Errorf("%s: not one sentence: %q", r, text)
		}
		if len(text) > 250 {
			t.Errorf("%s: %d bytes are too long to be read", r, len(text))
		}
	}
	if got := Advice("no such word"); got != "" {
		t.Errorf("advice for an unknown word: %q", got)
	}
}

func TestReasonsIsTheCallersOwn(t *testing.T) {
	Reasons()[0] = "changed"
	if Reasons()[0] == "changed" {
		t.Error("a caller can change the list")
	}
}
