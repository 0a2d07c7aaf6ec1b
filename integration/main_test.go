package integration

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait for something that should happen at once. It is
// this long because the machine may be slow and busy, and the binary may be
// built with -race; a test that passes never uses it up.
const patience = 30 * time.Second

// binary is the ambassador under test, and scratch a folder for other programs
// that tests build; TestMain sets them before any test runs.
var binary, scratch string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if how := os.Getenv(serveAs); how != "" {
		return serveForever(how)
	}
	flag.Parse()
	// Most tests wait most of the time, so more of them fit than processors.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		f.Value.Set("8")
	}
	dir, err := os.MkdirTemp("", "ambassador-bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	scratch = dir
	if binary, err = build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// uninstrumented keeps the race detector out of arithmetic: hashing a password takes ten
// times as long with it, and shares no data. The script integration/test reads it.
const uninstrumented = "-gcflags=crypto/internal/fips140/...=-race=false"

// build makes the binary under test, once, in a folder of its own.
func build(dir string) (string, error) {
	if b := os.Getenv("AMBASSADOR_TEST_BINARY"); b != "" {
		return filepath.Abs(b)
	}
	out := filepath.Join(dir, "ambassador")
	args := []string{"build", "-o", out}
	if on("AMBASSADOR_TEST_RACE") {
		args = append(args, "-race", uninstrumented)
	}
	cmd := exec.Command("go", append(args, "ambassador/cmd/ambassador")...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	return out, nil
}

func on(variable string) bool { return os.Getenv(variable) == "1" }

// long says whether to run the full lengths.
func long() bool { return on("AMBASSADOR_TEST_LONG") }

// late is how long after the end of a request its answer comes.
func late() time.Duration {
	if long() {
		return 90 * time.Second
	}
	return 10 * time.Second
}

// need makes sure that programs are there: without them the test is skipped, or
// fails where the caller of the tests promised them.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, p)
		}
	}
}

// missing ends a test that cannot run here.
func missing(t testing.TB, what string) {
	t.Helper()
	if on("AMBASSADOR_REQUIRE_SERVERS") {
		t.Fatalf("%s is missing, and AMBASSADOR_REQUIRE_SERVERS=1 demands it; integration/test installs it", what)
	}
	t.Skipf("%s is missing; integration/test installs it", what)
}
