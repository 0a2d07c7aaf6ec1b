package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// shared are listeners that share what the first has, and rules.
func shared(listeners, rules int) string {
	var b strings.Builder
	b.WriteString("upstreams: {u: {dynamic: true}}\nlisteners:\n  l0: {listen: '127.0.0.1:1', socks5: {}, rules: &r [")
	b.WriteString(strings.Repeat("{deny: x},", rules))
	b.WriteString("]}\n")
	for i := 1; i < listeners; i++ {
		fmt.Fprintf(&b, "  l%d: {listen: '127.0.0.1:%d', socks5: {}, rules: *r}\n", i, i+1)
	}
	return b.String()
}

// bomb doubles what each anchor stands for.
func bomb(anchors int) string {
	var b strings.Builder
	b.WriteString("x:\n- &a0 [lol]\n")
	for i := range anchors {
		fmt.Fprintf(&b, "- &a%d [*a%d, *a%[2]d]\n", i+1, i)
	}
	return b.String()
}

// What is refused is refused before anything is decoded, at its place.
func TestAliasesAreBounded(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"rules by many listeners":    {shared(400, 400), "a.yaml:94:52: with *r, the aliases of this file stand for more than 1024 KiB; repeat less by them"},
		"doubled 60 times":           {bomb(60), "a.yaml:17:15: with *a14, the aliases"},
		"a long text, often":         {"x: &x " + strings.Repeat("x", 1<<20) + "\ny: [*x, *x]", "a.yaml:2:5: with *x, the aliases"},
		"a circle of two":            {"x: &x {y: &y [*x, *y]}", "a.yaml:1:15: *x stands for a section that it is a part of"},
		"a circle, met from outside": {"y: &y [a, &x [*y]]\nz: *x", "a.yaml:1:15: *y stands for a section that it is a part of"},
	} {
		d := &decoder{file: "a.yaml", env: cmdtest.Env}
		_, err := d.decodeFile("/", []byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want %q alone", name, err, tt.want)
		}
		if len(d.at) > 0 {
			t.Errorf("%s: %d values were decoded", name, len(d.at))
		}
	}
	for name, text := range map[string]string{
		"20 listeners that share 200 rules": shared(20, 200),
		"what all upstreams share":          cmdtest.Good + "    connect: &c {timeout: 5s}\n    health: &h {interval: 1s}\n  v: {endpoints: ['h:2'], connect: *c, health: *h}\n",
		"a text":                            strings.Replace(cmdtest.Good, `"127.0.0.1:1"`, "&a 127.0.0.1:1", 1) + "dns: {servers: [*a]}\n",
	} {
		if _, err := parse(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	f, err := parse(shared(20, 200))
	if err != nil || len(f.Listeners) != 20 || len(f.Listeners[19].Rules) != 200 {
		t.Fatalf("%v; of the listeners that share rules there are %d", err, len(f.Listeners))
	}
}

// Each node is weighed once, however many ways lead to it.
func TestAliasesAreWeighedOnce(t *testing.T) {
	d := &decoder{file: "a.yaml"}
	root := d.parseYAML([]byte("{a: &a [x, yy], b: &b [*a, *a], c: *b}"))
	if root == nil {
		t.Fatal(d.problems)
	}
	w := weigher{known: map[*yaml.Node]weight{}, within: map[*yaml.Node]bool{}}
	const a = 3*nodeWeight + 3 // its list, and two texts
	b := nodeWeight + 2*a
	if got, want := w.weigh(root), (weight{4*nodeWeight + 3 + a + b + b, 2*a + b}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if len(w.known) != 2 || len(w.within) != 0 {
		t.Errorf("%d anchors are known, and %d are being weighed; want 2 and 0", len(w.known), len(w.within))
	}
}

func TestMistakesAreBounded(t *testing.T) {
	var text, refs strings.Builder
	for i := range 3 * maxProblems {
		fmt.Fprintf(&text, "key%d: 1\n", i)
		fmt.Fprintf(&refs, "  u%d: {endpoints: ['h:1'], tls: {identity: nobody}}\n", i)
	}
	names := strings.Builder{}
	for i := range 100 {
		fmt.Fprintf(&names, "  i%d: {files: {cert: a, key: b}}\n", i)
	}
	for name, text := range map[string]string{
		"unknown keys":       cmdtest.Good + text.String(),
		"references":         cmdtest.Good + refs.String() + "identities:\n" + names.String(),
		"items of a list":    strings.Replace(cmdtest.Good, `["h:1"]`, "["+strings.Repeat("h,", 3*maxProblems)+"]", 1),
		"long keys and text": cmdtest.Good + strings.Repeat("k", 1<<20) + ": 1\n" + "log: {level: " + strings.Repeat("v", 1<<20) + "}\n",
	} {
		_, err := parse(text)
		var all *Error
		if !errors.As(err, &all) {
			t.Fatalf("%s: %v", name, err)
		}
		if n := len(all.Problems); n > maxProblems+1 || name != "long keys and text" && !strings.HasSuffix(err.Error(), "there may be more than these 200 mistakes; fix them first") {
			t.Errorf("%s: %d mistakes are told, the last is %s", name, n, all.Problems[n-1])
		}
		for _, p := range all.Problems {
			if line := p.String(); len(line) > 2500 {
				t.Fatalf("%s: a mistake has %d bytes", name, len(line))
			}
		}
	}
	_, err := parse(cmdtest.Good + "log: {level: " + strings.Repeat("v", 1<<20) + "}\n")
	if err == nil || !strings.HasSuffix(err.Error(), "is none of debug, info, warn, error") {
		t.Error("the fix of a long mistake is gone")
	}
}
