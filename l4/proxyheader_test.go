package l4

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

// The beginnings of version 2: signature, command and family.
var (
	v2Signature = string(proxyproto.SIGV2)
	v2TCP4      = v2Signature + "\x21\x11"
	v2TCP6      = v2Signature + "\x21\x21"
	v2Local     = v2Signature + "\x20\x00"
	v4Addresses = "\x01\x02\x03\x04\x0a\x00\x00\x07\xc8\x00\x15\x38" // 1.2.3.4:51200 → 10.0.0.7:5432
)

// The specification of the headers that we read. Where want is empty there is an
// error with a text.
func TestReadProxyHeader(t *testing.T) {
	for _, tt := range []struct{ name, text, want, err string }{
		{"v1", "PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\n", "1.2.3.4:51200", ""},
		{"v1 IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 51200 5432\r\n", "[2001:db8::1]:51200", ""},
		{"v1 unknown", "PROXY UNKNOWN\r\n", "-", ""},
		{"v1 unknown, with the longest rest", "PROXY UNKNOWN " + strings.Repeat("f", 91) + "\r\n", "-", ""},
		{"v2", v2TCP4 + "\x00\x0c" + v4Addresses, "1.2.3.4:51200", ""},
		{"v2 with a TLV", v2TCP4 + "\x00\x10" + v4Addresses + "\x04\x00\x01x", "1.2.3.4:51200", ""},
		{"v2 mapped", v2TCP6 + "\x00\x24" + strings.Repeat("\x00", 10) + "\xff\xff\x01\x02\x03\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x0a\x00\x00\x07" + "\xc8\x00\x15\x38", "1.2.3.4:51200", ""},
		{"v2 local", v2Local + "\x00\x00", "-", ""},
		{"v2 local with addresses", v2Signature + "\x20\x11\x00\x0c" + v4Addresses, "-", ""},
		{"v2 unix", v2Signature + "\x21\x31\x00\xd8" + strings.Repeat("x", 216), "-", ""},
		{"v2 datagrams", v2Signature + "\x21\x12\x00\x0c" + v4Addresses, "", "datagrams"},
		{"v2 of another command", v2Signature + "\x22\x11\x00\x0c" + v4Addresses, "", "unsupported"},
		{"v2 of another family", v2Signature + "\x21\x51\x00\x0c" + v4Addresses, "", "unsupported"},
		{"v2 too short for addresses", v2TCP4 + "\x00\x04\x01\x02\x03\x04", "", "invalid length"},
		{"v2 too long", v2TCP4 + "\x10\x01" + strings.Repeat("x", 5000), "", "the most is 4096"},
		{"v1 too long", "PROXY UNKNOWN " + strings.Repeat("f", 92) + "\r\n", "", "more than 107 bytes"},
		{"v1 without CR", "PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\n", "", "must end with"},
		{"v1 of no address", "PROXY TCP4 1.2.3 10.0.0.7 51200 5432\r\n", "", "invalid address"},
		{"v1 of no family", "PROXY UDP4 1.2.3.4 10.0.0.7 51200 5432\r\n", "", "address family"},
		{"v1 in lower case", "proxy TCP4", "", `there is none, the client begins with "p`},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03xxxx", "", "send-proxy-v2"},
		{"HTTP's PROPFIND", "PROPFIND / HTTP/1.1\r\n", "", "there is none"},
	} {
		for how, reader := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "in bytes": iotest.OneByteReader} {
			r := strings.NewReader(tt.text + "rest")
			h, err := readProxyHeader(reader(r))
			rest, _ := io.ReadAll(r)
			var bad *proxyHeaderError
			switch {
			case tt.err != "" && (!errors.As(err, &bad) || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("%s %s: %v, want %q", tt.name, how, err, tt.err)
			case tt.err != "":
			case err != nil || string(rest) != "rest":
				t.Errorf("%s %s: %v, and %q is left", tt.name, how, err, rest)
			case tt.want == "-" && h != proxyHeader{} || tt.want != "-" && h.source.String() != tt.want:
				t.Errorf("%s %s: %v, want %s", tt.name, how, h, tt.want)
			}
		}
	}
	for _, whole := range []string{"PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\n", v2TCP4 + "\x00\x0c" + v4Addresses} {
		for n := range len(whole) {
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if _, err := readProxyHeader(strings.NewReader(whole[:n])); err != want {
				t.Errorf("cut after %d bytes: %v, want %v", n, err, want)
			}
		}
	}
}

// What a client says of its connection is kept for parseContext, and nothing else.
func TestContextOfProxyHeader(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"none", v2TCP4 + "\x00\x0c" + v4Addresses, ""},
		{"one", v2TCP4 + "\x00\x19" + v4Addresses + "\xe4\x00\x0aattempts=1", "attempts=1"},
		{"an empty one", v2TCP4 + "\x00\x0f" + v4Addresses + "\xe4\x00\x00", ""},
		{"behind another", v2TCP4 + "\x00\x19" + v4Addresses + "\x04\x00\x01x" + "\xe4\x00\x06tag=ab", "tag=ab"},
		{"another only", v2TCP4 + "\x00\x15" + v4Addresses + "\xe5\x00\x06tag=ab", ""},
		{"two", v2TCP4 + "\x00\x1e" + v4Addresses + "\xe4\x00\x06tag=ab" + "\xe4\x00\x06tag=cd", "tag=ab,tag=cd"},
		{"of a client on a unix socket", v2Signature + "\x21\x31\x00\xe1" + strings.Repeat("x", 216) + "\xe4\x00\x06tag=ab", "tag=ab"},
		{"of the proxy itself", v2Signature + "\x20\x11\x00\x15" + v4Addresses + "\xe4\x00\x06tag=ab", ""},
		{"cut", v2TCP4 + "\x00\x15" + v4Addresses + "\xe4\x00\x07tag=ab", ""},
	} {
		h, err := readProxyHeader(strings.NewReader(tt.text + "rest"))
		if err != nil || h.context != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.name, h.context, err, tt.want)
		}
	}
}

// What the reader takes is a header and nothing else, and says what the library
// reads in it.
func FuzzReadProxyHeader(f *testing.F) {
	for _, s := range []string{"PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\nrest", "PROXY UNKNOWN\r\n", v2TCP4 + "\x00\x0c" + v4Addresses + "rest", v2Local + "\x00\x00",
		v2TCP6 + "\x00\x24" + strings.Repeat("\x00", 36), v2Signature + "\x21\x31\x00\xd8" + strings.Repeat("x", 216), "PROXY \xff\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := readProxyHeader(r)
		used := len(b) - r.Len()
		if used > proxyV2Fixed+proxyV2Max {
			t.Errorf("%d bytes read", used)
		}
		if err != nil {
			return
		}
		again, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b[:used])))
		if err != nil {
			t.Fatalf("the library: %v", err)
		}
		if source, _, ok := again.TCPAddrs(); h.source.IsValid() && (!ok || unmapped(source) != h.source) {
			t.Errorf("the library reads %v, we %v", source, h)
		}
	})
}

func TestFormatProxyHeader(t *testing.T) {
	four := proxyHeader{source: netip.MustParseAddrPort("1.2.3.4:51200"), destination: netip.MustParseAddrPort("10.0.0.7:5432")}
	mixed := proxyHeader{source: netip.MustParseAddrPort("[2001:db8::1]:51200"), destination: four.destination}
	for _, tt := range []struct {
		origin *origin
		v1, v2 string
	}{
		{nil, "PROXY UNKNOWN\r\n", hex.EncodeToString([]byte(v2Local + "\x00\x00"))},
		{&origin{}, "PROXY UNKNOWN\r\n", hex.EncodeToString([]byte(v2Local + "\x00\x00"))},
		{&origin{proxyHeader: four}, "PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\n", hex.EncodeToString([]byte(v2TCP4 + "\x00\x0c" + v4Addresses))},
		{&origin{proxyHeader: mixed}, "PROXY TCP6 2001:db8::1 ::ffff:10.0.0.7 51200 5432\r\n",
			hex.EncodeToString([]byte(v2TCP6+"\x00\x24")) + "20010db8000000000000000000000001" + "00000000000000000000ffff0a000007" + "c8001538"},
	} {
		v1, err1 := tt.origin.format(ProxyV1)
		v2, err2 := tt.origin.format(ProxyV2)
		if err1 != nil || err2 != nil || string(v1) != tt.v1 || hex.EncodeToString(v2) != tt.v2 {
			t.Errorf("%+v:\n%q, %v\n%x, %v", tt.origin, v1, err1, v2, err2)
		}
	}
}

// proxyBackend reads PROXY headers, and answers with the source; the headers go
// to the channel.
func proxyBackend(t *testing.T) (addr string, headers chan *proxyproto.Header) {
	headers = make(chan *proxyproto.Header, 9)
	return backend(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		h, err := proxyproto.Read(r)
		if err != nil {
			t.Error(err)
			return
		}
		headers <- h
		io.Copy(c, r)
	}), headers
}

func TestProxyHeaderGoesUpstream(t *testing.T) {
	for _, v := range []ProxyVersion{ProxyV1, ProxyV2} {
		addr, headers := proxyBackend(t)
		cfg := oneUpstream(addr)
		cfg.Upstreams[0].ProxyProtocol = v
		cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "unix", Address: "unix:" + filepath.Join(shortFolder(t), "s"), Upstream: "up"})
		f := serve(t, Options{}, cfg)
		c := f.client(0)
		ping(t, c)
		h := <-headers
		if h.Version != byte(v) || h.SourceAddr.String() != c.LocalAddr().String() || h.DestinationAddr.String() != c.RemoteAddr().String() {
			t.Errorf("v%d: %+v", v, h)
		}
		u, err := net.Dial("unix", strings.TrimPrefix(f.Listening()[1].Addr, "unix:"))
		if err != nil {
			t.Fatal(err)
		}
		ping(t, u)
		u.Close()
		if h := <-headers; !h.Command.IsLocal() {
			t.Errorf("v%d, unix: %+v", v, h)
		}
	}
}

func shortFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "l4") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Who has proved his name to us is known upstream by it; the header comes before
// the upstream's own TLS, whose handshake does not wait for the client.
func TestProxyHeaderTellsOfTLS(t *testing.T) {
	upstreamCert, upstreamPool := selfSigned(t)
	headers := make(chan *proxyproto.Header, 9)
	addr := backend(t, func(c *net.TCPConn) {
		h, err := readOurs(c)
		if err != nil {
			t.Error(err)
			return
		}
		headers <- h
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{upstreamCert}})
		io.Copy(s, s)
	})
	cfg, cert, _ := tlsListener(t, addr)
	cfg.Upstreams[0].ProxyProtocol = ProxyV2
	cfg.Upstreams[0].TLS = func(string, string) (*tls.Config, error) {
		return &tls.Config{ServerName: "localhost", RootCAs: upstreamPool}, nil
	}
	f := serve(t, Options{}, cfg)
	client := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, ClientSessionCache: tls.NewLRUClientSessionCache(1), ServerName: "x"}
	for _, want := range []uint8{7, 5} { // on this connection, then by a session
		ping(t, tls.Client(f.client(0), client))
		tlvs, err := (<-headers).TLVs()
		if err != nil || len(tlvs) != 1 {
			t.Fatalf("%v, %v", tlvs, err)
		}
		ssl, err := tlvparse.SSL(tlvs[0])
		name, _ := ssl.ClientCN()
		version, _ := ssl.SSLVersion()
		if err != nil || ssl.Client != want || ssl.Verify != 0 || name != "dns:localhost" || version != "TLSv1.3" {
			t.Errorf("%+v, %v; want client %d", ssl, err, want)
		}
	}
}

// readOurs reads a header of version 2 and not a byte more.
func readOurs(r io.Reader) (*proxyproto.Header, error) {
	text, err := readProxySignature(r)
	if err == nil {
		text, err = readProxyBlock(r, text)
	}
	if err != nil {
		return nil, err
	}
	return proxyproto.Read(bufio.NewReader(bytes.NewReader(text)))
}

// Probes are made for nobody.
func TestProbesSayLocal(t *testing.T) {
	addr, headers := proxyBackend(t)
	cfg := oneUpstream(addr)
	cfg.Upstreams[0].ProxyProtocol, cfg.Upstreams[0].Required = ProxyV2, true
	cfg.Upstreams[0].Health = HealthConfig{Interval: time.Second, Rise: 1, Fall: 1}
	serve(t, Options{}, cfg)
	if h := <-headers; !h.Command.IsLocal() {
		t.Errorf("%+v", h)
	}
}

// behind is a server whose listener is behind a proxy on this host.
func behind(t *testing.T, upstream string) Config {
	cfg := oneUpstream(upstream)
	cfg.Listeners[0].ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return cfg
}

// A proxy before us is believed; what comes with its header is the session's, and
// goes on upstream.
func TestProxyHeaderFromDownstream(t *testing.T) {
	addr, headers := proxyBackend(t)
	cfg := behind(t, addr)
	cfg.Upstreams[0].ProxyProtocol = ProxyV2
	f := serve(t, Options{}, cfg)
	for _, tt := range []struct{ text, client string }{
		{"PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\n", "1.2.3.4:51200"},
		{v2TCP4 + "\x00\x0c" + v4Addresses, "1.2.3.4:51200"},
		{v2Local + "\x00\x00", ""},
		{"PROXY UNKNOWN\r\n", ""},
	} {
		c := f.client(0)
		source := tt.client
		if source == "" {
			source = c.LocalAddr().String()
		}
		io.WriteString(c, tt.text+"with the header\n")
		hear(t, c, "with the header\n")
		if h := <-headers; h.SourceAddr.String() != source || tt.client != "" && h.DestinationAddr.String() != "10.0.0.7:5432" {
			t.Errorf("%q goes on as %+v", tt.text, h)
		}
		c.CloseWrite()
		io.Copy(io.Discard, c)
		if r := f.record(); r.Client != source || r.Reason != ReasonClosed || r.BytesUp != 16 {
			t.Errorf("%q: record %+v", tt.text, r)
		}
	}
}

// TLS begins behind the header.
func TestProxyHeaderBeforeTLS(t *testing.T) {
	cfg, cert, _ := tlsListener(t, backend(t, echo))
	cfg.Listeners[0].ProxyFrom = behind(t, "127.0.0.1:1").Listeners[0].ProxyFrom
	f := serve(t, Options{}, cfg)
	c := f.client(0)
	io.WriteString(c, v2TCP4+"\x00\x0c"+v4Addresses)
	ping(t, tls.Client(c, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}))
	c.Close()
	if r := f.record(); r.Client != "1.2.3.4:51200" || r.Principal != "dns:localhost" {
		t.Errorf("record: %+v", r)
	}
}

func TestClientsWithoutAProxyHeader(t *testing.T) {
	cfg := behind(t, backend(t, echo))
	cfg.Listeners[0].Timeouts.Handshake = 100 * time.Millisecond
	f := serve(t, Options{}, cfg)
	for _, tt := range []struct {
		act    func(c *net.TCPConn)
		reason Reason
		cause  string
	}{
		{func(c *net.TCPConn) { io.WriteString(c, "SELECT 1"); wantReset(t, c) }, ReasonBadGreeting, "send-proxy-v2"},
		{func(c *net.TCPConn) { wantReset(t, c) }, ReasonHandshakeTimeout, ""},
		{func(c *net.TCPConn) { io.WriteString(c, "PROXY TCP4"); wantReset(t, c) }, ReasonHandshakeTimeout, ""},
		{func(c *net.TCPConn) { io.WriteString(c, "PROXY TCP4"); c.CloseWrite(); wantReset(t, c) }, ReasonBadGreeting, "EOF"},
		{func(c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c) }, ReasonProbe, ""},
	} {
		tt.act(f.client(0))
		if r := f.record(); r.Reason != tt.reason || r.Stage != StageGreet || !strings.Contains(r.Cause, tt.cause) || r.Attempts != 0 {
			t.Errorf("record %+v, want %s", r, tt.reason)
		}
	}
}

// Only the proxies in from may connect.
func TestProxiesThatAreNotExpected(t *testing.T) {
	cfg := behind(t, backend(t, echo))
	cfg.Listeners[0].ProxyFrom = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	f := serve(t, Options{}, cfg)
	f.wantRefused()
	if r := f.record(); r.Reason != ReasonDenied || r.Stage != StageGreet || !strings.Contains(r.Cause, "proxy_protocol.from of the listener") {
		t.Errorf("record: %+v", r)
	}
}

// per_client counts an IPv6 client by its /64, since a host can use every address of
// it, and an IPv4-mapped address as IPv4.
func TestLimitPerClientOfIPv6(t *testing.T) {
	cfg := behind(t, backend(t, echo))
	cfg.Listeners[0].Limits.PerClient = 1
	f := serve(t, Options{}, cfg)
	from := func(ip string) *net.TCPConn {
		c := f.client(0)
		io.WriteString(c, "PROXY TCP6 "+ip+" 2001:db8:9::9 51200 5432\r\n")
		return c
	}
	ping(t, from("2001:db8::1"))
	ping(t, from("2001:db8:0:1::1"))
	ping(t, from("::ffff:1.2.3.4"))
	ping(t, from("::ffff:1.2.3.5"))
	for _, ip := range []string{"2001:db8::2", "2001:db8::ffff:ffff:ffff:ffff", "::ffff:1.2.3.4"} {
		wantReset(t, from(ip))
		if r := f.record(); r.Reason != ReasonLimit || r.Limit != "listeners.in.limits.per_client" {
			t.Errorf("%s: record %+v", ip, r)
		}
	}
}

// per_client counts those whom the proxy names, and not the proxy.
func TestLimitPerClientBehindAProxy(t *testing.T) {
	cfg := behind(t, backend(t, echo))
	cfg.Listeners[0].Limits.PerClient = 1
	f := serve(t, Options{}, cfg)
	from := func(ip string) *net.TCPConn {
		c := f.client(0)
		io.WriteString(c, "PROXY TCP4 "+ip+" 10.0.0.7 51200 5432\r\n")
		return c
	}
	first, second := from("1.2.3.4"), from("1.2.3.5")
	ping(t, first)
	ping(t, second)
	wantReset(t, from("1.2.3.4"))
	if r := f.record(); r.Reason != ReasonLimit || r.Limit != "listeners.in.limits.per_client" || r.Client != "1.2.3.4:51200" || r.Stage != StageGreet {
		t.Errorf("record: %+v", r)
	}
	first.Close()
	f.record()
	ping(t, from("1.2.3.4"))
	second.Close()
	f.record()
	l := &f.listeners[0].limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live != 1 || len(l.clients) != 1 {
		t.Errorf("%d live, of %v", l.live, l.clients)
	}
}

func TestProxyProtocolAndPreconnect(t *testing.T) {
	cfg := oneUpstream("127.0.0.1:1")
	cfg.Upstreams[0].ProxyProtocol, cfg.Upstreams[0].Preconnect.Connections = ProxyV2, 1
	if err := New(t.Context(), Options{}).Apply(cfg); err == nil || !strings.Contains(err.Error(), "turn preconnect or proxy_protocol off") {
		t.Errorf("applied: %v", err)
	}
}

// Of a redirected connection the header tells where it went, and not where it was
// redirected to.
func TestProxyHeaderOfARedirectedClient(t *testing.T) {
	c, err := net.Dial("tcp", backend(t, echo))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	to := netip.MustParseAddrPort("203.0.113.7:443")
	s := &session{downstream: c, upstream: &Upstream{cfg: UpstreamConfig{ProxyProtocol: ProxyV2}},
		route:   &route{cfg: ListenerConfig{Request: RequestOriginal}},
		greeted: &greeted{request: &request{addr: to.Addr(), port: to.Port()}}}
	if o := s.origin(); o.destination != to || o.source != unmapped(c.RemoteAddr()) {
		t.Errorf("from %v to %v", o.source, o.destination)
	}
}
