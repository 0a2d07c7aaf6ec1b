package embedded

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"ambassador/certs"

	"github.com/smallstep/certificates/authority"
	"github.com/smallstep/certificates/authority/config"
	"github.com/smallstep/certificates/authority/provisioner"
	"github.com/smallstep/certificates/db"
)

// CA is a certificate authority: a root and an intermediate that signs. Make it
// with New. It is safe for concurrent use. Its owner calls Close.
type CA struct {
	authority *authority.Authority
	pki       *pki
}

// pki is what an authority signs with.
type pki struct {
	root, intermediate *x509.Certificate
	signer             crypto.Signer // of the intermediate
}

// shortestLife is the shortest lifetime of a certificate that can be requested.
const shortestLife = time.Second

// New makes an authority that is valid for a day.
func New() (*CA, error) {
	made, err := newPKI(24 * time.Hour)
	if err != nil {
		return nil, fmt.Errorf("embedded CA: %w", err)
	}
	return startCA(made, &config.Config{
		Address:         "127.0.0.1:0",
		DNSNames:        []string{"localhost"},
		AuthorityConfig: &config.AuthConfig{Claims: newClaims(24 * time.Hour)},
	}, nil)
}

// newClaims bounds the lifetimes of certificates.
func newClaims(longest time.Duration) *provisioner.Claims {
	yes := true
	return &provisioner.Claims{
		MinTLSDur:               &provisioner.Duration{Duration: shortestLife},
		MaxTLSDur:               &provisioner.Duration{Duration: longest},
		DefaultTLSDur:           &provisioner.Duration{Duration: 24 * time.Hour},
		AllowRenewalAfterExpiry: &yes,
	}
}

// startCA starts an authority. If database is nil, it is in memory.
func startCA(p *pki, c *config.Config, database db.AuthDB) (*CA, error) {
	options := []authority.Option{authority.WithConfig(c), authority.WithX509RootCerts(p.root),
		authority.WithX509Signer(p.intermediate, p.signer), authority.WithQuietInit()}
	if database != nil {
		options = append(options, authority.WithDatabase(database))
	}
	a, err := authority.NewEmbedded(options...)
	if err != nil {
		return nil, fmt.Errorf("embedded CA: %w", err)
	}
	return &CA{authority: a, pki: p}, nil
}

// newPKI makes a root and an intermediate with that lifetime. The root's key is
// not kept: it has nothing more to sign.
func newPKI(life time.Duration) (*pki, error) {
	now := time.Now()
	template := func(name string, depth int) *x509.Certificate {
		serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
		if err != nil { // crypto/rand no longer returns errors
			serial = big.NewInt(now.UnixNano())
		}
		return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "Ambassador " + name}, NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
			IsCA: true, BasicConstraintsValid: true, MaxPathLen: depth, MaxPathLenZero: depth == 0, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root, err := certify(template("Root CA", 1), nil, &rootKey.PublicKey, rootKey)
	if err != nil {
		return nil, err
	}
	intermediate, err := certify(template("Intermediate CA", 0), root, &key.PublicKey, rootKey)
	return &pki{root, intermediate, key}, err
}

// certify signs a certificate; if parent is nil, it is self-signed.
func certify(template, parent *x509.Certificate, public crypto.PublicKey, by crypto.Signer) (*x509.Certificate, error) {
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Close shuts the authority down. Certificates that it issued stay valid.
func (c *CA) Close() { c.authority.Shutdown() }

// Roots returns a new pool with the root.
func (c *CA) Roots() *x509.CertPool {
	return certs.NewPool([]*x509.Certificate{c.pki.root})
}

// RootPEM is the root in PEM.
func (c *CA) RootPEM() []byte { return encode("CERTIFICATE", c.pki.root.Raw) }

// Issue makes a key and a certificate for servers and clients. It is valid from a
// minute ago until life from now, at least a second, and never longer than the
// root. Names are DNS names, IP addresses or URIs ("spiffe://…"); the first is
// the subject's common name. Chain and Leaf are set.
func (c *CA) Issue(ctx context.Context, names []string, life time.Duration) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := certs.NewRequest(names, key)
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", strings.Join(names, ", "), err)
	}
	if life < shortestLife {
		return nil, fmt.Errorf("issue %s: a life of %v is shorter than %v", strings.Join(names, ", "), life, shortestLife)
	}
	chain, err := c.authority.SignWithContext(ctx, csr, provisioner.SignOptions{}, validFor(life, c.pki.intermediate.NotAfter))
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", strings.Join(names, ", "), err)
	}
	return certs.NewCertificate(key, chain), nil
}

// IssuePEM is Issue in PEM: the chain, leaf first, and the key in PKCS #8.
func (c *CA) IssuePEM(ctx context.Context, names []string, life time.Duration) (certPEM, keyPEM []byte, err error) {
	cert, err := c.Issue(ctx, names, life)
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

// backdate allows for clocks that differ.
const backdate = time.Minute

// validFor sets the fields that the authority's provisioners would: validity and
// usages.
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
