package l4

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"ambassador/l4/outcome"
	"ambassador/l4/preface"
)

// The first bytes of version 2: signature, command and family.
var (
	v2Signature = string(proxyproto.SIGV2)
	v2TCP4      = v2Signature + "\x21\x11"
	v2Local     = v2Signature + "\x20\x00"
	v4Addresses = "\x01\x02\x03\x04\x0a\x00\x00\x07\xc8\x00\x15\x38" // 1.2.3.4:51200 → 10.0.0.7:5432
)

// proxyBackend reads PROXY headers and sends them to headers; it answers with the
// source.
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
	dir, err := os.MkdirTemp("", "l4") // t.TempDir is too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// The upstream learns the principal that a client has proved to us. The header precedes
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
	for _, want := range []uint8{7, 5} { // first by this connection, then by a session
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

// readOurs reads a version 2 header, and no byte more.
func readOurs(r io.Reader) (*proxyproto.Header, error) {
	text := make([]byte, 16) // signature, command, family, length
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, err
	}
	text = append(text, make([]byte, binary.BigEndian.Uint16(text[14:]))...)
	if _, err := io.ReadFull(r, text[16:]); err != nil {
		return nil, err
	}
	return proxyproto.Read(bufio.NewReader(bytes.NewReader(text)))
}

// The PROXY header of a probe says LOCAL.
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

// behind is a server whose listener accepts a proxy on this host.
func behind(t *testing.T, upstream string) Config {
	cfg := oneUpstream(upstream)
	cfg.Listeners[0].ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return cfg
}

// The header of a trusted proxy counts: its fields become the session's and are passed
// upstream.
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
		if r := f.record(); r.Client != source || r.Reason != outcome.Closed || r.BytesUp != 16 {
			t.Errorf("%q: record %+v", tt.text, r)
		}
	}
}

// TLS begins after the header.
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
		reason outcome.Reason
		cause  string
	}{
		{func(c *net.TCPConn) { io.WriteString(c, "SELECT 1"); wantReset(t, c) }, outcome.BadGreeting, "send-proxy-v2"},
		{func(c *net.TCPConn) { wantReset(t, c) }, outcome.HandshakeTimeout, ""},
		{func(c *net.TCPConn) { io.WriteString(c, "PROXY TCP4"); wantReset(t, c) }, outcome.HandshakeTimeout, ""},
		{func(c *net.TCPConn) { io.WriteString(c, "PROXY TCP4"); c.CloseWrite(); wantReset(t, c) }, outcome.BadGreeting, "EOF"},
		{func(c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c) }, outcome.Probe, ""},
	} {
		tt.act(f.client(0))
		if r := f.record(); r.Reason != tt.reason || r.Stage != outcome.StageGreet || !strings.Contains(r.Cause, tt.cause) || r.Attempts != 0 {
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
	if r := f.record(); r.Reason != outcome.Denied || r.Stage != outcome.StageGreet || !strings.Contains(r.Cause, "proxy_protocol.from of the listener") {
		t.Errorf("record: %+v", r)
	}
}

// per_client counts an IPv6 client by its /64, since a host can use every address of
// it. It counts an IPv4-mapped address as IPv4.
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
		if r := f.record(); r.Reason != outcome.Limit || r.Limit != "listeners.in.limits.per_client" {
			t.Errorf("%s: record %+v", ip, r)
		}
	}
}

// per_client counts the clients that the proxy names, not the proxy.
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
	if r := f.record(); r.Reason != outcome.Limit || r.Limit != "listeners.in.limits.per_client" || r.Client != "1.2.3.4:51200" || r.Stage != outcome.StageGreet {
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

// The header of a redirected connection has its original destination, not the address
// that it was redirected to.
func TestProxyHeaderOfARedirectedClient(t *testing.T) {
	c, err := net.Dial("tcp", backend(t, echo))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	to := netip.MustParseAddrPort("203.0.113.7:443")
	d := &downstream{conn: c, request: &request{Request: preface.Request{Addr: to.Addr(), Port: to.Port()}}}
	if o := d.origin(); o.Destination != to || o.Source != unmapped(c.RemoteAddr()) {
		t.Errorf("from %v to %v", o.Source, o.Destination)
	}
}
