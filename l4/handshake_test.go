package l4

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/task"
	"ambassador/l4/upstream"
)

// preSharedKey is the extension of a ClientHello that offers to resume a session.
const preSharedKey = 41

// refusesResumption starts a TLS echo server that answers the offer to resume a session
// with an alert, as OpenSSL does without a session id context. It counts the offers.
func refusesResumption(t *testing.T, cert tls.Certificate) (addr string, offers *atomic.Int64) {
	offers = new(atomic.Int64)
	server := &tls.Config{Certificates: []tls.Certificate{cert}}
	server.SetSessionTicketKeys([][32]byte{{1}})
	server.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.Extensions, preSharedKey) {
			offers.Add(1)
			return nil, errors.New("session id context uninitialized")
		}
		return nil, nil
	}
	return tlsBackend(t, server), offers
}

func resuming(cfg *tls.Config) *tls.Config {
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	return cfg
}

func TestServerThatRefusesToResume(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	addr, offers := refusesResumption(t, cert)
	reasons := make(chan outcome.Reason, 9)
	f := serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { reasons <- r }}}},
		tlsUpstream(addr, resuming(&tls.Config{ServerName: "localhost", RootCAs: pool})))
	for i := range 5 {
		c := f.client(0)
		ping(t, c)
		c.CloseWrite()
		io.Copy(io.Discard, c)
		if r := f.record(); r.Reason != outcome.Closed || r.Attempts != 1 {
			t.Errorf("session %d: %+v; want one attempt that succeeds", i, r)
		}
		if r := <-reasons; r != outcome.OK {
			t.Errorf("session %d: the attempt settled as %s", i, r)
		}
	}
	if n := offers.Load(); n != 1 {
		t.Errorf("%d sessions were offered; want 1, and none after the server refused it", n)
	}
}

// When the server refuses our certificate, the reason of the full handshake counts.
func TestFullHandshakeThatFailsToo(t *testing.T) {
	cert, _ := l4test.SelfSigned(t)
	addr, offers := refusesResumption(t, cert)
	trusted := atomic.Bool{}
	trusted.Store(true)
	client := resuming(&tls.Config{ServerName: "localhost", InsecureSkipVerify: true})
	client.VerifyConnection = func(tls.ConnectionState) error {
		if !trusted.Load() {
			return &tls.CertificateVerificationError{Err: errors.New("not any more")}
		}
		return nil
	}
	f := serve(t, Options{}, tlsUpstream(addr, client))
	c := f.client(0)
	ping(t, c)
	c.Close()
	f.record()
	trusted.Store(false)
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.UpstreamTLS || !strings.Contains(r.Cause, "not any more") || offers.Load() != 1 {
		t.Errorf("%d offers, record %+v; want the verdict on the certificate", offers.Load(), r)
	}
}

// A server that chose X25519 is not sent a post-quantum key again: that costs us time
// for nothing.
func TestPostQuantumKeyIsNotSentInVain(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	client := func() *tls.Config { return &tls.Config{ServerName: "localhost", RootCAs: pool} }
	unverified := func() *tls.Config { return &tls.Config{ServerName: "localhost", InsecureSkipVerify: true} }
	chosen := func() *tls.Config {
		c := client()
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768, tls.X25519}
		return c
	}
	for _, c := range []struct {
		name   string
		server *tls.Config
		client *tls.Config
		again  bool // the second hello has a post-quantum key
	}{
		{"only X25519", &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}, client(), false},
		{"only P-256", &tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP256}}, client(), false},
		{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, client(), false},
		{"post-quantum", &tls.Config{}, client(), true},
		{"not authenticated", &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}, unverified(), true},
		{"chosen by the user", &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}, chosen(), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			hellos := make(chan []tls.CurveID, 9)
			c.server.Certificates = []tls.Certificate{cert}
			c.server.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				hellos <- hello.SupportedCurves
				return nil, nil
			}
			f := serve(t, Options{}, tlsUpstream(tlsBackend(t, c.server), c.client))
			for i, want := range []bool{true, c.again} {
				conn := f.client(0)
				ping(t, conn)
				conn.Close()
				f.record()
				if got := slices.Contains(<-hellos, tls.X25519MLKEM768); got != want {
					t.Errorf("hello %d: post-quantum %v, want %v", i, got, want)
				}
			}
		})
	}
}

// A middlebox that drops a large hello looks like a dead server.
func TestLargeHelloThatIsDroppedIsExplained(t *testing.T) {
	swallow := func(c *net.TCPConn) { io.Copy(io.Discard, c) }
	hangUp := func(c *net.TCPConn) { io.ReadFull(c, make([]byte, 1400)) }
	for _, c := range []struct {
		name   string
		serve  func(*net.TCPConn)
		curves []tls.CurveID
		reason outcome.Reason
		want   bool
	}{
		{"dropped", swallow, nil, outcome.Timeout, true},
		{"closed", hangUp, nil, outcome.UpstreamTLS, false}, // there, the port says more
		{"small", swallow, []tls.CurveID{tls.X25519}, outcome.Timeout, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := tlsUpstream(l4test.Backend(t, c.serve), &tls.Config{ServerName: "localhost", CurvePreferences: c.curves})
			cfg.Upstreams[0].Connect.Timeout = 200 * time.Millisecond
			f := serve(t, Options{}, cfg)
			f.wantRefused()
			if r := f.record(); r.Reason != c.reason || strings.Contains(r.Hint, "tls.post_quantum: off") != c.want {
				t.Errorf("record: %+v; want %s, with the advice: %v", r, c.reason, c.want)
			}
		})
	}
}

// signsWithSHA1 answers a ClientHello like a TLS 1.2 server whose ServerKeyExchange has
// the signature algorithm ecdsa_sha1, whatever the client supports.
func signsWithSHA1(c *net.TCPConn, cert []byte) {
	message := func(kind byte, body ...[]byte) []byte {
		all := slices.Concat(body...)
		return append([]byte{kind, byte(len(all) >> 16), byte(len(all) >> 8), byte(len(all))}, all...)
	}
	length3 := func(b []byte) []byte {
		return append([]byte{byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))}, b...)
	}
	flight := slices.Concat(
		message(2, []byte{3, 3}, make([]byte, 32), []byte{0, 0xc0, 0x2b, 0}), // ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
		message(11, length3(length3(cert))),
		message(12, []byte{3, 0, 29, 32, 9}, make([]byte, 31), []byte{2, 3, 0, 2, 0, 0}),
		message(14))
	c.Write(append([]byte{22, 3, 3, byte(len(flight) >> 8), byte(len(flight))}, flight...))
	io.Copy(io.Discard, c)
}

func TestWhatGoCannotSpeakIsNamed(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	verified := func(edit func(*tls.Config)) *tls.Config {
		c := &tls.Config{ServerName: "localhost", RootCAs: pool, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13}
		if edit != nil {
			edit(c)
		}
		return c
	}
	server := func(cfg *tls.Config) func(*net.TCPConn) {
		cfg.Certificates = []tls.Certificate{cert}
		return func(c *net.TCPConn) { tls.Server(c, cfg).Handshake() }
	}
	for _, c := range []struct {
		name   string
		serve  func(*net.TCPConn)
		client *tls.Config
		reason outcome.Reason
		want   []string // in the cause or the hint
		not    string
	}{
		{"no cipher in common", server(&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}}), verified(nil),
			outcome.UpstreamTLSRejected, []string{"tls.unsafe_ciphers: true", "DHE", "tlssha1=1"}, "tls.curves"},
		{"no cipher that we chose", server(&tls.Config{MaxVersion: tls.VersionTLS12}), verified(func(c *tls.Config) { c.CipherSuites = []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA} }),
			outcome.UpstreamTLSRejected, []string{"check tls.ciphers", "DHE"}, "unsafe_ciphers: true"},
		{"no curve in common", server(&tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP384}}), verified(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }),
			outcome.UpstreamTLSRejected, []string{"check tls.curves"}, ""},
		{"older", server(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}), verified(nil),
			outcome.UpstreamTLSRejected, []string{"TLS 1.2 to TLS 1.3", "tls.min_version"}, "DHE"},
		{"a certificate is missing", server(&tls.Config{MaxVersion: tls.VersionTLS12, ClientAuth: tls.RequireAnyClientCert}), verified(nil),
			outcome.UpstreamTLSRejected, []string{"remote error: tls: "}, "DHE"},
		{"SHA-1", func(conn *net.TCPConn) { signsWithSHA1(conn, cert.Certificate[0]) }, verified(nil),
			outcome.UpstreamTLS, []string{"SHA-1", "GODEBUG=tlssha1=1"}, "DHE"},
		{"SHA-1, and not trusted", func(conn *net.TCPConn) { signsWithSHA1(conn, cert.Certificate[0]) }, verified(func(c *tls.Config) { c.ServerName = "other" }),
			outcome.UpstreamTLS, []string{"x509: "}, "SHA-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := serve(t, Options{}, tlsUpstream(l4test.Backend(t, c.serve), c.client))
			f.wantRefused()
			r := f.record()
			text := r.Cause + "; " + r.Hint
			if r.Reason != c.reason || c.not != "" && strings.Contains(text, c.not) {
				t.Errorf("record %s %q; want %s, without %q", r.Reason, text, c.reason, c.not)
			}
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("record %q; want %q in it", text, want)
				}
			}
		})
	}
}

// An error of TLS after the handshake is no reset: nobody sent one.
func TestTLSThatFailsAfterTheHandshake(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	helloRequest := []byte{22, 3, 3, 0, 4, 0, 0, 0, 0} // in plaintext, where a record is due
	for _, c := range []struct {
		name   string
		send   []byte
		reason outcome.Reason
		cause  string
	}{
		{"plaintext", []byte("ERROR: too many connections\r\n"), outcome.UpstreamTLS, "bytes that are no TLS"},
		{"a record that we cannot read", helloRequest, outcome.UpstreamTLS, "damaged on its way"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := l4test.Backend(t, func(conn *net.TCPConn) {
				s := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
				b := make([]byte, 1)
				if _, err := s.Read(b); err != nil {
					return
				}
				s.Write(b)
				conn.Write(c.send)
				io.Copy(io.Discard, conn)
			})
			f := serve(t, Options{}, tlsUpstream(addr, &tls.Config{ServerName: "localhost", RootCAs: pool}))
			client := f.client(0)
			client.Write([]byte("x"))
			io.Copy(io.Discard, client)
			if r := f.record(); r.Reason != c.reason || r.Stage != outcome.StageRelay || !strings.Contains(r.Hint, c.cause) || r.FirstClose != "" {
				t.Errorf("record: %+v; want %s with %q", r, c.reason, c.cause)
			}
		})
	}
}

// The server hears of the client's end only with its own.
func TestClientsEndIsHeldBack(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	for _, hold := range []bool{true, false} {
		addr := l4test.Backend(t, func(conn *net.TCPConn) {
			s := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12})
			s.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := io.Copy(io.Discard, s); netconn.IsTimeout(err) { // no close_notify
				s.Write([]byte("answer"))
			}
		})
		cfg := tlsUpstream(addr, &tls.Config{ServerName: "localhost", RootCAs: pool})
		cfg.Upstreams[0].HoldHalfClose = hold
		f := serve(t, Options{}, cfg)
		client := f.client(0)
		client.Write([]byte("question"))
		client.CloseWrite()
		got, _ := io.ReadAll(client)
		if want := map[bool]string{true: "answer"}[hold]; string(got) != want {
			t.Errorf("hold %v: the client reads %q, want %q", hold, got, want)
		}
		if r := f.record(); r.Reason != outcome.Closed || strings.Contains(r.Cause, "tls.hold_half_close") == hold {
			t.Errorf("hold %v: record %+v", hold, r)
		}
	}
}

// TLS handshakes with near peers are done by the loop that has accepted the connection:
// a server begins on it, and a client is on it after it has waited for the server. The
// judgement of a chain that its sender has made long is not.
func TestHandshakesStayOnTheLoop(t *testing.T) {
	parks(t)
	short, pool := l4test.SelfSigned(t)
	long := short
	for range 40 {
		long.Certificate = append(slices.Clip(long.Certificate), short.Certificate[0])
	}
	for name, peer := range map[string]tls.Certificate{"short": short, "long": long} {
		var onLoop atomic.Bool // at the judgement, or just after it
		client := &tls.Config{ServerName: "localhost", RootCAs: pool}
		client.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			onLoop.Store(task.IsOnLoop(asked.Context()))
			return &short, nil
		}
		asClient := tlsUpstream(tlsBackend(t, &tls.Config{Certificates: []tls.Certificate{peer}, ClientAuth: tls.RequireAnyClientCert}), client)
		asServer, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
		asServer.Listeners[0].TLS.Terminate = func(hello *tls.ClientHelloInfo) (Termination, error) {
			judge := func(tls.ConnectionState) error { onLoop.Store(task.IsOnLoop(hello.Context())); return nil }
			return Termination{Config: &tls.Config{Certificates: []tls.Certificate{short}, ClientAuth: tls.RequireAnyClientCert, VerifyConnection: judge}}, nil
		}
		session := func(f *fixture, side string) bool {
			c := net.Conn(f.client(0))
			if side == "server" {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{peer}})
			}
			ping(t, c)
			c.Close()
			f.record()
			return onLoop.Load()
		}
		for side, cfg := range map[string]Config{"client": asClient, "server": asServer} {
			t.Run(side+" of a "+name+" chain", func(t *testing.T) {
				f := serve(t, Options{}, cfg)
				// On a busy machine a peer, or the step before, takes too long for a loop.
				for i, start := 0, time.Now(); time.Since(start) < time.Minute; i++ {
					switch on := session(f, side); {
					case on && name == "long":
						t.Fatal("on the loop")
					case on || name == "long" && i == 4:
						return
					}
					time.Sleep(300 * time.Millisecond) // the pause after a slow step
				}
				t.Error("never on the loop")
			})
		}
	}
}

// The context of a handshake does not live as long as the session: it has timers, and what
// the handshake needed.
func TestHandshakesContextIsForgotten(t *testing.T) {
	parks(t)
	cert, pool := l4test.SelfSigned(t)
	watch := func(ctx context.Context, forgotten chan struct{}) {
		parent := reflect.ValueOf(ctx).Elem().FieldByName("Context").Interface() // ours: crypto/tls has derived its own
		runtime.SetFinalizer(parent, func(context.Context) { close(forgotten) })
	}
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			forgotten := make(chan struct{})
			cfg, ours, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
			if terminate := cfg.Listeners[0].TLS.Terminate; side == "server" {
				cfg.Listeners[0].TLS.Terminate = func(hello *tls.ClientHelloInfo) (Termination, error) {
					watch(hello.Context(), forgotten)
					return terminate(hello)
				}
			} else {
				client := &tls.Config{ServerName: "localhost", RootCAs: pool}
				client.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
					watch(asked.Context(), forgotten)
					return &cert, nil
				}
				cfg = tlsUpstream(tlsBackend(t, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert}), client)
			}
			f := serve(t, Options{}, cfg)
			c := net.Conn(f.client(0))
			if side == "server" {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{ours}})
			}
			ping(t, c)
			for end := time.After(l4test.Bound); ; {
				runtime.GC()
				select {
				case <-forgotten:
					ping(t, c)
					return
				case <-end:
					t.Fatal("the session keeps the context of its handshake")
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
	}
}
