package main

import (
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
