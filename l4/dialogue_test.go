package l4

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

// starttlsBackend is a server that sends hello, reads as many bytes as the request for
// TLS has, answers it, and continues in TLS.
func starttlsBackend(t *testing.T, hello string, request int, answer string, cfg *tls.Config, serve func(*tls.Conn)) string {
	return l4test.Backend(t, func(c *net.TCPConn) {
		c.SetDeadline(time.Now().Add(l4test.Bound))
		io.WriteString(c, hello)
		if _, err := io.ReadFull(c, make([]byte, request)); err != nil {
			return
		}
		io.WriteString(c, answer)
		s := tls.Server(c, cfg)
		if s.Handshake() == nil {
			serve(s)
		}
	})
}

// starttlsUpstream is an upstream that trusts the backend's certificate.
func starttlsUpstream(t *testing.T, protocol string, backend func(*tls.Config) string) Config {
	cert, pool := l4test.SelfSigned(t)
	cfg := tlsUpstream(backend(&tls.Config{Certificates: []tls.Certificate{cert}}), &tls.Config{ServerName: "localhost", RootCAs: pool})
	cfg.Upstreams[0].StartTLS = protocol
	return cfg
}

func hear(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); string(got) != want {
		t.Fatalf("heard %q, %v, want %q", got[:n], err, want)
	}
}

// mysqlEcho answers a login with OK, and then echoes.
func mysqlEcho(s *tls.Conn) {
	if _, err := io.ReadFull(s, make([]byte, len(l4test.MySQLReply))); err == nil {
		io.WriteString(s, "\x07\x00\x00\x03\x00\x00\x00\x02\x00\x00\x00")
		io.Copy(s, s)
	}
}

// TLS begins after the client's first message, and its bytes are counted.
func TestTLSThatNeedsTheClient(t *testing.T) {
	reasons := make(chan outcome.Reason, 9)
	f := serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { reasons <- r }}}},
		starttlsUpstream(t, "mysql", func(cfg *tls.Config) string { return starttlsBackend(t, l4test.MySQLHello, 36, "", cfg, mysqlEcho) }))
	c := f.client(0)
	struck := strings.Replace(l4test.MySQLHello, "\x00\x8a\x21", "\x00\x82\x21", 1)
	hear(t, c, struck)
	io.WriteString(c, l4test.MySQLReply)
	hear(t, c, "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00")
	if r := <-reasons; r != outcome.OK {
		t.Errorf("the attempt settled as %s", r)
	}
	ping(t, c)
	c.CloseWrite()
	io.Copy(io.Discard, c)
	r := f.record()
	if r.Reason != outcome.Closed || r.BytesUp != int64(len(l4test.MySQLReply)+5) || r.BytesDown != int64(len(struck)+11+5) {
		t.Errorf("record: %+v", r)
	}
}

// Once the client has received a server's greeting, no other server can replace it. The
// client is told of the failure, which counts for the attempt.
func TestTLSThatFailsAfterTheClient(t *testing.T) {
	reasons := make(chan outcome.Reason, 9)
	cfg := starttlsUpstream(t, "mysql", func(cfg *tls.Config) string { return starttlsBackend(t, l4test.MySQLHello, 36, "", cfg, mysqlEcho) })
	_, other := l4test.SelfSigned(t)
	cfg.Upstreams[0].TLS = func(string, string) (*tls.Config, error) {
		return &tls.Config{ServerName: "localhost", RootCAs: other}, nil
	}
	f := serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { reasons <- r }}}}, cfg)
	c := f.client(0)
	hear(t, c, strings.Replace(l4test.MySQLHello, "\x00\x8a\x21", "\x00\x82\x21", 1))
	io.WriteString(c, l4test.MySQLReply)
	text, err := io.ReadAll(c)
	c.Close()
	if err != nil || !strings.Contains(string(text), "\x00\x02\xff\x13\x04#08S01ambassador: tls up ") || !strings.Contains(string(text), "(upstream_tls)") {
		t.Errorf("the client is told %q, %v", text, err)
	}
	if r := f.record(); r.Reason != outcome.UpstreamTLS || r.Stage != outcome.StageTLS || r.Attempts != 1 {
		t.Errorf("record: %+v", r)
	}
	if r := <-reasons; r != outcome.UpstreamTLS {
		t.Errorf("the attempt settled as %s", r)
	}
}

// Before the client has received a greeting, another address may replace one that is
// down or refuses.
func TestGreetingOfAnotherAddress(t *testing.T) {
	full := l4test.Backend(t, func(c *net.TCPConn) { io.WriteString(c, "\x17\x00\x00\x00\xff\x10\x04Too many connections") })
	cfg := starttlsUpstream(t, "mysql", func(cfg *tls.Config) string { return starttlsBackend(t, l4test.MySQLHello, 36, "", cfg, mysqlEcho) })
	cfg.Upstreams[0].Endpoints = append(endpointsAt(l4test.RefusedAddress(t), full), cfg.Upstreams[0].Endpoints...)
	f := serve(t, Options{}, cfg)
	for range 3 { // each address is first in turn
		c := f.client(0)
		hear(t, c, strings.Replace(l4test.MySQLHello, "\x00\x8a\x21", "\x00\x82\x21", 1))
		io.WriteString(c, l4test.MySQLReply)
		hear(t, c, "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00")
		ping(t, c)
	}
	cfg.Upstreams[0].Endpoints = endpointsAt(full)
	if text, err := io.ReadAll(serve(t, Options{}, cfg).client(0)); err != nil || string(text) != "\x17\x00\x00\x00\xff\x10\x04Too many connections" {
		t.Errorf("the client is told %q, %v, want the server's own words", text, err)
	}
}

// A trial connection has no client, and completes the whole path all the same.
func TestTrialOfTLSThatNeedsTheClient(t *testing.T) {
	cfg := starttlsUpstream(t, "mysql", func(cfg *tls.Config) string { return starttlsBackend(t, l4test.MySQLHello, 36, "", cfg, mysqlEcho) })
	cfg.Upstreams[0].Required = true
	good := make(chan outcome.Reason, 99)
	serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { good <- r }}}}, cfg)
	if r := <-good; r != outcome.OK {
		t.Errorf("the trial settled as %s", r)
	}
	_, other := l4test.SelfSigned(t)
	cfg.Upstreams[0].TLS = func(string, string) (*tls.Config, error) {
		return &tls.Config{ServerName: "localhost", RootCAs: other}, nil
	}
	bad := make(chan outcome.Reason, 99)
	f := serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { bad <- r }}}}, cfg)
	if r := <-bad; r != outcome.UpstreamTLS {
		t.Errorf("the trial settled as %s", r)
	}
	if f.Ready().Ready {
		t.Error("ready, though TLS cannot begin")
	}
}

// A trial connection takes leave in the protocol, so that the server has nothing to
// log.
func TestTrialTakesLeave(t *testing.T) {
	last := make(chan string, 9)
	cfg := starttlsUpstream(t, "pop3", func(cfg *tls.Config) string {
		return starttlsBackend(t, "+OK\r\n", len("STLS\r\n"), "+OK\r\n", cfg, func(s *tls.Conn) {
			text, err := io.ReadAll(s)
			if err != nil {
				t.Error(err)
			}
			last <- string(text)
		})
	})
	cfg.Upstreams[0].Required = true
	serve(t, Options{}, cfg)
	if got := <-last; got != "QUIT\r\n" {
		t.Errorf("the trial ended with %q", got)
	}
}

// In a protocol in which the server speaks first, a client that gets no connection is
// told why at once, without having sent anything.
func TestFailureIsToldInTheProtocol(t *testing.T) {
	for protocol, want := range map[string]string{"smtp": "421 4.3.2 ambassador: ", "imap": "* BYE ambassador: ", "pop3": "-ERR [SYS/TEMP] ambassador: "} {
		cfg := starttlsUpstream(t, protocol, func(*tls.Config) string { return l4test.RefusedAddress(t) })
		cfg.Upstreams[0].Connect.Attempts = 1
		f := serve(t, Options{}, cfg)
		c := f.client(0)
		text, err := io.ReadAll(c)
		c.Close()
		if err != nil || !strings.HasPrefix(string(text), want) || !strings.HasSuffix(string(text), "(refused)\r\n") {
			t.Errorf("%s: the client is told %q, %v", protocol, text, err)
		}
		if r := f.record(); r.Reason != outcome.Refused {
			t.Errorf("%s: record %+v", protocol, r)
		}
	}
}

// A client that sends single bytes is understood. A client that sends nothing or too
// much ends only its own session, and the upstream receives none of it.
func TestHostileClients(t *testing.T) {
	struck := strings.Replace(l4test.MySQLHello, "\x00\x8a\x21", "\x00\x82\x21", 1)
	for _, tt := range []struct {
		name   string
		client func(*net.TCPConn)
		reason outcome.Reason
		public string
	}{
		{"single bytes", func(c *net.TCPConn) {
			for i := range l4test.MySQLReply {
				io.WriteString(c, l4test.MySQLReply[i:i+1])
			}
			c.CloseWrite()
		}, outcome.Closed, "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00"},
		{"silent", func(*net.TCPConn) {}, outcome.HandshakeTimeout, ""},
		{"half a packet", func(c *net.TCPConn) { io.WriteString(c, l4test.MySQLReply[:20]) }, outcome.HandshakeTimeout, ""},
		{"a MiB", func(c *net.TCPConn) { io.WriteString(c, "\xff\xff\xff\x01"+strings.Repeat("x", 1<<20)) }, outcome.BadGreeting, "#08S01ambassador: mysql: the client sent"},
		{"only hears the greeting", func(c *net.TCPConn) { c.Close() }, outcome.Closed, ""},
	} {
		reasons := make(chan outcome.Reason, 9)
		cfg := starttlsUpstream(t, "mysql", func(cfg *tls.Config) string { return starttlsBackend(t, l4test.MySQLHello, 36, "", cfg, mysqlEcho) })
		if tt.reason == outcome.HandshakeTimeout {
			cfg.Listeners[0].Timeouts.Handshake = 200 * time.Millisecond
		}
		f := serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { reasons <- r }}}}, cfg)
		c := f.client(0)
		hear(t, c, struck)
		tt.client(c)
		text, _ := io.ReadAll(c)
		if !strings.Contains(string(text), tt.public) {
			t.Errorf("%s: the client is told %q, want %q", tt.name, text, tt.public)
		}
		c.Close()
		if r := f.record(); r.Reason != tt.reason {
			t.Errorf("%s: record %+v", tt.name, r)
		}
		if tt.name != "single bytes" && len(reasons) > 0 {
			t.Errorf("%s: the attempt settled as %s, want nothing of it", tt.name, <-reasons)
		}
	}
}

// A server that sends nothing ends the attempt within its timeout. A server that never
// ends its greeting is cut off at the bound.
func TestHostileServers(t *testing.T) {
	_, pool := l4test.SelfSigned(t)
	for _, tt := range []struct {
		name, protocol string
		server         func(*net.TCPConn)
		reason         outcome.Reason
		cause          string
	}{
		{"late", "smtp", func(c *net.TCPConn) { io.WriteString(c, "220 "); io.Copy(io.Discard, c) }, outcome.Timeout, ""},
		{"silent", "mysql", func(c *net.TCPConn) { io.Copy(io.Discard, c) }, outcome.Timeout, "remove starttls"},
		{"a MiB of a line", "smtp", func(c *net.TCPConn) { io.WriteString(c, strings.Repeat("2", 1<<20)) }, outcome.StartTLSRefused, "more than"},
		{"a MiB of greeting", "mysql", func(c *net.TCPConn) { io.WriteString(c, "\xff\xff\xff\x00\x0a"+strings.Repeat("x", 1<<20)) }, outcome.StartTLSRefused, "greeted"},
		{"a MiB of capabilities", "smtp", func(c *net.TCPConn) { io.WriteString(c, "220 m\r\n"+strings.Repeat("250-x\r\n", 1<<17)) }, outcome.StartTLSRefused, "more than"},
		{"a MiB of capabilities", "imap", func(c *net.TCPConn) { io.WriteString(c, "* OK m\r\n"+strings.Repeat("* CAPABILITY X\r\n", 1<<16)) }, outcome.StartTLSRefused, "32 untagged lines"},
		{"a MiB of an answer", "pop3", func(c *net.TCPConn) { io.WriteString(c, "+OK m\r\n+OK "+strings.Repeat("x", 1<<20)) }, outcome.StartTLSRefused, "more than"},
		{"a MiB of refusals", "postgres", func(c *net.TCPConn) { io.WriteString(c, strings.Repeat("N", 1<<20)) }, outcome.StartTLSRefused, "ssl = on"},
		{"a MiB of features", "xmpp", func(c *net.TCPConn) { io.WriteString(c, xmppServer+"<stream:features>"+strings.Repeat("<x/>", 1<<18)) }, outcome.StartTLSRefused, "more than"},
		{"a MiB of answer", "ldap", func(c *net.TCPConn) { io.WriteString(c, "\x30\x83\x10\x00\x00"+strings.Repeat("x", 1<<20)) }, outcome.StartTLSRefused, "LDAP"},
	} {
		cfg := tlsUpstream(l4test.Backend(t, tt.server), &tls.Config{ServerName: "localhost", RootCAs: pool})
		cfg.Upstreams[0].StartTLS = tt.protocol
		cfg.Upstreams[0].Connect = upstream.ConnectConfig{Attempts: 1}
		if tt.reason == outcome.Timeout {
			cfg.Upstreams[0].Connect.AttemptTimeout = 100 * time.Millisecond
		}
		f := serve(t, Options{}, cfg)
		c := f.client(0)
		stage := outcome.StageStartTLS
		if tt.protocol == "xmpp" { // it waits for its client
			stage = outcome.StageDialogue
			io.WriteString(c, xmppClient)
		}
		c.CloseWrite()
		io.Copy(io.Discard, c)
		if r := f.record(); r.Stage != stage || r.Reason != tt.reason || !strings.Contains(r.Cause+"; "+r.Hint, tt.cause) {
			t.Errorf("%s: record %+v", tt.name, r)
		}
	}
}

// A client that reads the replayed greeting and closes is not counted as a probe: it
// received something.
func TestClientThatOnlyReadsTheGreeting(t *testing.T) {
	f := serve(t, Options{}, starttlsUpstream(t, "pop3", func(cfg *tls.Config) string {
		return starttlsBackend(t, "+OK hello\r\n", len("STLS\r\n"), "+OK\r\n", cfg, func(s *tls.Conn) { io.Copy(io.Discard, s); s.CloseWrite() })
	}))
	c := f.client(0)
	hear(t, c, "+OK hello\r\n")
	c.CloseWrite()
	io.Copy(io.Discard, c)
	if r := f.record(); r.Reason != outcome.Closed || r.FirstClose != "downstream" || r.BytesDown != 11 || r.Stage != outcome.StageRelay {
		t.Errorf("record: %+v", r)
	}
}
