package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ambassador/l4"
)

// loginRefused is the code of ask where the login is not taken.
const loginRefused = 255

// ask asks in SOCKS5 for "HOST:PORT", and gives the connection with the reply's code:
// one that is refused is closed. User is "NAME:PASSWORD"; empty: nobody logs in.
func ask(t *testing.T, at, user, dest string) (c net.Conn, code byte) {
	t.Helper()
	c = dialPrinted(t, at)
	method := byte(0)
	if user != "" {
		method = 2
	}
	c.Write([]byte{5, 1, method})
	if b := readN(t, c, 2); b[1] != method {
		t.Fatalf("%s: the method is %d, want %d", dest, b[1], method)
	}
	if name, password, ok := strings.Cut(user, ":"); ok {
		c.Write([]byte("\x01" + string(rune(len(name))) + name + string(rune(len(password))) + password))
		if b := readN(t, c, 2); b[1] != 0 {
			c.Close()
			return c, loginRefused
		}
	}
	host, port, err := net.SplitHostPort(dest)
	if err != nil {
		t.Fatal(err)
	}
	ap, err := netip.ParseAddrPort("0.0.0.0:" + port)
	if err != nil {
		t.Fatal(err)
	}
	c.Write(binary.BigEndian.AppendUint16([]byte("\x05\x01\x00\x03"+string(rune(len(host)))+host), ap.Port()))
	head := readN(t, c, 4)
	if address := map[byte]int{1: 4, 4: 16}[head[3]]; address > 0 {
		readN(t, c, address+2)
	}
	if head[1] != 0 {
		c.Close()
	}
	return c, head[1]
}

func readN(t *testing.T, c net.Conn, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// localhost is an address as a client asks for it by name.
func localhost(addr string) string { return strings.Replace(addr, "127.0.0.1", "localhost", 1) }

// runSOCKS5 runs `socks5` until stop, which gives all that it has printed.
func runSOCKS5(t *testing.T, args ...string) (at string, log *output, stop func() string) {
	t.Helper()
	t.Setenv("RUNTIME_DIRECTORY", shortDir(t))
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	out, code := newOutput(), make(chan int, 1)
	log = newOutput()
	go func() { // stop waits for it
		code <- run(ctx, append([]string{"socks5", "--admin", "", "--listen", "127.0.0.1:0"}, args...), strings.NewReader(""), out, log)
	}()
	at = out.await(t, `listening socks5 (\S+)\n`)[1]
	return at, log, func() string {
		cancel()
		if got := <-code; got != 0 {
			t.Errorf("exit code %d:\n%s", got, log)
		}
		return out.String()
	}
}

func TestWhatSOCKS5Does(t *testing.T) {
	echo, other := namedEcho(t, "one"), namedEcho(t, "two")
	at, _, stop := runSOCKS5(t, "--allow", localhost(echo))
	c, code := ask(t, at, "", localhost(echo))
	if code != 0 {
		t.Fatalf("what is allowed is refused with %d", code)
	}
	says(t, c, "hello", "one: hello")
	for _, dest := range []string{localhost(other), "nowhere.invalid:443", echo} {
		if _, code := ask(t, at, "", dest); code != 2 {
			t.Errorf("%s: reply %d, want 2", dest, code)
		}
	}
	if out := stop(); out != "listening socks5 "+at+"\n" {
		t.Errorf("it printed %q", out)
	}
}

func TestWhatReportDoes(t *testing.T) {
	echo := namedEcho(t, "one")
	at, log, stop := runSOCKS5(t, "--report", "--allow", localhost(echo))
	c, code := ask(t, at, "", localhost(echo))
	if code != 0 {
		t.Fatalf("what is allowed is refused with %d", code)
	}
	c.Close()
	if _, code := ask(t, at, "", localhost(nobody(t))); code != 2 {
		t.Errorf("--report opens loopback: reply %d, want 2", code)
	}
	if _, code := ask(t, at, "", "10.0.0.7:80"); code != 2 {
		t.Errorf("--report opens private addresses: reply %d, want 2", code)
	}
	log.await(t, `(?s)("reason":"special_address".*){2}`)
	out := stop()
	for _, want := range []string{"# not in --allow, and allowed by --report:\n--allow '10.0.0.7:80'  # 1 session, 1 special_address\n--allow 'localhost:", "- {ip: \"10.0.0.7\", port: 80, upstream: direct}\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("it printed\n%s\nwithout\n%s", out, want)
		}
	}
	if strings.Contains(out, localhost(echo)) {
		t.Errorf("what is allowed is reported:\n%s", out)
	}
}

func TestUsersOfARunningProcess(t *testing.T) {
	echo := namedEcho(t, "one")
	users := filepath.Join(t.TempDir(), "users")
	writeFile(t, users, htpasswdLine(t, "alice", "wonderland"))
	s := serveFile(t, fmt.Sprintf(`
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: 127.0.0.1:0
    socks5: {users_file: %s}
    rules: [{user: [alice, bob], host: localhost, upstream: net}]
`, users))
	at := s.addr("egress")
	for user, want := range map[string]byte{"alice:wonderland": 0, "alice:builder": loginRefused, "bob:builder": loginRefused} {
		if _, code := ask(t, at, user, localhost(echo)); code != want {
			t.Errorf("%s: %d, want %d", user, code, want)
		}
	}
	writeFile(t, users, htpasswdLine(t, "bob", "builder"))
	s.err.await(t, "users renewed")
	if _, code := ask(t, at, "bob:builder", localhost(echo)); code != 0 {
		t.Errorf("a new user: %d", code)
	}
	if err := os.Remove(users); err != nil {
		t.Fatal(err)
	}
	s.err.await(t, "users not renewed")
	if body, status := s.admin("GET", "/v1/status"); status != 200 || !strings.Contains(body, `"rules": 1`) || !strings.Contains(body, "no such file") {
		t.Errorf("status: %d %s", status, body)
	}
	s.err.await(t, `(?s)("reason":"auth_failed".*){2}`)
	if body, _ := s.admin("GET", "/v1/sessions"); !strings.Contains(body, `"user": "bob"`) {
		t.Errorf("sessions: %s", body)
	}
}

// A reload changes what rules decide, and which have series; live sessions go on.
func TestRulesReload(t *testing.T) {
	echo := namedEcho(t, "one")
	text := `
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: 127.0.0.1:0
    socks5: {}
    rules:
      - {name: RULE, host: localhost, upstream: net}
`
	s := serveFile(t, strings.Replace(text, "RULE", "first", 1))
	at := s.addr("egress")
	if page, _ := s.admin("GET", "/metrics"); !strings.Contains(page, `ambassador_sessions_active{listener="egress",upstream="net"} 0`+"\n") {
		t.Errorf("before the first session there are no series of it:\n%s", ourLines(page))
	}
	live, code := ask(t, at, "", localhost(echo))
	if code != 0 {
		t.Fatalf("reply %d", code)
	}
	says(t, live, "before", "one: before")
	page, _ := s.admin("GET", "/metrics")
	for _, line := range []string{`ambassador_rules_total{listener="egress",rule="first",verdict="allow"} 1`, `ambassador_rules_total{listener="egress",rule="",verdict="none"} 0`,
		`ambassador_sessions_active{listener="egress",upstream="net"} 1`} {
		if !strings.Contains(page, line+"\n") {
			t.Errorf("lacks %s in\n%s", line, ourLines(page))
		}
	}
	writeFile(t, s.config, strings.Replace(text, "RULE", "second, port: 1", 1))
	if body, status := s.admin("POST", "/v1/reload"); status != 200 {
		t.Fatalf("reload: %d %s", status, body)
	}
	if _, code := ask(t, at, "", localhost(echo)); code != 2 {
		t.Errorf("after the reload: reply %d, want 2", code)
	}
	says(t, live, "after", "one: after")
	page, _ = s.admin("GET", "/metrics")
	if strings.Contains(page, `rule="first"`) || !strings.Contains(page, `ambassador_rules_total{listener="egress",rule="",verdict="none"} 1`+"\n") {
		t.Errorf("after the reload:\n%s", ourLines(page))
	}
}

// Nobody is connected to the admin API, whatever the rules allow.
func TestAdminIsGuarded(t *testing.T) {
	s := serveFile(t, `
admin: {listen: "127.0.0.1:0"}
metrics: {listen: "127.0.0.1:0"}
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: 127.0.0.1:0
    socks5: {}
    rules: [{host: localhost, upstream: net}, {ip: 127.0.0.0/8, upstream: net}]
`)
	for _, name := range []string{"admin", "metrics", "egress"} {
		for _, dest := range []string{s.addr(name), localhost(s.addr(name))} {
			if _, code := ask(t, s.addr("egress"), "", dest); code != 2 {
				t.Errorf("%s at %s: reply %d, want 2", name, dest, code)
			}
		}
	}
	s.err.await(t, `(?s)("reason":"`+string(l4.ReasonLoop)+`".*){6}`)
}

// A client that knows no TLS reaches a service that takes only certificates, by the
// name that it asks for or that the configuration has.
func TestMTLSByRule(t *testing.T) {
	d, err := newDemo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	s := serveFile(t, fmt.Sprintf(`
identities: {me: {files: {cert: %[1]s/client.crt, key: %[1]s/client.key, ca: %[1]s/ca.crt}}}
upstreams:
  asked: {dynamic: true, tls: {identity: me}}
  fixed: {dynamic: true, tls: {identity: me, server_name: localhost}}
  other: {dynamic: true, tls: {identity: me, server_name: other.internal}}
listeners:
  asked: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: localhost, upstream: asked}]}
  fixed: {listen: "127.0.0.1:0", socks5: {}, rules: [{ip: 127.0.0.0/8, upstream: fixed}]}
  other: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: localhost, upstream: other}]}
`, d.folder))
	address := d.service.Addr().String()
	for _, tt := range []struct {
		listener, dest string
		want           byte
	}{{"asked", localhost(address), 0}, {"fixed", address, 0}, {"other", localhost(address), 1}} {
		c, code := ask(t, s.addr(tt.listener), "", tt.dest)
		if code != tt.want {
			t.Errorf("%s by %s: reply %d, want %d:\n%s", tt.dest, tt.listener, code, tt.want, s.err)
		}
		if code == 0 {
			says(t, c, "hi", "hello demo-client: hi")
		}
	}
}

// What a client says of its own connection is on its record.
func TestContextOfAUser(t *testing.T) {
	echo := namedEcho(t, "one")
	users := filepath.Join(t.TempDir(), "users")
	writeFile(t, users, htpasswdLine(t, "alice", "wonderland"))
	s := serveFile(t, fmt.Sprintf(`
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: 127.0.0.1:0
    socks5: {users_file: %s}
    context: true
    rules: [{user: alice, host: localhost, upstream: net}]
`, users))
	c, code := ask(t, s.addr("egress"), "alice+attempts=1+tag=job-7:wonderland", localhost(echo))
	if code != 0 {
		t.Fatalf("reply %d:\n%s", code, s.err)
	}
	c.Close()
	s.err.await(t, `"user":"alice".*"reason":"probe".*"tag":"job-7"`)
	if _, code := ask(t, s.addr("egress"), "alice+atempts=1:wonderland", localhost(echo)); code == 0 {
		t.Error("an unknown key is taken")
	}
}

// On a unix socket the system says who it is.
func TestUIDByRule(t *testing.T) {
	echo := namedEcho(t, "one")
	for uid, want := range map[int]byte{os.Getuid(): 0, os.Getuid() + 1: 2} {
		s := serveFile(t, fmt.Sprintf(`
upstreams: {net: {dynamic: true}}
listeners:
  egress:
    listen: unix:%s/s
    socks5: {}
    rules: [{uid: %d, host: localhost, upstream: net}]
`, shortDir(t), uid))
		if _, code := ask(t, s.addr("egress"), "", localhost(echo)); code != want {
			t.Errorf("uid %d, rule for %d: reply %d, want %d", os.Getuid(), uid, code, want)
		}
	}
}
