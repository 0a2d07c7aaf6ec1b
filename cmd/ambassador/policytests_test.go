package main

import (
	"path/filepath"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// TestPolicyTests proves that --tests tells each wrong answer with its place.
func TestPolicyTests(t *testing.T) {
	config := egressFile(t)
	for _, c := range []struct {
		name, tests string
		code        int
		want        string
	}{
		{"all pass", "- {dest: 'db.internal:443', expect: allow}\n- {expect: deny, dest: 'x.internal:1', addr: 192.0.2.1}\n- {user: batch, dest: 'a:5432', addr: [10.0.0.7], expect: would_deny}\n", 0, ": ok (3 tests)\n"},
		{"a wrong answer", "- {dest: 'db.internal:443', expect: allow}\n- {dest: 'db.internal:443', expect: deny}\n", 3, ":2:3: dest=db.internal:443 expect=deny: deny is expected; verdict: allow, by rule #5, to upstream db\n"},
		{"special addresses", "- {dest: 'x.internal:8080', addr: 127.0.0.1, expect: allow}\n", 3, "but refused (special_address)"},
		{"no key", "- {dst: 'a:1', expect: allow}\n", 2, ":1:3: \"dst=a:1\": write KEY=VALUE"},
		{"nothing is expected", "- {dest: 'a:1'}\n", 2, ":1:3: [0]: nothing is expected"},
		{"expects nonsense", "- {dest: 'a:1', expect: maybe}\n", 2, `"maybe" is none of allow, would_deny, deny`},
		{"no list", "dest: 'a:1'\n", 2, "a section where a list of tests is needed"},
		{"an empty list", "[]\n", 2, "there is no test"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tests.yaml")
			cmdtest.WriteFile(t, path, c.tests)
			out, errs, code := explained(t, "-c", config, "--tests", path)
			if code != c.code || !strings.Contains(out+errs, c.want) {
				t.Errorf("exit code %d and\n%s%s, want %d and %q", code, out, errs, c.code, c.want)
			}
		})
	}
}

// TestExplainExpects proves that an answer other than expected has exit code 3.
func TestExplainExpects(t *testing.T) {
	for expect, want := range map[string]int{"allow": 0, "deny": 3, "would_deny": 3, "maybe": 2} {
		if _, errs, code := explained(t, "-c", egressFile(t), "--explain", "dest=db.internal:443 expect="+expect); code != want {
			t.Errorf("expect=%s: exit code %d, want %d: %s", expect, code, want, errs)
		}
	}
}

// TestExplainKey proves that explain tells type, default, example and keys, and suggests.
func TestExplainKey(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"", 0, []string{"  upstreams ", "  listeners "}},
		{"upstreams.health.fall", 0, []string{"upstreams.NAME.health.fall  (number or text)", "default  3", "example  "}},
		{"upstreams.orders_db.health.fall", 0, []string{"upstreams.NAME.health.fall"}},
		{"upstreams.x.health.http.port", 0, []string{"upstreams.NAME.health.http.port  (", ", required)"}},
		{"upstreams.starttls", 0, []string{"one of its values", "values   none, postgres"}},
		{"listeners.rules", 0, []string{"list of sections", "  host "}},
		{"upstreams.helth", 2, []string{"did you mean upstreams.health?"}},
		{"upstreams.orders_db", 0, []string{"upstreams.NAME  (sections by name"}},
		{"upstreams.x.health.fal", 2, []string{"did you mean upstreams.NAME.health.fall?"}},
		{"listners", 2, []string{"did you mean listeners?"}},
		{"foo", 2, []string{"it has admin, "}},
		{"log.level.x", 2, []string{"it has no keys"}},
	} {
		out, errs := cmdtest.NewOutput(), cmdtest.NewOutput()
		args := []string{"explain"}
		if c.args != "" {
			args = append(args, c.args)
		}
		code := run(t.Context(), args, strings.NewReader(""), out, errs)
		for _, want := range c.want {
			if text := out.String() + errs.String(); code != c.code || !strings.Contains(text, want) {
				t.Errorf("explain %s: exit code %d and\n%s, want %d and %q", c.args, code, text, c.code, want)
			}
		}
	}
}
