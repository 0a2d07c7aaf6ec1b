package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

func TestCommandGetsStandardInput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Setenv(cmdtest.As, "command")
	out, log := cmdtest.NewOutput(), cmdtest.NewOutput()
	w.WriteString("for the command")
	w.Close()
	t.Setenv("RUNTIME_DIRECTORY", cmdtest.ShortDir(t))
	code := run(t.Context(), []string{"run", "-c", cmdtest.WriteConfig(t, cmdtest.OneListener("127.0.0.1:1")), "--", cmdtest.Self(t), "cat"}, r, out, log)
	if code != 0 || out.String() != "for the command" {
		t.Errorf("exit code %d, output %q:\n%s", code, out, log)
	}
}

// TestDescriptorLimit asserts that COMMAND gets the soft limit that we were started
// with. Go raises our soft limit when it starts, and a COMMAND that uses select(2)
// breaks with more than 1024 descriptors.
func TestDescriptorLimit(t *testing.T) {
	cfgPath := cmdtest.WriteConfig(t, cmdtest.OneListener("127.0.0.1:1", `admin: {listen: ""}`))
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("this test needs a shell")
	}
	tell := `ulimit -S -n; [ ! -r /proc/$PPID/limits ] || while read -r l; do case $l in *"open files"*) echo "$l";; esac; done </proc/$PPID/limits`
	cmd := exec.Command("sh", "-c", `ulimit -S -n 300 && exec "$0" run -c "$1" -- sh -c "$2"`, cmdtest.Self(t), cfgPath, tell)
	cmd.Env = append(os.Environ(), cmdtest.As+"=ambassador")
	var log strings.Builder
	cmd.Stderr = &log
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v:\n%s", err, &log)
	}
	theirs, ours, _ := strings.Cut(string(text), "\n")
	if theirs != "300" {
		t.Errorf("COMMAND may have %s descriptors, want the 300 that we were started with", theirs)
	}
	var soft, hard int
	if n, _ := fmt.Sscanf(ours, "Max open files %d %d", &soft, &hard); n == 2 && soft < hard-1 { // Go sets one less than the hard limit, to recognize its own value
		t.Errorf("we may have %d descriptors, want the hard limit %d", soft, hard)
	}
}
