package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// testOf runs `ambassador test` and returns what it printed and its exit code.
func testOf(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"test"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestLiveTest proves that `ambassador test` tells each stage of a connection, and of one
// that fails the cause and the fix that a session would have.
func TestLiveTest(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	here := []string{"--server-name", "localhost"}
	wants := func(ca string, more ...string) []string {
		return append([]string{"-Verify", "1", "-verify_return_error", "-CAfile", keys.file(ca + ".crt")}, more...)
	}
	for _, c := range []struct {
		name  string
		cert  string   // of the server
		flags []string // of the server
		args  []string // ours, beside --to
		code  int
		want  []string // in this order
	}{
		{"all is well", "server", wants("ca", "-www"), append(keys.client(), here...), 0,
			[]string{"ok   connect", `ok   certificate  "CN=server", issued by "CN=integration CA", 23h`, `left; root "CN=integration CA" in ` + keys.file("ca.crt") + "; TLS 1.3",
				`ok   identity     the server asked for our certificate, and did not refuse "CN=app"`, "ok   answer", "forward: ok (1 address)"}},
		{"nobody asks", "server", []string{"-www"}, append(keys.client(), here...), 0, []string{"ok   identity     the server did not ask for our certificate", "ok   answer"}},
		{"refused, TLS 1.3", "server", wants("other"), append(keys.client(), here...), 3,
			[]string{"ok   certificate", "FAIL identity     the server rejected our certificate (CN=app, issued by CN=integration CA): it does not trust that CA", "fix: "}},
		{"refused, TLS 1.2", "server", wants("other", "-tls1_2"), append(keys.client(), here...), 3,
			[]string{"ok   certificate", "FAIL identity     the server rejected our certificate", "fix: "}},
		{"none of ours", "server", wants("ca"), append([]string{"--ca", keys.file("ca.crt")}, here...), 3,
			[]string{"ok   certificate", "FAIL identity     the server requires a client certificate, and we sent none", "set tls.identity (--cert, --key)"}},
		{"closed after TLS", "server", nil, append(keys.client(), here...), 3, []string{"ok   identity", "FAIL answer       EOF", "fix: The upstream took the connection"}},
		{"the leaf as the root", "server", []string{"-www"}, append([]string{"--ca", keys.file("server.crt")}, here...), 0,
			[]string{`ok   certificate  "CN=server", issued by "CN=integration CA"`, "left; it is itself among the roots in " + keys.file("server.crt") + "; TLS 1.3"}},
		{"a leaf of the same CA as the root", "server", nil, append([]string{"--ca", keys.file("client.crt")}, here...), 3,
			[]string{"FAIL certificate", `no certificate that we trust (those of tls.ca) is a CA's: "CN=app"`, `fix: set tls.ca (--ca) to the certificate of the CA "CN=integration CA"`}},
		{"unknown CA", "server", nil, append([]string{"--ca", keys.file("other.crt")}, here...), 3,
			[]string{"FAIL certificate", "CN=integration CA", "fix: "}},
		{"expired", "server-expired", nil, append([]string{"--ca", keys.file("ca.crt")}, here...), 3,
			[]string{"FAIL certificate", "expired", "fix: "}},
		{"another name", "server-wrong", nil, append([]string{"--ca", keys.file("ca.crt")}, here...), 3,
			[]string{"FAIL certificate", "elsewhere.test", "fix: "}},
		{"an expired certificate of ours", "server", nil, append([]string{"--ca", keys.file("ca.crt"), "--cert", keys.file("client-expired.crt"), "--key", keys.file("client-expired.key")}, here...), 3,
			[]string{"FAIL identity", "expired", "fix: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := opensslServer(t, keys, c.cert, c.flags...)
			out, errs, code := testOf(t, append([]string{"--to", d.addr()}, c.args...)...)
			if code != c.code || errs != "" {
				t.Errorf("exit code %d and %q, want %d and nothing", code, errs, c.code)
			}
			inOrder(t, out, c.want...)
		})
	}
}

// inOrder checks that the text has all of want, one after the other.
func inOrder(t *testing.T, text string, want ...string) {
	t.Helper()
	rest := text
	for _, w := range want {
		_, after, found := strings.Cut(rest, w)
		if !found {
			t.Errorf("no %q, or not in this order, in\n%s", w, text)
			return
		}
		rest = after
	}
}

// TestLiveTestWithoutTLS proves it of dead ports, PROXY headers and closed connections.
func TestLiveTestWithoutTLS(t *testing.T) {
	t.Parallel()
	header := startServer(t, nil, func(s *server, c duplex) {
		line, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && strings.HasPrefix(line, "PROXY ") {
			io.WriteString(c, "220 mail.test ready\r\n")
		}
		<-s.done
	})
	hangUp := startServer(t, nil, earlyClose)
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	dead := "127.0.0.1:" + port
	file := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners: {front: {listen: "127.0.0.1:0", upstream: mail}}
upstreams:
  mail: {endpoints: [%q], proxy_protocol: v1}
  two: {endpoints: [%q, %q]}
  anywhere: {dynamic: true}
`, strings.Replace(header.addr, "127.0.0.1", "localhost", 1), dead, hangUp.addr))

	out, _, code := testOf(t, "-c", file)
	if code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	inOrder(t, out, "mail → localhost:", "ok   resolve      127.0.0.1:", "ok   connect", "ok   proxy", `ok   answer       the server said "220 mail.test ready\r\n"`,
		"two → "+dead, "FAIL connect", "refused", "fix: ", "two → "+hangUp.addr, "ok   connect", "s\n", "FAIL answer", "anywhere: skipped: it is dynamic", "--dest HOST:PORT", file+": failed (2 of 3 addresses)")

	if _, _, code := testOf(t, "-c", file, "mail"); code != 0 {
		t.Errorf("the test of one upstream: exit code %d, want 0", code)
	}
	if _, errs, code := testOf(t, "-c", file, "male"); code != 2 || !strings.Contains(errs, "mail, two, anywhere") {
		t.Errorf("of an unknown upstream: exit code %d and %q", code, errs)
	}
	var reply struct {
		OK        bool
		Upstreams []struct {
			Name      string
			Addresses []struct {
				Address string
				Stages  []struct {
					Stage, Detail, Reason, Hint string
					OK                          bool
				}
			}
		}
	}
	out, _, code = testOf(t, "-c", file, "two", "--json")
	if err := json.Unmarshal([]byte(out), &reply); err != nil || code != 3 || reply.OK || len(reply.Upstreams) != 1 {
		t.Fatalf("--json: exit code %d, %v\n%s", code, err, out)
	}
	if s := reply.Upstreams[0].Addresses[0].Stages[0]; s.Stage != "connect" || s.OK || s.Reason != "refused" || s.Hint == "" {
		t.Errorf("the stage of a dead port is %+v", s)
	}
}

// TestLiveTestOfDestinations proves that --dest opens what clients of a proxy ask for, by
// its rules and with its TLS, and sends nothing.
func TestLiveTestOfDestinations(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	mesh := opensslServer(t, keys, "server", "-Verify", "1", "-verify_return_error", "-CAfile", keys.file("ca.crt"), "-www")
	heard := make(chan int, 1)
	plain := startServer(t, nil, func(s *server, c duplex) {
		n, _ := io.Copy(io.Discard, c)
		heard <- int(n)
	})
	dead, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	port := func(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }
	file := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
dns: {servers: ["127.0.0.1:%s"]} # /etc/hosts is asked before
identities: {app: {files: {cert: %q, key: %q, ca: %q}}}
listeners:
  egress:
    listen: 127.0.0.1:0
    socks5: {}
    rules:
      - {name: mesh, host: localhost, port: %s, upstream: mesh}
      - {host: localhost, upstream: internet}
      - {host: orders.test, client: [10.1.0.0/16], upstream: fixed, report: "to be closed"}
      - {host: "*.invalid", upstream: internet}
      - {ip: [127.0.0.7/32], port: %s, upstream: internet}
      - {deny: "not on the list"}
  redirected: {listen: "127.0.0.1:0", original_destination: true, upstream: internet}
upstreams:
  mesh: {dynamic: true, tls: {identity: app}}
  internet: {dynamic: true}
  fixed: {endpoints: [%q]}
`, dead, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"), port(mesh.addr()), dead, plain.addr))

	local := "localhost:" + port(plain.addr)
	for _, c := range []struct {
		name string
		args []string
		code int
		want []string // in this order
	}{
		{"with TLS", []string{"--dest", "localhost:" + port(mesh.addr())}, 0, []string{"egress → localhost:", "ok   rule         rule mesh allows it, to upstream mesh", "mesh → localhost:",
			"ok   connect", `ok   certificate  "CN=server"`, `did not refuse "CN=app"`, "ok   answer", "ok (1 destination)"}},
		{"a dead port", []string{"--dest", "localhost:" + dead}, 3, []string{"rule #2 allows it, to upstream internet", "internet → localhost:" + dead + " (127.0.0.1:" + dead + ")", "FAIL connect", "refused", "fix: ", "failed (1 of 1 destination)"}},
		{"denied", []string{"--dest", "other.test:443"}, 3, []string{"FAIL rule         rule #6: not on the list", "fix: "}},
		{"a name that does not exist", []string{"--dest", "x.invalid:443"}, 3, []string{"ok   rule         rule #4", "FAIL resolve", "x.invalid", "fix: "}},
		{"special", []string{"--dest", "127.0.0.1:443", "--as", "listener=redirected"}, 3, []string{"redirected → 127.0.0.1:443", "ok   rule         the listener has no rules: all goes to upstream internet", "FAIL special", "loopback", "fix: "}},
		{"by who asks", []string{"--dest", "orders.test:5432", "--as", "client=10.1.2.3"}, 0, []string{"ok   rule         rule #3 allows it, to upstream fixed, and reports it: to be closed", "fixed → " + plain.addr, "ok   answer", "ok (1 destination)"}},
		{"through each listener that it fits", []string{"--dest", "127.0.0.7:" + dead}, 3, []string{"egress → 127.0.0.7:", "rule #5", "FAIL connect", "redirected → 127.0.0.7:", "FAIL special", "loopback", "no rule opens", "failed (2 of 2 destinations)"}},
		{"with upstreams", []string{"fixed", "--dest", "other.test:443"}, 3, []string{"fixed → " + plain.addr, "egress → other.test:443", "failed (1 of 1 destination)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, errs, code := testOf(t, append([]string{"-c", file}, c.args...)...)
			if code != c.code || errs != "" {
				t.Errorf("exit code %d and %q, want %d and nothing", code, errs, c.code)
			}
			inOrder(t, out, c.want...)
			if strings.Contains(out, plain.addr) {
				if n := <-heard; n != 0 {
					t.Errorf("the server received %d bytes", n)
				}
			}
		})
	}

	var reply struct {
		OK           bool
		Upstreams    []any
		Destinations []struct {
			Destination, Listener, Upstream string
			OK                              bool
			Stages                          []struct{ Stage string }
			Addresses                       []struct{ Address string }
		}
	}
	out, _, code := testOf(t, "-c", file, "--dest", local, "--json")
	if err := json.Unmarshal([]byte(out), &reply); err != nil || code != 0 || !reply.OK || len(reply.Upstreams) != 0 || len(reply.Destinations) != 1 {
		t.Fatalf("--json: exit code %d, %v\n%s", code, err, out)
	}
	if d := reply.Destinations[0]; d.Destination != local || d.Listener != "egress" || d.Upstream != "internet" || !d.OK || d.Stages[0].Stage != "rule" || len(d.Addresses) == 0 {
		t.Errorf("--json: %+v", d)
	}
}

// TestLiveTestIsBounded proves that --timeout and SIGINT end the test of a server that
// says nothing.
func TestLiveTestIsBounded(t *testing.T) {
	t.Parallel()
	s := startServer(t, nil, silent)
	out, _, code := testOf(t, "--to", s.addr, "--timeout", "300ms")
	if code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	inOrder(t, out, "ok   connect", "FAIL tls", "the test ended by --timeout")

	cmd := exec.Command(binary, "test", "--to", s.addr)
	var errs strings.Builder
	cmd.Stderr = &errs
	dialled := make(chan struct{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			close(dialled)
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	cmd.Args[3] = ln.Addr().String()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-dialled:
	case <-time.After(10 * time.Second):
		cmd.Process.Kill()
		t.Fatal("nothing was dialled")
	}
	cmd.Process.Signal(os.Interrupt)
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(errs.String(), "interrupted") {
		t.Errorf("exit code %d and %q, want 1 and the word interrupted", cmd.ProcessState.ExitCode(), errs.String())
	}
}

// TestLiveTestOfPostgres proves it through STARTTLS with a real PostgreSQL.
func TestLiveTestOfPostgres(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	db := newPostgres(t, keys)
	args := append([]string{"--to", "localhost:" + db.port}, keys.client()...)
	out, errs, code := testOf(t, append(args, "--starttls", "postgres")...)
	if code != 0 || errs != "" {
		t.Errorf("exit code %d and %q, want 0", code, errs)
	}
	inOrder(t, out, "ok   resolve", "ok   connect", "ok   starttls     postgres: the server agreed to TLS", `ok   certificate  "CN=server"`, `did not refuse "CN=app"`, "ok   answer")

	out, _, code = testOf(t, args...)
	if code != 3 {
		t.Errorf("without starttls: exit code %d, want 3", code)
	}
	inOrder(t, out, "ok   connect", "FAIL tls", "fix: ")
}
