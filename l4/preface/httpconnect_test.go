package preface

import (
	"bufio"
	"io"
	"net/http"
	"regexp"
	"strings"
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
	testGood(t, ReadConnect, []goodRequest{
		{name: "curl", says: connectCurl, to: "example.com:443"},
		{name: "nc", says: connectNC, to: "10.0.0.7:22"},
		{name: "lines that end in LF", says: "CONNECT example.com:443 HTTP/1.1\nHost: a\n\n", to: "example.com:443"},
		{name: "another spelling", says: "CONNECT Example.COM.:443 HTTP/1.1\r\nHost: a\r\n\r\n", to: "example.com.:443"},
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
		{name: "a context", says: connectWith("ambassador-context: attempts=1,tag=x\r\n"), hints: true, to: "example.com:443", tells: "attempts=1,tag=x"},
		{name: "two contexts", says: connectWith("Ambassador-Context: attempts=1\r\nAmbassador-Context: tag=x\r\n"), hints: true, to: "example.com:443", tells: "attempts=1,tag=x"},
		{name: "no context", says: connectCurl, hints: true, to: "example.com:443"},
		{name: "the largest head", says: connectWith("Cookie: " + strings.Repeat("x", maxConnectHead-len(connectWith("Cookie: \r\n"))) + "\r\n"), to: "example.com:443"},
	})
}

func TestBadConnectRequests(t *testing.T) {
	testBad(t, ReadConnect, []badRequest{
		{name: "no HTTP", says: "hello\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "malformed"},
		{name: "a broken header", says: connectWith("Proxy-Authorization Basic YmF0Y2g6cHc=\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "malformed"},
		{name: "a head without end", says: connectWith("Cookie: " + strings.Repeat("x", maxConnectHead) + "\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "more than 16384 bytes"},
		{name: "a line without end", says: "CONNECT " + strings.Repeat("x", 2*maxConnectHead), answer: "HTTP/1.1", kind: wrong, cause: "more than 16384 bytes"},
		{name: "a long name", says: "CONNECT " + strings.Repeat("x", 9000) + ":1 HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "9000 bytes"},
		{name: "no port", says: "CONNECT example.com HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: `"example.com" is not HOST:PORT`},
		{name: "an empty port", says: "CONNECT example.com: HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "port"},
		{name: "port 0", says: "CONNECT example.com:0 HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "port 0"},
		{name: "too large a port", says: "CONNECT example.com:65536 HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "65535"},
		{name: "no host", says: "CONNECT :443 HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "empty"},
		{name: "a path", says: "CONNECT /etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "HOST:PORT"},
		{name: "a URL", says: "CONNECT http://example.com:80/ HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "HOST:PORT"},
		{name: "a user in the name", says: "CONNECT me@example.com:80 HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "'@'"},
		{name: "an address in disguise", says: "CONNECT 127.1:80 HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "127.0.0.1"},
		{name: "a zone", says: "CONNECT [fe80::1%25lo]:80 HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "host"},
		{name: "a body", says: connectWith("Content-Length: 3\r\n") + "abc", answer: "HTTP/1.1", kind: wrong, cause: "a body"},
		{name: "chunks", says: connectWith("Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "a body"},
		{name: "an empty body twice", says: connectWith("Content-Length: 0\r\nContent-Length: 0\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "Content-Length more than once"},
		{name: "a list of lengths", says: connectWith("Content-Length: 0, 0\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "a body"},
		{name: "two lengths", says: connectWith("Content-Length: 0\r\nContent-Length: 3\r\n") + "abc", answer: "HTTP/1.1", kind: wrong, cause: "Content-Length more than once"},
		{name: "chunks of no length", says: connectWith("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "a body"},
		{name: "chunks in HTTP/1.0", says: "CONNECT a:1 HTTP/1.0\r\nTransfer-Encoding: identity\r\n\r\n", answer: "HTTP/1.0", kind: wrong, cause: "a body"},
		{name: "no Host", says: "CONNECT example.com:443 HTTP/1.1\r\nUser-Agent: x\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "HTTP/1.1 without Host"},
		{name: "two Hosts", says: connectWith("host: example.com:443\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "Host more than once"},
		{name: "two Hosts in HTTP/1.0", says: "CONNECT a:1 HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", answer: "HTTP/1.0", kind: wrong, cause: "Host more than once"},
		{name: "a Host that is none", says: "CONNECT a:1 HTTP/1.1\r\nHost: a b\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "Host has characters"},
		{name: "a space before a colon", says: "CONNECT a:1 HTTP/1.1\r\nHost : a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "header 1 has a space before its colon"},
		{name: "a tab before a colon", says: connectWith("X\t: y\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "header 2 has a space before its colon"},
		{name: "a space in a name", says: connectWith("X y: z\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "header 2 has a name"},
		{name: "a name of other letters", says: connectWith("\u00fc: z\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "header 2 has a name"},
		{name: "an empty name", says: connectWith(": z\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "header 2 has a name"},
		{name: "a header on two lines", says: connectWith("X: y\r\n z\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "header 3 begins with a space"},
		{name: "a header that begins with a tab", says: "CONNECT a:1 HTTP/1.1\r\n\tHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "header 1 begins with a space"},
		{name: "CR without LF", says: connectWith("X: y\rProxy-Authorization: z\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "header 2 has control characters"},
		{name: "two CRs", says: connectWith("X: y\r\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "header 2 has control characters"},
		{name: "a line of CR", says: "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\r\n", answer: "HTTP/1.1", kind: wrong, cause: "header 2 is malformed"},
		{name: "a NUL in a value", says: connectWith("X: y\x00z\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "header 2 has control characters"},
		{name: "a NUL in the target", says: "CONNECT a\x00b:1 HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "request line is malformed"},
		{name: "a tab in the request line", says: "CONNECT\ta:1 HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "request line is malformed"},
		{name: "two spaces in the request line", says: "CONNECT  a:1 HTTP/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "request line is malformed"},
		{name: "a space behind the request line", says: "CONNECT a:1 HTTP/1.1 \r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "request line is malformed"},
		{name: "another spelling of the version", says: "CONNECT a:1 http/1.1\r\nHost: a\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "request line is malformed"},
		{name: "no version", says: "CONNECT a:1\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "request line is malformed"},
		{name: "two empty lines before", says: "\r\n\r\n" + connectCurl, answer: "HTTP/1.1", kind: wrong, cause: "request line is malformed"},
		{name: "too many headers", says: connectWith(strings.Repeat("X: y\r\n", maxHTTPFields)), answer: "HTTP/1.1", kind: wrong, cause: "more than 100 headers"},
		{name: "two users", says: connectWith(connectUser + connectUser), auth: batch, answer: "HTTP/1.1", kind: wrong, cause: "Proxy-Authorization more than once"},
		{name: "HTTP/2", says: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "HTTP/2.0"},
		{name: "a context that is not wanted", says: connectWith("Ambassador-Context: tag=x\r\n"), answer: "HTTP/1.1", kind: wrong, cause: "context: true"},
		{name: "GET of a proxy", says: "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", answer: "HTTP/1.1", kind: wrong, cause: "set https_proxy to this address, and not http_proxy (curl: --proxytunnel)"},
		{name: "POST in HTTP/1.0", says: "POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", answer: "HTTP/1.0", kind: wrong, cause: "POST is not served"},
		{name: "SOCKS5", says: socksHello + socksToName, kind: wrong, cause: "speaks SOCKS5"},
		{name: "SOCKS4", says: "\x04\x01\x00\x50", kind: wrong, cause: "speaks SOCKS4"},
		{name: "TLS", says: "\x16\x03\x01\x02\x00", kind: wrong, cause: "begins with TLS"},
		{name: "no user", says: connectCurl, auth: batch, answer: "HTTP/1.1", kind: noLogin, cause: "Proxy-Authorization: Basic"},
		{name: "a user elsewhere", says: connectWith(strings.TrimPrefix(connectUser, "Proxy-")), auth: batch, answer: "HTTP/1.1", kind: noLogin, cause: "Proxy-Authorization: Basic"},
		{name: "another scheme", says: connectWith("Proxy-Authorization: Bearer x\r\n"), auth: batch, answer: "HTTP/1.1", kind: noLogin, cause: "Proxy-Authorization: Basic"},
		{name: "a wrong password", says: connectWith("Proxy-Authorization: Basic YmF0Y2g6cHcy\r\n"), auth: batch, answer: "HTTP/1.1", kind: password, cause: `"batch" is no user`},
	})
}

// A request that cannot be served anyway costs no check of a password.
func TestBadConnectRequestCostsNoPassword(t *testing.T) {
	asked := false
	auth := func(string, string) error { asked = true; return nil }
	(asker{ReadConnect, auth, false}).of(strings.NewReader("GET / HTTP/1.1\r\n" + connectUser + "\r\n"))
	if asked {
		t.Error("the password of a GET was checked")
	}
}

func TestConnectClientsThatEnd(t *testing.T) {
	testEndings(t, ReadConnect, connectCurl[:len(connectCurl)-2])
}

func TestSilentConnectClients(t *testing.T) {
	testSilence(t, ReadConnect, nil, []string{"C"}, []string{connectCurl[:len(connectCurl)-1]})
}

func TestPipelinedConnect(t *testing.T) { testPipelined(t, ReadConnect, connectCurl) }

func TestConnectReadsOncePerMessage(t *testing.T) {
	c := &tape{in: &messages{connectCurl, "own bytes"}}
	r, _, err := ReadConnect(c, nil, false)
	if err != nil || c.reads != 1 || len(r.Early) != 0 {
		t.Errorf("%d reads, early %q, %v", c.reads, r.Early, err)
	}
}

// The specification of the answers.
func TestConnectAnswers(t *testing.T) {
	for _, tt := range []struct {
		minor   int
		refusal Refusal // zero: success
		hears   string
	}{
		{1, Refusal{}, "HTTP/1.1 200 OK\r\n\r\n"},
		{0, Refusal{}, "HTTP/1.0 200 OK\r\n\r\n"},
		{1, Refusal{Status: 502, Error: "dns_error", Text: "dns: no"}, "HTTP/1.1 502 Bad Gateway\r\nProxy-Status: ambassador; error=dns_error; details=\"dns: no\"\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 8\r\nConnection: close\r\n\r\ndns: no\n"},
		{0, Refusal{Status: 405, Error: "http_request_error", Text: "GET"}, "HTTP/1.0 405 Method Not Allowed\r\nProxy-Status: ambassador; error=http_request_error; details=\"GET\"\r\n" +
			"Allow: CONNECT\r\nContent-Type: text/plain\r\nContent-Length: 4\r\nConnection: close\r\n\r\nGET\n"},
		{1, Refusal{Status: 407, Error: "http_request_denied", Text: "who?"}, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Status: ambassador; error=http_request_denied; details=\"who?\"\r\n" +
			"Proxy-Authenticate: Basic realm=\"ambassador\"\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwho?\n"},
		{1, Refusal{Status: 503, Error: "destination_unavailable", Text: "open", RetryAfter: 1001 * time.Millisecond}, "HTTP/1.1 503 Service Unavailable\r\n" +
			"Proxy-Status: ambassador; error=destination_unavailable; details=\"open\"\r\nRetry-After: 2\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\nopen\n"},
		{1, Refusal{Status: 403, Error: "http_request_denied", Text: "a \"\\\"\r\nX: ü"}, "HTTP/1.1 403 Forbidden\r\n" +
			`Proxy-Status: ambassador; error=http_request_denied; details="a \"\\\"??X: ?"` + "\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 12\r\nConnection: close\r\n\r\n" + `a "\"??X: ?` + "\n"},
	} {
		var out strings.Builder
		a := &ConnectAnswer{tt.minor}
		err := a.Accept(&out)
		if tt.refusal != (Refusal{}) {
			out.Reset()
			err = a.Refuse(&out, tt.refusal)
			response(t, out.String())
		}
		if err != nil || out.String() != tt.hears {
			t.Errorf("%+v: %q, %v; want %q", tt.refusal, out.String(), err, tt.hears)
		}
	}
}

// However long the text is, the answer is short.
func TestConnectRefusalIsShort(t *testing.T) {
	for _, text := range []string{strings.Repeat("x", 1<<20), strings.Repeat(`"`, 1<<20), strings.Repeat("ü", 1<<20)} {
		var out strings.Builder
		if err := (&ConnectAnswer{minor: 1}).Refuse(&out, Refusal{Status: 502, Error: "dns_error", Text: text}); err != nil {
			t.Error(err)
		}
		response(t, out.String())
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
// field that continues on another line, since its fields begin with a token. The target
// may be a name in Unicode besides, which ParseHost maps to A-labels as it does for SOCKS.
var strictHead = regexp.MustCompile("^(\r?\n)?CONNECT [!-~\\x80-\\xff]+ HTTP/1\\.[0-9]\r?\n" +
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
		"GET / HTTP/1.1\r\n\r\n", "CONNECT \"\\\xff:1 HTTP/1.1\r\n\r\n", "CONNECT [::1]:443 HTTP/1.0\n\n", "CONNECT [A0]:1 HTTP/1.0\n\n", "CONNECT Ŝ:1 HTTP/1.0\n\n", socksHello, "CONNECT a:1 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
		"CONNECT a:1 HTTP/1.0\r\nX : y\r\n\r\n", "CONNECT a:1 HTTP/1.0\r\nX: y\r\n z\r\n\r\n", "CONNECT a:1 HTTP/1.0\r\nX: y\rz\r\n\r\n", "\r\nCONNECT a:1 HTTP/1.0\r\n\r\n",
		connectWith("Host: b\r\n"), connectWith("Content-Length: 0\r\nContent-Length: 0\r\n"), connectWith("X: \x00\r\n"), connectWith("\xfc: \xfc\r\n")} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, says string, asked bool) {
		var auth Credentials
		if asked {
			auth = batch
		}
		got := asker{ReadConnect, auth, true}.of(strings.NewReader(says))
		r, rest := got.request, got.rest
		if got.hears != "" {
			t.Fatalf("hears %q", got.hears)
		}
		if got.err != nil {
			if got.answer != "" {
				var out strings.Builder
				(&ConnectAnswer{minor: 1}).Refuse(&out, Refusal{Status: 400, Error: "http_request_error", Text: got.err.Error()})
				response(t, out.String())
			}
			return
		}
		if !strings.HasSuffix(says, rest) {
			t.Fatalf("%q is left of %q", rest, says)
		}
		used := says[:len(says)-len(rest)]
		if len(used) > maxConnectHead || !strictHead.MatchString(latin1(used)) {
			t.Errorf("%q was used, and is no strict head", used)
		}
		head, herr := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.TrimLeft(used, "\r\n"))))
		if herr != nil || head.Method != "CONNECT" || head.ContentLength != 0 {
			t.Errorf("%q was used, and net/http reads %+v, %v", used, head, herr)
		}
		if r.Port == 0 || r.Host == "" && !r.Addr.IsValid() {
			t.Errorf("%q is taken for %s", used, destinationOf(r))
		}
	})
}

// The head of a common client, in memory, with its answer.
func BenchmarkReadConnect(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		c := &tape{in: strings.NewReader(connectCurl)}
		_, answer, err := ReadConnect(c, nil, false)
		if err != nil {
			b.Fatal(err)
		}
		answer.Accept(io.Discard)
	}
}
