package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
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
		{"spiffe://corp/**", "spiffe://corp", false},
		{"spiffe://corp/**", "spiffe://corp/", false},
		{"spiffe://corp/**", "spiffe://corp/a/", false},
		{"spiffe://corp/**", "spiffe://corp/a/../b", false},
		{"spiffe://corp/*", "spiffe://corp/a%2Fb", false},
		{"spiffe://corp/*", "spiffe://corp/%61", false},
		{"spiffe://corp/*/**", "spiffe://corp/a", false},
		{"spiffe://corp/*/**", "spiffe://corp/a/b", true},
		{"spiffe://kelvin/x", "spiffe://%E2%84%AAelvin/x", false}, // folds to k
		{"spiffe://corp/orders", "SPIFFE://corp/orders", false},
		{"spiffe://corp/orders", "spiffe://CORP/orders", false},
		{"spiffe://corp/orders", "spiffe://corp/orders#", false}, // net/url drops an empty fragment
		{"spiffe://corp/orders", "spiffe://corp/orders#x", false},
		{"spiffe://corp/orders", "spiffe://corp/orders?", false},
		{"spiffe://corp/orders", "spiffe://corp/orders?#", false},
		{"spiffe://corp/orders", "spiffe://corp/orders/", false},
		{"spiffe://corp/orders", "spiffe://corp//orders", false},
		{"spiffe://corp/orders", "spiffe://corp/./orders", false},
		{"spiffe://corp/orders", "spiffe://corp:/orders", false},
		{"spiffe://corp/orders", "spiffe://@corp/orders", false},
		{"spiffe://corp/orders", "spiffe://corp/order%73", false},
		{"spiffe://corp/**", "spiffe://corp#/orders", false},
		{"spiffe://corp/**", "spiffe://corp/" + strings.Repeat("x", maxSPIFFEID-len("spiffe://corp/")), true},
		{"spiffe://corp/**", "spiffe://corp/" + strings.Repeat("x", maxSPIFFEID+1-len("spiffe://corp/")), false},
		{"spiffe://corp/orders", "dns:x spiffe://corp/orders ip:10.0.0.7", true},
		{"ip:2001:db8::7", "ip:2001:DB8:0::7", true},
		{"ip:10.0.0.7", "ip:10.0.0.8", false},
	} {
		p, err := ParsePrincipal(tt.principal)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := p.MatchCertificate(leafOf(t, tt.sans)); got != tt.want {
			t.Errorf("%s matches %q = %v, want %v", tt.principal, tt.sans, got, tt.want)
		}
	}
}

func TestPrincipalMatchesWhatWasProved(t *testing.T) {
	for _, tt := range []struct {
		principal, name string
		want            bool
	}{
		{"any", "dns:db.internal", true},
		{"any", "", false},
		{"dns:db.internal", "dns:DB.internal", true},
		{"dns:*.internal", "dns:db.internal", true},
		{"dns:*.internal", "dns:a.b.internal", false},
		{"dns:*.internal", "uri:db.internal", false},
		{"dns:db.internal", "db.internal", false},
		{"dns:db.internal", "uri:dns:db.internal", false},
		{"ip:10.0.0.7", "ip:10.0.0.7", true},
		{"ip:10.0.0.7", "ip:10.0.0.8", false},
		{"ip:10.0.0.7", "dns:10.0.0.7", false},
		{"ip:10.0.0.7", "ip:", false},
		{"spiffe://corp/batch/*", "spiffe://corp/batch/7", true},
		{"spiffe://corp/batch/*", "spiffe://corp/batch/7/8", false},
		{"spiffe://corp/batch/*", "uri:spiffe://corp/batch/7", false},
		{"spiffe://corp/batch/*", "spiffe://corp/batch/7#", false},
		{"spiffe://corp/**", "spiffe://evil/batch", false},
		{"spiffe://corp/batch", "", false},
		{"spki:sha256/" + strings.Repeat("A", 43) + "=", "spki:sha256/" + strings.Repeat("A", 43) + "=", true},
		{"spki:sha256/" + strings.Repeat("A", 43) + "=", "dns:db.internal", false},
	} {
		p, err := ParsePrincipal(tt.principal)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := p.MatchProved(tt.name); got != tt.want {
			t.Errorf("%s matches the proved %q = %v, want %v", tt.principal, tt.name, got, tt.want)
		}
	}
	if (Principal{}).MatchProved("") {
		t.Error("the zero value matches a name")
	}
}

// leafOf returns an unsigned certificate. Its URIs are exactly as written, which
// crypto/x509 would not allow.
func leafOf(t testing.TB, sans string) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{}
	var general []asn1.RawValue
	add := func(tag int, text []byte) {
		general = append(general, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: text})
	}
	for _, s := range strings.Fields(sans) {
		switch kind, rest, _ := strings.Cut(s, ":"); kind {
		case "dns":
			c.DNSNames = append(c.DNSNames, rest)
			add(2, []byte(rest))
		case "ip":
			ip := net.ParseIP(rest)
			c.IPAddresses = append(c.IPAddresses, ip)
			if v4 := ip.To4(); v4 != nil {
				ip = v4
			}
			add(7, ip)
		case "cn":
			c.Subject.CommonName = rest
		default:
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, u)
			add(6, []byte(s))
		}
	}
	if general == nil {
		return c
	}
	der, err := asn1.Marshal(general)
	if err != nil {
		t.Fatal(err)
	}
	c.Extensions = []pkix.Extension{{Id: oidSAN, Value: der}}
	c.ExtraExtensions = c.Extensions // which x509.CreateCertificate takes instead of the names
	return c
}

// zeroPin is the form of a pin.
const zeroPin = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

func TestParsePrincipalTeaches(t *testing.T) {
	for in, want := range map[string]string{
		"":                                       "no known kind",
		"ANY":                                    "no known kind",
		"cn:db":                                  "no known kind",
		"https://corp/x":                         "no known kind",
		"db.internal":                            "write dns:db.internal",
		"10.0.0.7":                               "write ip:10.0.0.7",
		"2001:db8::7":                            "write ip:2001:db8::7",
		"dns:":                                   "write dns:",
		"dns:a..b":                               "write dns:",
		"dns:a.*.b":                              "write dns:",
		"dns:*":                                  "write dns:",
		"dns:*a.b":                               "write dns:",
		"dns:**.b":                               "write dns:",
		"dns:a b":                                "write dns:",
		"dns:db:5432":                            "write dns:",
		"dns:a.b.":                               "end in a dot",
		"dns:bücher.example":                     "xn--",
		"dns:10.0.0.7":                           "write ip:10.0.0.7",
		"dns:" + strings.Repeat("a", 64):         "write dns:",
		"dns:" + strings.Repeat("a.", 127):       "end in a dot",
		"dns:" + strings.Repeat("a.", 127) + "a": "longer",
		"ip:10.0.0":                              "write ip:",
		"ip:10.0.0.0/8":                          "mask",
		"ip:[::1]":                               "write ip:",
		"ip:fe80::1%eth0":                        "zone",
		"spki:abc":                               "write spki:",
		"spki:sha256/AAAA":                       "write spki:",
		"spki:sha1/" + zeroPin:                   "write spki:",
		"spki:sha256/" + zeroPin + "\n":          "write spki:",
		"spiffe:corp":                            "write spiffe://",
		"spiffe:///x":                            "write spiffe://",
		"spiffe://corp":                          "no path",
		"spiffe://corp/":                         "no path",
		"spiffe://*/x":                           "cannot have a wildcard",
		"spiffe://*.corp/x":                      "cannot have a wildcard",
		"spiffe://**/x":                          "cannot have a wildcard",
		"spiffe://Corp/x":                        "lower-case",
		"spiffe://corp:80/x":                     "lower-case",
		"spiffe://corp/a//b":                     "path segment",
		"spiffe://corp/../b":                     "path segment",
		"spiffe://corp/a%2Fb":                    "path segment",
		"spiffe://corp/**/b":                     "must be its end",
		"spiffe://corp/a*":                       "only partly a wildcard",
		"spiffe://corp/a**":                      "only partly a wildcard",
		"spiffe://corp/trailing/":                "end in a slash",
	} {
		if _, err := ParsePrincipal(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParsePrincipal(%q) = %v, want an error with %q", in, err, want)
		}
	}
}

func FuzzParsePrincipal(f *testing.F) {
	for _, s := range []string{"any", "dns:*.a", "ip:::1", "spiffe://a/b/*/**", "spki:sha256/" + zeroPin, "ip:10.0.0.7", "spiffe://*/x", "dns:*"} {
		f.Add(s)
	}
	leaf := leafOf(f, "dns:a.b spiffe://a/b ip:127.0.0.1")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePrincipal(s)
		if err == nil && p.String() != s {
			t.Errorf("%q is printed as %q", s, p)
		}
		if err != nil && (p.MatchCertificate(leaf) || p.MatchCertificate(&x509.Certificate{})) {
			t.Errorf("%q is no principal, and matches", s)
		}
		p.MatchCertificate(leaf)
	})
}

// No URI of a certificate proves a principal that is written differently. Package
// spiffe compares the accepted IDs with go-spiffe.
func FuzzSPIFFEID(f *testing.F) {
	for _, s := range []string{"spiffe://corp/orders", "spiffe://corp/orders#", "spiffe://corp/orders?", "SPIFFE://corp/orders", "spiffe://CORP/a", "spiffe://corp:1/a",
		"spiffe://u@corp/a", "spiffe://corp/a//b", "spiffe://corp/a/..", "spiffe://corp/%61", "spiffe://corp", "spiffe://corp/", "spiffe:///a", "spiffe:corp", "https://corp/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		leaf := leafWithURI(t, uri)
		p, err := ParsePrincipal(uri)
		exact := err == nil && p.kind == kindSPIFFE && !strings.Contains(uri, "*")
		if exact != (CheckSPIFFEID(uri) == nil && strings.Count(uri, "/") > 2) {
			t.Errorf("%q: as a principal %v, as an ID %v", uri, err, CheckSPIFFEID(uri))
		}
		if exact && !p.MatchCertificate(leaf) {
			t.Errorf("%q does not prove itself", uri)
		}
		domain, _, _ := splitSPIFFE(uri)
		if all := (Principal{kind: kindSPIFFE, name: domain, path: []string{"**"}}); all.MatchCertificate(leaf) != exact {
			t.Errorf("%q proves some ID: %v, want %v", uri, !exact, exact)
		}
		if proved := anyName(leaf); strings.HasPrefix(proved, "spiffe:") && proved != short(uri) {
			t.Errorf("%q is told as %q", uri, proved)
		}
	})
}

// leafWithURI returns a certificate with any text as its URI.
func leafWithURI(t testing.TB, uri string) *x509.Certificate {
	t.Helper()
	der, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}})
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{Extensions: []pkix.Extension{{Id: oidSAN, Value: der}}}
}

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, change ...func(*x509.Certificate)) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	for _, f := range change {
		f(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{cert, key}
}

// sub is an intermediate of the authority, changed by change.
func (a *authority) sub(t *testing.T, change ...func(*x509.Certificate)) *authority {
	t.Helper()
	cert, key := a.issue(t, "cn:test-intermediate", append(change, func(c *x509.Certificate) {
		c.Subject.CommonName = "test intermediate"
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	})...)
	return &authority{cert, key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
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
func (a *authority) issue(t testing.TB, sans string, change ...func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
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
