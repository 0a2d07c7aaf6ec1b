package tlscause

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// alert is an alert as crypto/tls has it.
type alert uint8

func (a alert) Error() string { return fmt.Sprintf("tls: alert %d", uint8(a)) }

func remote(a alert) error { return &net.OpError{Op: "remote error", Err: a} }

// maker makes certificates of one CA.
type maker struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newMaker(t testing.TB, name string) *maker {
	t.Helper()
	m := &maker{}
	pair := m.issue(t, name, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.DNSNames = true, true, x509.KeyUsageCertSign, nil
	})
	m.cert, m.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	return m
}

// issue makes a certificate; without a CA yet, a self-signed one.
func (m *maker) issue(t testing.TB, cn string, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: cn}, DNSNames: []string{cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	for _, f := range change {
		f(c)
	}
	parent, signer := m.cert, m.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (m *maker) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(m.cert)
	return p
}

// wants checks an explained error: what happened, the fix as its end, and the cause
// behind it.
func wants(t *testing.T, got, cause error, what, fix string) {
	t.Helper()
	var e *Error
	if what == "" {
		if errors.As(got, &e) {
			t.Errorf("explained as %v, want no explanation", got)
		}
		return
	}
	if !errors.As(got, &e) || !strings.Contains(e.What, what) || !strings.Contains(e.Fix(), fix) {
		t.Fatalf("error %v\nwant %q and the fix %q", got, what, fix)
	}
	if !strings.HasSuffix(got.Error(), "; "+e.Fix()) {
		t.Errorf("the fix is not the end of %q", got)
	}
	if cause != nil && !errors.Is(got, cause) {
		t.Errorf("%v does not wrap %v", got, cause)
	}
}

// The specification: what a server's ending says, by what went before it.
func TestExplainUpstream(t *testing.T) {
	ca := newMaker(t, "the CA")
	pair := ca.issue(t, "app")
	none := &tls.Config{ServerName: "db.internal", MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13}
	with := none.Clone()
	with.Certificates = []tls.Certificate{pair}
	address, h2, strict, legacy := none.Clone(), none.Clone(), none.Clone(), none.Clone()
	address.ServerName = "10.0.0.7"
	h2.NextProtos = []string{"h2", "x"}
	strict.MinVersion = tls.VersionTLS13
	legacy.MinVersion = tls.VersionTLS10
	asked, named, among := &Request{}, &Request{CAs: "CN=Other"}, &Request{CAs: "CN=the CA", Among: true}
	eku := Fault(func(*tls.Certificate) (string, string) { return "it lacks clientAuth", "issue it with clientAuth" })
	const rejected = "the server rejected our certificate (CN=app, issued by CN=the CA): "
	plain := errors.New("tls: failed to parse certificate from server: x509: negative serial number")
	for _, tt := range []struct {
		name  string
		seen  Seen
		err   error
		fault Fault
		what  string // empty: not explained
		fix   string
	}{
		{"protocol version", Seen{Config: none}, remote(70), nil, "none of the versions that we offer: TLS 1.2 to TLS 1.3", "tls.unsafe_min_version: true"},
		{"protocol version, by its ServerHello", Seen{Config: none, Version: tls.VersionTLS10, Sent: 70}, errors.New("tls: x"), nil, "the server speaks TLS 1.0, and we accept TLS 1.2 to TLS 1.3", "tls.unsafe_min_version: true"},
		{"TLS 1.2 where 1.3 is required", Seen{Config: strict, Version: tls.VersionTLS12, Sent: 70}, errors.New("tls: x"), nil, "the server speaks TLS 1.2, and we accept TLS 1.3", `set tls.min_version to "1.2"`},
		{"SSL 3.0", Seen{Config: legacy, Version: 0x300, Sent: 70}, errors.New("tls: x"), nil, "the server speaks SSLv3", "SSL is not supported"},
		{"no cipher in common", Seen{Config: none}, remote(40), nil, "no cipher suite, curve or signature algorithm in common", "enable ECDHE"},
		{"no cipher that is secure enough", Seen{Config: none}, remote(71), nil, "no cipher suite", "enable ECDHE"},
		{"unrecognised name", Seen{Config: none}, remote(112), nil, "does not know the name that we asked for (we ask for db.internal", "set tls.server_name (--server-name)"},
		{"no name", Seen{Config: address}, remote(112), nil, "we send none: it is an address", "set tls.server_name (--server-name)"},
		{"no ALPN of ours", Seen{Config: h2}, remote(120), nil, "none of the protocols that we offer in ALPN: h2, x", "set tls.alpn"},
		{"ALPN is demanded", Seen{Config: none}, remote(120), nil, "demands ALPN, and we offer no protocol", "set tls.alpn"},
		{"internal error", Seen{Config: none}, remote(80), nil, "an error of its own", "its log"},
		{"our hello is not understood", Seen{Config: none}, remote(47), nil, "does not understand", "update its TLS library"},

		{"certificate required", Seen{Config: none, Request: asked}, remote(116), nil, "requires a client certificate, and we sent none: no certificate is configured", "set tls.identity (--cert, --key) to a certificate of a CA that the server trusts"},
		{"certificate required of a CA", Seen{Config: none, Request: named}, remote(116), nil, "no certificate is configured", "it names CN=Other"},
		{"TLS 1.2: handshake_failure without a certificate", Seen{Config: none, Request: asked, Version: tls.VersionTLS12}, remote(40), nil, "no certificate is configured", "set tls.identity"},
		{"bad_certificate without a certificate", Seen{Config: none, Request: asked}, remote(42), nil, "no certificate is configured", "set tls.identity"},
		{"closes without a certificate", Seen{Config: none, Request: asked}, nil, nil, "asked for a client certificate, got none, and closed", "set tls.identity"},
		{"closes in the handshake without a certificate", Seen{Config: none, Request: asked, Version: tls.VersionTLS12}, io.EOF, nil, "asked for a client certificate, got none, and closed", "set tls.identity"},
		{"resets without a certificate", Seen{Config: none, Request: asked}, syscall.ECONNRESET, nil, "asked for a client certificate, got none, and closed", "set tls.identity"},

		{"unknown CA", Seen{Config: with, Request: asked}, remote(48), nil, rejected + "it does not trust that CA", "tls.ca (--ca) is only for its certificate"},
		{"unknown CA, and it names others", Seen{Config: with, Request: named}, remote(48), nil, "it does not trust that CA, and accepts only certificates of CN=Other", "use a certificate of a CA that the server trusts"},
		{"a CA of the same name with another key", Seen{Config: with, Request: among}, remote(48), nil, rejected + "it does not trust that CA, though it knows one of that name", "which may have a new key"},
		{"a CA of the same name, by the signature", Seen{Config: with, Request: among}, remote(51), nil, "a signature is not that of the key", "another key"},
		{"an unknown CA has no other fault", Seen{Config: with, Request: asked}, remote(48), eku, "it does not trust that CA", "use a certificate"},
		{"EKU", Seen{Config: with, Request: asked}, remote(43), eku, rejected + "it lacks clientAuth", "issue it with clientAuth"},
		{"EKU, by Go", Seen{Config: with, Request: asked}, remote(42), eku, rejected + "it lacks clientAuth", "issue it with clientAuth"},
		{"EKU, by Java", Seen{Config: with, Request: asked}, remote(46), eku, rejected + "it lacks clientAuth", "issue it with clientAuth"},
		{"unsupported", Seen{Config: with, Request: asked}, remote(43), nil, "not for the use that the server wants", "extendedKeyUsage=clientAuth"},
		{"revoked", Seen{Config: with, Request: asked}, remote(44), eku, "it was revoked", "get a new certificate"},
		{"expired", Seen{Config: with, Request: asked}, remote(45), nil, "for expired", "compare the clocks"},
		{"access denied", Seen{Config: with, Request: asked}, remote(49), eku, "valid, and not allowed", "allow the names"},
		{"no reason", Seen{Config: with, Request: named}, remote(46), nil, "it gave no reason, and accepts only certificates of CN=Other", "check that the server trusts CN=the CA"},
		{"no reason at all", Seen{Config: with, Request: asked, Version: tls.VersionTLS12}, remote(40), nil, rejected + "it gave no reason", "the server's log"},
		{"a resumed session", Seen{Config: with}, remote(42), nil, rejected, "the server's log"},
		{"kind of key", Seen{Config: with, Request: &Request{Unfit: "x"}, Version: tls.VersionTLS12}, errors.New("tls: x"), nil, "does not accept the kind of key that our certificate has (CN=app", "ECDSA P-256"},

		{"negative serial", Seen{Config: none, Version: tls.VersionTLS12}, plain, nil, "the server sent what our TLS (Go's crypto/tls) does not accept", "let the CA issue it anew"},
		{"a bad record", Seen{Config: none, Version: tls.VersionTLS12}, &net.OpError{Op: "local error", Err: alert(20)}, nil, "does not accept", "fix on the server"},
		{"closes after its ServerHello", Seen{Config: none, Version: tls.VersionTLS12}, io.EOF, nil, "began TLS, and then closed", "its log"},
		{"gives up after its ServerHello", Seen{Config: none, Version: tls.VersionTLS12}, remote(40), nil, "gave up after it had chosen version and cipher suite", "its log"},
		{"gives up after the handshake", Seen{Config: none, Done: true}, remote(40), nil, "gave up after it had chosen", "its log"},

		{"closes at once", Seen{Config: with}, io.EOF, nil, "", ""},
		{"closes after the handshake", Seen{Config: with, Request: asked}, nil, nil, "", ""},
		{"no TLS", Seen{Config: none}, tls.RecordHeaderError{}, nil, "", ""},
		{"our refusal", Seen{Config: none, Version: tls.VersionTLS12}, &tls.CertificateVerificationError{Err: plain}, nil, "", ""},
		{"timeout", Seen{Config: none, Version: tls.VersionTLS12}, os.ErrDeadlineExceeded, nil, "", ""},
		{"a socket's error", Seen{Config: none, Version: tls.VersionTLS12}, &net.OpError{Op: "read", Err: syscall.EHOSTUNREACH}, nil, "", ""},
		{"an alert without a cause of its own", Seen{Config: none}, remote(10), nil, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) { wants(t, tt.seen.Explain(tt.err, tt.fault), tt.err, tt.what, tt.fix) })
	}
}

// A certificate that exists and cannot be used now is not "none configured".
func TestIdentityThatIsNotReady(t *testing.T) {
	cfg := &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return nil, errors.New("expired") }}
	wants(t, Seen{Config: cfg, Request: &Request{}}.Explain(remote(116), nil), nil, "ours cannot be used now", "ambassador status")
}

// The specification: what a client's ending says, by its ClientHello.
func TestExplainDownstream(t *testing.T) {
	ca := newMaker(t, "the CA")
	cfg := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "front.test")}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}
	mutual := cfg.Clone()
	mutual.ClientAuth = tls.RequireAnyClientCert
	hello := &tls.ClientHelloInfo{ServerName: "front.test", SupportedVersions: []uint16{tls.VersionTLS12}}
	other := &tls.ClientHelloInfo{ServerName: "other.test", SupportedVersions: []uint16{tls.VersionTLS12}}
	old := &tls.ClientHelloInfo{SupportedVersions: []uint16{tls.VersionTLS11, tls.VersionTLS10}}
	http := &tls.ClientHelloInfo{SupportedVersions: []uint16{tls.VersionTLS13}, SupportedProtos: []string{"http/1.1"}}
	eku := Fault(func(*tls.Certificate) (string, string) { return "it lacks serverAuth", "issue it with serverAuth" })
	const rejected = "the client rejected our certificate (CN=front.test, issued by CN=the CA): "
	plain := errors.New("tls: x")
	for _, tt := range []struct {
		name  string
		seen  Downstream
		err   error
		fault Fault
		what  string
		fix   string
	}{
		{"unknown CA", Downstream{Hello: hello, Config: cfg, Answered: true}, remote(48), eku, rejected + "it does not trust that CA", "let the client trust CN=the CA; tls.ca of the listener is only for"},
		{"another name", Downstream{Hello: other, Config: cfg, Answered: true}, remote(42), nil, rejected + "it is not for the name that the client asked for", "the client asked for other.test, and the certificate is for front.test"},
		{"EKU", Downstream{Hello: hello, Config: cfg, Answered: true}, remote(43), eku, rejected + "it lacks serverAuth", "issue it with serverAuth"},
		{"expired", Downstream{Hello: hello, Config: cfg, Answered: true}, remote(45), nil, "for expired", "compare the clocks"},
		{"revoked", Downstream{Hello: hello, Config: cfg, Answered: true}, remote(44), nil, "it was revoked", "get a new certificate"},
		{"same name, another key", Downstream{Hello: hello, Config: cfg, Answered: true}, remote(51), nil, "a signature is not that of the key", "another key"},
		{"no reason", Downstream{Hello: hello, Config: cfg, Answered: true}, remote(46), nil, rejected + "it gave no reason", "connects by one of the names of the certificate (front.test)"},
		{"protocol version", Downstream{Hello: hello, Config: cfg, Answered: true}, remote(70), nil, "does not accept the versions of the listener: TLS 1.2 to TLS 1.3", "tls.min_version of the listener"},
		{"no cipher of ours", Downstream{Hello: hello, Config: cfg, Answered: true}, remote(40), nil, "does not accept the cipher suite", "another kind of key"},
		{"closes", Downstream{Hello: hello, Config: cfg, Answered: true}, io.EOF, nil, "closed the connection without an alert after it had seen our certificate (CN=front.test", "check that the client trusts CN=the CA"},
		{"closes, and asked for another name", Downstream{Hello: other, Config: cfg, Answered: true}, io.EOF, nil, "without an alert", "it asked for other.test"},
		{"no certificate", Downstream{Hello: hello, Config: mutual, Answered: true}, plain, nil, "sent no certificate that we can read, and the listener requires one", "a CA in tls.ca of the listener"},
		{"old client", Downstream{Hello: old, Config: cfg}, plain, nil, "offers TLS 1.1 at most, and the listener requires TLS 1.2", "TLS 1.2 or newer"},
		{"no ALPN in common", Downstream{Hello: http, Config: cfg}, plain, nil, "does not have: http/1.1", "tls.alpn of the listener"},
		{"no cipher in common", Downstream{Hello: hello, Config: cfg}, plain, nil, "no cipher suite, curve or signature algorithm for our certificate (CN=front.test", "ECDSA keys"},

		{"SSLRequest", Downstream{}, tls.RecordHeaderError{RecordHeader: [5]byte{0, 0, 0, 8, 4}}, nil, "does not begin with TLS", "starttls: postgres of the listener"},
		{"PROXY header", Downstream{}, tls.RecordHeaderError{RecordHeader: [5]byte([]byte("\r\n\r\n\x00"))}, nil, "does not begin with TLS", "proxy_protocol of the listener"},
		{"SOCKS5", Downstream{}, tls.RecordHeaderError{RecordHeader: [5]byte{5, 1, 0}}, nil, "does not begin with TLS", "SOCKS5 within TLS"},
		{"HTTP", Downstream{}, tls.RecordHeaderError{RecordHeader: [5]byte([]byte("GET /"))}, nil, `but with "GET /"`, "use https"},
		{"anything else", Downstream{}, tls.RecordHeaderError{RecordHeader: [5]byte([]byte("hello"))}, nil, `but with "hello"`, "begin with TLS"},

		{"a certificate that is refused", Downstream{Hello: hello, Config: mutual, Answered: true, Certified: true}, plain, nil, "", ""},
		{"our refusal", Downstream{Hello: hello, Config: mutual, Answered: true, Certified: true}, &tls.CertificateVerificationError{Err: plain}, nil, "", ""},
		{"before the hello", Downstream{}, io.EOF, nil, "", ""},
		{"closes before our answer", Downstream{Hello: hello, Config: cfg}, io.EOF, nil, "", ""},
		{"timeout", Downstream{Hello: hello, Config: cfg, Answered: true}, os.ErrDeadlineExceeded, nil, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) { wants(t, tt.seen.Explain(tt.err, tt.fault), tt.err, tt.what, tt.fix) })
	}
}

// handshake begins TLS between both, watched on the client's side, and reads a byte.
func handshake(t *testing.T, client, server *tls.Config) (Seen, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // both may write at once, which blocks a net.Pipe
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ours, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with ours
		defer close(done)
		defer theirs.Close()
		s := tls.Server(theirs, server)
		if s.Handshake() == nil {
			s.Write([]byte("x"))
		}
	}()
	ours.SetDeadline(time.Now().Add(10 * time.Second))
	watch := NewWatch(ours, client)
	conn := tls.Client(watch, Watched(client))
	if err = conn.HandshakeContext(watch.Context(t.Context())); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	ours.Close()
	<-done
	return watch.Seen(), err
}

// What Watch sees of real handshakes suffices to explain them, in both versions of TLS.
func TestWatch(t *testing.T) {
	ca, other := newMaker(t, "the CA"), newMaker(t, "another CA")
	server := ca.issue(t, "db.internal")
	negative := ca.issue(t, "db.internal")
	negative.Certificate = [][]byte{bytes.Replace(negative.Certificate[0], []byte{2, 1, 77}, []byte{2, 1, 0x85}, 1)}
	client := func(certs ...tls.Certificate) *tls.Config {
		return &tls.Config{ServerName: "db.internal", RootCAs: ca.pool(), Certificates: certs}
	}
	demands := func(version uint16) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{server}, MaxVersion: version, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool()}
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, tt := range []struct {
			name           string
			client, server *tls.Config
			what, fix      string
		}{
			{"accepted", client(ca.issue(t, "app")), demands(version), "", ""},
			{"no certificate", client(), demands(version), "no certificate is configured", "it names CN=the CA"},
			{"another CA", &tls.Config{ServerName: "db.internal", RootCAs: ca.pool(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				cert := other.issue(t, "app")
				return &cert, nil
			}}, demands(version), "accepts only certificates of CN=the CA", "use a certificate of a CA that the server trusts"},
			{"negative serial", client(), &tls.Config{Certificates: []tls.Certificate{negative}, MaxVersion: version}, "does not accept", "let the CA issue it anew"},
			{"no ALPN", &tls.Config{ServerName: "db.internal", RootCAs: ca.pool(), NextProtos: []string{"h2"}},
				&tls.Config{Certificates: []tls.Certificate{server}, MaxVersion: version, NextProtos: []string{"x"}}, "offer in ALPN: h2", "set tls.alpn"},
		} {
			t.Run(tls.VersionName(version)+"/"+tt.name, func(t *testing.T) {
				seen, err := handshake(t, tt.client, tt.server)
				if tt.what == "" && err != nil {
					t.Fatal(err)
				}
				wants(t, seen.Explain(err, nil), err, tt.what, tt.fix)
			})
		}
	}
	t.Run("old server", func(t *testing.T) {
		seen, err := handshake(t, client(), &tls.Config{Certificates: []tls.Certificate{server}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10})
		wants(t, seen.Explain(err, nil), err, "none of the versions that we offer", "tls.unsafe_min_version")
	})
	t.Run("no cipher", func(t *testing.T) {
		cfg := client()
		cfg.MaxVersion, cfg.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256} // the server's key is ECDSA
		seen, err := handshake(t, cfg, &tls.Config{Certificates: []tls.Certificate{server}})
		wants(t, seen.Explain(err, nil), err, "no cipher suite", "enable ECDHE")
	})
}

// A server older than the version extension answers with its own version, and it is we
// who end the handshake.
func TestWatchOfAnOldServerHello(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() { // ends with ours
		defer theirs.Close()
		theirs.Read(make([]byte, 4096))
		hello := append([]byte{2, 0, 0, 38, 3, 1}, make([]byte, 32)...)       // ServerHello, TLS 1.0, random
		hello = append(hello, 0, 0, 0x2f, 0)                                  // no session, AES128-SHA, no compression
		theirs.Write(append([]byte{22, 3, 1, 0, byte(len(hello))}, hello...)) // one record
		io.Copy(io.Discard, theirs)
	}()
	cfg := &tls.Config{ServerName: "db.internal"}
	watch := NewWatch(ours, cfg)
	err := tls.Client(watch, Watched(cfg)).HandshakeContext(watch.Context(t.Context()))
	wants(t, watch.Seen().Explain(err, nil), err, "the server speaks TLS 1.0, and we accept TLS 1.2 to TLS 1.3", "tls.unsafe_min_version")
}

// What a server says of its CAs is bounded, and shown without control characters.
func TestRequestIsBounded(t *testing.T) {
	raw := newMaker(t, strings.Repeat("é", 500)+"\n").cert.RawSubject
	asked := &tls.CertificateRequestInfo{AcceptableCAs: [][]byte{raw, []byte("no name"), raw, raw, raw, raw}}
	r := newRequest(asked, new(tls.Certificate))
	if len(r.CAs) > 1024 || !strings.HasSuffix(r.CAs, " and 2 more") || !strings.Contains(r.CAs, "cannot be read") || strings.Contains(r.CAs, "\n") {
		t.Errorf("%d bytes: %q", len(r.CAs), r.CAs)
	}
	if r.Among {
		t.Error("no certificate is of one of those CAs")
	}
}

func FuzzHelloVersion(f *testing.F) {
	f.Add([]byte{22, 3, 1, 0, 42, 2, 0, 0, 38, 3, 1})
	f.Add([]byte{21, 3, 1, 0, 2, 2, 40})
	f.Add([]byte("HTTP/1.1 400"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v := helloVersion(b); v != 0 && len(b) < headSize {
			t.Errorf("version %x of %d bytes", v, len(b))
		}
		distinguished(b)
		listed([]string{string(b), string(b)})
	})
}
