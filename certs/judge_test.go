package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
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

func usage(u x509.ExtKeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{u} }
}

// The specification of accepted peers: every row is a leaf of one CA, verified with
// that CA as root, unless it says otherwise.
func TestJudge(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	now, roots, remembered := time.Now(), ca.pool(), &verified{}
	db, _ := ca.issue(t, "dns:db.internal ip:10.0.0.7 ip:fe80::1")
	wild, _ := ca.issue(t, "dns:*.internal")
	spiffe, _ := ca.issue(t, "spiffe://corp/orders")
	twoURIs, _ := ca.issue(t, "spiffe://corp/orders spiffe://corp/other")
	fragment, _ := ca.issue(t, "spiffe://corp/orders#")
	cnOnly, _ := ca.issue(t, "cn:db.internal")
	clientOnly, _ := ca.issue(t, "dns:db.internal", usage(x509.ExtKeyUsageClientAuth))
	foreign, _ := other.issue(t, "dns:db.internal")
	for _, tt := range []struct {
		name       string
		host       string
		principals Principals
		leaf       *x509.Certificate
		after      time.Duration // when it is judged, from now
		want       string        // part of the error; empty: accepted
	}{
		{"by name", "db.internal", nil, db, 0, ""},
		{"by name in capitals", "DB.Internal", nil, db, 0, ""},
		{"by name with a dot", "db.internal.", nil, db, 0, ""},
		{"by wildcard", "db.internal", nil, wild, 0, ""},
		{"by wildcard, two labels", "a.db.internal", nil, wild, 0, "dns:*.internal, not for a.db.internal"},
		{"by address", "10.0.0.7", nil, db, 0, ""},
		{"by address with a zone", "fe80::1%eth0", nil, db, 0, ""},
		{"another address", "10.0.0.8", nil, db, 0, "not for 10.0.0.8; set tls.server_name"},
		{"another name", "db2.internal", nil, db, 0, "dns:db.internal, ip:10.0.0.7, ip:fe80::1, not for db2.internal; set tls.server_name"},
		{"no name to check", "", nil, db, 0, "set tls.server_name (--server-name) or tls.principals (--principal)"},
		{"CN is not read", "db.internal", nil, cnOnly, 0, "its CN (\"db.internal\") is not read"},
		{"another CA", "db.internal", nil, foreign, 0, "(those given) vouches for the server's certificate, which was issued by \"CN=test CA\"; set tls.ca"},
		{"expired", "db.internal", nil, db, 2 * time.Hour, "expired at"},
		{"not yet valid", "db.internal", nil, db, -2 * time.Hour, "is the clock right?"},
		{"not for servers", "db.internal", nil, clientOnly, 0, "lacks serverAuth"},

		{"SPIFFE ID", "x", principals(t, "spiffe://corp/*"), spiffe, 0, ""},
		{"SPIFFE ID beside another", "x", principals(t, "spiffe://corp/*"), twoURIs, 0, "several URIs"},
		{"SPIFFE ID with an empty fragment", "x", principals(t, "spiffe://corp/*"), fragment, 0, "its URI proves no SPIFFE ID: the path segment \"orders#\""},
		{"any, with an empty fragment", "x", principals(t, "any"), fragment, 0, ""},
		{"expired SPIFFE ID", "x", principals(t, "spiffe://corp/*"), spiffe, 2 * time.Hour, "expired at"},
		{"second principal", "x", principals(t, "ip:10.0.0.9", "dns:db.internal"), db, 0, ""},
		{"right host, wrong principal", "db.internal", principals(t, "dns:other"), db, 0, "but principals wants dns:other"},
		{"principal of another CA", "db.internal", principals(t, "dns:db.internal"), foreign, 0, "set tls.ca"},
		{"any", "x", principals(t, "any"), cnOnly, 0, ""},
		{"any, of another CA", "x", principals(t, "any"), foreign, 0, "set tls.ca"},
		{"any, not for servers", "x", principals(t, "any"), clientOnly, 0, "lacks serverAuth"},

		{"pin instead of a chain", "x", principals(t, pinOf(foreign)), foreign, 0, ""},
		{"pin instead of dates", "x", principals(t, pinOf(foreign)), foreign, 2 * time.Hour, ""},
		{"another pin", "db.internal", principals(t, pinOf(foreign)), db, 0, "none of those pinned"},
		{"pin or name: the name", "x", principals(t, pinOf(foreign), "dns:db.internal"), db, 0, ""},
		{"pin or name: the pin", "x", principals(t, "dns:db.internal", pinOf(foreign)), foreign, 0, ""},
		{"pin or name: neither", "x", principals(t, pinOf(db), "dns:db.internal"), foreign, 0, "set tls.ca"},
	} {
		// The same with a memory that has all that the rows before have verified.
		for name, memory := range map[string]*verified{"": nil, "/remembered": remembered, "/again": remembered} {
			t.Run(tt.name+name, func(t *testing.T) {
				j := judge{name: tt.host, principals: tt.principals, roots: roots, whose: "those given", verified: memory}
				err := j.verify([]*x509.Certificate{tt.leaf}, now.Add(tt.after))
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
}

func wantRefusal(t *testing.T, err error, text string) {
	t.Helper()
	var verification *tls.CertificateVerificationError
	var peer *PeerError
	if !errors.As(err, &verification) || !errors.As(err, &peer) {
		t.Fatalf("error %v (%T); want a CertificateVerificationError around a PeerError", err, err)
	}
	if !strings.Contains(err.Error(), text) {
		t.Errorf("error %q; want one with %q", err, text)
	}
}

// A chain is cached for its roots, while all of it is valid, and within bounds.
func TestVerifiedChainsAreCached(t *testing.T) {
	ca := newAuthority(t)
	leaf, _ := ca.issue(t, "dns:db.internal")
	roots, now := ca.pool(), time.Now()
	j := judge{name: "db.internal", roots: roots, verified: &verified{}}
	if err := j.verify([]*x509.Certificate{leaf}, now); err != nil {
		t.Fatal(err)
	}
	key := keyOf([]*x509.Certificate{leaf}, roots)
	for _, tt := range []struct {
		name  string
		key   verifiedKey
		at    time.Time
		known bool
	}{
		{"now", key, now, true},
		{"at its last moment", key, leaf.NotAfter, true},
		{"behind that", key, leaf.NotAfter.Add(time.Second), false},
		{"before its first", key, leaf.NotBefore.Add(-time.Second), false},
		{"other roots", keyOf([]*x509.Certificate{leaf}, newAuthority(t).pool()), now, false},
		{"a longer chain", keyOf([]*x509.Certificate{leaf, ca.cert}, roots), now, false},
	} {
		if _, known := j.verified.find(tt.key, tt.at); known != tt.known {
			t.Errorf("%s: known %t", tt.name, known)
		}
	}
	for i := range 10 * maxVerified {
		j.verified.add(verifiedKey{peer: [32]byte{byte(i), byte(i >> 8)}}, [][]*x509.Certificate{{leaf}})
	}
	if n := len(j.verified.chains); n > maxVerified {
		t.Errorf("%d chains are kept", n)
	}
}

func BenchmarkJudge(b *testing.B) {
	ca := newAuthority(b)
	leaf, _ := ca.issue(b, "dns:db.internal")
	for name, memory := range map[string]*verified{"each time": nil, "remembered": {}} {
		b.Run(name, func(b *testing.B) {
			j := judge{name: "db.internal", roots: ca.pool(), verified: memory}
			for b.Loop() {
				if err := j.verify([]*x509.Certificate{leaf}, time.Now()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The cause of an error can also be found by its type.
func TestJudgeErrorTypes(t *testing.T) {
	ca := newAuthority(t)
	leaf, _ := ca.issue(t, "dns:db.internal")
	peer := []*x509.Certificate{leaf}
	err := (&judge{roots: ca.pool(), principals: principals(t, "dns:other")}).verify(peer, time.Now())
	if !errors.Is(err, ErrPrincipal) {
		t.Errorf("wrong principal: %v is no ErrPrincipal", err)
	}
	err = (&judge{roots: ca.pool(), name: "other"}).verify(peer, time.Now())
	if hostname := (x509.HostnameError{}); !errors.As(err, &hostname) {
		t.Errorf("wrong name: %v is no HostnameError", err)
	}
	err = (&judge{roots: newAuthority(t).pool(), principals: principals(t, "dns:other")}).verify(peer, time.Now())
	if unknown := (x509.UnknownAuthorityError{}); !errors.As(err, &unknown) || errors.Is(err, ErrPrincipal) {
		t.Errorf("wrong CA: %v is no UnknownAuthorityError, or an ErrPrincipal", err)
	}
	wantRefusal(t, (&judge{}).verify(nil, time.Now()), "sent no certificate")
}

// A chain is built with the intermediates that the server sends, and only those.
func TestJudgeUsesIntermediates(t *testing.T) {
	root := newAuthority(t)
	middle := root.sub(t)
	leaf, _ := middle.issue(t, "dns:db.internal")
	j := judge{name: "db.internal", roots: root.pool(), whose: "those given"}
	now := time.Now()
	if err := j.verify([]*x509.Certificate{leaf, middle.cert}, now); err != nil {
		t.Error(err)
	}
	wantRefusal(t, j.verify([]*x509.Certificate{leaf}, now), "let the server send its whole chain")

	early := root.sub(t, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
	leaf, _ = early.issue(t, "dns:db.internal")
	wantRefusal(t, j.verify([]*x509.Certificate{leaf, early.cert}, now), `the CA certificate "CN=test intermediate": the certificate expired at`)

	imposter := &authority{} // an ordinary leaf that signs
	imposter.cert, imposter.key = root.issue(t, "dns:imposter")
	leaf, _ = imposter.issue(t, "dns:db.internal")
	wantRefusal(t, j.verify([]*x509.Certificate{leaf, imposter.cert}, now), "")
}

// Control characters of a peer's certificate do not reach our terminal.
func TestNamesArePrintable(t *testing.T) {
	leaf := &x509.Certificate{DNSNames: []string{"a\x1b[2Jb\n"}, EmailAddresses: []string{"é\r@x"}}
	if got, want := strings.Join(names(leaf), " "), "dns:a?[2Jb? email:é?@x"; got != want {
		t.Errorf("names %q, want %q", got, want)
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = strings.Repeat("é", 300)
	}
	if got := listed(many); len(got) > 2*maxText || !strings.HasSuffix(got, "and 992 more") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}
