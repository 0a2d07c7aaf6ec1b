package certs

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
)

// Roots that are trusted for servers alone verify no clients, and the reverse; the
// refusal says why.
func TestRootsOfOnePurpose(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	limited := &Roots{Pool: ours.pool(), Clients: theirs.pool()}
	s := terminate(t, ServerPolicy{Sources: []*Source{published(t, ours, "dns:inbound", limited)}, Clients: true, Principals: principals(t, "any")})
	if end, _ := s.connect(client(t, theirs, "dns:a")); end.err != nil {
		t.Errorf("a client of the CA for clients: %v", end.err)
	}
	end, _ := s.connect(client(t, ours, "dns:a"))
	wantRefusal(t, end.err, "(the identity's; their trust settings limit some to servers or to clients) vouches for the client's certificate")
	server := newTLSServer(t, ours, tls.VersionTLS13)
	o := NewOriginator(ClientPolicy{Source: published(t, ours, "dns:us", nil), Roots: rootsSource(limited), Principals: principals(t, "any")})
	if _, err := server.connect(t, o, "db.internal"); err != nil {
		t.Errorf("a server of the CA for servers: %v", err)
	}
	o = NewOriginator(ClientPolicy{Source: published(t, ours, "dns:us", nil), Roots: rootsSource(&Roots{Pool: theirs.pool(), Clients: ours.pool()}), Principals: principals(t, "any")})
	if _, err := server.connect(t, o, "db.internal"); err == nil || !strings.Contains(err.Error(), "those of tls.ca; their trust settings limit some") {
		t.Errorf("a server of the CA for clients: %v", err)
	}
}

// Other roots make another generation, and so do other certificates that are left
// out: they are to be logged.
func TestRootsAreEqual(t *testing.T) {
	pool := newAuthority(t).pool()
	for _, other := range []*Roots{nil, {}, {Pool: x509.NewCertPool()}, {Pool: pool, Clients: x509.NewCertPool()}, {Pool: pool, Unused: []string{"certificate 1"}}} {
		if r := (&Roots{Pool: pool}); r.equal(other) || other.equal(r) || !other.equal(other) {
			t.Errorf("%+v", other)
		}
	}
	s := NewSource("x")
	s.Publish(nil, &Roots{Pool: pool})
	if !s.Publish(nil, &Roots{Pool: pool, Unused: []string{"certificate 1"}}) {
		t.Error("no new generation")
	}
}

func rootsSource(r *Roots) *Source {
	s := NewSource("roots")
	s.Publish(nil, r)
	return s
}
