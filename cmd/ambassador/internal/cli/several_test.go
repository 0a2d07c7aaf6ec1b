package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/admin"
	"ambassador/cmd/ambassador/internal/adminsocket"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4"
)

// serveIn serves the admin API of f at the default socket of an environment.
func serveIn(t *testing.T, f *cmdtest.FakeServer, env string) (addr string) {
	t.Helper()
	ln, addr, err := adminsocket.Listen(t.Context(), cmdtest.EnvOf(env), adminsocket.Address{})
	if err != nil {
		t.Fatal(err)
	}
	return serveAPI(t, ln, addr, admin.NewHandler(fakeDeps(f), admin.Guard{}))
}

func TestSeveralAreRunning(t *testing.T) {
	xdg, tmp := cmdtest.ShortDir(t), cmdtest.ShortDir(t)
	f, g := cmdtest.NewFakeServer(), cmdtest.NewFakeServer()
	g.Over, g.Live = nil, nil
	one, two := serveIn(t, f, "XDG_RUNTIME_DIR="+xdg), serveIn(t, g, "TMPDIR="+tmp)
	// A folder of its own for RUNTIME_DIRECTORY keeps the search out of the system's.
	world := []string{"RUNTIME_DIRECTORY=" + cmdtest.ShortDir(t), "XDG_RUNTIME_DIR=" + xdg, "TMPDIR=" + tmp}
	client := func(args ...string) (string, error) {
		a, out := commandsWith(world...), &bytes.Buffer{}
		a.Stdout = out
		err := runClient(t.Context(), a, args...)
		return out.String(), err
	}
	for _, args := range [][]string{{"reload"}, {"drain"}, {"quit"}} {
		if _, err := client(args...); exitCode(err) != 2 || !strings.Contains(err.Error(), "--admin "+one) || !strings.Contains(err.Error(), "--admin "+two) {
			t.Errorf("%q: exit code %d: %v", args, exitCode(err), err)
		}
	}
	for _, args := range [][]string{{"status"}, {"sessions"}, {"sessions", "--recent"}, {"ps"}} {
		out, err := client(args...)
		if err != nil || strings.Count(out, one) != 1 || strings.Count(out, two) != 1 {
			t.Errorf("%q: %v; want both processes:\n%s", args, err, out)
		}
		out, err = client(append(args, "--json")...)
		var reply struct{ Processes []struct{ Admin string } }
		if err != nil || json.Unmarshal([]byte(out), &reply) != nil || len(reply.Processes) != 2 || reply.Processes[0].Admin != one || reply.Processes[1].Admin != two {
			t.Errorf("%q --json: %v; want both processes:\n%s", args, err, out)
		}
	}
	if out, err := client("why", "K7QX-40"); err != nil || !strings.Contains(out, "session K7QX-40") || !strings.Contains(out, one) {
		t.Errorf("why: %v; want the session and its process:\n%s", err, out)
	}
	if _, err := client("why", "1"); exitCode(err) != 1 || !strings.Contains(err.Error(), "no such session") {
		t.Errorf("why of no session: %v", err)
	}
	if out, err := client("wait"); err != nil || out != "ready\n" {
		t.Errorf("wait: %v, %s", err, out)
	}
	g.Upstreams = nil // the other process has it
	if out, err := client("wait", "--upstream", "orders_db"); err != nil || out != "ready\n" {
		t.Errorf("wait for an upstream of one: %v, %s", err, out)
	}
	if _, err := client("wait", "--upstream", "none"); exitCode(err) != 1 || !strings.Contains(err.Error(), "none of that name") {
		t.Errorf("wait for an upstream of none: %v", err)
	}
	g.Readiness = l4.Readiness{Waiting: []string{"upstream a: refused"}}
	if _, err := client("wait", "--timeout", "150ms"); exitCode(err) != 1 || !strings.HasSuffix(err.Error(), "  "+two+": upstream a: refused") {
		t.Errorf("wait while one is not ready: %v", err)
	}
}
