package certs

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"
)

func sha1(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }

// Each cause for which a chain or a name is refused has its own fix. Every row is a
// server's chain, leaf first, verified with the roots.
func TestExplain(t *testing.T) {
	now := time.Now()
	root, other := newAuthority(t), newAuthority(t) // both are "test CA"
	plain := newAuthority(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false })
	notCA := newAuthority(t, func(c *x509.Certificate) { c.IsCA = false })
	noSign := newAuthority(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	named := newAuthority(t, func(c *x509.Certificate) { c.Subject.CommonName = "another CA" })
	expired := newAuthority(t, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
	middle, oldMiddle := root.sub(t), root.sub(t, sha1)
	lateMiddle := root.sub(t, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
	strange := named.sub(t)
	self := newAuthority(t, func(c *x509.Certificate) { c.DNSNames, c.IsCA = []string{"db.internal"}, false })

	by := func(a *authority, change ...func(*x509.Certificate)) *x509.Certificate {
		leaf, _ := a.issue(t, "dns:db.internal", change...)
		return leaf
	}
	of := func(sans string) []*x509.Certificate {
		leaf, _ := root.issue(t, sans)
		return []*x509.Certificate{leaf}
	}
	for _, tt := range []struct {
		name  string
		host  string
		roots []*authority
		chain []*x509.Certificate
		text  string // part of what happened
		fix   string // part of the fix
	}{
		{"SHA-1 leaf", "db.internal", []*authority{root}, []*x509.Certificate{by(root, sha1)},
			"the server's certificate is signed with ECDSA-SHA1, which can be forged", "issue it anew with SHA-256"},
		{"SHA-1 intermediate", "db.internal", []*authority{root}, []*x509.Certificate{by(oldMiddle), oldMiddle.cert},
			`the CA certificate "CN=test intermediate" is signed with ECDSA-SHA1`, "issue it anew with SHA-256"},
		{"same name, another key", "db.internal", []*authority{other}, []*x509.Certificate{by(root)},
			"has another key", "that CA was made anew, or is another one: set tls.ca (--ca)"},
		{"same name, another key, of an intermediate", "db.internal", []*authority{other}, []*x509.Certificate{by(middle), middle.cert},
			`the CA certificate "CN=test intermediate" was issued by "CN=test CA", and the CA of that name`, "made anew"},
		{"same name twice, one is right", "db.internal", []*authority{other, root}, []*x509.Certificate{by(root)}, "", ""},
		{"root without basicConstraints", "db.internal", []*authority{plain}, []*x509.Certificate{by(plain)},
			`"CN=test CA" may not sign others: it has no basicConstraints`, "basicConstraints=critical,CA:TRUE"},
		{"root with CA:FALSE", "db.internal", []*authority{notCA}, []*x509.Certificate{by(notCA)},
			"its basicConstraints say CA:FALSE", "basicConstraints=critical,CA:TRUE"},
		{"root without keyCertSign", "db.internal", []*authority{noSign}, []*x509.Certificate{by(noSign)},
			"its keyUsage lacks keyCertSign", "keyUsage=keyCertSign"},
		{"another root", "db.internal", []*authority{named}, []*x509.Certificate{by(root)},
			`issued by "CN=test CA"`, "set tls.ca (--ca) to that CA's certificate, or let the server send its whole chain"},
		{"a leaf as the root", "db.internal", []*authority{self}, []*x509.Certificate{by(named)},
			`was issued by "CN=another CA", and no certificate that we trust (those of tls.ca) is a CA's: "CN=test CA" vouches for itself alone (its basicConstraints say CA:FALSE)`, `set tls.ca (--ca) to the certificate of the CA "CN=another CA"`},
		{"a leaf and a CA as roots", "db.internal", []*authority{self, named}, []*x509.Certificate{by(root.sub(t))}, "no root that we trust", ""},
		{"another root, whole chain", "db.internal", []*authority{named}, []*x509.Certificate{by(middle), middle.cert, root.cert},
			`ends at the CA "CN=test CA", which is not among the roots`, "if you trust that CA, set tls.ca (--ca)"},
		{"another root, intermediates", "db.internal", []*authority{root}, []*x509.Certificate{by(strange), strange.cert},
			`issued by "CN=another CA"`, "set tls.ca (--ca) to that CA's certificate, or let the server send the chain up to"},
		{"wrong intermediate of the right name", "db.internal", []*authority{root}, []*x509.Certificate{by(middle), oldMiddle.cert},
			"was not signed by the CA certificate", "let the server send the certificate of the CA that issued it"},
		{"self-signed", "db.internal", []*authority{root}, []*x509.Certificate{self.cert}, "is self-signed", "pin its key in tls.principals (--principal): " + pinOf(self.cert)},
		{"self-signed and trusted", "db.internal", []*authority{self}, []*x509.Certificate{self.cert}, "", ""},
		{"expired leaf", "db.internal", []*authority{root}, []*x509.Certificate{by(root, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })},
			"expired at", "renew it on the server"},
		{"future leaf", "db.internal", []*authority{root}, []*x509.Certificate{by(root, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) })},
			"is not valid before", "set the clock"},
		{"expired intermediate", "db.internal", []*authority{root}, []*x509.Certificate{by(lateMiddle), lateMiddle.cert},
			`the CA certificate "CN=test intermediate": the certificate expired`, "let the server send that CA's new certificate"},
		{"expired root", "db.internal", []*authority{expired}, []*x509.Certificate{by(expired)},
			`the CA certificate "CN=test CA": the certificate expired`, "put that CA's new certificate into tls.ca (--ca)"},
		{"EKU", "db.internal", []*authority{root}, []*x509.Certificate{by(root, usage(x509.ExtKeyUsageClientAuth))},
			"lacks serverAuth", "extendedKeyUsage=serverAuth"},
		{"address as a DNS name", "10.0.0.7", []*authority{root}, of("dns:10.0.0.7"),
			"has the address 10.0.0.7 as a DNS name", "subjectAltName=IP:10.0.0.7"},
		{"IPv6 address as a DNS name", "fd00::7%eth0", []*authority{root}, of("dns:fd00::7 dns:db"),
			"has the address fd00::7 as a DNS name", "subjectAltName=IP:fd00::7"},
		{"another address as a DNS name", "10.0.0.8", []*authority{root}, of("dns:10.0.0.7"),
			"is for dns:10.0.0.7, not for 10.0.0.8", "set tls.server_name (--server-name) to a name that it covers"},
		{"wildcard", "a.db.internal", []*authority{root}, of("dns:*.internal"),
			"is for dns:*.internal", "* stands for exactly one label"},
		{"another name", "db2.internal", []*authority{root}, []*x509.Certificate{by(root)}, "not for db2.internal", "set tls.server_name (--server-name) to one of its names"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var known []*x509.Certificate
			for _, a := range tt.roots {
				known = append(known, a.cert)
			}
			j := judge{name: tt.host, roots: NewPool(known), known: known, whose: "those of tls.ca"}
			err := j.verify(tt.chain, now)
			if tt.text == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			wantRefusal(t, err, tt.text)
			var peer *PeerError
			if errors.As(err, &peer) && (!strings.Contains(peer.Fix(), tt.fix) || !strings.HasSuffix(err.Error(), "; "+peer.Fix())) {
				t.Errorf("error %q\nfix %q; want one with %q, as the end of the error", err, peer.Fix(), tt.fix)
			}
		})
	}
}
