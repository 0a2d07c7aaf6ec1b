package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// The help of test has the flags that matter to it; the others of forward are accepted, so
// that one command line is good for both.
func TestFlagsOfTest(t *testing.T) {
	out, errs := cmdtest.NewOutput(), cmdtest.NewOutput()
	run(t.Context(), []string{"test", "--help"}, strings.NewReader(""), out, errs)
	_, flags, _ := strings.Cut(out.String(), "Flags:")
	for _, flag := range []string{"--listen", "--idle", "--socket-mode", "--no-health", "--unsafe-plaintext-listen"} {
		if strings.Contains(flags, flag) || !strings.Contains(flags, "--to ") {
			t.Errorf("the help of test has %s:\n%s", flag, flags)
		}
	}
	code := run(t.Context(), []string{"test", "--plain", "--to", cmdtest.Occupied(t), "--listen", "127.0.0.1:0", "--idle", "1m", "--timeout", "200ms"}, strings.NewReader(""), out, errs)
	if got := out.String() + errs.String(); code != 0 || !strings.Contains(got, "said nothing until --timeout ended the test") {
		t.Errorf("%d: %s", code, got)
	}
}

// A mistake in --dest or --as is told before anybody is contacted.
func TestMistakesOfDestinations(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ambassador.yaml")
	text := `listeners:
  front: {listen: "127.0.0.1:0", upstream: mail}
  egress: {listen: "127.0.0.1:0", socks5: {}, upstream: internet}
upstreams: {mail: {endpoints: ["127.0.0.1:1"]}, internet: {dynamic: true}}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-c", file, "--dest", "nowhere"}, "--dest nowhere: write HOST:PORT"},
		{[]string{"-c", file, "--dest", "a b:1"}, "--dest a b:1: "},
		{[]string{"-c", file, "--dest", "a.test:0"}, `--dest a.test:0: "0" is no port`},
		{[]string{"-c", file, "--as", "listener=egress"}, "give --dest HOST:PORT with it"},
		{[]string{"-c", file, "--dest", "a.test:1", "--as", "listener=front"}, "--as: listener=front: there is no such listener whose clients say where they want to go; there is egress"},
		{[]string{"-c", file, "--dest", "a.test:1", "--as", "addr=10.0.0.1"}, "--as: addr does not describe a client"},
		{[]string{"-c", file, "--dest", "a.test:1", "--as", "user=x"}, "user and listener egress: "},
		{[]string{"--to", "127.0.0.1:1", "--dest", "a.test:1"}, "--dest: the clients of no listener say where they want to go"},
	} {
		out, errs := cmdtest.NewOutput(), cmdtest.NewOutput()
		code := run(t.Context(), append([]string{"test"}, c.args...), strings.NewReader(""), out, errs)
		if got := errs.String(); code != 2 || out.String() != "" || !strings.Contains(got, c.want) {
			t.Errorf("%q: exit code %d, %q and %q; want 2 and %q", c.args, code, out, got, c.want)
		}
	}
}
