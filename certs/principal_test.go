package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestPrincipalMatches(t *testing.T) {
	for _, tt := range []struct {
		principal string
		sans      string // URIs, dns:NAME, ip:ADDR, cn:NAME
		want      bool
	}{
		{"any", "", true},
		{"dns:db.internal", "dns:db.internal", true},
		{"dns:DB.internal", "dns:db.INTERNAL", true},
		{"dns:db.internal", "dns:other dns:db.internal", true},
		{"dns:db.internal", "cn:db.internal", false},
		{"dns:db.internal", "dns:*.internal", false},
		{"dns:*.internal", "dns:db.internal", true},
		{"dns:*.internal", "dns:*.internal", true},
		{"dns:*.internal", "dns:a.b.internal", false},
		{"dns:*.internal", "dns:internal", false},
		{"dns:*.internal", "dns:xinternal", false},
		{"dns:*.internal", "dns:.internal", false},
		{"ip:10.0.0.7", "ip:10.0.0.7", true},
		{"ip:::ffff:10.0.0.7", "ip:10.0.0.7", true},
		{"ip:10.0.0.7", "dns:10.0.0.7", false},
		{"spiffe://corp/orders", "spiffe://corp/orders", true},
		{"spiffe://corp/orders", "spiffe://corp/orders/x", false},
		{"spiffe://corp/orders", "spiffe://corp/Orders", false},
		{"spiffe://corp/orders", "spiffe://evil/orders", false},
		{"spiffe://corp/orders", "spiffe://corp.evil/orders", false},
		{"spiffe://corp/orders", "spiffe://corp/orders spiffe://corp/other", false}, // exactly one URI
		{"spiffe://corp/orders", "https://corp/orders", false},
		{"spiffe://corp/orders", "spiffe://corp:80/orders", false},
		{"spiffe://corp/orders", "spiffe://u@corp/orders", false},
		{"spiffe://corp/orders", "spiffe://corp/orders?x", false},
		{"spiffe://corp/orders", "dns:corp", false},
		{"spiffe://corp/*/db", "spiffe://corp/a/db", true},
		{"spiffe://corp/*/db", "spiffe://corp/a/b/db", false},
		{"spiffe://corp/*/db", "spiffe://corp//db", false},
		{"spiffe://corp/*", "spiffe://corp/a", true},
		{"spiffe://corp/*", "spiffe://corp/a/b", false},
		{"spiffe://corp/*", "spiffe://corp/", false},
		{"spiffe://corp/a/**", "spiffe://corp/a/b/c", true},
		{"spiffe://corp/a/**", "spiffe://corp/a", false},
		{"spiffe://corp/**", "spiffe://corp/x", true},
		{"spiffe://corp/a%2Fb", "", false},
	} {
		p, err := ParsePrincipal(tt.principal)
		if err != nil {
			if tt.sans == "" && !tt.want {
				continue
			}
			t.Errorf("%v", err)
			continue
		}
		if got := p.Matches(leafOf(t, tt.sans)); got != tt.want {
			t.Errorf("%s matches %q = %v, want %v", tt.principal, tt.sans, got, tt.want)
		}
	}
}

// leafOf is a certificate that nobody signed.
func leafOf(t *testing.T, sans string) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{}
	for _, s := range strings.Fields(sans) {
		switch kind, rest, _ := strings.Cut(s, ":"); kind {
		case "dns":
			c.DNSNames = append(c.DNSNames, rest)
		case "ip":
			c.IPAddresses = append(c.IPAddresses, net.ParseIP(rest))
		case "cn":
			c.Subject.CommonName = rest
		default:
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
	return c
}

func TestParsePrincipalTeaches(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "no kind of principal",
		"db.internal":             "no kind of principal",
		"cn:db":                   "no kind of principal",
		"dns:":                    "write dns:",
		"dns:a..b":                "write dns:",
		"dns:a.*.b":               "write dns:",
		"dns:*":                   "write dns:",
		"dns:a b":                 "write dns:",
		"ip:10.0.0":               "write ip:",
		"spki:abc":                "write spki:",
		"spki:sha256/AAAA":        "write spki:",
		"spiffe:corp":             "write spiffe://",
		"spiffe:///x":             "write spiffe://",
		"spiffe://corp":           "no path",
		"spiffe://corp/":          "no path",
		"spiffe://*/x":            "trust domain",
		"spiffe://Corp/x":         "trust domain",
		"spiffe://corp/a//b":      "path segment",
		"spiffe://corp/../b":      "path segment",
		"spiffe://corp/**/b":      "path segment",
		"spiffe://corp/a*":        "path segment",
		"spiffe://corp/trailing/": "path segment",
	} {
		if _, err := ParsePrincipal(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParsePrincipal(%q) = %v, want an error with %q", in, err, want)
		}
	}
}

func FuzzParsePrincipal(f *testing.F) {
	for _, s := range []string{"any", "dns:*.a", "ip:::1", "spiffe://a/b/*/**", "spki:sha256/" + base64.StdEncoding.EncodeToString(make([]byte, 32))} {
		f.Add(s)
	}
	leaf := &x509.Certificate{DNSNames: []string{"a.b"}, URIs: []*url.URL{{Scheme: "spiffe", Host: "a", Path: "/b"}}, IPAddresses: []net.IP{{127, 0, 0, 1}}}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePrincipal(s)
		if err == nil && p.String() != s {
			t.Errorf("%q is printed as %q", s, p)
		}
		p.Matches(leaf)
	})
}

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{cert, key}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// issue signs a leaf with those SANs, changed by change.
func (a *authority) issue(t *testing.T, sans string, change ...func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	template := leafOf(t, sans)
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<60))
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, f := range change {
		f(template)
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func pinOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return "spki:sha256/" + base64.StdEncoding.EncodeToString(sum[:])
}
