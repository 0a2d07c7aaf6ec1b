package l4

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	connectCurl = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nUser-Agent: curl/8.17.0\r\nProxy-Connection: Keep-Alive\r\n\r\n"
	connectNC   = "CONNECT 10.0.0.7:22 HTTP/1.0\r\n\r\n"
	// connectUser is batch's, with the password pw.
	connectUser = "Proxy-Authorization: Basic YmF0Y2g6cHc=\r\n"
)

// connectWith is a request with more in its head.
func connectWith(headers string) string {
	return "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n" + headers + "\r\n"
}

func TestConnectRequests(t *testing.T) {
	testGood(t, readConnect, []goodRequest{
		{name: "curl", says: connectCurl, to: "example.com:443"},
		{name: "nc", says: connectNC, to: "10.0.0.7:22"},
		{name: "lines that end in LF", says: "CONNECT example.com:443 HTTP/1.1\nHost: a\n\n", to: "example.com:443"},
		{name: "another spelling", says: "CONNECT Example.COM.:443 HTTP/1.1\r\nHost: a\r\n\r\n", to: "example.com:443"},
		{name: "IPv6", says: "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: a\r\n\r\n", to: "[2001:db8::1]:443"},
		{name: "IPv4 in IPv6", says: "CONNECT [::ffff:127.0.0.1]:443 HTTP/1.1\r\nHost: a\r\n\r\n", to: "127.0.0.1:443"},
		{name: "an empty line before", says: "\r\n" + connectCurl, to: "example.com:443"},
		{name: "HTTP/1.0 with Host", says: "CONNECT example.com:443 HTTP/1.0\r\nHost: example.com\r\n\r\n", to: "example.com:443"},
		{name: "a Host without the port, as Java sends it", says: "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", to: "example.com:443"},
		{name: "another Host", says: "CONNECT example.com:443 HTTP/1.1\r\nHost: example.org:80\r\n\r\n", to: "example.com:443"},
		{name: "an empty Host", says: "CONNECT example.com:443 HTTP/1.1\r\nHost:\r\n\r\n", to: "example.com:443"},
		{name: "no space behind a colon, and several", says: "CONNECT example.com:443 HTTP/1.1\r\nhost:example.com\r\nX: \t a \t\r\n\r\n", to: "example.com:443"},
		{name: "a value of other letters", says: connectWith("X: \xfc\u00fc\ta\r\nX:\r\n"), to: "example.com:443"},
		{name: "as many headers as there may be", says: connectWith(strings.Repeat("X: y\r\n", maxHTTPFields-1)), to: "example.com:443"},
		{name: "an empty body", says: connectWith("Content-Length: 0\r\n"), to: "example.com:443"},
		{name: "a user", says: connectWith(connectUser), auth: batch, to: "example.com:443", user: "batch"},
		{name: "a user for nobody", says: connectWith(connectUser), to: "example.com:443"},
		{name: "a context", says: connectWith("ambassador-context: attempts=1,tag=x\r\n"), context: true, to: "example.com:443", tells: "attempts=1,tag=x"},
		{name: "two contexts", says: connectWith("Ambassador-Context: attempts=1\r\nAmbassador-Context: tag=x\r\n"), context: true, to: "example.com:443", tells: "attempts=1,tag=x"},
		{name: "no context", says: connectCurl, context: true, to: "example.com:443"},
		{name: "the largest head", says: connectWith("Cookie: " + strings.Repeat("x", maxConnectHead-len(connectWith("Cookie: \r\n"))) + "\r\n"), to: "example.com:443"},
	})
}

func TestBadConnectRequests(t *testing.T) {
	const bad = "HTTP/1.1 400 Bad Request\r\nProxy-Status: ambassador; error=http_request_error; details=\"bad_greeting: "
	const denied = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Status: ambassador; error=http_request_denied; details=\"auth_failed: "
	testBad(t, readConnect, []badRequest{
		{name: "no HTTP", says: "hello\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "malformed"},
		{name: "a broken header", says: connectWith("Proxy-Authorization Basic YmF0Y2g6cHc=\r\n"), hears: bad + "greet: CONNECT request: header 2 is malformed: it has no colon\"", reason: ReasonBadGreeting, cause: "malformed"},
		{name: "a head without end", says: connectWith("Cookie: " + strings.Repeat("x", maxConnectHead) + "\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "more than 16384 bytes"},
		{name: "a line without end", says: "CONNECT " + strings.Repeat("x", 2*maxConnectHead), hears: bad, reason: ReasonBadGreeting, cause: "more than 16384 bytes"},
		{name: "a long name", says: "CONNECT " + strings.Repeat("x", 9000) + ":1 HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "9000 bytes"},
		{name: "no port", says: "CONNECT example.com HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: `"example.com" is not HOST:PORT`},
		{name: "an empty port", says: "CONNECT example.com: HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "port"},
		{name: "port 0", says: "CONNECT example.com:0 HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "port 0"},
		{name: "too large a port", says: "CONNECT example.com:65536 HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "65535"},
		{name: "no host", says: "CONNECT :443 HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "empty"},
		{name: "a path", says: "CONNECT /etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "HOST:PORT"},
		{name: "a URL", says: "CONNECT http://example.com:80/ HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "HOST:PORT"},
		{name: "a user in the name", says: "CONNECT me@example.com:80 HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "'@'"},
		{name: "an address in disguise", says: "CONNECT 127.1:80 HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "127.0.0.1"},
		{name: "a zone", says: "CONNECT [fe80::1%25lo]:80 HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "host"},
		{name: "a body", says: connectWith("Content-Length: 3\r\n") + "abc", hears: bad, reason: ReasonBadGreeting, cause: "a body"},
		{name: "chunks", says: connectWith("Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "a body"},
		{name: "an empty body twice", says: connectWith("Content-Length: 0\r\nContent-Length: 0\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "Content-Length more than once"},
		{name: "a list of lengths", says: connectWith("Content-Length: 0, 0\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "a body"},
		{name: "two lengths", says: connectWith("Content-Length: 0\r\nContent-Length: 3\r\n") + "abc", hears: bad, reason: ReasonBadGreeting, cause: "Content-Length more than once"},
		{name: "chunks of no length", says: connectWith("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "a body"},
		{name: "chunks in HTTP/1.0", says: "CONNECT a:1 HTTP/1.0\r\nTransfer-Encoding: identity\r\n\r\n", hears: "HTTP/1.0 400 Bad Request\r\n", reason: ReasonBadGreeting, cause: "a body"},
		{name: "no Host", says: "CONNECT example.com:443 HTTP/1.1\r\nUser-Agent: x\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "HTTP/1.1 without Host"},
		{name: "two Hosts", says: connectWith("host: example.com:443\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "Host more than once"},
		{name: "two Hosts in HTTP/1.0", says: "CONNECT a:1 HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", hears: "HTTP/1.0 400 Bad Request\r\n", reason: ReasonBadGreeting, cause: "Host more than once"},
		{name: "a Host that is none", says: "CONNECT a:1 HTTP/1.1\r\nHost: a b\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "Host has characters"},
		{name: "a space before a colon", says: "CONNECT a:1 HTTP/1.1\r\nHost : a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "header 1 has a space before its colon"},
		{name: "a tab before a colon", says: connectWith("X\t: y\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "header 2 has a space before its colon"},
		{name: "a space in a name", says: connectWith("X y: z\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "header 2 has a name"},
		{name: "a name of other letters", says: connectWith("\u00fc: z\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "header 2 has a name"},
		{name: "an empty name", says: connectWith(": z\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "header 2 has a name"},
		{name: "a header on two lines", says: connectWith("X: y\r\n z\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "header 3 begins with a space"},
		{name: "a header that begins with a tab", says: "CONNECT a:1 HTTP/1.1\r\n\tHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "header 1 begins with a space"},
		{name: "CR without LF", says: connectWith("X: y\rProxy-Authorization: z\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "header 2 has control characters"},
		{name: "two CRs", says: connectWith("X: y\r\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "header 2 has control characters"},
		{name: "a line of CR", says: "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\r\n", hears: bad, reason: ReasonBadGreeting, cause: "header 2 is malformed"},
		{name: "a NUL in a value", says: connectWith("X: y\x00z\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "header 2 has control characters"},
		{name: "a NUL in the target", says: "CONNECT a\x00b:1 HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "request line is malformed"},
		{name: "a tab in the request line", says: "CONNECT\ta:1 HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "request line is malformed"},
		{name: "two spaces in the request line", says: "CONNECT  a:1 HTTP/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "request line is malformed"},
		{name: "a space behind the request line", says: "CONNECT a:1 HTTP/1.1 \r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "request line is malformed"},
		{name: "another spelling of the version", says: "CONNECT a:1 http/1.1\r\nHost: a\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "request line is malformed"},
		{name: "no version", says: "CONNECT a:1\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "request line is malformed"},
		{name: "two empty lines before", says: "\r\n\r\n" + connectCurl, hears: bad, reason: ReasonBadGreeting, cause: "request line is malformed"},
		{name: "too many headers", says: connectWith(strings.Repeat("X: y\r\n", maxHTTPFields)), hears: bad, reason: ReasonBadGreeting, cause: "more than 100 headers"},
		{name: "two users", says: connectWith(connectUser + connectUser), auth: batch, hears: bad, reason: ReasonBadGreeting, cause: "Proxy-Authorization more than once"},
		{name: "HTTP/2", says: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", hears: bad, reason: ReasonBadGreeting, cause: "HTTP/2.0"},
		{name: "a context that is not wanted", says: connectWith("Ambassador-Context: tag=x\r\n"), hears: bad, reason: ReasonBadGreeting, cause: "context: true"},
		{name: "GET of a proxy", says: "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", hears: "HTTP/1.1 405 Method Not Allowed\r\n", reason: ReasonBadGreeting, cause: "set https_proxy to this address, and not http_proxy (curl: --proxytunnel)"},
		{name: "POST in HTTP/1.0", says: "POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", hears: "HTTP/1.0 405 Method Not Allowed\r\n", reason: ReasonBadGreeting, cause: "POST is not served"},
		{name: "SOCKS5", says: socksHello + socksToName, reason: ReasonBadGreeting, cause: "speaks SOCKS5"},
		{name: "SOCKS4", says: "\x04\x01\x00\x50", reason: ReasonBadGreeting, cause: "speaks SOCKS4"},
		{name: "TLS", says: "\x16\x03\x01\x02\x00", reason: ReasonBadGreeting, cause: "begins with TLS"},
		{name: "no user", says: connectCurl, auth: batch, hears: denied, reason: ReasonAuthFailed, cause: "Proxy-Authorization: Basic"},
		{name: "a user elsewhere", says: connectWith(strings.TrimPrefix(connectUser, "Proxy-")), auth: batch, hears: denied, reason: ReasonAuthFailed, cause: "Proxy-Authorization: Basic"},
		{name: "another scheme", says: connectWith("Proxy-Authorization: Bearer x\r\n"), auth: batch, hears: denied, reason: ReasonAuthFailed, cause: "Proxy-Authorization: Basic"},
		{name: "a wrong password", says: connectWith("Proxy-Authorization: Basic YmF0Y2g6cHcy\r\n"), auth: batch, hears: denied, reason: ReasonAuthFailed, cause: `"batch" is no user`},
		{name: "users that cannot be asked", says: connectWith(connectUser), auth: broken, hears: "HTTP/1.1 500 Internal Server Error\r\nProxy-Status: ambassador; error=proxy_internal_error;", reason: ReasonInternal, cause: "no users"},
		{name: "too many logins", says: connectWith(connectUser), auth: crowded, hears: "HTTP/1.1 503 Service Unavailable\r\nProxy-Status: ambassador; error=connection_limit_reached;", reason: ReasonLimit, cause: "no turn within 5s"},
		{name: "users that are asked for too long", says: connectWith(connectUser), auth: late, hears: "HTTP/1.1 408 Request Timeout\r\n", reason: ReasonHandshakeTimeout, cause: "in time"},
	})
}

// Nobody is asked for a password who cannot be served anyway.
func TestBadConnectRequestCostsNoPassword(t *testing.T) {
	asked := false
	auth := func(context.Context, string, string) (bool, error) { asked = true; return true, nil }
	(asker{readConnect, auth, false}).of(t, strings.NewReader("GET / HTTP/1.1\r\n"+connectUser+"\r\n"))
	if asked {
		t.Error("the password of a GET was checked")
	}
}

func TestConnectClientsThatEnd(t *testing.T) {
	testEndings(t, readConnect, connectCurl[:len(connectCurl)-2])
}

func TestSilentConnectClients(t *testing.T) {
	testSilence(t, readConnect, nil, []string{"C"}, []string{connectCurl[:len(connectCurl)-1]})
}

func TestPipelinedConnect(t *testing.T) { testPipelined(t, readConnect, connectCurl) }

func TestConnectReadsOncePerMessage(t *testing.T) {
	c := &tape{in: &messages{connectCurl, "own bytes"}}
	r, err := readConnect(t.Context(), c, nil, false)
	if err != nil || c.reads != 1 || len(r.early) != 0 {
		t.Errorf("%d reads, early %q, %v", c.reads, r.early, err)
	}
}

// What a client hears is in the HTTP that it speaks, and nothing else.
func TestConnectAnswers(t *testing.T) {
	lost := &Error{Stage: StageDial, Reason: ReasonRefused, Upstream: "internet", Address: "10.0.0.7:443", Err: syscall.ECONNREFUSED}
	for _, tt := range []struct {
		says    string
		failure *Error
		hears   string
	}{
		{connectCurl, nil, "HTTP/1.1 200 OK\r\n\r\n"},
		{connectNC, nil, "HTTP/1.0 200 OK\r\n\r\n"},
		{"CONNECT a:1 HTTP/1.2\r\nHost: a\r\n\r\n", nil, "HTTP/1.1 200 OK\r\n\r\n"},
		{connectCurl, lost, "HTTP/1.1 502 Bad Gateway\r\n" +
			"Proxy-Status: ambassador; error=connection_refused; details=\"refused: dial internet 10.0.0.7:443: connection refused\"\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 56\r\nConnection: close\r\n\r\n" +
			"refused: dial internet 10.0.0.7:443: connection refused\n"},
		{connectNC, &Error{Stage: StagePermit, Reason: ReasonBreakerOpen, RetryIn: 1001 * time.Millisecond}, "HTTP/1.0 503 Service Unavailable\r\n" +
			"Proxy-Status: ambassador; error=destination_unavailable; details=\"breaker_open: permit: breaker_open\"\r\nRetry-After: 2\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 35\r\nConnection: close\r\n\r\nbreaker_open: permit: breaker_open\n"},
		{connectCurl, &Error{Stage: StagePermit, Reason: ReasonBreakerOpen}, "HTTP/1.1 503 Service Unavailable\r\n" +
			"Proxy-Status: ambassador; error=destination_unavailable; details=\"breaker_open: permit: breaker_open\"\r\nRetry-After: 1\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 35\r\nConnection: close\r\n\r\nbreaker_open: permit: breaker_open\n"},
		{connectCurl, &Error{Stage: StageRoute, Reason: ReasonDenied, Err: errors.New("a \"\\\"\r\nX: ü")}, "HTTP/1.1 403 Forbidden\r\n" +
			`Proxy-Status: ambassador; error=http_request_denied; details="denied: route: a \"\\\"??X: ?"` + "\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 27\r\nConnection: close\r\n\r\n" + `denied: route: a "\"??X: ?` + "\n"},
	} {
		r, err := readConnect(t.Context(), &tape{in: strings.NewReader(tt.says)}, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		c := &tape{}
		if tt.failure == nil {
			err = r.answer.accept(c, netip.MustParseAddrPort("10.0.0.7:51200"))
		} else {
			err = r.answer.refuse(c, tt.failure)
		}
		if err != nil || c.out.String() != tt.hears {
			t.Errorf("%q, %v: hears %q, %v; want %q", tt.says, tt.failure, c.out.String(), err, tt.hears)
		}
	}
}

// What only some refusals have.
func TestConnectRefusalsNameTheirMend(t *testing.T) {
	for says, want := range map[string]string{
		"GET / HTTP/1.1\r\n\r\n": "Allow: CONNECT\r\n",
		connectCurl:              "Proxy-Authenticate: Basic realm=\"ambassador\"\r\n",
	} {
		_, hears, _, _ := asker{readConnect, batch, false}.of(t, strings.NewReader(says))
		if !strings.Contains(hears, want) {
			t.Errorf("%q: hears %q", says, hears)
		}
	}
}

// However much there is to say, a client hears a short word.
func TestConnectRefusalIsShort(t *testing.T) {
	for _, cause := range []string{strings.Repeat("x", 1<<20), strings.Repeat(`"`, 1<<20), strings.Repeat("ü", 1<<20)} {
		c := &tape{}
		if err := (connectAnswer{minor: 1}).refuse(c, &Error{Stage: StageDial, Reason: ReasonDNS, Err: errors.New(cause)}); err != nil {
			t.Error(err)
		}
		response(t, c.out.String())
	}
}

// The specification of the statuses: each reason that a client can hear is here.
func TestConnectReplies(t *testing.T) {
	verification := &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}
	for want, errs := range map[string][]*Error{
		"400 http_request_error":        {{Reason: ReasonBadGreeting}},
		"403 http_request_denied":       {{Reason: ReasonDenied}, {Reason: ReasonNoRoute}},
		"403 destination_ip_prohibited": {{Reason: ReasonSpecialAddress}},
		"403 proxy_loop_detected":       {{Reason: ReasonLoop}},
		"405 http_request_error":        {{Reason: ReasonBadGreeting, Err: &methodError{"GET"}}},
		"407 http_request_denied":       {{Reason: ReasonAuthFailed}},
		"408 http_request_error":        {{Reason: ReasonHandshakeTimeout}},
		"500 proxy_internal_error":      {{Reason: ReasonInternal}},
		"502 dns_error":                 {{Reason: ReasonDNS}},
		"502 connection_refused":        {{Reason: ReasonRefused}},
		"502 connection_terminated":     {{Reason: ReasonUpstreamEarlyClose}, {Reason: ReasonUpstreamReset}},
		"502 destination_ip_unroutable": {{Reason: ReasonUnreachable}},
		"502 tls_protocol_error":        {{Reason: ReasonStartTLSRefused}, {Reason: ReasonUpstreamTLS, Err: io.EOF}},
		"502 tls_certificate_error":     {{Reason: ReasonUpstreamTLS, Err: verification}},
		"502 tls_alert_received":        {{Reason: ReasonUpstreamTLSRejected}},
		"503 connection_limit_reached":  {{Reason: ReasonLimit}},
		"503 destination_unavailable":   {{Reason: ReasonBreakerOpen}, {Reason: ReasonNoEndpoint}},
		"503 proxy_internal_error":      {{Reason: ReasonNoIdentity}, {Reason: ReasonLocalExhausted}},
		"504 connection_timeout":        {{Reason: ReasonTimeout}},
	} {
		for _, err := range errs {
			c := &tape{}
			(connectAnswer{minor: 1}).refuse(c, err)
			status, _, _ := strings.Cut(strings.TrimPrefix(c.out.String(), "HTTP/1.1 "), " ")
			_, kind, _ := strings.Cut(c.out.String(), "error=")
			kind, _, _ = strings.Cut(kind, ";")
			if got := status + " " + kind; got != want {
				t.Errorf("%v: %s, want %s", err, got, want)
			}
		}
	}
}

// response reads what a client hears, whose form has to be right whatever it is.
func response(t *testing.T, hears string) {
	t.Helper()
	if len(hears) > 2048 {
		t.Errorf("a response of %d bytes", len(hears))
	}
	r := bufio.NewReader(strings.NewReader(hears))
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("%q: %v", hears, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || len(body) < 2 || r.Buffered() > 0 || !resp.Close {
		t.Errorf("%q: body %q, %v", hears, body, err)
	}
	status := resp.Header.Get("Proxy-Status")
	_, details, ok := strings.Cut(status, `; details="`)
	details, closed := strings.CutSuffix(details, `"`)
	unescaped := strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(details)
	if !ok || !closed || unescaped+"\n" != string(body) || strings.ContainsFunc(status, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("Proxy-Status %q, body %q", status, body)
	}
}

// strictHead is the grammar of RFC 9112 for a CONNECT request without a body. It has no
// field that continues on another line, since its fields begin with a token.
var strictHead = regexp.MustCompile("^(\r?\n)?CONNECT [!-~]+ HTTP/1\\.[0-9]\r?\n" +
	"(?:[!#$%&'*+\\-.^_`|~0-9A-Za-z]+:[\t -~\\x80-\\xff]*\r?\n)*\r?\n$")

// latin1 is bytes as runes, for an expression that is about bytes.
func latin1(s string) string {
	var out []rune
	for _, b := range []byte(s) {
		out = append(out, rune(b))
	}
	return string(out)
}

// What is taken is a head of the strict grammar and nothing else, which net/http
// reads in the same way, and every refusal is a response.
func FuzzReadConnect(f *testing.F) {
	for _, s := range []string{connectCurl + "rest", connectNC, connectWith(connectUser), connectWith("Ambassador-Context: tag=x\r\n"), connectWith("Content-Length: 3\r\n") + "abc",
		"GET / HTTP/1.1\r\n\r\n", "CONNECT \"\\\xff:1 HTTP/1.1\r\n\r\n", "CONNECT [::1]:443 HTTP/1.0\n\n", socksHello, "CONNECT a:1 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
		"CONNECT a:1 HTTP/1.0\r\nX : y\r\n\r\n", "CONNECT a:1 HTTP/1.0\r\nX: y\r\n z\r\n\r\n", "CONNECT a:1 HTTP/1.0\r\nX: y\rz\r\n\r\n", "\r\nCONNECT a:1 HTTP/1.0\r\n\r\n",
		connectWith("Host: b\r\n"), connectWith("Content-Length: 0\r\nContent-Length: 0\r\n"), connectWith("X: \x00\r\n"), connectWith("\xfc: \xfc\r\n")} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, says string, asked bool) {
		var auth credentials
		if asked {
			auth = batch
		}
		r, hears, rest, err := asker{readConnect, auth, true}.of(t, strings.NewReader(says))
		if err != nil {
			if hears != "" {
				response(t, hears)
			}
			return
		}
		if hears != "" || !strings.HasSuffix(says, rest) {
			t.Fatalf("hears %q; %q is left of %q", hears, rest, says)
		}
		used := says[:len(says)-len(rest)]
		if len(used) > maxConnectHead || !strictHead.MatchString(latin1(used)) {
			t.Errorf("%q was used, and is no strict head", used)
		}
		head, herr := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.TrimLeft(used, "\r\n"))))
		if herr != nil || head.Method != "CONNECT" || head.ContentLength != 0 {
			t.Errorf("%q was used, and net/http reads %+v, %v", used, head, herr)
		}
		if r.port == 0 || r.host == "" && !r.addr.IsValid() {
			t.Errorf("%q is taken for %s", used, destinationOf(r))
		}
	})
}

// The head of a common client, in memory, with its answer.
func BenchmarkReadConnect(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		c := &tape{in: strings.NewReader(connectCurl)}
		r, err := readConnect(b.Context(), c, nil, false)
		if err != nil {
			b.Fatal(err)
		}
		r.answer.accept(io.Discard, netip.AddrPort{})
	}
}
