package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func principals(t *testing.T, all ...string) (out Principals) {
	t.Helper()
	for _, s := range all {
		p, err := ParsePrincipal(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// The specification of whom we accept.
func TestVerify(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	now := time.Now()
	db, _ := ca.issue(t, "dns:db.internal ip:10.0.0.7")
	spiffe, _ := ca.issue(t, "spiffe://corp/orders")
	foreign, _ := other.issue(t, "dns:db.internal")
	clientOnly, _ := ca.issue(t, "dns:db.internal", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	for _, tt := range []struct {
		name string
		v    verifier
		leaf *x509.Certificate
		at   time.Time
		want string // part of the error; empty: accepted
	}{
		{"by name", verifier{name: "db.internal"}, db, now, ""},
		{"by address", verifier{name: "10.0.0.7"}, db, now, ""},
		{"another name", verifier{name: "db2.internal"}, db, now, "dns:db.internal, ip:10.0.0.7, not for db2.internal; set server_name"},
		{"another CA", verifier{name: "db.internal"}, foreign, now, "set ca to the CA"},
		{"expired", verifier{name: "db.internal"}, db, now.Add(2 * time.Hour), "expired at"},
		{"not yet", verifier{name: "db.internal"}, db, now.Add(-2 * time.Hour), "valid only from"},
		{"not for servers", verifier{name: "db.internal"}, clientOnly, now, "incompatible key usage"},
		{"principal", verifier{name: "x", principals: principals(t, "spiffe://corp/*")}, spiffe, now, ""},
		{"wrong principal", verifier{name: "db.internal", principals: principals(t, "dns:other")}, db, now, "principals wants dns:other"},
		{"any, with a chain", verifier{name: "x", principals: principals(t, "any")}, db, now, ""},
		{"any, without a chain", verifier{name: "x", principals: principals(t, "any")}, foreign, now, "set ca"},
		{"pin instead of a chain", verifier{name: "x", principals: principals(t, pinOf(foreign))}, foreign, now, ""},
		{"wrong pin", verifier{name: "db.internal", principals: principals(t, pinOf(foreign))}, db, now, "pinned"},
		{"pin or name: the name", verifier{principals: principals(t, pinOf(foreign), "dns:db.internal")}, db, now, ""},
		{"principal of another CA", verifier{principals: principals(t, "dns:db.internal")}, foreign, now, "set ca"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.v.roots = ca.pool()
			err := tt.v.verify([]*x509.Certificate{tt.leaf}, tt.at)
			var verification *tls.CertificateVerificationError
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v; want one with %q", err, tt.want)
			case tt.want != "" && !errors.As(err, &verification):
				t.Errorf("%T is no CertificateVerificationError", err)
			}
		})
	}
	if err := (&verifier{}).verify(nil, now); err == nil {
		t.Error("a server without a certificate is accepted")
	}
}

// tlsServer is a TLS 1.3 server that asks for a certificate, echoes, and notes
// which it saw.
type tlsServer struct {
	addr string
	seen chan string // "SERIAL resumed"
}

func newTLSServer(t *testing.T, ca *authority, sans string) *tlsServer {
	t.Helper()
	leaf, key := ca.issue(t, sans)
	cfg := &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool(),
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	s := &tlsServer{addr: ln.Addr().String(), seen: make(chan string, 99)}
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.serve(tls.Server(c, cfg)) // ends with its client
		}
	}()
	return s
}

func (s *tlsServer) serve(c *tls.Conn) {
	defer c.Close()
	if c.Handshake() == nil {
		st := c.ConnectionState()
		s.seen <- fmt.Sprintf("%x %v", st.PeerCertificates[0].SerialNumber, st.DidResume)
		io.Copy(c, c)
	}
}

// connect makes one connection, exchanges a byte (which brings the tickets), and
// gives what the server saw.
func (s *tlsServer) connect(t *testing.T, o *Originator) (string, error) {
	t.Helper()
	cfg, err := o.Config("localhost", s.addr)
	if err != nil {
		return "", err
	}
	c, err := tls.Dial("tcp", s.addr, cfg)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return "", err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return "", err
	}
	return <-s.seen, nil
}

func (a *authority) pair(t *testing.T, sans string) *tls.Certificate {
	leaf, key := a.issue(t, sans)
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

func TestResumptionStaysWithinAGeneration(t *testing.T) {
	ca := newAuthority(t)
	server := newTLSServer(t, ca, "dns:localhost")
	first, second := ca.pair(t, "dns:one"), ca.pair(t, "dns:two")
	source := NewSource("me")
	source.Publish(first, ca.pool())
	o := NewOriginator(ClientPolicy{Source: source})
	for i, want := range []string{
		fmt.Sprintf("%x false", first.Leaf.SerialNumber),
		fmt.Sprintf("%x true", first.Leaf.SerialNumber),
		fmt.Sprintf("%x false", second.Leaf.SerialNumber),
		fmt.Sprintf("%x true", second.Leaf.SerialNumber),
	} {
		if i == 2 {
			source.Publish(second, ca.pool())
		}
		if got, err := server.connect(t, o); got != want || err != nil {
			t.Errorf("connection %d: the server sees %q, %v; want %q", i, got, err, want)
		}
	}
}

// A resumed session is judged by the roots and rules of now: other roots are a
// new generation, and another policy is another originator.
func TestResumptionIsJudgedAgain(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	server := newTLSServer(t, ca, "dns:localhost")
	source := NewSource("me")
	cert := ca.pair(t, "dns:one")
	source.Publish(cert, ca.pool())
	o := NewOriginator(ClientPolicy{Source: source})
	for range 2 {
		if _, err := server.connect(t, o); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := server.connect(t, NewOriginator(ClientPolicy{Source: source, Principals: principals(t, "dns:other")})); err == nil {
		t.Error("another policy accepts the server")
	}
	source.Publish(cert, other.pool())
	if _, err := server.connect(t, o); err == nil {
		t.Error("accepted after its root was withdrawn")
	}
	cfg, err := o.Config("localhost", server.addr)
	if err != nil {
		t.Fatal(err)
	}
	// What crypto/tls calls for a resumed session is what judges.
	if err := cfg.VerifyConnection(tls.ConnectionState{DidResume: true, PeerCertificates: []*x509.Certificate{cert.Leaf}}); err == nil {
		t.Error("a resumed session is not judged")
	}
}

func TestConfigIsKeptPerAddressAndBounded(t *testing.T) {
	o := NewOriginator(ClientPolicy{SkipVerify: true})
	config := func(host, address string) *tls.Config {
		c, err := o.Config(host, address)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := config("a", "1")
	if config("a", "1") != a || config("a", "2") == a || config("b", "1") == a || config("a", "2").ClientSessionCache == a.ClientSessionCache {
		t.Error("configurations are not one per host and address")
	}
	for i := range 2 * maxConfigs {
		config("a", "1")
		config("x", fmt.Sprint(i))
	}
	if len(o.configs) != maxConfigs || o.recent.Len() != maxConfigs {
		t.Errorf("%d configurations are kept, want %d", len(o.configs), maxConfigs)
	}
	if config("a", "1") != a {
		t.Error("the one in use was dropped")
	}
}

func TestSourceOffersOnlyWhatIsValid(t *testing.T) {
	ca := newAuthority(t)
	s := NewSource("me")
	o := NewOriginator(ClientPolicy{Source: s})
	refused := func(want string) {
		t.Helper()
		for _, err := range []error{s.Ready(), func() error { _, err := o.Config("h", "a"); return err }()} {
			if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "identity me") || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v; want not ready, with %q", err, want)
			}
		}
	}
	refused("no certificate yet")
	s.Fail(errors.New("client.crt: no such file"))
	refused("client.crt: no such file")
	expired := ca.pair(t, "dns:me")
	expired.Leaf.NotAfter = time.Now().Add(-time.Minute)
	s.Publish(expired, nil)
	refused("expired at")
	early := ca.pair(t, "dns:me")
	early.Leaf.NotBefore = time.Now().Add(time.Minute)
	s.Publish(early, nil)
	refused("valid only from")
	good := ca.pair(t, "dns:me")
	s.Publish(good, nil)
	snap, err := s.Current()
	if err != nil || snap.Certificate != good || snap.Generation != 3 {
		t.Errorf("%+v, %v", snap, err)
	}
	st := s.Status()
	if !st.Ready || st.Loads != 3 || st.Failures != 1 || st.LastError != "" || st.Names[0] != "dns:me" || !st.NotAfter.Equal(good.Leaf.NotAfter) {
		t.Errorf("status %+v", st)
	}
	changed := s.Changed()
	s.Fail(errors.New("bad pair"))
	select {
	case <-changed:
	default:
		t.Error("Changed is not closed by Fail")
	}
	if s.Ready() != nil || s.Status().LastError != "bad pair" {
		t.Error("a failure takes the current generation away")
	}
}
