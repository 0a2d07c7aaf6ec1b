package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// terminated is a terminator behind a listener, with the server's result for each
// client.
type terminated struct {
	*Terminator
	t    *testing.T
	addr string
	ends chan accepted
}

type accepted struct {
	principal string
	resumed   bool
	err       error
}

// terminate serves a policy as the ambassador does: by GetConfigForClient.
func terminate(t *testing.T, p ServerPolicy) *terminated {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	s := &terminated{NewTerminator(p), t, ln.Addr().String(), make(chan accepted, 9)}
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.serve(c) // ends with its client
		}
	}()
	return s
}

func (s *terminated) serve(raw net.Conn) {
	defer raw.Close()
	var how Termination
	c := tls.Server(raw, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (_ *tls.Config, err error) {
		how, err = s.Terminate(hello)
		return how.Config, err
	}})
	end := accepted{err: c.Handshake()}
	if state := c.ConnectionState(); end.err == nil {
		end.resumed = state.DidResume
		if how.Principal != nil {
			end.principal = how.Principal(state.PeerCertificates[0])
		}
		c.Write([]byte("x")) // behind the tickets
	}
	s.ends <- end
}

// connect makes a connection with cfg, and returns the results of both ends.
func (s *terminated) connect(cfg *tls.Config) (accepted, *x509.Certificate) {
	s.t.Helper()
	var leaf *x509.Certificate
	if c, err := tls.Dial("tcp", s.addr, cfg); err == nil {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		c.Read(make([]byte, 1))
		leaf = c.ConnectionState().PeerCertificates[0]
		c.Close()
	}
	return <-s.ends, leaf
}

// published returns an identity of ca's, with its own roots.
func published(t *testing.T, ca *authority, sans string, roots *Roots) *Source {
	t.Helper()
	s := NewSource("server")
	s.Publish(ca.pair(t, sans), roots)
	return s
}

// client returns the configuration of a client with a certificate of ca's.
func client(t *testing.T, ca *authority, sans string, change ...func(*x509.Certificate)) *tls.Config {
	t.Helper()
	return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*ca.pair(t, sans, change...)}}
}

func expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }

// The specification of accepted clients: each row is a client of a listener that
// accepts corp's batch jobs.
func TestClientsAreJudged(t *testing.T) {
	ca, partner, other := newAuthority(t), newAuthority(t), newAuthority(t)
	withdrawn := client(t, ca, "spiffe://corp/batch/7")
	roots := &Roots{Pool: ca.pool(), Revoked: NewRevocations([]*x509.RevocationList{ca.revoke(t, []*big.Int{withdrawn.Certificates[0].Leaf.SerialNumber}), partner.revoke(t, nil)})}
	roots.Domains = map[string]*x509.CertPool{"corp": roots.Pool, "partner": partner.pool()}
	pinned := client(t, other, "cn:old")
	wanted := principals(t, "spiffe://corp/batch/*", "spiffe://partner/job", "dns:*.batch.internal", pinOf(pinned.Certificates[0].Leaf))
	s := terminate(t, ServerPolicy{Sources: []*Source{published(t, ca, "dns:inbound", roots)}, Clients: true, Principals: wanted})
	for _, tt := range []struct {
		name      string
		client    *tls.Config
		principal string
		want      string // part of the error; empty: accepted
		is        error
	}{
		{"by SPIFFE ID", client(t, ca, "spiffe://corp/batch/9"), "spiffe://corp/batch/9", "", nil},
		{"by name", client(t, ca, "dns:other dns:n1.batch.internal"), "dns:n1.batch.internal", "", nil},
		{"by pin", pinned, pinOf(pinned.Certificates[0].Leaf), "", nil},
		{"of the federated domain", client(t, partner, "spiffe://partner/job"), "spiffe://partner/job", "", nil},
		{"only for clients", client(t, ca, "spiffe://corp/batch/9", usage(x509.ExtKeyUsageClientAuth)), "spiffe://corp/batch/9", "", nil},
		{"another principal", client(t, ca, "spiffe://corp/web"), "", "the client's certificate is for spiffe://corp/web, but principals wants", ErrPrincipal},
		{"ours, of the federated domain's CA", client(t, partner, "spiffe://corp/batch/9"), "", "no root that we trust (the identity's) vouches for the client's certificate", nil},
		{"a name, of the federated domain's CA", client(t, partner, "spiffe://partner/x dns:n1.batch.internal"), "", "but principals wants", ErrPrincipal},
		{"another CA", client(t, other, "spiffe://corp/batch/9"), "", "set tls.ca of the listener", nil},
		{"revoked", withdrawn, "", "was revoked by", ErrRevoked},
		{"expired", client(t, ca, "spiffe://corp/batch/9", expired), "", "the client's certificate (spiffe://corp/batch/9): the certificate expired", nil},
		{"only for servers", client(t, ca, "spiffe://corp/batch/9", usage(x509.ExtKeyUsageServerAuth)), "", "not one for clients", nil},
		{"by a URI with an empty fragment", client(t, ca, "spiffe://corp/batch/9#"), "", "is for uri:spiffe://corp/batch/9#, which is of no trust domain", nil},
		{"without", &tls.Config{InsecureSkipVerify: true}, "", "didn't provide a certificate", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			end, _ := s.connect(tt.client)
			switch {
			case tt.want == "" && (end.err != nil || end.principal != tt.principal):
				t.Errorf("accepted as %q, %v; want %q", end.principal, end.err, tt.principal)
			case tt.want != "" && (end.err == nil || !strings.Contains(end.err.Error(), tt.want)):
				t.Errorf("ended with %v, want %q", end.err, tt.want)
			case tt.is != nil && !errors.Is(end.err, tt.is), tt.is != ErrPrincipal && errors.Is(end.err, ErrPrincipal):
				t.Errorf("%v is not %v alone", end.err, tt.is)
			}
		})
	}
}

func TestNobodyIsAcceptedWithoutRoots(t *testing.T) {
	ca := newAuthority(t)
	policy := ServerPolicy{Sources: []*Source{published(t, ca, "dns:inbound", nil)}, Clients: true, Principals: principals(t, "any")}
	if end, _ := terminate(t, policy).connect(client(t, ca, "dns:me")); end.err == nil || !strings.Contains(end.err.Error(), "none is configured") {
		t.Errorf("ended with %v", end.err)
	}
	policy.Roots = roots(ca.pool())
	if end, _ := terminate(t, policy).connect(client(t, ca, "dns:me")); end.err != nil || end.principal != "dns:me" {
		t.Errorf("accepted as %q, %v", end.principal, end.err)
	}
}

// resuming returns a client that caches sessions, and has one.
func resuming(t *testing.T, s *terminated, cfg *tls.Config, version uint16) *tls.Config {
	t.Helper()
	cfg.ClientSessionCache, cfg.ServerName, cfg.MaxVersion = tls.NewLRUClientSessionCache(1), "inbound", version
	for _, want := range []bool{false, true} {
		if end, _ := s.connect(cfg); end.err != nil || end.resumed != want {
			t.Fatalf("resumed %v, %v; want %v", end.resumed, end.err, want)
		}
	}
	return cfg
}

func TestTicketsEndWithTheirGeneration(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		ca := newAuthority(t)
		source, clients := published(t, ca, "dns:inbound", nil), roots(ca.pool())
		s := terminate(t, ServerPolicy{Sources: []*Source{source}, Clients: true, Roots: clients, Principals: principals(t, "any")})
		me := resuming(t, s, client(t, ca, "dns:me"), version)
		for _, change := range []func(){
			func() { source.Publish(ca.pair(t, "dns:inbound"), nil) },
			func() {
				pool := ca.pool()
				pool.AddCert(newAuthority(t).cert)
				clients.Publish(nil, NewRoots(pool))
			},
		} {
			change()
			for _, want := range []bool{false, true} {
				if end, _ := s.connect(me); end.err != nil || end.resumed != want {
					t.Errorf("resumed %v, %v; want %v", end.resumed, end.err, want)
				}
			}
		}
	})
}

// A resumed session is verified like a new one: here by a listener with the ticket
// keys of another listener that has other principals.
func TestResumedClientsAreJudged(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		ca := newAuthority(t)
		policy := ServerPolicy{Sources: []*Source{published(t, ca, "dns:inbound", NewRoots(ca.pool()))}, Clients: true, Principals: principals(t, "dns:me")}
		first := terminate(t, policy)
		me := resuming(t, first, client(t, ca, "dns:me"), version)
		for _, tt := range []struct {
			principal string
			accepted  bool
		}{{"dns:me", true}, {"dns:other", false}} {
			policy.Principals = principals(t, tt.principal)
			second := terminate(t, policy)
			h := second.hosts[0]
			if _, err := h.termination(&second.policy, time.Now()); err != nil {
				t.Fatal(err)
			}
			h.current.Config.SetSessionTicketKeys(first.hosts[0].keys)
			end, _ := second.connect(me)
			if tt.accepted && (end.err != nil || !end.resumed || end.principal != "dns:me") || !tt.accepted && !errors.Is(end.err, ErrPrincipal) {
				t.Errorf("where %s is wanted: resumed %v as %q, %v", tt.principal, end.resumed, end.principal, end.err)
			}
		}
	})
}

func TestTicketKeysRotate(t *testing.T) {
	ca := newAuthority(t)
	s := terminate(t, ServerPolicy{Sources: []*Source{published(t, ca, "dns:inbound", nil)}})
	kept := resuming(t, s, &tls.Config{InsecureSkipVerify: true}, tls.VersionTLS13)
	h, start := s.hosts[0], time.Now()
	for _, tt := range []struct {
		after   time.Duration
		resumed bool // by a ticket of the beginning
	}{{ticketKeyLife - time.Minute, true}, {ticketKeyLife, true}, {2*ticketKeyLife + time.Second, false}} {
		if _, err := h.termination(&s.policy, start.Add(tt.after)); err != nil {
			t.Fatal(err)
		}
		cfg := kept.Clone()
		cfg.ClientSessionCache = onlyGet{kept.ClientSessionCache}
		if end, _ := s.connect(cfg); end.err != nil || end.resumed != tt.resumed {
			t.Errorf("after %v: resumed %v, %v; want %v", tt.after, end.resumed, end.err, tt.resumed)
		}
	}
}

// onlyGet is a cache that does not change.
type onlyGet struct{ tls.ClientSessionCache }

func (onlyGet) Put(string, *tls.ClientSessionState) {}

func TestIdentityIsChosenByName(t *testing.T) {
	ca := newAuthority(t)
	a, b, late := published(t, ca, "dns:a.test", nil), published(t, ca, "dns:*.b.test", nil), NewSource("late")
	for _, tt := range []struct {
		name    string
		sources []*Source
		want    string // empty: not ready
	}{
		{"a.test", []*Source{a, b}, "a.test"},
		{"x.b.test", []*Source{a, b}, "*.b.test"},
		{"X.B.test", []*Source{a, b}, "*.b.test"},
		{"nobody.test", []*Source{a, b}, "a.test"},
		{"", []*Source{a, b}, "a.test"},
		{"nobody.test", []*Source{a}, "a.test"},
		{"x.b.test", []*Source{late, a, b}, "*.b.test"},
		{"nobody.test", []*Source{a, b, late}, ""},
		{"", []*Source{a, late}, "a.test"},
		{"", []*Source{late, a}, ""},
	} {
		s := terminate(t, ServerPolicy{Sources: tt.sources})
		end, leaf := s.connect(&tls.Config{InsecureSkipVerify: true, ServerName: tt.name})
		switch {
		case tt.want == "" && !errors.Is(end.err, ErrNotReady):
			t.Errorf("%q among %d: %v, want ErrNotReady", tt.name, len(tt.sources), end.err)
		case tt.want != "" && (end.err != nil || leaf.DNSNames[0] != tt.want):
			t.Errorf("%q among %d: %v, %v; want %s", tt.name, len(tt.sources), leaf.DNSNames, end.err, tt.want)
		}
	}
}

// An expired certificate is not offered; a handshake waits for one that is requested.
func TestTerminatorWithoutIdentity(t *testing.T) {
	ca := newAuthority(t)
	source := NewSource("server")
	source.Publish(ca.pair(t, "dns:inbound", expired), nil)
	s := terminate(t, ServerPolicy{Sources: []*Source{source}})
	if end, _ := s.connect(&tls.Config{InsecureSkipVerify: true}); !errors.Is(end.err, ErrNotReady) || !errors.Is(s.Ready(), ErrNotReady) {
		t.Errorf("ended with %v, ready: %v", end.err, s.Ready())
	}
	renewing(t, time.Hour, func(t *testing.T, i *issuer, source *Source) {
		waiting := NewTerminator(ServerPolicy{Sources: []*Source{source}})
		near, far := net.Pipe()
		defer near.Close()
		go tls.Client(far, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.Context()) // ends with near
		err := tls.Server(near, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			how, err := waiting.Terminate(hello)
			return how.Config, err
		}}).HandshakeContext(t.Context())
		if err != nil {
			t.Errorf("the identity came meanwhile: %v", err)
		}
	})
}

func TestTerminatorOffersALPN(t *testing.T) {
	ca := newAuthority(t)
	s := terminate(t, ServerPolicy{Sources: []*Source{published(t, ca, "dns:inbound", nil)}, ALPN: []string{"postgresql"}, MinVersion: tls.VersionTLS13})
	for _, tt := range []struct {
		cfg  *tls.Config
		fine bool
	}{
		{&tls.Config{NextProtos: []string{"postgresql"}}, true},
		{&tls.Config{}, true},
		{&tls.Config{NextProtos: []string{"h2"}}, false},
		{&tls.Config{MaxVersion: tls.VersionTLS12}, false},
	} {
		tt.cfg.InsecureSkipVerify = true
		if end, _ := s.connect(tt.cfg); (end.err == nil) != tt.fine {
			t.Errorf("%v, up to %x: %v", tt.cfg.NextProtos, tt.cfg.MaxVersion, end.err)
		}
	}
}

// With the principal any, a client's name is the exact text in its certificate:
// rules compare with it.
func TestEmptyFragmentIsNotDropped(t *testing.T) {
	ca := newAuthority(t)
	s := terminate(t, ServerPolicy{Sources: []*Source{published(t, ca, "dns:inbound", NewRoots(ca.pool()))}, Clients: true, Principals: principals(t, "any")})
	end, _ := s.connect(client(t, ca, "spiffe://corp/orders#"))
	if end.err != nil || end.principal != "uri:spiffe://corp/orders#" {
		t.Errorf("accepted as %q, %v", end.principal, end.err)
	}
	if principals(t, "spiffe://corp/orders")[0].MatchProved(end.principal) {
		t.Errorf("%q proves spiffe://corp/orders", end.principal)
	}
}

// RFC 7301, 3.2: a client that offers protocols, none of which we speak, is refused
// with no_application_protocol. crypto/tls takes one with http/1.1 before h2.
func TestALPNOverlap(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		ca := newAuthority(t)
		source := published(t, ca, "dns:inbound", nil)
		for _, tt := range []struct {
			ours, offered, want string // want is the protocol; empty: none; -: refused
		}{
			{"h2", "h2", "h2"},
			{"h2", "http/1.1", "-"},
			{"h2 postgresql", "http/1.1", "-"},
			{"h2", "http/1.1 h2", "h2"},
			{"h2", "http/1.1 foo", "-"},
			{"h2", "foo", "-"},
			{"h2", "", ""},
			{"h2 http/1.1", "http/1.1", "http/1.1"},
			{"", "http/1.1", ""},
		} {
			s := terminate(t, ServerPolicy{Sources: []*Source{source}, ALPN: strings.Fields(tt.ours)})
			c, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: strings.Fields(tt.offered), MinVersion: version, MaxVersion: version})
			got := "-"
			if err == nil {
				got = c.ConnectionState().NegotiatedProtocol
				c.Close()
			}
			end := <-s.ends
			if got != tt.want || (end.err != nil) != (tt.want == "-") {
				t.Errorf("we speak %q, offered is %q: %q, %v, %v; want %q", tt.ours, tt.offered, got, err, end.err, tt.want)
			}
			if tt.want == "-" && (err == nil || !strings.Contains(err.Error(), "no application protocol")) {
				t.Errorf("we speak %q, offered is %q: the client sees %v", tt.ours, tt.offered, err)
			}
		}
	})
}

// ALPN is optional for the servers that we connect to.
func TestServerThatSelectsNoALPN(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		ca := newAuthority(t)
		source := NewSource("me")
		source.Publish(ca.pair(t, "dns:me"), NewRoots(ca.pool()))
		o := NewOriginator(ClientPolicy{Source: source, ALPN: []string{"h2"}})
		if _, err := newTLSServer(t, ca, version).connect(t, o, "localhost"); err != nil {
			t.Errorf("a server without ALPN: %v", err)
		}
	})
}
