package integration

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// The bench runs and prints every row. Its figures are not judged: turns are too short
// here, and the machine is busy.
func TestBenchRuns(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the bench reads processor time, which it can on Linux only")
	}
	sbin(t, "haproxy")
	sbin(t, "nginx")
	bench := filepath.Join(t.TempDir(), "bench")
	if text, err := exec.Command("go", "build", "-o", bench, "ambassador/integration/bench").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, text)
	}
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		args = append([]string{"-binary", binary, "-rounds", "1", "-duration", "20ms"}, args...)
		text, err := exec.CommandContext(t.Context(), bench, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("bench: %v\n%s", err, text)
		}
		return string(text)
	}
	t.Run("peers", func(t *testing.T) {
		out := run(t)
		for _, mode := range []string{"plain", "mtls", "term"} {
			for _, kind := range []string{`bulk-up +[\d.]+ +[\d.]+ +- +-`, `bulk-down +[\d.]+ +[\d.]+ +- +-`, `ping( +[\d.]+){4}`, `conn( +[\d.]+){4}`} {
				if row := regexp.MustCompile(`(?m)^ *` + mode + `/` + kind + ` .*/s`); !row.MatchString(out) {
					t.Errorf("no row like %s in:\n%s", row, out)
				}
			}
		}
		if !strings.Contains(out, "socks/conn") {
			t.Errorf("no row socks/conn in:\n%s", out)
		}
	})
	t.Run("an older binary", func(t *testing.T) {
		out := run(t, "-against", binary, "-rows", "socks/*")
		if !regexp.MustCompile(`socks/ping( +[\d.]+){4} `).MatchString(out) || strings.Contains(out, "plain/") {
			t.Errorf("want the rows of socks, compared:\n%s", out)
		}
	})
}
