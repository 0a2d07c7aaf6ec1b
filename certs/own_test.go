package certs

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

// Each fault of our own chain that peers may reject is named, and nothing else.
func TestFaults(t *testing.T) {
	now := time.Now()
	root, other := newAuthority(t), newAuthority(t)
	middle, sha1Middle := root.sub(t), root.sub(t, sha1)
	late := root.sub(t, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
	narrow := root.sub(t, usage(x509.ExtKeyUsageServerAuth))
	imposter := &authority{}
	imposter.cert, imposter.key = root.issue(t, "dns:imposter")
	pair := func(by *authority, change ...func(*x509.Certificate)) *tls.Certificate {
		p := by.pair(t, "dns:app", change...)
		if by != root {
			p.Certificate = append(p.Certificate, by.cert.Raw)
		}
		return p
	}
	small := pair(root)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	small.Leaf.PublicKey = &weak.PublicKey
	stray := pair(root)
	stray.Certificate = append(stray.Certificate, other.cert.Raw)
	broken := pair(root)
	broken.Certificate = append(broken.Certificate, []byte("no DER"))
	for _, tt := range []struct {
		name string
		cert *tls.Certificate
		use  Use
		want string // part of the only fault; empty: there is none
	}{
		{"good for servers", pair(root), ForServers, ""},
		{"good for clients", pair(root), ForClients, ""},
		{"good with an intermediate", pair(middle), ForServers, ""},
		{"without usages", pair(root, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), ForServers, ""},
		{"for any use", pair(root, usage(x509.ExtKeyUsageAny)), ForServers, ""},
		{"none", nil, ForServers, ""},
		{"not for a client", pair(root, usage(x509.ExtKeyUsageServerAuth)), ForServers, "lacks clientAuth, and most servers reject it; issue it with extendedKeyUsage=clientAuth"},
		{"not for a server", pair(root, usage(x509.ExtKeyUsageClientAuth)), ForClients, "lacks serverAuth, and most clients reject it; issue it with extendedKeyUsage=serverAuth"},
		{"key usage", pair(root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), ForServers, "lacks digitalSignature"},
		{"small key", small, ForServers, "only 1024 bits"},
		{"SHA-1", pair(root, sha1), ForServers, "it is signed with ECDSA-SHA1"},
		{"SHA-1 intermediate", pair(sha1Middle), ForServers, `the CA certificate "CN=test intermediate" in its chain is signed with ECDSA-SHA1`},
		{"expired intermediate", pair(late), ForServers, "in its chain cannot be used: the certificate expired"},
		{"intermediate for servers alone", pair(narrow), ForServers, "permits no certificates for clients: its extended key usage lacks clientAuth"},
		{"intermediate that is no CA", stray, ForServers, `none of the CA certificates in its chain has issued it; put the certificate of "CN=test CA" behind it`},
		{"unreadable intermediate", broken, ForServers, "cannot be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Faults(tt.cert, tt.use, now)
			if tt.want == "" && len(got) == 0 {
				return
			}
			if tt.want == "" || len(got) != 1 || !strings.Contains(got[0].String(), tt.want) {
				t.Errorf("faults %q; want one with %q", got, tt.want)
			}
		})
	}
	got := Faults(pair(imposter), ForServers, now)
	if len(got) != 2 || !strings.Contains(got[1].String(), "it has no basicConstraints") {
		t.Errorf("a chain of a leaf that signs has the faults %q", got)
	}
}
