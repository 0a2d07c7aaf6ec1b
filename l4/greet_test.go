package l4

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

var errStranger = errors.New("not one of the principals")

// tlsListener is a server whose listener demands a certificate of pool, and denies
// clients with the server name "denied".
func tlsListener(t *testing.T, to string) (Config, tls.Certificate, *x509.CertPool) {
	cert, pool := l4test.SelfSigned(t)
	cfg := oneUpstream(to)
	server := &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert}
	server.SetSessionTicketKeys([][32]byte{{1}}) // otherwise each connection has another key
	server.VerifyConnection = func(cs tls.ConnectionState) error {
		if _, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
		}
		if cs.ServerName == "denied" {
			return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: errStranger}
		}
		return nil
	}
	cfg.Listeners[0].TLS = &ServerTLS{
		Terminate: func(*tls.ClientHelloInfo) (Termination, error) {
			return Termination{server, func(leaf *x509.Certificate) string { return "dns:" + leaf.DNSNames[0] }}, nil
		},
		Denied: func(err error) bool { return errors.Is(err, errStranger) },
	}
	return cfg, cert, pool
}

func both(t *testing.T, test func(t *testing.T, version uint16)) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) { test(t, version) })
	}
}

// A TLS client's bytes and its close_notify are relayed; the record has the client's
// name.
func TestTerminatedSession(t *testing.T) {
	both(t, func(t *testing.T, version uint16) {
		cfg, cert, pool := tlsListener(t, l4test.Backend(t, l4test.Echo))
		f := serve(t, Options{}, cfg)
		raw := f.client(0)
		c := tls.Client(raw, &tls.Config{ServerName: "localhost", RootCAs: pool, Certificates: []tls.Certificate{cert}, MaxVersion: version})
		ping(t, c)
		c.CloseWrite()
		raw.CloseWrite()
		if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
			t.Errorf("after our end: %q, %v", rest, err)
		}
		r := f.record()
		if r.Reason != outcome.Closed || r.Principal != "dns:localhost" || r.FirstClose != "downstream" || r.BytesUp != 5 || r.BytesDown != 5 || r.Truncated {
			t.Errorf("record: %+v", r)
		}
	})
}

// The server may speak first, and may close first.
func TestTerminatedSessionOfATalkativeServer(t *testing.T) {
	cfg, cert, _ := tlsListener(t, l4test.Backend(t, func(c *net.TCPConn) { io.WriteString(c, "hello and goodbye") }))
	f := serve(t, Options{}, cfg)
	c := tls.Client(f.client(0), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
	if text, err := io.ReadAll(c); string(text) != "hello and goodbye" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
	c.Close()
	if r := f.record(); r.Reason != outcome.Closed || r.FirstClose != "upstream" {
		t.Errorf("record: %+v", r)
	}
}

// A client that closes without close_notify is relayed as a FIN, and the record says
// so.
func TestTruncatedClient(t *testing.T) {
	cfg, cert, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	f := serve(t, Options{}, cfg)
	raw := f.client(0)
	ping(t, tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}))
	raw.CloseWrite()
	io.Copy(io.Discard, raw)
	if r := f.record(); r.Reason != outcome.Closed || !r.Truncated {
		t.Errorf("record: %+v", r)
	}
}

// The specification of how a refused TLS client ends, and of what it receives: an
// alert, or a reset if there was none.
func TestRefusedTLSClients(t *testing.T) {
	both(t, func(t *testing.T, version uint16) {
		cfg, cert, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
		stranger, _ := l4test.SelfSigned(t)
		f := serve(t, Options{}, cfg)
		for _, tt := range []struct {
			name   string
			client *tls.Config
			reason outcome.Reason
			cause  string
			hint   string
		}{
			{"another CA", &tls.Config{Certificates: []tls.Certificate{stranger}}, outcome.DownstreamTLS, "certificate", ""},
			{"no certificate", &tls.Config{}, outcome.DownstreamTLS, "didn't provide a certificate", "let the client send one that a CA in tls.ca of the listener has issued"},
			{"another principal", &tls.Config{ServerName: "denied", Certificates: []tls.Certificate{cert}}, outcome.Denied, errStranger.Error(), ""},
			{"too old", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, outcome.DownstreamTLS, "the client offers TLS 1.1 at most, and the listener requires TLS 1.2", "let the client speak TLS 1.2"},
			{"nothing in common", &tls.Config{Certificates: []tls.Certificate{cert}, CipherSuites: []uint16{tls.TLS_RSA_WITH_RC4_128_SHA}, MaxVersion: tls.VersionTLS12}, outcome.DownstreamTLS, "the client has no cipher suite", "another kind of key"},
		} {
			tt.client.InsecureSkipVerify = true
			if tt.client.MaxVersion == 0 {
				tt.client.MaxVersion = version
			}
			c := tls.Client(f.client(0), tt.client)
			io.WriteString(c, "early bytes")
			if _, err := io.Copy(io.Discard, c); !netconn.IsAlert(err) {
				t.Errorf("%s: the client sees %v, want an alert", tt.name, err)
			}
			c.Close()
			r := f.record()
			if r.Reason != tt.reason || r.Stage != outcome.StageGreet || !strings.Contains(r.Cause, tt.cause) || !strings.Contains(r.Hint, tt.hint) || r.Attempts != 0 || r.Principal != "" || r.Upstream != "" {
				t.Errorf("%s: record %+v", tt.name, r)
			}
		}
	})
}

func TestClientsThatAreNoTLSClients(t *testing.T) {
	cfg, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Timeouts.Handshake = 100 * time.Millisecond
	f := serve(t, Options{}, cfg)
	for _, tt := range []struct {
		name   string
		act    func(c *net.TCPConn)
		reason outcome.Reason
		cause  string
	}{
		{"plaintext", func(c *net.TCPConn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); wantReset(t, c) }, outcome.DownstreamTLS, `but with "GET /"`},
		{"SSLRequest", func(c *net.TCPConn) { io.WriteString(c, "\x00\x00\x00\x08\x04\xd2\x16\x2f"); wantReset(t, c) }, outcome.DownstreamTLS, "\\x00\\x00\\x00\\b\\x04"},
		{"silence", func(c *net.TCPConn) { wantReset(t, c) }, outcome.HandshakeTimeout, ""},
		{"half of a hello", func(c *net.TCPConn) { io.WriteString(c, "\x16\x03\x01\x01\x00\x01"); wantReset(t, c) }, outcome.HandshakeTimeout, ""},
		{"a knock", func(c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c) }, outcome.Probe, ""},
		{"a cut hello", func(c *net.TCPConn) {
			io.WriteString(c, "\x16\x03\x01\x01\x00\x01")
			c.CloseWrite()
			wantReset(t, c)
		}, outcome.DownstreamTLS, "EOF"},
		{"a reset", func(c *net.TCPConn) { io.WriteString(c, "\x16"); c.SetLinger(0); c.Close() }, outcome.DownstreamReset, ""},
		{"distrust", func(c *net.TCPConn) {
			if err := tls.Client(c, &tls.Config{ServerName: "localhost", RootCAs: x509.NewCertPool()}).Handshake(); err == nil {
				t.Error("distrust: no error")
			}
		}, outcome.DownstreamTLS, "the client rejected our certificate (CN=test, issued by CN=test): it gave no reason (remote error"},
	} {
		tt.act(f.client(0))
		if r := f.record(); r.Reason != tt.reason || r.Stage != outcome.StageGreet || !strings.Contains(r.Cause, tt.cause) {
			t.Errorf("%s: record %+v", tt.name, r)
		}
	}
}

// A failure after the handshake is a reset, without a close_notify that would make the
// answer look complete.
func TestTerminatedSessionWithoutUpstream(t *testing.T) {
	cfg, cert, _ := tlsListener(t, l4test.RefusedAddress(t))
	cfg.Upstreams[0].Connect.Attempts = 1
	f := serve(t, Options{}, cfg)
	c := tls.Client(f.client(0), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
	if r := f.record(); r.Reason != outcome.Refused || r.Principal != "dns:localhost" {
		t.Errorf("record: %+v", r)
	}
}

func TestListenerWithoutIdentity(t *testing.T) {
	cfg, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	none := errors.New("there is no certificate yet")
	cfg.Listeners[0].TLS.Terminate = func(*tls.ClientHelloInfo) (Termination, error) { return Termination{}, none }
	cfg.Listeners[0].TLS.IdentityReady = func() error { return none }
	f := serve(t, Options{}, cfg)
	if err := tls.Client(f.client(0), &tls.Config{InsecureSkipVerify: true}).Handshake(); !netconn.IsAlert(err) {
		t.Errorf("the client sees %v", err)
	}
	if r := f.record(); r.Reason != outcome.NoIdentity || r.Stage != outcome.StageGreet || !strings.Contains(r.Cause, none.Error()) {
		t.Errorf("record: %+v", r)
	}
	if got := f.Ready(); got.Ready || len(got.Waiting) != 1 || got.Waiting[0] != "listener in: no_identity: there is no certificate yet" {
		t.Errorf("ready: %+v", got)
	}
}

// TLS may be on any address. A reload that removes TLS is refused.
func TestTLSListensAnywhere(t *testing.T) {
	cfg, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Addresses = []string{"0.0.0.0:0"}
	f := serve(t, Options{}, cfg)
	plain := cfg
	plain.Listeners = []ListenerConfig{cfg.Listeners[0]}
	plain.Listeners[0].TLS = nil
	if err := f.Apply(plain); err == nil || !strings.Contains(err.Error(), "unsafe_plaintext_listen") {
		t.Errorf("plaintext on every address: %v", err)
	}
}

// If too many sessions are in a TLS handshake, the oldest end. An honest client is
// served however many others there are, even if its session holds more than each of
// theirs.
func TestCrowdOfHandshakesIsBounded(t *testing.T) {
	cfg, cert, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	const crowd = 16
	cfg.MaxMemory = (crowd+1)*leaveCost + 512 // goroutines, and less than half of a hello
	f := serve(t, Options{}, cfg)
	oldest := f.client(0)
	io.WriteString(oldest, "\x16") // a client that sends nothing is parked
	f.until("the first session in greet", func() bool { return f.waiting() == 1 })
	for range crowd - 1 {
		io.WriteString(f.client(0), "\x16")
	}
	f.until("the crowd in greet", func() bool { return f.waiting() == crowd })
	// One more is too much for as long as its hello is not complete.
	honest := &pausedConn{TCPConn: f.client(0), then: func() { wantReset(t, oldest) }}
	ping(t, tls.Client(honest, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}))
	if r := f.record(); r.Reason != outcome.Limit || r.Limit != "limits.memory" || r.Stage != outcome.StageGreet {
		t.Errorf("record: %+v", r)
	}
}

// pausedConn sends half of the first write, calls then, and sends the rest.
type pausedConn struct {
	*net.TCPConn
	then func()
}

func (c *pausedConn) Write(b []byte) (int, error) {
	then := c.then
	if then == nil {
		return c.TCPConn.Write(b)
	}
	c.then = nil
	half, err := c.TCPConn.Write(b[:len(b)/2])
	if err != nil {
		return half, err
	}
	then()
	rest, err := c.TCPConn.Write(b[half:])
	return half + rest, err
}

// waiting is how many sessions hold memory and are not relayed yet.
func (f *fixture) waiting() int {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	return len(f.memory.waiting)
}

// A handshake that waits for its client takes no turn; a handshake with a hello to
// answer waits for its turn.
func TestHandshakesTakeTurns(t *testing.T) {
	cfg, cert, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Timeouts.Handshake = time.Second
	f := serve(t, Options{}, cfg)
	client := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}
	for range 4 * runtime.GOMAXPROCS(0) {
		f.client(0)
	}
	ping(t, tls.Client(f.client(0), client))
	for range runtime.GOMAXPROCS(0) {
		f.turns.Take(t.Context(), sourceAt("10.0.0.1"))
	}
	if err := tls.Client(f.client(0), client).Handshake(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("while others have their turn: %v", err)
	}
	for range runtime.GOMAXPROCS(0) {
		f.turns.GiveBack()
	}
	ping(t, tls.Client(f.client(0), client))
	if n := f.turns.InUse(); n != 0 {
		t.Errorf("%d turns are not given back", n)
	}
}

const (
	pgSSLRequest = "\x00\x00\x00\x08\x04\xd2\x16\x2f"
	pgGSSRequest = "\x00\x00\x00\x08\x04\xd2\x16\x30"
	pgCancel     = "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x12\x34\xde\xad\xbe\xef"
	pgStartup    = "\x00\x00\x00\x15\x00\x03\x00\x00user\x00orders\x00\x00"
)

// askedListener is a listener whose clients ask for TLS as PostgreSQL clients do.
func askedListener(t *testing.T, to string) (Config, *tls.Config) {
	cfg, cert, _ := tlsListener(t, to)
	cfg.Listeners[0].StartTLS = "postgres"
	return cfg, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}
}

func TestClientsAskForTLS(t *testing.T) {
	cfg, client := askedListener(t, l4test.Backend(t, l4test.Echo))
	f := serve(t, Options{}, cfg)
	for says, hears := range map[string]string{pgSSLRequest: "S", pgGSSRequest + pgSSLRequest: "NS", "": ""} {
		c := f.client(0)
		io.WriteString(c, says)
		hear(t, c, hears)
		ping(t, tls.Client(c, client))
		c.Close()
		if r := f.record(); r.Principal != "dns:localhost" || r.BytesUp != 5 {
			t.Errorf("%q: record %+v", says, r)
		}
	}
}

func TestClientsThatAskWrongly(t *testing.T) {
	cfg, _ := askedListener(t, l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Timeouts.Handshake = 100 * time.Millisecond
	f := serve(t, Options{}, cfg)
	for _, tt := range []struct {
		name   string
		act    func(c *net.TCPConn)
		reason outcome.Reason
		cause  string
	}{
		{"without TLS", func(c *net.TCPConn) {
			io.WriteString(c, pgStartup)
			if text, err := io.ReadAll(c); err != nil || !strings.Contains(string(text), "set sslmode=verify-full") {
				t.Errorf("the client hears %q, %v", text, err)
			}
			c.Close()
		}, outcome.BadGreeting, "set sslmode=verify-full"},
		{"a cancel without a certificate", func(c *net.TCPConn) { io.WriteString(c, pgCancel); io.Copy(io.Discard, c); c.Close() }, outcome.BadGreeting, "cancel request without TLS"},
		{"silence", func(c *net.TCPConn) { wantReset(t, c) }, outcome.HandshakeTimeout, ""},
		{"a knock", func(c *net.TCPConn) { c.Close() }, outcome.Probe, ""},
		{"asked, and left", func(c *net.TCPConn) { io.WriteString(c, pgSSLRequest); hear(t, c, "S"); c.Close() }, outcome.DownstreamTLS, "EOF"},
	} {
		tt.act(f.client(0))
		if r := f.record(); r.Reason != tt.reason || r.Stage != outcome.StageGreet || !strings.Contains(r.Cause, tt.cause) {
			t.Errorf("%s: record %+v", tt.name, r)
		}
	}
}

// If clients show no certificate, a cancel request may be sent without TLS.
func TestCancelWithoutTLS(t *testing.T) {
	got := make(chan string, 1)
	cfg, _ := askedListener(t, l4test.Backend(t, func(c *net.TCPConn) { // the only answer to a cancel request is the close
		text := make([]byte, len(pgCancel))
		io.ReadFull(c, text)
		got <- string(text)
	}))
	cfg.Listeners[0].TLS.Anonymous = true
	reasons := make(chan outcome.Reason, 1)
	f := serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { reasons <- r }}}}, cfg)
	c := f.client(0)
	io.WriteString(c, pgCancel)
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the client sees %v", err)
	}
	if text := <-got; text != pgCancel {
		t.Errorf("the upstream got %q", text)
	}
	if r := f.record(); r.Reason != outcome.Closed || r.BytesUp != int64(len(pgCancel)) {
		t.Errorf("record: %+v", r)
	}
	if r := <-reasons; r != outcome.OK {
		t.Errorf("the attempt settled as %s", r)
	}
}

// A client is told over its TLS connection why it gets no session.
func TestAskedClientHearsTheReason(t *testing.T) {
	cfg, client := askedListener(t, l4test.RefusedAddress(t))
	cfg.Upstreams[0].Connect.Attempts = 1
	f := serve(t, Options{}, cfg)
	raw := f.client(0)
	io.WriteString(raw, pgSSLRequest)
	hear(t, raw, "S")
	c := tls.Client(raw, client)
	io.WriteString(c, pgStartup)
	if text, err := io.ReadAll(c); err != nil || !strings.Contains(string(text), "connection refused (refused)") {
		t.Errorf("the client hears %q, %v", text, err)
	}
	c.Close()
	if r := f.record(); r.Reason != outcome.Refused {
		t.Errorf("record: %+v", r)
	}
}

func TestProtocolsOfListeners(t *testing.T) {
	cfg, _ := askedListener(t, "127.0.0.1:1")
	for protocol, want := range map[string]string{"mysql": "unknown for clients", "gopher": "unknown for clients", "postgres": "no TLS to start"} {
		cfg.Listeners[0].StartTLS = protocol
		if protocol == "postgres" {
			cfg.Listeners[0].TLS = nil
		}
		if err := New(t.Context(), Options{}).Apply(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: applied: %v", protocol, err)
		}
		cfg, _ = askedListener(t, "127.0.0.1:1")
	}
}

// TestTicketKeysRotate asserts that a ticket of a key that was dropped resumes nothing,
// also after other handshakes of the same configuration.
func TestTicketKeysRotate(t *testing.T) {
	cfg, cert, pool := tlsListener(t, l4test.Backend(t, l4test.Echo))
	how, _ := cfg.Listeners[0].TLS.Terminate(nil)
	f := serve(t, Options{}, cfg)
	client := &tls.Config{ServerName: "localhost", RootCAs: pool, Certificates: []tls.Certificate{cert}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for i, step := range []struct {
		keys   [][32]byte
		resume bool
	}{
		{[][32]byte{{1}}, false},
		{[][32]byte{{1}}, true},
		{[][32]byte{{2}, {1}}, true},
		{[][32]byte{{3}, {2}}, true},
		{[][32]byte{{5}, {4}}, false},
	} {
		how.Config.SetSessionTicketKeys(step.keys)
		conn := tls.Client(f.client(0), client)
		ping(t, conn)
		if got := conn.ConnectionState().DidResume; got != step.resume {
			t.Errorf("step %d: resumed %t, want %t", i, got, step.resume)
		}
		conn.Close()
		f.record()
	}
}
