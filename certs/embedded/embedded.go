package embedded

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/smallstep/certificates/authority"
	"github.com/smallstep/certificates/authority/config"
	"github.com/smallstep/certificates/authority/provisioner"
	"go.step.sm/crypto/minica"
)

// CA is a certificate authority: a root, an intermediate that signs, both made
// by New. It is safe for concurrent use. Its owner calls Close.
type CA struct {
	authority *authority.Authority
	pki       *minica.CA
}

// shortestLife is the shortest life of a certificate that may be asked for.
const shortestLife = time.Second

// New makes an authority that lives for a day.
func New() (*CA, error) {
	pki, err := minica.New(minica.WithName("Ambassador"))
	if err != nil {
		return nil, fmt.Errorf("embedded CA: %w", err)
	}
	a, err := authority.NewEmbedded(
		authority.WithConfig(&config.Config{
			Address:  "127.0.0.1:0",
			DNSNames: []string{"localhost"},
			AuthorityConfig: &config.AuthConfig{Claims: &provisioner.Claims{
				MinTLSDur:     &provisioner.Duration{Duration: shortestLife},
				MaxTLSDur:     &provisioner.Duration{Duration: 24 * time.Hour},
				DefaultTLSDur: &provisioner.Duration{Duration: 24 * time.Hour},
			}},
		}),
		authority.WithX509RootCerts(pki.Root),
		authority.WithX509Signer(pki.Intermediate, pki.Signer),
		authority.WithQuietInit())
	if err != nil {
		return nil, fmt.Errorf("embedded CA: %w", err)
	}
	return &CA{authority: a, pki: pki}, nil
}

// Close ends the authority. Certificates that it issued stay valid.
func (c *CA) Close() { c.authority.Shutdown() }

// Roots is a new pool of the root.
func (c *CA) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.pki.Root)
	return pool
}

// RootPEM is the root in PEM.
func (c *CA) RootPEM() []byte { return encode("CERTIFICATE", c.pki.Root.Raw) }

// Issue makes a key and a certificate for it, good for servers and clients,
// valid from a minute ago for life from now: at least a second, and never longer
// than the root. Names are DNS names, IP addresses or URIs ("spiffe://…"); the
// first is the subject's common name. Chain and Leaf are set.
func (c *CA) Issue(names []string, life time.Duration) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := request(names, key)
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", strings.Join(names, ", "), err)
	}
	if life < shortestLife {
		return nil, fmt.Errorf("issue %s: a life of %v is shorter than %v", strings.Join(names, ", "), life, shortestLife)
	}
	chain, err := c.authority.SignWithContext(context.Background(), csr, provisioner.SignOptions{}, validFor(life, c.pki.Intermediate.NotAfter))
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", strings.Join(names, ", "), err)
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, crt := range chain {
		cert.Certificate = append(cert.Certificate, crt.Raw)
	}
	return cert, nil
}

// IssuePEM is Issue in PEM: the chain, leaf first, and the key in PKCS #8.
func (c *CA) IssuePEM(names []string, life time.Duration) (certPEM, keyPEM []byte, err error) {
	cert, err := c.Issue(names, life)
	if err != nil {
		return nil, nil, err
	}
	for _, der := range cert.Certificate {
		certPEM = append(certPEM, encode("CERTIFICATE", der)...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	return certPEM, encode("PRIVATE KEY", der), nil
}

// request is a signing request for the names.
func request(names []string, key *ecdsa.PrivateKey) (*x509.CertificateRequest, error) {
	if len(names) == 0 {
		return nil, errors.New("a certificate needs a name")
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: names[0]}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		if !strings.Contains(name, "://") {
			template.DNSNames = append(template.DNSNames, name)
			continue
		}
		u, err := url.Parse(name)
		if err != nil {
			return nil, err
		}
		template.URIs = append(template.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificateRequest(der)
}

// backdate is for clocks that are not quite alike.
const backdate = time.Minute

// validFor sets what the authority's provisioners would: validity and usages.
func validFor(life time.Duration, latest time.Time) provisioner.CertificateModifierFunc {
	return func(crt *x509.Certificate, _ provisioner.SignOptions) error {
		now := time.Now()
		crt.NotBefore, crt.NotAfter = now.Add(-backdate), now.Add(life)
		if crt.NotAfter.After(latest) {
			crt.NotAfter = latest
		}
		crt.KeyUsage = x509.KeyUsageDigitalSignature
		crt.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		return nil
	}
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
