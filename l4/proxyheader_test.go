package l4

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"ambassador/l4/l4test"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/request"
	"ambassador/l4/upstream"
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
	return l4test.Backend(t, func(c *net.TCPConn) {
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
	for _, v := range []upstream.ProxyVersion{upstream.ProxyV1, upstream.ProxyV2} {
		addr, headers := proxyBackend(t)
		cfg := oneUpstream(addr)
		cfg.Upstreams[0].ProxyProtocol = v
		cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "unix", Addresses: []string{"unix:" + filepath.Join(l4test.ShortFolder(t), "s")}, Upstream: "up"})
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

// The upstream learns the principal that a client has proved to us. The header precedes
// the upstream's own TLS, whose handshake does not wait for the client.
func TestProxyHeaderTellsOfTLS(t *testing.T) {
	upstreamCert, upstreamPool := l4test.SelfSigned(t)
	headers := make(chan *proxyproto.Header, 9)
	addr := l4test.Backend(t, func(c *net.TCPConn) {
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
	cfg.Upstreams[0].ProxyProtocol = upstream.ProxyV2
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
	cfg.Upstreams[0].ProxyProtocol, cfg.Upstreams[0].Required = upstream.ProxyV2, true
	cfg.Upstreams[0].Health = upstream.HealthConfig{Interval: time.Second, Rise: 1, Fall: 1}
	serve(t, Options{}, cfg)
	if h := <-headers; !h.Command.IsLocal() {
		t.Errorf("%+v", h)
	}
}

// behind is a server whose listener accepts a proxy on this host.
func behind(t *testing.T, to string) Config {
	cfg := oneUpstream(to)
	cfg.Listeners[0].ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return cfg
}

// The header of a trusted proxy counts: its fields become the session's and are passed
// upstream.
func TestProxyHeaderFromDownstream(t *testing.T) {
	addr, headers := proxyBackend(t)
	cfg := behind(t, addr)
	cfg.Upstreams[0].ProxyProtocol = upstream.ProxyV2
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
	cfg, cert, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
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
	cfg := behind(t, l4test.Backend(t, l4test.Echo))
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
	cfg := behind(t, l4test.Backend(t, l4test.Echo))
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
	cfg := behind(t, l4test.Backend(t, l4test.Echo))
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
	cfg := behind(t, l4test.Backend(t, l4test.Echo))
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
	l := f.listeners[0].limiter
	if live, clients := l.Counts(); live != 1 || clients != 1 {
		t.Errorf("%d live, of %d clients", live, clients)
	}
}

func TestProxyProtocolAndPreconnect(t *testing.T) {
	cfg := oneUpstream("127.0.0.1:1")
	cfg.Upstreams[0].ProxyProtocol, cfg.Upstreams[0].Preconnect.Connections = upstream.ProxyV2, 1
	if err := New(t.Context(), Options{}).Apply(cfg); err == nil || !strings.Contains(err.Error(), "turn preconnect or proxy_protocol off") {
		t.Errorf("applied: %v", err)
	}
}

// The header of a redirected connection has its original destination, not the address
// that it was redirected to.
func TestProxyHeaderOfARedirectedClient(t *testing.T) {
	c, err := net.Dial("tcp", l4test.Backend(t, l4test.Echo))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	to := netip.MustParseAddrPort("203.0.113.7:443")
	d := &downstream{conn: c, request: &request.Request{Request: preface.Request{Addr: to.Addr(), Port: to.Port()}}}
	if o := d.origin(); o.Destination != to || o.Source != netconn.Unmapped(c.RemoteAddr()) {
		t.Errorf("from %v to %v", o.Source, o.Destination)
	}
}

// Where the header is optional, a proxy may leave it out: then it is the client. Nothing
// that it sends is lost, whatever comes next on the listener.
func TestOptionalProxyHeader(t *testing.T) {
	addr, headers := proxyBackend(t)
	cfg := behind(t, addr)
	cfg.Upstreams[0].ProxyProtocol = upstream.ProxyV2
	cfg.Listeners[0].ProxyOptional, cfg.Listeners[0].SNI = true, true
	cfg.Listeners[0].Limits.PerClient = 1
	f := serve(t, Options{}, cfg)
	for _, tt := range []struct{ text, client string }{
		{v2TCP4 + "\x00\x0c" + v4Addresses + "hello\n", "1.2.3.4:51200"},
		{"PROXY TCP6 2001:db8::1 10.0.0.7 51200 5432\r\nhello\n", "[2001:db8::1]:51200"},
		{"hello\n", ""},
		{"PROPFIND / HTTP/1.1\n", ""},
		{"\r\n\r\n\x00\r\n, not a header\n", ""},
	} {
		c := f.client(0)
		source, payload := tt.client, tt.text
		if source == "" {
			source = c.LocalAddr().String()
		} else {
			payload = "hello\n"
		}
		io.WriteString(c, tt.text)
		c.CloseWrite() // SNI waits for no more
		hear(t, c, payload)
		if h := <-headers; h.SourceAddr.String() != source {
			t.Errorf("%q goes on as %+v", tt.text, h)
		}
		io.Copy(io.Discard, c)
		if r := f.record(); r.Client != source || r.Reason != outcome.Closed || int(r.BytesUp) != len(payload) {
			t.Errorf("%q: record %+v", tt.text, r)
		}
	}
	first := f.client(0)
	io.WriteString(first, "hello, this is no hello\n")
	hear(t, first, "hello, this is no hello\n")
	second := f.client(0)
	io.WriteString(second, "hello, this is no hello\n")
	wantReset(t, second)
	if r := f.record(); r.Limit != "listeners.in.limits.per_client" {
		t.Errorf("the second of a client: %+v", r)
	}
}

// A client that sends nothing is served when the header can be waited for no longer: a
// server may have to speak first.
func TestOptionalProxyHeaderThatDoesNotCome(t *testing.T) {
	cfg := behind(t, l4test.Backend(t, func(c *net.TCPConn) { io.WriteString(c, "welcome\n") }))
	cfg.Listeners[0].ProxyOptional = true
	cfg.Listeners[0].Timeouts.Handshake = 50 * time.Millisecond
	f := serve(t, Options{}, cfg)
	hear(t, f.client(0), "welcome\n")
	c := f.client(0)
	io.WriteString(c, "PRO") // it may be the beginning of one
	hear(t, c, "welcome\n")
}

// TLS may follow an optional header, and may come without one.
func TestOptionalProxyHeaderBeforeTLS(t *testing.T) {
	cfg, cert, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	cfg.Listeners[0].ProxyOptional = true
	f := serve(t, Options{}, cfg)
	for _, header := range []string{"", "PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\n"} {
		c := f.client(0)
		io.WriteString(c, header)
		client := tls.Client(c, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, ServerName: "x"})
		ping(t, client)
		client.Close()
		if r := f.record(); header != "" && r.Client != "1.2.3.4:51200" || r.Principal != "dns:localhost" || r.BytesUp != 5 {
			t.Errorf("%q: record %+v", header, r)
		}
	}
}

// The fields of a header go on to the upstream.
func TestFieldsGoUpstream(t *testing.T) {
	addr, headers := proxyBackend(t)
	cfg := behind(t, addr)
	cfg.Upstreams[0].ProxyProtocol = upstream.ProxyV2
	f := serve(t, Options{}, cfg)
	c := f.client(0)
	io.WriteString(c, v2TCP4+"\x00\x15"+v4Addresses+"\x05\x00\x0242"+"\x04\x00\x01x"+"hello\n")
	hear(t, c, "hello\n")
	h := <-headers
	tlvs, err := h.TLVs()
	if err != nil || len(tlvs) != 1 || tlvs[0].Type != proxyproto.PP2_TYPE_UNIQUE_ID || string(tlvs[0].Value) != "42" {
		t.Errorf("%v, %v", tlvs, err)
	}
}

// A client that resets before its first byte is a probe, at each stage: balancers check
// so whether we accept.
func TestProbesThatReset(t *testing.T) {
	up := l4test.Backend(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	tlsCfg, _, _ := tlsListener(t, up)
	for name, c := range map[string]struct {
		change func(*Config)
		stage  outcome.Stage
		said   string
		reason outcome.Reason
	}{
		"plain":                 {func(*Config) {}, outcome.StageRelay, "", outcome.Probe},
		"plain, after a byte":   {func(*Config) {}, outcome.StageRelay, "x", outcome.DownstreamReset},
		"PROXY":                 {func(c *Config) { *c = behind(t, up) }, outcome.StageGreet, "", outcome.Probe},
		"PROXY, after a byte":   {func(c *Config) { *c = behind(t, up) }, outcome.StageGreet, "P", outcome.DownstreamReset},
		"PROXY, after LOCAL":    {func(c *Config) { *c = behind(t, up) }, outcome.StageRelay, v2Local + "\x00\x00", outcome.Probe},
		"optional PROXY":        {func(c *Config) { *c = behind(t, up); c.Listeners[0].ProxyOptional = true }, outcome.StageGreet, "", outcome.Probe},
		"TLS":                   {func(c *Config) { *c = tlsCfg }, outcome.StageGreet, "", outcome.Probe},
		"TLS, after a byte":     {func(c *Config) { *c = tlsCfg }, outcome.StageGreet, "\x16", outcome.DownstreamReset},
		"SOCKS5":                {func(c *Config) { c.Listeners[0].Request = RequestSOCKS5 }, outcome.StageGreet, "", outcome.Probe},
		"SOCKS5, after a byte":  {func(c *Config) { c.Listeners[0].Request = RequestSOCKS5 }, outcome.StageGreet, "\x05", outcome.DownstreamReset},
		"CONNECT":               {func(c *Config) { c.Listeners[0].Request = RequestConnect }, outcome.StageGreet, "", outcome.Probe},
		"CONNECT, after a byte": {func(c *Config) { c.Listeners[0].Request = RequestConnect }, outcome.StageGreet, "C", outcome.DownstreamReset},
	} {
		cfg := oneUpstream(up)
		c.change(&cfg)
		f := serve(t, Options{}, cfg)
		client := f.client(0)
		io.WriteString(client, c.said)
		f.until("the session to reach its stage", func() bool {
			all := f.Sessions(math.MaxInt)
			return len(all) == 1 && all[0].Stage == c.stage && (c.stage != outcome.StageRelay || all[0].BytesUp == int64(len(c.said)) || c.reason == outcome.Probe)
		})
		client.SetLinger(0)
		client.Close()
		if r := f.record(); r.Reason != c.reason || r.Stage != c.stage {
			t.Errorf("%s: %s at %s, want %s at %s", name, r.Reason, r.Stage, c.reason, c.stage)
		}
	}
}
