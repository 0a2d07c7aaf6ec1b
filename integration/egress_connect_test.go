package integration

import (
	"bufio"
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// connectFile is a configuration with an HTTP CONNECT proxy for all of this host,
// with rules and upstreams that can fail in every way.
func connectFile(t testing.TB, keys *pki, users, dns string) string {
	t.Helper()
	return writeFile(t, "ambassador.yaml", fmt.Sprintf(`
dns: {servers: ["%s"]}
upstreams:
  internet: {dynamic: true, connect: {timeout: 500ms, attempts: 1}, breaker: {failures: 2, open: 30s}}
  secure: {dynamic: true, connect: {timeout: 2s, attempts: 1}, tls: {ca: %s}}
listeners:
  connect:
    listen: "127.0.0.1:0"
    http_connect: {users_file: %s}
    context: true
    rules:
      - {deny: "not on the list", host: denied.test}
      - {host: secure.test, ip: [127.0.0.0/8], upstream: secure}
      - {host: localhost, upstream: internet}
      - {host: unknown.test, upstream: internet}
      - {ip: [127.0.0.0/8], upstream: internet}
      - {port: 9, upstream: internet}
  open: {listen: "127.0.0.1:0", http_connect: {}, rules: [{ip: [127.0.0.0/8], upstream: internet}]}
`, dns, keys.file("ca.crt"), users))
}

// TestCONNECT proves an HTTP proxy for CONNECT by curl and nc: what works, with and
// without a login, and what curl prints of each way to fail.
func TestCONNECT(t *testing.T) {
	t.Parallel()
	needNetcat(t)
	need(t, "curl")
	keys := newPKI(t)
	url, port := webServer(t)
	cfg, err := keys.server("server-other", "")
	if err != nil {
		t.Fatal(err)
	}
	untrusted := startServer(t, cfg, echoLines)
	z := startZone(t, func(q question) answer {
		switch q.name {
		case "secure.test":
			return answer{addrs: []string{"127.0.0.1"}}
		case "elsewhere.test":
			return answer{addrs: []string{"198.41.0.4"}}
		case "inner.test":
			return answer{addrs: []string{"10.1.2.3"}}
		}
		return answer{unknown: true}
	})
	a := start(t, "run", "-c", connectFile(t, keys, usersFile(t, "batch:secret"), z.addr))
	proxy := "http://" + a.addr("connect")
	login := []string{"--proxy-user", "batch:secret"}
	if got := run(t, proxied(url+"/c", "-x", proxy, "--proxytunnel", "--proxy-user", "batch:secret")); got != "you asked for /c" {
		t.Errorf("curl got %q", got)
	}
	a.await(`"listener":"connect".*"user":"batch".*"destination":"localhost:` + port + `".*"reason":"closed"`)

	dead, stuck := closedPort(t).addr, fullQueue(t).addr
	for _, c := range []struct {
		name, url, status, fields string
		args                      []string
	}{
		{"denied", "http://denied.test/", "403", `error=http_request_denied; details="denied: .*not on the list`, login},
		{"no rule", "http://elsewhere.test/", "403", `error=http_request_denied; details="no_route: `, login},
		{"special", "http://169.254.169.254:9/", "403", `error=destination_ip_prohibited; details="special_address: `, login},
		{"special by name", "http://inner.test:9/", "403", `error=destination_ip_prohibited; details="special_address: [^"]*inner.test:9 leads to special addresses only`, login},
		{"loop", proxy, "403", `error=proxy_loop_detected; details="loop: `, login},
		{"no login", url, "407", `error=http_request_denied; details="auth_failed: `, nil},
		{"wrong password", url, "407", `error=http_request_denied; details="auth_failed: `, []string{"--proxy-user", "batch:wrong"}},
		{"refused", "http://" + dead, "502", `error=connection_refused; details="refused: `, login},
		{"unknown name", "http://unknown.test/", "502", `error=dns_error; details="dns: `, login},
		{"untrusted", "http://secure.test:" + hostPort(untrusted.addr), "502", `error=tls_certificate_error; details="upstream_tls: `, login},
		{"silent", "http://" + stuck, "504", `error=connection_timeout; details="timeout: `, login},
		{"again", "http://" + stuck, "504", `error=connection_timeout; details="timeout: `, login},
		{"left alone", "http://" + stuck, "503", `error=destination_unavailable; details="breaker_open: .*(?s:.*)< Retry-After: [123]?\d\r\n`, login},
	} {
		_, stderr, err := try(proxied(c.url, append([]string{"-v", "-x", proxy, "--proxytunnel"}, c.args...)...))
		re := regexp.MustCompile(`< HTTP/1.1 ` + c.status + ` [^\r]*\r\n< Proxy-Status: ambassador; ` + c.fields)
		if err == nil || !re.MatchString(stderr) {
			t.Errorf("%s: curl says %v, want %s in\n%s", c.name, err, re, stderr)
		}
		if strings.Contains(stderr, "10.1.2.3") {
			t.Errorf("%s: curl learns the address of a name that it may not reach:\n%s", c.name, stderr)
		}
	}
	a.await(`"destination":"inner.test:9".*"reason":"special_address","cause":"inner.test:9: 10.1.2.3 is private`)
	// Without --proxytunnel curl asks the proxy to fetch, which is not its business.
	text, stderr, err := try(proxied(url, "-v", "-x", proxy, "--proxy-user", "batch:secret"))
	if err != nil || !strings.Contains(stderr, "< HTTP/1.1 405 Method Not Allowed\r\n") || !strings.Contains(stderr, "< Allow: CONNECT\r\n") || !strings.Contains(text, "--proxytunnel") {
		t.Errorf("curl without CONNECT: %v, %q\n%s", err, text, stderr)
	}

	echo := startServer(t, nil, echoLines)
	cmd := exec.Command("nc", "-N", "-X", "connect", "-x", a.addr("open"), "127.0.0.1", hostPort(echo.addr))
	cmd.Stdin = strings.NewReader("by nc\n")
	if got := run(t, cmd); got != "by nc" {
		t.Errorf("nc -X connect got %q", got)
	}
}

// TestCONNECTByHand tests unusual clients: bytes behind the request go to the
// upstream; invalid or endless heads are answered 400.
func TestCONNECTByHand(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	echo := startServer(t, nil, echoLines)
	a := start(t, "run", "-c", connectFile(t, keys, usersFile(t, "batch:secret"), "127.0.0.1:1"))
	ask := func(listener, text string) (*http.Response, *bufio.Reader) {
		t.Helper()
		c := a.connect(listener)
		go fmt.Fprint(c, text) // ends by the connection's deadline: it may be more than the proxy reads
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
		if err != nil {
			t.Fatal(err)
		}
		return resp, in
	}
	resp, in := ask("open", "CONNECT "+echo.addr+" HTTP/1.1\r\nHost: "+echo.addr+"\r\n\r\nearly bytes\n")
	if got, err := in.ReadString('\n'); resp.StatusCode != 200 || got != "early bytes\n" {
		t.Errorf("status %d, then %q, %v", resp.StatusCode, got, err)
	}
	for _, head := range []string{
		"CONNECT nowhere HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT a:0 HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT a:65536 HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT 127.1:80 HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "GIBBERISH\r\n\r\n", "CONNECT a:80 HTTP/1.1\r\nX: " + strings.Repeat("y", 20<<10) + "\r\n\r\n",
		"CONNECT " + echo.addr + " HTTP/1.1\r\n\r\n", "CONNECT " + echo.addr + " HTTP/1.1\r\nHost : a\r\n\r\n",
	} {
		resp, _ := ask("open", head)
		if status := resp.Header.Get("Proxy-Status"); resp.StatusCode != 400 || !strings.HasPrefix(status, "ambassador; error=http_request_error; ") {
			t.Errorf("%.40q: status %d, Proxy-Status %s", head, resp.StatusCode, status)
		}
	}
	a.metric("ambassador_sessions_total{listener=open,stage=greet,reason=bad_greeting}", 9)
}
