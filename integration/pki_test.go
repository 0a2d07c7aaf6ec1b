package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority is a small private CA made with only the standard library, so that the
// tests do not depend on the ambassador's own code.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// leaf is what a certificate should say. The zero times mean a day around now.
type leaf struct {
	cn                  string
	dns                 []string
	notBefore, notAfter time.Time
	change              func(*x509.Certificate) // of the template; may be nil
}

// pair is a certificate and its key, in PEM.
type pair struct {
	cert, key []byte
	serial    *big.Int
}

func newAuthority(name string, change ...func(*x509.Certificate)) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for _, f := range change {
		if f != nil {
			f(template)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// serial is 64 random bits: two certificates of a test never share one.
func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 63))
	if err != nil {
		panic(err) // the system has no randomness
	}
	return n
}

// issue makes a certificate that serves as a server's and as a client's.
func (a *authority) issue(l leaf) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	if l.notBefore.IsZero() {
		l.notBefore = time.Now().Add(-time.Hour)
	}
	if l.notAfter.IsZero() {
		l.notAfter = time.Now().Add(24 * time.Hour)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: l.cn},
		NotBefore: l.notBefore, NotAfter: l.notAfter, DNSNames: l.dns,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range l.dns {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		}
	}
	if l.change != nil {
		l.change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return pair{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return pair{}, err
	}
	return pair{
		cert:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		serial: template.SerialNumber,
	}, nil
}

// write puts the pair into NAME.crt and NAME.key, each whole or not at all.
func (p pair) write(dir, name string) error {
	for suffix, text := range map[string][]byte{".key": p.key, ".crt": p.cert} {
		file := filepath.Join(dir, name+suffix)
		if err := os.WriteFile(file+".new", text, 0o600); err != nil {
			return err
		}
		if err := os.Rename(file+".new", file); err != nil {
			return err
		}
	}
	return nil
}

// pki is a folder of certificates that the tests share: the right ones, and every kind
// of wrong one.
//
//	ca.crt          the authority that both sides should trust
//	other.crt       an authority that neither side should trust
//	server.*        the server: localhost, 127.0.0.1, db.test
//	client.*        the ambassador: CN app
//	server-NAME.*   servers that must not be trusted: expired, future, wrong (name), other (CA)
//	client-NAME.*   clients that must not be trusted: expired, future, other (CA)
//	mismatch.*      a certificate with the key of another
//	truncated.*     a certificate cut in the middle
type pki struct {
	dir string
	ca  *authority // of ca.crt
}

func writePKI(dir string) (*pki, error) {
	ca, err := newAuthority("integration CA")
	if err != nil {
		return nil, err
	}
	other, err := newAuthority("another CA")
	if err != nil {
		return nil, err
	}
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	here := []string{"localhost", "127.0.0.1", "db.test"}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		name string
		by   *authority
		leaf leaf
	}{
		{"server", ca, leaf{cn: "server", dns: here}},
		{"server-expired", ca, leaf{cn: "server", dns: here, notBefore: past.Add(-time.Hour), notAfter: past}},
		{"server-future", ca, leaf{cn: "server", dns: here, notBefore: future}},
		{"server-wrong", ca, leaf{cn: "localhost", dns: []string{"elsewhere.test"}}},
		{"server-other", other, leaf{cn: "server", dns: here}},
		{"client", ca, leaf{cn: "app"}},
		{"client-expired", ca, leaf{cn: "app", notBefore: past.Add(-time.Hour), notAfter: past}},
		{"client-future", ca, leaf{cn: "app", notBefore: future}},
		{"client-other", other, leaf{cn: "app"}},
		{"mismatch", ca, leaf{cn: "app"}},
		{"truncated", ca, leaf{cn: "app"}},
	} {
		p, err := c.by.issue(c.leaf)
		if err != nil {
			return nil, err
		}
		switch c.name {
		case "mismatch":
			stranger, err := c.by.issue(c.leaf)
			if err != nil {
				return nil, err
			}
			p.key = stranger.key
		case "truncated":
			p.cert = p.cert[:len(p.cert)/2]
		}
		if err := p.write(dir, c.name); err != nil {
			return nil, err
		}
	}
	for name, a := range map[string]*authority{"ca.crt": ca, "other.crt": other} {
		if err := os.WriteFile(filepath.Join(dir, name), a.pem, 0o644); err != nil {
			return nil, err
		}
	}
	return &pki{dir, ca}, nil
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p, err := writePKI(filepath.Join(t.TempDir(), "pki"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// file is the path of a file in the folder.
func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

// client is the flags that give `forward` our client identity and trust.
func (p *pki) client() []string {
	return []string{"--cert", p.file("client.crt"), "--key", p.file("client.key"), "--ca", p.file("ca.crt")}
}

// server is the configuration of a TLS server with the named certificate. If
// clientCA is not empty, it demands a client certificate of that authority.
func (p *pki) server(cert, clientCA string) (*tls.Config, error) {
	c, err := tls.LoadX509KeyPair(p.file(cert+".crt"), p.file(cert+".key"))
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{c}}
	if clientCA == "" {
		return cfg, nil
	}
	text, err := os.ReadFile(p.file(clientCA + ".crt"))
	if err != nil {
		return nil, err
	}
	cfg.ClientCAs = x509.NewCertPool()
	if !cfg.ClientCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s.crt: no certificate", clientCA)
	}
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	return cfg, nil
}

// mtls is p.server with the right certificate that demands one of our CA.
func (p *pki) mtls(t testing.TB) *tls.Config {
	t.Helper()
	cfg, err := p.server("server", "ca")
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}
