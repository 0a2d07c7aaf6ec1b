package certs

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"
)

// revoke makes a list of the authority, valid for an hour, modified by change.
func (a *authority) revoke(t *testing.T, serials []*big.Int, change ...func(*x509.RevocationList)) *x509.RevocationList {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, s := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now().Add(-time.Minute)})
	}
	for _, f := range change {
		f(template)
	}
	able := *a.cert
	able.KeyUsage |= x509.KeyUsageCRLSign // else Go does not sign
	der, err := x509.CreateRevocationList(rand.Reader, template, &able, a.key)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestRevokedPeers(t *testing.T) {
	ca := newAuthority(t)
	other := newAuthority(t, func(c *x509.Certificate) { c.Subject.CommonName = "other CA" })
	middle := ca.sub(t)
	good, _ := ca.issue(t, "dns:db.internal")
	bad, _ := ca.issue(t, "dns:db.internal")
	deep, _ := middle.issue(t, "dns:db.internal")
	out := func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Minute) }
	for _, tt := range []struct {
		name  string
		lists []*x509.RevocationList
		peer  []*x509.Certificate
		want  string
	}{
		{"no list", nil, []*x509.Certificate{bad}, ""},
		{"not on the list", []*x509.RevocationList{ca.revoke(t, []*big.Int{bad.SerialNumber})}, []*x509.Certificate{good}, ""},
		{"on the list", []*x509.RevocationList{ca.revoke(t, []*big.Int{bad.SerialNumber})}, []*x509.Certificate{bad}, "was revoked by"},
		{"on the second list", []*x509.RevocationList{ca.revoke(t, nil), ca.revoke(t, []*big.Int{bad.SerialNumber})}, []*x509.Certificate{bad}, "was revoked by"},
		{"on a list of another CA", []*x509.RevocationList{other.revoke(t, []*big.Int{bad.SerialNumber})}, []*x509.Certificate{bad}, ""},
		{"a list that ran out", []*x509.RevocationList{ca.revoke(t, nil, out)}, []*x509.Certificate{good}, "it expired at"},
		{"a list that ran out, of another CA", []*x509.RevocationList{other.revoke(t, nil, out)}, []*x509.Certificate{good}, ""},
		{"by an intermediate", []*x509.RevocationList{middle.revoke(t, []*big.Int{deep.SerialNumber})}, []*x509.Certificate{deep, middle.cert}, "was revoked by"},
		{"the intermediate itself", []*x509.RevocationList{ca.revoke(t, []*big.Int{middle.cert.SerialNumber})}, []*x509.Certificate{deep, middle.cert}, "was revoked by"},
		{"an intermediate without a list", []*x509.RevocationList{ca.revoke(t, nil)}, []*x509.Certificate{deep, middle.cert}, ""},
		{"a root without a list", []*x509.RevocationList{middle.revoke(t, nil)}, []*x509.Certificate{deep, middle.cert}, ""},
		{"a root with a list for end entities", []*x509.RevocationList{middle.revoke(t, nil), ca.revoke(t, nil, scoped(flag(1)))}, []*x509.Certificate{deep, middle.cert}, "for end entities alone"},
		{"a root with a list for CAs", []*x509.RevocationList{middle.revoke(t, nil), ca.revoke(t, nil, scoped(flag(2)))}, []*x509.Certificate{deep, middle.cert}, ""},
		{"a root with a delta list", []*x509.RevocationList{middle.revoke(t, nil), ca.revoke(t, nil, extended(oidDeltaCRL, true, marshal(1)))}, []*x509.Certificate{deep, middle.cert}, "delta list"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j := judge{name: "db.internal", roots: ca.pool(), whose: "those given", revoked: NewRevocations(tt.lists), verified: &verified{}}
			j.verify(tt.peer, time.Now())
			err := j.verify(tt.peer, time.Now()) // as the first time
			if tt.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			wantRefusal(t, err, tt.want)
			if !errors.Is(err, ErrRevoked) {
				t.Errorf("%v is no ErrRevoked", err)
			}
		})
	}
}

// A CA without a list is refused below the roots of an identity with lists, or below
// those of tls.ca if the identity has none. The lists are not for the system's roots,
// nor for tls.ca beside roots of the identity.
func TestCAsThatNeedAList(t *testing.T) {
	ca := newAuthority(t)
	elsewhere := newAuthority(t, func(c *x509.Certificate) { c.Subject.CommonName = "other CA" })
	lists := NewRevocations([]*x509.RevocationList{elsewhere.revoke(t, nil)})
	me, given := ca.pair(t, "dns:me"), NewSource("roots")
	given.Publish(nil, NewRoots(ca.pool()))
	for _, tt := range []struct {
		name   string
		roots  *Roots
		given  *Source
		system bool
		want   bool
	}{
		{"the identity's roots", &Roots{Pool: ca.pool(), Revoked: lists}, nil, false, true},
		{"roots beside lists of an identity without", &Roots{Revoked: lists}, given, false, true},
		{"roots instead of the identity's", &Roots{Pool: elsewhere.pool(), Revoked: lists}, given, false, false},
		{"the system's", &Roots{Pool: ca.pool(), Revoked: lists}, nil, true, false},
		{"the system's, for want of others", &Roots{Revoked: lists}, nil, false, false},
	} {
		s := NewSource("me")
		s.Publish(me, tt.roots)
		snap, err := s.Current()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := trustedBy(snap, tt.given, tt.system); err != nil || got.listed != tt.want || got.revoked != lists {
			t.Errorf("%s: a list is needed: %v, %v; want %v", tt.name, got.listed, err, tt.want)
		}
		if tt.system || tt.given == nil && tt.roots.Pool == nil {
			continue
		}
		cfg, err := NewOriginator(ClientPolicy{Source: s, Roots: tt.given}).Config("db.internal", "a")
		if err != nil {
			t.Fatal(err)
		}
		leaf, _ := ca.issue(t, "dns:db.internal")
		err = cfg.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
		if (err != nil) != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// The expiry of a list is noticed even if the chain is cached.
func TestListRunsOutForRememberedChains(t *testing.T) {
	ca := newAuthority(t)
	leaf, _ := ca.issue(t, "dns:db.internal")
	now := time.Now()
	list := ca.revoke(t, nil, func(l *x509.RevocationList) { l.NextUpdate = now.Add(time.Minute) })
	j := judge{name: "db.internal", roots: ca.pool(), whose: "those given", revoked: NewRevocations([]*x509.RevocationList{list}), verified: &verified{}}
	if err := j.verify([]*x509.Certificate{leaf}, now); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, j.verify([]*x509.Certificate{leaf}, now.Add(2*time.Minute)), "it expired at")
}

// A new list counts at once, also for a session from before it.
func TestRevocationEndsResumption(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		ca := newAuthority(t)
		server := newTLSServer(t, ca, version)
		source, me := NewSource("me"), ca.pair(t, "dns:me")
		source.Publish(me, NewRoots(ca.pool()))
		o := NewOriginator(ClientPolicy{Source: source})
		for range 2 {
			if _, err := server.connect(t, o, "localhost"); err != nil {
				t.Fatal(err)
			}
		}
		cfg, err := o.Config("localhost", server.addr)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := tls.Dial("tcp", server.addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		serial := conn.ConnectionState().PeerCertificates[0].SerialNumber
		conn.Close()
		<-server.seen
		lists := NewRevocations([]*x509.RevocationList{ca.revoke(t, []*big.Int{serial})})
		if !source.Publish(me, &Roots{Pool: ca.pool(), Revoked: lists}) {
			t.Fatal("a new list is no new generation")
		}
		if source.Publish(me, &Roots{Pool: ca.pool(), Revoked: lists}) {
			t.Error("the same list is a new generation")
		}
		_, err = server.connect(t, o, "localhost")
		wantRefusal(t, err, "was revoked by")
	})
}

// A trust domain's roots vouch only for the SPIFFE IDs of that domain.
func TestTrustDomainsAreKeptApart(t *testing.T) {
	ours, theirs, nobodys := newAuthority(t), newAuthority(t), newAuthority(t)
	pool := ours.pool()
	source := NewSource("me")
	source.Publish(nil, &Roots{Pool: pool, Domains: map[string]*x509.CertPool{"a.test": pool, "b.test": theirs.pool()}})
	for _, tt := range []struct {
		name, principals string
		ca               *authority
		sans, want       string
	}{
		{"our ID", "spiffe://a.test/db", ours, "spiffe://a.test/db", ""},
		{"their ID", "spiffe://b.test/db", theirs, "spiffe://b.test/db", ""},
		{"our ID, made by them", "spiffe://a.test/db", theirs, "spiffe://a.test/db", "no root that we trust"},
		{"their ID, made by us", "spiffe://b.test/db", ours, "spiffe://b.test/db", "no root that we trust"},
		{"their ID where ours is wanted", "spiffe://a.test/**", theirs, "spiffe://b.test/db", "principals wants"},
		{"an ID of nobody's", "spiffe://c.test/db", nobodys, "spiffe://c.test/db", "no roots of that trust domain"},
		{"an ID of nobody's, made by us", "spiffe://c.test/db", ours, "spiffe://c.test/db", "no roots of that trust domain"},
		{"our name", "", ours, "dns:db.a.test", ""},
		{"our name beside our ID", "", ours, "spiffe://a.test/db dns:db.a.test", ""},
		{"our name, made by them", "", theirs, "dns:db.a.test", "no root that we trust"},
		{"our name beside their ID", "", theirs, "spiffe://b.test/db dns:db.a.test", "no root that we trust"},
		{"our name beside their ID, either wanted", "dns:db.a.test spiffe://b.test/other", theirs, "spiffe://b.test/db dns:db.a.test", "principals wants"},
		{"no ID by the letter", "any", ours, "spiffe://a.test/db#", "of no trust domain; its URI proves no SPIFFE ID"},
		{"two IDs, made by them", "any", theirs, "spiffe://b.test/db spiffe://b.test/x", "no root that we trust"},
		{"anything, of them", "any", theirs, "spiffe://b.test/db", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			policy := ClientPolicy{Source: source}
			if tt.principals != "" {
				policy.Principals = principals(t, strings.Fields(tt.principals)...)
			}
			cfg, err := NewOriginator(policy).Config("db.a.test", "a")
			if err != nil {
				t.Fatal(err)
			}
			leaf, _ := tt.ca.issue(t, tt.sans)
			err = cfg.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
			if tt.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			wantRefusal(t, err, tt.want)
		})
	}
}
