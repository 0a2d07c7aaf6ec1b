package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestLogOfSessions proves which sessions each value of log.sessions keeps out of the log, and
// that all of them are counted and known to `why`. Checks are connections without a byte, of
// netcat and of a client that resets, as balancers do.
func TestLogOfSessions(t *testing.T) {
	t.Parallel()
	needNetcat(t)
	s, err := serve(nil, func(_ *server, c duplex) {
		switch text, _ := bufio.NewReader(c).ReadString('\n'); text {
		case "good\n":
			io.WriteString(c, "done\n")
		case "fail\n":
			c.(*net.TCPConn).SetLinger(0) // a reset
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	want := map[string]string{"all": "closed probe probe upstream_early_close", "no_probes": "closed upstream_early_close", "failures": "upstream_early_close", "none": ""}
	var file strings.Builder
	fmt.Fprintf(&file, "upstreams:\n  up: {endpoints: [%q], required: false, breaker: {failures: 0}}\nlisteners:\n", s.addr)
	for value := range want {
		fmt.Fprintf(&file, "  %s: {listen: \"127.0.0.1:0\", upstream: up, log: {sessions: %s}}\n", value, value)
	}
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", file.String()))
	for value := range want {
		for _, text := range []string{"good\n", "fail\n"} {
			c := a.connect(value)
			io.WriteString(c, text)
			io.Copy(io.Discard, c)
			c.Close()
		}
		host, port, _ := net.SplitHostPort(a.addr(value))
		if out, err := exec.Command("nc", "-z", host, port).CombinedOutput(); err != nil {
			t.Fatalf("nc -z: %v: %s", err, out)
		}
		c := a.connect(value)
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		a.metric(`ambassador_sessions_total{listener="`+value+`",reason="probe"}`, 2)
		a.metric(`ambassador_sessions_total{listener="`+value+`",reason="upstream_early_close"}`, 1)
	}
	if out, code := a.ask("sessions", "--recent", "--listener", "none"); code != 0 || strings.Count(out, "probe") != 2 {
		t.Errorf("sessions of a listener whose sessions are not logged:\n%s", out)
	}
	a.signal(os.Interrupt)
	a.ended(0)
	for value, reasons := range want {
		var got []string
		for _, reason := range []string{"closed", "probe", "upstream_early_close"} {
			line := regexp.MustCompile(`(?m)"msg":"session".*"listener":"` + value + `".*"reason":"` + reason + `"`)
			for range line.FindAllString(a.stderr.String(), -1) {
				got = append(got, reason)
			}
		}
		if text := strings.Join(got, " "); text != reasons {
			t.Errorf("log.sessions: %s logs %q, want %q", value, text, reasons)
		}
	}
}

// TestCompletionAsksTheProcess proves that the shell completes ids and names of a running
// ambassador.
func TestCompletionAsksTheProcess(t *testing.T) {
	t.Parallel()
	s := startServer(t, nil, echo)
	a := start(t, "run", "-c", frontFile(t, s.addr, "", ""))
	c := a.connect("front")
	line(t, c, "hello")
	m := a.openID()
	for command, want := range map[string]string{"kill ": m, "why ": m, "sessions --listener ": "front\n", "wait --upstream ": "up\n"} {
		words := strings.Split(command, " ")
		complete := exec.Command(binary, append([]string{"__complete"}, words...)...)
		complete.Env = a.cmd.Env
		out, err := complete.Output()
		if err != nil || !strings.Contains(string(out), want) || !strings.HasSuffix(string(out), ":4\n") {
			t.Errorf("completion of %q: %v, %q; want %q", command, err, out, want)
		}
	}
}

// openID is the id of the only open session, as the shell completes it.
func (a *ambassador) openID() string {
	a.t.Helper()
	out, _ := a.ask("sessions", "--json")
	m := regexp.MustCompile(`"id": ?"([^"]+)"`).FindStringSubmatch(out)
	if m == nil {
		a.t.Fatalf("no session in %s", out)
	}
	return m[1] + "\t"
}
