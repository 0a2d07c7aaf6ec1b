package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReloadJudgesClientsThatWait proves that a client which was connected before a
// reload, and asks only after it, is judged by the new rules and users.
func TestReloadJudgesClientsThatWait(t *testing.T) {
	t.Parallel()
	s := startServer(t, nil, echo)
	users := usersFile(t, "old:secret")
	file := filepath.Join(t.TempDir(), "ambassador.yaml")
	write := func(users, rule string) {
		t.Helper()
		text := fmt.Sprintf("sandbox: {landlock: \"off\"}\nupstreams: {net: {dynamic: true}}\nlisteners:\n  egress:\n    listen: 127.0.0.1:0\n    socks5: {}\n    rules:\n      - %s\n"+
			"  login:\n    listen: 127.0.0.1:0\n    socks5: {users_file: %q}\n    rules:\n      - %[1]s\n", rule, users)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const open = "{name: open, ip: 127.0.0.0/8, upstream: net}"
	write(users, open)
	a := start(t, "run", "-c", file)
	denied, gone, fresh, idle := a.connect("egress"), a.connect("login"), a.connect("login"), a.connect("egress")
	reload := func() {
		t.Helper()
		if _, code := a.ask("reload"); code != 0 {
			t.Fatal("the reload failed")
		}
	}
	waiting := func(n int) {
		t.Helper()
		if err := eventually(patience, func() error {
			out, _ := a.ask("sessions", "--json")
			if got := strings.Count(out, `"stage": "greet"`); got != n {
				return fmt.Errorf("%d clients are waited for, want %d:\n%s", got, n, out)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	waiting(4)
	write(usersFile(t, "new:secret"), open)
	reload()
	if _, err := socksAsk(gone, "old:secret", s.addr); err == nil {
		t.Error("a user of the old file is let in after the reload")
	}
	if reply, err := socksAsk(fresh, "new:secret", s.addr); err != nil || reply != socksOK {
		t.Errorf("a user of the new file: reply %d, %v", reply, err)
	}
	waiting(2)
	write(users, "{name: closed, deny: not any more}")
	reload()
	if reply, err := socksAsk(denied, "", s.addr); err != nil || reply != socksNotAllowed {
		t.Errorf("reply %d, %v; want %d by the new rule", reply, err, socksNotAllowed)
	}
	denied.Close()
	if rec, err := logged(a.process, peerOf(a.process, denied)); err != nil || rec.Reason != "denied" || rec.Rule != "closed" {
		t.Errorf("record %+v, %v", rec, err)
	}
	if err := echoed(fresh, "still"); err != nil {
		t.Errorf("a session that was routed before: %v", err)
	}
	if err := os.WriteFile(file, []byte("sandbox: {landlock: \"off\"}\nupstreams: {net: {dynamic: true}}\nlisteners: {other: {listen: \"127.0.0.1:0\", socks5: {}, upstream: net}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	reload()
	if reply, err := socksAsk(idle, "", s.addr); err != nil || reply != socksNotAllowed {
		t.Errorf("reply %d, %v; want %d, for the listener is gone", reply, err, socksNotAllowed)
	}
	idle.Close()
	if rec, err := logged(a.process, peerOf(a.process, idle)); err != nil || rec.Reason != "no_route" || !strings.Contains(rec.Cause, "removed listener egress") {
		t.Errorf("record %+v, %v", rec, err)
	}
}

// TestConfigurationFromAPipe proves that a configuration can be read from a pipe, once.
func TestConfigurationFromAPipe(t *testing.T) {
	t.Parallel()
	need(t, "bash")
	s := startServer(t, nil, echo)
	text := fmt.Sprintf("upstreams: {up: {endpoints: [%q]}}\nlisteners: {front: {listen: \"127.0.0.1:0\", upstream: up}}\n", s.addr)
	for _, script := range []string{`exec "$0" run -c <(printf %s "$1")`, `printf %s "$1" | "$0" run -c /dev/stdin`} {
		cmd := exec.Command("bash", "-c", script, binary, text)
		a := startCmd(t, cmd)
		if err := exchange(a.addr("front"), "hello"); err != nil {
			t.Errorf("%s: %v", script, err)
		}
		if _, stderr, code, err := ask(a.process, "reload"); err != nil || code != 1 || !strings.Contains(stderr, "a pipe cannot be read again") {
			t.Errorf("%s: reload: exit code %d, %v: %s", script, code, err, stderr)
		}
		if err := exchange(a.addr("front"), "hello"); err != nil {
			t.Errorf("%s, after the reload: %v", script, err)
		}
		if _, code := a.ask("quit"); code != 0 {
			t.Errorf("%s: quit: exit code %d", script, code)
		}
		a.ended(0)
	}
}
