package integration

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// netcatForms are the three of Debian, each with the forms that README has: a server that
// takes one connection, and a client that half-closes, or that waits a second for the
// answer as it cannot.
var netcatForms = []struct{ program, server, client string }{
	{"nc.openbsd", "nc -l 127.0.0.1 8000", "nc -N 127.0.0.1 7000"},
	{"nc.traditional", "nc -l -s 127.0.0.1 -p 8000", "nc -q 1 127.0.0.1 7000"},
	{"ncat", "ncat -l 127.0.0.1 8000", "ncat 127.0.0.1 7000"},
}

// netcatForm starts one form with other ports, and with a line to send.
func netcatForm(t testing.TB, program, form, port, line string, flags ...string) *process {
	t.Helper()
	words := strings.Fields(form)
	last := len(words) - 1
	words[last] = port
	cmd := exec.Command(program, append(flags, words[1:]...)...)
	cmd.Stdin = strings.NewReader(line + "\n")
	p, err := launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.running() {
			p.signal(os.Kill)
			p.exit(patience)
		}
	})
	return p
}

// listensAt waits until a server started with -v says that it listens.
func listensAt(t testing.TB, p *process) {
	t.Helper()
	if _, err := p.stderr.awaitAfter(0, regexp.MustCompile(`(?i)listening on`), patience, p.exited); err != nil {
		t.Fatalf("%s: %v\n%s", p.cmd, err, p.stderr)
	}
}

// said checks how a netcat ends, and what it has printed.
func said(t testing.TB, p *process, want string) {
	t.Helper()
	code, err := p.exit(patience)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.stdout.String(); code != 0 || got != want {
		t.Errorf("%s: exit code %d, output %q; want 0, %q\n%s", p.cmd, code, got, want, p.stderr)
	}
}

// TestNetcatAtEachEnd proves that the obvious test works with each netcat at each end, as it
// does without the ambassador: the one connection of the server is the session's. The
// ambassador does not spend it on a probe, neither before the first session, nor after
// sessions that found no server.
func TestNetcatAtEachEnd(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	section := strings.Join(strings.Fields(string(readme)), " ") // without line breaks
	for _, n := range netcatForms {
		need(t, n.program)
		if !strings.Contains(section, n.server) || !strings.Contains(section, n.client) {
			t.Errorf("README has not both %q and %q", n.server, n.client)
		}
	}
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, "forward", "--plain", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:"+port)
	through := strings.TrimPrefix(a.addr("forward"), "127.0.0.1:")
	netcatForm(t, netcatForms[0].program, netcatForms[0].client, through, "hello").exit(patience) // it is early
	a.metric("ambassador_sessions_total{reason=refused}", 1)
	sessions := 0
	for _, s := range netcatForms {
		for _, c := range netcatForms {
			for _, to := range []string{port, through} {
				for again := 5; ; again-- {
					mark := a.stderr.len()
					server := netcatForm(t, s.program, s.server, port, "reply", "-v")
					listensAt(t, server)
					said(t, netcatForm(t, c.program, c.client, to, "hello"), "reply\n")
					sent := ""
					if to == through {
						sessions++
						sent = a.awaitAfter(mark, `"msg":"session".*"bytes_up":(\d+)`)[1]
					}
					// Some clients end without reading their input if the server's end comes first,
					// as it can on a busy host.
					if code, err := server.exit(patience); again > 0 && err == nil && code == 0 && server.stdout.len() == 0 && (sent == "" || sent == "0") {
						continue
					}
					said(t, server, "hello\n")
					break
				}
			}
		}
	}
	a.metric("ambassador_sessions_total{reason=closed}", float64(sessions))
	a.metric("ambassador_attempts_total{reason=ok}", float64(sessions))
}

// TestNetcatWithTLS proves the same for a TLS server that takes one connection.
func TestNetcatWithTLS(t *testing.T) {
	t.Parallel()
	need(t, "ncat", "nc.openbsd")
	keys := newPKI(t)
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	server := netcatForm(t, "ncat", "ncat -l 127.0.0.1 PORT", port, "reply", "-v", "--ssl", "--ssl-cert", keys.file("server.crt"), "--ssl-key", keys.file("server.key"))
	listensAt(t, server)
	a := start(t, "forward", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:"+port, "--server-name", "localhost", "--ca", keys.file("ca.crt"))
	through := strings.TrimPrefix(a.addr("forward"), "127.0.0.1:")
	said(t, netcatForm(t, "nc.openbsd", netcatForms[0].client, through, "hello"), "reply\n")
	said(t, server, "hello\n")
}

// TestNoHealth proves that --no-health is ready at once, and that a question about
// readiness then costs a server no connection. Without it such a question is the trial.
func TestNoHealth(t *testing.T) {
	t.Parallel()
	need(t, "nc.openbsd")
	for _, flag := range []string{"", "--no-health"} {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"forward", "--plain", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:" + port}
		if flag != "" {
			args = append(args, flag)
		}
		a := start(t, args...)
		through := strings.TrimPrefix(a.addr("forward"), "127.0.0.1:")
		early, code := a.ask("wait", "--timeout", "1s")
		if want := map[string]int{"": 1, "--no-health": 0}[flag]; code != want {
			t.Errorf("wait without a server, %q: exit code %d, want %d: %s", flag, code, want, early)
		}
		server := netcatForm(t, "nc.openbsd", netcatForms[0].server, port, "reply", "-v")
		listensAt(t, server)
		if out, code := a.ask("wait"); code != 0 {
			t.Errorf("wait with a server, %q: exit code %d: %s", flag, code, out)
		}
		want := map[string]string{"": "", "--no-health": "hello\n"}[flag]
		if flag != "" {
			said(t, netcatForm(t, "nc.openbsd", netcatForms[0].client, through, "hello"), "reply\n")
		}
		said(t, server, want)
		if flag == "" && !strings.Contains(fmt.Sprint(a.stderr), "upstream reached") {
			t.Error("the trial has not reached the server")
		}
	}
}
