package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// tlsServer requires a certificate of its CA, issues tickets, echoes, and records its
// clients.
type tlsServer struct {
	addr string
	seen chan string // "SERIAL resumed"
}

func newTLSServer(t *testing.T, ca *authority, version uint16) *tlsServer {
	t.Helper()
	cfg := &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool(), MinVersion: version, MaxVersion: version,
		Certificates: []tls.Certificate{*ca.pair(t, "dns:localhost dns:alias")}}
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

// connect makes one connection, exchanges a byte (after which the tickets have
// arrived), and returns the server's record.
func (s *tlsServer) connect(t *testing.T, o *Originator, host string) (string, error) {
	t.Helper()
	cfg, err := o.Config(host, s.addr)
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

func (a *authority) pair(t *testing.T, sans string, change ...func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	leaf, key := a.issue(t, sans, change...)
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// versions runs a test with each version of TLS: they resume differently.
func versions(t *testing.T, test func(t *testing.T, version uint16)) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(v), func(t *testing.T) { test(t, v) })
	}
}

func TestResumptionStaysWithinAGeneration(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		ca := newAuthority(t)
		server := newTLSServer(t, ca, version)
		first, second := ca.pair(t, "dns:one"), ca.pair(t, "dns:two")
		source := NewSource("me")
		source.Publish(first, NewRoots(ca.pool()))
		o := NewOriginator(ClientPolicy{Source: source})
		for i, want := range []string{
			fmt.Sprintf("%x false", first.Leaf.SerialNumber),
			fmt.Sprintf("%x true", first.Leaf.SerialNumber),
			fmt.Sprintf("%x true", first.Leaf.SerialNumber),
			fmt.Sprintf("%x false", second.Leaf.SerialNumber),
			fmt.Sprintf("%x true", second.Leaf.SerialNumber),
		} {
			if i == 3 {
				source.Publish(second, NewRoots(ca.pool()))
			}
			if got, err := server.connect(t, o, "localhost"); got != want || err != nil {
				t.Errorf("connection %d: the server sees %q, %v; want %q", i, got, err, want)
			}
		}
	})
}

// TestResumptionIsJudgedAgain uses the session of a policy that accepts the server
// with one that does not, which only a bug could: the server is verified again. See
// dependencies.md, traps, 2.
func TestResumptionIsJudgedAgain(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		ca, other := newAuthority(t), newAuthority(t)
		server := newTLSServer(t, ca, version)
		source := NewSource("me")
		source.Publish(ca.pair(t, "dns:me"), nil)
		lenient := NewOriginator(ClientPolicy{Source: source, Roots: roots(ca.pool()), ServerName: "localhost"})
		for _, tt := range []struct {
			policy ClientPolicy
			want   string
		}{
			{ClientPolicy{Source: source, Roots: roots(ca.pool()), ServerName: "localhost", Principals: principals(t, "dns:other")}, "principals wants dns:other"},
			{ClientPolicy{Source: source, Roots: roots(other.pool()), ServerName: "localhost"}, "set tls.ca"},
		} {
			strict, err := NewOriginator(tt.policy).Config("localhost", server.addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := server.connect(t, lenient, "localhost"); err != nil { // a refusal drops the session
				t.Fatal(err)
			}
			good, err := lenient.Config("localhost", server.addr)
			if err != nil {
				t.Fatal(err)
			}
			stolen := strict.Clone()
			stolen.ClientSessionCache = good.ClientSessionCache
			resumed := false
			stolen.VerifyConnection = func(cs tls.ConnectionState) error {
				resumed = cs.DidResume
				return strict.VerifyConnection(cs)
			}
			c, err := tls.Dial("tcp", server.addr, stolen)
			if err == nil {
				c.Close()
			}
			if !resumed {
				t.Error("the session was not resumed: the test proves nothing")
			}
			wantRefusal(t, err, tt.want)
		}
	})
}

// Sessions are not shared between policies, hosts or addresses.
func TestSessionsAreNotShared(t *testing.T) {
	ca := newAuthority(t)
	server := newTLSServer(t, ca, tls.VersionTLS13)
	source := NewSource("me")
	source.Publish(ca.pair(t, "dns:me"), NewRoots(ca.pool()))
	policy := ClientPolicy{Source: source}
	o := NewOriginator(policy)
	for _, tt := range []struct {
		o    *Originator
		host string
		want string
	}{
		{o, "localhost", "false"}, {o, "localhost", "true"}, {o, "alias", "false"}, {o, "alias", "true"},
		{NewOriginator(policy), "localhost", "false"}, {o, "localhost", "true"},
	} {
		got, err := server.connect(t, tt.o, tt.host)
		if err != nil || !strings.HasSuffix(got, " "+tt.want) {
			t.Errorf("to %s: %q, %v; want resumed=%s", tt.host, got, err, tt.want)
		}
	}
}

// New roots of the identity make a new generation, like a new certificate.
func TestWithdrawnRootIsRefusedAtOnce(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	server := newTLSServer(t, ca, tls.VersionTLS13)
	source := NewSource("me")
	me := ca.pair(t, "dns:me")
	source.Publish(me, NewRoots(ca.pool()))
	o := NewOriginator(ClientPolicy{Source: source})
	for range 2 {
		if _, err := server.connect(t, o, "localhost"); err != nil {
			t.Fatal(err)
		}
	}
	source.Publish(me, NewRoots(other.pool()))
	_, err := server.connect(t, o, "localhost")
	wantRefusal(t, err, "(the identity's)")
}

// roots returns a source that has only roots.
func roots(pool *x509.CertPool) *Source {
	s := NewSource("roots")
	s.Publish(nil, NewRoots(pool))
	return s
}

// New roots of tls.ca count for the next connection, resumed ones included.
func TestRootsAreFollowed(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	server := newTLSServer(t, ca, tls.VersionTLS13)
	me, trusted := NewSource("me"), roots(ca.pool())
	me.Publish(ca.pair(t, "dns:me"), nil)
	o := NewOriginator(ClientPolicy{Source: me, Roots: trusted})
	for range 2 {
		if _, err := server.connect(t, o, "localhost"); err != nil {
			t.Fatal(err)
		}
	}
	trusted.Publish(nil, NewRoots(other.pool()))
	_, err := server.connect(t, o, "localhost")
	wantRefusal(t, err, "(those of tls.ca)")
	trusted.Publish(nil, NewRoots(ca.pool()))
	if _, err := server.connect(t, o, "localhost"); err != nil {
		t.Error(err)
	}
	if _, err := NewOriginator(ClientPolicy{Roots: NewSource("none yet")}).Config("h", "a"); !errors.Is(err, ErrNotReady) {
		t.Errorf("without roots yet: %v, want ErrNotReady", err)
	}
}

func TestRootsInOrderOfPrecedence(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	leaf, _ := ca.issue(t, "dns:h")
	for _, tt := range []struct {
		name   string
		policy ClientPolicy
		own    *x509.CertPool // of the identity
		want   string
	}{
		{"tls.ca", ClientPolicy{Roots: roots(ca.pool())}, other.pool(), ""},
		{"the identity's", ClientPolicy{}, ca.pool(), ""},
		{"tls.ca alone", ClientPolicy{Roots: roots(other.pool())}, ca.pool(), "(those of tls.ca)"},
		{"the system's by default", ClientPolicy{}, nil, "(the system's)"},
		{"the system's on demand", ClientPolicy{SystemRoots: true}, ca.pool(), "(the system's)"},
		{"none", ClientPolicy{SkipVerify: true}, other.pool(), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.policy.Source = NewSource("me")
			tt.policy.Source.Publish(nil, NewRoots(tt.own))
			cfg, err := NewOriginator(tt.policy).Config("h", "a")
			if err != nil {
				t.Fatal(err)
			}
			if tt.policy.SkipVerify {
				if cfg.VerifyConnection != nil {
					t.Error("something is verified")
				}
				return
			}
			err = cfg.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if strings.Contains(err.Error(), "system has no roots") {
				t.Skip("this system has no roots")
			}
			wantRefusal(t, err, tt.want)
		})
	}
}

func TestConfigOfPolicy(t *testing.T) {
	cfg, err := NewOriginator(ClientPolicy{}).Config("db.internal", "10.0.0.7:5432")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.ServerName != "db.internal" || cfg.MinVersion != tls.VersionTLS12 || cfg.MaxVersion != tls.VersionTLS13 || cfg.GetClientCertificate != nil || cfg.VerifyConnection == nil {
		t.Errorf("the zero policy: %+v", cfg)
	}
	cfg, err = NewOriginator(ClientPolicy{ServerName: "n", MinVersion: tls.VersionTLS13, ALPN: []string{"postgresql"}}).Config("h", "a")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.ServerName != "n" || cfg.MinVersion != tls.VersionTLS13 || len(cfg.NextProtos) != 1 {
		t.Errorf("the policy: %+v", cfg)
	}
}

// The root's dot of a host name is for the resolver only: RFC 6066 has none in SNI.
func TestConfigWithoutTheRootsDot(t *testing.T) {
	cfg, err := NewOriginator(ClientPolicy{}).Config("db.internal.", "10.0.0.7:5432")
	if err != nil || cfg.ServerName != "db.internal" {
		t.Errorf("server name %q, %v", cfg.ServerName, err)
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
	if n := testing.AllocsPerRun(100, func() { config("a", "1") }); n != 0 {
		t.Errorf("%v allocations for a configuration that is there", n)
	}
}

// All sessions are dropped with their generation, also those of addresses that are
// not dialled again.
func TestGenerationDropsAllConfigs(t *testing.T) {
	ca := newAuthority(t)
	source := NewSource("me")
	source.Publish(ca.pair(t, "dns:one"), nil)
	o := NewOriginator(ClientPolicy{Source: source})
	for i := range 10 {
		if _, err := o.Config("h", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	source.Publish(ca.pair(t, "dns:two"), nil)
	if _, err := o.Config("h", "1"); err != nil || len(o.configs) != 1 || o.recent.Len() != 1 {
		t.Errorf("%d configurations after a new generation, %v", len(o.configs), err)
	}
}

// Many sessions at once, while certificates change: each sees one generation.
func TestConfigWhileGenerationsChange(t *testing.T) {
	ca := newAuthority(t)
	pairs := []*tls.Certificate{ca.pair(t, "dns:a"), ca.pair(t, "dns:b")}
	source := NewSource("me")
	source.Publish(pairs[0], NewRoots(ca.pool()))
	o := NewOriginator(ClientPolicy{Source: source})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 200 {
				if i == 0 {
					source.Publish(pairs[n%2], nil)
				}
				cfg, err := o.Config("h", fmt.Sprint(n%3))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := cfg.GetClientCertificate(nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	cfg, _ := o.Config("h", "0")
	if got, _ := cfg.GetClientCertificate(nil); got != pairs[1] {
		t.Error("the last generation is not the one that is offered")
	}
}

// The certificate may expire between Config and the server's request for it.
func TestExpiredCertificateIsNeverOffered(t *testing.T) {
	ca := newAuthority(t)
	me := ca.pair(t, "dns:me")
	if got, err := offer(me, time.Now()); got != me || err != nil {
		t.Errorf("a valid certificate: %v, %v", got, err)
	}
	for _, now := range []time.Time{me.Leaf.NotAfter.Add(time.Second), me.Leaf.NotBefore.Add(-time.Second)} {
		if got, err := offer(me, now); got != nil || !errors.Is(err, ErrNotReady) {
			t.Errorf("at %v: %v, %v; want ErrNotReady", now, got, err)
		}
	}
	server := newTLSServer(t, ca, tls.VersionTLS13)
	expired := ca.pair(t, "dns:me", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	source := NewSource("me")
	source.Publish(expired, NewRoots(ca.pool()))
	if got, err := server.connect(t, NewOriginator(ClientPolicy{Source: source}), "localhost"); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("the server sees %q, %v; want ErrNotReady", got, err)
	}
}

// Our certificate is sent even if the server's list of CAs does not have its issuer:
// people need to see the server's refusal.
func TestCertificateIsOfferedToServersThatNameOtherCAs(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	server := newTLSServer(t, ca, tls.VersionTLS13)
	source := NewSource("me")
	source.Publish(other.pair(t, "dns:me"), NewRoots(ca.pool()))
	_, err := server.connect(t, NewOriginator(ClientPolicy{Source: source}), "localhost")
	if !strings.Contains(fmt.Sprint(err), "remote error: tls: unknown certificate authority") { // not "certificate required"
		t.Errorf("error %v; want the server's alert unknown_ca", err)
	}
}
